//! What may be typed, and what it means: one [`Command`] per verb, each with its own fields. Which commands and options there are
//! says the table in [`mod@help`]; here stands only where they may stand. Values are not looked at, but for heights: that is `config`'s.

pub mod complete;
pub mod help;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{SETTINGS, duration, nearest};
use crate::error::{Error, Result};

pub use help::{COMMANDS, help};

use help::{Item, OPTIONS, Opt, item, names};

/// A command line, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// Flags as (variable, value) and `--set` as (key, value), in the order of typing.
    pub settings: Vec<(String, String)>,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// `--json`.
    pub json: bool,
    /// `--quiet`.
    pub quiet: bool,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `--help`, `help`, or nothing typed at all: about one command, or about all.
    Help(Option<&'static str>),
    /// `--version`.
    OurVersion,
    /// `init [BINARY]`.
    Init {
        /// What becomes the genesis release.
        binary: Option<PathBuf>,
    },
    /// `run [NODE-ARGS…]`.
    Run {
        /// The node's arguments.
        args: Vec<String>,
    },
    /// `start [OURS] [--] [NODE-ARGS…]`.
    Start {
        /// The node's arguments.
        args: Vec<String>,
    },
    /// `stop`.
    Stop {
        /// Without the grace.
        now: bool,
    },
    /// `restart [OURS] [--] [NODE-ARGS…]`.
    Restart {
        /// The node's arguments; none: as before. A bare `--` says that there are to be no arguments.
        args: Option<Vec<String>>,
    },
    /// `status`.
    Status {
        /// Exit 1 when running but unhealthy.
        check: bool,
    },
    /// `logs`.
    Logs(Logs),
    /// `version`.
    Version,
    /// `upgrade …`.
    Upgrade(Upgrade),
    /// `plan …`.
    Plan(Plan),
    /// `backup …`.
    Backup(Backup),
    /// `config …`.
    Config(ConfigCommand),
    /// `metrics …`.
    Metrics(Metrics),
    /// `systemd`.
    Systemd,
    /// `completions SHELL`.
    Completions {
        /// Of which shell.
        shell: String,
    },
    /// `complete …`, which the completions call: tell how the last word may go on.
    Complete(Vec<String>),
    /// `worker`, which we call ourselves: do a job.
    Worker,
    /// `supervise …`, which `start` calls: supervise in the background.
    Supervise(Vec<String>),
    /// `exec …`, which we call ourselves: become the node or a hook.
    Exec(Vec<String>),
}

/// `logs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logs {
    /// Go on with what is written from now on.
    pub follow: bool,
    /// How many lines at most; `u64::MAX`: all.
    pub lines: Option<u64>,
    /// Not those before this time.
    pub since: Option<String>,
    /// Not those after this time.
    pub until: Option<String>,
    /// Those alone in which this regular expression is found.
    pub grep: Option<String>,
}

/// `upgrade …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Upgrade {
    /// Plan an upgrade.
    Schedule {
        /// Its name.
        name: String,
        /// The first block that the new release must execute.
        height: u64,
        /// Where the release can be fetched.
        url: Option<String>,
        /// The checksum of what is fetched.
        checksum: Option<String>,
        /// A description, or JSON.
        info: Option<String>,
        /// Move a name that is planned already.
        force: bool,
    },
    /// Install a release.
    Add {
        /// Its name.
        name: String,
        /// Its binary.
        file: PathBuf,
        /// Plan it too.
        height: Option<u64>,
        /// Replace a release.
        force: bool,
    },
    /// Fetch a release now, and check it.
    Prepare {
        /// Of which upgrade; none: the next.
        name: Option<String>,
        /// From there, whatever its plan says.
        url: Option<String>,
        /// The checksum of what is fetched.
        checksum: Option<String>,
    },
    /// Check whether an upgrade could run.
    Check {
        /// Which; none: the next.
        name: Option<String>,
    },
    /// List the plans.
    List {
        /// Finished upgrades too.
        all: bool,
    },
    /// All about one plan.
    Show {
        /// Its name.
        name: String,
    },
    /// Withdraw a plan.
    Cancel {
        /// Its name.
        name: String,
    },
    /// Try a failed plan again.
    Retry {
        /// Its name.
        name: String,
    },
    /// Switch at once.
    Now {
        /// To this release.
        name: String,
    },
    /// Go back.
    Revert {
        /// To this release; none: the one before.
        to: Option<String>,
    },
}

/// `plan …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Make a batch plan.
    Create {
        /// Its name.
        name: String,
        /// What a person says about it.
        description: Option<String>,
        /// Its upgrades: `NAME:HEIGHT`, with a file or a URL behind it.
        upgrades: Vec<String>,
        /// A file that lists them.
        file: Option<PathBuf>,
    },
    /// Check whether one could be applied.
    Validate {
        /// Its name, or a file.
        what: String,
    },
    /// Fetch its releases now, and check them.
    Prepare {
        /// Which.
        name: String,
    },
    /// Plan all its upgrades.
    Apply {
        /// Which.
        name: String,
    },
    /// Tell which there are.
    List,
    /// How far one is.
    Show {
        /// Which.
        name: String,
    },
    /// Withdraw what is left of one, and forget it.
    Remove {
        /// Which.
        name: String,
    },
}

/// `backup …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Backup {
    /// Make one.
    Create {
        /// What its name begins with; none: `manual`.
        name: Option<String>,
    },
    /// Tell which there are.
    List,
    /// Compare one with its manifest.
    Verify {
        /// Which.
        name: String,
        /// Read every byte too.
        full: bool,
    },
    /// Put one in the data's place.
    Restore {
        /// Which.
        name: String,
    },
    /// Write one as an archive.
    Export {
        /// Which.
        name: String,
        /// Where to; `-`: to stdout.
        file: PathBuf,
    },
    /// Remove what is no longer wanted.
    Prune {
        /// Keep so many, of all.
        keep: Option<u64>,
        /// Keep those that are not older, of all.
        max_age: Option<Duration>,
    },
}

/// `metrics …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Metrics {
    /// Tell them.
    Show {
        /// In Prometheus' text format.
        prometheus: bool,
    },
    /// A dashboard of them.
    Dashboard,
}

/// `config …`.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigCommand {
    /// Tell every setting.
    Show,
    /// Check the settings.
    Validate {
        /// This file in place of the home's.
        file: Option<PathBuf>,
    },
    /// Change one value.
    Set {
        /// Of this setting.
        key: String,
        /// To this.
        value: String,
    },
    /// Let one value be the default.
    Unset {
        /// Of this setting.
        key: String,
    },
    /// Print a config.toml.
    Template {
        /// For this kind of node; none: all defaults.
        name: Option<String>,
        /// Tell which there are.
        list: bool,
    },
    /// Take over cosmovisor's settings.
    Migrate,
}

/// Understands a command line, given without the program's own name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation> {
    let words = args.into_iter().map(text).collect::<Result<Vec<String>>>()?;
    let blank =
        Invocation { settings: Vec::new(), config_file: None, json: false, quiet: false, command: Command::Help(None) };
    let mut line = Line { parser: lexopt::Parser::from_args(&words), said: blank };
    let command = match words.split_first() {
        None => Command::Help(None),
        // These are typed by ourselves only.
        Some((first, [])) if first == "worker" => Command::Worker,
        Some((first, rest)) if first == "complete" => Command::Complete(rest.to_vec()),
        Some((first, rest)) if first == "exec" => Command::Exec(rest.to_vec()),
        Some((first, rest)) if first == "supervise" => Command::Supervise(rest.to_vec()),
        Some(_) => line.command()?,
    };
    Ok(Invocation { command, ..line.said })
}

fn text(word: OsString) -> Result<String> {
    word.into_string().map_err(|word| Error::usage(format!("the word {word:?} is not UTF-8: give one that is")))
}

/// What is left of a command line, and what our options on it said so far.
struct Line {
    parser: lexopt::Parser,
    said: Invocation,
}

/// The next piece of a line.
enum Piece {
    /// An option of every command, noted already.
    Ours,
    /// `--help`, which needs the command around it to be answered.
    Help,
    /// `--version`.
    Version,
    /// An option of this command.
    Own(&'static str, String),
    /// A word that is no option.
    Word(String),
    /// Nothing more.
    End,
}

/// The words and options of one command.
struct Given {
    item: &'static Item,
    words: VecDeque<String>,
    options: Vec<(&'static str, String)>,
}

impl Line {
    fn command(&mut self) -> Result<Command> {
        let mut path = String::new();
        loop {
            match self.piece(&[], &path)? {
                Piece::Ours | Piece::Own(..) => {}
                Piece::Help => return Ok(Command::Help(item(&path).map(|item| item.path))),
                Piece::Version => return Ok(Command::OurVersion),
                Piece::End => return Err(no_command(&path)),
                Piece::Word(word) => {
                    let longer = if path.is_empty() { word.clone() } else { format!("{path} {word}") };
                    match item(&longer) {
                        Some(item) if item.is_group() => path = longer,
                        Some(item) => return self.arguments(item),
                        None => return Err(unknown_command(&path, &word)),
                    }
                }
            }
        }
    }

    fn arguments(&mut self, item: &'static Item) -> Result<Command> {
        match item.path {
            "run" => return Ok(Command::Run { args: self.rest_without_dashes() }),
            "start" => return self.node_words(item, |args| Command::Start { args: args.unwrap_or_default() }),
            "restart" => return self.node_words(item, |args| Command::Restart { args }),
            _ => {}
        }
        let mut given = Given { item, words: VecDeque::new(), options: Vec::new() };
        loop {
            // A value may begin with a dash.
            if item.path == "config set"
                && given.words.len() == 1
                && let Some(value) = self.peek().filter(|word| !is_option(word))
            {
                self.parser.try_raw_args().and_then(|mut raw| raw.next());
                given.words.push_back(value);
            }
            match self.piece(item.options, item.path)? {
                Piece::Ours => {}
                Piece::Help => return Ok(Command::Help(Some(item.path))),
                Piece::Version => return Ok(Command::OurVersion),
                Piece::Own(flag, value) => given.options.push((flag, value)),
                Piece::Word(word) => given.words.push_back(word),
                Piece::End => break,
            }
        }
        if item.path == "help" {
            return about(&given.words.into_iter().collect::<Vec<_>>().join(" "));
        }
        given.check_count()?;
        given.command()
    }

    /// The node's arguments behind our options. None: nothing stands there, not even `--`.
    fn node_words(&mut self, item: &'static Item, make: fn(Option<Vec<String>>) -> Command) -> Result<Command> {
        loop {
            let Some(first) = self.peek() else { return Ok(make(None)) };
            if first == "--" {
                return Ok(make(Some(self.rest_without_dashes())));
            }
            let flag = first.split('=').next().unwrap_or("");
            if is_option(&first) {
                match self.piece(&[], item.path)? {
                    Piece::Help => return Ok(Command::Help(Some(item.path))),
                    Piece::Version => return Ok(Command::OurVersion),
                    Piece::Ours | Piece::Own(..) | Piece::Word(_) | Piece::End => {}
                }
            } else if self.rest().iter().any(|word| word == "--") {
                let known = nearest(flag, OPTIONS.iter().map(|option| option.flag)).filter(|_| flag.starts_with('-'));
                let hint = known.map_or_else(
                    || "the node's arguments stand behind it".to_owned(),
                    |known| format!("did you mean {known}?"),
                );
                return Err(Error::usage(format!(
                    "{}: {first:?} stands before `--` and is no option of ours; {hint}",
                    item.path
                )));
            } else {
                return Ok(make(Some(self.rest())));
            }
        }
    }

    fn peek(&mut self) -> Option<String> {
        let raw = self.parser.try_raw_args()?;
        raw.peek().map(|word| word.to_string_lossy().into_owned())
    }

    /// All words that are left, untouched.
    fn rest(&mut self) -> Vec<String> {
        let raw = self.parser.try_raw_args();
        raw.map(|raw| raw.as_slice().iter().map(|word| word.to_string_lossy().into_owned()).collect())
            .unwrap_or_default()
    }

    fn rest_without_dashes(&mut self) -> Vec<String> {
        let mut rest = self.rest();
        if rest.first().is_some_and(|word| word == "--") {
            rest.remove(0);
        }
        rest
    }

    /// Takes the next piece; `own` are the options of the command at `path`.
    fn piece(&mut self, own: &'static [Opt], path: &str) -> Result<Piece> {
        // `-1` is a wrong number, not an option.
        let is_number =
            |word: &str| word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if self.peek().is_some_and(|word| is_number(&word)) {
            let word = self.parser.try_raw_args().and_then(|mut raw| raw.next());
            return Ok(word.map_or(Piece::End, |word| Piece::Word(word.to_string_lossy().into_owned())));
        }
        let flag = match self.parser.next().map_err(|e| Error::usage(e.to_string()))? {
            None => return Ok(Piece::End),
            Some(lexopt::Arg::Value(word)) => return Ok(Piece::Word(text(word)?)),
            Some(lexopt::Arg::Short('h')) => return Ok(Piece::Help),
            Some(lexopt::Arg::Short('V')) => return Ok(Piece::Version),
            Some(lexopt::Arg::Short(letter)) => format!("-{letter}"),
            Some(lexopt::Arg::Long(name)) => format!("--{name}"),
        };
        let Some(option) = OPTIONS.iter().chain(own).find(|option| option.flag == flag || option.short == flag) else {
            return Err(unknown_option(&flag, own, path));
        };
        // `-fn 5` is `-f -n 5`.
        let value = if option.short == flag && option.value.is_empty() { String::new() } else { self.value(option)? };
        match option.flag {
            "--help" => return Ok(Piece::Help),
            "--version" => return Ok(Piece::Version),
            "--json" => self.said.json = true,
            "--quiet" => self.said.quiet = true,
            "--config" => self.said.config_file = Some(PathBuf::from(value)),
            "--set" => match value.split_once('=') {
                Some((key, value)) if !key.is_empty() => self.said.settings.push((key.to_owned(), value.to_owned())),
                Some(_) | None => {
                    return Err(Error::usage(format!("--set: {value:?} is not KEY=VALUE, such as poll_interval=1s")));
                }
            },
            flag => match SETTINGS.iter().find(|setting| setting.flag == Some(flag)) {
                Some(setting) => self.said.settings.push((setting.variable.to_owned(), value)),
                None => return Ok(Piece::Own(flag, value)),
            },
        }
        Ok(Piece::Ours)
    }

    fn value(&mut self, option: &Opt) -> Result<String> {
        let attached = self.parser.optional_value().map(text).transpose()?;
        match (option.value, attached) {
            ("", None) => Ok(String::new()),
            ("", Some(value)) => Err(Error::usage(format!("{} takes no value, but {value:?} was given", option.flag))),
            (_, Some(value)) => Ok(value),
            ("[=BOOL]", None) => Ok("true".to_owned()),
            (wanted, None) => match self.parser.value() {
                Ok(value) => text(value),
                Err(_) => Err(Error::usage(format!("{} needs a value: {} {wanted}", option.flag, option.flag))),
            },
        }
    }
}

impl Given {
    fn check_count(&self) -> Result<()> {
        let words = self.item.words;
        let extra = self.words.get(words.len()).filter(|_| !self.item.takes_many());
        if let Some(extra) = extra {
            return Err(Error::usage(format!(
                "{}: {extra:?} is one word too many; usage: {}",
                self.item.path,
                self.item.usage()
            )));
        }
        match words.iter().skip(self.words.len()).find(|word| !word.starts_with('[')) {
            Some(missing) => {
                Err(Error::usage(format!("{}: {missing} is missing; usage: {}", self.item.path, self.item.usage())))
            }
            None => Ok(()),
        }
    }

    /// The next word; that it is there was checked.
    fn word(&mut self) -> String {
        self.words.pop_front().unwrap_or_default()
    }

    fn value(&self, flag: &str) -> Option<String> {
        self.options.iter().rev().find(|(given, _)| *given == flag).map(|(_, value)| value.clone())
    }

    fn has(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    fn command(mut self) -> Result<Command> {
        let upgrade = match self.item.path {
            "init" => return Ok(Command::Init { binary: self.words.pop_front().map(PathBuf::from) }),
            "stop" => return Ok(Command::Stop { now: self.has("--now") }),
            "status" => return Ok(Command::Status { check: self.has("--check") }),
            "logs" => {
                return Ok(Command::Logs(Logs {
                    follow: self.has("--follow"),
                    lines: self.value("--lines").map(|text| lines(&text)).transpose()?,
                    since: self.value("--since"),
                    until: self.value("--until"),
                    grep: self.value("--grep"),
                }));
            }
            "version" => return Ok(Command::Version),
            "systemd" => return Ok(Command::Systemd),
            "metrics show" => return Ok(Command::Metrics(Metrics::Show { prometheus: self.has("--prometheus") })),
            "metrics dashboard" => return Ok(Command::Metrics(Metrics::Dashboard)),
            "config show" => return Ok(Command::Config(ConfigCommand::Show)),
            "config validate" => {
                return Ok(Command::Config(ConfigCommand::Validate {
                    file: self.words.pop_front().map(PathBuf::from),
                }));
            }
            "config set" => {
                return Ok(Command::Config(ConfigCommand::Set { key: self.word(), value: self.word() }));
            }
            "config unset" => return Ok(Command::Config(ConfigCommand::Unset { key: self.word() })),
            "config template" => {
                return Ok(Command::Config(ConfigCommand::Template {
                    list: self.has("--list"),
                    name: self.words.pop_front(),
                }));
            }
            "config migrate" => return Ok(Command::Config(ConfigCommand::Migrate)),
            "completions" => return Ok(Command::Completions { shell: self.word() }),
            "backup create" => return Ok(Command::Backup(Backup::Create { name: self.words.pop_front() })),
            "backup list" => return Ok(Command::Backup(Backup::List)),
            "backup verify" => {
                return Ok(Command::Backup(Backup::Verify { name: self.word(), full: self.has("--full") }));
            }
            "backup restore" => return Ok(Command::Backup(Backup::Restore { name: self.word() })),
            "backup export" => {
                return Ok(Command::Backup(Backup::Export { name: self.word(), file: PathBuf::from(self.word()) }));
            }
            "backup prune" => {
                return Ok(Command::Backup(Backup::Prune {
                    keep: self.value("--keep").map(|text| count(&text)).transpose()?,
                    max_age: self.value("--max-age").map(|text| age(&text)).transpose()?,
                }));
            }
            "plan create" => {
                return Ok(Command::Plan(Plan::Create {
                    name: self.word(),
                    description: self.value("--description"),
                    file: self.value("--file").map(PathBuf::from),
                    upgrades: self.words.into(),
                }));
            }
            "plan validate" => return Ok(Command::Plan(Plan::Validate { what: self.word() })),
            "plan prepare" => return Ok(Command::Plan(Plan::Prepare { name: self.word() })),
            "plan apply" => return Ok(Command::Plan(Plan::Apply { name: self.word() })),
            "plan list" => return Ok(Command::Plan(Plan::List)),
            "plan show" => return Ok(Command::Plan(Plan::Show { name: self.word() })),
            "plan remove" => return Ok(Command::Plan(Plan::Remove { name: self.word() })),
            "upgrade schedule" => Upgrade::Schedule {
                name: self.word(),
                height: height(&self.word())?,
                url: self.value("--url"),
                checksum: self.value("--checksum"),
                info: self.value("--info"),
                force: self.has("--force"),
            },
            "upgrade add" => Upgrade::Add {
                name: self.word(),
                file: PathBuf::from(self.word()),
                height: self.value("--height").map(|text| height(&text)).transpose()?,
                force: self.has("--force"),
            },
            "upgrade prepare" => Upgrade::Prepare {
                name: self.words.pop_front(),
                url: self.value("--url"),
                checksum: self.value("--checksum"),
            },
            "upgrade check" => Upgrade::Check { name: self.words.pop_front() },
            "upgrade list" => Upgrade::List { all: self.has("--all") },
            "upgrade show" => Upgrade::Show { name: self.word() },
            "upgrade cancel" => Upgrade::Cancel { name: self.word() },
            "upgrade retry" => Upgrade::Retry { name: self.word() },
            "upgrade now" => Upgrade::Now { name: self.word() },
            "upgrade revert" => Upgrade::Revert { to: self.value("--to") },
            path => return Err(unknown_command("", path)),
        };
        Ok(Command::Upgrade(upgrade))
    }
}

/// Whether a word is an option of every command, with its value or without.
fn is_option(word: &str) -> bool {
    let flag = word.split('=').next().unwrap_or("");
    flag == "-h" || flag == "-V" || OPTIONS.iter().any(|option| option.flag == flag)
}

/// `help [COMMAND…]`.
fn about(path: &str) -> Result<Command> {
    if path.is_empty() {
        return Ok(Command::Help(None));
    }
    let (group, word) = path.split_once(' ').unwrap_or(("", path));
    item(path).map(|item| Command::Help(Some(item.path))).ok_or_else(|| unknown_command(group, word))
}

/// A height: plain decimal, not 0, and within what the chain's own numbers can hold.
fn height(text: &str) -> Result<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|height| digits && *height > 0 && *height <= i64::MAX as u64);
    number.ok_or_else(|| Error::usage(format!("{text:?} is no height: give a whole number from 1 to {}", i64::MAX)))
}

/// How many lines.
fn lines(text: &str) -> Result<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if text == "all" { Some(u64::MAX) } else { text.parse().ok().filter(|_| digits) };
    number.ok_or_else(|| Error::usage(format!("--lines: {text:?} is no count: give a whole number, or all")))
}

/// How many.
fn count(text: &str) -> Result<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| Error::usage(format!("--keep: {text:?} is no count: give a whole number")))
}

/// How old.
fn age(text: &str) -> Result<Duration> {
    match duration(text) {
        Ok(Duration::ZERO) => Err(Error::usage("--max-age 0 would remove all: say that with --keep 0")),
        Ok(age) => Ok(age),
        Err(why) => Err(Error::usage(format!("--max-age: {text:?} {why}; give a duration such as 7d or 12h"))),
    }
}

fn no_command(path: &str) -> Error {
    let place = if path.is_empty() {
        "no command was given".to_owned()
    } else {
        format!("{path}: a command is missing behind it")
    };
    Error::usage(format!("{place}; there are: {}", names(path).join(", ")))
}

fn unknown_command(group: &str, word: &str) -> Error {
    // `upgrade now x` said as `now x` is near nothing, so look among the commands inside groups as well.
    let inside = |item: &&Item| group.is_empty() && item.path.rsplit(' ').next() == Some(word);
    let hint = match (COMMANDS.iter().find(inside), nearest(word, names(group))) {
        (Some(item), _) => format!("did you mean `{}`?", item.path),
        (None, Some(near)) if group.is_empty() => format!("did you mean `{near}`?"),
        (None, Some(near)) => format!("did you mean `{group} {near}`?"),
        (None, None) => format!("there are: {}", names(group).join(", ")),
    };
    let place = if group.is_empty() { String::new() } else { format!("{group}: ") };
    Error::usage(format!("{place}{word:?} is no command; {hint}"))
}

fn unknown_option(flag: &str, own: &'static [Opt], path: &str) -> Error {
    let command = if path.is_empty() { String::new() } else { format!(" {path}") };
    let hint = match nearest(flag, OPTIONS.iter().chain(own).map(|option| option.flag)) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("`wemixvisor{command} --help` tells which there are"),
    };
    let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
    Error::usage(format!("{place}unknown option {flag}; {hint}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A line, the settings that it says, the command that it is.
    type Row = (&'static str, &'static [(&'static str, &'static str)], Command);

    fn typed(line: &str) -> Result<Invocation> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn run(args: &[&str]) -> Command {
        Command::Run { args: texts(args) }
    }

    fn start(args: &[&str]) -> Command {
        Command::Start { args: texts(args) }
    }

    fn restart(args: Option<&[&str]>) -> Command {
        Command::Restart { args: args.map(texts) }
    }

    #[test]
    fn what_may_be_typed() {
        let name = || "v2".to_owned();
        let table: Vec<Row> = vec![
            ("", &[], Command::Help(None)),
            ("-h", &[], Command::Help(None)),
            (
                "--home /h --max-restarts nonsense --help",
                &[("DAEMON_HOME", "/h"), ("DAEMON_MAX_RESTARTS", "nonsense")],
                Command::Help(None),
            ),
            ("-V", &[], Command::OurVersion),
            ("-hV", &[], Command::Help(None)),
            ("--version --nonsense", &[], Command::OurVersion),
            ("help", &[], Command::Help(None)),
            ("help upgrade now", &[], Command::Help(Some("upgrade now"))),
            ("upgrade --help", &[], Command::Help(Some("upgrade"))),
            ("upgrade schedule v2 --help", &[], Command::Help(Some("upgrade schedule"))),
            ("start --help", &[], Command::Help(Some("start"))),
            ("start --home /h -h", &[("DAEMON_HOME", "/h")], Command::Help(Some("start"))),
            ("status -V", &[], Command::OurVersion),
            ("init", &[], Command::Init { binary: None }),
            ("init ./geth --name g", &[("DAEMON_NAME", "g")], Command::Init { binary: Some("./geth".into()) }),
            ("init -- -odd", &[], Command::Init { binary: Some("-odd".into()) }),
            ("run", &[], run(&[])),
            ("run start", &[], run(&["start"])),
            ("run --", &[], run(&[])),
            ("run -- -- x", &[], run(&["--", "x"])),
            ("run x -- y", &[], run(&["x", "--", "y"])),
            ("run --home /n -h -V -1 --bogus=1", &[], run(&["--home", "/n", "-h", "-V", "-1", "--bogus=1"])),
            (
                "--home /h --home=/i run --home /n",
                &[("DAEMON_HOME", "/h"), ("DAEMON_HOME", "/i")],
                run(&["--home", "/n"]),
            ),
            ("--set poll_interval=1s --set a==b run", &[("poll_interval", "1s"), ("a", "=b")], run(&[])),
            ("--auto-restart run x", &[("DAEMON_RESTART_ON_FAILURE", "true")], run(&["x"])),
            ("--auto-restart=false run", &[("DAEMON_RESTART_ON_FAILURE", "false")], run(&[])),
            ("start", &[], start(&[])),
            ("start --datadir D", &[], start(&["--datadir", "D"])),
            (
                "start --max-restarts 10 --datadir D --home H",
                &[("DAEMON_MAX_RESTARTS", "10")],
                start(&["--datadir", "D", "--home", "H"]),
            ),
            ("start --max-restarts=10 -- --home D", &[("DAEMON_MAX_RESTARTS", "10")], start(&["--home", "D"])),
            ("start --max-restart 10 --datadir D", &[], start(&["--max-restart", "10", "--datadir", "D"])),
            ("start console -h", &[], start(&["console", "-h"])),
            ("start -1", &[], start(&["-1"])),
            ("start --auto-restart console", &[("DAEMON_RESTART_ON_FAILURE", "true")], start(&["console"])),
            ("start -- x -- y", &[], start(&["x", "--", "y"])),
            ("start --health-check-interval 1s", &[("DAEMON_HEALTH_CHECK_INTERVAL", "1s")], start(&[])),
            ("start --network -- --datadir D", &[("DAEMON_NETWORK", "--")], start(&["--datadir", "D"])),
            ("restart", &[], restart(None)),
            ("restart --home /h", &[("DAEMON_HOME", "/h")], restart(None)),
            ("restart --", &[], restart(Some(&[]))),
            ("restart -- --x", &[], restart(Some(&["--x"]))),
            ("restart --x", &[], restart(Some(&["--x"]))),
            ("stop --now --home /h", &[("DAEMON_HOME", "/h")], Command::Stop { now: true }),
            ("stop", &[], Command::Stop { now: false }),
            ("status --check", &[], Command::Status { check: true }),
            ("version", &[], Command::Version),
            ("logs", &[], Command::Logs(Logs::default())),
            (
                "logs -fn5 --since 10m --until 5m --grep=a|b",
                &[],
                Command::Logs(Logs {
                    follow: true,
                    lines: Some(5),
                    since: Some("10m".to_owned()),
                    until: Some("5m".to_owned()),
                    grep: Some("a|b".to_owned()),
                }),
            ),
            ("logs -n 7 -f", &[], Command::Logs(Logs { follow: true, lines: Some(7), ..Logs::default() })),
            (
                "logs --lines all --follow",
                &[],
                Command::Logs(Logs { follow: true, lines: Some(u64::MAX), ..Logs::default() }),
            ),
            ("config show", &[], Command::Config(ConfigCommand::Show)),
            ("config validate f", &[], Command::Config(ConfigCommand::Validate { file: Some("f".into()) })),
            (
                "config set daemon_x -1",
                &[],
                Command::Config(ConfigCommand::Set { key: "daemon_x".to_owned(), value: "-1".to_owned() }),
            ),
            (
                "config set node_args --datadir",
                &[],
                Command::Config(ConfigCommand::Set { key: "node_args".to_owned(), value: "--datadir".to_owned() }),
            ),
            ("config set k --help", &[], Command::Help(Some("config set"))),
            ("config set --help", &[], Command::Help(Some("config set"))),
            ("config unset k", &[], Command::Config(ConfigCommand::Unset { key: "k".to_owned() })),
            ("config template", &[], Command::Config(ConfigCommand::Template { name: None, list: false })),
            (
                "config template rpc --list",
                &[],
                Command::Config(ConfigCommand::Template { name: Some("rpc".to_owned()), list: true }),
            ),
            ("config migrate", &[], Command::Config(ConfigCommand::Migrate)),
            ("completions bash", &[], Command::Completions { shell: "bash".to_owned() }),
            ("complete --home -h", &[], Command::Complete(texts(&["--home", "-h"]))),
            (
                "config --name n validate",
                &[("DAEMON_NAME", "n")],
                Command::Config(ConfigCommand::Validate { file: None }),
            ),
            (
                "upgrade schedule v2 --url U --force 100 --url=X --checksum sha256:0 --info T",
                &[],
                Command::Upgrade(Upgrade::Schedule {
                    name: name(),
                    height: 100,
                    url: Some("X".to_owned()),
                    checksum: Some("sha256:0".to_owned()),
                    info: Some("T".to_owned()),
                    force: true,
                }),
            ),
            (
                "upgrade schedule v2 9223372036854775807",
                &[],
                Command::Upgrade(Upgrade::Schedule {
                    name: name(),
                    height: i64::MAX as u64,
                    url: None,
                    checksum: None,
                    info: None,
                    force: false,
                }),
            ),
            (
                "upgrade add v2 f --height 7",
                &[],
                Command::Upgrade(Upgrade::Add { name: name(), file: "f".into(), height: Some(7), force: false }),
            ),
            ("upgrade prepare", &[], Command::Upgrade(Upgrade::Prepare { name: None, url: None, checksum: None })),
            (
                "upgrade prepare v2 --url U --checksum C",
                &[],
                Command::Upgrade(Upgrade::Prepare {
                    name: Some(name()),
                    url: Some("U".to_owned()),
                    checksum: Some("C".to_owned()),
                }),
            ),
            ("upgrade check", &[], Command::Upgrade(Upgrade::Check { name: None })),
            ("upgrade check v2", &[], Command::Upgrade(Upgrade::Check { name: Some(name()) })),
            ("upgrade list --all", &[], Command::Upgrade(Upgrade::List { all: true })),
            ("upgrade show v2", &[], Command::Upgrade(Upgrade::Show { name: name() })),
            ("upgrade cancel v2", &[], Command::Upgrade(Upgrade::Cancel { name: name() })),
            ("upgrade retry v2", &[], Command::Upgrade(Upgrade::Retry { name: name() })),
            ("upgrade now v2", &[], Command::Upgrade(Upgrade::Now { name: name() })),
            ("upgrade revert --to genesis", &[], Command::Upgrade(Upgrade::Revert { to: Some("genesis".to_owned()) })),
            (
                "plan create p v2:7 --description D v3:8:f v4:9:https://h/x#0",
                &[],
                Command::Plan(Plan::Create {
                    name: "p".to_owned(),
                    description: Some("D".to_owned()),
                    upgrades: texts(&["v2:7", "v3:8:f", "v4:9:https://h/x#0"]),
                    file: None,
                }),
            ),
            (
                "plan create p --file f.csv",
                &[],
                Command::Plan(Plan::Create {
                    name: "p".to_owned(),
                    description: None,
                    upgrades: Vec::new(),
                    file: Some("f.csv".into()),
                }),
            ),
            ("plan validate ./f.json", &[], Command::Plan(Plan::Validate { what: "./f.json".to_owned() })),
            ("plan prepare p", &[], Command::Plan(Plan::Prepare { name: "p".to_owned() })),
            ("plan apply p", &[], Command::Plan(Plan::Apply { name: "p".to_owned() })),
            ("plan list", &[], Command::Plan(Plan::List)),
            ("plan show p", &[], Command::Plan(Plan::Show { name: "p".to_owned() })),
            ("plan remove p", &[], Command::Plan(Plan::Remove { name: "p".to_owned() })),
            ("worker", &[], Command::Worker),
            ("exec --help -- x --", &[], Command::Exec(texts(&["--help", "--", "x", "--"]))),
        ];
        for (line, settings, command) in table {
            let found = typed(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert_eq!(found.command, command, "{line}");
            let settings: Vec<(String, String)> =
                settings.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            assert_eq!(found.settings, settings, "{line}");
            assert!(!found.json && !found.quiet && found.config_file.is_none(), "{line}");
        }
    }

    #[test]
    fn options_without_a_variable_may_stand_on_both_sides() {
        for line in
            ["--json --quiet --config f status", "status --json --quiet --config=f", "--json status --config f --quiet"]
        {
            let found = typed(line).unwrap();
            assert!(
                found.json && found.quiet && found.config_file == Some("f".into()) && found.settings.is_empty(),
                "{line}"
            );
        }
        let found = typed("start --json --config f --datadir D").unwrap();
        assert!(found.json && found.config_file == Some("f".into()));
        assert_eq!(found.command, start(&["--datadir", "D"]));
    }

    #[test]
    fn what_may_not_be_typed() {
        let table = [
            ("--hoem /h run", "unknown option --hoem; did you mean --home?"),
            ("--home", "--home needs a value: --home DIR"),
            ("--home /h", "no command was given; there are: init, run,"),
            ("--set x run", "--set: \"x\" is not KEY=VALUE"),
            ("--set =x run", "--set: \"=x\" is not KEY=VALUE"),
            ("--json=yes status", "--json takes no value"),
            ("-x run", "unknown option -x; `wemixvisor --help` tells"),
            ("strat", "\"strat\" is no command; did you mean `start`?"),
            ("frobnicate", "\"frobnicate\" is no command; there are: init, run,"),
            ("cancel v2", "did you mean `upgrade cancel`?"),
            ("worker x", "\"worker\" is no command"),
            ("upgrade", "upgrade: a command is missing behind it; there are: schedule, add,"),
            ("upgrade shedule v2 1", "upgrade: \"shedule\" is no command; did you mean `upgrade schedule`?"),
            ("help upgrade bogus-word", "upgrade: \"bogus-word\" is no command"),
            ("upgrade list --al", "upgrade list: unknown option --al; did you mean --all?"),
            (
                "start --max-restart 10 -- --datadir D",
                "start: \"--max-restart\" stands before `--` and is no option of ours; did you mean --max-restarts?",
            ),
            (
                "start console -- x",
                "start: \"console\" stands before `--` and is no option of ours; the node's arguments stand behind it",
            ),
            ("restart --max-restarts", "--max-restarts needs a value: --max-restarts N"),
            ("stop now", "stop: \"now\" is one word too many; usage: wemixvisor stop [OPTIONS]"),
            ("stop --now=1", "--now takes no value"),
            ("status --now", "status: unknown option --now"),
            ("logs -n", "--lines needs a value: --lines N"),
            ("logs -n many", "--lines: \"many\" is no count: give a whole number, or all"),
            ("logs -n -5", "--lines: \"-5\" is no count"),
            ("logs --folow", "logs: unknown option --folow; did you mean --follow?"),
            ("status -f", "status: unknown option -f"),
            (
                "upgrade schedule v2",
                "upgrade schedule: HEIGHT is missing; usage: wemixvisor upgrade schedule [OPTIONS] NAME HEIGHT",
            ),
            ("upgrade show", "upgrade show: NAME is missing"),
            ("upgrade schedule v2 0", "\"0\" is no height: give a whole number from 1 to 9223372036854775807"),
            ("upgrade schedule v2 -1", "\"-1\" is no height"),
            ("upgrade schedule v2 +1", "\"+1\" is no height"),
            ("upgrade schedule v2 1.5", "\"1.5\" is no height"),
            ("upgrade schedule v2 0x10", "\"0x10\" is no height"),
            ("upgrade schedule v2 9223372036854775808", "is no height"),
            ("upgrade schedule v2 99999999999999999999999", "is no height"),
            ("upgrade add v2 f --height -5", "\"-5\" is no height"),
            ("config set k", "config set: VALUE is missing; usage: wemixvisor config set KEY VALUE"),
            ("config sett k v", "config: \"sett\" is no command; did you mean `config set`?"),
            ("completions", "completions: SHELL is missing"),
            ("init a b", "init: \"b\" is one word too many"),
            ("plan create", "plan create: NAME is missing; usage: wemixvisor plan create [OPTIONS] NAME [UPGRADE…]"),
            ("plan apply a b", "plan apply: \"b\" is one word too many"),
            ("plan aply a", "plan: \"aply\" is no command; did you mean `plan apply`?"),
            ("apply a", "did you mean `plan apply`?"),
        ];
        for (line, fragment) in table {
            let error = typed(line).err().unwrap_or_else(|| panic!("{line} was taken"));
            assert!(error.message.contains(fragment) && error.message.lines().count() == 1, "{line}: {error}");
            assert_eq!(error.code, crate::error::Code::Usage, "{line}");
        }
        use std::os::unix::ffi::OsStringExt;
        let odd = [OsString::from("run"), OsString::from_vec(vec![0xff])];
        assert!(parse(odd).unwrap_err().message.contains("is not UTF-8"));
    }

    #[test]
    fn every_command_of_the_table_can_be_typed() {
        for item in COMMANDS.iter().filter(|item| !item.is_group()) {
            let words: Vec<&str> = item.words.iter().filter(|word| !word.starts_with('[')).map(|_| "1").collect();
            let line = format!("{} {}", item.path, words.join(" "));
            assert!(typed(&line).is_ok(), "{line}");
        }
    }
}
