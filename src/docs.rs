//! Keeps the manual page and the README in step with the code's tables, both ways: what a table has must be told, and what
//! is told must be in a table. It reads the two files as they are when the tests are built; it writes nothing.

use std::ffi::OsString;

use crate::cli::help::{COMMANDS, EXIT_CODES, Item, OPTIONS};
use crate::cli::parse;
use crate::config::{SETTINGS, Setting, Used};

const MAN: &str = include_str!("../man/wemixvisor.1");
const README: &str = include_str!("../README.md");

/// Variables that may be named although they are no settings: where the settings are, and two of cosmovisor's.
const NO_SETTINGS: &[&str] = &["DAEMON_CONFIG", "DAEMON_GRPC_ADDRESS", "DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM"];

/// Options that may be named although they are not ours: the node's in examples, and those of the tools that build us and of
/// what they run.
const NOT_OURS: &[&str] = &[
    "--bootnodes",
    "--create-home",
    "--data-binary",
    "--datadir",
    "--example",
    "--fuzz-dir",
    "--gcmode",
    "--home-dir",
    "--http",
    "--http.port",
    "--ipcpath",
    "--max-time",
    "--mine",
    "--naive",
    "--nodiscover",
    "--port",
    "--release",
    "--syncmode",
    "--system",
    "--target",
    "--test",
    "--ws.port",
];

/// The manual page with its flags as one reads them: `.Fl -home` and `\-\-home` are both `--home`.
fn man() -> String {
    MAN.replace("\\&", "").replace("\\-", "-").replace("Fl -", "--")
}

/// What stands under a heading, up to the next one of its kind.
fn section<'a>(text: &'a str, kind: &str, heading: &str) -> &'a str {
    let begin = format!("\n{kind} {heading}\n");
    let Some((_, rest)) = text.split_once(&begin) else { panic!("no section {heading}") };
    rest.split(&format!("\n{kind} ")).next().unwrap_or("")
}

/// The entries of a list in the manual page: what stands behind `.It`, and the text below it on one line.
fn entries(section: &str) -> Vec<(&str, String)> {
    let list = section.split("\n.It ").skip(1).map(|entry| entry.split("\n.El").next().unwrap_or(""));
    list.map(|entry| entry.split_once('\n').unwrap_or((entry, "")))
        .map(|(head, body)| (head, body.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// The rows of a table in the README, without its head: the cells of each.
fn rows(section: &str) -> Vec<Vec<&str>> {
    section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// What the README says in code: the lines of its fenced blocks that are typed, and what stands between backticks.
fn code() -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in README.split("```").enumerate() {
        if number % 2 == 1 {
            // The first line names the language; `text` is what a program answers.
            let typed = part.lines().next() != Some("text");
            found.extend(part.lines().skip(1).filter(|_| typed).map(str::to_owned));
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The command that these words begin with, if they begin with one.
fn command(words: &[&str]) -> Option<&'static Item> {
    let named =
        |item: &&Item| item.path.split(' ').zip(words).filter(|(a, b)| a == *b).count() == item.path.split(' ').count();
    COMMANDS.iter().filter(named).max_by_key(|item| item.path.len())
}

/// Every `--word` in a text.
fn flags(text: &str) -> Vec<String> {
    let part_of_flag = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let begins = |at: usize| !text[..at].ends_with(|c: char| c == '-' || c.is_alphanumeric());
    let found = text.match_indices("--").filter(|(at, _)| begins(*at)).map(|(at, _)| &text[at..]);
    found
        .map(|rest| rest.split(|c| !part_of_flag(c)).next().unwrap_or("").trim_end_matches(['.', '-']).to_owned())
        .filter(|flag| flag.len() > 2)
        .collect()
}

/// The words that stand behind each `wemixvisor` in a text, without the options between it and its command.
fn invocations(text: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for at in words.iter().enumerate().filter(|(_, word)| **word == "wemixvisor").map(|(at, _)| at) {
            let mut rest = words[at + 1..].iter().copied().peekable();
            while let Some(word) = rest.next_if(|word| word.starts_with('-')) {
                if OPTIONS
                    .iter()
                    .any(|option| option.flag == word && !option.value.is_empty() && !option.value.starts_with('['))
                {
                    rest.next();
                }
            }
            found.push(rest.collect());
        }
    }
    found
}

/// The word for whether this version acts on a setting, in the README's table.
fn acts(setting: &Setting) -> &'static str {
    match setting.used {
        Used::Yes => "yes",
        Used::Ignored => "ignored",
    }
}

#[test]
fn the_manual_page_tells_every_setting_once_with_its_default_and_whether_it_acts() {
    let text = man();
    let told = entries(section(&text, ".Sh", "SETTINGS"));
    assert_eq!(told.len(), SETTINGS.len());
    for (setting, (head, body)) in SETTINGS.iter().zip(told) {
        let default = if setting.default.is_empty() {
            "no default".to_owned()
        } else {
            format!("default Ql {}", setting.default)
        };
        assert_eq!(head, format!("Ev {} Pq {default}", setting.variable));
        let accepted = match setting.used {
            Used::Yes => "",
            Used::Ignored => "Accepted for cosmovisor's sake, without effect",
        };
        assert!(body.starts_with(accepted) && body.starts_with("Accepted") != accepted.is_empty(), "{head}: {body}");
    }
}

#[test]
fn the_readme_tells_every_setting_once_with_its_default_and_whether_it_acts() {
    let told = rows(section(README, "##", "Settings"));
    assert_eq!(told.len(), SETTINGS.len());
    for (setting, row) in SETTINGS.iter().zip(told) {
        let default = if setting.default.is_empty() { "none".to_owned() } else { format!("`{}`", setting.default) };
        let variable = format!("`{}`", setting.variable);
        assert_eq!(row[..3], [variable.as_str(), default.as_str(), acts(setting)]);
    }
}

#[test]
fn no_variable_is_told_that_is_no_setting() {
    for (file, text) in [("man page", MAN), ("README", README)] {
        for word in text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_') {
            let ours =
                ["DAEMON_", "COSMOVISOR_", "UNSAFE_", "VALIDATOR_"].iter().any(|prefix| word.starts_with(prefix));
            // `DAEMON_` alone speaks of how names begin.
            if ours && !word.ends_with('_') && !NO_SETTINGS.contains(&word) {
                assert!(SETTINGS.iter().any(|setting| setting.variable == word), "{file}: {word}");
            }
        }
    }
}

#[test]
fn the_manual_page_tells_every_command_with_its_words_and_options_and_no_other() {
    let text = man();
    let told = entries(section(&text, ".Sh", "COMMANDS"));
    let order: Vec<String> = told.iter().filter_map(|(head, _)| path_in_macro(head)).collect();
    assert_eq!(order, COMMANDS.iter().map(|item| item.path).collect::<Vec<_>>());
    for (item, (head, body)) in COMMANDS.iter().zip(told) {
        for word in item.words {
            let bare = word.trim_matches(['[', ']', '…']);
            assert!(bare == "--" || bare == "OURS" || head.contains(bare), "{head}: {word}");
        }
        let entry = format!("{head} {body}");
        let named = flags(&entry);
        for option in item.options {
            assert!(named.iter().any(|flag| flag == option.flag), "{}: {} is not told", item.path, option.flag);
        }
        for flag in named {
            let known = item.options.iter().chain(OPTIONS).any(|option| option.flag == flag);
            assert!(known, "{}: {flag} is none of its options", item.path);
        }
    }
}

/// The command in `Cm upgrade schedule Oo Ar OPTIONS`: its words are in lower case, macros begin with a capital.
fn path_in_macro(line: &str) -> Option<String> {
    let words = line.split_whitespace().skip_while(|word| *word != "Cm" && *word != ".Cm").skip(1);
    let path: Vec<&str> = words.take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    (!path.is_empty()).then(|| path.join(" "))
}

#[test]
fn the_readme_tells_every_command_and_no_other() {
    let told = rows(section(README, "##", "Commands"));
    let told: Vec<String> = told
        .iter()
        .map(|row| row[0].trim_matches('`').split(' ').take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())))
        .map(|words| words.collect::<Vec<_>>().join(" "))
        .collect();
    let all: Vec<&str> = COMMANDS.iter().filter(|item| !item.is_group()).map(|item| item.path).collect();
    assert_eq!(told, all);
}

#[test]
fn the_manual_page_tells_every_general_option_with_its_value_and_no_other() {
    let text = man();
    let told = entries(section(&text, ".Sh", "OPTIONS"));
    assert_eq!(told.len(), OPTIONS.len());
    for (option, (head, body)) in OPTIONS.iter().zip(told) {
        assert_eq!(flags(head), [option.flag]);
        let words: Vec<&str> = head.split_whitespace().collect();
        for part in option.value.split(|c: char| !c.is_ascii_uppercase()).filter(|part| !part.is_empty()) {
            assert!(words.contains(&part), "{head}: {part}");
        }
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.flag == Some(option.flag)) {
            assert!(body.contains(setting.variable), "{head}: {body}");
        }
    }
}

#[test]
fn no_option_is_told_that_is_none() {
    let known = |flag: &str| {
        let ours =
            OPTIONS.iter().chain(COMMANDS.iter().flat_map(|item| item.options)).any(|option| option.flag == flag);
        ours || NOT_OURS.contains(&flag)
    };
    for flag in flags(&man()) {
        assert!(known(&flag), "man page: {flag}");
    }
    for flag in code().iter().flat_map(|text| flags(text)) {
        assert!(known(&flag), "README: {flag}");
    }
}

#[test]
fn no_command_is_told_that_is_none() {
    let text = man();
    for path in text.lines().filter_map(path_in_macro) {
        assert!(COMMANDS.iter().any(|item| item.path == path), "man page: .Cm {path}");
    }
    let readme = code();
    for words in invocations(&text).into_iter().chain(readme.iter().flat_map(|text| invocations(text))) {
        let Some(item) = command(&words) else {
            assert!(words.is_empty(), "wemixvisor {}", words.join(" "));
            continue;
        };
        // `wemixvisor upgrade` needs a second word that is known, unless an option follows.
        let complete = !item.is_group() || words.get(1).is_none_or(|word| word.starts_with('-'));
        assert!(complete, "wemixvisor {}", words.join(" "));
    }
    for group in COMMANDS.iter().filter(|item| item.is_group()) {
        for text in readme.iter().filter(|text| text.split(' ').next() == Some(group.path)) {
            let words: Vec<&str> = text.split(' ').collect();
            assert!(words.len() == 1 || command(&words).is_some_and(|item| !item.is_group()), "README: {text}");
        }
    }
}

#[test]
fn every_example_is_a_command_line_that_is_understood() {
    let text = man();
    let in_man = text.lines().filter_map(|line| line.strip_prefix("$ wemixvisor "));
    let readme = code();
    let in_readme = readme.iter().filter_map(|line| line.strip_prefix("wemixvisor "));
    // In prose the README writes words such as HEIGHT, which only a reader understands.
    let typed =
        |line: &&str| !line.split(' ').any(|word| word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase()));
    let examples: Vec<&str> = in_man.chain(in_readme.filter(typed)).collect();
    assert!(examples.len() > 10, "{examples:?}");
    for example in examples {
        // What stands behind `>` is the shell's.
        let example = example.split(" > ").next().unwrap_or("");
        let parsed = parse(example.split_whitespace().map(OsString::from));
        assert!(parsed.is_ok(), "wemixvisor {example}: {parsed:?}");
    }
}

#[test]
fn both_tell_the_same_exit_statuses_as_the_code_and_no_others() {
    let text = man();
    let in_man: Vec<(String, String)> = entries(section(&text, ".Sh", "EXIT STATUS"))
        .into_iter()
        .map(|(head, body)| (head.to_owned(), body.to_lowercase()))
        .collect();
    let in_readme = rows(section(README, "##", "Exit status"));
    let codes: Vec<(String, String)> =
        EXIT_CODES.iter().map(|(code, meaning)| (code.to_string(), (*meaning).to_owned())).collect();
    assert_eq!(in_man, codes.iter().map(|(code, meaning)| (code.clone(), format!("{meaning}."))).collect::<Vec<_>>());
    assert_eq!(
        in_readme,
        codes.iter().map(|(code, meaning)| vec![code.as_str(), meaning.as_str()]).collect::<Vec<_>>()
    );
}
