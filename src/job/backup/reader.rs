//! The manifest of a backup on disk: what `manifest` reads, with the file's name in every error.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::place::MANIFEST;
use crate::error::{Error, OnFile, Result};
use crate::manifest::{Entry, Header, Reader, Totals, decode, read_totals};

/// Opens the manifest of the backup in this directory: a file, not a link to one elsewhere, nor a FIFO, to be waited for.
pub fn open(dir: &Path) -> Result<File> {
    let path = dir.join(MANIFEST);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(&path).on("read", &path)?;
    if !file.metadata().on("read", &path)?.is_file() {
        return Err(Error::failed(format!("cannot read {}: it is no file", path.display())));
    }
    Ok(file)
}

/// A manifest that is read one file at a time.
pub struct Manifest {
    lines: Reader<BufReader<File>>,
    totals: Totals,
    path: PathBuf,
}

impl Manifest {
    /// Opens that of the backup in this directory. It has a first and a last line; what is between is read by `next`.
    pub fn open(dir: &Path) -> Result<Manifest> {
        let path = dir.join(MANIFEST);
        let mut file = open(dir)?;
        let totals = read_totals(&mut file).on("use", &path)?;
        file.rewind().on("read", &path)?;
        let lines = Reader::new(BufReader::new(file)).on("use", &path)?;
        Ok(Manifest { lines, totals, path })
    }

    /// What it begins with.
    pub fn header(&self) -> &Header {
        self.lines.header()
    }

    /// What it ends with.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The next file and its path below `data/`; none at the end, when all that was read is as the totals say.
    pub fn next(&mut self) -> Result<Option<(Entry, Vec<u8>)>> {
        let Some(entry) = self.lines.next().on("use", &self.path)? else { return Ok(None) };
        let path = decode(&entry.path).ok_or_else(|| self.broken(&entry))?;
        // What it says is not trusted: a path leads downwards only.
        if path.contains(&0) || path.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            return Err(self.broken(&entry));
        }
        Ok(Some((entry, path)))
    }

    fn broken(&self, entry: &Entry) -> Error {
        Error::failed(format!("cannot use {}: the path {:?} leads out of the backup", self.path.display(), entry.path))
    }
}
