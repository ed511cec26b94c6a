//! What a download costs: its memory, what hashing adds to writing, and how soon the supervisor answers meanwhile. The server
//! is a thread of this program, the file a script of 1 GiB.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::place::{Place, mocknode, until};
use crate::{Row, median, ms, ratio};

const MIB: usize = 1 << 20;

/// How large the file is, in MiB.
const SIZE: usize = 1024;

/// How long a line of 4 Gbit/s takes for a MiB.
const LINE: Duration = Duration::from_millis(2);

/// How often each way is measured; the time in the middle counts.
const TIMES: usize = 5;

/// What a download may need beside what the supervisor needs, in KiB.
const MEMORY_MAX: u64 = 4 << 10;

/// Where it is downloaded to: beside what the build makes, which lies on a disk.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// All figures of downloads.
pub fn rows() -> Vec<Row> {
    let scratch = Path::new(SCRATCH);
    fs::create_dir_all(scratch).unwrap();
    let server = Server::start();
    println!("1 GiB is fetched {} times", 2 * 3 * TIMES + 1);
    let node = mocknode();
    let mut rows = pace(scratch, &node, &server);
    rows.extend(beside(&node, &server));
    rows
}

/// Serves one file to everybody.
struct Server {
    url: String,
    sum: String,
}

impl Server {
    fn start() -> Server {
        let mut block = b"#!/bin/sh\necho 1.0; exit\n".to_vec();
        // Nothing that packs or repeats well is between here and there; what it is does not matter.
        block.extend((0..MIB - block.len()).map(|n| (n * n % 251) as u8));
        let mut hasher = Sha256::new();
        for _ in 0..SIZE {
            hasher.update(&block);
        }
        let sum = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let block = Arc::new(block);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let block = Arc::clone(&block);
                std::thread::spawn(move || serve(stream, &block));
            }
        });
        Server { url, sum }
    }
}

fn serve(stream: TcpStream, block: &[u8]) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let as_by_a_line = lines.next()?.ok()?.contains("/line");
    while !lines.next()?.ok()?.is_empty() {}
    let mut stream = stream;
    let began = Instant::now();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", SIZE * MIB).ok()?;
    for sent in 1..=SIZE {
        stream.write_all(block).ok()?;
        if as_by_a_line {
            std::thread::sleep((LINE * u32::try_from(sent).unwrap()).saturating_sub(began.elapsed()));
        }
    }
    Some(())
}

/// With a checksum, without one, and by curl: as fast as it goes, which takes more than two cores, and as by a line.
fn pace(scratch: &Path, node: &Path, server: &Server) -> Vec<Row> {
    let place = Place::new(scratch, "fetch", node);
    let ours = |url: &str| {
        let mut prepare =
            place.command(&["--set", "unsafe_skip_checksum=true", "upgrade", "prepare", "big", "--url", url]);
        let began = Instant::now();
        // What the checks after it find does not matter here.
        prepare.status().unwrap();
        let time = began.elapsed();
        let release = place.home().join("wemixvisor/upgrades/big");
        assert_eq!(fs::metadata(release.join("bin/node")).unwrap().len(), (SIZE * MIB) as u64);
        fs::remove_dir_all(release).unwrap();
        time
    };
    let file = place.dir.join("curl");
    let curl = |url: &str| {
        let script = "curl -s -o \"$0\" \"$1\" && sync \"$0\"";
        let began = Instant::now();
        let fetched = Command::new("/bin/sh").args(["-c", script]).arg(&file).arg(url).status();
        let time = began.elapsed();
        let _ = fs::remove_file(&file);
        fetched.is_ok_and(|status| status.success()).then_some(time)
    };
    let mut rows = Vec::new();
    for (what, path) in
        [("1 GiB from loopback to disk, hashed", "file"), ("the same, as by a line of 4 Gbit/s", "line")]
    {
        let url = format!("{}/{path}", server.url);
        let (mut hashed, mut plain, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TIMES {
            hashed.push(ours(&format!("{url}?checksum={}", server.sum)));
            plain.push(ours(&url));
            others.extend(curl(&url));
        }
        let (hashed, plain) = (median(hashed), median(plain));
        rows.push(Row {
            what: what.to_owned(),
            ours: ms(hashed),
            peer: format!("not hashed {}", ms(plain)),
            ratio: ratio(hashed, plain),
            target: Some(("<= 1.1".to_owned(), hashed.as_secs_f64() <= plain.as_secs_f64() * 1.1)),
        });
        if others.len() == TIMES {
            let curl = median(others);
            let (peer, ratio) = (format!("curl and sync {}", ms(curl)), ratio(hashed, curl));
            rows.push(Row { what: "the same".to_owned(), ours: ms(hashed), peer, ratio, target: None });
        }
    }
    rows
}

/// What a supervisor and its worker need, and how the supervisor answers, while it fetches.
fn beside(node: &Path, server: &Server) -> Vec<Row> {
    // The path of its socket must not be long.
    let mut place = Place::new(&std::env::temp_dir(), "fetching", node);
    let data = place.dir.join("chain");
    let allow = ["--set", "allow_download_binaries=true", "run", "--datadir", data.to_str().unwrap()];
    let supervisor = place.spawn(place.command(&allow));
    place.until_up();
    let idle = figure(supervisor, "VmRSS:").unwrap();
    let url = format!("{}/file", server.url);
    let planned = ["upgrade", "schedule", "big", "100000000", "--url", &url, "--checksum", &server.sum];
    assert!(place.command(&planned).status().unwrap().success());
    let socket = place.home().join("wemixvisor/control.sock");
    let binary = place.home().join("wemixvisor/upgrades/big/bin/node");
    let (mut peak, mut slowest, mut requests) = (0, Duration::ZERO, 0);
    until("it is fetched", || {
        for _ in 0..5 {
            let began = Instant::now();
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(b"\"status\"\n").unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            slowest = slowest.max(began.elapsed());
            requests += 1;
            peak = peak.max(workers(supervisor).into_iter().filter_map(|pid| figure(pid, "VmHWM:")).max().unwrap_or(0));
        }
        binary.exists().then_some(())
    });
    let during = figure(supervisor, "VmHWM:").unwrap();
    vec![
        Row {
            what: "peak memory of the job that fetches 1 GiB".to_owned(),
            ours: format!("{peak} KiB"),
            peer: format!("idle supervisor {idle} KiB (peak {during} KiB)"),
            ratio: None,
            target: Some((format!("<= idle + {MEMORY_MAX} KiB"), peak <= idle + MEMORY_MAX)),
        },
        Row {
            what: format!("request, slowest of {requests}, while it fetches"),
            ours: ms(slowest),
            peer: "-".to_owned(),
            ratio: None,
            target: Some(("< 50 ms".to_owned(), slowest < Duration::from_millis(50))),
        },
    ]
}

fn workers(supervisor: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap_or_default();
    let is_worker = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"worker")
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_worker).collect()
}

/// A figure of a process in KiB; none when it is gone.
fn figure(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
