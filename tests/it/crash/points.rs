//! The points at which a course can be killed: found by recording a run of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::course::{Before, Course};
use super::strace::{Event, Traced};
use super::watch::Watch;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The process that made the call; the supervisor goes on.
    Itself,
    /// The supervisor; its children go on unless their death signal ends them.
    Supervisor,
    /// Both. The node is left to its death signal.
    Both,
}

/// One instant: right after the k-th call of this name by the n-th such process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub who: String,
    pub nth: usize,
    pub call: String,
    pub k: usize,
    pub victim: Victim,
}

/// Whether something outside of the process may be other after this call than before it. What only reads, and what failed,
/// leaves all as it was after the call before: to be killed there is the same.
pub fn changes(call: &str, line: &str) -> bool {
    let failed = line.contains(" = -1 ");
    match call {
        "openat" => !failed && ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| line.contains(flag)),
        "write" | "pwrite64" | "fsync" | "fdatasync" | "syncfs" | "rename" | "renameat" | "renameat2" | "symlink"
        | "symlinkat" | "unlink" | "unlinkat" | "rmdir" | "mkdir" | "mkdirat" | "link" | "linkat" | "flock"
        | "lchown" | "fchown" | "fchownat" | "chmod" | "fchmod" | "fchmodat" | "ftruncate" | "fallocate"
        | "utimensat" | "copy_file_range" | "ioctl" | "fsetxattr" | "lsetxattr" | "execve" | "prctl" | "setsid"
        | "kill" | "pidfd_send_signal" | "clone" | "clone3" | "vfork" | "sendto" | "sendmsg" => !failed,
        _ => false,
    }
}

/// The calls of one process, in order; whether each changed something.
pub type Calls = Vec<(String, bool)>;

/// What a run of this course does: the calls of each process, with who it is.
pub fn record(course: &Course) -> Vec<(String, Calls)> {
    let home = course.home().expect("what comes before it happens");
    let mut traced = Traced::start(&home, &course.command(&home), "all", ("prctl", 1, Duration::from_millis(50)));
    let mut calls: BTreeMap<u32, Calls> = BTreeMap::new();
    let mut executed: BTreeMap<u32, usize> = BTreeMap::new();
    let mut who: BTreeMap<u32, String> = BTreeMap::new();
    let mut watch = Watch::new(&home, course);
    let began = Instant::now();
    loop {
        match traced.next(Duration::from_millis(3)) {
            Some(Event::Called(pid, name, line)) => {
                let executed = executed.entry(pid).or_default();
                *executed += usize::from(name == "execve");
                // What follows the shim's own execve is the node's.
                if *executed < 2 || name == "execve" {
                    let changes = changes(&name, &line);
                    calls.entry(pid).or_default().push((name, changes));
                }
            }
            Some(Event::Pauses(pid, is, _)) => _ = who.entry(pid).or_insert(is),
            None if watch.ended(&mut traced.visor, true) => break,
            None => assert!(began.elapsed() < PATIENCE, "the recorded run never ended\n{}", home.report()),
        }
    }
    who.insert(traced.visor.pid(), "supervisor".to_owned());
    calls.into_iter().filter_map(|(pid, calls)| Some((who.get(&pid)?.clone(), calls))).collect()
}

/// All points of a recorded run. Recoveries are many: there it is the supervisor that is killed, at what it and its steps do.
pub fn points(course: &Course, recorded: &[(String, Calls)]) -> BTreeMap<Point, bool> {
    let again = matches!(course.before, Before::Killed(..));
    let mut points = BTreeMap::new();
    let mut seen: BTreeMap<(String, String, usize), usize> = BTreeMap::new();
    for (who, calls) in recorded {
        let supervisor = who == "supervisor";
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut executed, mut own) = (false, false);
        for (call, changes) in calls {
            let k = counts.entry(call).or_default();
            *k += 1;
            executed |= call == "execve";
            own |= call == "prctl";
            let who = if executed || supervisor { who } else { "spawn" };
            let nth = seen.entry((who.to_owned(), call.clone(), *k)).or_default();
            *nth += 1;
            // A child that is not executed yet resets its handlers one by one: nobody sees that.
            let boring = who == "spawn" && call == "rt_sigaction";
            // Those that only look are many, and alike; a probe reads all of /proc.
            let alike = *nth > 1 && ["look", "probe", "spawn"].contains(&who);
            let alike = alike || (who == "probe" && !changes);
            let alike = alike || (again && ["look", "probe", "spawn", "stage"].contains(&who));
            if boring || alike || matches!(call.as_str(), "exit_group" | "exit") {
                continue;
            }
            let victims: &[Victim] = match who {
                "supervisor" => &[Victim::Supervisor],
                _ if again => &[Victim::Supervisor],
                // Once its death signal is set, a worker dies with its supervisor: both die by the death of one.
                "look" | "probe" | "stage" | "spawn" => &[Victim::Supervisor],
                "shim" => &[Victim::Itself, Victim::Supervisor, Victim::Both],
                _ if own => &[Victim::Itself, Victim::Supervisor],
                _ => &[Victim::Itself, Victim::Supervisor, Victim::Both],
            };
            points.extend(victims.iter().map(|victim| {
                let point = Point { who: who.to_owned(), nth: *nth, call: call.clone(), k: *k, victim: *victim };
                (point, *changes)
            }));
        }
    }
    points
}
