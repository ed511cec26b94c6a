//! Reads the batch plans that the home keeps, and knows which of them are not applied: their plan files count for nothing,
//! so that a plan is applied whole or not at all, whatever was killed in the middle.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::{durable, look};
use crate::batch::{self, Batch};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Name};
use crate::manifest::encode;

/// The most files that are looked at.
const FILES_MAX: usize = 1000;

/// A file in `plans/`.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// The plan that its name speaks of, if it is a name of a batch plan's file.
    pub named: Option<Name>,
    /// The batch plan in it, or everything that is wrong with it.
    pub batch: std::result::Result<Batch, Vec<String>>,
}

/// Every file in `plans/` that is or was meant to be a batch plan, by name.
pub fn all(home: &Home) -> Vec<Kept> {
    let meant = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
        name.ends_with(".json") && !name.starts_with('.')
    };
    let entries = fs::read_dir(home.plans()).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(meant).take(FILES_MAX).collect();
    paths.sort();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Kept {
    let named = path.file_name().and_then(|name| name.to_str()).and_then(batch::name_in);
    let batch = look::read_plan_bytes(&path).map_err(|e| vec![e]).and_then(|bytes| batch::parse(&bytes));
    let batch = batch.and_then(|batch| match &named {
        Some(named) if *named == batch.name => Ok(batch),
        Some(_) | None => Err(vec![format!("its name is not {}-YYYYMMDD-HHMMSS.json", batch.name)]),
    });
    Kept { path, named, batch }
}

/// The batch plan of this name, and its file.
pub fn find(home: &Home, name: &Name) -> Result<(PathBuf, Batch)> {
    let mut of_name: Vec<Kept> = all(home).into_iter().filter(|kept| kept.named.as_ref() == Some(name)).collect();
    let Some(kept) = of_name.pop() else {
        return Err(Error::failed(format!(
            "there is no batch plan {name}: `wemixvisor plan list` tells which there are"
        )));
    };
    let file = shown(&kept.path);
    if let Some(other) = of_name.pop() {
        let other = shown(&other.path);
        return Err(Error::refused(format!("{other} and {file} both hold batch plan {name}: move one of them away")));
    }
    match kept.batch {
        Ok(batch) => Ok((kept.path, batch)),
        Err(errors) => {
            Err(Error::failed(format!("{file} is no batch plan: {}: mend it or delete it", in_a_line(&errors))))
        }
    }
}

/// What is wrong with a file, in one line.
pub fn in_a_line(errors: &[String]) -> String {
    let first: Vec<&str> = errors.iter().take(3).map(String::as_str).collect();
    let more = errors.len() - first.len();
    if more == 0 { first.join("; ") } else { format!("{}; and {more} more", first.join("; ")) }
}

fn shown(path: &Path) -> String {
    encode(path.as_os_str().as_encoded_bytes())
}

/// The batch plans that are not applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unapplied {
    /// Their names. One that a file without fault says to be applied is not among them.
    pub names: BTreeSet<Name>,
    /// Whether somebody works on batch plans right now.
    pub busy: bool,
}

/// Looks which they are.
pub fn unapplied(home: &Home) -> Unapplied {
    let read = all(home).into_iter().filter_map(|kept| kept.batch.ok());
    let (applied, open): (Vec<Batch>, Vec<Batch>) = read.partition(|batch| batch.applied_at.is_some());
    let mut names: BTreeSet<Name> = open.into_iter().map(|batch| batch.name).collect();
    names.retain(|name| applied.iter().all(|batch| batch.name != *name));
    let busy = File::open(home.plans()).is_ok_and(|dir| matches!(dir.try_lock_shared(), Err(TryLockError::WouldBlock)));
    Unapplied { names, busy }
}

/// Makes `plans/` where it is not there, and keeps others from changing batch plans meanwhile. A supervisor then says nothing
/// of one that is half applied.
pub fn hold(home: &Home) -> Result<File> {
    let dir = home.plans();
    durable::make_dirs(&dir, 0o755, home.owner().on("read", home.root())?)?;
    let held = File::open(&dir).on("open", &dir)?;
    // Where a directory cannot be locked, a supervisor may say a line too many.
    let _ = held.lock();
    Ok(held)
}

/// Writes a batch plan to its file.
pub fn write(home: &Home, path: &Path, batch: &Batch) -> Result<()> {
    durable::replace_file(path, batch.text().as_bytes(), 0o644, home.owner().on("read", home.root())?)
}
