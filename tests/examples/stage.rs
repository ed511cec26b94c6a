//! What the examples share: the programs that they show, a directory of their own, and an environment without settings of
//! the caller's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// What went wrong, in a line.
pub type Result<T> = std::result::Result<T, String>;

/// Builds the program and the mock node (at once, when both are there already) and says where they lie.
pub fn build() -> Result<(PathBuf, PathBuf)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--message-format=json-render-diagnostics"]);
    command.args(["--bin", "wemixvisor", "--example", "mocknode"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        return Err("the program and the mock node cannot be built".to_owned());
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = |name: &str| {
        messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message.pointer("/target/name").is_some_and(|n| n == name))
            .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
            .ok_or_else(|| format!("cargo did not say where {name} is"))
    };
    Ok((executable("wemixvisor")?, executable("mocknode")?))
}

/// A directory of our own, by its real name: that is the one that /proc tells.
pub fn temporary(name: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("wemixvisor-{name}-{}", std::process::id()));
    let made = fs::create_dir(&dir).and_then(|()| dir.canonicalize());
    made.map_err(|e| format!("cannot make a temporary directory: {e}"))
}

/// Set by INT and TERM, which would end the example as always, leaving its directory behind.
pub fn interrupted() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [Signal::INT, Signal::TERM] {
        let _ = signal_hook::flag::register(signal.as_raw(), Arc::clone(&interrupted));
    }
    interrupted
}

/// A command of ours for this home, run in `dir`.
pub fn ours(program: &Path, home: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Only the home is given: what the caller's environment sets for other homes must not matter here.
    let foreign = |name: &str| ["DAEMON_", "COSMOVISOR_", "MOCK_", "UNSAFE_"].iter().any(|p| name.starts_with(p));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(foreign)) {
        command.env_remove(name);
    }
    command.env_remove("VALIDATOR_MODE").env_remove("RUST_LOG").env("DAEMON_HOME", home);
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command
}

/// The processes that hold the lock of a home's data: its node and what that started.
pub fn nodes(home: &Path) -> Vec<Pid> {
    let lock = home.join("wemixvisor/data.lock");
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .filter(|pid| {
            let fds = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).into_iter().flatten().flatten();
            fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == lock))
        })
        .collect()
}
