//! Reads what is on disk: link, journal, plans, history, last known state. It changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fetch::origin;
use super::shim::read_record;
use super::{backup, batches, check};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Release};
use crate::journal::{History, Journal, Known, Outcome, Record, parse_history, rfc3339};
use crate::plan::{self, Plan};
use crate::proc;
use crate::schedule::Found;
use crate::source::Source;

/// The most plan files that are read: several batch plans at their largest, more than any chain has.
const MAX_FILES: usize = 4000;

/// What a look found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// What `current` points at, or why it cannot be told.
    pub current: std::result::Result<Release, String>,
    /// The height of the plan that brought the current release.
    pub brought: Option<u64>,
    /// The upgrade under way, or why its journal cannot be read.
    pub journal: std::result::Result<Option<Journal>, String>,
    /// All plans of all files.
    pub plans: Vec<Found>,
    /// Files that hold no plan, and why.
    pub errors: Vec<PlanError>,
    /// Whether an exchange of data and backup was interrupted.
    pub restoring: bool,
    /// The last finished upgrade.
    pub last: Option<History>,
    /// The last one that was committed.
    pub committed: Option<History>,
    /// The last known state.
    pub known: Known,
    /// Why it is not known although there is one.
    pub known_error: Option<String>,
    /// The machine that this is.
    pub machine: Option<String>,
    /// Who was started last.
    pub record: Option<Record>,
    /// The directories whose changes matter.
    pub watch: Vec<PathBuf>,
    /// Whether this file system tells of changes; network and stacked ones do not, or not of all.
    pub watchable: bool,
}

/// A plan file that counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanError {
    /// The file, relative to the home.
    pub file: String,
    /// What is wrong with it.
    pub error: String,
}

/// Reads it all.
pub fn look(home: &Home) -> Survey {
    let current = home.current_release();
    let history = read_history(home);
    let (plans, errors) = read_plans(home, &history);
    Survey {
        brought: current.as_ref().ok().and_then(|release| brought(home, release, &history)),
        current,
        journal: read_journal(home).map_err(|e| e.message),
        plans,
        errors,
        restoring: backup::restore_pending(home),
        last: history.last().cloned(),
        committed: history.iter().rev().find(|h| h.result == Outcome::Committed).cloned(),
        known: read_known(home),
        known_error: try_known(home).err().map(|e| e.message),
        machine: proc::machine(),
        record: read_record(home),
        watch: watched(home),
        watchable: watchable(&home.data()) && watchable(&home.dir()),
    }
}

/// The upgrade under way. A journal that cannot be read is an error: guessing would run the wrong binary.
pub fn read_journal(home: &Home) -> Result<Option<Journal>> {
    let path = home.journal();
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).on("understand the journal", &path).map_err(|e| {
            let advice = "see which release `current` points at: if that is the one to run, move the journal away";
            Error::failed(format!("{e}; {advice}"))
        }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).on("read", &path),
    }
}

/// The last known state; nothing is known when the file is not there or not whole.
pub fn read_known(home: &Home) -> Known {
    try_known(home).ok().flatten().unwrap_or_default()
}

/// The same, telling a file that is not there from one that cannot be understood.
fn try_known(home: &Home) -> Result<Option<Known>> {
    let path = home.state();
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).on("understand", &path),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).on("read", &path),
    }
}

/// All finished upgrades, oldest first. A power loss may have cut a line inside a letter: the other lines count all the same.
pub fn read_history(home: &Home) -> Vec<History> {
    parse_history(&String::from_utf8_lossy(&fs::read(home.history()).unwrap_or_default()))
}

/// The height of the plan that brought a release: of its last committed upgrade, else of the plan stored with it.
fn brought(home: &Home, release: &Release, history: &[History]) -> Option<u64> {
    let Release::Upgrade(_) = release else { return None };
    let stored = || {
        let bytes = read_plan_bytes(&home.release(release).join("upgrade-info.json")).ok()?;
        plan::parse(&bytes).ok()?.first().map(|plan| plan.height)
    };
    history
        .iter()
        .rev()
        .find(|h| h.result == Outcome::Committed && h.to == *release)
        .and_then(|h| h.height)
        .or_else(stored)
}

/// The plans of both places (and of cosmovisor's batch file), and the files that hold none.
pub fn read_plans(home: &Home, history: &[History]) -> (Vec<Found>, Vec<PlanError>) {
    let mut outcomes: BTreeMap<&str, (Outcome, String)> = BTreeMap::new();
    for line in history {
        if let Some(digest) = &line.digest {
            outcomes.insert(digest, (line.result, line.reason.clone()));
        }
    }
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for (path, plans) in plan_files(home) {
        let file = path.strip_prefix(home.root()).unwrap_or(&path).display().to_string();
        match plans {
            Ok(plans) => found.extend(plans.into_iter().map(|plan| {
                let release = home.find(&plan.name);
                let digest = plan.digest();
                let source = Source::of(&plan.info);
                let known = source.as_ref().ok().and_then(Option::as_ref);
                let other = known.and_then(|source| origin::contradiction(home, &release, source));
                Found {
                    print: release_print(home, &release).filter(|_| other.is_none()),
                    other,
                    outcome: outcomes.get(digest.as_str()).cloned(),
                    description: plan.description(),
                    source,
                    rolling: plan.rolling(),
                    batch: plan.batch,
                    name: plan.name,
                    height: plan.height,
                    file: file.clone(),
                    digest,
                    release,
                }
            })),
            Err(error) => errors.push(PlanError { file, error }),
        }
    }
    (found, errors)
}

/// A plan file and the plans in it, or why it holds none.
pub type PlanFile = (PathBuf, std::result::Result<Vec<Plan>, String>);

/// Every plan file and what counts of it: nothing of a batch plan that was not applied whole.
pub fn plan_files(home: &Home) -> Vec<PlanFile> {
    // First: what is applied meanwhile is seen by the next look, and not in part by this one.
    let unapplied = batches::unapplied(home);
    let mut files = written_plans(home);
    let part_of =
        |plans: &[Plan]| plans.iter().find_map(|plan| plan.batch.clone().filter(|b| unapplied.names.contains(b)));
    if unapplied.busy {
        files.retain(|(_, plans)| plans.as_ref().map_or(true, |plans| part_of(plans).is_none()));
    }
    for (_, plans) in &mut files {
        if let Some(batch) = plans.as_ref().ok().and_then(|plans| part_of(plans)) {
            *plans = Err(format!("plan {batch} was not applied whole: `wemixvisor plan apply {batch}` again"));
        }
    }
    files
}

/// Every plan file and what it holds, whether that counts or not.
pub fn written_plans(home: &Home) -> Vec<PlanFile> {
    let data = home.data();
    let mut paths: Vec<PathBuf> = fs::read_dir(data.join("upgrades"))
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_FILES)
        .map(|entry| entry.path().join("upgrade-info.json"))
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    paths.sort();
    paths.extend(
        ["upgrade-info.json", "upgrade-info.json.batch"]
            .map(|name| data.join(name))
            .into_iter()
            .filter(|p| p.symlink_metadata().is_ok()),
    );
    let read = |path: &Path| {
        inside(&data, path)?;
        plan::parse(&read_plan_bytes(path)?)
    };
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// A link that leaves `data/` is refused: who may write there must not make us read elsewhere.
fn inside(data: &Path, path: &Path) -> std::result::Result<(), String> {
    let real = |p: &Path| p.canonicalize().map_err(|e| format!("cannot be followed: {e}"));
    if real(path)?.starts_with(real(data)?) { Ok(()) } else { Err("a link that leaves data/".to_owned()) }
}

/// Reads a plan file that is a regular file which not everybody may write; at most 1 MiB of it.
pub fn read_plan_bytes(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let (file, meta) = check::plain_file(path).map_err(|e| format!("cannot be read: {e}"))?;
    if meta.mode() & 0o002 != 0 {
        return Err("everybody may write it: chmod o-w it".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(plan::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    Ok(bytes)
}

/// The public state of a home that no supervisor looks after, and why it is that.
pub fn last_state(home: &Home) -> (&'static str, Option<String>) {
    let known = read_known(home);
    let record = read_record(home);
    let lives =
        record.as_ref().filter(|r| r.boot_id == proc::boot_id() && proc::start_time(r.pid) == Some(r.start_time));
    let left = |started: u64| known.last.as_ref().is_some_and(|last| last.time >= rfc3339(started));
    // Whether the last supervisor that left by itself knew of this start, and so saw its end.
    let knew = |record: &Record| {
        let node = known.last.as_ref().and_then(|last| last.node.as_ref());
        node.map_or_else(|| left(record.started), |node| *node == record.key())
    };
    let unseen = record.as_ref().is_some_and(|r| r.ended.is_none() && !knew(r));
    // One that had no disk to write to left the node's end only.
    let by_itself = |r: &Record| Some(r.ended.as_deref()?.strip_prefix("by itself: ")?.to_owned());
    let silent = record.as_ref().filter(|r| !knew(r)).and_then(by_itself);
    // One that was asked to stop in the middle of an upgrade left after it had begun.
    let broken_off = read_journal(home).ok().flatten().filter(|journal| !left(journal.begun));
    match (lives, unseen, broken_off, known.last) {
        (Some(record), ..) => {
            ("crashed", Some(format!("the supervisor died; its node (pid {}) still lives", record.pid)))
        }
        (None, true, ..) => {
            ("crashed", Some("the supervisor died, or the machine: nobody saw the node's end".to_owned()))
        }
        (None, false, Some(journal), _) => {
            let name = journal.name;
            ("crashed", Some(format!("the supervisor died, or the machine, in the middle of upgrade {name}")))
        }
        (None, false, None, _) if let Some(exit) = silent => {
            ("error", Some(format!("the node ended by itself: {exit}, and its supervisor left without a word")))
        }
        (None, false, None, Some(last)) => {
            (if last.state == "error" { "error" } else { "stopped" }, Some(format!("{} ({})", last.reason, last.time)))
        }
        (None, false, None, None) => ("stopped", None),
    }
}

/// What a file looks like from outside; changes when it is replaced.
fn fingerprint(binary: &Path) -> Option<String> {
    let meta = fs::metadata(binary).ok()?;
    Some(format!("{}-{}-{}.{}-{:o}", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.mode()))
}

/// The same of a release: of its binary (none: it is not there), and of what is checked beside it.
pub fn release_print(home: &Home, release: &Release) -> Option<String> {
    let binary = fingerprint(&home.binary(release))?;
    let beside = ["pre-upgrade", "node-args"].map(|name| {
        let path = home.release(release).join(name);
        let gone = || if path.is_symlink() { "dangles" } else { "none" }.to_owned();
        fingerprint(&path).unwrap_or_else(gone)
    });
    Some(format!("{binary} {}", beside.join(" ")))
}

/// Whether a name in a data directory is ours (plans, own backups) or of an empty file system, and so no node's data.
pub fn is_ours_in_data(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    name.starts_with(".wemixvisor-")
        || matches!(name, "upgrades" | "upgrade-info.json" | "upgrade-info.json.batch" | "lost+found")
}

/// Where plans and releases come and go. A parent is watched only until its child is there: other things change in it all
/// the time.
fn watched(home: &Home) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for (parent, child) in [(home.root().to_path_buf(), home.data()), (home.dir(), home.upgrades())] {
        dirs.push(if child.is_dir() { child } else { parent });
    }
    dirs.push(home.plans());
    for parent in [home.data().join("upgrades"), home.upgrades()] {
        dirs.push(parent.clone());
        let below = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
        for dir in below.take(MAX_FILES) {
            dirs.push(dir.join("bin"));
            dirs.push(dir);
        }
    }
    dirs.retain(|dir| dir.is_dir());
    dirs.sort();
    dirs.dedup();
    dirs
}

/// NFS, SMB, FUSE, 9p, Ceph, overlay: changes made elsewhere, or below, come without an event.
fn watchable(dir: &Path) -> bool {
    const SILENT: &[u64] = &[0x6969, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x794c_7630];
    rustix::fs::statfs(dir).is_ok_and(|fs| !SILENT.contains(&fs.f_type.cast_unsigned()))
}

/// The plan with this digest, if a file still holds it.
pub fn find_plan(home: &Home, digest: &str) -> Result<Plan> {
    plan_files(home)
        .into_iter()
        .filter_map(|(_, plans)| plans.ok())
        .flatten()
        .find(|plan| plan.digest() == digest)
        .ok_or_else(|| Error::refused("the plan was withdrawn or changed meanwhile"))
}
