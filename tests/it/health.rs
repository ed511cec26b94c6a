//! The node's health in a real home: figures, a node that hangs, one that ended for want of room, and data or a machine that
//! are another's.

use std::fs::{self, File};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Home, text, until};

#[test]
fn health_has_every_check_with_its_figures() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "min_disk=1MiB"], &["--peers", "3"]);
    let status = home.until_status("a result is kept", |s| {
        s["health"]["results"].as_array().is_some_and(|results| results.len() > 1) && s["head_known"] == true
    });
    let checks = &status["health"]["checks"];
    for name in ["process", "rpc_endpoint", "peer_count", "sync_status", "memory", "disk_space"] {
        assert_eq!((&checks[name]["name"], &checks[name]["healthy"]), (&json!(name), &json!(true)), "{status:#}");
    }
    assert_eq!((&checks["peer_count"]["peers"], &checks["peer_count"]["min_required"]), (&json!(3), &json!(1)));
    assert!(checks["memory"]["used_bytes"].as_u64().unwrap() > 100_000, "{status:#}");
    assert!(checks["disk_space"]["free_bytes"].as_u64() <= checks["disk_space"]["total_bytes"].as_u64());
    assert!(checks["sync_status"]["head_age_seconds"].as_u64().is_some(), "{status:#}");
    visor.stop();
}

#[test]
fn a_node_that_hangs_is_restarted() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "hang_timeout=2s"], &["--hang-after", "1s"]);
    home.until_log("neither answers nor makes progress for");
    until("it is started again", || (home.started().len() > 1).then_some(()));
    assert!(home.logged("restart 1 of 5") > 0, "{}", home.log());
    visor.stop();
}

#[test]
fn a_node_that_ended_itself_on_a_full_disk_is_started_when_there_is_room() {
    let home = Home::new();
    let config = fs::read_to_string(home.own("config.toml")).unwrap();
    let least = |size: &str| fs::write(home.own("config.toml"), format!("{config}\ndaemon_min_disk = '{size}'\n"));
    least("900000TB").unwrap();
    home.release("genesis", "--end-after 1s");
    let mut visor = home.supervise(&[], &[]);
    let status = home.until_status("it is held", |s| !s["hold"].is_null());
    assert!(text(&status["hold"], "reason").contains("DAEMON_MIN_DISK"), "{status}");
    assert_eq!((text(&status, "state").as_str(), &status["restart_count"]), ("starting", &json!(0)));
    assert_eq!(home.started().len(), 1);
    // From here on it lives, and there is room.
    home.release("genesis", "");
    least("1MiB").unwrap();
    visor.signal(Signal::HUP);
    home.until_log("there is room again");
    visor.until_up();
    visor.stop();
}

#[test]
fn data_that_another_node_holds_are_left_alone() {
    let home = Home::new();
    fs::create_dir_all(home.datadir().join("geth")).unwrap();
    let lock = File::create(home.datadir().join("geth/LOCK")).unwrap();
    lock.lock().unwrap();
    let mut visor = home.supervise(&[], &[]);
    assert_eq!(visor.end(), 4);
    let log = home.log();
    assert!(log.contains("geth/LOCK is held by") && log.contains(&format!("(pid {})", std::process::id())), "{log}");
    assert!(home.started().is_empty());
    drop(lock);
    // A lock file that nobody holds is no obstacle.
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    visor.stop();
}

#[test]
fn a_validator_that_was_moved_is_refused_until_somebody_says_so() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    visor.stop();
    let state = fs::read_to_string(home.own("state.json")).unwrap();
    let mut known: serde_json::Value = serde_json::from_str(&state).unwrap();
    if known["machine"].is_null() {
        eprintln!("SKIPPED: this machine has no machine-id");
        return;
    }
    known["machine"] = json!("another");
    fs::write(home.own("state.json"), known.to_string()).unwrap();
    let validator = ["--set", "validator_mode=true", "--set", "validator_hold=0"];
    let mut visor = home.supervise(&validator, &[]);
    assert_eq!(visor.end(), 4);
    assert!(home.log().contains("--set moved=true"), "{}", home.log());
    let mut visor = home.supervise(&[&validator[..], &["--set", "moved=true"]].concat(), &[]);
    visor.until_up();
    visor.stop();
    // Said once: it is this machine's now.
    let mut visor = home.supervise(&validator, &[]);
    visor.until_up();
    visor.stop();
}

#[test]
fn a_flag_that_the_new_release_dropped_is_warned_of_before_the_upgrade() {
    let home = Home::new();
    home.release("v2", "--mock-version 1.13.15");
    let args = home.node_args();
    let words: Vec<&str> = args.iter().map(String::as_str).chain(["--log", "3"]).collect();
    // The old release knows a flag that the new one ends at: a script takes it away before the mock sees it.
    let mock = home.own("upgrades/v2/bin/node");
    home.script(
        "genesis",
        &format!(
            "case \"$1\" in version) echo 0.10.9-stable; exit;; esac\nexec {} --datadir {} --period 50ms",
            mock.display(),
            home.datadir().display()
        ),
    );
    let mut visor = home.supervise_with(&[], &words);
    visor.until_up();
    let said = home.run(&["upgrade", "check", "v2"]);
    assert!(said.out.contains("warning: it may not know --log (--log.file there)"), "{said:?}");
    // The remedy.
    fs::write(home.own("upgrades/v2/node-args"), args.join("\n")).unwrap();
    let said = home.run(&["upgrade", "check", "v2"]);
    assert!(!said.out.contains("may not know"), "{said:?}");
    visor.stop();
}

#[test]
fn variables_that_the_node_takes_for_flags_are_named_once_without_their_values() {
    let home = Home::new();
    let args = home.node_args();
    let words: Vec<&str> = std::iter::once("run").chain(args.iter().map(String::as_str)).collect();
    let mut command = home.command(&words);
    command.env("GETH_PASSWORD", "secret-word");
    let mut visor = home.spawn(command);
    home.until_log("GETH_PASSWORD");
    visor.until_up();
    visor.stop();
    assert_eq!((home.logged("GETH_PASSWORD"), home.logged("secret-word")), (1, 0), "{}", home.log());
}
