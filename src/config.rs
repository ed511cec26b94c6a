//! The settings: who says what, and which word counts.
//! [`resolve`] reads flags, variables and files and tells every error at once; [`Settings::config`] makes the validated
//! [`Config`] of it, touching nothing. Whether a path exists is not asked here: that is for whoever uses it.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml_edit::{Item, Value};

use crate::error::{Error, Result, printable};
use crate::job::check;

pub mod file;
mod parse;
mod table;
pub mod templates;
#[cfg(test)]
mod tests;

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
    if name == "NODE_ARGS" {
        return "it is a list in config.toml: `wemixvisor config set node_args` writes it".to_owned();
    }
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
    if path == Path::new("/dev/null") {
        // The usual way to name no file.
        return Ok(String::new());
    }
    let (file, meta) = check::plain_file(path)?;
    if meta.len() > MAX_FILE {
        return Err(io::Error::other(format!("larger than {}", show_size(MAX_FILE))));
    }
    io::read_to_string(file)
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
