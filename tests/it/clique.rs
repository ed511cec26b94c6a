//! A rolling upgrade of real signers: a clique network of geth, each node under a supervisor of its own with the same plan.
//! Its blocks tell by which release they were sealed, for geth writes its version into each.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::geth::{Geth, Ipc};
use crate::signers::{Network, Sealed, Signer, faults};
use crate::support::{Visor, until};

/// Three can go on without one of them: two of three seal each second block.
const SIGNERS: u64 = 3;

/// A node with an account and nothing else; none where geth is not named.
fn named() -> Option<Signer> {
    let geth = Geth::named()?;
    let mut signer = Signer::new(geth, String::new());
    let password = signer.put("password", "x");
    let told = signer.geth.says(&["account", "new", "--lightkdf", "--password", &password]);
    let at = told.find("0x").unwrap_or_else(|| panic!("no address: {told}"));
    signer.address = told[at..at + 42].to_lowercase();
    Some(signer)
}

/// The address at which others reach it. A start on data of its own makes the key and tells it: one that ends as soon as it
/// answers may end uncleanly.
fn enode(signer: &Signer) -> String {
    let (datadir, ipc) = (signer.path("key"), signer.path("key.ipc"));
    let mut command = Command::new(signer.geth.home.own("genesis/bin/node"));
    command.args(["--datadir", &datadir, "--ipcpath", &ipc, "--nodiscover", "--port", "0", "--authrpc.port", "0"]);
    let mut node = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let info = until("geth answers", || Ipc::connect(ipc.as_ref())?.call("admin_nodeInfo", json!([])));
    node.kill().unwrap();
    node.wait().unwrap();
    let enode = info["enode"].as_str().unwrap();
    signer.enode(enode.trim_start_matches("enode://").split('@').next().unwrap())
}

/// Starts the supervisor of a node that seals.
fn supervise(signer: &Signer) -> Visor<'_> {
    let [key, password] = ["key/geth/nodekey", "password"].map(|name| signer.path(name));
    let (etherbase, unlock) = (["--miner.etherbase", &signer.address], ["--unlock", &signer.address]);
    signer.supervise(&[&["--nodekey", &key, "--password", &password], &etherbase[..], &unlock[..]].concat())
}

fn sealed(signer: &Signer, number: u64) -> Sealed {
    let author = signer.call("clique_getSigner", json!([format!("{number:#x}")])).unwrap();
    let author = author.as_str().unwrap().to_lowercase();
    // A list of the version as one number (three bytes), the client's name, and more: `d8 83 01 0d 0f 84 "geth"`.
    let extra = signer.block(number)["extraData"].as_str().unwrap().to_owned();
    let byte = |at: usize| u8::from_str_radix(&extra[2 + 2 * at..4 + 2 * at], 16).unwrap();
    let version = format!("{}.{}.{}-", byte(2), byte(3), byte(4));
    let of = |which: usize| format!("{}-", signer.geth.versions[which]).starts_with(&version);
    assert!(of(0) != of(1), "block {number} was sealed by {version}, which is neither: {extra}");
    Sealed { number, sealers: BTreeSet::from([author.clone()]), author, passed: Vec::new(), new: of(1) }
}

/// The first block of a chain that these seal.
fn genesis(signers: &[Signer]) -> Value {
    let forks = ["homestead", "eip150", "eip155", "eip158", "byzantium", "constantinople", "petersburg", "istanbul"];
    let mut config: serde_json::Map<String, Value> =
        forks.iter().chain(&["berlin", "london"]).map(|fork| (format!("{fork}Block"), json!(0))).collect();
    config.insert("chainId".to_owned(), json!(1112));
    config.insert("clique".to_owned(), json!({"period": 1, "epoch": 30000}));
    // 32 bytes of nothing, the signers in order, and a seal that the first block has not.
    let signers: String = signers.iter().map(|signer| &signer.address[2..]).collect();
    let extra = format!("0x{}{signers}{}", "00".repeat(32), "00".repeat(65));
    json!({"config": config, "difficulty": "1", "gasLimit": "8000000", "extradata": extra, "alloc": {}})
}

#[test]
fn real_signers_are_upgraded_one_after_the_other_while_their_chain_goes_on() {
    let signers: Vec<Signer> = (0..SIGNERS).map_while(|_| named()).collect();
    if signers.is_empty() {
        return;
    }
    let network = Network::new(signers);
    let genesis = genesis(&network.signers);
    network.signers.iter().for_each(|signer| signer.begin(&genesis));
    network.introduce(&network.signers.iter().map(enode).collect::<Vec<String>>());
    let mut visors: Vec<Visor> = network.signers.iter().map(supervise).collect();

    network.until_all_have(4);
    // Only here is it known how far the chain is. The height is far behind the last turn: nobody has to hurry for it.
    let (start, spacing) = (network.head() + 10, 16);
    let height = start + SIGNERS * spacing + 150;
    network.signers.iter().for_each(|signer| signer.geth.add());
    network.schedule(height, start, spacing);
    network.until_committed();
    // So many that each has its turn, also where one of them is still looking for its peers.
    let end = network.head() + 6 * SIGNERS;
    // The last blocks of a chain may still be others' on another node.
    network.until_all_have(end + 2 * SIGNERS);
    network.is_one_chain(end);

    let blocks: Vec<Sealed> = (1..=end).map(|number| sealed(&network.signers[0], number)).collect();
    let turns = network.turns(&blocks);
    assert_eq!(faults(&turns, start, spacing, height), Vec::<String>::new());
    network.stop(&mut visors);
}
