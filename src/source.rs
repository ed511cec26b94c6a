//! Where a release can be fetched, as the `info` of a plan says it. Pure: nothing is asked of disk or network.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512};

use crate::manifest::encode;

/// The key of this machine in `info.binaries`: operating system and processor in Go's words.
pub const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

/// The longest URL that is taken, in bytes: far longer than any that works.
const URL_MAX: usize = 8 << 10;

/// What a downloaded file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Checksum {
    /// SHA-256, in lower-case hex.
    Sha256(String),
    /// SHA-512, in lower-case hex.
    Sha512(String),
}

impl Checksum {
    /// Reads `sha256:HEX`, `sha512:HEX`, or the bare hex of either, in any case. The error says what is allowed.
    pub fn parse(text: &str) -> Result<Checksum, String> {
        let text = text.trim();
        let (kind, hex) = match text.split_once(':') {
            Some((kind, hex)) => (kind.to_ascii_lowercase(), hex),
            None => (String::new(), text),
        };
        let made = match (kind.as_str(), hex.len()) {
            ("sha256" | "", 64) => Checksum::Sha256,
            ("sha512" | "", 128) => Checksum::Sha512,
            _ => return Err(format!("{:?} is no checksum: {ALLOWED}", short(text))),
        };
        if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("{:?} is no checksum: {ALLOWED}", short(text)));
        }
        Ok(made(hex.to_ascii_lowercase()))
    }

    /// Whether the other one is of the same kind, and so can be compared with it.
    pub fn is_like(&self, other: &Checksum) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// What computes the sum that is compared with this one.
    pub fn hasher(&self) -> Hasher {
        match self {
            Checksum::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Checksum::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }
}

/// What a checksum looks like.
const ALLOWED: &str = "give sha256: and 64 hex digits, or sha512: and 128";

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Checksum::Sha256(hex) => write!(f, "sha256:{hex}"),
            Checksum::Sha512(hex) => write!(f, "sha512:{hex}"),
        }
    }
}

impl TryFrom<String> for Checksum {
    type Error = String;
    fn try_from(text: String) -> Result<Checksum, String> {
        Checksum::parse(&text)
    }
}

impl From<Checksum> for String {
    fn from(sum: Checksum) -> String {
        sum.to_string()
    }
}

/// A checksum in the making.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum of all bytes so far.
    pub fn sum(self) -> Checksum {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hasher::Sha256(hasher) => Checksum::Sha256(hex(&hasher.finalize())),
            Hasher::Sha512(hasher) => Checksum::Sha512(hex(&hasher.finalize())),
        }
    }
}

/// A file somewhere, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Where it is.
    pub place: Place,
    /// Its checksum; none where nobody said one.
    pub checksum: Option<Checksum>,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// At this URL, `http://…` or `https://…`, without any checksum in it.
    Web(String),
    /// In this file of this machine; an absolute path.
    File(PathBuf),
}

impl fmt::Display for Place {
    /// As it may be logged: names and passwords, and what stands behind `?`, may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::File(path) => f.write_str(&encode(path.as_os_str().as_bytes())),
            Place::Web(url) => {
                let bare = url.split('?').next().unwrap_or_default();
                let (scheme, rest) = bare.split_once("://").unwrap_or(("", bare));
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let host = authority.rsplit('@').next().unwrap_or_default();
                write!(f, "{scheme}://{host}/{path}")
            }
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Link {
    /// Reads `http(s)://…`, `file:…` or an absolute path; `checksum=` behind its `?` is the file's. One that stands beside
    /// it must not say otherwise.
    pub fn parse(text: &str, beside: Option<&str>) -> Result<Link, String> {
        let text = text.trim();
        let shown = short(text);
        if text.len() > URL_MAX || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(format!("{shown:?} is no URL: it is too long, or has spaces or control characters in it"));
        }
        let text = text.split('#').next().unwrap_or_default();
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        let (sums, others): (Vec<&str>, Vec<&str>) =
            query.split('&').filter(|part| !part.is_empty()).partition(|part| part.starts_with("checksum="));
        let inside = match sums.as_slice() {
            [] => None,
            [one] => Some(Checksum::parse(&one["checksum=".len()..].replace("%3A", ":").replace("%3a", ":"))?),
            [_, _, ..] => return Err(format!("{shown:?} has two checksums: leave one out")),
        };
        let beside = beside.map(Checksum::parse).transpose()?;
        if let (Some(inside), Some(beside)) = (&inside, &beside)
            && inside != beside
        {
            return Err(format!("two checksums contradict each other: {inside} in the URL, {beside} beside it"));
        }
        let place = if base.starts_with('/') {
            Place::File(PathBuf::from(base))
        } else if let Some(path) = strip_scheme(base, "file:") {
            let path = path.strip_prefix("//localhost").or_else(|| path.strip_prefix("//")).unwrap_or(path);
            let path = percent_decoded(path).filter(|path| path.starts_with('/') && !path.contains('\0'));
            Place::File(PathBuf::from(path.ok_or_else(|| format!("{shown:?}: behind file: stands an absolute path"))?))
        } else {
            let rest = strip_scheme(base, "https://").or_else(|| strip_scheme(base, "http://"));
            let rest =
                rest.ok_or_else(|| format!("{shown:?} is no URL that can be fetched: give http, https or file"))?;
            authority(rest.split('/').next().unwrap_or_default()).map_err(|why| format!("{shown:?} {why}"))?;
            // The scheme in lower case, so that nobody needs to ask twice.
            let scheme = base[..base.len() - rest.len()].to_ascii_lowercase();
            let query = if others.is_empty() { String::new() } else { format!("?{}", others.join("&")) };
            Place::Web(format!("{scheme}{rest}{query}"))
        };
        Ok(Link { place, checksum: inside.or(beside) })
    }

    /// Whether it may be fetched: it has a checksum, or the operator wants none. The error says what to do.
    pub fn trusted(&self, skip_checksum: bool) -> Result<(), String> {
        if self.checksum.is_some() || skip_checksum {
            return Ok(());
        }
        Err(format!(
            "{self} has no checksum, so nobody can tell what is fetched from there: add ?checksum=sha256:HEX to the URL (UNSAFE_SKIP_CHECKSUM=true goes without)"
        ))
    }
}

/// The URL of a file of this machine with its checksum, as [`Link::parse`] reads it. A path that is no text has none.
pub fn file_url(path: &Path, sum: &Checksum) -> Option<String> {
    let mut url = "file://".to_owned();
    for byte in path.to_str()?.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~+".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url += &format!("%{byte:02X}");
        }
    }
    Some(format!("{url}?checksum={sum}"))
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Checks `user:password@host:port`.
fn authority(text: &str) -> Result<(), &'static str> {
    let host_port = text.rsplit('@').next().unwrap_or_default();
    let (host, port) = match host_port.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (host_port, None),
    };
    if host.is_empty() {
        return Err("names no host");
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || port.starts_with('+') => Err("has a port that is none"),
        Some(_) | None => Ok(()),
    }
}

/// A part of a URL as it is meant.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(out).ok()
}

/// A text with a URL in it that came from elsewhere, as it may be logged: short, without names, passwords and tokens.
pub fn short(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let text = match (text.find("://"), text.rfind('@')) {
        // A password that is written wrongly may hold anything.
        (Some(start), Some(at)) if at > start => &[&text[..start + 3], &text[at + 1..]].concat(),
        _ => text,
    };
    if text.chars().count() > 80 {
        format!("{}…", text.chars().take(80).collect::<String>())
    } else {
        text.to_owned()
    }
}

/// Where a release can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The binary itself, or an archive that holds it.
    Binary(Link),
    /// A JSON file that says where the binary is.
    Index(Link),
}

impl Source {
    /// The file that is fetched first.
    pub fn link(&self) -> &Link {
        match self {
            Source::Binary(link) | Source::Index(link) => link,
        }
    }

    /// What a plan's `info` says: nothing (nothing at all, or a description), where to fetch, or something that is wrong.
    pub fn of(info: &Value) -> Result<Option<Source>, String> {
        match info {
            Value::Object(object) => of_object(object),
            Value::String(text) => {
                let text = text.trim();
                match serde_json::from_slice(text.as_bytes()) {
                    Ok(Value::Object(object)) => return of_object(&object),
                    // Nobody begins a description like that.
                    Err(e) if text.starts_with('{') => return Err(format!("info begins as JSON and is none: {e}")),
                    Ok(_) | Err(_) => {}
                }
                let scheme = ["http://", "https://", "file:"].iter().any(|s| strip_scheme(text, s).is_some());
                if scheme && !text.contains(char::is_whitespace) {
                    return Link::parse(text, None).map(|link| Some(Source::Index(link)));
                }
                Ok(None)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => Ok(None),
        }
    }

    /// What an index says, which must name a binary itself.
    pub fn of_index(bytes: &[u8]) -> Result<Link, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("is not JSON: {e}"))?;
        let Value::Object(object) = value else { return Err("is no JSON object".to_owned()) };
        match of_object(&object)? {
            Some(Source::Binary(link)) => Ok(link),
            Some(Source::Index(_)) | None => Err("has no \"binaries\"".to_owned()),
        }
    }
}

fn of_object(object: &serde_json::Map<String, Value>) -> Result<Option<Source>, String> {
    let Some(binaries) = object.get("binaries") else { return Ok(None) };
    let Value::Object(binaries) = binaries else {
        return Err("info.binaries is an object such as {\"any\": \"https://…\"}".to_owned());
    };
    let url = binaries
        .get(PLATFORM)
        .or_else(|| binaries.get("any"))
        .ok_or_else(|| format!("info.binaries has neither {PLATFORM} nor any"))?;
    let checksum = match object.get("checksum") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(format!("info.checksum is a string: {ALLOWED}"));
        }
    };
    let url = url.as_str().ok_or("info.binaries names URLs, which are strings")?;
    Link::parse(url, checksum).map(|link| Some(Source::Binary(link)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const HEX: &str = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";

    fn lower() -> Checksum {
        Checksum::Sha256(HEX.to_lowercase())
    }

    #[test]
    fn a_checksum_is_read_in_every_spelling_and_in_no_other() {
        let long = "ab".repeat(64);
        for good in [HEX, &format!("sha256:{HEX}"), &format!("SHA256:{}", HEX.to_lowercase()), &format!(" {HEX}\n")] {
            assert_eq!(Checksum::parse(good), Ok(lower()), "{good}");
        }
        for good in [long.as_str(), &format!("sha512:{long}")] {
            assert_eq!(Checksum::parse(good), Ok(Checksum::Sha512(long.clone())), "{good}");
        }
        for bad in [
            "",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &HEX[1..],
            &format!("sha512:{HEX}"),
            &HEX.replace('E', "g"),
        ] {
            assert!(Checksum::parse(bad).unwrap_err().contains("sha256: and 64 hex digits"), "{bad}");
        }
        let mut hasher = lower().hasher();
        hasher.update(b"");
        assert_eq!(hasher.sum(), lower(), "of nothing");
    }

    #[test]
    fn a_link_is_split_into_place_and_checksum() {
        let web = |url: &str| Place::Web(url.to_owned());
        let file = |path: &str| Place::File(PathBuf::from(path));
        for (text, place, sum) in [
            (format!("https://h/x?checksum=sha256:{HEX}"), web("https://h/x"), true),
            (format!("HTTPS://h/x?a=1&checksum={HEX}&b=2#frag"), web("https://h/x?a=1&b=2"), true),
            (format!("http://u:p@h:80/x.tgz?checksum=sha256%3A{HEX}"), web("http://u:p@h:80/x.tgz"), true),
            ("http://[::1]:8000/x".to_owned(), web("http://[::1]:8000/x"), false),
            ("http://h".to_owned(), web("http://h"), false),
            ("file:///a%20b/c".to_owned(), file("/a b/c"), false),
            ("file:/a/c".to_owned(), file("/a/c"), false),
            ("file://localhost/a".to_owned(), file("/a"), false),
            (format!("/a/c?checksum={HEX}"), file("/a/c"), true),
        ] {
            let checksum = sum.then(lower);
            assert_eq!(Link::parse(&text, None), Ok(Link { place, checksum }), "{text}");
        }
        for (bad, why) in [
            ("", "no URL that can be fetched"),
            ("geth", "no URL that can be fetched"),
            ("ftp://h/x", "no URL that can be fetched"),
            ("http://", "names no host"),
            ("http://:80/", "names no host"),
            ("http://h:99999/x", "port"),
            ("http://h:x/x", "port"),
            ("http://h/a b", "spaces"),
            ("file:x", "absolute path"),
            ("file://host/x%zz", "absolute path"),
            ("http://h/x?checksum=md5:abc", "no checksum"),
            ("http://h/x?checksum=file:http://h/sums", "no checksum"),
        ] {
            let error = Link::parse(bad, None).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(
            Link::parse(&format!("http://h/x?checksum={HEX}"), Some(&"0".repeat(64)))
                .unwrap_err()
                .contains("contradict")
        );
        assert_eq!(Link::parse("http://h/x", Some(HEX)).unwrap().checksum, Some(lower()));
    }

    #[test]
    fn the_url_of_a_file_names_it_again_whatever_its_name_is() {
        for path in ["/a/geth", "/a b/c#d?e=f&g%41", "/ä/\n/\"/:@", "/x+y~z-1.2_3"] {
            let url = file_url(Path::new(path), &lower()).unwrap();
            let link = Link { place: Place::File(PathBuf::from(path)), checksum: Some(lower()) };
            assert_eq!(Link::parse(&url, None), Ok(link), "{url}");
        }
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(file_url(Path::new(std::ffi::OsStr::from_bytes(b"/\xff")), &lower()), None);
    }

    #[test]
    fn what_is_logged_of_a_link_holds_no_secret() {
        let link = Link::parse("https://user:word@h:1/p/x?token=abc", None).unwrap();
        assert_eq!(link.to_string(), "https://h:1/p/x");
        let error = Link::parse("ftp://h/x?token=abc", None).unwrap_err();
        assert!(!error.contains("abc"), "{error}");
        for bad in ["ftp://u:abc@h/x", "http://u:abc@h:port/x#abc", "http://u:a/b?abc@h/x", "http://u:80/abc@h:x y"] {
            let error = Link::parse(bad, None).unwrap_err();
            assert!(!error.contains("abc"), "{bad}: {error}");
        }
        assert!(link.trusted(false).unwrap_err().contains("UNSAFE_SKIP_CHECKSUM"));
        assert!(link.trusted(true).is_ok());
    }

    #[test]
    fn info_is_an_object_a_string_of_one_a_url_to_one_or_a_description() {
        let binary = |url: &str, sum: bool| {
            Ok(Some(Source::Binary(Link { place: Place::Web(url.to_owned()), checksum: sum.then(lower) })))
        };
        let object = json!({"binaries": {PLATFORM: format!("http://h/own?checksum={HEX}"), "any": "http://h/any", "linux/riscv": 7, "": "bad"}});
        assert_eq!(Source::of(&object), binary("http://h/own", true), "this machine's, whatever the others are");
        assert_eq!(Source::of(&json!(object.to_string())), binary("http://h/own", true));
        assert_eq!(
            Source::of(&json!({"binaries": {"any": "http://h/any"}, "checksum": HEX})),
            binary("http://h/any", true)
        );
        assert_eq!(
            Source::of(&json!({"binaries": {"any": "http://h/any"}, "checksum": ""})),
            binary("http://h/any", false)
        );
        let index = Link { place: Place::Web("https://h/x.json".to_owned()), checksum: Some(lower()) };
        assert_eq!(
            Source::of(&json!(format!("https://h/x.json?checksum=sha256:{HEX}"))),
            Ok(Some(Source::Index(index)))
        );
        for none in [json!(null), json!(""), json!("see https://h/x"), json!({"description": "d"}), json!("half}")] {
            assert_eq!(Source::of(&none), Ok(None), "{none}");
        }
        for (bad, why) in [
            (json!({"binaries": {}}), "neither"),
            (json!({"binaries": {"linux/arm": "http://h"}}), "neither"),
            (json!({"binaries": []}), "is an object"),
            (json!({"binaries": {"any": 7}}), "strings"),
            (json!(" {\"binaries\": {\"any\": \"http://h\"}"), "begins as JSON and is none"),
            (json!({"binaries": {"any": ""}}), "no URL"),
            (json!({"binaries": {"any": "http://h:bad/"}}), "port"),
            (json!({"binaries": {"any": "http://h"}, "checksum": 7}), "info.checksum is a string"),
            (json!({"binaries": {"any": "http://h"}, "checksum": "md5:x"}), "no checksum"),
            (json!("https://"), "names no host"),
        ] {
            let error = Source::of(&bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert_eq!(Source::of_index(object.to_string().as_bytes()).unwrap().to_string(), "http://h/own");
        for bad in ["", "[]", "{}", "<html>", "\"http://h/x\""] {
            assert!(Source::of_index(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
