//! Finds backups and describes them. Reads only, and holds no more of a manifest than one line.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::copy::{allocated, mtime_ns};
use super::place::{AHEAD, INSIDE, MANIFEST, PARTIAL};
use super::reader::Manifest;
use super::{Spec, walk};
use crate::config::nearest;
use crate::error::{Error, OnFile, Result};
use crate::manifest::{Entry, Header, How, Totals};

/// A directory that is, or was to become, a backup.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its name, unique among the backups of a home.
    pub name: String,
    /// Where it lies.
    pub dir: PathBuf,
    /// What it is.
    pub state: State,
}

/// What a directory among the backups is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Under its final name, and what its manifest begins with.
    Complete(Header),
    /// Under a final name, but its manifest cannot be read, and why.
    Broken(String),
    /// Not completed, or being removed; `busy`: somebody works on it right now.
    Partial {
        /// Somebody holds its lock.
        busy: bool,
    },
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its files, and their sizes together.
    pub totals: Totals,
    /// Bytes on disk that its removal would free; with reflinks an estimate.
    pub exclusive: u64,
}

/// The directories that backups may lie in, those that are there.
pub fn places(spec: &Spec) -> Vec<PathBuf> {
    let inside = spec.data_dir.join(INSIDE);
    let mut all: Vec<PathBuf> = [&spec.backup_dir, &inside].into_iter().filter_map(|p| p.canonicalize().ok()).collect();
    all.dedup();
    all
}

/// Every backup, the oldest first; behind them those that are not complete.
pub fn find(spec: &Spec) -> Result<Vec<Found>> {
    let mut all: Vec<Found> = Vec::new();
    for place in places(spec) {
        for entry in fs::read_dir(&place).on("read", &place)? {
            let entry = entry.on("read", &place)?;
            // What has no name of ours is not ours; a link could lead anywhere.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Some(found) = look_at(entry.path(), name)
            {
                let at = all.partition_point(|before| before.rank() < found.rank());
                all.insert(at, found);
            }
        }
    }
    Ok(all)
}

impl Found {
    /// What its manifest begins with, when it is complete.
    pub fn header(&self) -> Option<&Header> {
        match &self.state {
            State::Complete(header) => Some(header),
            State::Broken(_) | State::Partial { .. } => None,
        }
    }

    /// When it was made: of two such times the earlier one is also the lesser text.
    pub fn created(&self) -> &str {
        self.header().map_or("", |header| &header.created)
    }

    /// Whether it is what was copied beforehand, which the next upgrade completes.
    pub fn is_ahead(&self) -> bool {
        self.name == AHEAD
    }

    fn rank(&self) -> (u8, &str, &str) {
        let group = match self.state {
            State::Complete(_) => 0,
            State::Broken(_) => 1,
            State::Partial { .. } => 2,
        };
        (group, self.created(), &self.name)
    }

    /// Keeps it from being removed as long as the file is held.
    pub fn hold(&self) -> Result<File> {
        let dir = File::open(&self.dir).on("read", &self.dir)?;
        match dir.try_lock_shared() {
            Ok(()) => Ok(dir),
            Err(_) => Err(Error::refused(format!("{} is being removed", self.dir.display()))),
        }
    }
}

fn look_at(dir: PathBuf, name: String) -> Option<Found> {
    let state = if name.starts_with(PARTIAL) {
        State::Partial { busy: File::open(&dir).is_ok_and(|dir| dir.try_lock_shared().is_err()) }
    } else if !is_name(&name) || !(dir.join(MANIFEST).exists() || dir.join("data").exists()) {
        return None;
    } else {
        match Manifest::open(&dir) {
            Ok(manifest) if !is_time(&manifest.header().created) => State::Broken(format!(
                "cannot use {}: {:?} is no time",
                dir.join(MANIFEST).display(),
                manifest.header().created
            )),
            Ok(manifest) => State::Complete(manifest.header().clone()),
            Err(e) => State::Broken(e.message),
        }
    };
    Some(Found { name, dir, state })
}

/// The complete backup of this name.
pub fn named(spec: &Spec, name: &str) -> Result<Found> {
    if !is_name(name) && !name.starts_with(PARTIAL) || name.contains('/') {
        return Err(Error::usage(format!(
            "{name:?} is no name of a backup: `wemixvisor backup list` tells the names there are"
        )));
    }
    let all = find(spec)?;
    let Some(found) = all.iter().find(|found| found.name == name) else {
        let complete = all.iter().filter(|found| found.header().is_some()).map(|found| found.name.as_str());
        let hint = match nearest(name, complete.clone()) {
            Some(near) => format!("did you mean {near}?"),
            None if complete.clone().count() == 0 => format!("there is none in {}", spec.backup_dir.display()),
            None => "`wemixvisor backup list` tells the names there are".to_owned(),
        };
        return Err(Error::failed(format!("no backup has the name {name}; {hint}")));
    };
    match &found.state {
        State::Complete(_) => Ok(found.clone()),
        State::Broken(why) => Err(Error::failed(format!("backup {name} cannot be used: {why}"))),
        State::Partial { busy: true } => Err(Error::failed(format!("{name} is not complete: it is being worked on"))),
        State::Partial { busy: false } => Err(Error::failed(format!(
            "{name} was never completed and is no backup: `wemixvisor backup prune` removes it"
        ))),
    }
}

/// The backup that this upgrade made, by the id of its journal.
pub fn of_upgrade(spec: &Spec, id: &str) -> Result<Option<String>> {
    let made = |found: &Found| found.header().is_some_and(|header| header.id.as_deref() == Some(id));
    Ok(find(spec)?.into_iter().find(made).map(|found| found.name))
}

/// Reads the whole manifest and looks at every file of it.
pub fn measure(found: &Found, spec: &Spec) -> Result<Held> {
    let data = found.dir.join("data");
    let top = walk::top(&data)?;
    let live = walk::top(&spec.data_dir).ok();
    let mut manifest = Manifest::open(&found.dir)?;
    let mut held = Held { totals: manifest.totals(), exclusive: 0 };
    while let Some((entry, path)) = manifest.next()? {
        let Some(stat) = walk::stat_below(top.as_fd(), &data, &path)? else { continue };
        let only_here = match entry.how {
            How::Copy => true,
            How::Link => stat.st_nlink == 1,
            // Whether blocks are still shared is not to be seen; that the file there is the same one is a good sign.
            How::Reflink => match &live {
                Some(live) => {
                    let there = walk::stat_below(live.as_fd(), &spec.data_dir, &path)?;
                    !there.is_some_and(|there| is_same(&entry, &there))
                }
                None => true,
            },
        };
        if only_here {
            held.exclusive += allocated(&stat);
        }
    }
    Ok(held)
}

/// Whether a file has the size and the time that the manifest tells.
pub fn is_same(entry: &Entry, stat: &rustix::fs::Stat) -> bool {
    u64::try_from(stat.st_size).ok() == Some(entry.size) && mtime_ns(stat) == entry.mtime_ns
}

/// A name that cannot leave its directory: that of an upgrade, a time and perhaps a number.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 255
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}

/// A time as manifests have it, `2026-01-01T00:00:00Z`: such times can be compared as texts.
fn is_time(text: &str) -> bool {
    let form = "0000-00-00T00:00:00Z";
    let fits = |(a, b): (u8, u8)| if b == b'0' { a.is_ascii_digit() } else { a == b };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}
