//! How a command line may go on: what kind of word the last one is, told from the same table as all else. Pure.

use std::path::PathBuf;

use super::help::{Item, OPTIONS, Opt, item, names};
use crate::config::SETTINGS;

/// A kind of word.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// One of these; each with what it means.
    Words(Vec<(String, &'static str)>),
    /// A file.
    File,
    /// A directory.
    Directory,
    /// The name of an upgrade that is planned or installed.
    Upgrade,
    /// A release: `genesis`, or an upgrade's.
    Release,
    /// A batch plan.
    Batch,
    /// A backup.
    Backup,
    /// A kind of node.
    Template,
    /// A setting.
    Key,
    /// A setting that a file sets.
    KeySet,
    /// A setting with `=` behind it, or its value behind that.
    Assignment,
    /// A value of this setting.
    Value(String),
    /// A shell.
    Shell,
}

/// What is wanted in the place of the last word.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The settings that the words before say.
    pub settings: Vec<(String, String)>,
    /// The file that they name.
    pub config_file: Option<PathBuf>,
    /// What the last word may be; nothing: nobody knows.
    pub kinds: Vec<Kind>,
}

/// Looks at the words behind `wemixvisor`, the last one unfinished.
pub fn wanted(words: &[String]) -> Wanted {
    let mut line = Line::default();
    let Some((typed, before)) = words.split_last() else { return Wanted::default() };
    for word in before {
        if line.lost {
            break;
        }
        line.take(word);
    }
    let kinds = if line.lost { Vec::new() } else { line.kinds(typed) };
    Wanted { kinds, ..line.wanted }
}

/// What the words so far say.
#[derive(Default)]
struct Line {
    wanted: Wanted,
    /// The group that was named.
    group: String,
    /// The command.
    item: Option<&'static Item>,
    /// Its words.
    given: Vec<String>,
    /// The option whose value comes next.
    pending: Option<&'static Opt>,
    /// After `--`: no more options.
    plain: bool,
    /// From here on all is the node's.
    node: bool,
    /// Nobody knows what this is.
    lost: bool,
}

impl Line {
    fn take(&mut self, word: &str) {
        if self.node {
            return;
        }
        if let Some(option) = self.pending.take() {
            return self.note(option, word);
        }
        let for_node = self.item.is_some_and(|item| matches!(item.path, "start" | "restart"));
        if word == "--" && !self.plain {
            self.plain = true;
            self.node = for_node;
        } else if word.len() > 1 && word.starts_with('-') && !self.plain {
            let (flag, value) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
            match (self.option(flag), value) {
                (Some(option), Some(value)) => self.note(option, value),
                (Some(option), None) if takes_word(option) => self.pending = Some(option),
                (Some(_), None) => {}
                (None, _) => self.node = for_node,
            }
        } else if for_node {
            self.node = true;
        } else if self.item.is_some() {
            self.given.push(word.to_owned());
        } else {
            let path = if self.group.is_empty() { word.to_owned() } else { format!("{} {word}", self.group) };
            match item(&path) {
                Some(item) if item.is_group() => self.group = path,
                Some(item) => {
                    self.item = Some(item);
                    self.node = item.path == "run";
                }
                None => self.lost = true,
            }
        }
    }

    fn option(&self, flag: &str) -> Option<&'static Opt> {
        let own = self.item.map_or(&[][..], |item| item.options);
        OPTIONS.iter().chain(own).find(|option| option.flag == flag)
    }

    fn note(&mut self, option: &Opt, value: &str) {
        if option.flag == "--config" {
            self.wanted.config_file = Some(PathBuf::from(value));
        } else if let Some((key, value)) = value.split_once('=').filter(|_| option.flag == "--set") {
            self.wanted.settings.push((key.to_owned(), value.to_owned()));
        } else if let Some(setting) = SETTINGS.iter().find(|setting| setting.flag == Some(option.flag)) {
            self.wanted.settings.push((setting.variable.to_owned(), value.to_owned()));
        }
    }

    fn kinds(&self, typed: &str) -> Vec<Kind> {
        if self.node {
            return vec![Kind::File];
        }
        if let Some(option) = self.pending {
            return of_value(option);
        }
        if typed.starts_with('-') && !self.plain {
            return match typed.split_once('=') {
                Some((flag, _)) => self.option(flag).map_or(Vec::new(), of_value),
                None => {
                    let own = self.item.map_or(&[][..], |item| item.options);
                    let all = own.iter().chain(OPTIONS);
                    vec![Kind::Words(all.map(|option| (option.flag.to_owned(), option.help)).collect())]
                }
            };
        }
        let Some(command) = self.item else { return vec![commands(&self.group)] };
        let last = command.words.last().filter(|_| command.takes_many());
        let Some(word) = command.words.get(self.given.len()).or(last) else { return Vec::new() };
        self.of_word(command.path, word.trim_matches(['[', ']', '…']))
    }

    /// What a word of a command may be, by its name in the table.
    fn of_word(&self, path: &str, word: &str) -> Vec<Kind> {
        let kind = match (word, path.split(' ').next().unwrap_or("")) {
            ("COMMAND", _) => commands(&self.given.join(" ")),
            ("KEY", _) if path == "config unset" => Kind::KeySet,
            ("KEY", _) => Kind::Key,
            ("VALUE", _) => Kind::Value(self.given.first().cloned().unwrap_or_default()),
            ("SHELL", _) => Kind::Shell,
            ("NAME", "upgrade") => Kind::Upgrade,
            ("NAME", "config") => Kind::Template,
            ("NAME", "backup") if path != "backup create" => Kind::Backup,
            ("NAME", "plan") if path != "plan create" => Kind::Batch,
            ("NAME|FILE", _) => return vec![Kind::Batch, Kind::File],
            ("BINARY" | "FILE" | "FILE.tar.gz" | "OURS" | "NODE-ARGS", _) => Kind::File,
            _ => return Vec::new(),
        };
        vec![kind]
    }
}

/// Whether the word behind an option is its value.
fn takes_word(option: &Opt) -> bool {
    !option.value.is_empty() && !option.value.starts_with('[')
}

fn of_value(option: &Opt) -> Vec<Kind> {
    match option.value {
        "DIR" => vec![Kind::Directory],
        "FILE" => vec![Kind::File],
        "KEY=VALUE" => vec![Kind::Assignment],
        "RELEASE" => vec![Kind::Release],
        "[=BOOL]" => vec![Kind::Value("daemon_restart_on_failure".to_owned())],
        _ => Vec::new(),
    }
}

fn commands(group: &str) -> Kind {
    let path = |name: &str| if group.is_empty() { name.to_owned() } else { format!("{group} {name}") };
    let told = |name: &str| item(&path(name)).map_or("", |item| item.summary);
    Kind::Words(names(group).into_iter().map(|name| (name.to_owned(), told(name))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::help::COMMANDS;

    fn kinds(line: &str) -> Vec<Kind> {
        wanted(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).kinds
    }

    fn words(line: &str) -> Vec<String> {
        match kinds(line).as_slice() {
            [Kind::Words(words)] => words.iter().map(|(word, _)| word.clone()).collect(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_last_word_is_what_the_table_says() {
        for (line, kind) in [
            ("--home ", Kind::Directory),
            ("--home=/x", Kind::Directory),
            ("--config x", Kind::File),
            ("status --set ", Kind::Assignment),
            ("--auto-restart=", Kind::Value("daemon_restart_on_failure".to_owned())),
            ("init ", Kind::File),
            ("run --home ", Kind::File),
            ("run -", Kind::File),
            ("start x -", Kind::File),
            ("start --unheard-of -", Kind::File),
            ("start -- --ho", Kind::File),
            ("upgrade show ", Kind::Upgrade),
            ("upgrade --json now x", Kind::Upgrade),
            ("upgrade add v2 ", Kind::File),
            ("upgrade revert --to ", Kind::Release),
            ("plan apply ", Kind::Batch),
            ("backup restore ", Kind::Backup),
            ("backup export x ", Kind::File),
            ("config set dae", Kind::Key),
            ("config set validator_mode ", Kind::Value("validator_mode".to_owned())),
            ("config unset ", Kind::KeySet),
            ("config template ", Kind::Template),
            ("completions ", Kind::Shell),
        ] {
            assert_eq!(kinds(line), [kind], "{line}");
        }
        assert_eq!(kinds("plan validate "), [Kind::Batch, Kind::File]);
        for nothing in
            ["upgrade show x ", "plan create ", "backup create ", "bogus ", "upgrade bogus x ", "--max-restarts "]
        {
            assert_eq!(kinds(nothing), [], "{nothing}");
        }
    }

    #[test]
    fn commands_and_options_are_those_of_the_table() {
        assert_eq!(words(""), names(""));
        assert_eq!(words("--home /h --auto-restart upgrade "), names("upgrade"));
        assert_eq!(words("help backup "), names("backup"));
        let options = words("upgrade schedule x -");
        assert!(options.contains(&"--checksum".to_owned()) && options.contains(&"--home".to_owned()));
        assert!(!words("status -").contains(&"--checksum".to_owned()));
        for item in COMMANDS.iter().filter(|item| item.path != "run") {
            let all = words(&format!("{} -", item.path));
            assert!(item.options.iter().all(|option| all.iter().any(|word| word == option.flag)), "{}", item.path);
        }
    }

    #[test]
    fn the_words_before_say_which_home_is_meant() {
        let line = ["--home", "/h", "--set", "a=b=c", "--config=f", "upgrade", "show", ""].map(str::to_owned);
        let found = wanted(&line);
        assert_eq!(found.settings, [("DAEMON_HOME", "/h"), ("a", "b=c")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(found.config_file, Some("f".into()));
    }
}
