//! Hooks: what they are given, what each of their ends means, and that nothing of them outlives them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Home, Visor, kill, lives, until};

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

/// A home with a plan for v2 at block 40, whose release has this hook.
fn hooked(script: &str) -> Home {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    hook(&home, "upgrades/v2/pre-upgrade", script);
    home.plan("v2", 40);
    home
}

/// Puts a shell script into our own folder; it appears whole and executable.
pub fn hook(home: &Home, path: &str, script: &str) -> PathBuf {
    let path = home.own(path);
    let draft = home.dir.join("draft");
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::rename(&draft, &path).unwrap();
    path
}

fn written(home: &Home, name: &str) -> String {
    fs::read_to_string(home.dir.join(name)).unwrap_or_default()
}

/// The upgrade failed for this reason, the old release runs, and the new one was never started.
#[track_caller]
fn until_failed(home: &Home, visor: &Visor, reason: &str) {
    let status = home.until_finished("v2", "failed");
    let told = status["last_upgrade"]["reason"].as_str().unwrap().to_owned();
    assert!(told.contains(reason), "wanted {reason:?} in {told:?}");
    visor.until_release("genesis");
    assert!(!home.started().contains(&"v2".to_owned()), "{:?}", home.started());
    assert_eq!(home.current(), "genesis");
    assert_eq!(home.status()["plans"][0]["state"], "failed", "it is not tried again by itself");
}

#[test]
fn hooks_are_told_all_they_need_and_run_in_order_before_the_link_moves() {
    let home = hooked("");
    let out = home.dir.join("told");
    let tell = |who: &str| {
        format!(
            "{{ echo {who} $# $1 $2 $(pwd) $DAEMON_HOME $DAEMON_NAME $UPGRADE_NAME $UPGRADE_HEIGHT $UPGRADE_ATTEMPT $MARK; \
             readlink {}; cat $UPGRADE_INFO_FILE; echo \" $UPGRADE_INFO\"; cat; ls -d $UPGRADE_BACKUP/data; }} >>{}; echo {who} says hello; echo $UPGRADE_BACKUP >>{}",
            home.own("current").display(),
            out.display(),
            home.dir.join("backup").display(),
        )
    };
    hook(&home, "upgrades/v2/pre-upgrade", &tell("second"));
    hook(&home, "before-all", &tell("first"));
    home.put("upgrades/40/upgrade-info.json", r#"{"name": "v2", "height": 40, "info": {"description": "big"}}"#);
    let mut command = home.command(&["--set", "cosmovisor_custom_preupgrade=before-all", "--set", "trial_time=300ms"]);
    command.args(["--set", "trial_blocks=3", "--set", "restart_backoff=50ms", "run"]);
    command.args(home.node_args()).args(FROZEN).env("MARK", "inherited");
    let mut visor = home.spawn(command);
    let status = home.until_finished("v2", "committed");
    let told = written(&home, "told");
    let root = home.root();
    let root = root.display();
    let backup = written(&home, "backup").lines().next().unwrap().to_owned();
    let plan = r#"{"name":"v2","height":40,"info":{"description":"big"}}"#;
    assert!(!home.log().contains(&format!("hook {root}")), "a hook is named from our own folder");
    let expected = |who: &str| {
        format!(
            "{who} 2 v2 40 {root} {root} node v2 40 1 inherited\ngenesis\n{plan} {{\"description\":\"big\"}}\n{backup}/data\n"
        )
    };
    assert_eq!(told, expected("first") + &expected("second"));
    assert_eq!(home.root().join("backups").join(text(&status, "backup")).to_str(), Some(backup.as_str()));
    for who in ["first", "second"] {
        home.until_log(&format!("hook: {who} says hello"));
    }
    let line = &home.history()[0];
    assert!(line["phases"]["hook"].as_u64().is_some(), "{line}");
    visor.stop();
}

fn text(status: &serde_json::Value, key: &str) -> String {
    status["last_upgrade"][key].as_str().unwrap().to_owned()
}

#[test]
fn a_hook_that_fails_in_any_way_leaves_the_old_release_running_and_says_why() {
    for (script, reason) in [
        ("echo the table is missing; exit 1", "exit status 1; its last line: the table is missing"),
        ("exit 127", "exit status 127"),
        ("kill -SEGV $$", "signal 11"),
        ("exit 31", "asked to be run again 1 times"),
    ] {
        let home = hooked(script);
        let mut visor = home.supervise(&[], FROZEN);
        until_failed(&home, &visor, reason);
        visor.stop();
    }
}

#[test]
fn a_hook_that_exits_31_is_run_again_and_counts_its_attempts() {
    let home = hooked("");
    let out = home.dir.join("attempts");
    let script = format!("echo $UPGRADE_ATTEMPT >>{}; [ $UPGRADE_ATTEMPT = 2 ] || exit 31", out.display());
    hook(&home, "upgrades/v2/pre-upgrade", &script);
    let mut visor = home.supervise(&["--set", "preupgrade_max_retries=3"], FROZEN);
    home.until_log("asks to be run again: retry 1 of 3 in 1s");
    home.until_finished("v2", "committed");
    assert_eq!(written(&home, "attempts"), "1\n2\n");
    assert!(home.history()[0]["phases"]["hook"].as_u64().unwrap() >= 1000, "the pause counts: the node was down");
    visor.stop();
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_it_started_and_the_old_release_runs() {
    let home = hooked("");
    let child = home.dir.join("child");
    // The shell itself waits for its child and would not hear TERM before that ends.
    hook(&home, "upgrades/v2/pre-upgrade", &format!("sleep 1000 & echo $! >{}; wait; sleep 1000", child.display()));
    let mut visor = home.supervise(&["--set", "preupgrade_timeout=700ms"], FROZEN);
    until_failed(&home, &visor, "it ran longer than 700ms (DAEMON_PREUPGRADE_TIMEOUT)");
    let child: u32 = written(&home, "child").trim().parse().unwrap();
    assert!(!lives(child));
    visor.stop();
}

#[test]
fn a_hook_that_ignores_term_is_killed_when_its_grace_is_over() {
    let home = hooked("trap '' TERM; while :; do sleep 0.05; done");
    let ours = ["--set", "preupgrade_timeout=300ms", "--set", "shutdown_limit=2s"];
    let mut visor = home.supervise(&ours, FROZEN);
    until_failed(&home, &visor, "it ran longer than 300ms");
    home.until_log("ended by KILL");
    visor.stop();
}

#[test]
fn what_a_hook_leaves_in_the_background_is_gone_before_the_new_release_starts() {
    let home = hooked("");
    let child = home.dir.join("child");
    // One in its group, one in a session of its own, one that let go of all its descriptors.
    let script = format!(
        "sleep 1000 & echo $! >>{0}; setsid sleep 1001 & echo $! >>{0}; \
         (for fd in /proc/self/fd/*; do fd=${{fd##*/}}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; exec sleep 1002) <&- >/dev/null 2>&1 & echo $! >>{0}",
        child.display()
    );
    hook(&home, "upgrades/v2/pre-upgrade", &script);
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("v2", "committed");
    let children: Vec<u32> = written(&home, "child").lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(children.len(), 3);
    for child in children {
        assert!(!lives(child), "{child}");
    }
    assert_eq!(home.events("stop").len(), home.events("start").len() - 1);
    visor.stop();
}

#[test]
fn a_flood_of_output_and_a_line_without_end_matter_to_nobody() {
    let home = hooked(
        "yes 'a line of a hook that says too much' | head -c 300000000; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the end",
    );
    let mut visor = home.supervise(&["--set", "preupgrade_timeout=60s"], FROZEN);
    home.until_phase("hook");
    let mut slowest = Duration::ZERO;
    while home.status()["upgrade"]["phase"] == "hook" {
        let asked = Instant::now();
        home.run(&["status"]);
        slowest = slowest.max(asked.elapsed());
    }
    home.until_finished("v2", "committed");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(home.log().len() < 4 << 20, "{} bytes of log", home.log().len());
    home.until_log("hook: a line of a hook that says too much");
    home.until_log("more");
    let status = fs::read_to_string(format!("/proc/{}/status", visor.pid())).unwrap();
    let peak: u64 =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 16 << 10, "{peak} KiB");
    visor.stop();
}

#[test]
fn a_hook_that_comes_when_its_release_was_found_ready_is_checked_too() {
    let home = Home::new();
    home.release("v2", "");
    home.plan("v2", 1_000_000);
    let mut visor = home.supervise(&[], FROZEN);
    let state = |home: &Home| home.status()["plans"][0]["state"].as_str().map(str::to_owned);
    until("it is ready", || (state(&home).as_deref() == Some("staged")).then_some(()));
    let path = hook(&home, "upgrades/v2/pre-upgrade", "exit 0");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    home.until_log("pre-upgrade is not executable: chmod +x it");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    until("it is ready again", || (state(&home).as_deref() == Some("staged")).then_some(()));
    // The operator's own is one of the settings.
    let own = hook(&home, "hooks/own", "exit 0");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).unwrap();
    home.run(&["config", "set", "cosmovisor_custom_preupgrade", own.to_str().unwrap()]).code(0);
    visor.signal(Signal::HUP);
    home.until_log("own is not executable: chmod +x it");
    visor.stop();
}

#[test]
fn a_hook_that_cannot_be_run_is_found_while_the_node_still_runs() {
    let home = hooked("exit 0");
    let path = home.own("upgrades/v2/pre-upgrade");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut visor = home.supervise(&[], FROZEN);
    home.until_log("pre-upgrade is not executable: chmod +x it");
    let said = home.run(&["upgrade", "check", "v2"]).code(1);
    assert!(said.out.contains("chmod +x"), "{}", said.out);
    assert_eq!(home.started(), ["genesis"]);
    // A link that dangles is no hook that is not there.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let said = home.run(&["upgrade", "check", "v2"]).code(1);
    assert!(said.out.contains("is not there"), "{}", said.out);
    // Mended, with a link to a script elsewhere, it runs when it is looked at again.
    let real = hook(&home, "hooks/real", &format!("echo >{}", home.dir.join("ran").display()));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(real, &path).unwrap();
    home.run(&["upgrade", "check", "v2"]).code(0);
    home.until_finished("v2", "committed");
    assert!(home.dir.join("ran").exists());
    visor.stop();
}

#[test]
fn an_own_hook_that_is_not_there_is_found_while_the_node_still_runs() {
    let home = hooked("exit 0");
    let mut visor = home.supervise(&["--set", "cosmovisor_custom_preupgrade=missing.sh"], FROZEN);
    home.until_log("missing.sh is not there");
    visor.until_up();
    assert_eq!(home.started(), ["genesis"]);
    visor.stop();
}

/// A hook that waits for a file before it goes on, and counts its runs.
fn waiting(home: &Home) {
    let script =
        format!("echo $UPGRADE_ATTEMPT >>{0}/runs; while ! [ -e {0}/go ]; do sleep 0.02; done", home.dir.display());
    hook(home, "upgrades/v2/pre-upgrade", &script);
}

#[test]
fn a_stop_during_a_hook_interrupts_it_and_the_next_start_runs_it_again() {
    let home = hooked("");
    waiting(&home);
    let mut visor = home.supervise(&[], FROZEN);
    until("the hook runs", || (written(&home, "runs") == "1\n").then_some(()));
    let status = home.until_phase("hook");
    assert_eq!(status["state"], "upgrading");
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("pre-upgrade"), "{status}");
    visor.stop();
    assert_eq!(home.history(), Vec::<serde_json::Value>::new());
    assert!(home.own("journal.json").exists());
    fs::write(home.dir.join("go"), "").unwrap();
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("v2", "committed");
    assert_eq!(written(&home, "runs"), "1\n2\n");
    assert_eq!(home.history().len(), 1);
    visor.stop();
}

#[test]
fn a_supervisor_that_is_killed_during_a_hook_takes_it_along_and_the_next_one_runs_it_again() {
    let home = hooked("");
    waiting(&home);
    let mut visor = home.supervise(&[], FROZEN);
    until("the hook runs", || (written(&home, "runs") == "1\n").then_some(()));
    visor.kill();
    let status = home.status();
    assert_eq!((&status["state"], &status["upgrade"]["phase"]), (&json!("crashed"), &json!("hook")));
    assert!(status["error"].as_str().unwrap().contains("in the middle of upgrade v2"), "{status}");
    let listed = home.run(&["upgrade", "list"]).code(0).out;
    assert!(listed.contains("hook") && listed.contains("waits for the next start"), "{listed}");
    fs::write(home.dir.join("go"), "").unwrap();
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("v2", "committed");
    assert_eq!(written(&home, "runs"), "1\n2\n");
    visor.stop();
}

#[test]
fn a_cancel_during_a_hook_ends_it_and_the_old_release_runs() {
    let home = hooked("");
    waiting(&home);
    let mut visor = home.supervise(&[], FROZEN);
    until("the hook runs", || (written(&home, "runs") == "1\n").then_some(()));
    home.run(&["upgrade", "cancel", "v2"]).code(0);
    home.until_finished("v2", "cancelled");
    visor.until_release("genesis");
    assert!(!home.started().contains(&"v2".to_owned()));
    visor.stop();
}

#[test]
fn a_hook_killed_from_outside_is_a_failure_and_one_that_changed_the_data_has_it_put_back() {
    let home = hooked("");
    let migrated = home.datadir().join("geth/migrated");
    let script = format!("echo >{}; echo $$ >{}; sleep 1000", migrated.display(), home.dir.join("pid").display());
    hook(&home, "upgrades/v2/pre-upgrade", &script);
    let mut visor = home.supervise(&[], FROZEN);
    let pid: u32 = until("the hook runs", || written(&home, "pid").trim().parse().ok());
    assert!(migrated.exists());
    kill(pid, Signal::KILL);
    until_failed(&home, &visor, "the data went back to backup v2-");
    assert!(!migrated.exists(), "what the hook did is undone");
    let list = home.run(&["backup", "list", "--json"]).json()["backups"].clone();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|b| b["upgrade"].as_str().unwrap_or("")).collect();
    assert_eq!(list.as_array().unwrap().len(), 2, "the backup and what it replaced: {names:?}");
    let kept = list.as_array().unwrap().iter().find(|b| b["name"].as_str().unwrap().starts_with("before-restore-"));
    assert_eq!(kept.unwrap()["complete"], json!(true));
    visor.stop();
}
