//! Removes backups that are no longer wanted, and what half-made ones left. What it removes loses its final name first, so
//! that a kill leaves nothing half under one.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::list::{self, Found, State};
use super::place::{AHEAD, PARTIAL, c_name, is_of_restore, rename_new};
use super::tree::{open_dir, remove_tree};
use super::{Spec, restore_pending};
use crate::config::{Config, show_size};
use crate::error::{Error, OnFile, Result};
use crate::home::Home;
use crate::job::{durable, look};
use crate::journal::{rfc3339, unix_now};
use crate::schedule::{Entry, Known, Schedule, Standing};

/// Which backups are no longer wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    // One that cannot be removed keeps no other.
    let mut fault: Option<Error> = None;
    for found in all.iter().filter(|found| matches!(found.state, State::Partial { busy: false })) {
        match remove(found, || !needed(home, &found.name)) {
            Ok(true) => removed.push(Removed { name: found.name.clone(), freed: None }),
            Ok(false) => {}
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    // The oldest first, as they were found.
    let meant = |found: &&Found| found.header().is_some_and(|header| limits.all || header.id.is_some());
    let meant: Vec<&Found> = all.iter().filter(meant).collect();
    let surplus = limits.keep.map_or(0, |keep| meant.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX)));
    let oldest = limits.max_age.map(|age| rfc3339(unix_now().saturating_sub(age.as_secs())));
    for (at, found) in meant.into_iter().enumerate() {
        let old = oldest.as_deref().is_some_and(|oldest| found.created() < oldest);
        let unwanted = at < surplus || old || crowded(found, limits.min_free)?;
        if !unwanted || protect == Some(found.name.as_str()) {
            continue;
        }
        // Of one that is damaged nothing is known but that it goes.
        let freed = list::measure(found, spec).map_or(0, |held| held.exclusive);
        match remove(found, || true) {
            Ok(true) => removed.push(Removed { name: found.name.clone(), freed: Some(freed) }),
            Ok(false) => {}
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    match fault {
        None => Ok(removed),
        Some(error) if removed.is_empty() => Err(error),
        Some(error) => {
            let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
            Err(Error { message: format!("{}; removed: {}", error.message, removed.join(", ")), ..error })
        }
    }
}

/// Whether what is half-made is waited for by who will end it.
fn needed(home: &Home, partial: &str) -> bool {
    if partial == AHEAD {
        // Copied beforehand for the next upgrade, whose downtime it spares.
        let survey = look::look(home);
        let known = Known { current: survey.current.ok(), brought: survey.brought };
        let waits =
            |entry: &Entry| matches!(entry.standing, Standing::Pending | Standing::Conflict(_) | Standing::Held(_));
        return !matches!(survey.journal, Ok(None)) || Schedule::new(&survey.plans, &known).entries.iter().any(waits);
    }
    is_of_restore(partial) && restore_pending(home)
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

/// Removes it, unless somebody uses it, or needs it: that is asked when nobody can begin to.
fn remove(found: &Found, unneeded: impl FnOnce() -> bool) -> Result<bool> {
    let (Some(place), Ok(dir)) = (found.dir.parent(), File::open(&found.dir)) else { return Ok(false) };
    if dir.try_lock().is_err() || !unneeded() {
        return Ok(false);
    }
    let at = open_dir(rustix::fs::CWD, place).on("read", place)?;
    let hidden = if found.name.starts_with(PARTIAL) {
        found.name.clone()
    } else {
        let hidden = format!("{PARTIAL}removed-{}-{}", found.name, std::process::id());
        rename_new(&at, &c_name(found.name.as_ref())?, &at, &c_name(hidden.as_ref())?).on("remove", &found.dir)?;
        durable::sync_dir(place)?;
        hidden
    };
    remove_tree(at.as_fd(), &c_name(hidden.as_ref())?).on("remove", &place.join(&hidden))?;
    durable::sync_dir(place)?;
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::BackupMode;

    #[test]
    fn when_room_is_short_the_oldest_made_by_upgrades_go_first_and_one_under_way_stays() {
        let root = std::env::temp_dir().join(format!("wemixvisor-prune-{}", std::process::id()));
        let home = Home::new(root.join("home"), "node");
        let spec = Spec {
            data_dir: root.join("data"),
            backup_dir: root.join("backups"),
            mode: BackupMode::Auto,
            ancient: None,
        };
        fs::create_dir_all(home.dir()).unwrap();
        for (name, id, day) in [("b", "\"2\"", 2), ("a", "\"3\"", 3), ("manual", "null", 1), ("c", "\"1\"", 1)] {
            let dir = spec.backup_dir.join(name);
            fs::create_dir_all(dir.join("data")).unwrap();
            let text = format!(
                "{{\"version\":1,\"id\":{id},\"upgrade\":\"v2\",\"created\":\"2026-01-0{day}T00:00:00Z\",\"head\":1,\"release\":null,\"mode\":\"copy\",\"files\":[\n],\"count\":0,\"bytes\":0}}\n"
            );
            fs::write(dir.join("manifest.json"), text).unwrap();
        }
        let names = |limits: Limits, protect| -> Vec<String> {
            prune(&home, &spec, &limits, protect).unwrap().into_iter().map(|one| one.name).collect()
        };
        assert_eq!(names(Limits { min_free: Some(0), ..Limits::default() }, None), Vec::<String>::new());
        assert_eq!(names(Limits { min_free: Some(u64::MAX), ..Limits::default() }, Some("b")), ["c", "a"]);
        assert!(spec.backup_dir.join("b/manifest.json").is_file());
        assert_eq!(fs::read_dir(&spec.backup_dir).unwrap().count(), 2);
        fs::remove_dir_all(&root).unwrap();
    }
}
