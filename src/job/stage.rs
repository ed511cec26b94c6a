//! Looks at a release before its time: whether its binary can run here, and whether the switch will be possible.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::fetch::origin;
use super::{backup, check, durable, fetch, look, shim, step};
use crate::error::{OnFile, Result};
use crate::geth;
use crate::home::{Home, Release};
use crate::proc;
use crate::source::Source;

/// How long a binary may take to tell its version.
const VERSION_TIME: Duration = Duration::from_secs(5);

/// What the names of scratch directories begin with; the number of who made it follows, and one by chance.
const SCRATCH: &str = "wemixvisor-version-";

/// What the names of links are that are made for a trial, up to the number of who made them.
const TRIAL: &str = "trial-link-";

/// How much of what it tells is read.
const VERSION_MAX: u64 = 64 << 10;

/// Which release to look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The release.
    pub release: Release,
    /// Where its plan has it from, if that says so.
    #[serde(default)]
    pub source: Option<Source>,
    /// What its upgrade will back up and where to; none: the operator wants no backup.
    pub backup: Option<backup::Spec>,
    /// The operator's own hook.
    pub hook: Option<PathBuf>,
    /// The node's arguments, as they are given to every release.
    pub args: Vec<String>,
    /// Where the node's output goes, if it is a file.
    #[serde(default)]
    pub log: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Staged {
    /// The release.
    pub release: Release,
    /// What its files looked like then.
    pub print: Option<String>,
    /// Every check, in order, with its finding; the first that fails ends the list.
    pub checks: Vec<Check>,
    /// What the binary says of its version.
    pub version: Option<String>,
    /// What the backup will be.
    pub backup: Option<backup::Forecast>,
}

/// One check and its finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub what: String,
    /// What speaks against going on, if anything does.
    pub problem: Option<String>,
    /// What was found.
    pub remark: Option<String>,
    /// What the operator should know although it is no obstacle.
    pub warning: Option<String>,
}

impl Staged {
    /// Why the release cannot be started, if so.
    pub fn problem(&self) -> Option<&str> {
        self.checks.iter().find_map(|check| check.problem.as_deref())
    }
}

/// Does every check, up to the first that fails.
pub fn stage(home: &Home, spec: &Spec) -> Staged {
    let binary = home.binary(&spec.release);
    let other = spec.source.as_ref().and_then(|source| origin::contradiction(home, &spec.release, source));
    let mut staged = Staged {
        release: spec.release.clone(),
        print: look::release_print(home, &spec.release).filter(|_| other.is_none()),
        checks: Vec::new(),
        version: None,
        backup: None,
    };
    let mut good = staged.note("the binary can be executed here", check::executable(&binary).map(|()| None));
    if good && other.is_none() {
        fetch::clear_rest(home, &spec.release);
    }
    if good && let Some(why) = other {
        let remedy = format!("`wemixvisor upgrade prepare {}` fetches that one", spec.release);
        good = staged.note("it is the one that the plan wants", Err(format!("{why}: {remedy}")));
    }
    good = good && {
        let told = version(&binary);
        staged.version = told.clone().ok();
        staged.note("the binary tells its version", told.map(Some))
    };
    good = good && {
        let args = shim::with_node_args(home, &spec.release, &spec.args);
        let version = staged.version.clone().unwrap_or_default();
        let gone = args.as_ref().map(|args| geth::dropped(args, &version)).unwrap_or_default();
        let readable = staged.note("its node-args can be read", args.map(|_| None).map_err(|e| e.message));
        if !gone.is_empty() {
            let file = home.release(&spec.release).join("node-args");
            staged.warn(&format!(
                "it may not know {} any more: write the arguments for it into {}, one a line",
                gone.join(", "),
                file.display()
            ));
        }
        readable
    };
    let hooks = step::hooks(home, spec.hook.as_deref(), &spec.release);
    if !hooks.is_empty() {
        let finding = hooks.iter().try_for_each(|hook| check::executable(hook));
        good = good && staged.note("its hooks can be run", finding.map(|()| Some(listed(&hooks))));
    }
    if let Some(log) = spec.log.as_deref().filter(|log| *log != home.node_log()) {
        good = good && staged.note("the node's log can be written", writable(log).map(|()| None));
    }
    good = good && staged.note("the link can be moved", trial_link(home).map(|()| None).map_err(|e| e.message));
    good = good
        && match &spec.backup {
            Some(spec) => {
                let forecast = backup::forecast(home, spec);
                staged.backup = forecast.as_ref().ok().cloned();
                let fixed = forecast.as_ref().ok().and_then(|f| f.fixed.clone());
                let good = staged
                    .note("the data can be backed up", forecast.map(|f| Some(f.to_string())).map_err(|e| e.message));
                if let Some(fixed) = fixed {
                    let fixed = fixed.display();
                    staged.warn(&format!(
                        "{fixed} is a file system of its own inside the data: the backup can be put back by hand only"
                    ));
                }
                good
            }
            None => {
                let good = staged.note("no backup is wanted", Ok(None));
                staged.warn("UNSAFE_SKIP_BACKUP is set: the data cannot come back");
                good
            }
        };
    if good && shim::has_capabilities(&binary) {
        staged
            .warn("it has file capabilities: the kernel then sends no TERM to the node when its supervisor is killed");
    }
    staged
}

impl Staged {
    fn note(&mut self, what: &str, finding: std::result::Result<Option<String>, String>) -> bool {
        let good = finding.is_ok();
        let (remark, problem) = match finding {
            Ok(remark) => (remark, None),
            Err(problem) => (None, Some(problem)),
        };
        self.checks.push(Check { what: what.to_owned(), problem, remark, warning: None });
        good
    }

    /// Adds to the last check what the operator should know.
    fn warn(&mut self, text: &str) {
        if let Some(check) = self.checks.last_mut() {
            check.warning = Some(text.to_owned());
        }
    }
}

fn listed(hooks: &[PathBuf]) -> String {
    hooks.iter().map(|hook| hook.display().to_string()).collect::<Vec<_>>().join(", then ")
}

/// Whether the node will be able to write this log.
fn writable(log: &Path) -> std::result::Result<(), String> {
    let there = log.symlink_metadata().is_ok();
    let place = if there { log } else { log.parent().unwrap_or(log) };
    let needed = if there { Access::WRITE_OK } else { Access::WRITE_OK | Access::EXEC_OK };
    access(place, needed).map_err(|e| format!("{}: {e} (DAEMON_LOG_FILE)", place.display()))
}

/// Makes, moves and removes a link as the switch will, beside `current`.
fn trial_link(home: &Home) -> Result<()> {
    // Somebody else may do the same at this moment.
    let dir = home.dir();
    clear_dead(&dir, TRIAL);
    clear_dead(&dir, &format!(".{TRIAL}"));
    let trial = dir.join(format!("{TRIAL}{}", std::process::id()));
    durable::replace_link(&trial, Path::new("genesis"), home.owner().on("read", home.root())?)?;
    durable::remove_file(&trial)
}

/// What a binary says to `version`, `--version`, `-version` or `-v`: the line with the version, or the first line.
pub fn version(binary: &Path) -> std::result::Result<String, String> {
    let until = Instant::now() + VERSION_TIME;
    let mut last = String::new();
    for word in ["version", "--version", "-version", "-v"] {
        match ask(binary, word, until) {
            Ok(text) => return Ok(version_line(&text)),
            Err(e) => last = e,
        }
    }
    Err(format!("it does not tell its version: {last}"))
}

fn version_line(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find_map(|line| line.strip_prefix("Version:")).or_else(|| lines().next()).unwrap_or("");
    line.trim().chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Removes what was left by those who were killed: what is called like this and the number of a process that is gone.
fn clear_dead(dir: &Path, begin: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(begin)?.split(['-', '.']).next()?.parse().ok());
        let Ok(meta) = entry.metadata() else { continue };
        if pid.is_none_or(|pid| proc::start_time(pid).is_some()) || meta.uid() != geteuid().as_raw() {
            continue;
        }
        let path = entry.path();
        let _ = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Makes an empty directory that is ours alone. Nobody can have made it before us where all may write: the name is chosen
/// by chance.
fn make_scratch() -> std::result::Result<PathBuf, String> {
    let mut chance = [0; 8];
    getrandom(&mut chance, GetRandomFlags::empty()).map_err(|e| format!("cannot have a random number: {e}"))?;
    let name = format!("{SCRATCH}{}-{:016x}", std::process::id(), u64::from_ne_bytes(chance));
    let path = std::env::temp_dir().join(name);
    let made = fs::DirBuilder::new().mode(0o700).create(&path);
    made.map_err(|e| format!("cannot create {}: {e}", path.display())).map(|()| path)
}

/// Runs the binary in an empty scratch directory with a clean environment, in a group of its own that ends with it.
fn ask(binary: &Path, word: &str, until: Instant) -> std::result::Result<String, String> {
    let shown = binary.display();
    clear_dead(&std::env::temp_dir(), SCRATCH);
    let scratch = make_scratch()?;
    let answer = (|| {
        let mut child = Command::new(binary)
            .arg(word)
            .current_dir(&scratch)
            .env_clear()
            .env("HOME", &scratch)
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("cannot execute {shown}: {e}"))?;
        let group = Pid::from_child(&child);
        let mut text = Vec::new();
        let mut late = false;
        if let Some(mut pipe) = child.stdout.take() {
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let ready = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Timespec::try_from(left).ok().as_ref());
                if left.is_zero() || !matches!(ready, Ok(n) if n > 0) {
                    late = true;
                    break;
                }
                let mut chunk = [0; 4096];
                match pipe.read(&mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(n) if (text.len() + n) as u64 > VERSION_MAX => break,
                    Ok(n) => text.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                }
            }
        }
        while !late && matches!(child.try_wait(), Ok(None)) {
            late = Instant::now() > until;
            std::thread::sleep(Duration::from_millis(2));
        }
        // The leader is not reaped yet when it is late, so the group is still its own.
        if late {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = child.wait().map_err(|e| format!("cannot wait for {shown}: {e}"))?;
        if late {
            return Err(format!("{shown} {word} did not end within {} s", VERSION_TIME.as_secs()));
        }
        if status.success() {
            Ok(String::from_utf8_lossy(&text).into_owned())
        } else {
            Err(format!("{shown} {word} ended with {status}"))
        }
    })();
    let _ = fs::remove_dir_all(&scratch);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_jobs_left_is_removed_and_what_is_in_use_is_not() {
        let dir = |pid: &str| std::env::temp_dir().join(format!("{SCRATCH}{pid}"));
        // No process has this number: the kernel's greatest is 2^22.
        let (left, used, other) = (dir("4194305"), dir("1"), dir("x"));
        for dir in [&left, &used, &other] {
            fs::create_dir_all(dir.join("inner")).unwrap_or_default();
        }
        clear_dead(&std::env::temp_dir(), SCRATCH);
        assert!(!left.exists() && used.exists() && other.exists());
        for dir in [&used, &other] {
            fs::remove_dir_all(dir).unwrap_or_default();
        }
    }

    #[test]
    fn the_version_is_the_line_that_says_so_or_the_first() {
        assert_eq!(version_line("Geth\nVersion: 1.13.15-stable\nArchitecture: amd64\n"), "1.13.15-stable");
        assert_eq!(version_line("\nfoo v2\nbar\n"), "foo v2");
        assert_eq!(version_line(""), "");
    }
}
