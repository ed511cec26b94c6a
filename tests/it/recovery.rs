//! What an operator meets at night: a full disk, a link or a file that is gone, wrong arguments, a supervisor that was
//! killed; each must end with a node that runs the right release, and a line that says what to do.

use std::fs;
use std::process::Command;

use crate::support::{Home, lives, text, tmpfs, until};

#[test]
fn a_home_without_its_link_is_not_taken_back_to_genesis() {
    let home = Home::new();
    home.release("v2", "");
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_status("it is committed", |s| s["last_upgrade"]["result"] == "committed" && s["upgrade"].is_null());
    visor.stop();
    fs::remove_file(home.own("current")).unwrap();
    home.run(&["init"]).code(4).one_error("release v2 ran here last");
    assert!(home.own("current").symlink_metadata().is_err());
    home.run(&["run"]).code(4).one_error("is missing");
    std::os::unix::fs::symlink("upgrades/v2", home.own("current")).unwrap();
    let mut visor = home.supervise(&[], &[]);
    visor.until_release("v2");
    visor.stop();
}

#[test]
fn a_state_file_that_was_lost_makes_no_plan_past() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.run(&["upgrade", "schedule", "v2", "1000000", "--info", "x"]).code(0);
    visor.stop();
    // Its height is reached while nothing runs, and what was known is lost.
    fs::remove_dir_all(home.root().join("data/upgrades")).unwrap();
    home.plan("v2", 1);
    fs::write(home.own("state.json"), "").unwrap();
    home.release("v2", "");
    let mut visor = home.supervise(&[], &[]);
    visor.until_release("v2");
    home.until_log("what was known of the node is lost");
    visor.stop();
}

#[test]
fn a_state_file_that_was_lost_in_a_trial_commits_no_release_that_never_answers() {
    let home = Home::new();
    home.release("v2", "--no-rpc --no-blocks");
    let patience = ["--set", "trial_timeout=1s", "--set", "trial_time=1h"];
    let mut visor = home.supervise(&patience, &[]);
    visor.until_up();
    home.run(&["upgrade", "now", "v2"]).code(0);
    until("the new release began", || home.started().contains(&"v2".to_owned()).then_some(()));
    visor.kill();
    fs::write(home.own("state.json"), "").unwrap();
    // The journal knows that the node had a head: where RPC once answered, to live on proves nothing.
    let mut visor = home.supervise(&["--set", "trial_timeout=1s", "--set", "trial_time=100ms"], &[]);
    home.until_finished("v2", "reverted");
    visor.until_release("genesis");
    visor.stop();
}

#[test]
fn a_history_with_a_line_that_was_cut_inside_a_letter_is_read_all_the_same() {
    let home = Home::new();
    home.release("v2", "");
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_finished("v2", "committed");
    visor.stop();
    let mut history = fs::read(home.own("history.jsonl")).unwrap();
    history.extend_from_slice(b"{\"reason\":\"\xc3");
    fs::write(home.own("history.jsonl"), history).unwrap();
    let all = home.run(&["upgrade", "list", "--all", "--json"]).code(0).json();
    assert!(all.to_string().contains("committed"), "{all}");
}

#[test]
fn stop_waits_for_the_node_of_a_supervisor_that_was_killed() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--stop-time", "1s", "--stop-busy"]);
    let up = visor.until_up();
    let node = u32::try_from(up["pid"].as_u64().unwrap()).unwrap();
    visor.kill();
    let said = home.run(&["stop"]).code(0);
    assert!(!lives(node), "{said:?}");
    assert_eq!(said.out, "stopped\n");
    assert!(said.err.contains(&format!("(pid {node}) holds the data")), "{said:?}");
    assert_eq!(home.run(&["stop"]).code(0).out, "nothing runs\n");
}

#[test]
fn stop_at_once_ends_a_deaf_node_that_nobody_supervises() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--deaf"]);
    let up = visor.until_up();
    let node = u32::try_from(up["pid"].as_u64().unwrap()).unwrap();
    visor.kill();
    assert!(lives(node));
    home.run(&["stop", "--now"]).code(0);
    assert!(!lives(node));
}

#[test]
fn a_broken_settings_file_keeps_nobody_from_status_and_stop() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    fs::write(home.own("config.toml"), "x = [").unwrap();
    let status = home.run(&["status", "--json"]).code(0);
    assert_eq!(status.json()["state"], "running");
    assert!(status.err.starts_with("warning: going on without"), "{}", status.err);
    home.run(&["stop"]).code(0);
    assert_eq!(visor.end(), 0);
}

#[test]
fn a_restart_with_arguments_that_the_node_refuses_says_so_and_gives_the_earlier_ones_back() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    let args = home.node_args();
    let words: Vec<&str> =
        ["restart", "--"].into_iter().chain(args.iter().map(String::as_str)).chain(["--nosuch"]).collect();
    home.run(&words).code(5).one_error("it is started with its earlier arguments again");
    let up = visor.until_up();
    assert!(!up["args"].to_string().contains("nosuch"), "{up}");
    visor.stop();
}

/// The mock node without what only debuggers want: it has to lie on a small file system.
fn small(to: &std::path::Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let status = Command::new("strip").arg("-o").arg(to).arg(crate::support::mocknode()).status();
    assert!(status.is_ok_and(|status| status.success()));
}

fn install_small(home: &Home) {
    small(&home.dir.join("node"));
    home.run(&["init", home.dir.join("node").to_str().unwrap()]).code(0);
}

/// Fills the file system of the home to the last byte.
fn fill(home: &Home) {
    for (name, size) in [("fill", "bs=64k"), ("fill2", "bs=1")] {
        let file = home.dir.join(name);
        let _ = Command::new("dd").args(["if=/dev/zero", size]).arg(format!("of={}", file.display())).output();
    }
}

#[test]
fn a_node_that_is_given_up_on_a_full_disk_is_told_of_although_nothing_can_be_written() {
    let home = Home::empty();
    let Some(_mounted) = tmpfs(&home.dir, "64m") else { return };
    install_small(&home);
    let chain = Home::empty();
    let datadir = chain.datadir();
    let node = ["--datadir", datadir.to_str().unwrap(), "--period", "50ms"];
    let mut visor = home.supervise_with(&[], &node);
    visor.until_up();
    visor.stop();
    fill(&home);
    let mut visor = home.supervise_with(&["--max-restarts", "0"], &[&node[..], &["--die-at-start=7"]].concat());
    assert_eq!(visor.end(), 5);
    let status = home.run(&["status", "--json"]).code(3).json();
    assert_eq!(text(&status, "state"), "error", "{status}");
    assert!(text(&status, "error").contains("the node ended by itself: exit status 7"), "{status}");
}

#[test]
fn a_disk_that_is_full_at_the_switch_costs_neither_the_node_nor_its_release() {
    let home = Home::empty();
    let Some(_mounted) = tmpfs(&home.dir, "64m") else { return };
    install_small(&home);
    small(&home.own("upgrades/v2/bin/node"));
    // The chain lies elsewhere, so that the node itself has room.
    let chain = Home::empty();
    let datadir = chain.datadir();
    let mut visor = home.supervise_with(
        &[],
        &["--datadir", datadir.to_str().unwrap(), "--period", "50ms", "--stop-time", "1500ms", "--stop-busy"],
    );
    visor.until_up();
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_status("the old release stops", |s| s["upgrade"]["phase"] == "stopping");
    fill(&home);
    let status = home.until_status("a node runs all the same", |s| s["state"] == "running" && s["head_known"] == true);
    assert_eq!((status["release"].as_str(), home.current().as_str()), (Some("genesis"), "genesis"), "{status}");
    fs::remove_file(home.dir.join("fill")).unwrap();
    fs::remove_file(home.dir.join("fill2")).unwrap();
    until("its end is written down", || (!home.own("journal.json").exists()).then_some(()));
    assert_eq!(home.history()[0]["result"], "failed");
    let status = home.until_status("the old release runs on", |s| s["state"] == "running");
    assert_eq!(status["release"], "genesis");
    visor.stop();
}
