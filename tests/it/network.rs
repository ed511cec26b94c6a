//! The mock network by itself, without wemixvisor: it goes on as long as a quorum is up, and what its nodes tell is true.
//! What the rolling upgrades are judged by must first be seen to see.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::ledger::{Network, key, quorum};
use crate::support::{Home, mocknode, until};
use crate::trace::{KILLED, Trace};

/// Tells the networks of this process apart.
pub fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Blocks come quickly, rounds end early: for tests that do not mind a round too many on a slow machine.
fn hasty(count: usize) -> Network {
    Network::new(count, next_number(), Duration::from_millis(50), Duration::from_millis(300))
}

/// Gives a data directory the identity of a member, before its first start.
pub fn settle(datadir: &std::path::Path, index: usize) {
    fs::create_dir_all(datadir.join("geth")).unwrap();
    fs::write(datadir.join("geth/nodekey"), key(index)).unwrap();
}

/// Asks a node over IPC.
#[track_caller]
pub fn ask(datadir: &std::path::Path, method: &str, params: Value) -> Value {
    let mut stream = until("the IPC socket is there", || UnixStream::connect(datadir.join("geth.ipc")).ok());
    writeln!(stream, "{}", json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let mut reply: Value = serde_json::from_str(&line).unwrap();
    assert!(reply.get("error").is_none(), "{method}: {reply}");
    reply["result"].take()
}

/// Nodes without supervisors.
struct Nodes {
    home: Home,
    network: Network,
    children: Vec<Option<Child>>,
}

impl Nodes {
    /// None runs yet.
    fn new(network: Network) -> Nodes {
        let home = Home::empty();
        network.write(&home.dir.join("network.json")).unwrap();
        let children = network.members.iter().map(|_| None).collect();
        let nodes = Nodes { home, network, children };
        for index in 0..nodes.children.len() {
            settle(&nodes.datadir(index), index);
        }
        nodes
    }

    /// All run.
    fn up(network: Network) -> Nodes {
        let mut nodes = Nodes::new(network);
        for index in 0..nodes.children.len() {
            nodes.start(index, &[]);
        }
        nodes
    }

    fn datadir(&self, index: usize) -> PathBuf {
        self.home.dir.join(index.to_string())
    }

    fn start(&mut self, index: usize, flags: &[&str]) {
        let log = File::options().append(true).create(true).open(self.home.dir.join(format!("{index}.log"))).unwrap();
        let mut command = Command::new(mocknode());
        command.arg("--datadir").arg(self.datadir(index)).arg("--network").arg(self.home.dir.join("network.json"));
        command.arg("--mine").args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.children[index] = Some(command.spawn().unwrap());
    }

    /// Kills a node.
    fn kill(&mut self, index: usize) {
        let mut child = self.children[index].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let mut journal = File::options().append(true).open(self.datadir(index).join("mock.journal")).unwrap();
        writeln!(journal, "{KILLED} {} - {now}", child.id()).unwrap();
    }

    fn trace(&self) -> Trace {
        let datadirs: Vec<PathBuf> = (0..self.children.len()).map(|index| self.datadir(index)).collect();
        Trace::read(&self.network, &datadirs)
    }

    /// Waits for a trace that shows something.
    #[track_caller]
    fn until(&self, why: &str, what: impl Fn(&Trace) -> bool) -> Trace {
        until(why, || Some(self.trace()).filter(|trace| what(trace)))
    }

    /// Waits until all of these have so many blocks.
    #[track_caller]
    fn until_at(&self, members: &[usize], number: u64) -> Trace {
        self.until(&format!("{members:?} have block {number}"), |t| {
            members.iter().all(|i| t.nodes[*i].head() >= number)
        })
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.trace().table());
        }
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All nodes have the same blocks, each the child of the one before, signed by a quorum of its set.
#[track_caller]
pub fn is_one_chain(trace: &Trace) {
    for node in &trace.nodes {
        for (own, block) in node.blocks.iter().zip(&trace.blocks) {
            assert_eq!((own.number, &own.hash), (block.number, &block.hash));
        }
    }
    for pair in trace.blocks.windows(2) {
        assert_eq!((&pair[1].parent, pair[1].number), (&pair[0].hash, pair[0].number + 1));
        assert!(pair[1].time_ms > pair[0].time_ms);
        let set = trace.network.set(pair[1].number);
        assert!(set.contains(&pair[1].author), "{:?}", pair[1]);
        assert!(pair[1].committers.iter().all(|signer| set.contains(signer)), "{:?}", pair[1]);
        assert!(pair[1].committers.len() >= quorum(set.len()), "{:?}", pair[1]);
        if pair[1].round == 0 {
            assert_eq!(pair[1].author, trace.network.proposer(&pair[0], 0));
        }
    }
}

#[test]
fn validators_make_one_chain_in_turn_and_all_sign() {
    let nodes = Nodes::up(hasty(4));
    let trace = nodes.until_at(&[0, 1, 2, 3], 12);
    is_one_chain(&trace);
    for member in &trace.network.members {
        assert!(trace.blocks.iter().any(|block| block.author == member.address), "{}", trace.table());
        assert!(trace.blocks.iter().any(|block| block.committers.contains(&member.address)), "{}", trace.table());
    }
    assert_eq!((trace.double_votes(), trace.halts(), trace.most_down()), (vec![], vec![], 0));
}

#[test]
fn one_of_four_may_be_down_which_costs_a_round_when_it_is_its_turn() {
    let mut nodes = Nodes::up(hasty(4));
    nodes.until_at(&[0, 1, 2, 3], 4);
    nodes.kill(3);
    let fallen = nodes.trace().head() + 1;
    let others = [0, 1, 2];
    let trace = nodes.until_at(&others, fallen + 10);
    let address = &trace.network.members[3].address;
    for number in fallen + 1..=fallen + 10 {
        let (parent, block) = (trace.block(number - 1).unwrap(), trace.block(number).unwrap());
        assert!(!block.committers.contains(address) && block.author != *address, "{}", trace.table());
        assert!(block.round > 0 || trace.network.proposer(parent, 0) != *address, "{}", trace.table());
    }
    assert!(trace.blocks.iter().any(|block| block.number > fallen && block.round > 0), "{}", trace.table());
    // Back, it gets what it missed, and signs again.
    nodes.start(3, &[]);
    let trace =
        nodes.until("it signs again", |t| t.nodes[3].head() > fallen + 10 && t.nodes[3].downs[0].until < u64::MAX);
    is_one_chain(&trace);
    assert_eq!((trace.most_down(), trace.halts(), trace.held_up()), (1, vec![], vec![]), "{}", trace.table());
    assert!(trace.double_votes().is_empty());
}

#[test]
fn without_a_quorum_the_chain_stands_while_rounds_double_and_goes_on_with_one() {
    let mut nodes = Nodes::up(hasty(4));
    nodes.until_at(&[0, 1, 2, 3], 4);
    nodes.kill(2);
    nodes.kill(3);
    let rounds = |trace: &Trace, height: u64| -> Vec<(u64, u64)> {
        let events = trace.nodes[0].events("round");
        let here = events.iter().filter(|line| line[4] == height.to_string());
        here.map(|line| (line[5].parse().unwrap(), line[6].parse().unwrap())).collect()
    };
    let trace = nodes.until("three rounds failed at one height", |t| {
        t.nodes[0].head() == t.nodes[1].head() && rounds(t, t.head() + 1).iter().any(|(round, _)| *round >= 3)
    });
    let stood_at = trace.head();
    for (round, timeout) in rounds(&trace, stood_at + 1) {
        assert_eq!(timeout, 300 << round, "twice the time each round");
    }
    nodes.start(3, &[]);
    let trace = nodes.until_at(&[0, 1, 3], stood_at + 5);
    assert!(trace.block(stood_at + 1).unwrap().round >= 3, "it joins the others' round: {}", trace.table());
    assert!(trace.halts().contains(&(stood_at + 1)) && trace.most_down() == 2, "{}", trace.table());
    assert!(trace.held_up().contains(&(stood_at + 1)), "{}", trace.table());
    is_one_chain(&trace);
}

#[test]
fn all_may_stop_and_their_chain_goes_on_where_it_was() {
    let mut nodes = Nodes::up(hasty(3));
    nodes.until_at(&[0, 1, 2], 5);
    for index in 0..3 {
        nodes.kill(index);
    }
    let head = nodes.trace().head();
    for index in 0..3 {
        nodes.start(index, &[]);
    }
    is_one_chain(&nodes.until_at(&[0, 1, 2], head + 5));
}

#[test]
fn three_have_no_slack_and_one_needs_nobody() {
    let mut nodes = Nodes::up(hasty(3));
    nodes.until_at(&[0, 1, 2], 3);
    nodes.kill(1);
    let head = nodes.until("they stand at one height", |t| {
        let last = |i: usize| t.nodes[i].events("round").last().map(|line| (line[4].clone(), line[5].clone()));
        let high = |i: usize| last(i).is_some_and(|(_, round)| round.parse::<u64>().unwrap() >= 2);
        high(0) && high(2)
    });
    assert_eq!(head.nodes[0].head(), head.nodes[2].head());
    nodes.start(1, &[]);
    nodes.until_at(&[0, 1, 2], head.head() + 3);

    let nodes = Nodes::up(hasty(1));
    let trace = nodes.until_at(&[0], 5);
    assert!(trace.blocks.iter().all(|block| block.round == 0 && block.committers.len() == 1));
}

#[test]
fn what_a_node_tells_of_blocks_and_validators_is_what_happened() {
    let mut network = hasty(4);
    network.epoch = 5;
    network.sets[0].members = vec![2, 0, 3, 1];
    let mut nodes = Nodes::up(network);
    nodes.until_at(&[0, 1, 2, 3], 4);
    nodes.kill(3);
    let trace = nodes.until_at(&[0, 1, 2], 17);
    let datadir = nodes.datadir(1);
    let ask = |method: &str, params: Value| ask(&datadir, method, params);
    assert_eq!(ask("istanbul_nodeAddress", json!([])), json!(trace.network.members[1].address));
    assert_eq!(ask("istanbul_getValidators", json!(["latest"])), json!(trace.network.set(1)), "in proposer order");
    assert_eq!(ask("istanbul_isValidator", json!([])), true);
    let nobody: serde_json::Map<String, Value> =
        trace.network.set(15).into_iter().map(|address| (address, json!(0))).collect();
    let (mut signed, mut made, mut rounds) = (json!(nobody), json!(nobody), json!({}));
    let count = |counts: &mut Value, key: &str| counts[key] = json!(counts[key].as_u64().unwrap_or(0) + 1);
    for block in trace.blocks.iter().filter(|block| (2..=15).contains(&block.number)) {
        let number = format!("{:#x}", block.number);
        let told = ask("eth_getBlockByNumber", json!([number, false]));
        let time = format!("{:#x}", block.time_ms / 1000);
        assert_eq!((&told["hash"], &told["miner"]), (&json!(block.hash), &json!(block.author)));
        assert_eq!((&told["parentHash"], &told["timestamp"]), (&json!(block.parent), &json!(time)));
        let told = ask("istanbul_getCommitSignersFromBlock", json!([number]));
        assert_eq!((&told["Number"], &told["Hash"]), (&json!(block.number), &json!(block.hash)));
        // Round and signers are not part of a block: a proposer knows the signers, the others have them from it.
        assert_eq!((&told["Author"], &told["Committers"]), (&json!(block.author), &json!(block.committers)));
        let told = ask("istanbul_getWbftExtraInfo", json!([number]));
        assert_eq!(
            (&told["round"], &told["committedSeal"]["sealers"]),
            (&json!(format!("{:#x}", block.round)), &json!(block.committers))
        );
        assert_eq!(told["epochInfo"].is_null(), !block.number.is_multiple_of(5), "{told}");
        if !told["epochInfo"].is_null() {
            let next: Vec<&Value> =
                told["epochInfo"]["validators"].as_array().unwrap().iter().map(|v| &v["addr"]).collect();
            assert_eq!(json!(next), json!(trace.network.set(block.number + 1)));
        }
        count(&mut made, &block.author);
        count(&mut rounds, &block.round.to_string());
        block.committers.iter().for_each(|signer| count(&mut signed, signer));
    }
    let status = ask("istanbul_status", json!(["0x2", "0xf"]));
    assert_eq!((&status["sealerActivity"]["committed"], &status["author"]), (&signed, &made));
    assert_eq!(status["roundStats"]["roundDistribution"], rounds);
    assert_eq!(ask("eth_getBlockByNumber", json!(["0xffffff", false])), Value::Null);
    until("the one that is down is no peer", || (ask("net_peerCount", json!([])) == "0x2").then_some(()));
}

#[test]
fn the_set_changes_after_the_last_block_of_an_epoch() {
    let mut network = hasty(5);
    network.epoch = 10;
    network.sets[0].members = vec![0, 1, 2, 3];
    let nodes = Nodes::up(network.then(11, &[4, 2, 1, 0]));
    let trace = nodes.until_at(&[0, 1, 2, 3, 4], 20);
    is_one_chain(&trace);
    assert_eq!(trace.block(10).unwrap().next, Some(trace.network.set(11)));
    assert_eq!((trace.first_vote(4, "-"), trace.last_vote(3, "-")), (Some(11), Some(10)));
    let datadir = nodes.datadir(4);
    assert_eq!(ask(&datadir, "istanbul_getValidators", json!(["0xa"])), json!(trace.network.set(10)), "who sealed it");
    assert_eq!(ask(&datadir, "istanbul_getValidators", json!(["0xb"])), json!(trace.network.set(11)));
    assert_eq!(ask(&datadir, "istanbul_isValidator", json!(["0xa"])), false);
    assert_eq!(ask(&datadir, "istanbul_isValidator", json!(["0xb"])), true);
}

#[test]
fn an_old_release_stands_still_before_the_fork_and_signs_nothing_after_it() {
    let mut nodes = Nodes::new(hasty(4));
    for index in 0..4 {
        nodes.start(index, if index == 3 { &["--halt-at", "9"] } else { &[] });
    }
    let trace = nodes.until_at(&[0, 1, 2], 20);
    assert_eq!(trace.nodes[3].head(), 9);
    assert_eq!(trace.last_vote(3, "-"), Some(9));
    // A new one in its place takes up what it missed.
    nodes.kill(3);
    nodes.start(3, &[]);
    let trace = nodes.until("it signs", |t| t.last_vote(3, "-").is_some_and(|height| height > 20));
    is_one_chain(&trace);
}

#[test]
fn a_control_validator_that_is_back_before_its_block_is_decided_is_seen_to_sign_twice() {
    let mut nodes = Nodes::new(hasty(2));
    nodes.start(0, &[]);
    // Until a block comes that the first is to propose and the second does not sign.
    let height = (6..)
        .find(|last| {
            nodes.start(1, &["--halt-at", &last.to_string()]);
            let trace = nodes.until_at(&[0, 1], *last);
            let own = trace.network.proposer(trace.block(*last).unwrap(), 0) == trace.network.members[0].address;
            if !own {
                nodes.kill(1);
            }
            own
        })
        .unwrap()
        + 1;
    nodes.until("it has signed", |t| t.last_vote(0, "-") == Some(height));
    assert!(nodes.trace().double_votes().is_empty());
    nodes.kill(0);
    nodes.start(0, &[]);
    let trace = nodes.until("it has signed twice", |t| !t.double_votes().is_empty());
    assert_eq!(trace.double_votes(), [format!("validator 0: prepare at height {height}, round 0")]);
}
