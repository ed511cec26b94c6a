//! Interim reader of manifests.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::error::{Error, OnFile, Result};
use crate::manifest::{Entry, Header, Totals};

/// A manifest that is read line by line.
pub struct Manifest {
    /// What it begins with.
    pub header: Header,
    file: BufReader<File>,
    path: PathBuf,
    line: Vec<u8>,
    seen: Totals,
    totals: Option<Totals>,
}

impl Manifest {
    /// Opens the manifest of the backup in this directory.
    pub fn open(dir: &Path) -> Result<Manifest> {
        let path = dir.join("manifest.json");
        let mut file = BufReader::new(File::open(&path).on("read", &path)?);
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line).on("read", &path)?;
        let mut text = line.trim_ascii_end().to_vec();
        if !text.ends_with(b"[") {
            return Err(Error::failed(format!("cannot understand {}: its first line is no header", path.display())));
        }
        text.extend_from_slice(b"]}");
        let header: Header = serde_json::from_slice(&text).on("understand", &path)?;
        if header.version != 1 {
            return Err(Error::failed(format!("cannot understand {}: version", path.display())));
        }
        Ok(Manifest { header, file, path, line, seen: Totals::default(), totals: None })
    }

    /// The next file; none at the end.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        if self.totals.is_some() {
            return Ok(None);
        }
        self.line.clear();
        self.file.read_until(b'\n', &mut self.line).on("read", &self.path)?;
        let text = self.line.trim_ascii_end();
        if text.is_empty() {
            return Err(Error::failed(format!("cannot understand {}: it is cut short", self.path.display())));
        }
        if let Some(rest) = text.strip_prefix(b"],") {
            let mut whole = b"{".to_vec();
            whole.extend_from_slice(rest);
            let totals: Totals = serde_json::from_slice(&whole).on("understand", &self.path)?;
            if totals != self.seen {
                return Err(Error::failed(format!("cannot understand {}: its totals", self.path.display())));
            }
            self.totals = Some(totals);
            return Ok(None);
        }
        let entry: Entry =
            serde_json::from_slice(text.strip_suffix(b",").unwrap_or(text)).on("understand", &self.path)?;
        self.seen.count += 1;
        self.seen.bytes += entry.size;
        Ok(Some(entry))
    }

    /// The totals; only after the end.
    pub fn totals(&self) -> Result<Totals> {
        self.totals.ok_or_else(|| Error::failed("not at the end"))
    }

    /// The path of an entry as bytes.
    pub fn path(&self, entry: &Entry) -> Result<Vec<u8>> {
        let bad = || Error::failed(format!("cannot understand {}: {:?}", self.path.display(), entry.path));
        let mut out = Vec::new();
        let mut rest = entry.path.as_bytes();
        while let [first, tail @ ..] = rest {
            if *first == b'%' {
                let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).ok_or_else(bad)?;
                out.push(u8::from_str_radix(hex, 16).map_err(|_| bad())?);
                rest = &tail[2..];
            } else {
                out.push(*first);
                rest = tail;
            }
        }
        Ok(out)
    }
}
