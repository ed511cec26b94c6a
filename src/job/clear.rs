//! Waits until nobody holds `data.lock`, ending who outlived the node: TERM once to each straggler, KILL when told so.
//! The node itself gets no TERM here: it had its one, from the supervisor or by its supervisor's death.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::shim::{open_lock, read_record, write_record};
use super::{Line, Note, look, say, step};
use crate::error::Result;
use crate::home::Home;
use crate::journal::Record;
use crate::proc::{self, Holder};

/// How often it looks again when nobody's end woke it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// After so many looks in vain the holder is one that cannot be seen from here.
const UNSEEN_LOOKS: u32 = 20;

/// What to do with who holds the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// End them at once, the node too.
    pub kill: bool,
    /// How the node ended, for the run record.
    pub ended: Option<String>,
    /// A start of a release on probation that ended because it was asked to is none that failed: so many count.
    pub starts: Option<u32>,
}

/// Who holds the data: every process that has the lock open, and the node on record, whose descriptors cannot be seen when
/// its binary has file capabilities.
pub fn holders(home: &Home) -> Vec<Holder> {
    let mut all = proc::holders(&home.data_lock());
    if let Some(record) = read_record(home)
        && record.pid != std::process::id()
        && record.boot_id == proc::boot_id()
        && proc::start_time(record.pid) == Some(record.start_time)
        && all.iter().all(|holder| holder.pid != record.pid)
    {
        all.push(Holder { pid: record.pid, start_time: record.start_time, command: proc::command(record.pid) });
    }
    all
}

/// Returns when the lock was free for a moment and the record says how the node ended.
pub fn clear(home: &Home, spec: &Spec) -> Result<()> {
    let lock = open_lock(home)?;
    let mut signalled: BTreeSet<(u32, u64)> = BTreeSet::new();
    let mut told: Vec<Holder> = Vec::new();
    let mut unseen = 0;
    while lock.try_lock().is_err() {
        let holders = holders(home);
        unseen = if holders.is_empty() { unseen + 1 } else { 0 };
        // Somebody who cannot be seen is told of after a second: for a moment it is only who lets go just now.
        if (holders != told && !holders.is_empty()) || unseen == UNSEEN_LOOKS {
            told.clone_from(&holders);
            say(&Line::Note(Note::Holders(holders.clone())));
        }
        let record = read_record(home);
        for holder in &holders {
            let signal = if spec.kill {
                Signal::KILL
            } else if is_the_node(holder, record.as_ref()) {
                continue;
            } else {
                Signal::TERM
            };
            if signalled.insert((holder.pid, holder.start_time)) || spec.kill {
                send(holder, signal);
            }
        }
        wait_for_an_end(&holders);
    }
    if let Some(starts) = spec.starts
        && let Some(mut journal) = look::read_journal(home)?.filter(|j| j.on_probation().is_some() && j.starts > starts)
    {
        journal.starts = starts;
        // Neither of these two is worth a node that cannot be stopped or started: a full disk is only told.
        if let Err(e) = step::write_journal(home, &journal) {
            say(&Line::Note(Note::Warning(e.message)));
        }
    }
    if let Some(mut record) = read_record(home).filter(|r| r.ended.is_none()) {
        record.ended = Some(spec.ended.clone().unwrap_or_else(|| "nobody saw how".to_owned()));
        if let Err(e) = write_record(&lock, &home.data_lock(), &record, false) {
            say(&Line::Note(Note::Warning(e.message)));
        }
    }
    Ok(())
}

fn is_the_node(holder: &Holder, record: Option<&Record>) -> bool {
    record.is_some_and(|r| r.pid == holder.pid && r.start_time == holder.start_time && r.death_signal)
}

/// Holders by name and number, for a line.
pub fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "a process that cannot be seen from here".to_owned();
    }
    holders.iter().map(|h| format!("{} (pid {})", h.command, h.pid)).collect::<Vec<_>>().join(", ")
}

/// Signals through a pidfd, opened before the process is looked at once more: its number cannot change owner in between.
pub fn send(holder: &Holder, signal: Signal) {
    let Some(pid) = i32::try_from(holder.pid).ok().and_then(Pid::from_raw) else { return };
    if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty())
        && proc::start_time(holder.pid) == Some(holder.start_time)
    {
        let _ = pidfd_send_signal(fd, signal);
    }
}

fn wait_for_an_end(holders: &[Holder]) {
    let fds: Vec<_> = holders
        .iter()
        .filter_map(|h| i32::try_from(h.pid).ok().and_then(Pid::from_raw))
        .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect();
    let mut polls: Vec<PollFd> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let wait = if polls.is_empty() { Duration::from_millis(50) } else { LOOK_AGAIN };
    let _ = poll(&mut polls, Timespec::try_from(wait).ok().as_ref());
}
