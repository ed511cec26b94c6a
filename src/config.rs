//! The settings: who says what, and which word counts.
//! [`resolve`] reads flags, variables and files and tells every error at once; [`Settings::config`] makes the validated
//! [`Config`] of it, touching nothing. Whether a path exists is not asked here: that is for whoever uses it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml_edit::{Item, Value};

use crate::error::{Error, Result, printable};

pub mod file;
mod parse;
mod table;
pub mod templates;

pub use parse::{duration, nearest, show_duration, show_size};
pub use table::{Address, BackupMode, Config, SETTINGS, Setting, Trigger, Used};

use parse::*;
use table::{FOREIGN, put};

/// The most that is read of a config.toml, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Who said a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// Nobody: it is the default.
    Default,
    /// A config.toml.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// The command line: `--home`, or `--set key`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One setting's value, still text, and who said it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// The key, in lower case.
    pub key: String,
    /// The value; a leading `$DAEMON_HOME/` is spelled out. Empty: not set.
    pub value: String,
    /// Who said it.
    pub origin: Origin,
}

/// What was said, resolved, still text: it can travel between processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Every setting once, in the table's order.
    pub values: Vec<Resolved>,
    /// `node_args` of the files.
    pub node_args: Vec<String>,
    /// Which file said them.
    pub node_args_origin: Origin,
    /// Lines for the log.
    pub warnings: Vec<String>,
    /// The files that were read, the lesser one first.
    pub files: Vec<PathBuf>,
}

/// What [`Settings::get`] tells of a setting that came from a program with another table.
static UNSAID: Resolved = Resolved { key: String::new(), value: String::new(), origin: Origin::Default };

impl Settings {
    /// The value of a variable of the table, and who said it.
    pub fn get(&self, variable: &str) -> &Resolved {
        self.values.iter().find(|said| said.key.eq_ignore_ascii_case(variable)).unwrap_or(&UNSAID)
    }

    /// The validated configuration. It reads nothing; after [`resolve`] it does not fail.
    pub fn config(&self) -> Result<Config> {
        let mut config = Config::default();
        let mut problems = Vec::new();
        for setting in SETTINGS {
            let said = self.get(setting.variable);
            problems.extend(setting.apply(&mut config, &said.value, &said.origin.to_string()).err());
        }
        let rpc = self.get("DAEMON_RPC_ADDRESS");
        config.rpc_address_given = rpc.origin != Origin::Default;
        if !config.rpc_address_given {
            // Without /etc/hosts, as in a bare container, `localhost` does not resolve.
            problems
                .extend(put(&mut config.rpc_address, addresses(&rpc.value.replace("localhost", "127.0.0.1"))).err());
        }
        config.node_args.clone_from(&self.node_args);
        if problems.is_empty() { Ok(config) } else { Err(Error::usage(problems.join("\n"))) }
    }
}

/// Where settings come from.
pub struct Sources<'a> {
    /// Key (or variable) and value of each flag, in the order of typing; later wins.
    pub flags: &'a [(String, String)],
    /// The file that takes the place of the home's: `--config`; without it DAEMON_CONFIG of `env` counts.
    pub config_file: Option<PathBuf>,
    /// The environment, see [`environment`].
    pub env: &'a [(String, String)],
    /// `/etc/wemixvisor/config.toml`.
    pub etc: &'a Path,
}

/// The environment as text. A value that is no UTF-8 is an error where it would count and is left out elsewhere.
pub fn environment(all: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(value) if name == "HOME" || name == "DAEMON_CONFIG" || by_variable(&name).is_some() => {
                problems.push(format!("{name}: {value:?} (variable {name}) is not UTF-8: give a value that is"));
            }
            Err(_) => {}
        }
    }
    if problems.is_empty() { Ok(texts) } else { Err(Error::usage(problems.join("\n"))) }
}

fn by_variable(variable: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.variable == variable)
}

/// The setting that somebody names: by its variable, in any case, with or without the `DAEMON_` that most begin with.
pub fn by_name(name: &str) -> Option<&'static Setting> {
    let variable = name.to_ascii_uppercase();
    by_variable(&variable).or_else(|| by_variable(&format!("DAEMON_{variable}")))
}

/// One value that somebody said.
struct Said {
    setting: &'static Setting,
    text: String,
    origin: Origin,
    line: Option<usize>,
}

/// What reading the sources brought besides the values.
#[derive(Default)]
struct Notes {
    node_args: Option<(Vec<String>, Origin)>,
    problems: Vec<String>,
    warnings: Vec<String>,
    files: Vec<PathBuf>,
}

/// Reads all sources. Every error of every source is told, one a line, also of values that another source overrides.
pub fn resolve(sources: &Sources) -> Result<Settings> {
    resolve_as(sources, &read)
}

/// The same with files read by `read`: it may say what a file will hold.
pub fn resolve_as(sources: &Sources, read: &dyn Fn(&Path) -> io::Result<String>) -> Result<Settings> {
    let mut notes = Notes::default();
    let etc = notes.file(sources.etc, read, false, true);
    let env = notes.variables(sources.env);
    let flags = notes.flags(sources.flags);
    let own = own_file(sources, etc.iter().chain(&env).chain(&flags));
    let file = match (named_file(sources), own) {
        (Some(named), own) => notes.file(&named, read, true, own.as_ref() != Some(&named)),
        (None, Some(own)) => notes.file(&own, read, false, false),
        (None, None) => Vec::new(),
    };

    let said: Vec<Said> = etc.into_iter().chain(file).chain(env).chain(flags).collect();
    let home_text = last("DAEMON_HOME", said.iter()).map(|said| said.text.clone()).or_else(|| default_home(sources));
    if home_text.is_none() {
        notes.problems.push(
            "DAEMON_HOME: not set, and without HOME there is no default: set DAEMON_HOME or give --home".to_owned(),
        );
    }
    // A wrong home is told once, as such, and not again with each path in it.
    let home = home_text.as_ref().and_then(|text| absolute(text).ok()).unwrap_or_else(|| PathBuf::from("/"));
    let spell = |setting: &Setting, text: &str| match text.strip_prefix("$DAEMON_HOME/") {
        Some(rest) if setting.variable != "DAEMON_HOME" => {
            home.join(rest.trim_start_matches('/')).to_string_lossy().into_owned()
        }
        Some(_) | None => text.to_owned(),
    };
    let mut form = Config::default();
    for one in &said {
        let place = one.line.map_or_else(|| one.origin.to_string(), |line| format!("{}, line {line}", one.origin));
        notes.problems.extend(one.setting.apply(&mut form, &spell(one.setting, &one.text), &place).err());
    }
    if !notes.problems.is_empty() {
        return Err(Error::usage(notes.problems.join("\n")));
    }

    let mut values = Vec::new();
    for setting in SETTINGS {
        let won = last(setting.variable, said.iter());
        let value = match (setting.variable, won) {
            ("DAEMON_HOME", _) => home.to_string_lossy().into_owned(),
            (_, Some(won)) => spell(setting, &won.text),
            (_, None) => spell(setting, setting.default),
        };
        if won.is_some() && setting.used == Used::Ignored {
            notes.warnings.push(format!("{} of cosmovisor is accepted but does nothing", setting.variable));
        }
        values.push(Resolved {
            key: setting.key(),
            value,
            origin: won.map_or(Origin::Default, |won| won.origin.clone()),
        });
    }
    let (node_args, node_args_origin) = notes.node_args.unwrap_or((Vec::new(), Origin::Default));
    Ok(Settings { values, node_args, node_args_origin, warnings: notes.warnings, files: notes.files })
}

/// The file that says this home's settings, there or not: the one that is named, else the home's own.
pub fn file_of(sources: &Sources) -> Option<PathBuf> {
    let mut notes = Notes::default();
    let said = [notes.file(sources.etc, &read, false, true), notes.variables(sources.env), notes.flags(sources.flags)];
    named_file(sources).or_else(|| own_file(sources, said.iter().flatten()))
}

/// The file of `--config`, else of DAEMON_CONFIG.
fn named_file(sources: &Sources) -> Option<PathBuf> {
    let named = sources.config_file.clone().or_else(|| variable(sources, "DAEMON_CONFIG").map(PathBuf::from))?;
    Some(std::path::absolute(&named).unwrap_or(named))
}

/// The home's own file. The home says where it is, so it cannot say where the home is; a file from elsewhere can.
fn own_file<'a>(sources: &Sources, said: impl Iterator<Item = &'a Said>) -> Option<PathBuf> {
    let home = last("DAEMON_HOME", said).map(|said| said.text.clone()).or_else(|| default_home(sources))?;
    absolute(&home).ok().map(|home| home.join("wemixvisor/config.toml"))
}

fn default_home(sources: &Sources) -> Option<String> {
    variable(sources, "HOME").map(|home| format!("{}/.wemixd", home.trim_end_matches('/')))
}

fn variable<'a>(sources: &'a Sources, name: &str) -> Option<&'a str> {
    sources.env.iter().find(|(have, value)| have == name && !value.is_empty()).map(|(_, value)| value.as_str())
}

fn last<'a>(variable: &str, said: impl Iterator<Item = &'a Said>) -> Option<&'a Said> {
    said.filter(|one| one.setting.variable == variable).last()
}

impl Notes {
    fn variables(&mut self, env: &[(String, String)]) -> Vec<Said> {
        let mut said = Vec::new();
        for (name, value) in env.iter().filter(|(_, value)| !value.is_empty()) {
            if let Some(setting) = by_variable(name) {
                said.push(Said { setting, text: value.clone(), origin: Origin::Variable(name.clone()), line: None });
            } else if name.starts_with("DAEMON_") && name != "DAEMON_CONFIG" {
                self.warnings.push(format!("{name} is no setting and does nothing; {}", remedy(name, false)));
            }
        }
        said
    }

    fn flags(&mut self, flags: &[(String, String)]) -> Vec<Said> {
        let mut said = Vec::new();
        for (typed, value) in flags {
            match by_name(typed) {
                Some(setting) => {
                    // `cli` hands a flag on as its variable, and what `--set` says as it was typed.
                    let own = setting.flag.filter(|_| typed == setting.variable);
                    let flag = own.map_or_else(|| format!("--set {typed}"), str::to_owned);
                    said.push(Said { setting, text: value.clone(), origin: Origin::Flag(flag), line: None });
                }
                None => self.problems.push(format!(
                    "{}: no such setting (flag --set); {}",
                    printable(&short(typed)),
                    remedy(typed, true)
                )),
            }
        }
        said
    }

    /// Reads a file. Only the home's own file may not say where the home is.
    fn file(
        &mut self,
        path: &Path,
        read: &dyn Fn(&Path) -> io::Result<String>,
        must_exist: bool,
        may_move_home: bool,
    ) -> Vec<Said> {
        let shown = path.display();
        let text = match read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return Vec::new(),
            Err(e) => {
                self.problems.push(format!("cannot read the configuration {shown}: {e}"));
                return Vec::new();
            }
        };
        self.files.push(path.to_owned());
        let document = match file::parse(&text, path) {
            Ok(document) => document,
            Err(e) => {
                self.problems.push(e);
                return Vec::new();
            }
        };
        let mut said = Vec::new();
        for (key, item) in document.iter() {
            let line = item.span().map(|span| line_of(&text, span.start));
            let place = line.map_or_else(|| format!("file {shown}"), |line| format!("file {shown}, line {line}"));
            let setting = SETTINGS.iter().find(|setting| setting.key() == key);
            match (setting, item.as_value().and_then(plain)) {
                (None, _) if key == "node_args" => match arguments(item) {
                    Some(arguments) => self.node_args = Some((arguments, Origin::File(path.to_owned()))),
                    None => self.problems.push(format!(
                        "node_args ({place}) must be a list of strings, such as [\"--datadir\", \"/data\"]"
                    )),
                },
                (None, _) => self.problems.push(format!(
                    "{}: no such setting ({place}); {}",
                    printable(&short(key)),
                    remedy(key, true)
                )),
                (Some(setting), _) if setting.variable == "DAEMON_HOME" && !may_move_home => {
                    self.problems
                        .push(format!("daemon_home ({place}): a file in the home cannot say where the home is; set DAEMON_HOME or give --home"));
                }
                (Some(setting), None) => {
                    self.problems.push(format!(
                        "{key} ({place}) must be a string, true, false or a whole number; allowed: {}",
                        setting.allowed
                    ));
                }
                (Some(setting), Some(text)) => {
                    said.push(Said { setting, text, origin: Origin::File(path.to_owned()), line })
                }
            }
        }
        said
    }
}

/// What somebody should have written instead of this unknown name.
pub fn remedy(name: &str, as_key: bool) -> String {
    let name = name.to_ascii_uppercase();
    let bare = |variable: &'static str| variable.strip_prefix("DAEMON_").unwrap_or(variable);
    if let Some((_, instead)) = FOREIGN.iter().find(|(variable, _)| *variable == name || bare(variable) == name) {
        return (*instead).to_owned();
    }
    // Without the prefix that nearly all of them share, it is the rest that counts.
    let word = name.strip_prefix("DAEMON_").unwrap_or(&name);
    let list = as_key.then_some("NODE_ARGS");
    let found = nearest(word, SETTINGS.iter().map(|setting| bare(setting.variable)).chain(list));
    match SETTINGS.iter().find(|setting| Some(bare(setting.variable)) == found) {
        None if found == Some("NODE_ARGS") => "did you mean node_args?".to_owned(),
        Some(setting) if as_key => format!("did you mean {}?", setting.key()),
        Some(setting) => format!("did you mean {}?", setting.variable),
        None => "`wemixvisor config show` lists them all".to_owned(),
    }
}

/// Reads a config.toml: a regular file, not too large.
pub fn read(path: &Path) -> io::Result<String> {
    // Opening a FIFO would wait for a writer.
    if path == Path::new("/dev/null") {
        // The usual way to name no file.
        return Ok(String::new());
    }
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if meta.len() > MAX_FILE {
        return Err(io::Error::other(format!("larger than {}", show_size(MAX_FILE))));
    }
    fs::read_to_string(path)
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// A value of TOML as the text that a variable would hold.
pub fn plain(value: &Value) -> Option<String> {
    let text = value.as_str().map(str::to_owned);
    text.or_else(|| value.as_bool().map(|b| b.to_string())).or_else(|| value.as_integer().map(|n| n.to_string()))
}

/// A list of arguments.
pub fn arguments(item: &Item) -> Option<Vec<String>> {
    item.as_array()?.iter().map(plain).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]

    use std::time::Duration;

    use super::*;

    /// A directory of its own for each test that needs files.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("wemixvisor-config-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("wemixvisor")).unwrap();
            Folder(path)
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    fn from(flags: &[(&str, &str)], env: &[(&str, &str)], etc: &str, config_file: Option<&Path>) -> Result<Settings> {
        let (flags, env) = (pairs(flags), pairs(env));
        resolve(&Sources {
            flags: &flags,
            config_file: config_file.map(Path::to_owned),
            env: &env,
            etc: Path::new(etc),
        })
    }

    /// With these variables and nothing else but a home.
    fn with(env: &[(&str, &str)]) -> Result<Config> {
        let all: Vec<(&str, &str)> = [("HOME", "/nowhere")].iter().chain(env).copied().collect();
        from(&[], &all, "/nowhere", None)?.config()
    }

    fn error(result: Result<Settings>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.code, crate::error::Code::Usage);
        error.message
    }

    #[test]
    fn every_default_goes_through_its_parser() {
        let settings = from(&[], &[("HOME", "/nowhere")], "/nowhere", None).unwrap();
        assert!(settings.warnings.is_empty() && settings.files.is_empty() && settings.values.len() == SETTINGS.len());
        let config = settings.config().unwrap();
        assert_eq!(config.home, Path::new("/nowhere/.wemixd"));
        assert_eq!((config.name.as_str(), config.network.as_str()), ("wemixd", "mainnet"));
        assert_eq!(config.rpc_address, [Address::Http("http://127.0.0.1:8545".to_owned())]);
        assert_eq!(settings.get("DAEMON_RPC_ADDRESS").value, "localhost:8545");
        assert_eq!(config.data_backup_dir, Path::new("/nowhere/.wemixd/backups"));
        assert_eq!((config.min_disk, config.max_memory, config.log_max_size), (10 << 30, None, 512 << 20));
        assert_eq!((config.poll_interval, config.restart_delay), (Duration::from_millis(300), Duration::ZERO));
        assert!(
            config.restart_after_upgrade && config.restart_on_failure && config.upgrade_enabled && config.color_logs
        );
        assert!(!config.rpc_address_given && !config.skip_backup && !config.skip_checksum && !config.allow_empty_data);
        assert_eq!((config.max_restarts, config.trial_blocks, config.rolling_spacing), (5, 20, 60));
        let mut variables: Vec<&str> = SETTINGS.iter().map(|setting| setting.variable).collect();
        variables.sort_unstable();
        variables.dedup();
        assert_eq!(variables.len(), SETTINGS.len());
    }

    #[test]
    fn what_was_resolved_survives_a_journey_as_json() {
        let settings = from(&[("DAEMON_NAME", "geth")], &[("HOME", "/nowhere")], "/nowhere", None).unwrap();
        let back: Settings = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
        assert_eq!(back, settings);
        let from_elsewhere = Settings { values: Vec::new(), ..settings };
        assert!(from_elsewhere.config().unwrap_err().message.contains("DAEMON_HOME"));
    }

    #[test]
    fn values_as_in_the_cases() {
        // Variable, what is fine and what is not: CASES.md A10-A51, where SPEC.md does not say otherwise.
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "DAEMON_ALLOW_DOWNLOAD_BINARIES",
                &["", "true", "false", "faLSe", "TRUE"],
                &["wrong", "truee", "1", "yes", " true"],
            ),
            ("DAEMON_RESTART_AFTER_UPGRADE", &["", "true", "false"], &["bad"]),
            ("UNSAFE_SKIP_BACKUP", &["", "true", "false"], &["bad"]),
            ("DAEMON_POLL_INTERVAL", &["", "1s", "10ms"], &["bad", "0", "600", "-3m", "9ms", "1.5s"]),
            ("DAEMON_RESTART_DELAY", &["", "0", "1s"], &["bad", "600", "-3m", "1w", "s", "5s "]),
            ("DAEMON_PREUPGRADE_MAX_RETRIES", &["", "0", "5"], &["bad", "-1", "+1", "1.5", "99999999999999999999"]),
            ("COSMOVISOR_DISABLE_LOGS", &["", "true"], &["bad"]),
            ("COSMOVISOR_COLOR_LOGS", &["", "false"], &["bad"]),
            ("COSMOVISOR_TIMEFORMAT_LOGS", &["", "rfc3339", "kitchen"], &["wrong"]),
            ("COSMOVISOR_DISABLE_RECASE", &["", "true"], &["bad"]),
            ("DAEMON_SHUTDOWN_GRACE", &["", "15s", "0"], &["15"]),
            ("DAEMON_SHUTDOWN_LIMIT", &["1s"], &["0", "999ms"]),
            ("DAEMON_HEIGHT_POLL_INTERVAL", &["100ms"], &["99ms", "0"]),
            ("DAEMON_HOME", &["", "/a", "/a//b/", "/"], &["a", "./a", "~/a", "/a\nb"]),
            ("DAEMON_NAME", &["", "geth", "a b", "ß"], &["a/b", "/", ".", "..", "a\nb"]),
            ("DAEMON_NETWORK", &["", "testnet"], &["a\u{7}", &"x".repeat(65)]),
            ("DAEMON_DATA_BACKUP_DIR", &["", "/b", "$DAEMON_HOME/b"], &["relative", "$HOME/b"]),
            ("DAEMON_UPGRADE_TRIGGER", &["height", "file"], &["heigth"]),
            ("DAEMON_BACKUP_MODE", &["auto", "snapshot", "copy"], &["tar"]),
            (
                "DAEMON_MIN_DISK",
                &["0", "1B", "100GB", "512mib", "1048576TiB"],
                &["100", "1.5GB", "GB", "1GB1MB", "1PB", "1048577TiB", "99999999999999999999B"],
            ),
            ("DAEMON_UPGRADE_LEAD", &["0", "1000000000"], &["-1", "1000000001", "1e3"]),
            ("COSMOVISOR_CUSTOM_PREUPGRADE", &["", "/x", "hook.sh", "a/hook.sh"], &["../x", "a/../../x"]),
            (
                "DAEMON_RPC_ADDRESS",
                &[
                    "",
                    "localhost:8545",
                    "[::1]:8545",
                    "http://h",
                    "https://h:1/path?x=y",
                    "https://u:p@h/",
                    "/a/geth.ipc",
                    "a:1, /b,http://c:3",
                ],
                &[
                    "localhost",
                    ":8545",
                    "h:0",
                    "h:65536",
                    "h:+1",
                    "h:",
                    "http://",
                    "http://:1",
                    "ws://h:1",
                    "a:1,,b:1",
                    "a:1,",
                    "a b:1",
                    "[::1]",
                    "[x]:1",
                    "geth.ipc",
                ],
            ),
        ];
        for (variable, good, bad) in table {
            for value in *good {
                assert!(with(&[(variable, value)]).is_ok(), "{variable}={value}: {:?}", with(&[(variable, value)]));
            }
            for value in *bad {
                let error = with(&[(variable, value)]).unwrap_err().message;
                assert!(
                    error.starts_with(variable) && error.contains("allowed: ") && error.lines().count() == 1,
                    "{variable}={value}: {error}"
                );
            }
        }
    }

    #[test]
    fn values_mean_what_they_say() {
        let config = with(&[
            ("DAEMON_HOME", "//srv/./node//"),
            ("DAEMON_SHUTDOWN_GRACE", "15s"),
            ("DAEMON_RESTART_AFTER_UPGRADE", "faLSe"),
            ("DAEMON_RPC_ADDRESS", "localhost:8546,/srv/geth.ipc,https://h"),
            ("DAEMON_LOG_FILE", "$DAEMON_HOME/logs/x.log"),
            ("DAEMON_MAX_MEMORY", "100GB"),
            ("DAEMON_UPGRADE_TRIGGER", "FILE"),
            ("DAEMON_MAX_RESTARTS", "7"),
        ])
        .unwrap();
        assert_eq!(config.home.to_str(), Some("/srv/node"));
        assert_eq!(config.log_file.as_deref(), Some(Path::new("/srv/node/logs/x.log")));
        assert_eq!(config.shutdown_grace, Duration::from_secs(15));
        assert!(!config.restart_after_upgrade && config.rpc_address_given);
        let shown: Vec<String> = config.rpc_address.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["http://localhost:8546", "/srv/geth.ipc", "https://h"]);
        assert_eq!(
            (config.max_memory, config.upgrade_trigger, config.max_restarts),
            (Some(100_000_000_000), Trigger::File, 7)
        );
    }

    #[test]
    fn flag_beats_variable_beats_file_beats_etc_beats_default() {
        let folder = Folder::new("precedence");
        let home = folder.0.to_str().unwrap();
        let etc = folder.file(
            "etc.toml",
            &format!("daemon_home = {home:?}\ndaemon_name = 'e'\ndaemon_network = 'e'\nnode_args = ['e']\ndaemon_max_restarts = 1"),
        );
        let own = folder.file(
            "wemixvisor/config.toml",
            "# mine\ndaemon_name = 'f'\ndaemon_network = 'f'\nvalidator_mode = true\ncosmovisor_disable_recase = true\nnode_args = ['--port', 1]",
        );
        let etc = etc.to_str().unwrap();
        let settings = from(
            &[("network", "x"), ("NETWORK", "g")],
            &[("DAEMON_NAME", "v"), ("DAEMON_NETWORK", "v"), ("DAEMON_POLL_INTERVAL", "")],
            etc,
            None,
        )
        .unwrap();
        let told = |variable: &str| (settings.get(variable).value.as_str(), settings.get(variable).origin.to_string());
        assert_eq!(told("DAEMON_HOME"), (home, format!("file {etc}")));
        assert_eq!(told("DAEMON_NETWORK"), ("g", "flag --set NETWORK".to_owned()));
        assert_eq!(told("DAEMON_NAME"), ("v", "variable DAEMON_NAME".to_owned()));
        assert_eq!(told("VALIDATOR_MODE"), ("true", format!("file {}", own.display())));
        assert_eq!(told("DAEMON_MAX_RESTARTS"), ("1", format!("file {etc}")));
        assert_eq!(told("DAEMON_POLL_INTERVAL"), ("300ms", "default".to_owned()));
        assert_eq!(settings.files, [Path::new(etc), &own]);
        assert_eq!(settings.node_args, ["--port", "1"]);
        assert_eq!(settings.node_args_origin, Origin::File(own));
        assert_eq!(settings.warnings, ["COSMOVISOR_DISABLE_RECASE of cosmovisor is accepted but does nothing"]);

        // A file named takes the place of the home's, and it may say where the home is; DAEMON_CONFIG names one too.
        let other = folder.file("other.toml", "daemon_network = 'o'\ndaemon_home = '/o'");
        for settings in [
            from(&[], &[], etc, Some(&other)).unwrap(),
            from(&[], &[("DAEMON_CONFIG", other.to_str().unwrap())], etc, None).unwrap(),
        ] {
            assert_eq!(
                (settings.get("DAEMON_NETWORK").value.as_str(), settings.get("DAEMON_HOME").value.as_str()),
                ("o", "/o")
            );
            assert_eq!(settings.get("DAEMON_NAME").value, "e");
            assert_eq!(
                (settings.node_args, settings.node_args_origin),
                (vec!["e".to_owned()], Origin::File(etc.into()))
            );
            assert!(settings.warnings.is_empty());
        }
        let flag = from(&[("DAEMON_HOME", "/f")], &[("DAEMON_HOME", "/v")], etc, None).unwrap();
        assert_eq!(
            flag.get("DAEMON_HOME"),
            &Resolved { key: "daemon_home".into(), value: "/f".into(), origin: Origin::Flag("--home".into()) }
        );
    }

    #[test]
    fn all_errors_of_all_sources_are_told_at_once() {
        let folder = Folder::new("errors");
        let home = folder.0.to_str().unwrap();
        folder.file(
            "wemixvisor/config.toml",
            "\ndaemon_home = '/x'\ndaemon_pol_interval = '1s'\ndaemon_name = 1.5\nnode_args = 'x'\n[section]\n",
        );
        let etc = folder.file("etc.toml", "daemon_min_peers = -1\ndaemon_grpc_address = 'x'\n");
        let etc = etc.to_str().unwrap();
        let flags = [("nonsense_of_mine", "1"), ("DAEMON_MAX_RESTARTS", "many"), ("max_restarts", "3")];
        let error = error(from(&flags, &[("DAEMON_HOME", home), ("DAEMON_POLL_INTERVAL", "600")], etc, None));
        let wanted = [
            "daemon_home (file H/wemixvisor/config.toml, line 2): a file in the home cannot say where the home is",
            "daemon_pol_interval: no such setting (file H/wemixvisor/config.toml, line 3); did you mean daemon_poll_interval?",
            "daemon_name (file H/wemixvisor/config.toml, line 4) must be a string",
            "node_args (file H/wemixvisor/config.toml, line 5) must be a list of strings",
            "section: no such setting (file H/wemixvisor/config.toml, line 6)",
            "daemon_grpc_address: no such setting (file H/etc.toml, line 2); the head is asked for by JSON-RPC",
            "nonsense_of_mine: no such setting (flag --set)",
            "DAEMON_MIN_PEERS: \"-1\" (file H/etc.toml, line 1) is not a whole number; allowed: ",
            "DAEMON_POLL_INTERVAL: \"600\" (variable DAEMON_POLL_INTERVAL) has no unit (ms, s, m, h, d); allowed: a duration of at least 10ms",
            "DAEMON_MAX_RESTARTS: \"many\" (flag --max-restarts) is not a whole number",
        ];
        assert_eq!(error.lines().count(), wanted.len(), "{error}");
        for line in wanted {
            assert!(error.contains(&line.replace("H/", &format!("{home}/"))), "{line}\n---\n{error}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_told() {
        let folder = Folder::new("files");
        let home = folder.0.to_str().unwrap();
        let missing = folder.0.join("missing.toml");
        assert!(
            error(from(&[], &[("DAEMON_HOME", home)], "/nowhere", Some(&missing)))
                .contains("missing.toml: No such file")
        );
        assert!(error(from(&[], &[("DAEMON_HOME", home)], home, None)).contains("not a regular file"));
        folder.file("wemixvisor/config.toml", "daemon_name = 'a'\ndaemon_name = 'b'\n");
        let twice = error(from(&[], &[("DAEMON_HOME", home)], "/nowhere", None));
        assert!(twice.contains("config.toml, line 2: not TOML: ") && twice.lines().count() == 1, "{twice}");
    }

    #[test]
    fn a_home_must_come_from_somewhere() {
        assert!(error(from(&[], &[], "/nowhere", None)).contains("set DAEMON_HOME or give --home"));
        assert!(error(from(&[], &[("HOME", ""), ("DAEMON_HOME", "")], "/nowhere", None)).contains("set DAEMON_HOME"));
        assert!(
            error(from(&[("DAEMON_HOME", "")], &[("HOME", "/h")], "/nowhere", None)).contains("(flag --home) is empty")
        );
        use std::os::unix::ffi::OsStringExt;
        let odd = || OsString::from_vec(b"/\xff".to_vec());
        let told =
            environment([("DAEMON_HOME".into(), odd()), ("DAEMON_NAME".into(), "x".into())]).unwrap_err().message;
        assert!(told.starts_with("DAEMON_HOME: ") && told.contains("not UTF-8"), "{told}");
        assert_eq!(environment([("LS_COLORS".into(), odd()), ("A".into(), "b".into())]).unwrap(), pairs(&[("A", "b")]));
    }

    #[test]
    fn unknown_variables_are_warnings_and_name_the_nearest() {
        let env = [
            ("HOME", "/h"),
            ("DAEMON_POL_INTERVAL", "x"),
            ("DAEMON_GRPC_ADDRESS", "x"),
            ("DAEMON_CONFIG", ""),
            ("COSMOVISOR_DISABLE_RECASE", "true"),
            ("DAEMON_QZJXKWVQZ", "1"),
        ];
        let warnings = from(&[], &env, "/nowhere", None).unwrap().warnings;
        assert_eq!(
            warnings,
            [
                "DAEMON_POL_INTERVAL is no setting and does nothing; did you mean DAEMON_POLL_INTERVAL?",
                "DAEMON_GRPC_ADDRESS is no setting and does nothing; the head is asked for by JSON-RPC, see DAEMON_RPC_ADDRESS",
                "DAEMON_QZJXKWVQZ is no setting and does nothing; `wemixvisor config show` lists them all",
                "COSMOVISOR_DISABLE_RECASE of cosmovisor is accepted but does nothing",
            ]
        );
    }

    #[test]
    fn durations_are_shown_as_they_are_read() {
        for text in ["0", "1ms", "300ms", "5s", "2m30s", "1h", "7d", "2h30m45s", "1d2h3m4s5ms", "36500d"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        for (text, same) in [("90s", "1m30s"), ("1000ms", "1s"), ("0s", "0"), ("007s", "7s"), ("30s2m", "2m30s")] {
            assert_eq!(show_duration(duration(text).unwrap()), same);
        }
        assert_eq!(show_duration(Duration::from_micros(1_999)), "1ms");
        for text in [
            "",
            "s",
            "5",
            "05",
            "5x",
            "5 s",
            "-5s",
            "+5s",
            "1.5h",
            "5sm",
            "5µs",
            "36501d",
            "18446744073709551615d",
            "99999999999999999999999s",
            "36500d1ms",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        let _ = show_duration(Duration::MAX);
    }

    #[test]
    fn sizes_are_shown_for_people() {
        for text in ["0", "1B", "1KiB", "512MiB", "10GiB", "2TiB"] {
            assert_eq!(show_size(size(text).unwrap()), text);
        }
        assert_eq!(show_size(100_000_000_000), "93.1GiB");
        assert_eq!(show_size(u64::MAX), "16777215.9TiB");
    }

    #[test]
    fn the_nearest_word_is_near() {
        let words = ["--max-restarts", "--home", "--name"];
        assert_eq!(nearest("--max-restart", words), Some("--max-restarts"));
        assert_eq!(nearest("--hoem", words), Some("--home"));
        assert_eq!(nearest("quarrelsome", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn the_file_that_init_writes_holds_every_setting_and_can_be_read() {
        let folder = Folder::new("commented");
        let home = folder.0.to_str().unwrap();
        let name = "a \"b\"";
        folder.file("wemixvisor/config.toml", &file::commented(file::INTRO, &[("daemon_name", file::literal(name))]));
        let settings = from(&[], &[("DAEMON_HOME", home)], "/nowhere", None).unwrap();
        assert_eq!(settings.get("DAEMON_NAME").value, name);
        assert!(settings.warnings.is_empty());

        // With every comment sign in front of a setting removed, it says the defaults.
        let text = file::commented(file::INTRO, &[]);
        let open: Vec<&str> = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .collect();
        folder.file("wemixvisor/config.toml", &open.join("\n"));
        let all = from(&[], &[("DAEMON_HOME", home)], "/nowhere", None).unwrap();
        let said = all.values.iter().filter(|said| matches!(said.origin, Origin::File(_))).count();
        assert_eq!(said, SETTINGS.len() - 1);
        fs::remove_file(folder.0.join("wemixvisor/config.toml")).unwrap();
        let none = from(&[], &[("DAEMON_HOME", home)], "/nowhere", None).unwrap();
        let texts = |settings: &Settings| settings.values.iter().map(|said| said.value.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&all), texts(&none));
    }
}
