//! Rolling upgrades: a network of validators, each under a supervisor of its own with the same plan. What counts is written
//! by the nodes: who signed which block in which round, and when each was down.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::ledger::{Network, quorum};
use crate::network::{is_one_chain, next_number, settle};
use crate::support::{Home, Visor, kill, until, until_stuck};
use crate::trace::Trace;

/// How long nothing may move before a test gives up: no block, no start of a node. A chain that stands still counts its
/// rounds in twice the time each.
const PATIENCE: Duration = Duration::from_secs(60);

/// The block at which the first validator's turn is.
const START: u64 = 15;

/// A network of homes.
struct Validators {
    network: Network,
    homes: Vec<Home>,
    height: u64,
    /// Members in the order of their turns.
    turns: Vec<usize>,
}

/// So many blocks between two turns that one which is not back makes the next one wait: what it signed before is no longer
/// among the last two rounds of the set.
fn spacing(validators: usize) -> u64 {
    2 * validators as u64 + 16
}

impl Validators {
    /// A network with the old release, which knows no block from `height` on, and the new one with a plan for it. A round
    /// lasts long enough that a busy machine seldom lets one fail.
    fn new(count: usize, height: u64, rolling: Option<Value>) -> Validators {
        let pace = (Duration::from_millis(200), Duration::from_secs(1));
        Validators::of(Network::new(count, next_number(), pace.0, pace.1), height, rolling)
    }

    fn of(network: Network, height: u64, rolling: Option<Value>) -> Validators {
        let homes: Vec<Home> = network.members.iter().map(|_| Home::new()).collect();
        let info = rolling.map_or(Value::Null, |rolling| json!({"rolling": rolling}));
        let plan = json!({"name": "v2", "height": height, "info": info}).to_string();
        for (index, home) in homes.iter().enumerate() {
            settle(&home.datadir(), index);
            network.write(&home.dir.join("network.json")).unwrap();
            home.release("genesis", &format!("--halt-at {}", height - 1));
            home.release("v2", "");
            home.put(&format!("upgrades/{height}/upgrade-info.json"), &plan);
        }
        let set = network.set(START);
        let mut turns: Vec<usize> = set.iter().map(|address| network.index(address).unwrap()).collect();
        turns.sort_by_key(|index| &network.members[*index].address);
        Validators { network, homes, height, turns }
    }

    /// The same with slots that end some blocks before the height: the last one is late where the machine is busy.
    fn rolling(count: usize) -> Validators {
        let rolling = json!({"start": START, "spacing": spacing(count)});
        Validators::new(count, START + count as u64 * spacing(count) + 40, Some(rolling))
    }

    /// Starts a member's supervisor.
    fn supervise(&self, index: usize, ours: &[&str]) -> Visor<'_> {
        let network = self.homes[index].dir.join("network.json");
        let quiet = [
            "validator_mode=true",
            "validator_hold=3s",
            "height_poll_interval=1s",
            "health_check_interval=2s",
            "min_disk=0",
        ];
        let settings: Vec<&str> = quiet.iter().chain(ours).flat_map(|setting| ["--set", *setting]).collect();
        let datadir = self.homes[index].datadir();
        let (datadir, network) = (datadir.to_str().unwrap(), network.to_str().unwrap());
        self.homes[index].supervise_with(&settings, &["--datadir", datadir, "--network", network, "--mine"])
    }

    /// Starts all of them.
    fn supervise_all(&self, ours: &[&str]) -> Vec<Option<Visor<'_>>> {
        (0..self.homes.len()).map(|index| Some(self.supervise(index, ours))).collect()
    }

    /// Sends a signal to the nodes of all but this one.
    fn signal_others(&self, index: usize, signal: Signal) {
        let others = self.homes.iter().enumerate().filter(|(i, _)| *i != index);
        for pid in others.flat_map(|(_, home)| home.nodes()) {
            kill(pid, signal);
        }
    }

    /// Halts all nodes but one, which has signed its own proposal for a block that is not decided: who it is, and the block.
    #[track_caller]
    fn until_one_proposes_alone(&self) -> (usize, u64) {
        until("one proposes while the others stand still", || {
            let trace = self.trace();
            let head = trace.blocks.last()?;
            let (number, index) = (head.number + 1, self.network.index(&self.network.proposer(head, 0))?);
            self.signal_others(index, Signal::STOP);
            let signed = || self.trace().nodes[index].votes().iter().any(|vote| vote.height >= number);
            // It does so within a period, unless another block came before.
            for _ in 0..100 {
                if signed() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let alone = signed() && self.trace().head() < number;
            if !alone {
                self.signal_others(index, Signal::CONT);
            }
            alone.then_some((index, number))
        })
    }

    fn trace(&self) -> Trace {
        let datadirs: Vec<PathBuf> = self.homes.iter().map(Home::datadir).collect();
        Trace::read(&self.network, &datadirs)
    }

    fn heads(&self) -> Vec<u64> {
        self.homes.iter().map(Home::head_on_disk).collect()
    }

    fn head(&self) -> u64 {
        self.heads().into_iter().max().unwrap()
    }

    /// Waits as long as something moves: a chain, or a node that starts or ends.
    #[track_caller]
    fn until(&self, why: &str, what: impl Fn() -> bool) {
        let lines = |home: &Home| home.journal().iter().filter(|line| line[0] != "vote" && line[0] != "round").count();
        let moved = || (self.heads(), self.homes.iter().map(lines).sum::<usize>());
        until_stuck(why, PATIENCE, moved, || what().then_some(()));
    }

    #[track_caller]
    fn until_head(&self, number: u64) {
        self.until(&format!("the chain is at block {number}"), || self.head() >= number);
    }

    /// Waits until these have committed the new release.
    #[track_caller]
    fn until_committed(&self, members: &[usize]) {
        let is = |i: &usize| self.homes[*i].history().last().is_some_and(|line| line["result"] == "committed");
        self.until(&format!("{members:?} have committed"), || members.iter().all(is));
    }

    /// Waits until all have signed blocks of the new rules, and tells what happened.
    #[track_caller]
    fn finished(&self, members: &[usize]) -> Trace {
        self.until_committed(members);
        self.until_head(self.height + 2 * self.network.members.len() as u64);
        self.trace()
    }

    /// What is promised of a rolling upgrade, whatever happened on the way.
    #[track_caller]
    fn is_as_promised(&self, trace: &Trace) {
        let table = trace.table();
        is_one_chain(trace);
        assert_eq!(trace.double_votes(), Vec::<String>::new(), "{table}");
        assert!(trace.most_down() <= 1, "{} were down at a time:\n{table}", trace.most_down());
        assert_eq!(
            (trace.held_up(), trace.halts()),
            (vec![], vec![]),
            "blocks needed more than one round more:\n{table}"
        );
        self.is_upgraded_in_time(trace, &self.turns);
    }

    /// These signed their last block with the old release and their first with the new one before the height. Where none
    /// can be missing, the block that was in the making at the stop is decided only by the new one.
    #[track_caller]
    fn is_upgraded_in_time(&self, trace: &Trace, members: &[usize]) {
        let waited_for = quorum(self.turns.len()) == self.turns.len();
        for index in members {
            let (old, new) = (trace.last_vote(*index, "genesis"), trace.first_vote(*index, "v2"));
            assert!(
                (old < new || waited_for && old == new) && new.is_some_and(|new| new < self.height),
                "{index}: {old:?} {new:?}\n{}",
                trace.table()
            );
        }
    }

    /// None of these went down before its turn.
    #[track_caller]
    fn kept_their_turns(&self, trace: &Trace, start: u64, spacing: u64) {
        for (rank, index) in self.turns.iter().enumerate() {
            let stopped: u64 = trace.nodes[*index].events("stop")[0][4].parse().unwrap();
            let due = start + rank as u64 * spacing;
            assert!(stopped >= due, "{index} (rank {rank}) stopped at {stopped}, before {due}\n{}", trace.table());
        }
        let firsts: Vec<_> = self.turns.iter().map(|index| trace.first_vote(*index, "v2")).collect();
        assert!(firsts.is_sorted(), "{firsts:?}\n{}", trace.table());
    }
}

impl Drop for Validators {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("turns: {:?}, height {}\n{}", self.turns, self.height, self.trace().table());
        }
    }
}

/// A whole rolling upgrade of so many.
#[track_caller]
fn goes_in_turns(count: usize) {
    let all = Validators::rolling(count);
    let _visors = all.supervise_all(&[]);
    let trace = all.finished(&all.turns);
    all.is_as_promised(&trace);
    all.kept_their_turns(&trace, START, spacing(count));
    assert!(trace.nodes.iter().all(|node| node.downs.len() == 1), "each was down once:\n{}", trace.table());
}

#[test]
fn four_validators_are_upgraded_in_turns_and_no_block_waits_for_more_than_one() {
    goes_in_turns(4);
}

#[test]
fn seven_validators_are_upgraded_in_turns_and_no_block_waits_for_more_than_one() {
    goes_in_turns(7);
}

#[test]
fn ten_validators_are_upgraded_in_turns_and_no_block_waits_for_more_than_one() {
    goes_in_turns(10);
}

#[test]
fn a_control_upgrade_of_all_at_the_height_stops_the_chain() {
    let all = Validators::new(4, 20, None);
    let _visors = all.supervise_all(&["validator_mode=false"]);
    let trace = all.finished(&all.turns);
    assert!(trace.most_down() > 1 && !trace.halts().is_empty(), "the halt is seen:\n{}", trace.table());
    assert!(trace.halts().iter().all(|block| *block >= 19), "{:?}\n{}", trace.halts(), trace.table());
}

#[test]
fn without_a_word_of_the_plan_the_turns_end_just_before_the_height() {
    let height = 100;
    let all = Validators::new(4, height, None);
    let _visors = all.supervise_all(&["rolling_spacing=20"]);
    let trace = all.finished(&all.turns);
    all.is_as_promised(&trace);
    all.kept_their_turns(&trace, height - 1 - 4 * 20, 20);
}

#[test]
fn while_one_is_down_the_others_wait_and_go_at_the_height() {
    // It leaves early enough that what it signed is long ago at the first turn.
    let height = START + 10;
    let all = Validators::new(4, height, Some(json!({"start": START, "spacing": 2})));
    let mut visors = all.supervise_all(&[]);
    all.until_head(3);
    let (last, others) = all.turns.split_last().unwrap();
    visors[*last].as_mut().unwrap().stop();
    let trace = all.finished(others);
    for index in others {
        let stopped: u64 = trace.nodes[*index].events("stop")[0][4].parse().unwrap();
        assert!(stopped >= height - 1, "{index} stopped at {stopped}\n{}", trace.table());
        assert!(all.homes[*index].logged("is due and waits for the other validators") > 0);
    }
    is_one_chain(&trace);
    assert!(trace.last_vote(*last, "genesis").is_some_and(|vote| vote < START));
}

#[test]
fn those_that_waited_go_one_by_one_when_the_one_that_was_down_is_back() {
    let all = Validators::new(4, 400, Some(json!({"start": START, "spacing": spacing(4)})));
    let mut visors = all.supervise_all(&[]);
    all.until_head(3);
    let (last, others) = all.turns.split_last().unwrap();
    visors[*last].as_mut().unwrap().stop();
    let waits = |i: &usize| all.homes[*i].logged("is due and waits for the other validators") > 0;
    all.until("all others wait", || others.iter().all(waits));
    visors[*last] = Some(all.supervise(*last, &[]));
    all.until_committed(&all.turns);
    all.is_as_promised(&all.trace());
}

#[test]
fn a_validator_whose_new_release_is_taken_back_lets_the_others_go_on() {
    let all = Validators::rolling(4);
    let bad = all.turns[1];
    all.homes[bad].release("v2", "--die-at-start");
    let _visors = all.supervise_all(&[]);
    let others: Vec<usize> = all.turns.iter().copied().filter(|index| *index != bad).collect();
    let trace = all.finished(&others);
    assert_eq!(all.homes[bad].history()[0]["result"], "reverted");
    is_one_chain(&trace);
    assert!(trace.most_down() <= 1, "{}", trace.table());
    assert_eq!((trace.held_up(), trace.halts()), (vec![], vec![]), "{}", trace.table());
    assert_eq!(trace.double_votes(), Vec::<String>::new());
    all.is_upgraded_in_time(&trace, &others);
    // It is back with the old release, which signs none of the new blocks.
    assert_eq!((trace.first_vote(bad, "v2"), all.homes[bad].current().as_str()), (None, "genesis"));
    let (back, last) = (trace.nodes[bad].downs[0].until, trace.last_vote(bad, "genesis").unwrap());
    assert!(back < u64::MAX && last < all.height, "{}", trace.table());
}

#[test]
fn a_validator_without_rpc_in_its_slot_waits_for_it_and_goes_later() {
    let mut all = Validators::rolling(4);
    all.height += 40;
    let plan =
        json!({"name": "v2", "height": all.height, "info": {"rolling": {"start": START, "spacing": spacing(4)}}});
    for home in &all.homes {
        fs::remove_dir_all(home.root().join("data/upgrades")).unwrap();
        home.release("genesis", &format!("--halt-at {}", all.height - 1));
        home.put(&format!("upgrades/{}/upgrade-info.json", all.height), plan.to_string());
    }
    let _visors = all.supervise_all(&[]);
    let (mute, others) = (all.turns[1], [all.turns[0], all.turns[2], all.turns[3]]);
    all.until_head(START + 2);
    let (socket, away) = (all.homes[mute].datadir().join("geth.ipc"), all.homes[mute].dir.join("away.ipc"));
    fs::rename(&socket, &away).unwrap();
    all.until_committed(&others);
    assert_eq!(all.homes[mute].started(), ["genesis"], "what is not known is not reached");
    fs::rename(&away, &socket).unwrap();
    let trace = all.finished(&all.turns);
    all.is_as_promised(&trace);
}

#[test]
fn a_supervisor_that_is_killed_in_its_slot_finishes_it_when_it_is_back() {
    let all = Validators::rolling(4);
    let mut visors = all.supervise_all(&[]);
    let index = all.turns[1];
    all.until("its node is asked to stop", || !all.homes[index].events("term").is_empty());
    visors[index].as_mut().unwrap().kill();
    visors[index] = Some(all.supervise(index, &[]));
    let trace = all.finished(&all.turns);
    all.is_as_promised(&trace);
    assert_eq!(all.homes[index].history().len(), 1);
}

#[test]
fn a_set_that_changes_in_the_middle_moves_nobody_s_turn() {
    let network = Network::new(5, next_number(), Duration::from_millis(200), Duration::from_secs(1));
    let mut network = network.then(41, &[4, 1, 2, 0]);
    network.sets[0].members = vec![0, 1, 2, 3];
    let spacing = spacing(4);
    let height = START + 5 * spacing + 40;
    let all = Validators::of(network, height, Some(json!({"start": START, "spacing": spacing})));
    let _visors = all.supervise_all(&[]);
    let trace = all.finished(&[0, 1, 2, 3, 4]);
    let table = trace.table();
    is_one_chain(&trace);
    assert_eq!(trace.double_votes(), Vec::<String>::new(), "{table}");
    assert!(trace.most_down() <= 1, "{table}");
    assert_eq!((trace.held_up(), trace.halts()), (vec![], vec![]), "{table}");
    // The set of the first slot's block gives the ranks, before and after the change.
    let after: Vec<usize> = all.turns.iter().copied().filter(|index| *index != 3).collect();
    all.is_upgraded_in_time(&trace, &after);
    for (rank, index) in all.turns.iter().enumerate().filter(|(_, index)| **index != 3) {
        let stopped: u64 = trace.nodes[*index].events("stop")[0][4].parse().unwrap();
        assert!(stopped >= START + rank as u64 * spacing, "{index} stopped at {stopped}\n{table}");
    }
}

#[test]
fn who_is_stopped_in_the_middle_of_its_own_block_signs_no_other_one_in_its_place() {
    let network = Network::new(4, next_number(), Duration::from_millis(500), Duration::from_secs(1));
    let all = Validators::of(network, 1000, Some(json!({"start": 900, "spacing": 20})));
    let _visors = all.supervise_all(&[]);
    all.until_head(5);
    let (index, number) = all.until_one_proposes_alone();
    let home = &all.homes[index];
    let mut restart = home.command(&["restart"]).stdout(Stdio::null()).spawn().unwrap();
    let waits = || home.logged("waiting for a block after which this validator proposes none") > 0;
    all.until("it is asked to end, or that is waited with", || !home.events("term").is_empty() || waits());
    all.signal_others(index, Signal::CONT);
    assert!(restart.wait().unwrap().success());
    all.until("it signs again", || home.started().len() == 2 && all.trace().nodes[index].downs[0].until < u64::MAX);
    all.until_head(number + 8);
    let trace = all.trace();
    is_one_chain(&trace);
    assert_eq!(trace.double_votes(), Vec::<String>::new(), "{}", trace.table());
}

#[test]
fn three_validators_have_no_slack_which_is_said_and_go_one_by_one() {
    let all = Validators::rolling(3);
    let _visors = all.supervise_all(&[]);
    let trace = all.finished(&all.turns);
    is_one_chain(&trace);
    assert_eq!((trace.most_down(), quorum(3)), (1, 3), "{}", trace.table());
    assert!(!trace.halts().is_empty(), "each of them stops the chain:\n{}", trace.table());
    all.is_upgraded_in_time(&trace, &all.turns);
    all.kept_their_turns(&trace, START, spacing(3));
    for home in &all.homes {
        assert!(home.logged("the chain will stand still while each validator is upgraded") > 0, "{}", home.log());
    }
}

#[test]
fn a_single_validator_is_told_that_its_chain_will_stand_still_and_is_upgraded() {
    let all = Validators::rolling(1);
    let _visors = all.supervise_all(&[]);
    let trace = all.finished(&[0]);
    is_one_chain(&trace);
    all.is_upgraded_in_time(&trace, &[0]);
    assert!(all.homes[0].logged("the chain will stand still") > 0, "{}", all.homes[0].log());
}

#[test]
fn where_the_chain_stands_still_those_that_are_due_wait_no_longer_than_a_minute() {
    let all = Validators::new(4, 1000, Some(json!({"start": START, "spacing": 1})));
    let mut visors = all.supervise_all(&[]);
    all.until_head(3);
    visors[all.turns[3]].as_mut().unwrap().stop();
    let first = &all.homes[all.turns[0]];
    all.until("the first one waits", || first.logged("is due and waits for the other validators") > 0);
    visors[all.turns[2]].as_mut().unwrap().stop();
    let stood_at = all.head();
    // Here nothing moves for a whole minute.
    until_stuck("it goes", 3 * PATIENCE, || 0, || first.started().contains(&"v2".to_owned()).then_some(()));
    assert!(all.head() <= stood_at + 1);
    for index in &all.turns[2..] {
        visors[*index] = Some(all.supervise(*index, &[]));
    }
    all.until_head(stood_at + 5);
}
