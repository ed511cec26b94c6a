//! `config set` and `config unset`: one value in a config.toml changes, checked and whole, or nothing does.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml_edit::Document;

use super::Changed;
use crate::commands::client;
use crate::config::{
    Config, Origin, Settings, Sources, arguments, by_name, file, file_of, plain, read, remedy, resolve_as,
};
use crate::error::{Error, OnFile, Result, printable};
use crate::home::{Home, Owner};
use crate::job::durable;
use crate::manifest::encode;

/// Settings that a supervisor takes only when it begins.
const AT_BEGIN: &[&str] = &["node_args", "daemon_name", "cosmovisor_disable_logs", "cosmovisor_color_logs"];

/// Settings that a reload takes over, for the node's next start.
const AT_NODE_START: &[&str] = &["daemon_log_file", "daemon_allow_empty_data"];

/// The file to be changed, and what it holds; nobody else of us changes it meanwhile.
pub struct Target {
    /// The file.
    pub path: PathBuf,
    /// Its text; none: it is not there.
    pub text: Option<String>,
    _lock: Option<File>,
}

impl Target {
    /// Reads the file that these sources name.
    pub fn open(sources: &Sources) -> Result<Target> {
        let path = file_of(sources)
            .ok_or_else(|| Error::usage("no home is known: set DAEMON_HOME, or give --home or --config"))?;
        let shown = path.display();
        if path == Path::new("/dev/null") {
            return Err(Error::usage("/dev/null keeps nothing: name another file with --config or DAEMON_CONFIG"));
        }
        let dir = path.parent().filter(|dir| dir.is_dir()).ok_or_else(|| {
            Error::usage(format!("{shown} has no directory: `wemixvisor init` lays out a home, where none is"))
        })?;
        // Two changes at once would lose one. Where a file system has no locks on directories, they may.
        let lock = File::open(dir).ok().filter(|dir| dir.lock().is_ok());
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {
                let to = fs::read_link(&path).on("read", &path)?;
                return Err(Error::refused(format!(
                    "{shown} is a link to {}: change that file, with --config or an editor",
                    encode(to.as_os_str().as_bytes())
                )));
            }
            Ok(_) | Err(_) => {}
        }
        let text = match read(&path) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(Error::usage(format!("cannot read the configuration {shown}: {e}"))),
        };
        Ok(Target { path, text, _lock: lock })
    }

    /// Its text, read as TOML.
    pub fn document(&self) -> Result<Document<&str>> {
        parsed(self.text.as_deref().unwrap_or(""), &self.path)
    }

    /// The settings as they will be with this text in the file; every error in them is one.
    pub fn settings(&self, sources: &Sources, text: &str) -> Result<Settings> {
        let read = |path: &Path| if path == self.path { Ok(text.to_owned()) } else { read(path) };
        let settings = resolve_as(sources, &read)?;
        settings.config()?;
        Ok(settings)
    }

    /// Writes the file: whole, with the owner and mode that it has; a new one belongs to the owner of its directory.
    pub fn write(&self, text: &str) -> Result<()> {
        write(&self.path, self.text.is_some(), text)
    }
}

fn write(path: &Path, exists: bool, text: &str) -> Result<()> {
    if exists {
        return durable::rewrite_file(path, text.as_bytes());
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let meta = fs::metadata(dir).on("read", dir)?;
    durable::replace_file(path, text.as_bytes(), 0o644, Owner { uid: meta.uid(), gid: meta.gid() })
}

fn parsed<'a>(text: &'a str, path: &Path) -> Result<Document<&'a str>> {
    file::parse(text, path).map_err(Error::usage)
}

/// Records a value in a file that is there, for `init`, where it says none. A link is left alone. True: it was recorded.
pub fn record(path: &Path, key: &str, value: &str) -> Result<bool> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        return Ok(false);
    }
    let text = read(path).on("read", path)?;
    let document = parsed(&text, path)?;
    if document.contains_key(key) {
        return Ok(false);
    }
    write(path, true, &file::set(&document, key, &file::literal(value))).map(|()| true)
}

/// Sets one value.
pub fn set(sources: &Sources, name: &str, value: &str) -> Result<Changed> {
    let key = key(name)?;
    let value = if key == "node_args" { file::list(&list(value)?) } else { file::literal(value) };
    let target = Target::open(sources)?;
    let document = target.document()?;
    let before = document.get(&key).map(|item| item.to_string().trim().to_owned()).filter(|text| !text.contains('\n'));
    let text = file::set(&document, &key, &value);
    let settings = target.settings(sources, &text)?;
    let shown = target.path.display();
    let answer = if target.text.as_ref() == Some(&text) {
        format!("{shown} says {key} = {value} already; nothing was changed")
    } else {
        target.write(&text)?;
        let was = before.map_or(String::new(), |before| format!(" (it was {before})"));
        format!("{key} = {value} in {shown}{was}")
    };
    let mut notes = warnings(&settings, &key);
    let said = settings.get(&key);
    if key != "node_args" && said.origin != Origin::File(target.path.clone()) {
        notes.push(format!("note: without effect, for {} says {:?} and wins over the file", said.origin, said.value));
    }
    notes.extend(taken(&settings.config()?, Some(&key)));
    Ok(Changed { answer, notes })
}

/// Lets one value be the default again.
pub fn unset(sources: &Sources, name: &str) -> Result<Changed> {
    let target = Target::open(sources)?;
    let document = target.document()?;
    // What is in the file can be taken out of it, also when it is no setting.
    let key = if document.contains_key(name) { name.to_owned() } else { key(name)? };
    let shown = target.path.display();
    let Some(text) = file::unset(&document, &key) else {
        return Ok(Changed { answer: format!("{key} is not set in {shown}; nothing was changed"), notes: Vec::new() });
    };
    let settings = target.settings(sources, &text)?;
    target.write(&text)?;
    let said = settings.get(&key);
    let now = match by_name(&key) {
        Some(_) if said.value.is_empty() => "; now without a value".to_owned(),
        Some(_) => format!("; now {:?} ({})", said.value, said.origin),
        None => String::new(),
    };
    let notes = taken(&settings.config()?, Some(&key)).into_iter().collect();
    Ok(Changed { answer: format!("{key} is unset in {shown}{now}"), notes })
}

/// The key that somebody names.
fn key(name: &str) -> Result<String> {
    if name.eq_ignore_ascii_case("node_args") {
        return Ok("node_args".to_owned());
    }
    let setting = by_name(name);
    setting.map(|setting| setting.key()).ok_or_else(|| {
        let shown: String = printable(name).chars().take(80).collect();
        Error::usage(format!("{shown:?} is no setting; {}", remedy(name, true)))
    })
}

/// The arguments in a list as a config.toml has it.
fn list(value: &str) -> Result<Vec<String>> {
    let text = format!("node_args = {value}");
    let document = Document::parse(text.as_str()).ok().filter(|document| document.iter().count() == 1);
    let found = document.and_then(|document| document.get("node_args").and_then(arguments));
    found.ok_or_else(|| {
        let words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
        let plain = !words.is_empty() && !value.contains(['[', '"', '\'', '\\']);
        let words = if plain { words } else { ["--datadir", "/data"].map(str::to_owned).to_vec() };
        let literals: Vec<String> = words.iter().map(|word| file::list(std::slice::from_ref(word))).collect();
        let inner: Vec<&str> = literals.iter().map(|one| one.trim_matches(['[', ']'])).collect();
        Error::usage(format!("node_args takes a list of strings, such as '[{}]'", inner.join(", ")))
    })
}

/// What there is to say of a setting that was set.
fn warnings(settings: &Settings, key: &str) -> Vec<String> {
    let mine = |warning: &&String| warning.split(' ').next().is_some_and(|word| word.eq_ignore_ascii_case(key));
    settings.warnings.iter().filter(mine).map(|warning| format!("warning: {warning}")).collect()
}

/// When a supervisor that runs takes over a value that was changed.
pub fn taken(config: &Config, key: Option<&str>) -> Option<String> {
    let pid = client::supervisor(&Home::new(&config.home, &config.name)).filter(|pid| *pid > 0)?;
    let when = match key {
        Some(key) if AT_BEGIN.contains(&key) => "takes it when it is stopped and started again".to_owned(),
        Some(key) if AT_NODE_START.contains(&key) => {
            format!("reads it on `kill -HUP {pid}`, for the node's next start")
        }
        Some(_) | None => format!("reads its settings again on `kill -HUP {pid}`"),
    };
    Some(format!("note: the supervisor (pid {pid}) {when}"))
}

/// A value of a file, as text.
pub fn text_of(document: &Document<&str>, key: &str) -> Option<String> {
    document.get(key)?.as_value().and_then(plain)
}
