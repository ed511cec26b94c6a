//! A config.toml as text: how `init` and the templates write it, and how one value in it changes while every other byte
//! stays. Pure.

use std::ops::Range;
use std::path::Path;

use toml_edit::{Document, Item, Value};

use super::{SETTINGS, Setting, Used, line_of};
use crate::error::printable;

/// How the file begins that `init` writes.
pub const INTRO: &str = "\
# The settings of this home. Flags and environment variables win over this file, and it wins over
# /etc/wemixvisor/config.toml. What stands behind a single # is the default; remove the # to change it.
# A path may begin with $DAEMON_HOME/. daemon_home itself cannot be set here.
";

/// The longest list of arguments that is written on one line.
const LINE: usize = 80;

/// Reads TOML; the error is a line that names the file.
pub fn parse<'a>(text: &'a str, path: &Path) -> Result<Document<&'a str>, String> {
    Document::parse(text).map_err(|e| {
        let place = e.span().map_or(String::new(), |span| format!(", line {}", line_of(text, span.start)));
        format!("{}{place}: not TOML: {}", path.display(), printable(&e.message().replace('\n', "; ")))
    })
}

/// A whole file: every setting with its help, commented out but for these keys, which have these values (as TOML).
pub fn commented(intro: &str, values: &[(&str, String)]) -> String {
    let said = |key: &str| values.iter().find(|(name, _)| *name == key).map(|(_, value)| format!("{key} = {value}"));
    let arguments = said("node_args").unwrap_or_else(|| default_line("node_args"));
    let mut text = format!("{intro}\n# The node's arguments when the command line gives none.\n{arguments}\n");
    for setting in SETTINGS.iter().filter(|setting| setting.variable != "DAEMON_HOME") {
        let note = match setting.used {
            Used::Yes => "",
            Used::Ignored => " It does nothing here.",
        };
        let key = setting.key();
        let line = said(&key).unwrap_or_else(|| default_line(&key));
        text += &format!("\n# {}{note}\n# Allowed: {}.\n{line}\n", setting.help, setting.allowed);
    }
    text
}

/// The line of a key that is not set: its default behind a `#`.
pub fn default_line(key: &str) -> String {
    let setting = SETTINGS.iter().find(|setting| setting.key() == key);
    format!("#{key} = {}", setting.map_or("[]".to_owned(), |setting: &Setting| literal(setting.default)))
}

/// A value as TOML: bare where that is the same text again.
pub fn literal(text: &str) -> String {
    let number = text.parse().is_ok_and(|number: u64| number.to_string() == text);
    if number || text == "true" || text == "false" { text.to_owned() } else { Value::from(text).to_string() }
}

/// A list of arguments as TOML; a long one has each flag on a line of its own.
pub fn list(arguments: &[String]) -> String {
    let literals: Vec<String> = arguments.iter().map(|one| Value::from(one).to_string()).collect();
    let short = format!("[{}]", literals.join(", "));
    if short.len() <= LINE {
        return short;
    }
    let mut lines: Vec<Vec<&str>> = Vec::new();
    for (argument, literal) in arguments.iter().zip(&literals) {
        match lines.last_mut() {
            // A flag and its value.
            Some(line) if line.len() == 1 && line[0].contains("\"-") && !argument.starts_with('-') => {
                line.push(literal)
            }
            Some(_) | None => lines.push(vec![literal]),
        }
    }
    let lines: String = lines.iter().map(|line| format!("    {},\n", line.join(", "))).collect();
    format!("[\n{lines}]")
}

/// The text with this value (as TOML) of a key: in the place of the value it has, of its line behind a `#`, or at the end.
pub fn set(document: &Document<&str>, key: &str, value: &str) -> String {
    let text = document.raw();
    if let Some(span) = document.get(key).and_then(Item::span) {
        return spliced(text, span, value);
    }
    let line = format!("{key} = {value}");
    if let Some(span) = behind_hash(document, key) {
        return spliced(text, span, &line);
    }
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let before = if text.is_empty() || text.ends_with('\n') { "" } else { end };
    format!("{text}{before}{line}{end}")
}

/// The text without a key: a setting's line becomes that of its default, any other key's line is removed. None: it is not
/// in the text.
pub fn unset(document: &Document<&str>, key: &str) -> Option<String> {
    let text = document.raw();
    let start = document.as_table().key(key)?.span()?.start;
    let end = document.get(key)?.span()?.end;
    if key == "node_args" || SETTINGS.iter().any(|setting| setting.key() == key) {
        return Some(spliced(text, start..end, &default_line(key)));
    }
    let start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[end..].find('\n').map_or(text.len(), |at| end + at + 1);
    Some(spliced(text, start..end, ""))
}

fn spliced(text: &str, span: Range<usize>, with: &str) -> String {
    format!("{}{with}{}", &text[..span.start], &text[span.end..])
}

/// Where `#key = value` stands. What only looks so, in prose or inside a value, is left alone.
fn behind_hash(document: &Document<&str>, key: &str) -> Option<Range<usize>> {
    let text = document.raw();
    let inside = |at: usize| document.iter().any(|(_, item)| item.span().is_some_and(|span| span.contains(&at)));
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let hash = start + (line.len() - line.trim_start().len());
        start += line.len();
        let Some(rest) = text[hash..start].strip_prefix('#').filter(|_| !inside(hash)) else { continue };
        let Ok(one) = Document::parse(rest.trim_end()) else { continue };
        if one.iter().count() == 1
            && let Some(end) = one.get(key).filter(|item| item.is_value()).and_then(Item::span)
        {
            return Some(hash..hash + 1 + end.end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn with(text: &str, key: &str, value: &str) -> String {
        set(&Document::parse(text).unwrap(), key, value)
    }

    fn without(text: &str, key: &str) -> Option<String> {
        unset(&Document::parse(text).unwrap(), key)
    }

    #[test]
    fn a_value_goes_where_it_belongs_and_every_other_byte_stays() {
        for (before, after) in [
            ("", "k = 7\n"),
            ("# only prose", "# only prose\nk = 7\n"),
            ("a = 1\r\n", "a = 1\r\nk = 7\r\n"),
            ("  k  =  'x' # why\nb = 2\n", "  k  =  7 # why\nb = 2\n"),
            ("\"k\" = [\n 1, # one\n]\nb = 2", "\"k\" = 7\nb = 2"),
            ("a = 1\n#k = 5\nb = 2\n", "a = 1\nk = 7\nb = 2\n"),
            ("a = 1\n  # k = 5 # five\r\nb = 2\n", "a = 1\n  k = 7 # five\r\nb = 2\n"),
            // What looks like its line and is not.
            ("# k = 5 is the default\n", "# k = 5 is the default\nk = 7\n"),
            ("#kk = 5\n##k = 5\n", "#kk = 5\n##k = 5\nk = 7\n"),
            ("a = '''\n#k = 5\n'''\n", "a = '''\n#k = 5\n'''\nk = 7\n"),
            ("a = [\n#k = 5\n]\n", "a = [\n#k = 5\n]\nk = 7\n"),
        ] {
            assert_eq!(with(before, "k", "7"), after, "{before:?}");
        }
    }

    #[test]
    fn unsetting_what_was_set_gives_back_the_file_that_init_wrote() {
        let fresh = commented(INTRO, &[]);
        for setting in SETTINGS.iter().filter(|setting| setting.variable != "DAEMON_HOME") {
            let key = setting.key();
            let changed = with(&fresh, &key, "'x y'");
            assert_eq!(changed.lines().zip(fresh.lines()).filter(|(a, b)| a != b).count(), 1, "{key}");
            assert!(changed.lines().any(|line| line == format!("{key} = 'x y'")));
            assert_eq!(without(&changed, &key).as_deref(), Some(fresh.as_str()), "{key}");
            assert_eq!(without(&fresh, &key), None, "{key}");
        }
        let long: Vec<String> = (0..40).map(|n| format!("--flag-{n}")).collect();
        let changed = with(&fresh, "node_args", &list(&long));
        assert_eq!(super::super::arguments(&Document::parse(changed.as_str()).unwrap()["node_args"]), Some(long));
        assert_eq!(without(&changed, "node_args"), Some(fresh));
    }

    #[test]
    fn a_key_that_is_no_setting_goes_with_its_line() {
        assert_eq!(without("a = 1\nb = 2 # two\nc = 3\n", "b").as_deref(), Some("a = 1\nc = 3\n"));
        assert_eq!(without("b = [\n1]", "b").as_deref(), Some(""));
    }

    #[test]
    fn what_is_written_is_read_as_the_same_text() {
        for text in ["", "5", "007", "-1", "true", "TRUE", "5s", "a \"b\" 'c'\n", "99999999999999999999", "ß"] {
            let toml = format!("k = {}", literal(text));
            let read = Document::parse(toml.as_str()).unwrap();
            assert_eq!(read["k"].as_value().and_then(super::super::plain).as_deref(), Some(text), "{toml}");
        }
        let words: Vec<String> = ["--datadir", "/d d", "--mine", "x", "--a=\"b\"", "-"].map(str::to_owned).to_vec();
        assert_eq!(list(&words[..3]), r#"["--datadir", "/d d", "--mine"]"#);
        let long: Vec<String> = words.iter().cycle().take(24).cloned().collect();
        let toml = format!("k = {}", list(&long));
        assert!(toml.contains("\n    \"--datadir\", \"/d d\",\n"), "{toml}");
        assert_eq!(super::super::arguments(&Document::parse(toml.as_str()).unwrap()["k"]), Some(long));
    }
}
