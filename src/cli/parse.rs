//! Understands what was typed: where words and options may stand. Values are not looked at, but for heights, counts and ages: that
//! is `config`'s.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::help::{COMMANDS, Item, OPTIONS, Opt, item, names};
use super::{Backup, Command, ConfigCommand, Invocation, Logs, Metrics, Plan, Upgrade};
use crate::config::{SETTINGS, duration, nearest};
use crate::error::{Error, Result};

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
