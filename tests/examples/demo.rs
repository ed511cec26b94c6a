//! The main job, shown: a node is supervised, an upgrade is scheduled for a block a few seconds ahead, and is carried out
//! at that block. `cargo run --example demo` needs a Rust toolchain and nothing else; it builds what it runs, works in a
//! temporary home that it removes, and ends with status 1 and the logs when anything is not as it says.

#![allow(clippy::disallowed_methods, reason = "a demonstration: it runs commands and waits for them")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

mod stage;

use stage::Result;

/// How long anything may take; all of it together takes some seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// How far ahead the upgrade is scheduled, in blocks of [`PERIOD`].
const AHEAD: u64 = 25;
const PERIOD: &str = "200ms";

fn main() -> ExitCode {
    let (program, node) = match stage::build() {
        Ok(built) => built,
        Err(why) => {
            eprintln!("demo: {why}");
            return ExitCode::FAILURE;
        }
    };
    let interrupted = stage::interrupted();
    let dir = match stage::temporary("demo") {
        Ok(dir) => dir,
        Err(why) => {
            eprintln!("demo: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut demo = Demo { program, node, dir, supervisor: None, interrupted };
    match demo.tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\ndemo: NOT AS IT SHOULD BE: {why}\n{}", demo.logs());
            ExitCode::FAILURE
        }
    }
}

/// The programs, the directory that all happens in, and the supervisor while it runs.
struct Demo {
    program: PathBuf,
    node: PathBuf,
    dir: PathBuf,
    supervisor: Option<Child>,
    interrupted: Arc<AtomicBool>,
}

impl Demo {
    /// The whole story, from an empty directory to the end of the node.
    fn tell(&mut self) -> Result<()> {
        let began = Instant::now();
        println!(
            "This shows how wemixvisor upgrades a blockchain node at a block height, unattended. The node is a mock:\n\
             a small program that makes a block each {PERIOD} and answers JSON-RPC. All of it happens in\n\
             {}, which is removed at the end.",
            self.dir.display()
        );

        step(1, "Lay out a home and install the node's binary as its genesis release.");
        let node = self.node.display().to_string();
        self.ours(&["init", &node])?;
        self.expect_current("genesis")?;

        step(2, "Supervise: start the node and look after it. The node's arguments are passed on untouched.");
        self.supervise()?;
        let status = self.until("the node runs and tells its block", |s| s["state"] == "running" && head(s) > 0)?;
        println!("  The node runs (pid {}) and is at block {}. What `status` tells now:", status["pid"], head(&status));
        self.ours(&["status"])?;
        let old_pid = status["pid"].clone();

        let height = head(&self.status()?) + AHEAD;
        step(3, "Put the new release there, and schedule it. The height is the first block that it must make.");
        self.ours(&["upgrade", "add", "v2", &node])?;
        self.ours(&["upgrade", "schedule", "v2", &height.to_string()])?;
        self.until("the release is staged", |s| s["upgrade"]["phase"] == "staged")?;
        println!("  The new release was checked: it can run here. Until its block comes, the old one goes on:");
        self.ours(&["upgrade", "list"])?;
        self.expect_current("genesis")?;

        step(4, &format!("Wait for block {}, the last one of the old release.", height - 1));
        let mut told = 0;
        self.until("the upgrade begins", |s| {
            let head = head(s);
            if s["release"] == "genesis" && head >= told + 5 {
                told = head;
                println!("  block {head}: {} to go", (height - 1).saturating_sub(head));
            }
            s["release"] == "v2"
        })?;
        self.expect_current("v2")?;
        println!("  The old node was asked to end, once and gently; `current` points at v2.");

        step(5, "The trial: the new release must stay alive, answer, and make blocks on the same chain.");
        let status = self.until("the new release runs", |s| s["release"] == "v2" && s["state"] == "running")?;
        println!("  The new node runs (pid {}, before it was {old_pid}).", status["pid"]);
        let status = self.until("it is committed", |s| s["last_upgrade"]["result"] == "committed")?;
        println!("  It made blocks up to {} and is committed: the upgrade is over.", head(&status));
        if status["pid"] == old_pid {
            return Err("the node is the same process as before".to_owned());
        }

        step(6, "What `status` tells after the upgrade, and what is remembered of it:");
        self.ours(&["status"])?;
        self.ours(&["upgrade", "list", "--all"])?;

        step(7, "Stop: the node ends first, then the supervisor.");
        self.ours(&["stop"])?;
        self.expect_stopped()?;
        self.check_history(height)?;
        println!(
            "\nDone in {} s: one upgrade at block {height}, not a block early, with one gentle stop and no node left behind.",
            began.elapsed().as_secs()
        );
        Ok(())
    }

    fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// A command of ours; the environment says where the home is.
    fn command(&self, args: &[&str]) -> Command {
        stage::ours(&self.program, &self.home(), &self.dir, args)
    }

    /// Shows a command and what it says; it must succeed.
    fn ours(&self, args: &[&str]) -> Result<()> {
        println!("  $ wemixvisor {}", args.join(" "));
        let output = self.command(args).output().map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        for line in [&output.stdout, &output.stderr].iter().flat_map(|text| text.split(|b| *b == b'\n')) {
            if !line.is_empty() {
                println!("    {}", String::from_utf8_lossy(line));
            }
        }
        if output.status.success() { Ok(()) } else { Err(format!("`{}` ended with {}", args.join(" "), output.status)) }
    }

    /// Starts the supervisor; what it and the node say goes to files.
    fn supervise(&mut self) -> Result<()> {
        let datadir = self.dir.join("chain").display().to_string();
        // So that nobody waits: by default a trial lasts a minute and 20 blocks, and a node without plans is asked for its
        // block each 30 s.
        let quick = ["trial_time=2s", "trial_blocks=5", "health_check_interval=500ms"];
        let mut args: Vec<&str> = quick.iter().flat_map(|setting| ["--set", *setting]).collect();
        args.extend(["run", "--datadir", &datadir, "--period", PERIOD]);
        println!("  $ wemixvisor {} &", args.join(" "));
        let log = |name: &str| File::create(self.dir.join(name)).map_err(|e| format!("cannot make {name}: {e}"));
        let child = self.command(&args).stdout(log("node.out")?).stderr(log("supervisor.log")?).spawn();
        self.supervisor = Some(child.map_err(|e| format!("cannot run {}: {e}", self.program.display()))?);
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let output =
            self.command(&["status", "--json"]).output().map_err(|e| format!("cannot ask for the status: {e}"))?;
        serde_json::from_slice(&output.stdout).map_err(|e| format!("the status is no JSON: {e}"))
    }

    /// Waits until the status shows something.
    fn until(&mut self, what: &str, mut shows: impl FnMut(&Value) -> bool) -> Result<Value> {
        let began = Instant::now();
        loop {
            let status = self.status()?;
            if shows(&status) {
                return Ok(status);
            }
            if let Some(Ok(Some(end))) = self.supervisor.as_mut().map(Child::try_wait) {
                return Err(format!("the supervisor ended ({end}) before {what}"));
            }
            if self.interrupted.load(Ordering::SeqCst) {
                return Err("interrupted".to_owned());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{} s were not enough until {what}; the status is {status:#}", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn expect_current(&self, release: &str) -> Result<()> {
        let link = self.home().join("wemixvisor/current");
        let target = fs::read_link(&link).map_err(|e| format!("cannot read {}: {e}", link.display()))?;
        if target.ends_with(release) { Ok(()) } else { Err(format!("current points at {}", target.display())) }
    }

    /// The supervisor ended well, and the node with it.
    fn expect_stopped(&mut self) -> Result<()> {
        let end = self.supervisor.take().map(|mut child| child.wait());
        match end {
            Some(Ok(end)) if end.success() => {}
            other => return Err(format!("the supervisor ended like this: {other:?}")),
        }
        match stage::nodes(&self.home()).as_slice() {
            [] => Ok(()),
            left => Err(format!("nodes are left: {left:?}")),
        }
    }

    /// What the node itself wrote down agrees: two starts, one TERM, and the old release ended at its last block.
    fn check_history(&self, height: u64) -> Result<()> {
        let read = |path: &str| fs::read_to_string(self.dir.join(path)).map_err(|e| format!("cannot read {path}: {e}"));
        let history = read("home/wemixvisor/history.jsonl")?;
        let lines: Vec<Value> = history.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let [line] = lines.as_slice() else { return Err(format!("one upgrade was expected: {history}")) };
        if line["result"] != "committed" || line["clean_stop"] != true {
            return Err(format!("a clean, committed upgrade was expected: {line}"));
        }
        let journal = read("chain/mock.journal")?;
        let events: Vec<Vec<&str>> = journal.lines().map(|line| line.split(' ').collect()).collect();
        let of = |kind: &str| events.iter().filter(|event| event[0] == kind).collect::<Vec<_>>();
        let (starts, terms, stops) = (of("start"), of("term"), of("stop"));
        if (starts.len(), terms.len(), stops.len()) != (2, 2, 2) {
            return Err(format!("two starts and two gentle stops were expected:\n{journal}"));
        }
        let last: u64 = stops[0].get(4).and_then(|head| head.parse().ok()).unwrap_or(0);
        if last + 1 < height {
            return Err(format!("the old release ended at block {last}, before block {}", height - 1));
        }
        println!(
            "  The old release ended at block {last}; the node was down for {} ms.",
            line["downtime_ms"].as_u64().unwrap_or(0)
        );
        Ok(())
    }

    /// The last lines of all that was written, for who must find out what went wrong.
    fn logs(&self) -> String {
        let mut text = String::new();
        for file in ["supervisor.log", "node.out", "chain/mock.journal", "home/wemixvisor/history.jsonl"] {
            let content = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            text.push_str(&format!("--- {file}\n{}\n", lines[lines.len().saturating_sub(60)..].join("\n")));
        }
        text
    }
}

impl Drop for Demo {
    /// Nothing is left behind, whatever happened.
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in stage::nodes(&self.home()) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("demo: cannot remove {}: {e}", self.dir.display());
        }
    }
}

fn head(status: &Value) -> u64 {
    // A head that the node told in an earlier life is none.
    if status["head_known"] == true { status["height"].as_u64().unwrap_or(0) } else { 0 }
}

fn step(number: u32, what: &str) {
    println!("\n{number}. {what}");
}
