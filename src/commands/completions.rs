//! `completions SHELL`: a script that has this program asked how a line may go on, by `complete WORDS…`; and the answer.

use std::fs;

use super::answer;
use crate::cli::complete::{Kind, Wanted, wanted};
use crate::config::templates::TEMPLATES;
use crate::config::{Origin, SETTINGS, Settings, by_name};
use crate::error::{Error, Result};
use crate::home::{Home, Name, Release};
use crate::job::backup::list::{find, is_name};
use crate::job::{Flags, backup, batches, look};

/// The shells, each with its script. A script leaves files and directories to its shell.
const SHELLS: &[(&str, &str)] = &[
    ("bash", include_str!("completions/wemixvisor.bash")),
    ("zsh", include_str!("completions/wemixvisor.zsh")),
    ("fish", include_str!("completions/wemixvisor.fish")),
];

/// Prints the script of a shell.
pub fn completions(shell: &str) -> Result<()> {
    let names: Vec<&str> = SHELLS.iter().map(|(name, _)| *name).collect();
    match SHELLS.iter().find(|(name, _)| *name == shell) {
        Some((_, script)) => answer(script),
        None => Err(Error::usage(format!("completions: {shell:?} is none of {}", names.join(", ")))),
    }
}

/// Prints how the last word may go on, one possibility a line: the word, a tab, what it means. `:files` and `:directories`
/// are for the shell. It never fails: nobody who presses a key wants to read why.
pub fn complete(words: &[String]) -> Result<()> {
    let wanted = wanted(words);
    let typed = words.last().map_or("", String::as_str);
    let mut text = String::new();
    for (word, meaning) in wanted.kinds.iter().flat_map(|kind| possible(kind, &wanted, typed)) {
        let begins = word.starts_with(':') || word.starts_with(typed);
        if begins && !word.contains(char::is_control) {
            text += &if meaning.is_empty() { format!("{word}\n") } else { format!("{word}\t{meaning}\n") };
        }
    }
    if text.is_empty() { Ok(()) } else { answer(&text) }
}

fn possible(kind: &Kind, wanted: &Wanted, typed: &str) -> Vec<(String, &'static str)> {
    let bare = |words: Vec<String>| words.into_iter().map(|word| (word, "")).collect();
    match kind {
        Kind::Words(words) => words.clone(),
        Kind::File => bare(vec![":files".to_owned()]),
        Kind::Directory => bare(vec![":directories".to_owned()]),
        Kind::Shell => SHELLS.iter().map(|(name, _)| ((*name).to_owned(), "")).collect(),
        Kind::Template => TEMPLATES.iter().map(|one| (one.name.to_owned(), one.summary)).collect(),
        Kind::Key => keys(typed, "").into_iter().chain([("node_args".to_owned(), "The node's arguments.")]).collect(),
        Kind::KeySet => {
            let set = |settings: &Settings| {
                let of_file = settings.values.iter().filter(|said| matches!(said.origin, Origin::File(_)));
                let list = (!settings.node_args.is_empty()).then(|| "node_args".to_owned());
                of_file.map(|said| said.key.clone()).chain(list).collect()
            };
            bare(settings(wanted).as_ref().map(set).unwrap_or_default())
        }
        Kind::Assignment => match typed.split_once('=') {
            Some((key, _)) => bare(values(key).into_iter().map(|value| format!("{key}={value}")).collect()),
            None => keys(typed, "="),
        },
        // Of a flag and its value only the value was asked for.
        Kind::Value(key) => {
            let flag = typed.split_once('=').filter(|_| typed.starts_with("--")).map(|(flag, _)| format!("{flag}="));
            let flag = flag.unwrap_or_default();
            bare(values(key).into_iter().map(|value| format!("{flag}{value}")).collect())
        }
        Kind::Upgrade => bare(in_home(wanted, upgrades)),
        Kind::Release => bare(in_home(wanted, |home, _| {
            let mut all = vec![Release::Genesis.to_string()];
            all.extend(releases(home));
            all
        })),
        Kind::Batch => bare(in_home(wanted, |home, _| {
            let named = batches::all(home).into_iter().filter_map(|kept| kept.named);
            named.map(|name| name.to_string()).collect()
        })),
        Kind::Backup => bare(in_home(wanted, |home, settings| {
            let spec = settings.config().map(|config| backup::Spec::new(&config, home, &arguments(home, settings)));
            let found = spec.and_then(|spec| find(&spec)).unwrap_or_default();
            found.into_iter().map(|found| found.name).filter(|name| is_name(name)).collect()
        })),
    }
}

/// Every key of a setting, as the typed word begins: as in a file, else as the variable or without its beginning.
fn keys(typed: &str, behind: &str) -> Vec<(String, &'static str)> {
    let upper = typed.starts_with(|c: char| c.is_ascii_uppercase());
    let name = |variable: &'static str| {
        let key = if upper { variable.to_owned() } else { variable.to_ascii_lowercase() };
        let short = key.strip_prefix("daemon_").filter(|short| !typed.is_empty() && short.starts_with(typed));
        short.map_or(key.clone(), str::to_owned)
    };
    SETTINGS.iter().map(|setting| (format!("{}{behind}", name(setting.variable)), setting.help)).collect()
}

/// The values of a setting that has but few, as its row tells them.
fn values(key: &str) -> Vec<String> {
    let Some(setting) = by_name(key) else { return Vec::new() };
    let words: Vec<&str> = setting.allowed.split(", ").flat_map(|part| part.split(" or ")).collect();
    let few = words.len() > 1 && words.iter().all(|word| !word.contains(' ') && setting.objection(word, "").is_none());
    if few { words.into_iter().map(str::to_owned).collect() } else { Vec::new() }
}

fn settings(wanted: &Wanted) -> Option<Settings> {
    Flags { settings: wanted.settings.clone(), config_file: wanted.config_file.clone() }.resolve().ok()
}

fn in_home(wanted: &Wanted, names: impl Fn(&Home, &Settings) -> Vec<String>) -> Vec<String> {
    let Some(settings) = settings(wanted) else { return Vec::new() };
    let Ok(config) = settings.config() else { return Vec::new() };
    let mut all = names(&Home::new(&config.home, &config.name), &settings);
    all.sort();
    all.dedup();
    all
}

/// The names of upgrades that are planned or installed.
fn upgrades(home: &Home, _: &Settings) -> Vec<String> {
    let planned = look::read_plans(home, &look::read_history(home)).0;
    planned.into_iter().map(|found| found.name.to_string()).chain(releases(home)).collect()
}

fn releases(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.upgrades()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| Name::parse(name).is_ok()).collect()
}

/// The node's arguments, as it was started last or would be.
fn arguments(home: &Home, settings: &Settings) -> Vec<String> {
    crate::job::shim::read_record(home).map_or_else(|| settings.node_args.clone(), |record| record.args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_of_settings_that_have_but_few() {
        assert_eq!(values("validator_mode"), ["true", "false"]);
        assert_eq!(values("DAEMON_BACKUP_MODE"), ["auto", "snapshot", "copy"]);
        assert_eq!(values("upgrade_trigger"), ["height", "file"]);
        for open in ["daemon_name", "daemon_home", "daemon_max_restarts", "daemon_rpc_address", "bogus"] {
            assert_eq!(values(open), Vec::<String>::new(), "{open}");
        }
    }
}
