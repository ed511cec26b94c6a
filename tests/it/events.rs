//! The operator's own command is told what happens, in the form that is written down, and nothing waits for it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Visor, kill, lives, until};

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

/// Puts the operator's command beside the home, and supervises with it.
fn told_to<'a>(home: &'a Home, script: &str, ours: &[&str], node: &[&str]) -> Visor<'a> {
    let command = home.dir.join("tell");
    let draft = home.dir.join("draft");
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&draft, &command).unwrap();
    let set = format!("event_command={}", command.display());
    home.supervise(&[&["--set", set.as_str()], ours].concat(), node)
}

/// A command that keeps each event as a line.
fn keeps(home: &Home) -> String {
    format!("cat >>{}", home.dir.join("told").display())
}

fn told(home: &Home) -> Vec<Value> {
    let text = fs::read_to_string(home.dir.join("told")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn kinds(home: &Home) -> Vec<String> {
    told(home).iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

/// The last event of a kind, once it was told; it has the fields that the fixture has, and no other.
#[track_caller]
fn until_told(home: &Home, kind: &str) -> Value {
    let event = until(&format!("{kind} is told"), || told(home).into_iter().rfind(|event| event["event"] == kind));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/events/{kind}.json"));
    let fixture: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    assert_eq!(keys(&event), keys(&fixture), "{event}");
    assert_eq!(event["home"], home.root().to_str().unwrap());
    assert!(!event["message"].as_str().unwrap().is_empty(), "{event}");
    event
}

#[test]
fn an_upgrade_is_told_from_its_beginning_to_its_commit() {
    let home = Home::new();
    home.plan("v2", 40);
    let mut visor = told_to(&home, &keeps(&home), &[], FROZEN);
    let event = until_told(&home, "not_staged");
    assert_eq!((&event["name"], &event["height"], &event["to"]), (&"v2".into(), &40.into(), &"v2".into()));
    home.release("v2", "--halt-at 1000000");
    let event = until_told(&home, "upgrade_begun");
    assert_eq!((&event["from"], &event["to"], &event["release"]), (&"genesis".into(), &"v2".into(), &"genesis".into()));
    let event = until_told(&home, "upgrade_committed");
    assert_eq!(event["release"], "v2");
    let line = &home.history()[0];
    assert_eq!((&event["downtime_ms"], &event["backup"]), (&line["downtime_ms"], &line["backup"]));
    visor.stop();
    let order: Vec<String> = kinds(&home).into_iter().filter(|kind| kind.starts_with("upgrade")).collect();
    assert_eq!(order, ["upgrade_begun", "upgrade_committed"]);
}

#[test]
fn what_is_taken_back_is_told_with_its_reason() {
    let home = Home::new();
    home.release("v2", "--die-at-start=3");
    home.plan("v2", 40);
    let mut visor = told_to(&home, &keeps(&home), &[], FROZEN);
    let event = until_told(&home, "upgrade_reverted");
    assert!(event["message"].as_str().unwrap().contains("ended 3 times"), "{event}");
    assert!(kinds(&home).iter().filter(|kind| *kind == "node_crashed").count() >= 2, "{:?}", kinds(&home));
    home.until_finished("v2", "reverted");
    visor.stop();

    let home = Home::new();
    home.release("v2", "");
    home.put("../wemixvisor/upgrades/v2/pre-upgrade", "#!/bin/sh\nexit 1\n");
    fs::set_permissions(home.own("upgrades/v2/pre-upgrade"), fs::Permissions::from_mode(0o755)).unwrap();
    home.plan("v2", 40);
    let mut visor = told_to(&home, &keeps(&home), &[], FROZEN);
    let event = until_told(&home, "upgrade_failed");
    assert_eq!(event["put_off"], false);
    home.until_finished("v2", "failed");
    visor.stop();
}

#[test]
fn a_node_that_crashes_and_the_end_of_it_all_are_told_before_the_supervisor_leaves() {
    let home = Home::new();
    let mut visor = told_to(&home, &keeps(&home), &["--set", "max_restarts=1"], &["--die-at-start=3"]);
    assert_eq!(visor.end(), 5);
    // Nobody waits here: what was to be told is told when the supervisor is gone.
    assert_eq!(kinds(&home), ["node_crashed", "error"]);
    let (crash, error) = (until_told(&home, "node_crashed"), until_told(&home, "error"));
    assert_eq!((&crash["exit"], &crash["restarts"]), (&"exit status 3".into(), &1.into()));
    assert_eq!((&error["exit_status"], &error["name"]), (&5.into(), &Value::Null));
}

#[test]
fn a_held_start_is_told() {
    let home = Home::new();
    let ours = ["--set", "validator_mode=true", "--set", "validator_hold=3s"];
    let mut visor = told_to(&home, &keeps(&home), &ours, &["--start-head", "7"]);
    let up = home.until_status("it answers", |s| s["head_known"] == true);
    kill(up["pid"].as_u64().unwrap().try_into().unwrap(), Signal::KILL);
    let event = until_told(&home, "hold");
    assert!(event["until"].as_str().is_some_and(|until| until.ends_with('Z')), "{event}");
    visor.stop();
}

#[test]
fn a_command_that_is_missing_hangs_or_fails_is_a_warning_and_in_nobodys_way() {
    for (script, warning) in
        [("exit 3", "the command ended with exit status 3"), ("kill -SEGV $$", "the command ended with signal 11")]
    {
        let home = Home::new();
        home.release("v2", "--halt-at 1000000");
        home.plan("v2", 40);
        let mut visor = told_to(&home, script, &[], FROZEN);
        home.until_finished("v2", "committed");
        home.until_log(&format!("DAEMON_EVENT_COMMAND: {warning}"));
        visor.stop();
    }
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let mut visor = home.supervise(&["--set", "event_command=/nowhere/tell"], FROZEN);
    home.until_finished("v2", "committed");
    home.until_log("DAEMON_EVENT_COMMAND: /nowhere/tell");
    visor.stop();

    // It hangs, and so does what it started: neither outlives the supervisor by more than it waits at its end.
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let pids = home.dir.join("pids");
    let script = format!("sleep 1000 & echo $! $$ >>{}; wait", pids.display());
    let mut visor = told_to(&home, &script, &[], FROZEN);
    home.until_finished("v2", "committed");
    let hanging: Vec<u32> = until("it hangs", || {
        let text = fs::read_to_string(&pids).ok()?;
        let line = text.lines().next()?;
        Some(line.split(' ').map(|pid| pid.parse().unwrap()).collect())
    });
    assert!(lives(hanging[1]));
    let began = Instant::now();
    visor.stop();
    assert!(began.elapsed().as_secs() < 25, "{:?}", began.elapsed());
    until("the command and what it started are gone", || (!lives(hanging[0]) && !lives(hanging[1])).then_some(()));
}

#[test]
fn events_that_come_while_the_command_is_slow_are_told_one_after_the_other() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let script = format!(
        "mkdir {0}/busy || echo twice >>{0}/told; sleep 0.2; {1}; rmdir {0}/busy",
        home.dir.display(),
        keeps(&home)
    );
    let mut visor = told_to(&home, &script, &[], FROZEN);
    until_told(&home, "upgrade_committed");
    visor.stop();
    let kinds = kinds(&home);
    assert!(kinds.len() >= 2, "{kinds:?}");
    // The command knows nothing of the supervisor that a notification could be sent by.
    assert!(!home.log().contains("too slow"));
}
