//! A directory to measure in: a home, what runs in it, and the end of all that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// The program under measure.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_wemixvisor");

/// The time that all processes of this machine share.
pub fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap()
}

/// Waits until there is something.
pub fn until<T>(why: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "waited in vain until {why}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The mock node, built as `cargo test` builds it: its own speed is not measured.
pub fn mocknode() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "mocknode", "--message-format=json-render-diagnostics"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output().unwrap();
    let messages = String::from_utf8(output.stdout).unwrap();
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path =
        messages.find_map(|m| m.get("executable")?.as_str().filter(|p| p.ends_with("/mocknode")).map(PathBuf::from));
    path.expect("the mock node cannot be built")
}

/// A home with its genesis release.
pub struct Place {
    /// The directory that holds it all.
    pub dir: PathBuf,
    children: Vec<Child>,
}

impl Place {
    /// A home below `base`, whose node is a copy of this program.
    pub fn new(base: &Path, name: &str, node: &Path) -> Place {
        let dir = base.join(format!("wemixvisor-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let place = Place { dir: dir.canonicalize().unwrap(), children: Vec::new() };
        fs::copy(node, place.dir.join("node")).unwrap();
        let mut init = place.command(&["init", place.dir.join("node").to_str().unwrap()]);
        assert!(init.status().unwrap().success());
        place
    }

    /// A command of ours for this home, which says nothing.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).env_clear().env("DAEMON_HOME", self.home()).env("PATH", "/usr/bin:/bin");
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// `$DAEMON_HOME`.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// Starts what is to be ended with the place; tells its pid.
    pub fn spawn(&mut self, mut command: Command) -> u32 {
        self.children.push(command.spawn().unwrap());
        self.children.last().unwrap().id()
    }

    /// The last child that was started.
    pub fn child(&mut self) -> &mut Child {
        self.children.last_mut().unwrap()
    }

    /// Puts a release there.
    pub fn release(&self, name: &str) {
        let added = self.command(&["upgrade", "add", name, self.dir.join("node").to_str().unwrap()]).status();
        assert!(added.unwrap().success());
    }

    /// Waits until the node answers.
    pub fn until_up(&self) {
        until("the node answers", || {
            let output = self.command(&["status", "--json"]).stdout(Stdio::piped()).output().unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            (status["head_known"] == true).then_some(())
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A gentle stop, so that what they started ends too.
        for child in &mut self.children {
            let pid = Pid::from_child(child);
            if matches!(child.try_wait(), Ok(None)) {
                let _ = kill_process(pid, Signal::TERM);
                let began = Instant::now();
                while matches!(child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(10) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
