//! A rolling upgrade of four real WBFT validators across a real hard fork: a private network of gstable, which
//! `WEMIXVISOR_GSTABLE` names, and, where there is one, `WEMIXVISOR_GSTABLE_OLD` an older release of it from which they come.
//! Without the first variable this test says so and does nothing.
//!
//! Which release proposed a block is in the block: the new one has arguments of its own (`node-args`) with a text for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Once;

use serde_json::{Value, json};

use crate::geth::{Geth, named};
use crate::hooks::hook;
use crate::signers::{Network, Sealed, Signer, Turn, faults, held_up, quantity, turn};
use crate::support::Visor;

/// Blocks between two turns. One that comes back is missed for about eight, and then has to be seen in as many.
const SPACING: u64 = 24;

/// What the new release writes into its blocks.
const MARK: &str = "release v2";

/// The contract that the fork replaces.
const MINTER: &str = "0x0000000000000000000000000000000000001003";

/// The two releases, which may be the same; none where none is named.
fn releases() -> Option<[PathBuf; 2]> {
    let Some(new) = named("WEMIXVISOR_GSTABLE") else {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            let _ = writeln!(std::io::stderr(), "gstable: SKIPPED: WEMIXVISOR_GSTABLE does not name a gstable");
        });
        return None;
    };
    Some([named("WEMIXVISOR_GSTABLE_OLD").unwrap_or_else(|| new.clone()), new])
}

/// Known keys: of a node, and what follows from it: its address, its public BLS key (gstable's `genesis_generator` tells it)
/// and its public key (`admin_nodeInfo`).
fn keys() -> Vec<Value> {
    serde_json::from_str(include_str!("../../fixtures/wbft.json")).unwrap()
}

/// The first block of their chain; with the height of a fork, as the new release has to know it: the block is the same.
fn genesis(keys: &[Value], fork: Option<u64>) -> Value {
    let all = |key: &str| keys.iter().map(|one| one[key].as_str().unwrap()).collect::<Vec<&str>>();
    let (addresses, bls) = (all("address"), all("bls"));
    let contract = |place: u64, more: Value| {
        let mut params =
            json!({"members": addresses.join(","), "quorum": "3", "expiry": "604800", "memberVersion": "1"});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"address": format!("{place:#042x}"), "version": "v1", "params": params})
    };
    let (token, minters) = (format!("{:#042x}", 0x1000), MINTER);
    let coin = json!({
        "name": "TEST", "symbol": "TEST", "currency": "KRW", "decimals": "18", "minters": minters,
        "masterMinter": format!("{:#042x}", 0x1002), "minterAllowed": "1000000"
    });
    let contracts = json!({
        "nativeCoinAdapter": {"address": token, "version": "v1", "params": coin},
        "govValidator": contract(0x1001, json!({
            "validators": addresses.join(","), "blsPublicKeys": bls.join(","), "gasTip": "1"
        })),
        "govMasterMinter": contract(0x1002, json!({
            "fiatToken": token, "minters": minters, "maxMinterAllowance": "1000000", "maxProposals": "3"
        })),
        "govMinter": contract(0x1003, json!({"fiatToken": token, "maxProposals": "3"})),
        "govCouncil": contract(0x1004, json!({"maxProposals": "3"})),
    });
    let wbft = json!({"blockPeriodSeconds": 1, "requestTimeoutSeconds": 2, "epochLength": 10, "proposerPolicy": 0});
    let forks = ["homestead", "eip150", "eip155", "eip158", "byzantium", "constantinople", "petersburg", "istanbul"];
    let more = ["muirGlacier", "berlin", "london", "applepie"];
    let mut config: serde_json::Map<String, Value> =
        forks.iter().chain(&more).map(|fork| (format!("{fork}Block"), json!(0))).collect();
    config.insert("chainId".to_owned(), json!(1112));
    let init = json!({"validators": addresses, "blsPublicKeys": bls});
    config.insert("anzeon".to_owned(), json!({"wbft": wbft, "init": init, "systemContracts": contracts}));
    if let Some(height) = fork {
        config.insert("bohoBlock".to_owned(), json!(height));
        let minter = json!({"systemContracts": {"govMinter": {"address": MINTER, "version": "v2"}}});
        config.insert("boho".to_owned(), minter);
    }
    json!({"config": config, "difficulty": "1", "gasLimit": "105000000", "alloc": {}})
}

/// A validator that has its key and the chain's first block.
fn validator([old, new]: &[PathBuf; 2], key: &Value, genesis: &Value) -> Signer {
    let signer = Signer::new(Geth::of(old, new), key["address"].as_str().unwrap().to_owned());
    let instance = signer.geth.home.datadir().join("gstable");
    fs::create_dir_all(&instance).unwrap();
    fs::write(instance.join("nodekey"), key["nodekey"].as_str().unwrap()).unwrap();
    signer.begin(genesis);
    signer
}

/// Installs the new release, its arguments, and the hook that tells it of the fork.
fn add(signer: &Signer, genesis: &Value) {
    signer.geth.add();
    let new = signer.put("new-genesis.json", &genesis.to_string());
    let datadir = signer.geth.home.datadir();
    let init = format!(
        "exec \"$DAEMON_HOME/wemixvisor/upgrades/$1/bin/$DAEMON_NAME\" --datadir {} init {new}",
        datadir.display()
    );
    hook(&signer.geth.home, "upgrades/v2/pre-upgrade", &init);
    let args = format!("%{{args}}\n--miner.extradata\n{MARK}\n");
    fs::write(signer.geth.home.own("upgrades/v2/node-args"), args).unwrap();
}

/// A block, of which the next one is there.
fn sealed(signer: &Signer, number: u64) -> Sealed {
    let ask = |method: &str, number: u64| signer.call(method, json!([format!("{number:#x}")])).unwrap();
    let author = |number: u64| signer.block(number)["miner"].as_str().unwrap().to_lowercase();
    let extra = ask("istanbul_getWbftExtraInfo", number);
    // Seals that were late are in the next block.
    let late = ask("istanbul_getWbftExtraInfo", number + 1)["prevCommittedSeal"].take();
    let seals = [&extra["committedSeal"], &late].map(|seal| seal["sealers"].as_array().unwrap());
    let sealers = seals.into_iter().flatten().map(|address| address.as_str().unwrap().to_lowercase());
    // In the order in which they propose: the next after who proposed the block before, one more for each round.
    let set = ask("istanbul_getValidators", number);
    let set: Vec<&str> = set.as_array().unwrap().iter().map(|address| address.as_str().unwrap()).collect();
    let last = if number == 1 { None } else { Some(author(number - 1)) };
    let first = last.and_then(|last| set.iter().position(|address| *address == last)).map_or(0, |place| place + 1);
    let rounds = usize::try_from(quantity(&extra["round"]).unwrap()).unwrap();
    Sealed {
        number,
        author: author(number),
        sealers: sealers.collect(),
        passed: (0..rounds).map(|round| set[(first + round) % set.len()].to_owned()).collect(),
        new: extra["vanityData"] == MARK,
    }
}

#[test]
fn four_real_validators_are_upgraded_in_turns_and_pass_a_hard_fork_together() {
    let Some(releases) = releases() else { return };
    let keys = keys();
    let first = genesis(&keys, None);
    let network = Network::new(keys.iter().map(|key| validator(&releases, key, &first)).collect());
    let public = network.signers.iter().zip(&keys).map(|(signer, key)| signer.enode(key["enode"].as_str().unwrap()));
    network.introduce(&public.collect::<Vec<String>>());
    // With few peers gstable looks only every ten seconds for blocks that it missed.
    let supervise = |signer| Signer::supervise(signer, &["--sync.forcecycle", "1s"]);
    let mut visors: Vec<Visor> = network.signers.iter().map(supervise).collect();

    // Two rounds of the whole set.
    network.until_all_have(8);
    let (start, count) = (network.head() + 10, network.signers.len() as u64);
    // Room for one that is busy when its turn comes.
    let height = start + count * SPACING + 30;
    let with_fork = genesis(&keys, Some(height));
    network.signers.iter().for_each(|signer| add(signer, &with_fork));
    network.schedule(height, start, SPACING);
    for (rank, signer) in network.signers.iter().enumerate() {
        let client = format!("geth v{}", signer.geth.versions[0].split('-').next().unwrap());
        let status = signer.geth.home.until_status("all are seen to sign and what they run", |s| {
            let all = s["readiness"].as_array().map(Vec::as_slice).unwrap_or_default();
            all.len() == 4 && all.iter().all(|one| one["signed"] == true && one["client"] == client.as_str())
        });
        let validator = &status["validator"];
        assert_eq!((&validator["address"], &validator["rank"]), (&json!(signer.address), &json!(rank)));
        assert_eq!((&validator["validators"], &validator["quorum"]), (&json!(4), &json!(3)));
    }
    network.until_committed();
    let end = (height + 5).max(network.head() + 2 * count);
    network.until_all_have(end + 1);
    network.is_one_chain(end);

    let blocks: Vec<Sealed> = (1..=end).map(|number| sealed(&network.signers[0], number)).collect();
    let turns = network.turns(&blocks);
    eprintln!("turns from {start} on, each {SPACING} blocks, height {height}: {turns:#?}");
    assert_eq!(faults(&turns, start, SPACING, height), Vec::<String>::new());
    let named: Vec<(&str, &Turn)> = network.signers.iter().map(|signer| signer.address.as_str()).zip(&turns).collect();
    assert_eq!(held_up(&blocks, &named), Vec::<u64>::new(), "{turns:?}");
    // The height is the first block of the new rules, for all of them.
    for signer in &network.signers {
        let code = |number: u64| signer.call("eth_getCode", json!([MINTER, format!("{number:#x}")])).unwrap();
        assert_eq!(code(1), code(height - 1));
        assert_ne!(code(height - 1), code(height));
        let version = signer.geth.home.status()["version"].as_str().unwrap().to_owned();
        assert!(version.contains(&signer.geth.versions[1]), "{version}");
        let log = signer.geth.home.log();
        assert_eq!(double_proposals(&log), Vec::<String>::new());
        assert!(proposals(&log).count() > 8 && !log.contains("may end with a proposal of its own under way"), "{log}");
    }
    network.stop(&mut visors);
}

/// What a node says that it proposed: block, round and hash.
fn proposals(log: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    log.lines().filter(|line| line.contains("broadcast PRE-PREPARE message")).filter_map(|line| {
        let of = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Some((of("msg.sequence")?, of("msg.round")?, of("block.hash")?))
    })
}

/// Blocks for which it signed two proposals in one round.
fn double_proposals(log: &str) -> Vec<String> {
    let mut signed = BTreeMap::new();
    let other = |(number, round, hash)| {
        let first = *signed.entry((number, round)).or_insert(hash);
        (first != hash).then(|| format!("block {number}, round {round}: {first} and {hash}"))
    };
    proposals(log).filter_map(other).collect()
}

/// Blocks of a chain of four, each sealed by those that are up, of which these are new from a block on.
fn chain(downs: &[(u64, u64)]) -> (Vec<Sealed>, Vec<String>) {
    let names: Vec<String> = (0..downs.len()).map(|index| format!("0x{index:040x}")).collect();
    let up = |index: usize, number: u64| number <= downs[index].0 || number >= downs[index].1;
    let sealed = |number: u64| {
        let turns = (0..).map(|round| (number as usize + round) % names.len());
        let passed: Vec<usize> = turns.take_while(|index| !up(*index, number)).take(names.len()).collect();
        let author = (number as usize + passed.len()) % names.len();
        let sealers = (0..names.len()).filter(|index| up(*index, number)).map(|index| names[index].clone());
        Sealed {
            number,
            author: names[author].clone(),
            sealers: sealers.collect::<BTreeSet<String>>(),
            passed: passed.into_iter().map(|index| names[index].clone()).collect(),
            new: number > downs[author].0,
        }
    };
    ((1..=100).map(sealed).collect(), names)
}

#[test]
fn a_control_that_proposes_twice_is_seen() {
    let line = |number: u64, round: u64, hash: &str| {
        format!(
            "INFO [11-27|14:09:34.948] WBFT: broadcast PRE-PREPARE message      address=0x19E7 current.round={round} current.sequence={number} state=\"Accept request\" msg.code=18 msg.source=0x19E7 msg.round={round} msg.sequence={number} block.number={number} block.hash={hash}\n"
        )
    };
    let once =
        line(41, 0, "0xa") + &line(42, 1, "0xb") + &line(42, 2, "0xc") + "INFO anything else\n" + &line(41, 0, "0xa");
    assert_eq!((proposals(&once).count(), double_proposals(&once)), (4, vec![]));
    assert_eq!(double_proposals(&(once + &line(41, 0, "0xd"))), ["block 41, round 0: 0xa and 0xd"]);
}

#[test]
fn a_control_in_which_all_go_down_at_once_is_seen_and_one_in_turns_is_not() {
    let judge = |downs: &[(u64, u64)]| {
        let (blocks, names) = chain(downs);
        let turns: Vec<Turn> =
            names.iter().zip(downs).map(|(name, (stopped, _))| turn(name, *stopped, &blocks)).collect();
        let named: Vec<(&str, &Turn)> = names.iter().map(String::as_str).zip(&turns).collect();
        (faults(&turns, 10, 20, 90), held_up(&blocks, &named))
    };
    assert_eq!(judge(&[(10, 15), (30, 37), (50, 56), (71, 75)]), (vec![], vec![]));
    // All at the height, and back when the others are, which the chain waits for.
    let (faults, held_up) = judge(&[(89, 92), (89, 92), (89, 92), (89, 92)]);
    assert_eq!((faults.len(), held_up), (4 + 6, vec![90, 91]), "{faults:?}");
    // Two at a time, and one of them before its turn.
    let (faults, held_up) = judge(&[(10, 18), (12, 18), (50, 55), (70, 75)]);
    assert!(faults.len() == 2 && faults[1].contains("0 and 1 were down at a time"), "{faults:?}");
    assert_eq!(held_up, [16]);
}
