//! What /proc tells: who lives, who holds a file, and whether processes make progress. It reads nothing else, so that the
//! supervisor's loop may call it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What processes have used so far: processor time in clock ticks and bytes moved to or from storage, by process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By process id: clock ticks, bytes.
    pub used: BTreeMap<u32, (u64, u64)>,
    /// Whether a thread was in uninterruptible I/O.
    pub blocked: bool,
}

impl Counters {
    /// What was used since the earlier look: clock ticks, bytes. A process that is new counts whole, one that ended not.
    pub fn since(&self, earlier: &Counters) -> (u64, u64) {
        self.used.iter().fold((0, 0), |(cpu, io), (pid, &(c, i))| {
            let (c0, i0) = earlier.used.get(pid).copied().unwrap_or((0, 0));
            (cpu + c.saturating_sub(c0), io + i.saturating_sub(i0))
        })
    }
}

/// A process as `/proc/PID/stat` shows it.
struct Stat {
    pid: u32,
    parent: u32,
    session: u32,
    state: u8,
    ticks: u64,
    start_time: u64,
}

fn stat(path: &str) -> Option<Stat> {
    let text = read_small(path)?;
    // The command may hold spaces and brackets: the fields begin behind the last one.
    let end = text.iter().rposition(|&b| b == b')')?;
    let pid = std::str::from_utf8(text.get(..text.iter().position(|&b| b == b' ')?)?).ok()?.parse().ok()?;
    let rest = std::str::from_utf8(text.get(end + 2..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    Some(Stat {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        session: u32::try_from(number(3)?).ok()?,
        state: *fields.first()?.as_bytes().first()?,
        ticks: number(11)? + number(12)?,
        start_time: number(19)?,
    })
}

/// A file of /proc that fits into one read, which makes it one consistent look.
fn read_small(path: &str) -> Option<Vec<u8>> {
    let mut text = vec![0; 4096];
    let n = fs::File::open(path).ok()?.read(&mut text).ok()?;
    text.truncate(n);
    Some(text)
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// When this process started, in clock ticks since boot; none when it does not live (a zombie does not).
pub fn start_time(pid: u32) -> Option<u64> {
    stat(&format!("/proc/{pid}/stat")).filter(|s| s.state != b'Z' && s.state != b'X').map(|s| s.start_time)
}

/// A name of this machine, made of its machine-id, which itself is not to be shown to others (machine-id(5)); none where it
/// has none, as in many containers.
pub fn machine() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").ok()?;
    let id = id.trim();
    let name = |digest: &[u8]| digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    (!id.is_empty()).then(|| name(&Sha256::digest(format!("wemixvisor {id}"))))
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// Processor time that a process has used.
pub fn processor_time(pid: u32) -> Option<Duration> {
    let ticks = stat(&format!("/proc/{pid}/stat"))?.ticks;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The kernel's id of this boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// The command name of a process.
pub fn command(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// What these processes, their sessions and all their descendants have used so far.
pub fn sample(roots: &BTreeSet<u32>) -> Counters {
    let all: Vec<Stat> = pids().filter_map(|pid| stat(&format!("/proc/{pid}/stat"))).collect();
    let mut family: BTreeSet<u32> = roots.clone();
    family.extend(all.iter().filter(|s| roots.contains(&s.session)).map(|s| s.pid));
    // Numbers wrap, so a parent may have a higher one than its child: until nobody is added.
    loop {
        let more: Vec<u32> =
            all.iter().filter(|s| family.contains(&s.parent) && !family.contains(&s.pid)).map(|s| s.pid).collect();
        if more.is_empty() {
            break;
        }
        family.extend(more);
    }
    let mut counters = Counters::default();
    for process in all.iter().filter(|s| family.contains(&s.pid)) {
        counters.used.insert(process.pid, (process.ticks, storage_bytes(process.pid)));
        counters.blocked |= blocked(process.pid);
    }
    counters
}

fn storage_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("read_bytes: ").or_else(|| line.strip_prefix("write_bytes: ")))
        .filter_map(|n| n.trim().parse::<u64>().ok())
        .sum()
}

fn blocked(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| stat(&format!("{}/stat", task.path().display()))).any(|s| s.state == b'D')
}

/// A process that holds a file open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// Command name.
    pub command: String,
}

/// Every other process that has this file open, found by device and inode, whatever group or session it moved to.
pub fn holders(file: &Path) -> Vec<Holder> {
    let Ok(meta) = fs::metadata(file) else { return Vec::new() };
    let holds = |pid: u32| {
        descriptors(pid).any(|link| fs::metadata(link).is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino())))
    };
    pids()
        .filter(|&pid| pid != std::process::id() && holds(pid))
        .filter_map(|pid| Some(Holder { pid, start_time: start_time(pid)?, command: command(pid) }))
        .collect()
}

fn descriptors(pid: u32) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether one of these processes listens on this TCP port.
pub fn listens(holders: &[Holder], port: u16) -> bool {
    let inodes: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| text.lines().filter_map(|line| listening_inode(line, port)).collect::<Vec<_>>())
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    holders.iter().flat_map(|h| descriptors(h.pid)).any(|link| {
        fs::read_link(link).is_ok_and(|target| target.to_str().is_some_and(|target| inodes.contains(target)))
    })
}

/// The inode of a line of /proc/net/tcp that is a listener (state 0A) on this port.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    if *fields.get(3)? != "0A" || u16::from_str_radix(hex, 16).ok()? != port {
        return None;
    }
    fields.get(9)?.parse().ok()
}

/// Those of these signals that this process was started with as blocked, and as ignored.
pub fn inherited_signals() -> (u64, u64) {
    let text = read_small("/proc/self/status").and_then(|text| String::from_utf8(text).ok()).unwrap_or_default();
    let mask = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigBlk:"), mask("SigIgn:"))
}

/// Whether a signal is in such a mask.
pub fn in_mask(mask: u64, signal: i32) -> bool {
    u32::try_from(signal - 1).is_ok_and(|bit| bit < 64 && mask >> bit & 1 == 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let listener = "   0: 0100007F:2169 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31337 1 0000000000000000 100 0 0 10 0";
        assert_eq!(listening_inode(listener, 0x2169), Some(31337));
        assert_eq!(listening_inode(listener, 80), None);
        assert_eq!(listening_inode(&listener.replace(" 0A ", " 01 "), 0x2169), None);
    }

    #[test]
    fn progress_counts_what_is_new_and_never_goes_below_zero() {
        let at = |list: &[(u32, u64, u64)]| Counters {
            used: list.iter().map(|&(p, c, i)| (p, (c, i))).collect(),
            blocked: false,
        };
        let before = at(&[(1, 100, 5), (2, 50, 0)]);
        assert_eq!(at(&[(1, 130, 5), (3, 7, 9)]).since(&before), (37, 9));
        assert_eq!(at(&[(1, 90, 5)]).since(&before), (0, 0));
    }

    #[test]
    fn a_process_sees_itself() {
        let me = std::process::id();
        assert!(start_time(me).is_some());
        assert!(sample(&BTreeSet::from([me])).used.contains_key(&me));
        assert!(in_mask(1 << 14, 15) && !in_mask(0, 15));
    }
}
