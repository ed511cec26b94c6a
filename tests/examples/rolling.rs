//! A rolling upgrade, shown: four validators that make the blocks of one chain together, each under a supervisor of its own,
//! are upgraded one after the other while the chain goes on. `cargo run --example rolling` needs a Rust toolchain and nothing
//! else. It ends with status 0 only if all is as promised: at no time more than one validator down, no block that needed more
//! than one extra round for it, and all upgraded before the height. With `--naive` all are upgraded at the height, and status
//! 0 means that the chain was seen to stop.

#![allow(clippy::disallowed_methods, reason = "a demonstration: it runs commands and waits for them")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

#[path = "mocknode/ledger.rs"]
#[allow(dead_code, reason = "the mock node uses the rest of it")]
mod ledger;
mod stage;
#[path = "mocknode/trace.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod trace;

use ledger::{Network, key, quorum, slack};
use stage::Result;
use trace::Trace;

const VALIDATORS: usize = 4;
const PERIOD: Duration = Duration::from_millis(200);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The block of the first turn, the blocks between two turns, and the first block of the new release.
const START: u64 = 15;
const SPACING: u64 = 2 * VALIDATORS as u64 + 16;
const HEIGHT: u64 = START + VALIDATORS as u64 * SPACING + 20;

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let naive = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--naive") => true,
        Some(other) => {
            eprintln!("rolling: {other}? The only option is --naive: all at the height.");
            return ExitCode::from(2);
        }
    };
    let (built, interrupted) = (stage::build(), stage::interrupted());
    let made = built.and_then(|programs| Ok((programs, stage::temporary("rolling")?)));
    let ((program, node), dir) = match made {
        Ok(made) => made,
        Err(why) => {
            eprintln!("rolling: {why}");
            return ExitCode::FAILURE;
        }
    };
    let network = Network::new(VALIDATORS, 0, PERIOD, REQUEST_TIMEOUT);
    let mut show = Show { program, node, dir, network, naive, supervisors: Vec::new(), interrupted };
    match show.tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\nrolling: NOT AS IT SHOULD BE: {why}\n{}", show.logs());
            ExitCode::FAILURE
        }
    }
}

struct Show {
    program: PathBuf,
    node: PathBuf,
    dir: PathBuf,
    network: Network,
    naive: bool,
    supervisors: Vec<Child>,
    interrupted: Arc<AtomicBool>,
}

impl Show {
    fn tell(&mut self) -> Result<()> {
        println!(
            "This shows how wemixvisor upgrades {VALIDATORS} validators of one chain. {} of them must sign a block, so {} may be\n\
             down. Each runs a mock node that takes part in making blocks, one in {} ms; when the one whose turn it is does\n\
             not propose, the next one does, {} s later: an extra round. The old release knows no block from {HEIGHT} on.\n\
             All of it happens in {}, which is removed at the end.",
            quorum(VALIDATORS),
            slack(VALIDATORS),
            PERIOD.as_millis(),
            REQUEST_TIMEOUT.as_secs(),
            self.dir.display()
        );
        step(1, "Lay out a home for each, install the old release and put the new one there.");
        for index in 0..VALIDATORS {
            self.lay_out(index)?;
        }
        step(2, "Schedule the upgrade, with the same plan on each:");
        let info = json!({"rolling": {"start": START, "spacing": SPACING}}).to_string();
        let height = HEIGHT.to_string();
        let words = match self.naive {
            true => vec!["upgrade", "schedule", "v2", &height],
            false => vec!["upgrade", "schedule", "v2", &height, "--info", &info],
        };
        println!("  $ wemixvisor {}", words.join(" "));
        for index in 0..VALIDATORS {
            self.run(index, &words)?;
        }
        if self.naive {
            println!("  Without VALIDATOR_MODE each of them is due at the block before the height.");
        } else {
            println!("  With VALIDATOR_MODE=true each has its turn, in the order of their addresses:");
            for (rank, index) in self.turns().into_iter().enumerate() {
                let (due, address) = (START + rank as u64 * SPACING, &self.network.members[index].address);
                println!("    block {due:>3}: validator {index}, {address}");
            }
        }
        step(3, "Supervise them all. What happens:");
        for index in 0..VALIDATORS {
            self.supervise(index)?;
        }
        let trace = self.watch()?;
        step(4, "What the nodes have written down, a row for each block (alike ones in one):");
        println!("{}", trace.table());
        self.judge(&trace)?;
        step(5, "Stop them.");
        for index in 0..VALIDATORS {
            self.run(index, &["stop"])?;
        }
        for mut supervisor in self.supervisors.drain(..) {
            let end = supervisor.wait().map_err(|e| format!("cannot wait for a supervisor: {e}"))?;
            if !end.success() {
                return Err(format!("a supervisor ended with {end}"));
            }
        }
        Ok(())
    }

    fn place(&self, index: usize) -> PathBuf {
        self.dir.join(index.to_string())
    }

    fn home(&self, index: usize) -> PathBuf {
        self.place(index).join("home")
    }

    fn datadir(&self, index: usize) -> PathBuf {
        self.place(index).join("chain")
    }

    /// Members in the order of their addresses.
    fn turns(&self) -> Vec<usize> {
        let mut turns: Vec<usize> = (0..VALIDATORS).collect();
        turns.sort_by_key(|index| &self.network.members[*index].address);
        turns
    }

    fn lay_out(&self, index: usize) -> Result<()> {
        let node = self.node.display().to_string();
        let written = fs::create_dir_all(self.datadir(index).join("geth"))
            .and_then(|()| fs::write(self.datadir(index).join("geth/nodekey"), key(index)))
            .and_then(|()| self.network.write(&self.dir.join("network.json")));
        written.map_err(|e| format!("cannot lay out a data directory: {e}"))?;
        self.run(index, &["init", &node])?;
        self.run(index, &["upgrade", "add", "v2", &node])?;
        // The habit of the old release, in a file beside its binary, where the mock node looks for it.
        let habits = self.home(index).join("wemixvisor/genesis/mock-flags");
        fs::write(habits, format!("--halt-at {}", HEIGHT - 1)).map_err(|e| format!("cannot write its flags: {e}"))
    }

    /// Runs a command of ours to its end; it must succeed.
    fn run(&self, index: usize, args: &[&str]) -> Result<String> {
        let mut command = stage::ours(&self.program, &self.home(index), &self.place(index), args);
        let output = command.output().map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(format!("`{}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    fn supervise(&mut self, index: usize) -> Result<()> {
        // So that nobody waits: by default a trial lasts a minute and 20 blocks.
        let mode = format!("validator_mode={}", !self.naive);
        let quick = [mode.as_str(), "trial_time=1s", "trial_blocks=3", "height_poll_interval=1s", "validator_hold=5s"];
        let mut args: Vec<&str> = quick.iter().flat_map(|setting| ["--set", *setting]).collect();
        let (datadir, network) = (self.datadir(index), self.dir.join("network.json"));
        let (datadir, network) = (datadir.display().to_string(), network.display().to_string());
        args.extend(["run", "--datadir", &datadir, "--network", &network, "--mine"]);
        let log =
            |name: &str| File::create(self.place(index).join(name)).map_err(|e| format!("cannot make {name}: {e}"));
        let mut command = stage::ours(&self.program, &self.home(index), &self.place(index), &args);
        let child = command.stdout(log("node.out")?).stderr(log("supervisor.log")?).spawn();
        self.supervisors.push(child.map_err(|e| format!("cannot run {}: {e}", self.program.display()))?);
        Ok(())
    }

    fn trace(&self) -> Trace {
        let datadirs: Vec<PathBuf> = (0..VALIDATORS).map(|index| self.datadir(index)).collect();
        Trace::read(&self.network, &datadirs)
    }

    /// Tells what happens until all of them have made blocks of the new rules.
    fn watch(&mut self) -> Result<Trace> {
        let (mut told, mut moved) = (vec![0; VALIDATORS], Instant::now());
        let (mut head, mut block) = (0, 0);
        loop {
            let trace = self.trace();
            for (index, node) in trace.nodes.iter().enumerate() {
                for event in node.journal.iter().skip(told[index]) {
                    self.tell_event(index, event, trace.head());
                }
                told[index] = node.journal.len();
            }
            if trace.head() >= block + 10 {
                block = trace.head();
                println!("  block {block:>3}");
            }
            let committed = (0..VALIDATORS).filter(|index| self.committed(*index)).count();
            if committed == VALIDATORS && trace.head() >= HEIGHT + 2 * VALIDATORS as u64 {
                return Ok(trace);
            }
            if trace.head() > head {
                (head, moved) = (trace.head(), Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                return Err(format!("no block for {} s\n{}", PATIENCE.as_secs(), trace.table()));
            }
            for child in &mut self.supervisors {
                if let Ok(Some(end)) = child.try_wait() {
                    return Err(format!("a supervisor ended: {end}"));
                }
            }
            if self.interrupted.load(Ordering::SeqCst) {
                return Err("interrupted".to_owned());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn tell_event(&self, index: usize, event: &[String], head: u64) {
        match event[0].as_str() {
            "term" => println!("  block {head:>3}  validator {index} is asked to stop"),
            "start" if event[2] != "genesis" => println!("  block {head:>3}  validator {index} starts {}", event[2]),
            _ => {}
        }
    }

    fn committed(&self, index: usize) -> bool {
        let history = fs::read_to_string(self.home(index).join("wemixvisor/history.jsonl")).unwrap_or_default();
        let last: Option<Value> = history.lines().last().and_then(|line| serde_json::from_str(line).ok());
        last.is_some_and(|line| line["result"] == "committed")
    }

    /// Says how it went; an error unless that is what was promised.
    fn judge(&self, trace: &Trace) -> Result<()> {
        let (most, held_up, halts) = (trace.most_down(), trace.held_up(), trace.halts());
        println!("  Down at a time, at most: {most}.");
        println!("  Blocks that needed more than one extra round because validators were down: {}.", list(&held_up));
        println!("  Blocks before which fewer than {} were up: {}.", quorum(VALIDATORS), list(&halts));
        let slow = trace.blocks.iter().map(|b| b.round - trace.rounds_lost(b.number)).sum::<u64>();
        if slow > 0 {
            println!("  ({slow} rounds failed while their proposer was up: this machine is busy.)");
        }
        let double = trace.double_votes();
        if self.naive {
            return match halts.as_slice() {
                [] => Err("all were upgraded at the height, and the chain was not seen to stop".to_owned()),
                _ => {
                    println!("\n  All at the height: the chain stood still. Without --naive it does not.");
                    Ok(())
                }
            };
        }
        let firsts: Vec<Option<u64>> = (0..VALIDATORS).map(|index| trace.first_vote(index, "v2")).collect();
        let late = firsts.iter().filter(|first| first.is_none_or(|first| first >= HEIGHT)).count();
        println!(
            "  Validators that signed with the new release before block {HEIGHT}: {} of {VALIDATORS}.",
            VALIDATORS - late
        );
        println!("  Signed twice: {}.", if double.is_empty() { "nothing".to_owned() } else { double.join("; ") });
        match (most, held_up.as_slice(), halts.as_slice(), late, double.as_slice()) {
            (0..=1, [], [], 0, []) => {
                println!("\n  All as promised.");
                Ok(())
            }
            _ => Err("this rolling upgrade broke a promise".to_owned()),
        }
    }

    /// The last lines of all that was written, for who must find out what went wrong.
    fn logs(&self) -> String {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let mut text = String::new();
        for index in 0..VALIDATORS {
            let log = read(&self.place(index).join("supervisor.log"));
            let told: Vec<&str> = log.lines().filter(|line| !line.contains("INFO [")).collect();
            text.push_str(&format!("--- validator {index}\n{}\n", told[told.len().saturating_sub(30)..].join("\n")));
        }
        text
    }
}

impl Drop for Show {
    /// Nothing is left behind, whatever happened.
    fn drop(&mut self) {
        for child in &mut self.supervisors {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in (0..VALIDATORS).flat_map(|index| stage::nodes(&self.home(index))) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("rolling: cannot remove {}: {e}", self.dir.display());
        }
    }
}

fn list(numbers: &[u64]) -> String {
    let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn step(number: u32, what: &str) {
    println!("\n{number}. {what}");
}
