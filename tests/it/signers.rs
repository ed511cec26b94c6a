//! A network of real nodes that seal its blocks together, each under a supervisor of its own with the same plan: what the
//! tests with clique and with WBFT share. What counts is in the chain itself: who sealed a block, and by which release.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::geth::{Geth, Ipc};
use crate::support::{Visor, free_port, until_stuck};

/// How long nothing may move before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node that seals.
pub struct Signer {
    pub geth: Geth,
    /// `0x` and 40 digits, in lower case.
    pub address: String,
    port: String,
    authrpc: String,
}

/// A block as the chain has it.
pub struct Sealed {
    pub number: u64,
    /// Who proposed it.
    pub author: String,
    /// Whose seals it has, its author's among them.
    pub sealers: BTreeSet<String>,
    /// Who was to propose it, in the rounds before the one in which it was decided.
    pub passed: Vec<String>,
    /// By the new release.
    pub new: bool,
}

/// How a signer changed its release.
#[derive(Debug, Default, PartialEq)]
pub struct Turn {
    /// The head at which it stopped.
    pub stopped: u64,
    /// The first block after that with its seal.
    pub back: u64,
    /// The last block that it proposed with the old release, and the first one with the new one.
    pub last_old: u64,
    pub first_new: u64,
}

impl Signer {
    pub fn new(geth: Geth, address: String) -> Signer {
        Signer { geth, address, port: free_port().to_string(), authrpc: free_port().to_string() }
    }

    pub fn path(&self, name: &str) -> String {
        self.geth.home.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file beside the home and tells its path.
    pub fn put(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Begins its chain with this first block.
    pub fn begin(&self, genesis: &Value) {
        let path = self.put("genesis.json", &genesis.to_string());
        self.geth.says(&["init", &path]);
    }

    /// The address at which others reach it, of the public key of its node.
    pub fn enode(&self, key: &str) -> String {
        format!("enode://{key}@127.0.0.1:{}", self.port)
    }

    /// The arguments of a node that seals and knows only the peers that are named to it, and more.
    fn args(&self, more: &[&str]) -> Vec<String> {
        let (config, datadir, ipc) = (self.path("peers.toml"), self.geth.home.datadir(), self.geth.ipc());
        let mut args = vec!["--config", &config, "--networkid", "1112", "--nodiscover", "--cache", "64"];
        args.extend(["--datadir", datadir.to_str().unwrap(), "--ipcpath", ipc.to_str().unwrap()]);
        args.extend(["--port", &self.port, "--authrpc.port", &self.authrpc, "--syncmode", "full", "--mine"]);
        args.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
    }

    /// Starts its supervisor.
    pub fn supervise(&self, more: &[&str]) -> Visor<'_> {
        let words = self.args(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ours = ["validator_mode=true", "validator_hold=3s", "height_poll_interval=1s", "min_disk=0"];
        let ours: Vec<&str> = ours.iter().flat_map(|setting| ["--set", *setting]).collect();
        self.geth.home.supervise_with(&ours, &words)
    }

    pub fn call(&self, method: &str, params: Value) -> Option<Value> {
        Ipc::connect(&self.geth.ipc())?.call(method, params)
    }

    /// The head; none while it is down.
    pub fn head(&self) -> Option<u64> {
        quantity(&self.call("eth_blockNumber", json!([]))?)
    }

    pub fn block(&self, number: u64) -> Value {
        self.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).unwrap()
    }
}

pub fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// All of them.
pub struct Network {
    /// In the order of their addresses, which is that of their turns.
    pub signers: Vec<Signer>,
}

impl Network {
    pub fn new(mut signers: Vec<Signer>) -> Network {
        signers.sort_by(|a, b| a.address.cmp(&b.address));
        Network { signers }
    }

    /// Tells each of them where the others are.
    pub fn introduce(&self, enodes: &[String]) {
        for (index, signer) in self.signers.iter().enumerate() {
            let others: Vec<&String> = enodes.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, e)| e).collect();
            // A list of strings is written alike in TOML and in JSON.
            signer.put("peers.toml", &format!("[Node.P2P]\nStaticNodes = {}\n", json!(others)));
        }
    }

    fn heads(&self) -> Vec<Option<u64>> {
        self.signers.iter().map(Signer::head).collect()
    }

    /// The highest head.
    pub fn head(&self) -> u64 {
        self.heads().into_iter().flatten().max().unwrap()
    }

    #[track_caller]
    pub fn until(&self, why: &str, done: impl Fn(&Signer) -> bool) {
        until_stuck(why, PATIENCE, || self.heads(), || self.signers.iter().all(&done).then_some(()));
    }

    #[track_caller]
    pub fn until_all_have(&self, number: u64) {
        self.until(&format!("all have block {number}"), |signer| signer.head().is_some_and(|head| head >= number));
    }

    #[track_caller]
    pub fn until_committed(&self) {
        let committed = |signer: &Signer| signer.geth.home.history().last().is_some_and(|l| l["result"] == "committed");
        self.until("all have committed", committed);
    }

    /// Plans the upgrade to `v2` with turns from this block on.
    pub fn schedule(&self, height: u64, start: u64, spacing: u64) {
        let info = json!({"rolling": {"start": start, "spacing": spacing}}).to_string();
        for signer in &self.signers {
            signer.geth.home.run(&["upgrade", "schedule", "v2", &height.to_string(), "--info", &info]).code(0);
        }
    }

    /// All have the same block of this number.
    #[track_caller]
    pub fn is_one_chain(&self, number: u64) {
        let hashes: Vec<Value> = self.signers.iter().map(|signer| signer.block(number)["hash"].take()).collect();
        assert!(hashes[0].is_string() && hashes.iter().all(|hash| *hash == hashes[0]), "one chain: {hashes:?}");
    }

    /// How each of them changed its release.
    #[track_caller]
    pub fn turns(&self, blocks: &[Sealed]) -> Vec<Turn> {
        // The last block that one sealed may be older than the head at which it stopped.
        let stopped = |signer: &Signer| signer.geth.stops()[0];
        self.signers.iter().map(|signer| turn(&signer.address, stopped(signer), blocks)).collect()
    }

    /// Ends all of them, cleanly as ever.
    #[track_caller]
    pub fn stop(&self, visors: &mut [Visor]) {
        visors.iter_mut().for_each(Visor::stop);
        for signer in &self.signers {
            for bad in ["Unclean shutdown", "interrupt more to panic", "UNCLEAN"] {
                assert_eq!(signer.geth.home.logged(bad), 0, "{bad}");
            }
            let history = signer.geth.home.history();
            assert_eq!((history.len(), &history[0]["clean_stop"]), (1, &json!(true)));
        }
    }
}

/// How the one with this address changed its release, having stopped at this head.
#[track_caller]
pub fn turn(address: &str, stopped: u64, blocks: &[Sealed]) -> Turn {
    let mut turn = Turn { stopped, ..Turn::default() };
    for block in blocks {
        if turn.back == 0 && block.number > stopped && block.sealers.contains(address) {
            turn.back = block.number;
        }
        if block.author == address {
            match (block.new, turn.first_new) {
                (true, 0) => turn.first_new = block.number,
                (true, _) => {}
                (false, 0) => turn.last_old = block.number,
                (false, first) => panic!("{address} sealed {} with the old release after {first}", block.number),
            }
        }
    }
    turn
}

/// What is not as promised of these turns, by rank: each in its own, before the height, and no two down at a time.
pub fn faults(turns: &[Turn], start: u64, spacing: u64, height: u64) -> Vec<String> {
    let mut faults = Vec::new();
    for (rank, turn) in (0..).zip(turns) {
        let due = start + rank * spacing;
        if turn.last_old == 0 || !(due..height).contains(&turn.first_new) {
            faults.push(format!("rank {rank} was due from {due} on, before {height}: {turn:?}"));
        }
        for (other, earlier) in turns.iter().enumerate().take(rank as usize) {
            if is_down(earlier, turn.stopped + 1) || is_down(turn, earlier.stopped + 1) {
                faults.push(format!("{other} and {rank} were down at a time: {earlier:?}, {turn:?}"));
            }
        }
    }
    faults
}

/// Whether one had no part in a block because it was down, or not back yet.
fn is_down(turn: &Turn, number: u64) -> bool {
    number > turn.stopped && (turn.back == 0 || number < turn.back)
}

/// The blocks that needed more than one round more because those that were to propose them were down. What else failed is
/// the slowness of the machine, or the client's own.
pub fn held_up(blocks: &[Sealed], turns: &[(&str, &Turn)]) -> Vec<u64> {
    let lost = |block: &Sealed| {
        let down = |address: &&String| turns.iter().any(|(of, turn)| of == address && is_down(turn, block.number));
        block.passed.iter().filter(down).count()
    };
    blocks.iter().filter(|block| lost(block) > 1).map(|block| block.number).collect()
}
