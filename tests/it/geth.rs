//! The real thing: two releases of geth, named by `WEMIXVISOR_GETH_OLD` and `WEMIXVISOR_GETH_NEW`, as a chain of one node
//! that makes a block each second. Without the two variables these tests say so and do nothing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Home, Visor, kill, lives, text, until};

/// A home for geth, and where its binaries lie.
pub struct Geth {
    pub home: Home,
    new: PathBuf,
    /// Versions of the old and the new release, as their clients tell them.
    pub versions: [String; 2],
}

impl Geth {
    /// A home with the old geth as genesis release; none where the two are not named.
    pub fn named() -> Option<Geth> {
        let (Some(old), Some(new)) = (named("WEMIXVISOR_GETH_OLD"), named("WEMIXVISOR_GETH_NEW")) else {
            static TOLD: Once = Once::new();
            // Past the capture of output: what was not tested must be seen.
            TOLD.call_once(|| {
                let _ = writeln!(
                    std::io::stderr(),
                    "geth: SKIPPED: WEMIXVISOR_GETH_OLD and WEMIXVISOR_GETH_NEW do not name two releases of geth"
                );
            });
            return None;
        };
        let geth = Geth::of(&old, &new);
        assert_ne!(geth.versions[0], geth.versions[1], "two releases of geth are needed");
        Some(geth)
    }

    /// A home with these two releases, the old one as genesis release.
    pub fn of(old: &Path, new: &Path) -> Geth {
        let versions = [version(old), version(new)];
        let home = Home::empty();
        let node = home.dir.join("node");
        std::os::unix::fs::symlink(old, &node).unwrap();
        home.run(&["init", node.to_str().unwrap()]).code(0);
        Geth { home, new: new.to_owned(), versions }
    }

    pub fn ipc(&self) -> PathBuf {
        self.home.dir.join("geth.ipc")
    }

    fn supervise(&self) -> Visor<'_> {
        self.supervise_with(&[], &[])
    }

    /// The same with settings of ours and arguments of geth's.
    fn supervise_with(&self, ours: &[&str], more: &[&str]) -> Visor<'_> {
        let args = self.args("1");
        let words: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        // However full this machine's disk is: the backups of these upgrades are looked at.
        self.home.supervise_with(&[&["--set", "min_disk=0"], ours].concat(), &words)
    }

    /// geth's arguments, with so many seconds from block to block; 0: a block for each transaction.
    fn args(&self, period: &str) -> Vec<String> {
        let (datadir, ipc) = (self.home.datadir(), self.ipc());
        let mut args = vec!["--dev", "--dev.period", period, "--datadir", datadir.to_str().unwrap(), "--port", "0"];
        args.extend(["--authrpc.port", "0", "--ipcpath", ipc.to_str().unwrap(), "--cache", "64"]);
        args.into_iter().map(str::to_owned).collect()
    }

    /// Makes a chain of so many blocks with the old release, without a supervisor, as quickly as geth seals them; each block
    /// has some KiB that no database makes smaller.
    fn make_chain(&self, blocks: u64, engine: &str) {
        // In memory where that can be: pebble waits for the disk a few times a block.
        let memory = PathBuf::from("/dev/shm").join(self.home.dir.file_name().unwrap());
        let data = if fs::create_dir(&memory).is_ok() { memory.join("d") } else { self.home.datadir() };
        let mut args = self.args("0");
        let datadir = args.iter().position(|word| word == "--datadir").unwrap() + 1;
        args[datadir] = data.to_str().unwrap().to_owned();
        let mut command = Command::new(self.home.own("genesis/bin/node"));
        command.args(args).args(["--db.engine", engine]);
        let mut node = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut ipc = until("geth answers", || Ipc::connect(&self.ipc()));
        let account = until("it has its account", || ipc.account());
        ipc.call("eth_subscribe", json!(["newHeads"])).unwrap();
        for block in 0..blocks {
            let nonce = format!("{block:#x}");
            ipc.seal(
                json!([{"from": account, "to": account, "data": filler(block), "gas": "0x40000", "nonce": nonce}]),
            );
        }
        kill(node.id(), Signal::TERM);
        assert!(node.wait().unwrap().success());
        if data != self.home.datadir() {
            let copied = Command::new("cp").arg("-a").arg(&data).arg(self.home.datadir()).status();
            assert!(copied.unwrap().success());
            fs::remove_dir_all(memory).unwrap();
        }
    }

    /// Runs the old release on its data to the end, and tells what it says.
    pub fn says(&self, args: &[&str]) -> String {
        let mut command = Command::new(self.home.own("genesis/bin/node"));
        let output = command.arg("--datadir").arg(self.home.datadir()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts the new release there under the name `v2`.
    pub fn add(&self) {
        self.home.run(&["upgrade", "add", "v2", self.new.to_str().unwrap()]).code(0);
    }

    /// Waits until this release runs, as its RPC itself tells (0: the old one, 1: the new one).
    #[track_caller]
    fn until_version(&self, which: usize) -> Value {
        let version = &self.versions[which];
        self.home.until_status(&format!("geth {version} answers"), |s| {
            let told = s["version"].as_str().is_some_and(|v| v.contains(version.as_str()));
            told && s["state"] == "running" && s["head_known"] == true
        })
    }

    /// The head once it is at least this.
    #[track_caller]
    fn until_head(&self, least: u64) -> u64 {
        let status = self.home.until_status(&format!("block {least} comes"), |s| {
            s["head_known"] == true && s["height"].as_u64().is_some_and(|head| head >= least)
        });
        status["height"].as_u64().unwrap()
    }

    /// The heads at which it flushed its state, one for each clean stop.
    pub fn stops(&self) -> Vec<u64> {
        let log = self.home.log();
        let mut heads = Vec::new();
        let mut flushed = None;
        for line in log.lines() {
            if line.contains("Got interrupt") {
                flushed = None;
            } else if line.contains("Writing cached state to disk") && flushed.is_none() {
                // The first of three is the head.
                let block = line.split("block=").nth(1).and_then(|rest| rest.split_whitespace().next());
                flushed = block.and_then(|block| block.replace(',', "").parse::<u64>().ok());
            } else if line.contains("Blockchain stopped") {
                heads.extend(flushed);
            }
        }
        heads
    }

    /// How often it was started.
    fn starts(&self) -> usize {
        self.home.logged("Starting Geth in ephemeral dev mode")
    }

    /// Stops it all and looks at what geth says of its stops: as many as starts, and none of them unclean.
    #[track_caller]
    fn stop(&self, visor: &mut Visor) {
        visor.stop();
        self.check_stops();
    }

    #[track_caller]
    fn check_stops(&self) {
        assert_eq!(self.home.logged("Unclean shutdown"), 0, "geth found its database as a crash leaves it");
        assert_eq!(self.stops().len(), self.starts(), "each start has its clean stop");
        assert_eq!(self.home.logged("interrupt more to panic"), 0, "TERM once");
        assert_eq!(self.home.logged("UNCLEAN"), 0, "nothing was killed");
    }
}

/// The binary that a variable names.
pub fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What `geth version` tells: the number alone.
fn version(binary: &Path) -> String {
    let output = Command::new(binary).arg("version").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = told.lines().find_map(|line| line.strip_prefix("Version: "));
    line.unwrap_or_else(|| panic!("{} is no geth: {told}", binary.display())).trim().to_owned()
}

#[test]
fn a_real_geth_is_upgraded_at_its_height_and_goes_on_with_its_chain() {
    let Some(geth) = Geth::named() else { return };
    let home = &geth.home;
    let mut visor = geth.supervise();
    geth.until_version(0);
    geth.add();
    let height = geth.until_head(2) + 6;
    home.run(&["upgrade", "schedule", "v2", &height.to_string()]).code(0);
    home.until_phase("staged");
    assert_eq!(home.current(), "genesis");
    geth.until_version(1);
    let stopped = geth.stops();
    assert_eq!(stopped.len(), 1);
    assert!(stopped[0] + 1 >= height, "stopped at {}, before block {}", stopped[0], height - 1);
    assert_eq!(home.nodes().len(), 1);
    let status = home.until_finished("v2", "committed");
    assert_eq!((home.current().as_str(), status["release"].as_str()), ("v2", Some("v2")));
    geth.until_head(stopped[0] + 5);
    let history = home.history();
    assert_eq!(history.len(), 1);
    assert_eq!((history[0]["result"].as_str(), history[0]["from"].as_str()), (Some("committed"), Some("genesis")));
    assert_eq!(history[0]["clean_stop"], true);
    geth.stop(&mut visor);
}

#[test]
fn a_real_geth_goes_back_to_its_old_release_when_the_operator_reverts() {
    let Some(geth) = Geth::named() else { return };
    let home = &geth.home;
    let mut visor = geth.supervise();
    geth.until_version(0);
    geth.until_head(2);
    geth.add();
    home.run(&["upgrade", "now", "v2"]).code(0);
    geth.until_version(1);
    home.until_finished("v2", "committed");
    let head = geth.until_head(1);
    home.run(&["upgrade", "revert", "--to", "genesis"]).code(0);
    geth.until_version(0);
    assert_eq!(home.current(), "genesis");
    geth.until_head(head + 2);
    assert_eq!(home.nodes().len(), 1);
    assert_eq!(geth.starts(), 3);
    geth.stop(&mut visor);
}

#[test]
fn a_real_geth_ends_cleanly_when_its_supervisor_is_killed_and_the_next_one_starts_it_again() {
    let Some(geth) = Geth::named() else { return };
    let home = &geth.home;
    let mut visor = geth.supervise();
    let first = geth.until_version(0)["pid"].clone();
    let head = geth.until_head(3);
    visor.kill();
    // At once, the old geth may still be on its way out: the new one must wait for it.
    let mut visor = geth.supervise();
    let watch = |why: &str, done: &dyn Fn(&Value) -> bool| {
        until(why, || {
            assert!(home.nodes().len() <= 1, "two nodes: {:?}", home.nodes());
            Some(home.status()).filter(|status| done(status))
        })
    };
    let status = watch("the new supervisor's geth runs", &|s| {
        s["state"] == "running" && s["head_known"] == true && s["supervisor_pid"] == visor.pid()
    });
    assert_ne!(status["pid"], first);
    assert!(!lives(u32::try_from(first.as_u64().unwrap()).unwrap()));
    watch("blocks go on", &|s| s["height"].as_u64().is_some_and(|now| now >= head + 2));
    assert_eq!(geth.starts(), 2);
    geth.stop(&mut visor);
}

#[test]
fn a_real_geth_under_load_is_given_its_time_to_stop() {
    let Some(geth) = Geth::named() else { return };
    let home = &geth.home;
    let mut visor = geth.supervise();
    geth.until_version(0);
    let ipc = geth.ipc();
    let sent = Arc::new(AtomicU64::new(0));
    let sender = {
        let sent = Arc::clone(&sent);
        std::thread::spawn(move || send_transactions(&ipc, &sent))
    };
    let begun = geth.until_head(1);
    geth.until_head(begun + 3);
    until("geth is under load", || (sent.load(Ordering::Relaxed) > 100).then_some(()));
    // They are sent until geth hangs up: the stop comes in the middle of it.
    home.run(&["stop"]).code(0);
    sender.join().unwrap();
    assert_eq!(visor.end(), 0);
    assert_eq!(home.nodes(), Vec::<u32>::new());
    geth.check_stops();
    let head = geth.stops()[0];
    let mut visor = geth.supervise();
    assert!(geth.until_version(0)["height"].as_u64().unwrap() >= head, "no block was lost");
    geth.until_head(head + 1);
    geth.stop(&mut visor);
}

#[test]
fn a_real_geth_that_is_killed_is_started_again_without_its_supervisor_giving_up() {
    let Some(geth) = Geth::named() else { return };
    let home = &geth.home;
    let mut visor = geth.supervise();
    let first = u32::try_from(geth.until_version(0)["pid"].as_u64().unwrap()).unwrap();
    geth.until_head(2);
    kill(first, Signal::KILL);
    let status = home.until_status("it runs again", |s| {
        s["state"] == "running" && s["head_known"] == true && s["pid"] != first && s["pid"] != 0
    });
    assert_eq!((text(&status, "release").as_str(), &status["restart_count"]), ("genesis", &json!(1)));
    // The control: a stop that was no stop is seen by the words that the other tests look for.
    until("geth tells of the crash", || (home.logged("Unclean shutdown") > 0).then_some(()));
    visor.stop();
}

/// geth's socket.
pub struct Ipc {
    stream: UnixStream,
    replies: BufReader<UnixStream>,
}

impl Ipc {
    pub fn connect(path: &Path) -> Option<Ipc> {
        let stream = UnixStream::connect(path).ok()?;
        let replies = BufReader::new(stream.try_clone().unwrap());
        Some(Ipc { stream, replies })
    }

    /// The result of a call; none when it failed or geth has hung up.
    pub fn call(&mut self, method: &str, params: Value) -> Option<Value> {
        self.send(method, params)?;
        self.read()?.get_mut("result").map(Value::take)
    }

    /// Sends a transaction and waits for the block that has it: sooner, and many would share one.
    fn seal(&mut self, transaction: Value) {
        self.send("eth_sendTransaction", transaction).unwrap();
        // The answer and the news of the block, in any order.
        let both = [self.read().unwrap(), self.read().unwrap()];
        assert!(both.iter().any(|line| line["method"] == "eth_subscription"), "{both:?}");
        assert!(both.iter().any(|line| line["result"].is_string()), "{both:?}");
    }

    fn send(&mut self, method: &str, params: Value) -> Option<()> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.stream.write_all(format!("{request}\n").as_bytes()).ok()
    }

    fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.replies.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// The account that the dev chain gives its coins to.
    fn account(&mut self) -> Option<Value> {
        self.call("eth_accounts", json!([])).and_then(|all| all.get(0).cloned())
    }
}

/// Sends transactions one after the other until geth hangs up, and counts what it took. What it refuses (it may, while its pool
/// is being set up) is sent again.
fn send_transactions(ipc: &Path, sent: &AtomicU64) {
    let mut ipc = Ipc::connect(ipc).unwrap();
    let account = ipc.account().unwrap();
    // A little contract each, so that there is state to be flushed.
    let transaction = json!([{"from": account, "data": "0x600160005500", "gas": "0x30000"}]);
    while ipc.send("eth_sendTransaction", transaction.clone()).is_some() {
        let Some(reply) = ipc.read() else { return };
        if reply["result"].is_string() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// ---- backups ------------------------------------------------------------------------------------

/// What every file below holds: a line each, with the digest of its content.
fn contents(dir: &Path) -> Vec<String> {
    let mut find = Command::new("find");
    find.arg(dir).args(["-type", "f", "-exec", "sha256sum", "{}", "+"]);
    let output = find.output().unwrap();
    assert!(output.status.success());
    let mut lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// 4 KiB of data for a transaction, another for each number (xorshift).
fn filler(number: u64) -> String {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let words = (0..512).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    });
    std::iter::once("0x".to_owned()).chain(words).collect()
}

/// Blocks of the chain that is backed up.
const BLOCKS: u64 = 3000;

/// An upgrade backs up a chain by links; the node goes on and on with the data; the backup stays as it was, and geth runs on
/// it once it is put back, from the very block that it was made at.
fn a_snapshot_stays_and_can_be_run_on(engine: &str, immutable: &str) {
    let Some(geth) = Geth::named() else { return };
    let home = &geth.home;
    geth.make_chain(BLOCKS, engine);
    let engine = ["--db.engine", engine];
    geth.add();
    let mut visor = geth.supervise_with(&[], &engine);
    geth.until_version(0);
    geth.until_head(BLOCKS + 1);
    home.run(&["upgrade", "now", "v2"]).code(0);
    let upgrade = home.until_finished("v2", "committed")["last_upgrade"].clone();
    let head = geth.stops()[0];
    let name = text(&upgrade, "backup");
    let backup = home.root().join("backups").join(&name);
    let list = home.run(&["backup", "list", "--json"]).code(0).json();
    let listed = list["backups"].as_array().unwrap().iter().find(|b| b["name"] == name.as_str()).unwrap().clone();
    assert_eq!((listed["head"].as_u64(), &listed["complete"]), (Some(head), &json!(true)), "{listed}");
    assert_eq!((listed["mode"].as_str(), listed["release"].as_str()), (Some("snapshot"), Some("genesis")));
    let before = contents(&backup);
    let fixed = before.iter().filter(|line| line.ends_with(immutable)).count();
    assert!(fixed > 0, "nothing that could be linked: {before:#?}");

    // The node goes on: what it writes makes it throw files away and make others.
    work(&geth);
    home.run(&["restart"]).code(0);
    geth.until_version(1);
    work(&geth);
    visor.stop();
    let stopped = *geth.stops().last().unwrap();
    assert!(stopped > head + 3);
    assert_eq!(contents(&backup), before, "what the node did with its data changed the backup");

    // Back to the backup: the head that it names, and on from there.
    let restored = home.run(&["backup", "restore", &name, "--json"]).code(0).json();
    assert_eq!((restored["head"].as_u64(), restored["restored"].as_str()), (Some(head), Some(name.as_str())));
    assert_eq!(contents(&backup), before, "restoring it changed the backup");
    let mut visor = geth.supervise_with(&[], &engine);
    geth.until_version(1);
    let loaded = home.log();
    let loaded = loaded.lines().rfind(|line| line.contains("Loaded most recent local block")).unwrap();
    let number = loaded.split("number=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    assert_eq!(number.replace(',', "").parse::<u64>().unwrap(), head, "{loaded}");
    geth.until_head(head + 2);
    work(&geth);
    visor.stop();
    assert_eq!(contents(&backup), before, "what the node did on the restored data changed the backup");
    home.run(&["backup", "verify", &name, "--full"]).code(0);
    geth.check_stops();
}

/// Keeps geth busy for some blocks.
fn work(geth: &Geth) {
    let head = geth.until_head(1);
    let ipc = geth.ipc();
    let sender = std::thread::spawn(move || {
        let Some(mut ipc) = Ipc::connect(&ipc) else { return };
        let Some(account) = ipc.account() else { return };
        for number in 0..400_u64 {
            let transaction = json!([{"from": account, "to": account, "data": filler(number), "gas": "0x40000"}]);
            let _ = ipc.call("eth_sendTransaction", transaction);
        }
    });
    sender.join().unwrap();
    geth.until_head(head + 3);
}

#[test]
fn a_snapshot_of_a_real_geth_on_leveldb_stays_as_it_is_and_can_be_run_on() {
    a_snapshot_stays_and_can_be_run_on("leveldb", ".ldb");
}

#[test]
fn a_snapshot_of_a_real_geth_on_pebble_stays_as_it_is_and_can_be_run_on() {
    a_snapshot_stays_and_can_be_run_on("pebble", ".sst");
}
