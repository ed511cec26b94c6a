//! Gathers what metrics need from the disk, and writes them where node_exporter's textfile collector finds them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::backup::reader::Manifest;
use super::backup::{self, list};
use super::look::read_history;
use crate::error::{OnFile, Result};
use crate::home::Home;
use crate::journal::Outcome;
use crate::metrics::{Facts, Live, OnDisk, prometheus};
use crate::proc;

/// What to write, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// DAEMON_METRICS_TEXTFILE.
    pub file: PathBuf,
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
        supervisor_memory: live.as_ref().and_then(|live| proc::resident(live.supervisor)),
    };
    Facts { live, disk }
}

/// Writes the file, so that a reader sees the old one or the new one, whole. It is not synced: after a power loss there is a
/// newer one soon.
pub fn write(home: &Home, spec: &Spec) -> Result<()> {
    let text = prometheus(&gather(home, spec.live.clone(), &spec.backup));
    let draft = draft(&spec.file);
    let put = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o644).open(&draft)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&draft, &spec.file)
    };
    put().inspect_err(|_| drop(fs::remove_file(&draft))).on("write the metrics to", &spec.file)
}

/// Beside the file, under a name that no collector reads.
fn draft(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}
