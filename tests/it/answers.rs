//! The supervisor answers whatever hangs: a job on a dead disk (here a FIFO that nobody writes), a stderr that nobody
//! reads, a disk that others keep busy, a client that says nothing.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{Home, kill, take_env, until};

#[test]
fn while_a_job_hangs_status_deaths_and_stop_are_answered() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let before = visor.until_up();
    let history = home.own("history.jsonl");
    assert!(Command::new("mkfifo").arg(&history).status().unwrap().success());
    home.plan("v2", 1_000_000);
    until("the job hangs at the FIFO", || hangs_at_fifo(visor.pid()).then_some(()));
    // A client of ours would read the FIFO too: the socket is asked by hand.
    let ask = || {
        let mut stream = UnixStream::connect(home.own("control.sock")).unwrap();
        stream.write_all(b"\"status\"\n").unwrap();
        let reply: serde_json::Value = serde_json::from_reader(stream).unwrap();
        reply["ok"].clone()
    };
    assert_eq!(ask()["state"], "running");
    let node = u32::try_from(before["pid"].as_u64().unwrap()).unwrap();
    kill(node, Signal::KILL);
    until("the node runs again", || Some(ask()).filter(|s| s["state"] == "running" && s["pid"] != before["pid"]));
    assert!(hangs_at_fifo(visor.pid()), "the job hangs all the while");
    fs::remove_file(&history).unwrap();
    visor.stop();
}

/// Whether a child of this process waits in the open of a FIFO.
fn hangs_at_fifo(parent: u32) -> bool {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.split_whitespace().any(|pid| {
        let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        place.contains("fifo") || place.contains("partner")
    })
}

#[test]
fn a_stderr_that_nobody_reads_stops_nothing() {
    let home = Home::new();
    let args = home.node_args();
    let (reader, writer) = std::io::pipe().unwrap();
    // Full before it begins: not a byte more goes in.
    let mut full = writer.try_clone().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while full.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let log = home.dir.join("node.log");
    let words =
        ["--set", &format!("log_file={}", log.display()), "--set", "restart_backoff=0", "run"].map(str::to_owned);
    let words: Vec<&str> = words.iter().chain(&args).map(String::as_str).collect();
    let mut child = home.command(&words).stderr(Stdio::from(writer)).stdout(Stdio::null()).spawn().unwrap();
    let up = home.until_status("the node answers", |s| s["state"] == "running" && s["head_known"] == true);
    kill(u32::try_from(up["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    home.until_status("the node runs again", |s| s["state"] == "running" && s["pid"] != up["pid"]);
    kill(child.id(), Signal::TERM);
    let end = until("it ends", || child.try_wait().unwrap());
    assert!(end.success(), "{end}");
    drop(reader);
}

#[test]
fn a_supervisor_without_a_descriptor_to_spare_keeps_its_node() {
    let home = Home::new();
    let args = home.node_args();
    // As few as the supervisor needs while nothing happens: jobs and clients find none left.
    let script = format!(
        "ulimit -n 24; exec \"$0\" --set height_poll_interval=100ms run \"$@\" 2> '{}'",
        home.dir.join("err").display()
    );
    let words: Vec<&str> =
        ["-c", &script, crate::support::wemixvisor()].into_iter().chain(args.iter().map(String::as_str)).collect();
    let mut shell = Command::new("/bin/sh");
    shell.args(words).stdin(Stdio::null()).stdout(File::create(home.dir.join("out")).unwrap());
    take_env(&mut shell, &home.command(&[]));
    let mut child = shell.spawn().unwrap();
    let up = home.until_status("the node answers", |s| s["state"] == "running");
    let crowd: Vec<UnixStream> = (0..40).filter_map(|_| UnixStream::connect(home.own("control.sock")).ok()).collect();
    home.until_status("a client is served again when those that say nothing were let go", |s| s["pid"] == up["pid"]);
    drop(crowd);
    kill(child.id(), Signal::TERM);
    let end = until("it ends", || child.try_wait().unwrap());
    assert!(end.success(), "{end}");
}
