//! The main job: a plan, its height, the switch, the trial, the commit; and the backup that it makes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Home, kill, tmpfs, under, until};

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

#[test]
fn a_scheduled_upgrade_is_carried_out_at_its_height_and_committed() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.release("v2", "");
    home.run(&["upgrade", "schedule", "v2", "40"]).code(0);
    home.until_status("the plan is staged", |s| s["upgrade"]["phase"] == "staged");
    assert_eq!(home.current(), "genesis");
    visor.until_release("v2");
    let status = home.until_status("it is committed", |s| s["last_upgrade"]["result"] == "committed");
    assert_eq!(home.current(), "v2");
    assert_eq!(status["upgrade"], Value::Null);
    let starts = home.events("start");
    assert_eq!(starts.iter().map(|e| e[2].as_str()).collect::<Vec<_>>(), ["genesis", "v2"]);
    assert_eq!(home.events("term").len(), 1, "TERM once");
    let stopped_at: u64 = home.events("stop")[0][4].parse().unwrap();
    assert!(stopped_at >= 39, "not early: due when the head is height - 1, it stopped at {stopped_at}");
    until("blocks go on", || home.status()["height"].as_u64().filter(|height| *height > stopped_at + 5));
    let history = home.history();
    assert_eq!(history.len(), 1);
    assert_eq!((history[0]["name"].as_str(), history[0]["result"].as_str()), (Some("v2"), Some("committed")));
    assert_eq!(history[0]["clean_stop"], true);
    visor.stop();
}

/// Puts files into the node's database that it will never change again, and one that it does.
fn fill(home: &Home, tables: usize) {
    let dir = home.datadir().join("geth/chaindata");
    fs::create_dir_all(dir.join("ancient/chain")).unwrap();
    for number in 0..tables {
        let table = dir.join(format!("{number:06}.ldb"));
        fs::write(&table, vec![u8::try_from(number % 251).unwrap(); 64 << 10]).unwrap();
        // What was written this very second may be written on.
        let earlier = SystemTime::now() - Duration::from_hours(1);
        fs::File::options().write(true).open(table).unwrap().set_modified(earlier).unwrap();
    }
    for number in 0..4 {
        fs::write(dir.join(format!("ancient/chain/bodies.{number:04}.cdat")), vec![number; 100 << 10]).unwrap();
    }
    fs::write(dir.join("CURRENT"), "MANIFEST-000001\n").unwrap();
}

/// The backups, oldest first, as `backup list --json` tells them.
fn backups(home: &Home) -> Vec<Value> {
    let mut all = home.run(&["backup", "list", "--json"]).code(0).json()["backups"].as_array().unwrap().clone();
    all.sort_by_key(|backup| backup["created"].as_str().unwrap_or("").to_owned());
    all
}

#[test]
fn an_upgrade_makes_a_backup_of_the_data_as_the_old_release_left_it() {
    let home = Home::new();
    fill(&home, 20);
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], FROZEN);
    let status = home.until_finished("v2", "committed");
    let name = status["last_upgrade"]["backup"].as_str().unwrap().to_owned();
    let dir = home.root().join("backups").join(&name);
    let manifest: Value = serde_json::from_str(&fs::read_to_string(dir.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(
        (&manifest["head"], &manifest["release"], &manifest["upgrade"]),
        (&json!(39), &json!("genesis"), &json!("v2"))
    );
    assert_eq!(fs::read_to_string(dir.join("data/geth/chaindata/head")).unwrap().trim(), "39");
    assert_eq!(fs::read(dir.join("data/geth/chaindata/000007.ldb")).unwrap(), vec![7; 64 << 10]);
    assert!(!dir.join("data/geth/LOCK").exists());
    let line = &home.history()[0];
    assert_eq!(line["backup"], json!(name));
    assert!(line["phases"]["backup"].as_u64().is_some() && line["phases"]["stop"].as_u64().is_some(), "{line}");
    home.run(&["backup", "verify", &name]).code(0);
    let mode = fs::metadata(&dir).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o700, "keys lie in it");
    visor.stop();
}

#[test]
fn what_never_changes_is_copied_ahead_while_the_node_runs_and_not_again_when_it_is_down() {
    let home = Home::new();
    fill(&home, 50);
    home.release("v2", "");
    let mut visor = home.supervise(&["--set", "backup_mode=copy"], &[]);
    visor.until_up();
    home.run(&["upgrade", "schedule", "v2", "150"]).code(0);
    home.until_log("copied ahead");
    let ahead = home.root().join("backups/.partial-ahead/data/geth/chaindata/000049.ldb");
    let number = fs::metadata(&ahead).unwrap().ino();
    assert_eq!(home.current(), "genesis");
    let status = home.until_finished("v2", "committed");
    let name = status["last_upgrade"]["backup"].as_str().unwrap();
    let table = home.root().join("backups").join(name).join("data/geth/chaindata/000049.ldb");
    assert_eq!(fs::metadata(&table).unwrap().ino(), number, "the copy of before is the backup's");
    assert_eq!(fs::read(table).unwrap(), vec![49; 64 << 10]);
    home.run(&["backup", "verify", "--full", name]).code(0);
    visor.stop();
}

#[test]
fn without_a_backup_where_the_operator_said_so() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let mut visor = home.supervise(&["--set", "unsafe_skip_backup=true"], FROZEN);
    let status = home.until_finished("v2", "committed");
    assert_eq!(status["last_upgrade"]["backup"], Value::Null);
    assert_eq!(backups(&home), Vec::<Value>::new());
    home.until_log("UNSAFE_SKIP_BACKUP");
    visor.stop();
}

#[test]
fn a_committed_upgrade_leaves_as_many_backups_as_are_to_be_kept() {
    let home = Home::new();
    fill(&home, 3);
    let mut visor = home.supervise(&["--set", "min_disk=0", "--set", "backup_keep=1"], &[]);
    visor.until_up();
    for name in ["v2", "v3"] {
        home.release(name, "");
        home.run(&["upgrade", "now", name]).code(0);
        home.until_finished(name, "committed");
    }
    until("the older one is gone", || (backups(&home).len() == 1).then_some(()));
    assert_eq!(backups(&home)[0]["complete"], true);
    assert!(backups(&home)[0]["name"].as_str().unwrap().starts_with("v3-"), "{:?}", backups(&home));
    home.until_log("old backup removed: v2-");
    visor.stop();
}

#[test]
fn a_backup_that_has_no_room_is_refused_while_the_node_runs_and_the_upgrade_goes_on_when_it_has() {
    let home = Home::new();
    fill(&home, 200);
    let Some(_small) = tmpfs(&home.root().join("backups"), "4m") else { return };
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let mut visor = home.supervise(&["--set", "backup_mode=copy", "--set", "min_disk=0"], FROZEN);
    home.until_log("upgrade v2 is due but waits, the old release runs on");
    let status = home.status();
    let waits = status["upgrade"]["waits_for"].as_str().unwrap_or("");
    assert!(waits.contains("free") && waits.contains("MiB"), "{status}");
    assert_eq!(home.started(), ["genesis"]);
    let wider = Command::new("mount").args(["-o", "remount,size=64m"]).arg(home.root().join("backups")).status();
    assert!(wider.unwrap().success());
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn a_disk_that_fills_up_during_the_backup_puts_the_upgrade_off_and_costs_no_node() {
    let home = Home::new();
    fill(&home, 100);
    let backups = home.root().join("backups");
    let Some(_small) = tmpfs(&backups, "64m") else { return };
    home.release("genesis", "--stop-time 700ms --stop-busy");
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let ours = ["--set", "backup_mode=copy", "--set", "min_disk=0"];
    let mut visor = home.supervise(&ours, FROZEN);
    home.until_phase("stopping");
    let fill = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", backups.join("filler").display()))
        .output();
    assert!(!fill.unwrap().status.success(), "the disk is full");
    home.until_log("upgrade v2 is taken back: put off: the data cannot be backed up");
    let status = visor.until_release("genesis");
    assert_eq!(status["plans"][0]["state"].as_str().filter(|state| *state == "failed"), None, "{status}");
    assert_eq!(fs::read_dir(&backups).unwrap().count(), 1, "nothing half-made takes up room");
    fs::remove_file(backups.join("filler")).unwrap();
    home.until_finished("v2", "committed");
    let results: Vec<Value> = home.history().iter().map(|line| line["result"].clone()).collect();
    assert_eq!(results, [json!("failed"), json!("committed")]);
    visor.stop();
}

#[test]
fn a_validator_is_held_before_its_starts_and_the_hold_is_shown() {
    let home = Home::new();
    let ours = ["--set", "validator_mode=true", "--set", "validator_hold=2s"];
    let mut visor = home.supervise(&ours, &[]);
    let up = visor.until_up();
    assert_eq!(up["hold"], Value::Null);
    kill(u32::try_from(up["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    let status = home.until_status("the start is held", |s| !s["hold"].is_null());
    assert_eq!(status["state"], "starting");
    assert!(status["hold"]["reason"].as_str().unwrap().contains("validator"), "{status}");
    assert!(status["hold"]["until"].as_str().unwrap().ends_with('Z'), "{status}");
    visor.until_up();
    let at = |kind: &str, n: usize| home.events(kind)[n][3].parse::<u64>().unwrap();
    let died = home.log();
    assert!(at("start", 1) >= at("start", 0) + 2000, "{died}");
    // Also by a supervisor that did not see the end.
    visor.kill();
    let mut visor = home.supervise(&ours, &[]);
    home.until_status("the start is held", |s| !s["hold"].is_null());
    visor.until_up();
    // And where the data went back, however clean the last end was.
    visor.stop();
    let name = home.run(&["--quiet", "backup", "create"]).code(0).out.trim().to_owned();
    home.run(&["backup", "restore", &name]).code(0);
    let mut visor = home.supervise(&ours, &[]);
    let status = home.until_status("the start is held", |s| !s["hold"].is_null());
    assert!(status["hold"]["reason"].as_str().unwrap().contains("data went back"), "{status}");
    visor.until_up();
    // A stop does not wait for a hold.
    kill(u32::try_from(home.status()["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    home.until_status("the start is held", |s| !s["hold"].is_null());
    visor.stop();
}

#[test]
fn a_place_for_copies_that_cannot_be_written_is_found_while_the_node_runs() {
    let home = Home::new();
    home.release("v2", "");
    home.plan("v2", 1000);
    home.put("geth/block", "1");
    let place = home.dir.join("place");
    let Some(_disk) = tmpfs(&place, "64m") else { return };
    let set = ["backup_mode=copy".to_owned(), format!("data_backup_dir={}", place.display()), "min_disk=0".to_owned()];
    let words: Vec<&str> =
        set.iter().flat_map(|set| ["--set", set.as_str()]).chain(["upgrade", "check", "v2"]).collect();
    let can = "the data can be backed up";
    let good = home.run(&words);
    assert!(good.out.contains(&format!("yes {can}")), "{good:?}");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing is left of the trial");
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&place).status().unwrap().success());
    let bad = home.run(&words).code(1);
    assert!(bad.out.contains(&format!("NO  {can}")) && bad.out.contains("Read-only"), "{bad:?}");
}

#[test]
fn a_place_for_backups_that_is_no_directory_is_found_while_the_node_runs() {
    let home = Home::new();
    home.release("v2", "");
    home.plan("v2", 40);
    let file = home.dir.join("file");
    fs::write(&file, "").unwrap();
    let set = format!("data_backup_dir={}", file.display());
    let mut visor = home.supervise(&["--set", &set], FROZEN);
    let waits = home.until_log("is due but waits, the old release runs on: cannot read");
    assert!(waits.contains("DAEMON_DATA_BACKUP_DIR"), "{waits}");
    assert_eq!(home.started(), ["genesis"]);
    visor.stop();
}

#[test]
fn a_file_that_the_supervisor_may_not_read_is_found_while_the_node_runs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make a file of somebody else's");
        return;
    }
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    let secret = home.datadir().join("geth/secret");
    fs::create_dir_all(secret.parent().unwrap()).unwrap();
    fs::write(&secret, "root's").unwrap();
    let mut all = Command::new("chown");
    assert!(all.args(["-R", "65534:65534"]).arg(&home.dir).status().unwrap().success());
    chown(&secret, Some(0), Some(0)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = home.command(&["--set", "trial_time=300ms", "--set", "trial_blocks=3", "run"]);
    command.args(home.node_args()).args(FROZEN);
    let who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut visor = home.spawn(under(&who, &command));
    let waits = home.until_log("upgrade v2 is due but waits, the old release runs on");
    assert!(waits.contains(secret.to_str().unwrap()), "{waits}");
    assert_eq!(home.started(), ["genesis"]);
    // Once it can be read, the upgrade begins by itself.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn what_root_left_half_made_is_in_the_way_of_no_upgrade() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can leave what is root's");
        return;
    }
    for nobodys_outside in [true, false] {
        let home = Home::new();
        home.release("v2", "--halt-at 1000000");
        home.plan("v2", 40);
        let left = home.root().join("backups/.partial-ahead");
        let inner = left.join("data/geth");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("block"), "1").unwrap();
        let mut all = Command::new("chown");
        assert!(all.args(["-R", "65534:65534"]).arg(&home.dir).status().unwrap().success());
        let roots = [left.join("data"), left].into_iter().take(if nobodys_outside { 1 } else { 2 });
        for dir in roots {
            chown(&dir, Some(0), Some(0)).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let mut command = home.command(&["--set", "trial_time=300ms", "--set", "trial_blocks=3", "run"]);
        command.args(home.node_args()).args(FROZEN);
        let who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let mut visor = home.spawn(under(&who, &command));
        home.until_finished("v2", "committed");
        assert_eq!(home.started(), ["genesis", "v2"], "it was not put off");
        visor.stop();
    }
}
