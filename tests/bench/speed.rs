//! How fast things go: from a plan to its notice, from a node's death to the next exec, `status`, and the start.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::place::{Place, mocknode, now};
use crate::{Row, median, ms, ratio};

/// The word that makes this program a node which tells when it was executed.
pub const AS_NODE: &str = "as-node";

/// How long such a node lives before it fails: so long that its supervisor has come to rest.
const LIFE: Duration = Duration::from_millis(30);

/// A node that tells when it began and when it ends; `once`: as a command, which is not started again.
pub fn be_node(words: &[String]) {
    let began = now();
    let [path, kind] = words else { panic!("{AS_NODE} PIPE once|again") };
    let mut pipe = File::options().write(true).open(path).unwrap();
    if kind == "once" {
        return pipe.write_all(format!("{} 0\n", began.as_nanos()).as_bytes()).unwrap();
    }
    std::thread::sleep(LIFE);
    // The pipe is written before the end is taken: only the end itself is between.
    let line = format!("{} {}\n", began.as_nanos(), now().as_nanos());
    pipe.write_all(line.as_bytes()).unwrap();
    std::process::exit(1);
}

/// All figures of time.
pub fn rows() -> Vec<Row> {
    let disk = std::env::temp_dir();
    let memory = Path::new("/dev/shm");
    let forked = fork_exec(200);
    let mut rows = vec![noticed(false), noticed(true)];
    let (disk_death, bare) = death(&disk);
    let sync = record_sync(&disk);
    let less = disk_death.saturating_sub(sync);
    let row = |what: &str, ours: Duration, peer: &str, theirs: Duration, target: Option<f64>| Row {
        what: what.to_owned(),
        ours: ms(ours),
        peer: format!("{peer} {}", ms(theirs)),
        ratio: ratio(ours, theirs),
        target: target.map(|most| (format!("< {most}"), ours.as_secs_f64() < most * theirs.as_secs_f64())),
    };
    let forked_true = "fork+exec of true";
    rows.push(row("node died -> next exec", disk_death, forked_true, forked, None));
    rows.push(row("the run record's sync to disk", sync, forked_true, forked, None));
    rows.push(row("node died -> next exec, less that sync", less, forked_true, forked, Some(2.0)));
    rows.push(row("the same", less, "bare respawn of that node", bare, None));
    if memory.is_dir() {
        let (death, bare) = death(memory);
        rows.push(row("node died -> next exec, home in memory", death, forked_true, forked, Some(2.0)));
        rows.push(row("the same", death, "bare respawn of that node", bare, None));
    }
    let (status, alone) = status();
    rows.push(row("status", status, forked_true, alone, Some(1.5)));
    for (name, base) in [("", disk.as_path()), (", home in memory", memory)] {
        if base.is_dir() {
            let start = start(base);
            rows.push(Row {
                what: format!("start -> the node's exec{name}"),
                ours: ms(start),
                peer: format!("{forked_true} {}", ms(forked)),
                ratio: ratio(start, forked),
                target: Some(("< 10 ms".to_owned(), start < Duration::from_millis(10))),
            });
        }
    }
    rows
}

/// One command from before its start to after its end.
fn whole(command: &mut Command) -> Duration {
    let began = Instant::now();
    let end = command.status().unwrap();
    let took = began.elapsed();
    assert!(end.success(), "{command:?} ended with {end}");
    took
}

fn true_command() -> Command {
    let mut command = Command::new("/bin/true");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn fork_exec(times: usize) -> Duration {
    median((0..times).map(|_| whole(&mut true_command())).collect())
}

/// `status` and `true` in turn, so that both meet the same machine.
fn status() -> (Duration, Duration) {
    let mut place = Place::new(&std::env::temp_dir(), "status", &mocknode());
    let data = place.dir.join("chain");
    place.spawn(place.command(&["run", "--datadir", data.to_str().unwrap()]));
    place.until_up();
    let pairs = (0..200).map(|_| (whole(&mut place.command(&["status"])), whole(&mut true_command())));
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs.unzip();
    (median(ours), median(theirs))
}

/// A pipe with a name, and what nodes wrote into it: when they began, and when they ended.
fn told(dir: &Path) -> (PathBuf, Receiver<(Duration, Duration)>) {
    let path = dir.join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // Open for writing too: it has no end when a node ends.
    let pipe = File::options().read(true).write(true).open(&path).unwrap();
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let line = line.unwrap();
            let times: Vec<u64> = line.split(' ').map(|time| time.parse().unwrap()).collect();
            if send.send((Duration::from_nanos(times[0]), Duration::from_nanos(times[1]))).is_err() {
                return;
            }
        }
    });
    (path, receive)
}

const PATIENCE: Duration = Duration::from_secs(20);

/// From a node's end to the next one's beginning: under the supervisor, and when this program itself starts the next one.
fn death(base: &Path) -> (Duration, Duration) {
    let me = std::env::current_exe().unwrap();
    let gaps = |times: &Receiver<(Duration, Duration)>| {
        let all: Vec<_> = (0..80).map(|_| times.recv_timeout(PATIENCE).expect("the next node begins")).collect();
        median(all.windows(2).map(|pair| pair[1].0 - pair[0].1).collect())
    };
    let mut place = Place::new(base, "death", &me);
    let (pipe, times) = told(&place.dir);
    let settings = ["--set", "restart_backoff=0", "--set", "max_restarts=1000000", "run", AS_NODE];
    let words: Vec<&str> = settings.into_iter().chain([pipe.to_str().unwrap(), "again"]).collect();
    place.spawn(place.command(&words));
    let ours = gaps(&times);
    drop(place);

    let place = Place::new(base, "bare", &me);
    let (pipe, times) = told(&place.dir);
    let node = place.dir.join("node");
    let mut bare = Vec::new();
    let mut last = None;
    for _ in 0..80 {
        let mut command = Command::new(&node);
        command.arg(AS_NODE).arg(&pipe).arg("again").env_clear().stdin(Stdio::null());
        let _ = command.status().unwrap();
        let (began, ended) = times.recv_timeout(PATIENCE).unwrap();
        bare.extend(last.map(|last| began - last));
        last = Some(ended);
    }
    (ours, median(bare))
}

/// The one write of a start that waits for the disk: a run record, written anew in place and synced.
fn record_sync(base: &Path) -> Duration {
    let path = base.join(format!("wemixvisor-bench-{}-record", std::process::id()));
    let file = File::create(&path).unwrap();
    let record = vec![b'x'; 300];
    let write = |_| {
        use std::os::unix::fs::FileExt;
        let began = Instant::now();
        file.set_len(0).unwrap();
        file.write_all_at(&record, 0).unwrap();
        file.sync_data().unwrap();
        let took = began.elapsed();
        std::thread::sleep(LIFE);
        took
    };
    let times = (0..80).map(write).collect();
    fs::remove_file(path).unwrap();
    median(times)
}

/// From the start of the supervisor to the exec of its node.
fn start(base: &Path) -> Duration {
    let me = std::env::current_exe().unwrap();
    let place = Place::new(base, "start", &me);
    let (pipe, times) = told(&place.dir);
    let once = |_| {
        let began = now();
        let end = place.command(&["run", AS_NODE, pipe.to_str().unwrap(), "once"]).status().unwrap();
        assert!(end.success(), "the supervisor ended with {end}");
        times.recv_timeout(PATIENCE).unwrap().0 - began
    };
    median((0..40).map(once).collect())
}

/// How long after its directory a plan file comes.
const DISK: Duration = Duration::from_millis(10);

/// From a plan file in its place to the line in the log that tells of it. `below`: in a directory that is made with it, as
/// `upgrade schedule` does; otherwise in place of the plan before, as nodes do.
fn noticed(below: bool) -> Row {
    let mut place = Place::new(&std::env::temp_dir(), "noticed", &mocknode());
    place.release("far");
    let data = place.dir.join("chain");
    let mut command = place.command(&["run", "--datadir", data.to_str().unwrap(), "--period", "1s"]);
    command.stderr(Stdio::piped());
    place.spawn(command);
    let log = place.child().stderr.take().unwrap();
    let lines = heard(log);
    place.until_up();
    let plans = place.home().join("data");
    let mut times = Vec::new();
    for number in 0..50u64 {
        // Apart, as plans are: what follows a plan (its release is checked, the head is asked for) is over.
        std::thread::sleep(Duration::from_millis(200));
        let height = 100_000_000 + number;
        let text = format!("{{\"name\": \"far\", \"height\": {height}}}");
        let dir = if below { plans.join("upgrades").join(height.to_string()) } else { plans.clone() };
        if below && number > 0 {
            let before = plans.join("upgrades").join((height - 1).to_string());
            fs::remove_dir_all(before).unwrap();
            std::thread::sleep(Duration::from_millis(200));
        }
        fs::create_dir_all(&dir).unwrap();
        if below {
            // As long as a disk may take between the two; the look that the directory asked for is over by then.
            std::thread::sleep(DISK);
        }
        let mut tmp = File::create(dir.join("tmp")).unwrap();
        tmp.write_all(text.as_bytes()).unwrap();
        tmp.sync_all().unwrap();
        fs::rename(dir.join("tmp"), dir.join("upgrade-info.json")).unwrap();
        let began = now();
        let told = format!("is planned for block {height}");
        let at = loop {
            let (at, line) = lines.recv_timeout(PATIENCE).expect("the plan is noticed");
            if line.contains(&told) {
                break at;
            }
        };
        times.push(at.saturating_sub(began));
    }
    let time = median(times);
    Row {
        what: format!("plan file -> noticed{}", if below { ", 10 ms after its directory" } else { "" }),
        ours: ms(time),
        peer: "-".to_owned(),
        ratio: None,
        target: Some(("< 5 ms".to_owned(), time < Duration::from_millis(5))),
    }
}

/// The lines of a log, each with the time when it came.
fn heard(log: impl Read + Send + 'static) -> Receiver<(Duration, String)> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines() {
            let Ok(line) = line else { return };
            // A reader that is gone: nobody wants the rest, but it must be read.
            let _ = send.send((now(), line));
        }
    });
    receive
}
