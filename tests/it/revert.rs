//! The rule for data when a release is taken back: it stays as long as the old release can run on it, it goes back when that
//! one cannot, and never over blocks that are newer than the backup.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::{Home, Visor, mocknode, until};

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

/// A home whose old release refuses data that the new one migrated, as geth does with a newer database version.
fn migrating(new: &str) -> Home {
    let home = Home::new();
    let mock = mocknode().display();
    let data = home.datadir();
    let data = data.display();
    home.script(
        "genesis",
        &format!("[ -e {data}/migrated ] && echo 'database version is v9' && exit 1\nexec {mock} \"$@\""),
    );
    home.script("v2", &format!("[ \"$1\" = --datadir ] || exec {mock} \"$@\"\necho >{data}/migrated\n{new}"));
    home.plan("v2", 40);
    home
}

#[track_caller]
fn until_old_runs(home: &Home, visor: &Visor) -> Value {
    home.until_finished("v2", "reverted");
    visor.until_release("genesis")
}

fn reason(home: &Home) -> String {
    home.history()[0]["reason"].as_str().unwrap().to_owned()
}

#[test]
fn data_that_the_old_release_cannot_run_on_goes_back_to_the_backup() {
    let home = migrating("exit 3");
    let mut visor = home.supervise(&[], FROZEN);
    let status = until_old_runs(&home, &visor);
    let why = reason(&home);
    for part in ["release v2 ended 3 times", "release genesis ended 3 times", "the data went back to backup v2-"] {
        assert!(why.contains(part), "wanted {part:?} in {why:?}");
    }
    assert!(!home.datadir().join("migrated").exists());
    assert_eq!(home.current(), "genesis");
    assert_eq!(status["plans"][0]["state"], "failed");
    // What was replaced is kept, with what the new release did to it.
    let list = home.run(&["backup", "list", "--json"]).json()["backups"].clone();
    let kept = list.as_array().unwrap().iter().find(|b| b["name"].as_str().unwrap().starts_with("before-restore-"));
    let kept = kept.unwrap_or_else(|| panic!("{list}"))["name"].as_str().unwrap().to_owned();
    assert!(why.contains(&kept), "{why}");
    assert!(home.root().join("backups").join(kept).join("data/migrated").exists());
    assert_eq!(home.history().len(), 1);
    assert!(!home.own("journal.json").exists() && !home.own("restore.json").exists());
    visor.stop();
}

#[test]
fn data_that_the_old_release_can_run_on_stays() {
    let home = Home::new();
    home.release("v2", "--die-at-start=3");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], FROZEN);
    visor.until_up();
    let marker = home.datadir().join("geth/written-meanwhile");
    home.until_log("the data is backed up as v2-");
    fs::write(&marker, "").unwrap();
    until_old_runs(&home, &visor);
    assert!(!reason(&home).contains("the data went back"), "{}", reason(&home));
    assert!(marker.exists());
    visor.stop();
}

#[test]
fn data_with_blocks_newer_than_the_backup_never_goes_back() {
    // The new release makes blocks below its height, tells them, and dies three times without a proof.
    let home = Home::new();
    let mock = mocknode().display();
    let data = home.datadir();
    let data = data.display();
    home.script("genesis", &format!("[ -e {data}/migrated ] && exit 1\nexec {mock} \"$@\""));
    home.script("v2", &format!("[ \"$1\" = --datadir ] || exec {mock} \"$@\"\necho >{data}/migrated\nexec {mock} \"$@\" --halt-at 60 --die-after 1s"));
    home.plan("v2", 1000);
    let mut visor = home
        .supervise(&["--set", "max_restarts=3", "--set", "trial_time=1h"], &["--start-head", "35", "--halt-at", "39"]);
    visor.until_up();
    home.run(&["upgrade", "now", "v2"]).code(0);
    assert_eq!(visor.end(), 5);
    assert!(home.datadir().join("migrated").exists(), "the data stays");
    assert_eq!(home.current(), "genesis");
    // Where it stands is told by all who tell of upgrades.
    for args in [&["status"][..], &["upgrade", "list"], &["upgrade", "show", "v2"]] {
        let said = home.run(args).out;
        assert!(said.contains("revert"), "{args:?}: {said}");
    }
    home.run(&["upgrade", "cancel", "v2"]).code(4).one_error("(reverting)");
    // What to do is said, and works.
    let line = home.until_log("`wemixvisor backup restore v2-");
    let backup = line.split("backup restore ").nth(1).unwrap().split('`').next().unwrap().to_owned();
    home.run(&["backup", "restore", &backup]).code(0);
    assert!(!home.datadir().join("migrated").exists());
    let visor = home.supervise(&[], &["--start-head", "35", "--halt-at", "39"]);
    until_old_runs(&home, &visor);
    assert!(!home.own("journal.json").exists());
}

#[test]
fn a_failed_plan_inside_the_data_directory_is_not_tried_again_after_a_restore() {
    let home = Home::new();
    let mock = mocknode().display();
    let data = home.root().join("data");
    let shown = data.display();
    home.script("genesis", &format!("[ -e {shown}/migrated ] && exit 1\nexec {mock} \"$@\""));
    home.script("v2", &format!("[ \"$1\" = --datadir ] || exec {mock} \"$@\"\necho >{shown}/migrated; exit 1"));
    home.plan("v2", 40);
    let args = ["--datadir", data.to_str().unwrap(), "--period", "50ms", "--start-head", "35", "--halt-at", "39"];
    let mut visor = home.supervise_with(&[], &args);
    visor.until_up();
    home.until_finished("v2", "reverted");
    let status = visor.until_release("genesis");
    assert!(reason(&home).contains("the data went back"), "{}", reason(&home));
    assert_eq!(status["plans"][0]["state"], "failed");
    // A plan that was withdrawn since the backup does not come back with the data either.
    assert!(home.root().join("data/upgrades/40/upgrade-info.json").exists());
    visor.stop();
    let mut visor = home.supervise_with(&[], &args);
    let status = visor.until_up();
    assert_eq!((&status["plans"][0]["state"], &status["release"]), (&json!("failed"), &json!("genesis")));
    assert_eq!(home.history().len(), 1);
    visor.stop();
}

#[test]
fn a_supervisor_that_is_killed_at_any_moment_of_the_way_back_is_followed_by_one_that_ends_it() {
    let home = migrating("exit 3");
    let mut visor = home.supervise(&[], FROZEN);
    let mut kills = 0;
    until("it is over", || {
        let journal = fs::read_to_string(home.own("journal.json")).unwrap_or_default();
        if ["\"restore\"", "\"back\"", "\"return\""].iter().any(|stage| journal.contains(stage)) && kills < 6 {
            visor.kill();
            kills += 1;
            visor = home.supervise(&[], FROZEN);
        }
        (home.history().len() == 1).then_some(())
    });
    visor.until_release("genesis");
    assert!(kills >= 2, "{kills}");
    assert!(!home.datadir().join("migrated").exists());
    assert!(reason(&home).contains("the data went back"), "{}", reason(&home));
    visor.stop();
}

#[test]
fn after_a_restore_the_last_known_head_is_that_of_the_data() {
    let home = Home::new();
    let head = || -> u64 {
        let state: Value = serde_json::from_str(&fs::read_to_string(home.own("state.json")).unwrap()).unwrap();
        state["head"]["number"].as_u64().unwrap()
    };
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    visor.stop();
    let name = home.run(&["backup", "create"]).code(0).out.trim().to_owned();
    let before = head();
    let mut visor = home.supervise(&[], &[]);
    home.until_status("blocks go on", |s| s["height"].as_u64() > Some(before + 10));
    visor.stop();
    assert!(head() > before);
    home.run(&["backup", "restore", &name]).code(0);
    assert_eq!(head(), before, "a higher one would make a plan due that is not");
    let mut visor = home.supervise(&[], &[]);
    let height = visor.until_up()["height"].as_u64().unwrap();
    assert!(height < before + 10, "{height}, {before}");
    visor.stop();
}

#[test]
fn data_that_go_back_go_where_the_upgrade_found_them_wherever_the_next_supervisor_is_started() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    let hook = home.own("upgrades/v2/pre-upgrade");
    let draft = home.dir.join("draft");
    fs::write(&draft, format!("#!/bin/sh\necho >{}/hooked; exit 1\n", home.datadir().display())).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(draft, hook).unwrap();
    home.plan("v2", 40);
    let relative = ["--datadir", "d", "--period", "50ms", "--start-head", "35", "--halt-at", "39"];
    let mut visor = home.supervise_with(&[], &relative);
    let journal = until("the journal tells where the data is", || fs::read(home.own("journal.json")).ok());
    let journal: Value = serde_json::from_slice(&journal).unwrap();
    assert_eq!(journal["data"]["data_dir"], json!(home.datadir()));
    home.until_finished("v2", "failed");
    assert!(!home.datadir().join("hooked").exists(), "{}", reason(&home));
    visor.stop();
}
