//! `config migrate`: takes over what was said to cosmovisor, in its config.toml and in variables, and tells of each setting
//! what becomes of it. Nothing of cosmovisor's is changed.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml_edit::Document;

use super::Changed;
use super::edit::{Target, taken, text_of};
use crate::config::{
    Config, SETTINGS, Setting, Sources, by_name, duration, file, read, remedy, resolve_as, show_duration,
};
use crate::error::{Error, OnFile, Result, printable};
use crate::home::{Home, Name, Owner, Release};
use crate::job::durable;
use crate::journal::{rfc3339, unix_now};
use crate::manifest::encode;

/// What a setting of cosmovisor is here.
enum Kin {
    /// The same.
    Same,
    /// The same name with another meaning.
    Other(&'static str),
    /// Nothing, and why.
    Nothing(&'static str),
}

/// Every setting of cosmovisor.
const THEIRS: &[(&str, Kin)] = &[
    (
        "DAEMON_HOME",
        Kin::Nothing(
            "a file in the home cannot say where the home is: it stays a variable, or --home, or in /etc/wemixvisor/config.toml",
        ),
    ),
    ("DAEMON_NAME", Kin::Same),
    ("DAEMON_ALLOW_DOWNLOAD_BINARIES", Kin::Same),
    ("DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM", Kin::Nothing("")),
    ("DAEMON_RESTART_AFTER_UPGRADE", Kin::Same),
    ("DAEMON_RESTART_DELAY", Kin::Other("here the pause is after the switch, before the new release starts")),
    (
        "DAEMON_SHUTDOWN_GRACE",
        Kin::Other(
            "here only time without progress counts; how long a stop may take in all says daemon_shutdown_limit",
        ),
    ),
    ("DAEMON_POLL_INTERVAL", Kin::Same),
    (
        "DAEMON_DATA_BACKUP_DIR",
        Kin::Other("here old backups of upgrades are removed, as daemon_backup_keep and daemon_backup_max_age say"),
    ),
    ("UNSAFE_SKIP_BACKUP", Kin::Same),
    ("DAEMON_PREUPGRADE_MAX_RETRIES", Kin::Other("here it is for hooks, with pauses between the tries")),
    ("DAEMON_GRPC_ADDRESS", Kin::Nothing("")),
    ("COSMOVISOR_DISABLE_LOGS", Kin::Same),
    ("COSMOVISOR_COLOR_LOGS", Kin::Same),
    ("COSMOVISOR_TIMEFORMAT_LOGS", Kin::Nothing("time stamps are RFC 3339")),
    ("COSMOVISOR_CUSTOM_PREUPGRADE", Kin::Other("here a relative path lies in wemixvisor/")),
    ("COSMOVISOR_DISABLE_RECASE", Kin::Nothing("names of upgrades keep their case")),
];

/// Their times. In their file a whole number is one of nanoseconds, and so are all that their `init` writes (Go's
/// `time.Duration`).
const TIMES: [&str; 3] = ["daemon_restart_delay", "daemon_shutdown_grace", "daemon_poll_interval"];

/// A value that was said to cosmovisor.
struct Said {
    variable: &'static str,
    kin: &'static Kin,
    text: String,
    origin: String,
}

impl Said {
    fn key(&self) -> String {
        self.variable.to_ascii_lowercase()
    }
}

/// Takes it all over.
pub fn migrate(sources: &Sources) -> Result<Changed> {
    let target = Target::open(sources)?;
    let document = target.document()?;
    let config = elsewhere(sources)?;
    let home = Home::new(&config.home, &config.name);
    let theirs = home.root().join("cosmovisor/config.toml");
    let (said, unknown) = said(sources, &theirs)?;

    let mut lines = Vec::new();
    let mut problems = Vec::new();
    let mut text = match &target.text {
        Some(text) => text.clone(),
        None => file::commented(file::INTRO, &[]),
    };
    let within = format!("{}/", home.root().display());
    for one in &said {
        let key = one.key();
        let origin = one.origin.replacen(&within, "", 1);
        let (line, value) = match (becomes(one, &home), text_of(&document, &key)) {
            (Fate::Wrong(why), _) => {
                problems.push(why);
                continue;
            }
            (Fate::LeftOut(why), _) => (format!("left out ({origin}): {why}"), None),
            (Fate::Taken(_), Some(own)) if own == one.text => ("taken over already".to_owned(), None),
            (Fate::Taken(_), Some(own)) => {
                (format!("stays {own:?}, as {} says; {origin} said {:?}", target.path.display(), one.text), None)
            }
            (Fate::Taken(note), None) => {
                let note = note.map_or(String::new(), |note| format!("; {note}"));
                (format!("{:?}, from {origin}{note}", one.text), Some(file::literal(&one.text)))
            }
        };
        lines.push(format!("{key}: {line}"));
        if let Some(value) = value {
            text = file::set(&file::parse(&text, &target.path).map_err(Error::usage)?, &key, &value);
        }
    }
    for key in unknown {
        lines.push(format!("{}: left out (file cosmovisor/config.toml): no setting of cosmovisor", printable(&key)));
    }
    // Its file may have been moved to where ours is.
    for (variable, kin) in THEIRS {
        let key = variable.to_ascii_lowercase();
        let foreign = by_name(&key).is_none() || (*variable == "DAEMON_HOME" && target.path == home.config());
        let document = file::parse(&text, &target.path).map_err(Error::usage)?;
        if foreign && let Some(without) = file::unset(&document, &key) {
            lines.push(format!("{key}: removed from {}: {}", target.path.display(), why(variable, kin)));
            text = without;
        }
    }
    for key in TIMES {
        let document = file::parse(&text, &target.path).map_err(Error::usage)?;
        // Nothing of ours is written without a unit.
        if let Some(time) = in_nanoseconds(&document, key).filter(|time| time != "0") {
            lines.push(format!("{key}: {time:?}, from the nanoseconds in {}", target.path.display()));
            text = file::set(&document, key, &file::literal(&time));
        }
    }
    if !problems.is_empty() {
        return Err(Error::usage(problems.join("\n")));
    }
    let steps = tree(&home, &said);
    if lines.is_empty() && steps.is_empty() {
        let answer =
            format!("nothing to migrate: there is no {}, and no variable of cosmovisor is set", theirs.display());
        return Ok(Changed { answer, notes: Vec::new() });
    }
    let fresh = target.text.is_none() && text == file::commented(file::INTRO, &[]);
    let mut notes = Vec::new();
    if fresh || target.text.as_ref() == Some(&text) {
        lines.push("nothing is to be done in config.toml".to_owned());
    } else {
        let settings = target.settings(sources, &text)?;
        lines.push(write(&target, &text)?);
        notes.extend(taken(&settings.config()?, None));
    }
    if !steps.is_empty() {
        lines.push("what is left to do, with the node stopped:".to_owned());
        lines.extend(steps.iter().map(|step| format!("  {step}")));
    }
    Ok(Changed { answer: lines.join("\n"), notes })
}

/// Writes the file; what it was is kept beside it.
fn write(target: &Target, text: &str) -> Result<String> {
    let path = &target.path;
    if target.text.is_none() {
        target.write(text)?;
        return Ok(format!("wrote {}", path.display()));
    }
    let digits: String = rfc3339(unix_now()).chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, time) = digits.split_at_checked(8).unwrap_or((&digits, ""));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".before-migrate-{day}-{time}"));
    let copy = path.with_file_name(name);
    let meta = fs::metadata(path).on("read", path)?;
    durable::install_file(path, &copy, meta.mode() & 0o777, Owner { uid: meta.uid(), gid: meta.gid() })?;
    target.write(text)?;
    Ok(format!("wrote {}; what it said is in {}", path.display(), copy.display()))
}

/// The configuration without the file that is to be changed, which may be one of cosmovisor's that was moved here.
fn elsewhere(sources: &Sources) -> Result<Config> {
    let without = Sources { config_file: Some("/dev/null".into()), ..*sources };
    resolve_as(&without, &read)?.config()
}

/// What cosmovisor was told: a variable wins over its file, and an empty one says nothing. Then the keys of its file that
/// are none of its settings.
fn said(sources: &Sources, path: &Path) -> Result<(Vec<Said>, Vec<String>)> {
    let text = match read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::usage(format!("cannot read {}: {e}", path.display()))),
    };
    let document = file::parse(&text, path).map_err(Error::usage)?;
    let mut all = Vec::new();
    for (variable, kin) in THEIRS {
        let key = variable.to_ascii_lowercase();
        if document.contains_key(&key) && text_of(&document, &key).is_none() {
            return Err(Error::usage(format!(
                "{key} (file {}) must be a string, true, false or a whole number",
                path.display()
            )));
        }
        let text = in_nanoseconds(&document, &key).or_else(|| text_of(&document, &key));
        let in_file = text.map(|text| (text, format!("file {}", path.display())));
        let in_env = sources.env.iter().find(|(name, text)| name == variable && !text.is_empty());
        let in_env = in_env.map(|(_, text)| (text.clone(), format!("variable {variable}")));
        // That a variable says where the home is needs no word.
        let in_env = in_env.filter(|_| *variable != "DAEMON_HOME");
        if let Some((text, origin)) = in_env.or(in_file).filter(|(text, _)| !text.is_empty()) {
            all.push(Said { variable, kin, text, origin });
        }
    }
    let known = |key: &str| THEIRS.iter().any(|(variable, _)| variable.eq_ignore_ascii_case(key));
    Ok((all, document.iter().map(|(key, _)| key.to_owned()).filter(|key| !known(key)).collect()))
}

/// One of their times that is a whole number, as it is said here.
fn in_nanoseconds(document: &Document<&str>, key: &str) -> Option<String> {
    let nanoseconds = document.get(key).filter(|_| TIMES.contains(&key))?.as_integer()?;
    Some(show_duration(Duration::from_nanos(u64::try_from(nanoseconds).ok()?)))
}

/// What becomes of a value.
enum Fate {
    /// It goes into our file, with something to know.
    Taken(Option<String>),
    /// It does not, and why.
    LeftOut(String),
    /// It is no value that can be taken: a whole line.
    Wrong(String),
}

fn becomes(one: &Said, home: &Home) -> Fate {
    let setting: Option<&Setting> = SETTINGS.iter().find(|setting| setting.variable == one.variable);
    let (Some(setting), Kin::Same | Kin::Other(_)) = (setting, one.kin) else {
        return Fate::LeftOut(why(one.variable, one.kin));
    };
    if let Some(problem) = setting.objection(&one.text, &one.origin) {
        return Fate::Wrong(problem);
    }
    if setting.is_default(&one.text) {
        return Fate::LeftOut(format!("{:?} is the default here too", one.text));
    }
    let mut note = match one.kin {
        Kin::Other(note) => Some((*note).to_owned()),
        Kin::Same | Kin::Nothing(_) => None,
    };
    match one.variable {
        "DAEMON_SHUTDOWN_GRACE" if duration(&one.text).is_ok_and(|time| time.is_zero()) => {
            return Fate::LeftOut(format!(
                "there 0 is a KILL at once, here it would be none however long nothing moves; the default is {}",
                setting.default
            ));
        }
        "DAEMON_DATA_BACKUP_DIR" if Path::new(&one.text) == home.root() => {
            return Fate::LeftOut(format!("the home is the default there; here it is {}", setting.default));
        }
        "COSMOVISOR_CUSTOM_PREUPGRADE" if !one.text.starts_with('/') && !home.dir().join(&one.text).exists() => {
            let (from, to) = (home.root().join("cosmovisor").join(&one.text), home.dir().join(&one.text));
            note = Some(format!("copy it: cp -p {} {}", quoted(&from), quoted(&to)));
        }
        _ => {}
    }
    Fate::Taken(note)
}

fn why(variable: &str, kin: &Kin) -> String {
    match kin {
        Kin::Nothing(why) | Kin::Other(why) if !why.is_empty() => (*why).to_owned(),
        Kin::Nothing(_) | Kin::Other(_) | Kin::Same => remedy(variable, true),
    }
}

/// The commands that bring over cosmovisor's binaries, those that are not here yet, and its link.
fn tree(home: &Home, said: &[Said]) -> Vec<String> {
    let theirs = home.root().join("cosmovisor");
    let name = said.iter().find(|one| one.variable == "DAEMON_NAME").map_or(home.binary_name(), |one| &one.text);
    let home = &Home::new(home.root(), name);
    let root = quoted(home.root());
    let mut steps = Vec::new();
    let genesis = theirs.join("genesis/bin").join(name);
    if genesis.is_file() && !home.binary(&Release::Genesis).exists() {
        steps.push(format!("wemixvisor --home {root} init {}", quoted(&genesis)));
    }
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(theirs.join("upgrades")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    dirs.sort();
    for dir in dirs {
        let binary = dir.join("bin").join(name);
        let release = dir.file_name().and_then(|name| name.to_str()).and_then(|name| Name::parse(name).ok());
        match release {
            _ if !binary.is_file() => {}
            Some(release) if home.binary(&Release::Upgrade(release.clone())).exists() => {}
            Some(release) => steps.push(format!("wemixvisor --home {root} upgrade add {release} {}", quoted(&binary))),
            // Such a name may hold anything, also the end of a comment.
            None => {
                let shown = encode(dir.as_os_str().as_bytes());
                steps.push(format!("# {shown}: no name of an upgrade here; choose one for upgrade add"));
            }
        }
    }
    let link = fs::read_link(theirs.join("current")).ok();
    let link = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).map(Release::parse);
    if let Some(Ok(release)) = link
        && home.current_release().ok().as_ref() != Some(&release)
    {
        let target = release.target();
        steps.push(format!("ln -sfn {} {}", target.display(), quoted(&home.current())));
    }
    steps
}

/// A path as a shell reads it as one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._+-".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_cosmovisor_that_is_taken_is_one_of_ours_and_what_is_not_taken_is_explained() {
        for (variable, kin) in THEIRS {
            let ours = SETTINGS.iter().any(|setting| setting.variable == *variable);
            assert!(ours || matches!(kin, Kin::Nothing(_)), "{variable}");
            assert!(matches!(kin, Kin::Same) || !why(variable, kin).contains("did you mean"), "{variable}");
        }
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
