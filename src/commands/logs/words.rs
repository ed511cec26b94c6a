//! What `--grep` looks for. Every line that a pattern matches holds certain words as they are, most often; to look for those first is
//! a hundred times as fast.

use std::str::Chars;

use regex_lite::Regex;

use crate::error::{Error, Result};

/// What is looked for.
pub struct Words {
    /// Every line in which it is found holds one of these; none, where that cannot be said.
    held: Vec<String>,
    /// What is not told by that alone.
    pattern: Option<Regex>,
}

impl Words {
    /// What a regular expression describes.
    pub fn new(text: &str) -> Result<Words> {
        if regex_lite::escape(text) == text {
            return Ok(Words { held: vec![text.to_owned()], pattern: None });
        }
        let pattern = Regex::new(text);
        let pattern = pattern.map_err(|e| Error::usage(format!("--grep: {text:?} is no regular expression: {e}")))?;
        Ok(Words { held: held(text), pattern: Some(pattern) })
    }

    /// Whether it is in this line.
    pub fn are_in(&self, line: &str) -> bool {
        let may_be = self.held.is_empty() || self.held.iter().any(|words| line.contains(words));
        may_be && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(line))
    }
}

/// Of each alternative of a pattern the words that stand in all that it matches; none, where one has none.
fn held(pattern: &str) -> Vec<String> {
    if pattern.contains('(') {
        return Vec::new();
    }
    // Where the bar is none between alternatives, in a class or behind a backslash, what is before it is understood up to
    // that, and stands in every match all the same.
    let all: Vec<String> = pattern.split('|').map(longest).collect();
    if all.iter().any(String::is_empty) { Vec::new() } else { all }
}

/// The longest words that stand in every match of a pattern without alternatives. What is behind the first thing that is not
/// understood here is not looked at.
fn longest(pattern: &str) -> String {
    let (mut longest, mut run) = (String::new(), String::new());
    let mut rest = pattern.chars();
    let mut understood = true;
    while understood {
        let itself = match rest.next() {
            // What stands before it may be missing.
            Some('*' | '?' | '+') => {
                run.pop();
                None
            }
            Some('{') => {
                run.pop();
                understood = false;
                None
            }
            Some('.' | '^' | '$') => None,
            Some('\\') => match rest.next() {
                Some('b' | 'B' | 'd' | 'D' | 's' | 'S' | 'w' | 'W') => None,
                Some(c) if c.is_ascii_punctuation() && !"<>".contains(c) => Some(c),
                _ => {
                    understood = false;
                    None
                }
            },
            Some('[') => {
                understood = pass_class(&mut rest);
                None
            }
            None => {
                understood = false;
                None
            }
            itself => itself,
        };
        match itself {
            Some(c) => run.push(c),
            None if run.len() > longest.len() => longest = std::mem::take(&mut run),
            None => run.clear(),
        }
    }
    longest
}

/// Goes behind a class of characters, where it is a simple one.
fn pass_class(rest: &mut Chars) -> bool {
    let mut first = true;
    for c in rest.by_ref() {
        match c {
            '^' if first => continue,
            ']' if !first => return true,
            '[' | '\\' => return false,
            _ => first = false,
        }
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_every_match_holds() {
        for (pattern, words) in [
            ("ERROR.*block", "ERROR"),
            ("WARN|ERROR.*", "WARN ERROR"),
            ("ab[c|d]|ef", "ab d] ef"),
            (r"ab\|cd", "ab cd"),
            ("number=1[0-9]+ hash", "number=1"),
            ("^INFO", "INFO"),
            ("lvl=eror$", "lvl=eror"),
            ("Imported new.+chain segment", "chain segment"),
            (r"head=\d+ age=", "head="),
            (r"127\.0\.0\.1", "127.0.0.1"),
            ("colou?r", "colo"),
            ("ab*c", "a"),
            ("abc+", "ab"),
            ("ab{0,2}c", "a"),
            ("[Ee]rror", "rror"),
            ("[^]]abc", "abc"),
            ("ab[cd]*efg", "efg"),
            // Not to be told so simply.
            ("WARN|.*", ""),
            ("[a|b]c", ""),
            ("(?i)error", ""),
            (r"[\d]rror", ""),
            ("[[:alpha:]]rror", ""),
            (r"\x41bc", ""),
            (r"\<abc", ""),
            (".*", ""),
        ] {
            assert_eq!(held(pattern).join(" "), words, "{pattern}");
        }
    }

    /// Whatever is looked for first, the lines that are found are those of the pattern.
    #[test]
    fn no_line_is_missed() {
        let mut seed: u64 = 20_261_126;
        let mut next = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let pieces = [
            "a",
            "b",
            "ab",
            ".",
            "*",
            "?",
            "+",
            "{0,1}",
            "{2}",
            "[ab]",
            "[^a]",
            "[]a]",
            "[^]a]",
            "[[:alpha:]b]",
            "[a",
            "]",
            "|",
            "(",
            ")",
            "^",
            "$",
            r"\.",
            r"\w",
            r"\b",
            r"\x61",
            r"\<",
            "(?i)",
            r"\n",
            " ",
        ];
        let (mut patterns, mut matches, mut told) = (0, 0, 0);
        for _ in 0..20_000 {
            let text: String = (0..1 + next(6)).map(|_| pieces[next(pieces.len())]).collect();
            let Ok(pattern) = Regex::new(&text) else { continue };
            let words = Words::new(&text).unwrap();
            patterns += 1;
            told += usize::from(!words.held.is_empty());
            for _ in 0..20 {
                let line: String = (0..next(6)).map(|_| ["a", "b", "A", ".", " ", "x", "|"][next(7)]).collect();
                assert_eq!(words.are_in(&line), pattern.is_match(&line), "{text:?} in {line:?}");
                matches += usize::from(words.are_in(&line));
            }
        }
        assert!(patterns > 2000 && told > 500 && matches > 5000, "{patterns} {told} {matches}");
    }
}
