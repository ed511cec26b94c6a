//! What a supervisor costs while nothing happens: memory, processor time and wake-ups over a minute, with and without a
//! plan that waits for a far block, beside runit's `runsv`.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, mocknode, until};
use crate::{Row, ms};

const MINUTE: Duration = Duration::from_secs(60);

/// The most anonymous memory that a supervisor may have, in KiB.
const ANONYMOUS_MAX: u64 = 256;

/// What a process has used by now.
struct Used {
    wakeups: u64,
    processor: Duration,
    /// By its children that have ended, in ticks of 10 ms.
    children: u64,
}

/// Figures of memory, then of a minute.
pub fn rows() -> Vec<Row> {
    println!("a minute of idling follows");
    let node = mocknode();
    let dir = std::env::temp_dir();
    let supervised = |name: &str, planned: bool| {
        let mut place = Place::new(&dir, name, &node);
        let data = place.dir.join("chain");
        if planned {
            place.release("far");
        }
        let pid = place.spawn(place.command(&["run", "--datadir", data.to_str().unwrap(), "--period", "1s"]));
        place.until_up();
        if planned {
            assert!(place.command(&["upgrade", "schedule", "far", "100000000"]).status().unwrap().success());
        }
        (place, pid)
    };
    let (_planned, with) = supervised("with", true);
    let (_free, without) = supervised("without", false);
    let runsv = Runsv::start();
    // What a start leaves to be done is over.
    std::thread::sleep(Duration::from_secs(3));
    let pids = [Some(with), Some(without), runsv.as_ref().map(|runsv| runsv.pid)];
    let before = pids.map(|pid| pid.map(used));
    std::thread::sleep(MINUTE);
    let after = pids.map(|pid| pid.map(used));

    let memory = pids.map(|pid| pid.map(|pid| (rollup(pid, "Rss:"), rollup(pid, "Anonymous:"))));
    let mut rows = Vec::new();
    let peer = memory[2];
    for (name, ours) in [("with a plan", memory[0]), ("without a plan", memory[1])] {
        let (rss, anonymous) = ours.unwrap();
        rows.push(Row {
            what: format!("resident memory, {name}"),
            ours: format!("{rss} KiB"),
            peer: peer.map_or_else(|| "no runsv here".to_owned(), |(rss, _)| format!("runsv {rss} KiB")),
            ratio: peer.map(|(theirs, _)| rss as f64 / theirs as f64),
            target: peer.map(|(theirs, _)| ("<= runsv".to_owned(), rss <= theirs)),
        });
        rows.push(Row {
            what: format!("anonymous memory, {name}"),
            ours: format!("{anonymous} KiB"),
            peer: peer.map_or_else(String::new, |(_, anonymous)| format!("runsv {anonymous} KiB")),
            ratio: peer.map(|(_, theirs)| anonymous as f64 / theirs as f64),
            target: Some((format!("<= {ANONYMOUS_MAX} KiB"), anonymous <= ANONYMOUS_MAX)),
        });
    }
    let spent = |which: usize| {
        let (before, after) = (before[which].as_ref()?, after[which].as_ref()?);
        Some((after.wakeups - before.wakeups, after.processor - before.processor, after.children - before.children))
    };
    let peer = spent(2);
    for (name, ours) in [("a plan far away", spent(0)), ("no plan", spent(1))] {
        let (wakeups, processor, children) = ours.unwrap();
        rows.push(Row {
            what: format!("wake-ups in a minute, {name}"),
            ours: wakeups.to_string(),
            peer: peer.map_or_else(String::new, |(wakeups, ..)| format!("runsv {wakeups}")),
            ratio: None,
            target: None,
        });
        rows.push(Row {
            what: format!("processor time in a minute, {name}"),
            ours: format!("{} + jobs {} ms", ms(processor), children * 10),
            peer: peer.map_or_else(String::new, |(_, processor, _)| format!("runsv {}", ms(processor))),
            ratio: None,
            target: None,
        });
    }
    rows
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

/// A figure of a file of `name: figure` lines.
fn figure(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn rollup(pid: u32, name: &str) -> u64 {
    figure(&read(pid, "smaps_rollup"), name)
}

fn used(pid: u32) -> Used {
    let stat = read(pid, "stat");
    // After the name: field 3 of proc(5) is the first; 16 and 17 are the children's.
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    let nanoseconds = read(pid, "schedstat").split(' ').next().unwrap().parse().unwrap();
    Used {
        wakeups: figure(&read(pid, "status"), "voluntary_ctxt_switches:"),
        processor: Duration::from_nanos(nanoseconds),
        children: ticks(16) + ticks(17),
    }
}

/// runit's supervisor with a service that does nothing.
struct Runsv {
    child: std::process::Child,
    dir: std::path::PathBuf,
    pid: u32,
}

impl Runsv {
    fn start() -> Option<Runsv> {
        let dir = std::env::temp_dir().join(format!("wemixvisor-bench-{}-runsv", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let run = dir.join("run");
        fs::write(&run, "#!/bin/sh\nexec sleep 100000\n").unwrap();
        fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new("runsv");
        let child = command.arg(&dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = child else {
            let _ = fs::remove_dir_all(&dir);
            return None;
        };
        until("runsv has started its service", || {
            fs::read_to_string(dir.join("supervise/stat")).ok().filter(|s| s == "run\n")
        });
        Some(Runsv { pid: child.id(), child, dir })
    }
}

impl Drop for Runsv {
    fn drop(&mut self) {
        // TERM ends its service first.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
