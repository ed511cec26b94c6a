//! Verifies a backup: every file of its manifest is there as it was, and nothing else is. Reads only. It needs eight bytes
//! of memory a file, to find what is in no manifest.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::FileType;

use super::list::{Found, is_same};
use super::reader::Manifest;
use super::{Tell, walk};
use crate::error::Result;
use crate::job::Progress;
use crate::manifest::{Entry, How, Totals, encode};

/// So many faults are named; the rest is counted.
const NAMED: usize = 10;

/// What a look at a backup told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What its manifest tells.
    pub totals: Totals,
    /// The first faults, each with its file.
    pub faults: Vec<String>,
    /// How many there are.
    pub count: u64,
}

impl Verdict {
    fn fault(&mut self, path: &str, what: &str) {
        self.count += 1;
        if self.faults.len() < NAMED {
            self.faults.push(format!("{path}: {what}"));
        }
    }
}

/// Compares a backup with its manifest; `full` also reads every byte of it. An error says that the manifest itself cannot
/// be used.
pub fn verify(found: &Found, full: bool, tell: Tell) -> Result<Verdict> {
    let data = found.dir.join("data");
    let top = walk::top(&data)?;
    let mut manifest = Manifest::open(&found.dir)?;
    let mut verdict = Verdict { totals: manifest.totals(), ..Verdict::default() };
    let mut listed: Vec<u64> = Vec::new();
    let mut there = 0;
    while let Some((entry, path)) = manifest.next()? {
        listed.push(digest(&path));
        match walk::stat_below(top.as_fd(), &data, &path)? {
            Some(stat) => {
                there += i64::from(FileType::from_raw_mode(stat.st_mode) != FileType::Directory);
                if let Some(what) = difference(&entry, &stat) {
                    verdict.fault(&entry.path, &what);
                }
            }
            None => verdict.fault(&entry.path, "is missing"),
        }
    }
    listed.sort_unstable();
    let mut progress = Progress { of: full.then_some(verdict.totals.bytes), ..Progress::default() };
    let mut buffer = vec![0; if full { 256 << 10 } else { 0 }];
    walk::walk(top, &mut Vec::new(), &mut |seen| {
        if seen.kind() == FileType::Directory {
            return Ok(());
        }
        let name = encode(seen.path);
        if listed.binary_search(&digest(seen.path)).is_ok() {
            there -= 1;
        } else if !matches!(seen.kind(), FileType::RegularFile | FileType::Symlink) {
            // A socket that a node left, for instance: it goes along with what a restore replaces, and is in no manifest.
            return Ok(());
        } else {
            verdict.fault(&name, "is not in the manifest");
        }
        if full && seen.kind() == FileType::RegularFile {
            let read = seen.open().and_then(|mut file| {
                loop {
                    match file.read(&mut buffer) {
                        Ok(0) => return Ok(()),
                        Ok(n) => progress.bytes += n as u64,
                        Err(e) => return Err(crate::error::Error::failed(e.to_string())),
                    }
                    tell(progress);
                }
            });
            if let Err(e) = read {
                verdict.fault(&name, &format!("cannot be read: {e}"));
            }
        }
        progress.files += 1;
        Ok(())
    })?;
    if there != 0 {
        verdict.fault("manifest.json", &format!("lists {there} files twice, or by way of a link"));
    }
    Ok(verdict)
}

/// How a file differs from what the manifest tells of it.
fn difference(entry: &Entry, stat: &rustix::fs::Stat) -> Option<String> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
        return Some("is no file any more".to_owned());
    }
    if is_same(entry, stat) {
        return None;
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let what = if size == entry.size {
        "has another time of change".to_owned()
    } else {
        format!("has {size} bytes, the manifest says {}", entry.size)
    };
    Some(match entry.how {
        How::Link => format!("changed since the backup, by way of the node's link to it: it {what}"),
        How::Reflink | How::Copy => what,
    })
}

fn digest(path: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}
