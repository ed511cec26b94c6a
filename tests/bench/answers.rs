//! How soon the supervisor answers while something hangs: the slowest of many requests, and how soon a stop reaches the
//! node. What hangs: nothing; a job at a FIFO; the disk, kept busy by another process; a stderr that nobody reads.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, mocknode, until};
use crate::{Row, median, ms};

/// What every answer is held to.
const BOUND: Duration = Duration::from_millis(50);

/// What hangs.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Job,
    Disk,
    Stderr,
}

/// A row per trouble.
pub fn rows() -> Vec<Row> {
    let kinds = [
        ("nothing hangs", Trouble::None),
        ("a job hangs", Trouble::Job),
        ("the disk is busy", Trouble::Disk),
        ("nobody reads stderr", Trouble::Stderr),
    ];
    kinds.into_iter().flat_map(|(name, trouble)| measure(name, trouble)).collect()
}

fn measure(name: &str, trouble: Trouble) -> Vec<Row> {
    let mut place = Place::new(&std::env::temp_dir(), "answers", &mocknode());
    let data = place.dir.join("chain");
    let log = format!("log_file={}", place.dir.join("node.log").display());
    let mut run = place.command(&["--set", &log, "run", "--datadir", data.to_str().unwrap()]);
    let (reader, mut full) = std::io::pipe().unwrap();
    if trouble == Trouble::Stderr {
        rustix::io::ioctl_fionbio(&full, true).unwrap();
        while full.write(&[b'x'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&full, false).unwrap();
        run.stderr(full.try_clone().unwrap());
    }
    let supervisor = place.spawn(run);
    place.until_up();
    if trouble == Trouble::Job {
        let history = place.home().join("wemixvisor/history.jsonl");
        assert!(Command::new("mkfifo").arg(&history).status().unwrap().success());
        fs::create_dir_all(place.home().join("data/upgrades/1000000")).unwrap();
    }
    let mut busy = None;
    if trouble == Trouble::Disk {
        let fill = place.dir.join("fill");
        let script = "while :; do dd if=/dev/zero of=\"$0\" bs=1M count=256 conv=fsync 2>/dev/null; done";
        busy = Command::new("/bin/sh").args(["-c", script]).arg(&fill).stdout(Stdio::null()).spawn().ok();
        until("the disk is written to", || fs::metadata(&fill).ok().filter(|m| m.len() > 64 << 20));
    }
    let socket = place.home().join("wemixvisor/control.sock");
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"\"status\"\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        times.push(began.elapsed());
        assert!(reply.starts_with("{\"ok\""), "{reply}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let slowest = *times.iter().max().unwrap();
    let journal = data.join("mock.journal");
    let began = Instant::now();
    let pid = Pid::from_raw(i32::try_from(supervisor).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    while !fs::read_to_string(&journal).unwrap_or_default().contains("\nterm ") {
        assert!(began.elapsed() < Duration::from_secs(30), "the node got no TERM");
        std::thread::sleep(Duration::from_micros(200));
    }
    let stopped = began.elapsed();
    if let Some(mut busy) = busy {
        let _ = busy.kill();
        let _ = busy.wait();
    }
    drop(reader);
    let row = |what: &str, time: Duration, beside: String| Row {
        what: format!("{what}, {name}"),
        ours: ms(time),
        peer: beside,
        ratio: None,
        target: Some(("< 50 ms".to_owned(), time < BOUND)),
    };
    vec![
        row("request, slowest of 300", slowest, format!("median {}", ms(median(times)))),
        row("stop asked -> TERM at the node", stopped, "-".to_owned()),
    ]
}
