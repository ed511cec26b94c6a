//! What a backup says of itself: `manifest.json`. One JSON object, written and read line by line, so that a million files
//! need no more memory than one: the first line is the header, then one line a file, the last line the totals. Pure.

use std::io::{BufRead, Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::Release;

/// The version of this form.
pub const VERSION: u32 = 1;

/// What the header's line ends with: the object stays open for the list of files.
const OPEN: &[u8] = b",\"files\":[";

/// What the last line begins with: the list ends.
const CLOSE: &[u8] = b"],";

/// The longest line that is read: a path has at most 4096 bytes, each at most three times as long here.
const LINE_MAX: u64 = 64 << 10;

/// The last line is shorter than this.
const TAIL: u64 = 256;

/// How a backup came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By reflinks, or by hard links and copies of what a node changes in place.
    Snapshot,
    /// By copying everything.
    Copy,
}

/// How one file came into a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Its blocks are shared until either side changes them.
    Reflink,
    /// It is the same file under a second name.
    Link,
    /// Byte by byte.
    Copy,
}

/// What a manifest begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this form: 1.
    pub version: u32,
    /// The upgrade that made it, by the id of its journal and history line; none: the operator did, or a restore.
    pub id: Option<String>,
    /// The upgrade's name; `manual`, or `before-restore`.
    pub upgrade: String,
    /// When, RFC 3339.
    pub created: String,
    /// The head of the data, as last told by the node.
    pub head: Option<u64>,
    /// The release that ran on it.
    pub release: Option<Release>,
    /// How it came to be.
    pub mode: Mode,
    /// The restore that moved it here, by the id that `restore` was called with: what finds out that it was done already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<String>,
}

/// One file (or symbolic link) of a backup. Directories are not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to `data/`. Bytes that are not UTF-8, `%`, and control characters stand as `%XX`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Time of the last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// How it came here.
    pub how: How,
}

/// What a manifest ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How many files.
    pub count: u64,
    /// Their sizes together.
    pub bytes: u64,
}

/// A path as it stands in a manifest: lossless, and readable where it can be.
pub fn encode(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '%' || c.is_control() {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| percent(&mut text, byte));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|byte| percent(&mut text, *byte));
    }
    text
}

fn percent(text: &mut String, byte: u8) {
    text.push('%');
    for nibble in [byte >> 4, byte & 15] {
        text.push(char::from_digit(nibble.into(), 16).unwrap_or('0').to_ascii_uppercase());
    }
}

/// The path that stands so in a manifest; none when no path is written so.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut path = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.as_bytes().split_at_checked(2)?;
        let [high, low] = hex else { return None };
        let (high, low) = (char::from(*high).to_digit(16)?, char::from(*low).to_digit(16)?);
        path.push(u8::try_from(high * 16 + low).ok()?);
        path.extend_from_slice(rest);
    }
    Some(path)
}

/// Writes a manifest, one entry after the other.
pub struct Writer<W: Write> {
    out: W,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Begins one with its header.
    pub fn new(mut out: W, header: &Header) -> std::io::Result<Writer<W>> {
        let text = serde_json::to_string(header)?;
        out.write_all(text.strip_suffix('}').unwrap_or(&text).as_bytes())?;
        out.write_all(OPEN)?;
        Ok(Writer { out, totals: Totals::default() })
    }

    /// Adds an entry.
    pub fn entry(&mut self, entry: &Entry) -> std::io::Result<()> {
        self.out.write_all(if self.totals.count == 0 { b"\n" } else { b",\n" })?;
        self.out.write_all(serde_json::to_string(entry)?.as_bytes())?;
        self.totals.count += 1;
        self.totals.bytes = self.totals.bytes.wrapping_add(entry.size);
        Ok(())
    }

    /// Ends it with the totals; hands back what it was written to.
    pub fn end(mut self) -> std::io::Result<(W, Totals)> {
        let totals = serde_json::to_string(&self.totals)?;
        self.out.write_all(b"\n")?;
        self.out.write_all(CLOSE)?;
        self.out.write_all(totals.strip_prefix('{').unwrap_or(&totals).as_bytes())?;
        self.out.write_all(b"\n")?;
        self.out.flush()?;
        Ok((self.out, self.totals))
    }
}

/// Reads a manifest, one entry after the other. One that is cut short, or whose totals contradict it, is an error.
pub struct Reader<R: BufRead> {
    lines: R,
    line: Vec<u8>,
    header: Header,
    seen: Totals,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line, and no more of it.
    pub fn new(lines: R) -> Result<Reader<R>> {
        let none = Header {
            version: VERSION,
            id: None,
            upgrade: String::new(),
            created: String::new(),
            head: None,
            release: None,
            mode: Mode::Copy,
            restore: None,
        };
        let mut reader = Reader { lines, line: Vec::new(), header: none, seen: Totals::default(), ended: false };
        let line = reader.line()?;
        let mut text = line.strip_suffix(OPEN).ok_or_else(|| broken("the first line is no header"))?.to_vec();
        text.push(b'}');
        reader.header = serde_json::from_slice(&text).map_err(|e| broken(&format!("its header: {e}")))?;
        if reader.header.version != VERSION {
            return Err(broken(&format!("its version is {}, this program reads {VERSION}", reader.header.version)));
        }
        Ok(reader)
    }

    /// What it begins with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next entry; none after the last.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        let line = self.line()?;
        if let Some(tail) = line.strip_prefix(CLOSE) {
            if totals(tail)? != self.seen {
                return Err(broken("its totals contradict its lines"));
            }
            self.ended = true;
            return Ok(None);
        }
        let entry: Entry = serde_json::from_slice(line.strip_suffix(b",").unwrap_or(line))
            .map_err(|e| broken(&format!("entry {}: {e}", self.seen.count + 1)))?;
        self.seen.count += 1;
        self.seen.bytes = self.seen.bytes.wrapping_add(entry.size);
        Ok(Some(entry))
    }

    fn line(&mut self) -> Result<&[u8]> {
        self.line.clear();
        self.lines
            .by_ref()
            .take(LINE_MAX)
            .read_until(b'\n', &mut self.line)
            .map_err(|e| broken(&format!("it cannot be read: {e}")))?;
        self.line.strip_suffix(b"\n").ok_or_else(|| broken("it is cut short"))
    }
}

/// The totals of a manifest, from its last line alone: whoever has them knows that it is complete.
pub fn read_totals<F: Read + Seek>(file: &mut F) -> Result<Totals> {
    let mut tail = Vec::new();
    let length = file.seek(SeekFrom::End(0)).map_err(|e| broken(&format!("it cannot be read: {e}")))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .and_then(|_| file.read_to_end(&mut tail))
        .map_err(|e| broken(&format!("it cannot be read: {e}")))?;
    let text = tail.strip_suffix(b"\n").ok_or_else(|| broken("it is cut short"))?;
    let last = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    totals(last.strip_prefix(CLOSE).ok_or_else(|| broken("it is cut short"))?)
}

fn totals(tail: &[u8]) -> Result<Totals> {
    let mut text = vec![b'{'];
    text.extend_from_slice(tail);
    serde_json::from_slice(&text).map_err(|e| broken(&format!("its last line: {e}")))
}

fn broken(why: &str) -> Error {
    Error::failed(format!("the manifest is broken: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            id: Some("v2-1767225600".to_owned()),
            upgrade: "v2".to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            head: Some(99),
            release: Some(Release::Genesis),
            mode: Mode::Snapshot,
            restore: None,
        }
    }

    fn entries() -> Vec<Entry> {
        let entry =
            |path: &[u8], size, how| Entry { path: encode(path), size, mtime_ns: 1_767_225_600_123_456_789, how };
        vec![
            entry(b"geth/chaindata/000001.ldb", 2_097_152, How::Link),
            entry(b"geth/chaindata/CURRENT", 16, How::Copy),
            entry("keystore/sch\u{fc}ssel \"1\"".as_bytes(), 491, How::Copy),
            entry(b"odd/\xff\n%", 0, How::Reflink),
        ]
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &header()).unwrap();
        entries().iter().for_each(|entry| writer.entry(entry).unwrap());
        writer.end().unwrap().0
    }

    fn read(text: &[u8]) -> Result<Vec<Entry>> {
        let mut reader = Reader::new(text)?;
        let mut found = Vec::new();
        while let Some(entry) = reader.next()? {
            found.push(entry);
        }
        Ok(found)
    }

    #[test]
    fn the_form_of_a_manifest_is_frozen() {
        let frozen = include_bytes!("../fixtures/manifest.json");
        assert_eq!(String::from_utf8_lossy(&written()), String::from_utf8_lossy(frozen));
        assert_eq!(Reader::new(frozen.as_slice()).unwrap().header(), &header());
        assert_eq!(read(frozen).unwrap(), entries());
        let totals = Totals { count: 4, bytes: 2_097_659 };
        assert_eq!(read_totals(&mut std::io::Cursor::new(frozen)).unwrap(), totals);
        let whole: serde_json::Value = serde_json::from_slice(frozen).unwrap();
        assert_eq!(whole["files"].as_array().unwrap().len(), 4);
        assert_eq!(whole["count"], 4);
    }

    #[test]
    fn a_manifest_without_files_is_one() {
        let (text, _) = Writer::new(Vec::new(), &header()).unwrap().end().unwrap();
        assert_eq!(read(&text).unwrap(), []);
        let whole: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(whole["bytes"], 0);
    }

    #[test]
    fn a_manifest_that_is_cut_short_anywhere_is_an_error() {
        let text = written();
        for length in 0..text.len() {
            let cut = text.get(..length).unwrap();
            assert!(read(cut).is_err(), "{}", String::from_utf8_lossy(cut));
            assert!(read_totals(&mut std::io::Cursor::new(cut)).is_err());
        }
        let lines: Vec<&str> = std::str::from_utf8(&text).unwrap().lines().collect();
        let without: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, line)| *line).collect();
        assert!(read(format!("{}\n", without.join("\n")).as_bytes()).unwrap_err().message.contains("contradict"));
    }

    #[test]
    fn every_path_comes_back_as_it_was() {
        let odd: Vec<u8> = (1..=255).collect();
        for path in [b"a/b".as_slice(), b"%41", b"\xff\xfe", "\u{85}\u{e9}".as_bytes(), &odd, b""] {
            let text = encode(path);
            assert!(!text.chars().any(char::is_control), "{text}");
            assert_eq!(decode(&text).unwrap(), path);
        }
        assert_eq!(encode("a b/\u{e9}.ldb".as_bytes()), "a b/\u{e9}.ldb");
        for bad in ["%", "%4", "%zz", "a%\u{e9}"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
