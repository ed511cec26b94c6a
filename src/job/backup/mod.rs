//! Backups of the node's data: how they are made, found, looked at, put back in its place and removed.

mod copy;
mod create;
pub mod export;
pub mod list;
mod place;
pub mod prune;
pub mod reader;
mod restore;
#[cfg(test)]
mod tests;
mod tree;
pub mod verify;
mod walk;

use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

pub use create::{copy_ahead, create, forecast};
pub use place::BEFORE;
pub use restore::{finish_restore, interrupted, restore, restore_lost};
use serde::{Deserialize, Serialize};

use crate::config::{BackupMode, Config, show_size};
use crate::error::{OnFile, Result};
use crate::home::{Home, Release};
use crate::job::Progress;
use crate::manifest::{How, Mode, Writer};
use crate::node_args;

/// What is backed up, and where to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The node's data directory (not yet resolved).
    pub data_dir: PathBuf,
    /// DAEMON_DATA_BACKUP_DIR.
    pub backup_dir: PathBuf,
    /// DAEMON_BACKUP_MODE.
    pub mode: BackupMode,
    /// The node's `--datadir.ancient`, when it names one; a relative one is below the client's folder in the data.
    pub ancient: Option<PathBuf>,
}

impl Spec {
    /// What the settings say, for a node with these arguments that is started in this directory.
    pub fn new(config: &Config, home: &Home, node_args: &[String]) -> Spec {
        let data_dir = config.data_dir.clone().or_else(|| node_args::data_dir(node_args));
        let data_dir = data_dir.unwrap_or_else(|| home.data());
        Spec {
            // Who reads it may run in another directory.
            data_dir: std::path::absolute(&data_dir).unwrap_or(data_dir),
            backup_dir: config.data_backup_dir.clone(),
            mode: config.backup_mode,
            ancient: node_args::value(node_args, "datadir.ancient").filter(|dir| !dir.is_empty()).map(PathBuf::from),
        }
    }

    /// As it goes into a journal: what lies in the home is named from there, so that a home can be moved.
    pub fn relative(self, home: &Home) -> Spec {
        let named = |path: PathBuf| path.strip_prefix(home.root()).map(Path::to_owned).unwrap_or(path);
        Spec { data_dir: named(self.data_dir), backup_dir: named(self.backup_dir), ..self }
    }

    /// The same with whole paths again.
    pub fn in_home(&self, home: &Home) -> Spec {
        let whole = |path: &Path| home.root().join(path);
        Spec { data_dir: whole(&self.data_dir), backup_dir: whole(&self.backup_dir), ..self.clone() }
    }
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
    /// A file system of its own inside the data: as long as it is mounted there, no backup can be put back.
    pub fixed: Option<PathBuf>,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let means = match self.how {
            How::Reflink => "a snapshot by reflinks",
            How::Link => "a snapshot by hard links",
            How::Copy => "a copy",
        };
        write!(
            f,
            "{means} in {}: {} in {} files, {} to copy ({} of it while the node is down), {} free",
            self.place.display(),
            show_size(self.bytes),
            self.files,
            show_size(self.to_copy),
            show_size(self.down_copy),
            show_size(self.free)
        )
    }
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

/// Where the backup of this name lies.
pub fn find(home: &Home, spec: &Spec, name: &str) -> Option<PathBuf> {
    let places = place::Site::find(home, spec).ok()?.places();
    places.into_iter().map(|place| place.join(name)).find(|dir| place::header(dir).is_ok())
}

/// Whether an exchange of trees was interrupted: nobody may start before [`finish_restore`] has ended it.
pub fn restore_pending(home: &Home) -> bool {
    home.restore().symlink_metadata().is_ok()
}

/// Ends a manifest and syncs it.
fn end_manifest(manifest: Option<Writer<BufWriter<File>>>, path: &Path) -> Result<()> {
    let Some(manifest) = manifest else { return Ok(()) };
    let (out, _) = manifest.end().on("write", path)?;
    out.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all()).on("write", path)
}
