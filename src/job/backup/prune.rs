//! Removes backups that are no longer wanted, and what half-made ones left. What it removes loses its final name first, so
//! that a kill leaves nothing half under one.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::list::{self, Found, PARTIAL, State};
use super::{Spec, restore_pending};
use crate::config::{Config, show_size};
use crate::error::{OnFile, Result};
use crate::home::Home;
use crate::job::durable;
use crate::journal::unix_now;

/// What the half-made backup of what a restore replaces begins with: it is part of the restore while that is not finished.
const OF_A_RESTORE: &str = ".partial-before-restore-";

/// Which backups are no longer wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// So many are kept, the newest.
    pub keep: Option<u64>,
    /// Older ones are removed.
    pub max_age: Option<Duration>,
    /// Less free space, in bytes, than this: they are given up one by one, the oldest first.
    pub min_free: Option<u64>,
    /// All are meant, not only those that upgrades made.
    pub all: bool,
}

/// A backup, or what was left of one, that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its name.
    pub name: String,
    /// Bytes on disk that this has freed, as `backup list` tells them; not counted for a half-made one.
    pub freed: Option<u64>,
}

impl Limits {
    /// What the settings say, of the backups that upgrades made.
    pub fn of(config: &Config) -> Limits {
        let max_age = Some(config.backup_max_age).filter(|age| !age.is_zero());
        Limits { keep: Some(config.backup_keep), max_age, min_free: None, all: false }
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.freed {
            Some(bytes) => write!(f, "{} ({} freed)", self.name, show_size(bytes)),
            None => write!(f, "{} (half-made)", self.name),
        }
    }
}

/// Removes what the limits say, and what half-made backups left. `protect` is the backup of an upgrade under way. What
/// somebody works on is left alone, and what cannot be understood is not touched.
pub fn prune(home: &Home, spec: &Spec, limits: &Limits, protect: Option<&str>) -> Result<Vec<Removed>> {
    let all = list::find(spec)?;
    let mut removed = Vec::new();
    for found in all.iter().filter(|found| matches!(found.state, State::Partial { busy: false })) {
        let needed = found.name.starts_with(OF_A_RESTORE) && restore_under_way(home);
        if !needed && remove(found)? {
            removed.push(Removed { name: found.name.clone(), freed: None });
        }
    }
    // The oldest first, as they were found.
    let meant = |found: &&Found| found.header().is_some_and(|header| limits.all || header.id.is_some());
    let meant: Vec<&Found> = all.iter().filter(meant).collect();
    let surplus = limits.keep.map_or(0, |keep| meant.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX)));
    let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
    for (at, found) in meant.into_iter().enumerate() {
        let age = now.saturating_sub(found.created().unwrap_or(now));
        let old = limits.max_age.is_some_and(|most| u64::try_from(age).is_ok_and(|age| age > most.as_secs()));
        let unwanted = at < surplus || old || crowded(found, limits.min_free)?;
        if !unwanted || protect == Some(found.name.as_str()) {
            continue;
        }
        // Of one that is damaged nothing is known but that it goes.
        let freed = list::measure(found, spec).map_or(0, |held| held.exclusive);
        if remove(found)? {
            removed.push(Removed { name: found.name.clone(), freed: Some(freed) });
        }
    }
    Ok(removed)
}

fn restore_under_way(home: &Home) -> bool {
    restore_pending(home) || home.dir().join("restore.json").symlink_metadata().is_ok()
}

/// Whether there is less room where it lies than there is to be.
fn crowded(found: &Found, min_free: Option<u64>) -> Result<bool> {
    let Some(min_free) = min_free else { return Ok(false) };
    let dir = File::open(&found.dir).on("read", &found.dir)?;
    // Some file systems free what was removed only when they write it down.
    let _ = rustix::fs::syncfs(&dir);
    let space = rustix::fs::fstatvfs(&dir).on("read the free space at", &found.dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize) < min_free)
}

/// Removes it, unless somebody uses it.
fn remove(found: &Found) -> Result<bool> {
    let (Some(place), Ok(dir)) = (found.dir.parent(), File::open(&found.dir)) else { return Ok(false) };
    if dir.try_lock().is_err() {
        return Ok(false);
    }
    let hidden = if found.name.starts_with(PARTIAL) {
        found.dir.clone()
    } else {
        let hidden = place.join(format!("{PARTIAL}removed-{}-{}", found.name, std::process::id()));
        fs::rename(&found.dir, &hidden).on("remove", &found.dir)?;
        durable::sync_dir(place)?;
        hidden
    };
    // By descriptors and without following links, as the standard library does it.
    let gone = match fs::remove_dir_all(&hidden) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            open_up(&hidden);
            fs::remove_dir_all(&hidden)
        }
        gone => gone,
    };
    gone.on("remove", &hidden)?;
    durable::sync_dir(place)?;
    Ok(true)
}

/// Makes directories writable that their owner may not write to, as they came from the data.
fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
