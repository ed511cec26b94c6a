//! A rolling upgrade of real signers: a clique network of geth, each node under a supervisor of its own with the same plan.
//! What counts is in the chain itself: who sealed a block, and by which release, for geth writes its version into each.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::geth::{Geth, Ipc};
use crate::support::{Visor, free_port, until, until_stuck};

/// Three can go on without one of them: two of three seal each second block.
const SIGNERS: u64 = 3;

/// How long nothing may move before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node that seals.
struct Signer {
    geth: Geth,
    /// `0x` and 40 digits.
    address: String,
    port: String,
    authrpc: String,
}

/// A block as the chain has it.
struct Sealed {
    number: u64,
    signer: String,
    /// By the new release.
    new: bool,
}

impl Signer {
    /// A node with an account and nothing else; none where geth is not named.
    fn named() -> Option<Signer> {
        let geth = Geth::named()?;
        let mut signer =
            Signer { geth, address: String::new(), port: free_port().to_string(), authrpc: free_port().to_string() };
        let password = signer.put("password", "x");
        let told = signer.geth_says(&["account", "new", "--lightkdf", "--password", &password]);
        let at = told.find("0x").unwrap_or_else(|| panic!("no address: {told}"));
        signer.address = told[at..at + 42].to_lowercase();
        Some(signer)
    }

    fn path(&self, name: &str) -> String {
        self.geth.home.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file beside the home and tells its path.
    fn put(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn old(&self) -> PathBuf {
        self.geth.home.own("genesis/bin/node")
    }

    /// Runs the old release on its data to the end.
    fn geth_says(&self, args: &[&str]) -> String {
        let output =
            Command::new(self.old()).arg("--datadir").arg(self.geth.home.datadir()).args(args).output().unwrap();
        assert!(output.status.success(), "geth {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The address at which others reach it. A start on data of its own makes the key and tells it: one that ends as soon as
    /// it answers may end uncleanly.
    fn enode(&self) -> String {
        let (datadir, ipc) = (self.path("key"), self.path("key.ipc"));
        let mut command = Command::new(self.old());
        command.args(["--datadir", &datadir, "--ipcpath", &ipc, "--nodiscover", "--port", "0", "--authrpc.port", "0"]);
        let mut node = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let info = until("geth answers", || Ipc::connect(ipc.as_ref())?.call("admin_nodeInfo", json!([])));
        node.kill().unwrap();
        node.wait().unwrap();
        let enode = info["enode"].as_str().unwrap();
        format!("{}@127.0.0.1:{}", enode.split('@').next().unwrap(), self.port)
    }

    /// The arguments of a node that seals and knows only the peers that are named to it.
    fn args(&self) -> Vec<String> {
        let [config, key, password] = ["peers.toml", "key/geth/nodekey", "password"].map(|name| self.path(name));
        let (datadir, ipc) = (self.geth.home.datadir(), self.geth.ipc());
        let mut args = vec!["--config", &config, "--nodekey", &key, "--networkid", "1112", "--nodiscover"];
        args.extend(["--datadir", datadir.to_str().unwrap(), "--ipcpath", ipc.to_str().unwrap(), "--cache", "64"]);
        args.extend(["--port", &self.port, "--authrpc.port", &self.authrpc, "--syncmode", "full", "--mine"]);
        args.extend(["--miner.etherbase", &self.address, "--unlock", &self.address, "--password", &password]);
        args.into_iter().map(str::to_owned).collect()
    }

    fn supervise(&self) -> Visor<'_> {
        let words = self.args();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ours = ["validator_mode=true", "validator_hold=3s", "height_poll_interval=1s", "min_disk=0"];
        let ours: Vec<&str> = ours.iter().flat_map(|setting| ["--set", *setting]).collect();
        self.geth.home.supervise_with(&ours, &words)
    }

    fn call(&self, method: &str, params: Value) -> Option<Value> {
        Ipc::connect(&self.geth.ipc())?.call(method, params)
    }

    /// The head; none while it is down.
    fn head(&self) -> Option<u64> {
        quantity(&self.call("eth_blockNumber", json!([]))?)
    }

    fn block(&self, number: u64) -> Value {
        self.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).unwrap()
    }

    fn sealed(&self, number: u64) -> Sealed {
        let signer = self.call("clique_getSigner", json!([format!("{number:#x}")])).unwrap();
        // A list of the version as one number (three bytes), the client's name, and more: `d8 83 01 0d 0f 84 "geth"`.
        let extra = self.block(number)["extraData"].as_str().unwrap().to_owned();
        let byte = |at: usize| u8::from_str_radix(&extra[2 + 2 * at..4 + 2 * at], 16).unwrap();
        let version = format!("{}.{}.{}-", byte(2), byte(3), byte(4));
        let of = |which: usize| format!("{}-", self.geth.versions[which]).starts_with(&version);
        assert!(of(0) != of(1), "block {number} was sealed by {version}, which is neither: {extra}");
        Sealed { number, signer: signer.as_str().unwrap().to_lowercase(), new: of(1) }
    }
}

fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// The first block of a chain that these seal.
fn genesis(addresses: &[String]) -> Value {
    let forks = ["homestead", "eip150", "eip155", "eip158", "byzantium", "constantinople", "petersburg", "istanbul"];
    let mut config: serde_json::Map<String, Value> =
        forks.iter().chain(&["berlin", "london"]).map(|fork| (format!("{fork}Block"), json!(0))).collect();
    config.insert("chainId".to_owned(), json!(1112));
    config.insert("clique".to_owned(), json!({"period": 1, "epoch": 30000}));
    // 32 bytes of nothing, the signers in order, and a seal that the first block has not.
    let signers: String = addresses.iter().map(|address| &address[2..]).collect();
    let extra = format!("0x{}{signers}{}", "00".repeat(32), "00".repeat(65));
    json!({"config": config, "difficulty": "1", "gasLimit": "8000000", "extradata": extra, "alloc": {}})
}

#[test]
fn real_signers_are_upgraded_one_after_the_other_while_their_chain_goes_on() {
    let signers: Vec<Signer> = (0..SIGNERS).map_while(|_| Signer::named()).collect();
    if signers.is_empty() {
        return;
    }
    let mut order: Vec<String> = signers.iter().map(|signer| signer.address.clone()).collect();
    order.sort();
    for signer in &signers {
        let path = signer.put("genesis.json", &genesis(&order).to_string());
        signer.geth_says(&["init", &path]);
    }
    let enodes: Vec<String> = signers.iter().map(Signer::enode).collect();
    for (index, signer) in signers.iter().enumerate() {
        let others: Vec<&String> = enodes.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, e)| e).collect();
        // A list of strings is written alike in TOML and in JSON.
        signer.put("peers.toml", &format!("[Node.P2P]\nStaticNodes = {}\n", json!(others)));
    }
    let mut visors: Vec<Visor> = signers.iter().map(Signer::supervise).collect();
    let heads = || signers.iter().map(Signer::head).collect::<Vec<Option<u64>>>();
    let until = |why: &str, done: &dyn Fn() -> bool| until_stuck(why, PATIENCE, heads, || done().then_some(()));

    until("all have a chain", &|| heads().iter().all(|head| head.is_some_and(|head| head >= 4)));
    // Only here is it known how far the chain is. The height is far behind the last turn: nobody has to hurry for it.
    let (start, spacing) = (heads().into_iter().flatten().max().unwrap() + 10, 16);
    let height = start + SIGNERS * spacing + 150;
    let info = json!({"rolling": {"start": start, "spacing": spacing}}).to_string();
    for signer in &signers {
        signer.geth.add();
        signer.geth.home.run(&["upgrade", "schedule", "v2", &height.to_string(), "--info", &info]).code(0);
    }
    until("all have committed", &|| {
        let committed = |signer: &Signer| signer.geth.home.history().last().is_some_and(|l| l["result"] == "committed");
        signers.iter().all(committed)
    });
    let upgraded = heads().into_iter().flatten().max().unwrap();
    // So many that each has its turn, also where one of them is still looking for its peers.
    let end = upgraded + 6 * SIGNERS;
    // The last blocks of a chain may still be others' on another node.
    let settled = end + 2 * SIGNERS;
    until("the chain goes on", &|| heads().iter().all(|head| head.is_some_and(|head| head >= settled)));

    let hashes: Vec<Value> = signers.iter().map(|signer| signer.block(end)["hash"].take()).collect();
    assert!(hashes[0].is_string() && hashes.iter().all(|hash| *hash == hashes[0]), "one chain: {hashes:?}");

    // For each signer the last block by the old release and the first by the new one.
    let mut turns: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for block in (1..=end).map(|number| signers[0].sealed(number)) {
        let turn = turns.entry(block.signer.clone()).or_insert((0, 0));
        match (block.new, turn.1) {
            (false, 0) => turn.0 = block.number,
            (true, 0) => turn.1 = block.number,
            (false, first) => panic!("{} sealed {} with the old release after {first}", block.signer, block.number),
            (true, _) => {}
        }
    }
    assert_eq!(turns.keys().cloned().collect::<Vec<String>>(), order, "all of them seal");
    for (rank, (last_old, first_new)) in (0..).zip(turns.values()) {
        let turn = start + rank * spacing;
        assert!(*last_old > 0 && *first_new >= turn && *first_new < height, "rank {rank}: {turns:?}, turn {turn}");
    }
    // The last block that one sealed may be older than the head at which it stopped.
    let stopped: Vec<u64> = order
        .iter()
        .filter_map(|address| signers.iter().find(|signer| signer.address == *address))
        .map(|signer| signer.geth.stops()[0])
        .collect();
    for ((_, first_new), stopped) in turns.values().zip(&stopped[1..]) {
        assert!(first_new <= stopped, "one signs again before the next one stops: {turns:?}, it at {stopped}");
    }
    for (signer, visor) in signers.iter().zip(&mut visors) {
        visor.stop();
        for bad in ["Unclean shutdown", "interrupt more to panic", "UNCLEAN"] {
            assert_eq!(signer.geth.home.logged(bad), 0, "{bad}");
        }
        assert_eq!(signer.geth.home.history().len(), 1);
    }
}
