//! The trial: what proves a new release, what commits it, and what brings the old one back.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Home, kill, lives, until};

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

/// A home whose next release has these bad habits, with a plan for it at block 40.
fn planned(flags: &str) -> Home {
    let home = Home::new();
    home.release("v2", flags);
    home.plan("v2", 40);
    home
}

/// Waits until v2 was taken back for this reason and the old release answers again.
#[track_caller]
fn until_reverted(home: &Home, reason: &str) -> Value {
    let status = home.until_finished("v2", "reverted");
    let told = status["last_upgrade"]["reason"].as_str().unwrap().to_owned();
    assert!(told.contains(reason), "wanted {reason:?} in {told:?}");
    home.until_status("the old release answers", |s| {
        s["release"] == "genesis" && s["state"] == "running" && s["head_known"] == true && s["upgrade"].is_null()
    })
}

/// A release with this bad habit is taken back by itself, its plan is not tried again, and `retry` does.
#[track_caller]
fn is_taken_back(flags: &str, ours: &[&str], reason: &str, starts: usize) {
    let home = planned(flags);
    let mut visor = home.supervise(ours, FROZEN);
    let status = until_reverted(&home, reason);
    assert_eq!(home.current(), "genesis");
    assert_eq!(home.started().iter().filter(|release| *release == "v2").count(), starts);
    assert_eq!(home.started().last().unwrap(), "genesis");
    assert_eq!(status["restart_count"], 0, "after a revert restarts count from zero");
    assert_eq!((&status["plans"][0]["name"], &status["plans"][0]["state"]), (&json!("v2"), &json!("failed")));
    let line = &home.history()[0];
    assert_eq!((&line["from"], &line["to"], &line["height"]), (&json!("genesis"), &json!("v2"), &json!(40)));
    assert!(!home.own("journal.json").exists());
    // It is not tried again: neither now, when something else changes, nor at the next start.
    home.plan("v9", 1_000_000);
    home.until_status("the other plan is shown", |s| s["plans"].as_array().unwrap().len() == 2);
    assert_eq!(home.current(), "genesis");
    visor.stop();
    let mut visor = home.supervise(ours, FROZEN);
    let status = visor.until_up();
    assert_eq!((&status["plans"][0]["state"], &status["release"]), (&json!("failed"), &json!("genesis")));
    assert_eq!(home.history().len(), 1);
    // The operator mended it.
    home.release("v2", "--halt-at 1000000");
    home.run(&["upgrade", "retry", "v2"]).code(0);
    home.until_finished("v2", "committed");
    assert_eq!(home.current(), "v2");
    visor.stop();
}

#[test]
fn a_release_that_dies_at_its_start_is_taken_back_after_three_starts() {
    is_taken_back("--die-at-start=3", &[], "3 times", 3);
}

#[test]
fn a_release_that_is_killed_by_a_signal_at_its_start_is_taken_back_after_three_starts() {
    is_taken_back("--die-at-start --die-by-signal SEGV", &[], "3 times", 3);
}

#[test]
fn a_release_that_exits_early_with_success_is_taken_back_and_taken_for_no_command() {
    is_taken_back("--exit-early", &[], "3 times", 3);
}

#[test]
fn a_release_that_neither_answers_nor_makes_progress_is_taken_back() {
    is_taken_back("--slow-start 1h", &["--set", "trial_timeout=2s"], "neither answered nor made progress", 1);
}

#[test]
fn a_release_with_another_chain_id_is_taken_back() {
    is_taken_back("--chain-id 999", &[], "chain id", 1);
}

#[test]
fn a_release_with_another_genesis_block_is_taken_back() {
    is_taken_back("--genesis other", &[], "genesis block", 1);
}

#[test]
fn a_release_with_a_new_identity_is_taken_back() {
    is_taken_back("--new-identity", &[], "identity", 1);
}

#[test]
fn a_release_that_cannot_be_executed_after_the_switch_is_taken_back() {
    // Fit when it was looked at; gone wrong when the old one has stopped.
    let home = planned("--halt-at 1000000");
    home.release("genesis", "--stop-time 700ms");
    let mut visor = home.supervise(&[], FROZEN);
    home.until_phase("stopping");
    let script = home.dir.join("script");
    fs::write(&script, "#!/nowhere/interpreter\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&script, home.own("upgrades/v2/bin/node")).unwrap();
    until_reverted(&home, "3 times");
    assert_eq!(home.started(), ["genesis", "genesis"]);
    visor.stop();
}

#[test]
fn a_release_that_is_gone_at_the_switch_leaves_the_old_one_running() {
    let home = planned("--halt-at 1000000");
    home.release("genesis", "--stop-time 700ms");
    let mut visor = home.supervise(&[], FROZEN);
    home.until_phase("stopping");
    fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    home.until_finished("v2", "failed");
    visor.until_release("genesis");
    assert_eq!(home.started(), ["genesis", "genesis"]);
    visor.stop();
}

#[test]
fn a_control_release_with_no_bad_habit_is_committed() {
    let home = planned("--halt-at 1000000");
    let mut visor = home.supervise(&["--set", "trial_timeout=2s"], FROZEN);
    let status = home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    let line = &home.history()[0];
    assert!(line["downtime_ms"].as_u64().is_some() && line["phases"]["stop"].as_u64().is_some(), "{line}");
    assert_eq!(status["last_upgrade"]["downtime_ms"], line["downtime_ms"]);
    visor.stop();
}

// ---- counted on disk -----------------------------------------------------------------------------------------

#[test]
fn deaths_in_a_trial_count_although_the_supervisor_is_killed_between_them() {
    let home = planned("--die-at-start");
    for starts in 1..=3 {
        // It would not be started again in this life of the supervisor.
        let mut visor = home.supervise(&["--set", "restart_backoff=10m"], FROZEN);
        until("v2 was started", || (home.started().iter().filter(|r| *r == "v2").count() == starts).then_some(()));
        if starts < 3 {
            home.until_status("its death is seen", |s| s["state"] == "crashed" || s["waits_for"].is_string());
            visor.kill();
        } else {
            until_reverted(&home, "3 times");
            visor.stop();
        }
    }
    assert_eq!(home.started(), ["genesis", "v2", "v2", "v2", "genesis"]);
}

#[test]
fn deaths_in_a_trial_count_although_the_supervisor_died_first() {
    let home = planned("--no-blocks");
    for starts in 1..=4 {
        let mut visor = home.supervise(&["--set", "trial_time=10m"], FROZEN);
        if starts == 4 {
            until_reverted(&home, "3 times");
            visor.stop();
            break;
        }
        home.until_status("v2 runs", |s| s["release"] == "v2" && s["upgrade"]["phase"] == "trial");
        let node = until("v2 was started", || {
            let all: Vec<_> = home.events("start").into_iter().filter(|e| e[2] == "v2").collect();
            (all.len() == starts).then(|| all[starts - 1][1].parse::<u32>().unwrap())
        });
        visor.kill();
        until("the node ends with its supervisor", || (!lives(node)).then_some(()));
    }
    assert_eq!(home.started(), ["genesis", "v2", "v2", "v2", "genesis"]);
}

#[test]
fn a_gentle_stop_in_a_trial_is_resumed_by_the_next_start() {
    let home = planned("--no-blocks");
    let mut visor = home.supervise(&["--set", "trial_time=10m"], FROZEN);
    home.until_phase("trial");
    visor.stop();
    assert!(home.history().is_empty());
    home.release("v2", "--halt-at 1000000");
    let mut visor = home.supervise(&[], &[]);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2", "v2"]);
    visor.stop();
}

// ---- the release is on trial, not the chain ------------------------------------------------------------------

#[test]
fn no_new_blocks_after_the_switch_is_never_a_failure() {
    let home = planned("--no-blocks");
    let mut visor = home.supervise(&["--set", "trial_timeout=500ms"], FROZEN);
    home.until_log("the trial stays open");
    let status = home.status();
    assert_eq!((&status["state"], &status["upgrade"]["phase"]), (&json!("running"), &json!("trial")));
    assert_eq!((&status["release"], &status["height"]), (&json!("v2"), &json!(39)));
    // Neither what changes nor a restart makes it one.
    home.plan("v9", 1_000_000);
    home.until_status("the other plan is shown", |s| s["plans"].as_array().unwrap().len() == 2);
    home.run(&["restart"]).code(0);
    home.until_phase("trial");
    assert_eq!(home.started(), ["genesis", "v2", "v2"]);
    assert!(home.history().is_empty());
    assert_eq!(home.current(), "v2");
    visor.stop();
}

#[test]
fn the_next_plan_that_becomes_due_commits_an_open_trial() {
    let home = planned("--halt-at 44");
    home.release("v3", "--halt-at 1000000");
    home.plan("v3", 45);
    let ours = ["--set", "trial_blocks=10", "--set", "trial_timeout=500ms"];
    let mut visor = home.supervise(&ours, FROZEN);
    home.until_finished("v3", "committed");
    let results: Vec<_> = home.history().iter().map(|l| (l["name"].clone(), l["result"].clone())).collect();
    assert_eq!(results, [(json!("v2"), json!("committed")), (json!("v3"), json!("committed"))]);
    assert_eq!(home.started(), ["genesis", "v2", "v3"]);
    visor.stop();
}

#[test]
fn a_release_that_goes_back_some_blocks_is_waited_for() {
    let home = planned("--rewind 20 --halt-at 1000000");
    let ours = ["--set", "trial_timeout=300ms", "--set", "trial_time=0"];
    let mut visor = home.supervise(&ours, FROZEN);
    home.until_finished("v2", "committed");
    let line = home.until_log("has proved itself");
    let head: u64 = line.split("head=").nth(1).unwrap().trim().parse().unwrap();
    assert!(head >= 39, "{line}");
    assert_eq!(home.events("start")[1][4], "19", "it did go back");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn a_release_whose_rpc_is_late_is_waited_for() {
    let home = planned("--rpc-delay 1s --halt-at 1000000");
    let mut visor = home.supervise(&[], FROZEN);
    let status = home.until_status("it waits for an answer", |s| {
        s["upgrade"]["phase"] == "trial" && s["upgrade"]["waits_for"].as_str().is_some_and(|w| w.contains("RPC"))
    });
    assert_eq!(status["state"], "running");
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn a_busy_release_without_an_answer_is_waited_for() {
    // It opens its database, which takes three times the limit, and works hard meanwhile.
    let home = planned("--slow-start 3s --slow-start-busy --halt-at 1000000");
    let mut visor = home.supervise(&["--set", "trial_timeout=1500ms"], FROZEN);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

// ---- when it is too late to go back --------------------------------------------------------------------------

#[test]
fn after_a_block_of_the_new_rules_there_is_no_way_back_by_itself() {
    let home = planned("--halt-at 45");
    let ours = ["--set", "trial_time=10m", "--set", "max_restarts=2"];
    let mut visor = home.supervise(&ours, FROZEN);
    home.until_status("v2 made its blocks", |s| s["release"] == "v2" && s["head_known"] == true && s["height"] == 45);
    home.release("v2", "--die-at-start");
    kill(home.nodes()[0], Signal::KILL);
    assert_eq!(visor.end(), 5);
    assert_eq!(home.current(), "v2");
    assert_eq!(home.started(), ["genesis", "v2", "v2", "v2"]);
    assert!(home.history().is_empty());
    let said = home.run(&["status"]);
    assert!(said.code == 3 && said.out.contains("error"), "{said:?}");
    // Nor does the next start go back; mended, it goes on.
    let mut visor = home.supervise(&ours, &[]);
    assert_eq!(visor.end(), 5);
    assert_eq!(home.current(), "v2");
    home.release("v2", "--halt-at 1000000");
    let mut visor = home.supervise(&[], &[]);
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn before_a_block_of_the_new_rules_the_same_deaths_bring_the_old_release_back() {
    let home = planned("--no-blocks");
    let ours = ["--set", "trial_time=10m", "--set", "max_restarts=2"];
    let mut visor = home.supervise(&ours, FROZEN);
    home.until_status("v2 answers", |s| s["release"] == "v2" && s["head_known"] == true);
    home.release("v2", "--die-at-start");
    kill(home.nodes()[0], Signal::KILL);
    until_reverted(&home, "3 times");
    assert_eq!(home.started(), ["genesis", "v2", "v2", "v2", "genesis"]);
    visor.stop();
}

#[test]
fn a_release_that_has_proved_itself_is_never_taken_back_by_itself() {
    let home = planned("--no-blocks");
    let mut visor = home.supervise(&["--set", "max_restarts=1"], FROZEN);
    home.until_log("has proved itself");
    home.until_status("it is on trial", |s| {
        s["upgrade"]["waits_for"].as_str().is_some_and(|w| w.contains("committed"))
    });
    home.release("v2", "--die-at-start");
    kill(home.nodes()[0], Signal::KILL);
    assert_eq!(visor.end(), 5);
    assert_eq!(home.current(), "v2");
    assert!(home.history().is_empty());
    // The operator's word does.
    let mut visor = home.supervise(&["--set", "restart_backoff=10m"], FROZEN);
    home.until_status("it waits", |s| s["waits_for"].as_str().is_some_and(|w| w.contains("restart")));
    home.run(&["upgrade", "revert"]).code(0);
    until_reverted(&home, "the operator");
    visor.stop();
}

// ---- homes without RPC ---------------------------------------------------------------------------------------

#[test]
fn where_no_rpc_has_ever_answered_time_alone_commits() {
    let home = Home::new();
    home.release("v2", "");
    let mut visor = home.supervise(&[], &["--no-rpc"]);
    home.until_status("it runs", |s| s["state"] == "running");
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn where_rpc_has_answered_before_time_alone_commits_nothing() {
    let home = planned("--no-rpc");
    let mut visor = home.supervise(&["--set", "trial_timeout=1500ms"], FROZEN);
    until_reverted(&home, "neither answered nor made progress");
    visor.stop();
}

// ---- settings and files of the switch ------------------------------------------------------------------------

#[test]
fn the_node_args_of_the_new_release_take_the_place_of_the_given_ones() {
    let home = planned("--halt-at 1000000");
    let file = home.own("upgrades/v2/node-args");
    fs::write(&file, "--mine\r\n\n%{args}\n--identity\ntwo words\n").unwrap();
    let mut visor = home.supervise(&[], FROZEN);
    let given: Vec<Value> =
        home.until_status("genesis runs", |s| s["head_known"] == true)["args"].as_array().unwrap().clone();
    let status = home.until_finished("v2", "committed");
    let wanted: Vec<Value> =
        [json!("--mine")].into_iter().chain(given).chain([json!("--identity"), json!("two words")]).collect();
    assert_eq!(status["args"], Value::Array(wanted));
    home.until_log("--identity two words");
    // They go with their release.
    home.run(&["upgrade", "revert"]).code(0);
    until_reverted(&home, "the operator");
    assert!(!home.status()["args"].to_string().contains("--mine"));
    // A later start without arguments has the given ones again, not those of the file.
    visor.stop();
}

#[test]
fn node_args_that_cannot_be_read_keep_the_old_release_running() {
    let home = planned("--halt-at 1000000");
    let file = home.own("upgrades/v2/node-args");
    fs::create_dir(&file).unwrap();
    let mut visor = home.supervise(&[], FROZEN);
    home.until_log("is due but waits");
    assert!(home.log().contains("node-args"));
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    visor.stop();
}

#[test]
fn without_a_restart_after_the_upgrade_it_leaves_and_the_next_start_is_the_trial() {
    let home = planned("--halt-at 1000000");
    let mut visor = home.supervise(&["--set", "restart_after_upgrade=false"], FROZEN);
    assert_eq!(visor.end(), 0);
    assert_eq!((home.current().as_str(), home.started().len()), ("v2", 1));
    assert!(home.history().is_empty() && home.own("journal.json").exists());
    let said = home.run(&["status"]);
    assert!(said.code == 3 && said.out.contains("stopped"), "{said:?}");
    let mut visor = home.supervise(&["--set", "restart_after_upgrade=false"], &[]);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn without_a_restart_after_the_upgrade_a_bad_release_is_taken_back_at_the_next_start() {
    let home = planned("--die-at-start");
    let mut visor = home.supervise(&["--set", "restart_after_upgrade=false"], FROZEN);
    assert_eq!(visor.end(), 0);
    let mut visor = home.supervise(&["--set", "restart_after_upgrade=false"], FROZEN);
    until_reverted(&home, "3 times");
    assert_eq!(home.started(), ["genesis", "v2", "v2", "v2", "genesis"]);
    visor.stop();
}

#[test]
fn a_restart_delay_lies_between_the_stop_and_the_new_start() {
    let home = planned("--halt-at 1000000");
    let mut visor = home.supervise(&["--set", "restart_delay=700ms"], FROZEN);
    home.until_finished("v2", "committed");
    let at = |event: &[String]| event[3].parse::<u64>().unwrap();
    let (stopped, started) = (at(&home.events("stop")[0]), at(&home.events("start")[1]));
    assert!(started - stopped >= 700, "{} ms", started - stopped);
    visor.stop();
}

#[test]
fn a_stop_during_the_restart_delay_is_obeyed() {
    let home = planned("--halt-at 1000000");
    let mut visor = home.supervise(&["--set", "restart_delay=10m"], FROZEN);
    until("the link has moved", || (home.current() == "v2").then_some(()));
    home.until_status("it waits", |s| s["upgrade"]["phase"] == "starting");
    visor.stop();
    assert_eq!(home.started(), ["genesis"]);
    let mut visor = home.supervise(&[], &[]);
    home.until_finished("v2", "committed");
    visor.stop();
}
