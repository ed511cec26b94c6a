//! Each system call of the jobs and of the shim that touches a file is made to fail once. Whatever fails: a node runs at the
//! end, nothing half-made counts, a message names the file, and no failed sync is tried again by the same process.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::course::{Course, forward, restoring, results};
use super::strace::{Event, Traced, tracer};
use super::watch::Watch;
use super::{End, PATIENCE, Run, strace_is_missing};
use crate::support::{Home, Visor, kill, lives, until};

/// The errors that a call can fail with, for those calls that files are reached by.
fn errors(call: &str) -> &'static [&'static str] {
    match call {
        "openat" => &["EIO", "EACCES", "EMFILE", "ENOSPC"],
        "write" | "pwrite64" | "copy_file_range" | "fsync" | "fdatasync" | "syncfs" => &["EIO", "ENOSPC", "EINTR"],
        "rename" | "renameat" | "renameat2" | "symlink" | "symlinkat" | "link" | "linkat" | "mkdir" | "mkdirat" => {
            &["EIO", "ENOSPC", "EACCES"]
        }
        "unlink" | "unlinkat" | "rmdir" | "lchown" | "fchown" | "fchownat" | "fchmod" | "fchmodat" | "chmod"
        | "statx" | "newfstatat" | "readlink" | "readlinkat" => &["EIO", "EACCES"],
        "read" | "pread64" | "getdents64" | "flock" => &["EIO", "EINTR"],
        "ftruncate" | "utimensat" | "lseek" | "fallocate" | "statfs" | "fstatfs" => &["EIO"],
        _ => &[],
    }
}

/// One call that fails: the k-th of this name that the n-th such process makes for itself.
#[derive(Clone, Debug)]
pub struct Fault {
    who: &'static str,
    nth: usize,
    call: String,
    k: usize,
    error: &'static str,
}

/// Which processes of which course are looked at.
pub fn targets() -> Vec<(Course, &'static str, usize)> {
    let ends: &[(&[&str], &str)] = &[(&["committed"], "v2"), (&["failed"], "v1"), (&["reverted"], "v1")];
    let lenient = |course: Course| Course { ends, patience: 2 * PATIENCE, ..course };
    let of = |course: Course, who: &[(&'static str, usize)]| {
        who.iter().map(|(who, nth)| (lenient(course.clone()), *who, *nth)).collect::<Vec<_>>()
    };
    let there = [
        ("step Begin", 1),
        ("clear", 1),
        ("step Backup", 1),
        ("step Switch", 1),
        ("shim", 2),
        ("step Prove", 1),
        ("step Commit", 1),
    ];
    let back = [("step TurnBack", 1), ("step Back", 1), ("step TurnBack", 2), ("step Restore", 1), ("step Back", 2)];
    [of(forward(), &there), of(restoring(), &back)].concat()
}

/// All faults of one process, from a run in which it is only watched.
pub fn faults(course: &Course, who: &'static str, nth: usize) -> Vec<Fault> {
    let home = course.home().expect("what comes before it happens");
    let place = home.dir.to_str().unwrap();
    let Some((_, lines)) = attached(course, &home, who, nth, &["-e", "trace=all"]) else { return Vec::new() };
    let mut found = Vec::new();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for line in lines.iter().skip_while(|line| !line.contains('(')) {
        let Some((call, _)) = line.split_once('(') else { continue };
        let k = counts.entry(call).or_default();
        *k += 1;
        if call == "execve" {
            break;
        }
        if line.contains(place) {
            found.extend(errors(call).iter().map(|error| Fault { who, nth, call: call.to_owned(), k: *k, error }));
        }
    }
    found
}

/// Runs the course until this process has begun, and does this while it stands still.
pub fn caught<'a, T>(
    course: &Course,
    home: &'a Home,
    who: &str,
    nth: usize,
    meanwhile: impl FnOnce(u32) -> T,
) -> Option<(Visor<'a>, T)> {
    let traced = Traced::start_for_a_while(home, &course.command(home), ("prctl", 1, Duration::from_millis(30)));
    let mut met = 0;
    let began = Instant::now();
    while began.elapsed() < course.patience {
        let Some(Event::Pauses(pid, is, _)) = traced.next(Duration::from_millis(3)) else { continue };
        met += usize::from(is == who);
        if is == who && met == nth {
            kill(pid, Signal::STOP);
            traced.let_go();
            let done = meanwhile(pid);
            kill(pid, Signal::CONT);
            return Some((traced.visor, done));
        }
    }
    None
}

/// The same, and traces that process, alone, from then on. What was traced is whole once the process is gone.
fn attached<'a>(
    course: &Course,
    home: &'a Home,
    who: &str,
    nth: usize,
    words: &[&str],
) -> Option<(Visor<'a>, Vec<String>)> {
    let file = home.dir.join("calls");
    let (visor, mut strace) = caught(course, home, who, nth, |pid| {
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-y", "-s", "16", "-e", "signal=none", "-b", "execve"]).args(words);
        strace.arg("-o").arg(&file).args(["-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let strace = strace.spawn().unwrap();
        // On a slow day it may have ended before it was stopped.
        until("it is traced", || (tracer(pid) == Some(strace.id()) || !lives(pid)).then_some(()));
        strace
    })?;
    strace.wait().unwrap();
    let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
    Some((visor, text.lines().map(str::to_owned).collect()))
}

/// What the errors are called in messages.
const WORDS: &[&str] = &[
    "Input/output error",
    "No space left on device",
    "Permission denied",
    "Too many open files",
    "Interrupted system call",
];

/// Lets one call fail and judges what comes of it.
pub fn run(course: &Course, fault: &Fault) -> Run {
    let home = course.home().expect("what comes before it happens");
    let (trace, inject) =
        (format!("trace={}", fault.call), format!("inject={}:error={}:when={}", fault.call, fault.error, fault.k));
    let missed = Run { end: End::Missed, violations: Vec::new(), report: String::new() };
    let attached = attached(course, &home, fault.who, fault.nth, &["-e", &trace, "-e", &inject]);
    let Some((mut visor, lines)) = attached else { return missed };
    let failed: Vec<&String> = lines.iter().filter(|line| line.contains("(INJECTED)")).collect();
    let mut watch = Watch::new(&home, course);
    let began = Instant::now();
    while began.elapsed() < course.patience && visor.lives() && !watch.ended(&mut visor, false) {
        std::thread::sleep(Duration::from_millis(3));
    }
    let mut violations: BTreeSet<String> = watch.finish(&mut visor, true).into_iter().collect();
    let log = home.log();
    let told: Vec<&str> = log.lines().filter(|line| WORDS.iter().any(|word| line.contains(word))).collect();
    let place = home.dir.to_str().unwrap();
    // What a backup holds goes by the backup's name.
    let named = |line: &str| [place, "/proc/", "backup v2-"].iter().any(|name| line.contains(name));
    for line in told.iter().filter(|line| !named(line)) {
        violations.insert(format!("no file is named: {line}"));
    }
    if told.is_empty()
        && !failed.is_empty()
        && !results(&home).iter().all(|result| result == "committed")
        && course.name == "forward"
    {
        violations.insert("it was taken back, and nobody was told of the error".to_owned());
    }
    let sync = ["fsync", "fdatasync", "syncfs"].contains(&fault.call.as_str()) && fault.error != "EINTR";
    if let (true, Some(first)) = (sync, failed.first()) {
        let file = |line: &str| line.split_once('<').and_then(|(_, rest)| Some(rest.split_once('>')?.0.to_owned()));
        let after = lines.iter().skip_while(|line| line != first).skip(1);
        if after.clone().any(|line| file(line) == file(first)) {
            violations.insert(format!("a failed sync is tried again: {}", lines.join(" | ")));
        }
    }
    let violations: Vec<String> =
        violations.into_iter().map(|violation| format!("{} {fault:?} {failed:?}: {violation}", course.name)).collect();
    let report = if violations.is_empty() { String::new() } else { home.report() };
    let end = if failed.is_empty() { End::Missed } else { End::Reached };
    Run { end, violations, report }
}

#[test]
fn a_system_call_that_fails_once_costs_neither_the_node_nor_the_reason() {
    if strace_is_missing() {
        return;
    }
    let mut dice = super::Dice(super::seed());
    let mut order = Vec::new();
    for (i, (course, who, nth)) in targets().into_iter().enumerate() {
        let mut found = faults(&course, who, nth);
        found.retain(|fault| super::wanted(&format!("{} {fault:?}", course.name)));
        order.extend(found.into_iter().map(|fault| (dice.roll(), i, course.clone(), fault)));
    }
    order.sort_by_key(|(at, ..)| *at);
    let work = |(_, _, course, fault): &(u64, usize, Course, Fault)| run(course, fault);
    super::try_all("calls that fail", &order, Duration::from_secs(25), work);
}
