//! Backups of the node's data.

pub mod export;
pub mod list;
pub mod prune;
mod reader;
pub mod verify;
mod walk;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::BackupMode;
use crate::error::{Error, Result};
use crate::home::{Home, Release};
use crate::manifest::{How, Mode};

/// What is backed up, and where to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The node's data directory (not yet resolved).
    pub data_dir: PathBuf,
    /// DAEMON_DATA_BACKUP_DIR.
    pub backup_dir: PathBuf,
    /// DAEMON_BACKUP_MODE.
    pub mode: BackupMode,
    /// The node's `--datadir.ancient`, when it names one.
    pub ancient: Option<PathBuf>,
}

/// What a backup would be, found out while the node runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Snapshot or copy.
    pub mode: Mode,
    /// How what never changes is taken over: the means that was tried and works.
    pub how: How,
    /// The directory that it would lie in.
    pub place: PathBuf,
    /// How many files.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// What of it must be copied (room that is needed), in bytes on disk.
    pub to_copy: u64,
    /// What of that can be copied only when the node is down.
    pub down_copy: u64,
    /// Free bytes there.
    pub free: u64,
}

/// How far a backup or restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Files done.
    pub files: u64,
    /// Bytes done (sizes, whatever the means).
    pub bytes: u64,
    /// Bytes in all, when that is known.
    pub of: Option<u64>,
}

/// Whose backup it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The journal's id; none: made by hand.
    pub id: Option<String>,
    /// The upgrade's name, or `manual`.
    pub upgrade: String,
    /// The head of the data.
    pub head: Option<u64>,
    /// The release that ran on it.
    pub release: Option<Release>,
}

/// Told now and then while the work goes on, at most about ten times a second.
pub type Tell<'a> = &'a mut dyn FnMut(Progress);

/// What would be done, and whether there is room. The node may run. An error says what stands in the way.
pub fn forecast(_home: &Home, _spec: &Spec) -> Result<Forecast> {
    Err(Error::failed("backups are not there yet"))
}

/// Copies beforehand what must be copied and never changes again, while the node runs. `create` goes on from there.
/// Returns the bytes that it copied.
pub fn copy_ahead(_home: &Home, _spec: &Spec, _tell: Tell) -> Result<u64> {
    Err(Error::failed("backups are not there yet"))
}

/// Makes a backup; the caller holds `data.lock` and no node lives. Returns its name. One with this id is adopted.
pub fn create(_home: &Home, _spec: &Spec, _about: &About, _tell: Tell) -> Result<String> {
    Err(Error::failed("backups are not there yet"))
}

/// Puts a backup in the data's place; the caller holds `data.lock` and no node lives. Returns the name of the backup that
/// what it replaced became. Can be killed at any instant and called again with the same backup and `id`.
pub fn restore(_home: &Home, _spec: &Spec, _name: &str, _id: &str, _tell: Tell) -> Result<String> {
    Err(Error::failed("backups are not there yet"))
}

/// Whether an exchange of trees was interrupted: nobody may start before `finish_restore` has ended it.
pub fn restore_pending(_home: &Home) -> bool {
    false
}

/// Ends an interrupted exchange; nothing to do is success.
pub fn finish_restore(_home: &Home) -> Result<()> {
    Ok(())
}
