//! A supervisor under strace: which system calls it and its children make, and a pause right after a chosen one, in which the
//! test looks around and kills whom it likes. strace counts calls per name and per thread and cannot tell one worker from
//! another; so *every* process pauses after its k-th call of that name, and the test looks up who it is.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Visor, kill, under, until};

/// What strace told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This process (or thread) made this call; the whole line follows.
    Called(u32, String, String),
    /// It pauses right after the call that was asked for, at least until then, and this is who it is.
    Pauses(u32, String, SystemTime),
}

/// A supervisor under strace. It is our own child: the tracer is a grandchild that ends when its last tracee does.
pub struct Traced<'a> {
    /// The supervisor.
    pub visor: Visor<'a>,
    events: Receiver<Event>,
}

/// Whether processes can be traced here at all.
pub fn available() -> bool {
    Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output().is_ok_and(|output| output.status.success())
}

impl<'a> Traced<'a> {
    /// Starts this command under strace. `calls` are traced; right after its `k`-th of `pause_after` each process pauses for
    /// so long.
    pub fn start(home: &'a Home, command: &Command, calls: &str, pause: (&str, usize, Duration)) -> Traced<'a> {
        // Calls that are not traced cost nothing then; but no tracee may outlive its tracer.
        Traced::with(home, command, calls, pause, calls != "all")
    }

    /// The same for a tracer that ends before its tracees.
    pub fn start_for_a_while(home: &'a Home, command: &Command, pause: (&str, usize, Duration)) -> Traced<'a> {
        Traced::with(home, command, pause.0, pause, false)
    }

    fn with(
        home: &'a Home,
        command: &Command,
        calls: &str,
        (pause_after, k, pause): (&str, usize, Duration),
        filter: bool,
    ) -> Traced<'a> {
        let fifo = home.dir.join("strace");
        let _ = fs::remove_file(&fifo);
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let trace = format!("trace={calls}");
        let inject = format!("inject={pause_after}:delay_exit={}:when={k}", pause.as_micros());
        let mut words = vec!["strace", "-D", "-f", "-qq", "-ttt", "-y", "-s", "64", "-e", "signal=none"];
        words.extend(["-e", &trace, "-e", &inject, "-o", fifo.to_str().unwrap()]);
        if filter {
            words.push("--seccomp-bpf");
        }
        let visor = home.spawn(under(&words, command));
        let supervisor = visor.pid();
        let (tell, events) = channel();
        // Read to its end, whoever listens: a full pipe would stop the tracer, and all with it.
        std::thread::spawn(move || {
            let lines = BufReader::new(File::open(fifo).unwrap()).split(b'\n').map_while(Result::ok);
            for line in lines {
                let line = String::from_utf8_lossy(&line);
                let Some((pid, time, rest)) = split(&line) else { continue };
                if let Some(name) = name(rest) {
                    let _ = tell.send(Event::Called(pid, name.to_owned(), rest.to_owned()));
                }
                if rest.ends_with("(DELAYED)") {
                    let who = if pid == supervisor { "supervisor".to_owned() } else { who(pid) };
                    let _ = tell.send(Event::Pauses(pid, who, time + pause));
                }
            }
        });
        Traced { visor, events }
    }

    /// Ends the tracer: all go on without it.
    pub fn let_go(&self) {
        if let Some(tracer) = tracer(self.visor.pid()) {
            kill(tracer, Signal::KILL);
        }
        until("the tracer is gone", || tracer(self.visor.pid()).is_none().then_some(()));
    }

    /// The next event, if one comes within this time. An end of the trace is as quiet as no event.
    pub fn next(&self, patience: Duration) -> Option<Event> {
        match self.events.recv_timeout(patience) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(patience);
                None
            }
        }
    }
}

/// Who traces this process, if anybody does.
pub fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid != 0)
}

/// `PID TIME REST`; the time is that of the call's begin or, where another came in between, of its end.
fn split(line: &str) -> Option<(u32, SystemTime, &str)> {
    let (pid, rest) = line.split_once(' ')?;
    let (time, rest) = rest.trim_start().split_once(' ')?;
    let time = Duration::try_from_secs_f64(time.parse().ok()?).ok()?;
    Some((pid.parse().ok()?, SystemTime::UNIX_EPOCH + time, rest))
}

/// The name of the call that begins here.
fn name(rest: &str) -> Option<&str> {
    let name = rest.split_once('(')?.0;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(name)
}

/// A child by its job: `step Switch`, `clear`, `shim`, `node`; `spawn` before it was executed. Workers have their job on
/// stdin, in a file of which we get a description of our own.
fn who(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("/proc/self/exe", Some("exec")) => "shim".to_owned(),
        ("/proc/self/exe", Some("worker")) => {
            let text = fs::read(format!("/proc/{pid}/fd/0")).unwrap_or_default();
            let spec: Value = serde_json::from_slice(&text).unwrap_or_default();
            job(&spec["job"])
        }
        (program, _) if program.ends_with("/bin/node") => "node".to_owned(),
        (program, _) if program.ends_with("wemixvisor") => "spawn".to_owned(),
        (program, _) => program.rsplit('/').next().unwrap_or_default().to_owned(),
    }
}

/// `"Look"` -> `look`, `{"Step": {"Switch": …}}` -> `step Switch`.
fn job(job: &Value) -> String {
    let variant = |value: &Value| match value {
        Value::String(name) => name.clone(),
        Value::Object(fields) => fields.keys().next().cloned().unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => String::new(),
    };
    match variant(job).as_str() {
        "Step" => format!("step {}", variant(&job["Step"])),
        other => other.to_lowercase(),
    }
}
