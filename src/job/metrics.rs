//! Gathers what metrics need from the disk, and writes them where node_exporter's textfile collector finds them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::backup::reader::Manifest;
use super::backup::{self, list};
use super::durable;
use super::look::{last_state, read_history};
use crate::error::{Error, OnFile, Result};
use crate::home::Home;
use crate::journal::Outcome;
use crate::metrics::{Facts, Live, OnDisk, prometheus};
use crate::proc;

/// What to write, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// DAEMON_METRICS_TEXTFILE; none: no longer.
    pub file: Option<PathBuf>,
    /// The file of an earlier setting, which is removed: beside the new one it would say the contrary for ever.
    pub retired: Option<PathBuf>,
    /// What the supervisor knows; none: there is none any more.
    pub live: Option<Live>,
    /// Where backups lie.
    pub backup: backup::Spec,
}

/// All facts of a home. What cannot be read is left out.
pub fn gather(home: &Home, live: Option<Live>, backup: &backup::Spec) -> Facts {
    let history = read_history(home);
    let mut outcomes: BTreeMap<&'static str, u64> = BTreeMap::new();
    for line in &history {
        *outcomes.entry(line.result.word()).or_default() += 1;
    }
    let backups: Vec<list::Found> =
        list::find(backup).unwrap_or_default().into_iter().filter(|found| found.header().is_some()).collect();
    let newest = backups.iter().max_by_key(|found| found.created().to_owned());
    let disk = OnDisk {
        committed: history.into_iter().rev().find(|line| line.result == Outcome::Committed),
        outcomes,
        backups: backups.len() as u64,
        backup: newest.and_then(|found| {
            let at: jiff::Timestamp = found.created().parse().ok()?;
            Some((u64::try_from(at.as_second()).ok()?, Manifest::open(&found.dir).ok()?.totals().bytes))
        }),
        state: last_state(home).0,
        supervisor_memory: live.as_ref().and_then(|live| proc::resident(live.supervisor)),
    };
    Facts { home: home.root().display().to_string(), live, disk }
}

/// Removes the file of an earlier setting, and writes the present one, so that a reader sees the old one or the new one, whole. It is not synced: after a power loss there is a
/// newer one soon.
pub fn write(home: &Home, spec: &Spec) -> Result<()> {
    if let Some(retired) = &spec.retired
        && let Err(e) = std::fs::remove_file(retired)
        && e.kind() != ErrorKind::NotFound
    {
        return Err(e).on("remove the metrics in", retired);
    }
    let Some(file) = &spec.file else { return Ok(()) };
    let text = prometheus(&gather(home, spec.live.clone(), &spec.backup));
    let owner = home.owner().on("read", home.root())?;
    durable::replace_file_unsynced(file, text.as_bytes(), 0o644, owner)
        .map_err(|error| Error::failed(format!("cannot write the metrics: {}", error.message)))
}
