//! Children: how one is started, signalled, and heard. Who they are knows the machine, who ended tells the reactor's reaper.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open, pidfd_send_signal,
    waitid,
};

use super::notify;
use super::output::Output;
use crate::job::shim::Spec as ShimSpec;
use crate::job::{Line, Spec};

/// How much of one child's reports is read in one turn of the loop.
const READ_MAX: usize = 64 << 10;

/// The longest report line that is taken; longer ones cannot be ours.
const LINE_MAX: usize = 32 << 20;

/// This program, as the kernel knows it: also when its file was replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// This program as somebody else's: without what a service manager meant for the supervisor alone.
fn ourselves() -> Command {
    let mut command = Command::new(OURSELVES);
    for variable in notify::VARIABLES {
        command.env_remove(variable);
    }
    command
}

fn shim(spec: &ShimSpec) -> std::io::Result<Command> {
    let mut command = ourselves();
    command.arg("exec").arg(serde_json::to_string(spec)?);
    Ok(command)
}

/// A child that was started.
pub struct Child {
    pid: Pid,
    /// Wakes the loop at its end and carries signals; none where seccomp denies pidfds.
    pidfd: Option<OwnedFd>,
    reports: Option<File>,
    seen: Vec<u8>,
    /// Whether the shim said that exec is next.
    pub recorded: bool,
    /// The last word of a job.
    pub result: Option<Line>,
    /// What a hook writes.
    pub output: Option<Output>,
}

/// What was read from a child's reports.
pub struct Heard {
    /// The lines.
    pub lines: Vec<Line>,
    /// Whether the end was reached just now.
    pub closed: bool,
}

impl Child {
    /// Starts a job. `lock`, when given, is inherited: a step of a supervisor that was killed is gone before another begins.
    pub fn job(spec: &Spec, lock: Option<&File>) -> std::io::Result<Child> {
        let text = serde_json::to_vec(spec)?;
        // A memfd, not a pipe: it takes a spec of any length without waiting.
        let mut memory = File::from(rustix::fs::memfd_create("job", rustix::fs::MemfdFlags::CLOEXEC)?);
        memory.write_all(&text)?;
        memory.rewind()?;
        let (reports, write) = std::io::pipe()?;
        // `dup` makes a descriptor that is inherited; it is closed again right after the start.
        let inherited = lock.map(rustix::io::dup).transpose()?;
        let child = ourselves().arg("worker").stdin(Stdio::from(memory)).stdout(Stdio::from(write)).spawn()?;
        drop(inherited);
        Ok(Child::new(&child, OwnedFd::from(reports)))
    }

    /// Starts the exec shim, which becomes the node.
    pub fn node(spec: &ShimSpec, args: &[String]) -> std::io::Result<Child> {
        let (reports, write) = std::io::pipe()?;
        let child = shim(spec)?.args(args).stdin(Stdio::from(write)).spawn()?;
        Ok(Child::new(&child, OwnedFd::from(reports)))
    }

    /// Starts the exec shim, which becomes a hook; what that writes comes to us.
    pub fn hook(spec: &ShimSpec) -> std::io::Result<Child> {
        let (reports, write) = std::io::pipe()?;
        let (output, stdout) = std::io::pipe()?;
        let stderr = stdout.try_clone()?;
        let child =
            shim(spec)?.stdin(Stdio::from(write)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr)).spawn()?;
        let output = Output::new(File::from(OwnedFd::from(output)));
        Ok(Child { output: Some(output), ..Child::new(&child, OwnedFd::from(reports)) })
    }

    fn new(child: &std::process::Child, reports: OwnedFd) -> Child {
        let pid = Pid::from_child(child);
        let _ = rustix::io::ioctl_fionbio(&reports, true);
        Child {
            pid,
            pidfd: pidfd_open(pid, PidfdFlags::empty()).ok(),
            reports: Some(File::from(reports)),
            seen: Vec::new(),
            recorded: false,
            result: None,
            output: None,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The same as a number.
    pub fn number(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// What to wait on: its end, and its reports.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let output = self.output.iter().filter_map(Output::descriptor);
        self.pidfd.iter().map(AsFd::as_fd).chain(self.reports.iter().map(AsFd::as_fd)).chain(output)
    }

    /// Signals it. It is not reaped yet (it would not be here any more), so its number is its own.
    pub fn signal(&self, signal: Signal) {
        let _ = match &self.pidfd {
            Some(fd) => pidfd_send_signal(fd, signal),
            None => kill_process(self.pid, signal),
        };
    }

    /// Signals all of its process group; itself where it has none of its own yet. It is not reaped yet, so the group is its own.
    pub fn signal_group(&self, signal: Signal) {
        if kill_process_group(self.pid, signal).is_err() {
            self.signal(signal);
        }
    }

    /// Whether it has ended, and was not reaped yet.
    pub fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), options), Ok(Some(_)))
    }

    /// Reads what it reported, as far as that is there.
    pub fn hear(&mut self) -> Heard {
        let mut heard = Heard { lines: Vec::new(), closed: false };
        let Some(reports) = &mut self.reports else { return heard };
        let mut chunk = [0; 4096];
        let mut read = 0;
        while read < READ_MAX {
            match reports.read(&mut chunk) {
                Ok(0) => {
                    heard.closed = true;
                    break;
                }
                Ok(n) => {
                    read += n;
                    self.seen.extend_from_slice(chunk.get(..n).unwrap_or_default());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    heard.closed = true;
                    break;
                }
            }
        }
        while let Some(end) = self.seen.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.seen.drain(..=end).collect();
            if let Ok(line) = serde_json::from_slice(&line) {
                heard.lines.push(line);
            }
        }
        if heard.closed || self.seen.len() > LINE_MAX {
            heard.closed = true;
            self.reports = None;
        }
        heard
    }
}
