//! The death of the supervisor, by SIGKILL, wherever it stands: the next start finds exactly one node or none, and an upgrade
//! ends exactly once. And what the node leaves behind: nobody starts beside who still holds the data.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Visor, kill, lives, text, under, until};

// ---- the detector -------------------------------------------------------------------------------

/// Every sign of two nodes on one data directory: a start while an earlier node had not ended, or one that found the
/// mock's own lock held. Who was ended by KILL leaves no line, so those are named.
fn doubles(home: &Home, killed: &[u32]) -> Vec<String> {
    doubles_in(&home.journal(), killed)
}

/// The same in what a mock wrote down somewhere.
pub fn doubles_in(journal: &[Vec<String>], killed: &[u32]) -> Vec<String> {
    let mut alive: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for event in journal {
        let pid = &event[if event[0] == "sig" { 2 } else { 1 }];
        match event[0].as_str() {
            "start" => {
                found.extend(alive.iter().map(|other| format!("{pid} was started beside {other}")));
                if !killed.iter().any(|killed| killed.to_string() == *pid) {
                    alive.push(pid.clone());
                }
            }
            "busy" => found.push(format!("{pid} found the data in use")),
            "stop" | "die" => alive.retain(|other| other != pid),
            _ => {}
        }
    }
    found
}

/// Exactly one node lives, and there never were two.
#[track_caller]
fn one_node(home: &Home, killed: &[u32]) {
    assert_eq!(doubles(home, killed), Vec::<String>::new());
    assert_eq!(home.nodes().len(), 1, "{:?}", home.nodes());
    home.current();
}

/// The upgrade ended once, like this, and nothing of it is left open.
#[track_caller]
fn once(home: &Home, name: &str, result: &str) {
    let lines: Vec<(String, String)> =
        home.history().iter().map(|line| (text(line, "name"), text(line, "result"))).collect();
    assert_eq!(lines, [(name.to_owned(), result.to_owned())]);
    // The line is written first, then the journal goes: who asks in between sees both.
    until("the journal is gone", || (!home.own("journal.json").exists()).then_some(()));
}

fn by_hand(home: &Home, more: &[&str]) -> Child {
    let mut command = Command::new(home.own("genesis/bin/node"));
    command.args(home.node_args()).args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn the_detector_sees_two_nodes() {
    let home = Home::new();
    let mut nodes = Vec::new();
    for count in 1..=2 {
        nodes.push(by_hand(&home, &["--no-lock", "--ipcdisable"]));
        until("it began", || (home.events("start").len() == count).then_some(()));
    }
    assert_eq!(home.nodes().len(), 2);
    assert_eq!(doubles(&home, &[]).len(), 1);
    // With its lock, the mock itself sees the other one.
    nodes.push(by_hand(&home, &["--ipcdisable"]));
    until("it began", || (home.events("start").len() == 3).then_some(()));
    nodes.push(by_hand(&home, &["--ipcdisable"]));
    until("one of them is refused", || home.events("busy").first().cloned());
    assert!(doubles(&home, &[]).iter().any(|sign| sign.contains("in use")));
    for node in &mut nodes {
        let _ = node.kill();
        node.wait().unwrap();
    }
    assert_eq!(home.nodes(), Vec::<u32>::new());
}

// ---- helpers ------------------------------------------------------------------------------------

fn pid(status: &Value) -> u32 {
    u32::try_from(status["pid"].as_u64().unwrap()).unwrap()
}

/// The stage in journal.json, while an upgrade is under way.
fn stage(home: &Home) -> Option<String> {
    let journal: Value = serde_json::from_str(&fs::read_to_string(home.own("journal.json")).ok()?).ok()?;
    journal["stage"].as_str().map(str::to_owned)
}

#[track_caller]
fn until_stage(home: &Home, wanted: &str) {
    until(&format!("the stage is {wanted}"), || stage(home).filter(|stage| stage == wanted));
}

/// A home with a release v2, both with habits of their own.
fn with_v2(genesis: &str, v2: &str) -> Home {
    let home = Home::new();
    home.release("genesis", genesis);
    home.release("v2", v2);
    home
}

/// A supervisor with a running node, and a plan for v2 some blocks ahead.
fn upgrading<'a>(home: &'a Home, ours: &[&str]) -> Visor<'a> {
    let visor = home.supervise(ours, &["--start-head", "100"]);
    let head = visor.until_up()["height"].as_u64().unwrap();
    home.plan("v2", head + 15);
    visor
}

/// The next start ends the upgrade: v2 runs, committed once, and there was never more than one node.
#[track_caller]
fn ends_committed(home: &Home, ours: &[&str]) {
    let mut visor = home.supervise(ours, &[]);
    visor.until_release("v2");
    home.until_status("it is committed", |s| s["last_upgrade"]["result"] == "committed");
    one_node(home, &[]);
    once(home, "v2", "committed");
    assert_eq!(home.current(), "v2");
    visor.stop();
    assert_eq!(doubles(home, &[]), Vec::<String>::new());
    once(home, "v2", "committed");
}

// ---- killed wherever it stands ------------------------------------------------------------------

#[test]
fn killed_while_it_starts() {
    let home = Home::new();
    // As soon as it has the lock; as soon as the shim has the data; as soon as the node is there.
    let own = |home: &Home, pid: u32| {
        let text = fs::read_to_string(home.own("lock")).unwrap_or_default();
        text.starts_with(&format!("{pid} ")).then_some(())
    };
    let mut visor = home.supervise(&[], &[]);
    until("it has the lock", || own(&home, visor.pid()));
    visor.kill();
    let mut visor = home.supervise(&[], &[]);
    until("it has the lock", || own(&home, visor.pid()));
    until("somebody has the data", || home.holders().first().copied());
    visor.kill();
    let mut visor = home.supervise(&[], &[]);
    let before = home.events("start").len();
    until("the node began", || (home.events("start").len() > before).then_some(()));
    visor.kill();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    one_node(&home, &ended_in_silence(&home));
    visor.stop();
}

/// A node that has not asked for TERM yet is ended by it without a word: who is gone and left no line is named here.
fn ended_in_silence(home: &Home) -> Vec<u32> {
    silent_in(&home.journal())
}

/// The same in what a mock wrote down somewhere.
pub fn silent_in(journal: &[Vec<String>]) -> Vec<u32> {
    let of = |kinds: &[&str]| {
        let events = journal.iter().filter(|event| kinds.contains(&event[0].as_str()));
        events.map(|event| event[1].clone()).collect::<Vec<String>>()
    };
    let ended = of(&["stop", "die"]);
    let silent = of(&["start"]).into_iter().filter(|pid| !ended.contains(pid));
    silent.map(|pid| pid.parse().unwrap()).filter(|pid| !lives(*pid)).collect()
}

#[test]
fn killed_while_the_node_runs() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let first = pid(&visor.until_up());
    visor.kill();
    assert_eq!(home.run(&["status", "--json"]).code(3).json()["state"], "crashed");
    until("the node is told of the death", || home.events("term").first().cloned());
    let mut visor = home.supervise(&[], &[]);
    assert_ne!(pid(&visor.until_up()), first);
    one_node(&home, &[]);
    assert_eq!(home.events("stop").len(), 1, "it ended cleanly");
    visor.stop();
}

#[test]
fn killed_while_a_slow_node_stops_the_next_one_waits_and_says_so() {
    let home = Home::new();
    home.release("genesis", "--stop-time 1500ms");
    let mut visor = home.supervise(&[], &[]);
    let first = pid(&visor.until_up());
    visor.signal(Signal::TERM);
    until("the node was told to end", || home.events("term").first().cloned());
    visor.kill();
    assert!(lives(first));
    let status = home.run(&["status", "--json"]).code(3).json();
    assert!(text(&status, "error").contains(&format!("pid {first}")), "{status}");
    let mut visor = home.supervise(&[], &[]);
    home.until_log(&format!("the data is still held by node (pid {first})"));
    let status = visor.until_up();
    assert!(!lives(first));
    assert_eq!(status["restart_count"], 0, "waiting is no crash");
    one_node(&home, &[]);
    assert!(!home.log().contains("UNCLEAN"));
    visor.stop();
    // TERM from the first supervisor, and the one of its death: waiting for it sends no third.
    let terms = home.events("term").iter().filter(|event| event[1] == first.to_string()).count();
    assert_eq!(terms, 2);
}

#[test]
fn start_too_waits_for_the_node_of_a_killed_supervisor() {
    let home = Home::new();
    home.release("genesis", "--stop-time 1500ms");
    let mut visor = home.supervise(&[], &[]);
    let first = pid(&visor.until_up());
    visor.kill();
    assert!(lives(first));
    let args = home.node_args();
    let words: Vec<&str> = ["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
    home.run(&words).code(0);
    assert!(!lives(first));
    one_node(&home, &[]);
    home.run(&["stop"]).code(0);
}

#[test]
fn a_node_of_a_killed_supervisor_that_never_ends_is_killed_after_the_grace() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--deaf", "--no-blocks"]);
    let first = pid(&visor.until_up());
    visor.kill();
    let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], &[]);
    visor.until_up();
    assert!(!lives(first));
    assert_eq!(home.logged("UNCLEAN"), 1);
    one_node(&home, &[first]);
    visor.stop();
}

#[test]
fn killed_in_the_pause_before_a_restart() {
    let home = Home::new();
    home.release("genesis", "--die-at-start");
    let mut visor = home.supervise(&["--set", "restart_backoff=1h"], &[]);
    home.until_status("it has crashed", |s| s["state"] == "crashed");
    visor.kill();
    home.release("genesis", "");
    let mut visor = home.supervise(&["--set", "restart_backoff=1h"], &[]);
    visor.until_up();
    one_node(&home, &[]);
    assert_eq!(home.events("start").len(), 2);
    visor.stop();
}

#[test]
fn killed_while_it_waits_for_a_straggler() {
    let home = Home::new();
    home.release("genesis", "--deaf-child --child-session");
    let mut visor = home.supervise(&["--set", "shutdown_grace=0"], &[]);
    visor.until_up();
    let child = straggler(&home);
    visor.signal(Signal::TERM);
    home.until_log(&format!("(pid {child}): waiting for its end"));
    visor.kill();
    home.release("genesis", "");
    let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], &[]);
    visor.until_up();
    assert!(!lives(child));
    one_node(&home, &[]);
    visor.stop();
}

#[test]
fn killed_when_an_upgrade_has_begun() {
    let home = with_v2("", "");
    let mut visor = upgrading(&home, &[]);
    until("it has begun", || stage(&home));
    visor.kill();
    ends_committed(&home, &[]);
}

#[test]
fn killed_while_the_old_release_stops_in_an_upgrade() {
    let home = with_v2("--stop-time 1s", "");
    let mut visor = upgrading(&home, &[]);
    until("the old release was told to end", || home.events("term").first().cloned());
    assert_eq!(stage(&home).as_deref(), Some("stop"));
    let node = home.nodes()[0];
    visor.kill();
    ends_committed(&home, &[]);
    home.until_log(&format!("the data is still held by node (pid {node})"));
    let starts: Vec<String> = home.started();
    assert_eq!(starts, ["genesis", "v2"], "the old release was not started again");
}

#[test]
fn killed_while_an_upgrade_waits_for_a_straggler() {
    let home = with_v2("--deaf-child --child-session", "");
    let mut visor = upgrading(&home, &["--set", "shutdown_grace=0"]);
    let child = straggler(&home);
    home.until_log(&format!("(pid {child}): waiting for its end"));
    assert_eq!(home.current(), "genesis", "nothing moves while the data is held");
    visor.kill();
    ends_committed(&home, &["--set", "shutdown_grace=1s"]);
    assert!(!lives(child));
}

#[test]
fn killed_right_after_the_switch() {
    let home = with_v2("", "");
    let mut visor = upgrading(&home, &[]);
    until_stage(&home, "trial");
    visor.kill();
    ends_committed(&home, &[]);
}

#[test]
fn killed_in_the_trial() {
    let home = with_v2("", "");
    let mut visor = upgrading(&home, &["--set", "trial_time=1h"]);
    visor.until_release("v2");
    assert_eq!(stage(&home).as_deref(), Some("trial"));
    visor.kill();
    ends_committed(&home, &[]);
}

#[test]
fn killed_when_the_trial_is_proven_but_not_committed() {
    let home = with_v2("", "");
    let mut visor = upgrading(&home, &["--set", "trial_time=100ms", "--set", "trial_blocks=1000000"]);
    visor.until_release("v2");
    home.until_log("has proved itself");
    visor.kill();
    ends_committed(&home, &[]);
}

#[test]
fn killed_while_a_new_release_that_failed_is_taken_back() {
    let home = with_v2("", "--stop-time 1s");
    let mut visor = upgrading(&home, &["--set", "trial_time=1h"]);
    visor.until_release("v2");
    let mut revert = home.command(&["upgrade", "revert"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until_stage(&home, "back");
    until("the new release was told to end", || (home.events("term").len() == 2).then_some(()));
    let node = home.nodes()[0];
    visor.kill();
    revert.wait().unwrap();
    let mut visor = home.supervise(&[], &[]);
    home.until_log(&format!("the data is still held by node (pid {node})"));
    visor.until_release("genesis");
    home.until_status("it is reverted", |s| s["last_upgrade"]["result"] == "reverted");
    one_node(&home, &[]);
    once(&home, "v2", "reverted");
    assert_eq!(home.current(), "genesis");
    assert_eq!(home.started(), ["genesis", "v2", "genesis"]);
    visor.stop();
}

/// Whoever died with them: a release that was started three times and never proved itself is taken back.
#[test]
fn three_deaths_of_supervisor_and_node_in_a_trial_bring_the_old_release_back() {
    let home = with_v2("", "--no-rpc");
    let mut visor = upgrading(&home, &["--set", "trial_time=1h"]);
    let mut dead = Vec::new();
    for time in 1..=3 {
        until("the new release began", || {
            let starts = home.started().iter().filter(|release| *release == "v2").count();
            (starts == time).then_some(())
        });
        let node: u32 = home.events("start").last().unwrap()[1].parse().unwrap();
        visor.signal(Signal::KILL);
        kill(node, Signal::KILL);
        visor.kill();
        until("the node is gone", || (!lives(node)).then_some(()));
        dead.push(node);
        visor = home.supervise(&["--set", "trial_time=1h"], &[]);
    }
    visor.until_release("genesis");
    home.until_status("it is reverted", |s| s["last_upgrade"]["result"] == "reverted");
    once(&home, "v2", "reverted");
    one_node(&home, &dead);
    assert_eq!(home.started(), ["genesis", "v2", "v2", "v2", "genesis"]);
    visor.stop();
}

/// The windows between two steps are short: kill at many instants, each time a little later. Whatever the instant, the
/// upgrade ends once and with one node.
fn killed_after(delays: [u64; 4]) {
    // Side by side, each in a home of its own: most of the time is waiting.
    std::thread::scope(|scope| {
        for delay in delays {
            scope.spawn(move || killed_once_after(Duration::from_millis(delay)));
        }
    });
}

fn killed_once_after(delay: Duration) {
    let home = with_v2("", "");
    let mut visor = upgrading(&home, &[]);
    let began = until("it has begun", || stage(&home).map(|_| Instant::now()));
    while began.elapsed() < delay {
        std::thread::yield_now();
    }
    visor.kill();
    let mut visor = home.supervise(&[], &[]);
    visor.until_release("v2");
    home.until_status("it is committed", |s| s["last_upgrade"]["result"] == "committed");
    one_node(&home, &ended_in_silence(&home));
    once(&home, "v2", "committed");
    visor.stop();
}

#[test]
fn killed_at_any_instant_of_a_stop_and_switch() {
    killed_after([2, 5, 9, 14]);
}

#[test]
fn killed_at_any_instant_of_a_switch_and_start() {
    killed_after([20, 27, 35, 45]);
}

#[test]
fn killed_at_any_instant_of_a_trial() {
    killed_after([60, 120, 300, 450]);
}

/// Killed again and again, faster than it can get anywhere: it still ends once, in one of the two.
#[test]
fn killed_again_and_again_an_upgrade_ends_once() {
    let home = with_v2("", "");
    let mut visor = upgrading(&home, &[]);
    until("it has begun", || stage(&home));
    for delay in [0, 10, 25, 40, 60, 80] {
        visor.kill();
        visor = home.supervise(&[], &[]);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(delay) {
            std::thread::yield_now();
        }
    }
    let status = home.until_status("it has ended", |s| {
        s["state"] == "running" && s["head_known"] == true && !s["last_upgrade"].is_null() && s["upgrade"].is_null()
    });
    let result = text(&status["last_upgrade"], "result");
    once(&home, "v2", &result);
    let expected = if result == "committed" { "v2" } else { "genesis" };
    assert!(matches!(result.as_str(), "committed" | "reverted"), "{result}");
    assert_eq!((home.current(), text(&status, "release")), (expected.to_owned(), expected.to_owned()));
    one_node(&home, &ended_in_silence(&home));
    visor.stop();
}

// ---- two supervisors ----------------------------------------------------------------------------

#[test]
fn a_second_supervisor_is_refused_and_told_who_runs() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let node = pid(&visor.until_up());
    let args = home.node_args();
    for verb in [&["run"][..], &["start", "--"]] {
        let words: Vec<&str> = verb.iter().copied().chain(args.iter().map(String::as_str)).collect();
        home.run(&words).code(4).one_error(&format!("pid {}", visor.pid()));
    }
    assert_eq!(home.nodes(), [node]);
    assert_eq!(home.events("start").len(), 1);
    visor.stop();
}

#[test]
fn a_second_supervisor_is_refused_while_the_first_one_ends() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=0"], &["--stop-time", "1h"]);
    visor.until_up();
    visor.signal(Signal::TERM);
    until("the node was told to end", || home.events("term").first().cloned());
    home.run(&["run", "x"]).code(4).one_error(&format!("pid {}", visor.pid()));
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(visor.end(), 0);
    assert_eq!(home.events("start").len(), 1);
}

#[test]
fn of_many_supervisors_started_at_once_one_runs() {
    let home = Home::new();
    let mut visors: Vec<Visor> = (0..6).map(|_| home.supervise(&[], &[])).collect();
    visors[0].until_up();
    let running = until("one is left", || {
        let left: Vec<usize> = (0..visors.len()).filter(|i| visors[*i].lives()).collect();
        (left.len() == 1).then(|| left[0])
    });
    for (i, visor) in visors.iter_mut().enumerate().filter(|(i, _)| *i != running) {
        assert_eq!(visor.end(), 4, "supervisor {i}");
    }
    assert_eq!(home.status()["supervisor_pid"], visors[running].pid());
    one_node(&home, &[]);
    visors[running].stop();
    assert_eq!(home.events("start").len(), 1);
}

// ---- what a node leaves behind ------------------------------------------------------------------

/// The mock's child, once it is there.
#[track_caller]
fn straggler(home: &Home) -> u32 {
    until("the node's child is there", || home.events("child").last().map(|event| event[1].parse().unwrap()))
}

#[test]
fn a_child_that_outlives_the_node_is_told_to_end_and_waited_for() {
    for habits in [&["--child"][..], &["--child", "--child-session"]] {
        let home = Home::new();
        let mut visor = home.supervise(&["--set", "shutdown_grace=0"], habits);
        visor.until_up();
        let child = straggler(&home);
        visor.stop();
        assert!(!lives(child), "{habits:?}");
        assert!(home.log().contains(&format!("(pid {child})")), "it is said who is waited for");
        assert_eq!(home.holders(), Vec::<u32>::new());
        assert!(!home.log().contains("UNCLEAN"));
    }
}

#[test]
fn a_deaf_child_that_outlives_the_node_has_the_grace_and_then_kill() {
    for habits in [&["--deaf-child"][..], &["--deaf-child", "--child-session"]] {
        let home = Home::new();
        let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], habits);
        visor.until_up();
        let child = straggler(&home);
        visor.stop();
        assert!(!lives(child), "{habits:?}");
        assert_eq!(home.logged("UNCLEAN"), 1);
        assert_eq!(home.events("stop").len(), 1, "the node itself ended well");
    }
}

#[test]
fn a_child_that_outlives_a_crashed_node_is_gone_before_the_next_start() {
    let home = Home::new();
    home.release("genesis", "--deaf-child --child-session");
    let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], &[]);
    let first = pid(&visor.until_up());
    let child = straggler(&home);
    home.release("genesis", "");
    kill(first, Signal::KILL);
    home.until_log(&format!("(pid {child}): waiting for its end"));
    home.until_status("it runs again", |s| s["head_known"] == true && s["pid"] != first);
    assert!(!lives(child));
    one_node(&home, &[first]);
    visor.stop();
}

#[test]
fn the_child_of_a_killed_supervisors_node_is_gone_before_the_next_start() {
    for habits in ["--child --child-session", "--deaf-child --child-session"] {
        let home = Home::new();
        home.release("genesis", habits);
        let mut visor = home.supervise(&[], &[]);
        let first = pid(&visor.until_up());
        let child = straggler(&home);
        visor.kill();
        until("the node is gone", || (!lives(first)).then_some(()));
        assert!(lives(child));
        home.release("genesis", "");
        let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], &[]);
        visor.until_up();
        assert!(!lives(child), "{habits}");
        one_node(&home, &[]);
        visor.stop();
    }
}

/// The node was killed for its deafness: what it leaves behind has done nothing wrong yet, and gets TERM and the grace.
#[test]
fn the_child_of_a_node_that_was_killed_is_told_to_end_before_it_is_killed() {
    let home = Home::new();
    let (told, ready) = (home.dir.join("told"), home.dir.join("ready"));
    // A child that writes down that it was told to end; only TERM can make it do that.
    let script = format!(
        "(trap 'echo told > {told}; exit 0' TERM; echo ready > {ready}; sleep 3600 & wait) &\n\
        trap : TERM\n\
        while :; do sleep 3600 & wait; done",
        told = told.display(),
        ready = ready.display(),
    );
    home.script("genesis", &script);
    let mut visor = home.supervise_with(&["--set", "shutdown_grace=1s"], &["x"]);
    until("the child is ready", || ready.exists().then_some(()));
    visor.signal(Signal::TERM);
    assert_eq!(visor.end(), 0);
    assert!(told.exists(), "the child was killed without having been told to end");
    assert_eq!(home.holders(), Vec::<u32>::new());
}

/// A binary with file capabilities loses its death signal, and hides its descriptors from all but root: nobody tells it that
/// its supervisor died. The next start must find it all the same.
#[test]
fn a_node_with_file_capabilities_outlives_its_supervisor_and_is_ended_by_the_next_one() {
    let home = Home::new();
    let user = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"];
    let done = |line: &[&str]| {
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let node = home.own("genesis/bin/node");
    let (copy, dir) = (home.dir.join("copy"), home.dir.to_str().unwrap().to_owned());
    // Never the linked file: that is everybody's.
    assert!(done(&["cp", node.to_str().unwrap(), copy.to_str().unwrap()]));
    fs::rename(&copy, &node).unwrap();
    let able = done(&["chown", "-R", "4242:4242", &dir])
        && done(&["setcap", "cap_net_bind_service+ep", node.to_str().unwrap()])
        && done(&[&user[..], &["true"]].concat());
    if !able {
        return; // Only root can make such a node; elsewhere there is nothing to see.
    }
    let args = home.node_args();
    let words: Vec<&str> =
        ["--set", "shutdown_grace=1s", "run"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let mut visor = home.spawn(under(&user, &home.command(&words)));
    until("the node began", || home.events("start").first().cloned());
    let first = home.nodes()[0];
    visor.kill();
    assert!(lives(first) && home.events("term").is_empty(), "it is not told of the death");
    let mut visor = home.spawn(under(&user, &home.command(&words)));
    until("the next one began", || (home.events("start").len() == 2).then_some(()));
    assert!(!lives(first));
    assert_eq!((home.events("term").len(), home.events("stop").len()), (1, 1), "told once, ended well");
    one_node(&home, &[]);
    visor.stop();
}

#[test]
fn stop_now_leaves_nobody_behind() {
    let home = Home::new();
    let ours = ["--set", "shutdown_grace=0"];
    let mut visor = home.supervise(&ours, &["--deaf", "--deaf-child", "--child-session"]);
    visor.until_up();
    let child = straggler(&home);
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(visor.end(), 0);
    assert!(!lives(child));
    assert_eq!(home.nodes(), Vec::<u32>::new());
}

#[test]
fn stop_now_also_ends_the_wait_for_a_straggler() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=0"], &["--deaf-child"]);
    visor.until_up();
    let child = straggler(&home);
    visor.signal(Signal::TERM);
    home.until_log(&format!("(pid {child}): waiting for its end"));
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(visor.end(), 0);
    assert!(!lives(child));
}

// ---- process 1 ----------------------------------------------------------------------------------

#[test]
fn as_process_1_it_reaps_orphans_and_supervises_all_the_same() {
    let home = Home::new();
    // A node that leaves an orphan behind as it starts: the orphan's parent ends before it.
    let node = home.own("genesis/bin/node");
    let real = home.own("genesis/bin/mock");
    fs::rename(&node, &real).unwrap();
    let script = format!("(sleep 0.3 > /dev/null 2>&1 &)\nexec {} \"$@\"", real.display());
    home.script("genesis", &script);
    let args = home.node_args();
    let words: Vec<&str> = std::iter::once("run").chain(args.iter().map(String::as_str)).collect();
    let unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let may = Command::new("unshare").args(&unshare[1..]).arg("true").stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        return; // No namespaces here: nothing to see.
    }
    let mut visor = home.spawn(under(&unshare, &home.command(&words)));
    let status = visor.until_up();
    assert_eq!(status["supervisor_pid"], 1);
    let supervisor = child_of(visor.pid());
    until("the orphan came and was reaped", || {
        let children = children_of(supervisor);
        (children.len() == 1 && lives(children[0])).then_some(())
    });
    kill(supervisor, Signal::TERM);
    assert_eq!(visor.end(), 0);
    assert_eq!((home.events("term").len(), home.events("stop").len()), (1, 1));
}

fn children_of(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[track_caller]
fn child_of(parent: u32) -> u32 {
    until("it has its child", || children_of(parent).first().copied())
}
