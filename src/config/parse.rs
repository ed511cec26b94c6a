//! How the values of settings are read and shown: durations, sizes, addresses, names; and the nearest known word.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::table::Address;

/// What a parser gives. Its error continues a sentence that begins with the text.
pub(super) type Parsed<T> = Result<T, String>;

/// The longest duration: adding two of these to any clock overflows nothing.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(36_500 * 86_400);
/// The greatest size: twice as much is still far from overflowing.
pub(super) const MAX_SIZE: u64 = 1 << 60;
/// The greatest count of blocks, peers and the like.
pub(super) const MAX_COUNT: u64 = 1_000_000_000;

pub(super) fn absolute(text: &str) -> Parsed<PathBuf> {
    if !text.starts_with('/') {
        return Err("is not an absolute path".to_owned());
    }
    if text.contains(char::is_control) {
        return Err("has a control character in it".to_owned());
    }
    // Components leave out doubled and trailing slashes and single dots; `..` stays, for links may be in the way.
    Ok(Path::new(text).components().collect())
}

pub(super) fn script(text: &str) -> Parsed<PathBuf> {
    if text.starts_with('/') {
        return absolute(text);
    }
    if text.contains(char::is_control) || text.split('/').any(|part| part == "..") {
        return Err("leaves $DAEMON_HOME/wemixvisor".to_owned());
    }
    Ok(PathBuf::from(text))
}

pub(super) fn file_name(text: &str) -> Parsed<String> {
    if text.contains('/') || text == "." || text == ".." || text.len() > 255 || text.contains(char::is_control) {
        return Err("is not a plain file name".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn label(text: &str) -> Parsed<String> {
    if text.contains(char::is_control) || text.chars().count() > 64 {
        return Err("is too long for a label, or has a control character in it".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    one_of(text, &[("true", true), ("false", false)])
}

pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| "is none of these".to_owned())
}

pub(super) fn go_format(text: &str) -> Parsed<()> {
    let names = "layout ansic unixdate rubydate rfc822 rfc822z rfc850 rfc1123 rfc1123z rfc3339 rfc3339nano kitchen";
    if names.split(' ').any(|name| name.eq_ignore_ascii_case(text)) {
        Ok(())
    } else {
        Err("is no time format".to_owned())
    }
}

/// Digits only: `+5` and `0x10` are for people who guess.
pub(super) fn number(text: &str, max: u64) -> Parsed<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("is not a whole number".to_owned());
    }
    text.parse().ok().filter(|n| *n <= max).ok_or_else(|| "is too great".to_owned())
}

pub(super) fn number32(text: &str) -> Parsed<u32> {
    let wide = number(text, 1_000_000)?;
    u32::try_from(wide).map_err(|_| "is too great".to_owned())
}

pub(super) fn at_least(millis: u64, text: &str) -> Parsed<Duration> {
    let value = duration(text)?;
    if value < Duration::from_millis(millis) { Err("is too short".to_owned()) } else { Ok(value) }
}

/// Reads `300ms`, `5s`, `2m30s`, `1h`, `7d` and `0`.
pub fn duration(text: &str) -> Parsed<Duration> {
    let mut total = Duration::ZERO;
    for (digits, unit) in with_units(text, "ms, s, m, h, d")? {
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(format!("has the unknown unit {unit:?} (known: ms, s, m, h, d)")),
        };
        let part = digits.parse().ok().and_then(|n: u64| n.checked_mul(millis)).map(Duration::from_millis);
        let sum = part.and_then(|part| total.checked_add(part)).filter(|sum| *sum <= MAX_DURATION);
        total = sum.ok_or("is longer than 36500d")?;
    }
    Ok(total)
}

/// Reads `512MiB`, `100GB`, `4096B` and `0`.
pub fn size(text: &str) -> Parsed<u64> {
    let units = "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB";
    let mut parts = with_units(text, units)?.into_iter();
    let (digits, unit) = parts.next().unwrap_or(("0", "B"));
    let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("has the unknown unit {unit:?} (known: {units})")),
    };
    if parts.next().is_some() {
        return Err("is more than one number and one unit".to_owned());
    }
    let total = digits.parse().ok().and_then(|n: u64| n.checked_mul(bytes)).filter(|n| *n <= MAX_SIZE);
    total.ok_or_else(|| "is more than 1048576TiB".to_owned())
}

/// Splits `2m30s` into (`2`, `m`) and (`30`, `s`); `0` alone needs no unit and gives nothing.
pub(super) fn with_units<'a>(text: &'a str, units: &str) -> Parsed<Vec<(&'a str, &'a str)>> {
    if text == "0" {
        return Ok(Vec::new());
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() || parts.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, next) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        if digits.is_empty() {
            return Err("is not a whole number with a unit behind it".to_owned());
        }
        if unit.is_empty() {
            return Err(if next.is_empty() {
                format!("has no unit ({units})")
            } else {
                "is not a whole number with a unit behind it".to_owned()
            });
        }
        parts.push((digits, unit));
        rest = next;
    }
    Ok(parts)
}

/// `2h30m45s`, `300ms`, `7d`, `0`: what [`duration`] reads; less than a millisecond is left out.
pub fn show_duration(value: Duration) -> String {
    let mut millis = value.as_millis();
    let mut text = String::new();
    for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if millis >= length {
            text += &format!("{}{unit}", millis / length);
            millis %= length;
        }
    }
    if text.is_empty() { "0".to_owned() } else { text }
}

/// `512MiB`, `93.1GiB`, `0`: for people, with at most one decimal, rounded down.
pub fn show_size(bytes: u64) -> String {
    for (unit, length) in [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= length {
            let tenth = bytes % length * 10 / length;
            let point = if tenth == 0 { String::new() } else { format!(".{tenth}") };
            return format!("{}{point}{unit}", bytes / length);
        }
    }
    if bytes == 0 { "0".to_owned() } else { format!("{bytes}B") }
}

pub(super) fn addresses(text: &str) -> Parsed<Vec<Address>> {
    text.split(',').map(|one| address(one.trim())).collect()
}

pub(super) fn address(text: &str) -> Parsed<Address> {
    if text.is_empty() {
        return Err("has an empty address in it".to_owned());
    }
    if text.starts_with('/') {
        return absolute(text).map(Address::Ipc);
    }
    let odd = |c: char| c.is_control() || c.is_whitespace();
    let wrong = || format!("has {:?} in it, which is no address", short(text));
    if text.contains(odd) {
        return Err(wrong());
    }
    let url = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let authority = match url {
        // What stands behind the host's part is the server's business.
        Some(rest) => rest.split(['/', '?', '#']).next().and_then(|all| all.rsplit('@').next()).unwrap_or(""),
        None => text,
    };
    let (host, port) = if authority.ends_with(']') { (authority, None) } else { split_port(authority) };
    let plain = |c: char| c.is_alphanumeric() || "-._".contains(c);
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match inner {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    };
    let port_fits = match port {
        Some(port) => number(port, 65_535).is_ok_and(|port| port > 0),
        // A URL has its scheme's port; `host` alone would leave one guessing.
        None => url.is_some(),
    };
    if !host_fits || !port_fits {
        return Err(wrong());
    }
    Ok(Address::Http(if url.is_some() { text.to_owned() } else { format!("http://{text}") }))
}

pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

/// At most 80 characters of a text, for messages.
pub(super) fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// The candidate that looks most like a mistyped word; none when none does.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(100).collect();
    let rated = candidates.into_iter().map(|candidate| (distance(&word, candidate), candidate));
    let (least, best) = rated.min_by_key(|(distance, _)| *distance)?;
    (least * 2 <= word.len().max(best.len())).then_some(best)
}

/// Levenshtein's edit distance.
pub(super) fn distance(word: &[char], candidate: &str) -> usize {
    let mut costs: Vec<usize> = (0..=word.len()).collect();
    for (row, wanted) in candidate.chars().enumerate() {
        let mut diagonal = row;
        let mut left = row + 1;
        for (column, have) in word.iter().enumerate() {
            let above = costs[column + 1];
            let cost = (diagonal + usize::from(*have != wanted)).min(above + 1).min(left + 1);
            costs[column] = left;
            diagonal = above;
            left = cost;
        }
        costs[word.len()] = left;
    }
    costs[word.len()]
}
