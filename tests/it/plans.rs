//! Plans: which files count, which plan is due, and what the operator may do about it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Home, Visor, kill, lives, said, tmpfs, until};

/// The states of the plans that the status shows, as `name@height state`.
fn plans(status: &Value) -> Vec<String> {
    let word = |plan: &Value, key: &str| plan[key].as_str().unwrap().to_owned();
    let list = status["plans"].as_array().unwrap();
    list.iter().map(|p| format!("{}@{} {}", word(p, "name"), p["height"], word(p, "state"))).collect()
}

/// Waits until the plans are shown like this.
#[track_caller]
fn until_plans(home: &Home, wanted: &[&str]) -> Value {
    home.until_status(&format!("the plans are {wanted:?}"), |s| plans(s) == wanted)
}

/// The files that the status calls no plan.
fn broken(status: &Value) -> Vec<String> {
    let list = status["plan_errors"].as_array().unwrap();
    list.iter().map(|e| e["file"].as_str().unwrap().to_owned()).collect()
}

/// The finished upgrades as `name result`.
fn history(home: &Home) -> Vec<String> {
    let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    home.history().iter().map(|line| format!("{} {}", word(line, "name"), word(line, "result"))).collect()
}

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

/// A supervisor whose node stands still at this head, which is known.
fn standing<'a>(home: &'a Home, ours: &[&str], head: &str) -> Visor<'a> {
    let number: u64 = head.parse().unwrap();
    let first = number.saturating_sub(4).to_string();
    let visor = home.supervise(ours, &["--start-head", &first, "--halt-at", head]);
    home.until_status(&format!("it stands at {head}"), |s| s["head_known"] == true && s["height"] == number);
    visor
}

/// A release that goes on where the one before stands still.
fn going_on(home: &Home, name: &str) {
    home.release(name, "--halt-at 1000000");
}

// ---- which files count ---------------------------------------------------------------------------------------

#[test]
fn files_that_are_no_plan_change_nothing_and_are_named_in_status_and_once_in_the_log() {
    let home = Home::new();
    let data = home.root().join("data");
    let good = r#"{"name": "v2", "height": 2}"#;
    let long = format!(r#"{{"name": "{}", "height": 2}}"#, "x".repeat(300));
    let large = format!(r#"{{"name": "v2", "height": 2, "info": "{}"}}"#, "x".repeat(1 << 20));
    let deep = "[".repeat(200_000);
    let texts: &[(&str, &[u8])] = &[
        ("empty", b""),
        ("blank", b" \r\n"),
        ("half", br#"{"name": "v2", "hei"#),
        ("garbage", b"\x00\xff\xfe\x80garbage"),
        ("text", b"upgrade now, please"),
        ("large", large.as_bytes()),
        ("deep", deep.as_bytes()),
        ("null", b"null"),
        ("number", b"7"),
        ("object", b"{}"),
        ("list", br#"[{"name": "v2", "height": 2}, 7]"#),
        ("two", br#"{"name": "v2", "height": 2}{"name": "v3", "height": 3}"#),
        ("no-name", br#"{"height": 2}"#),
        ("no-height", br#"{"name": "v2"}"#),
        ("name-number", br#"{"name": 2, "height": 2}"#),
        ("info-number", br#"{"name": "v2", "height": 2, "info": 7}"#),
        ("zero", br#"{"name": "v2", "height": 0}"#),
        ("minus", br#"{"name": "v2", "height": -1}"#),
        ("fraction", br#"{"name": "v2", "height": 1.5}"#),
        ("string", br#"{"name": "v2", "height": "12"}"#),
        ("exponent", br#"{"name": "v2", "height": 1e1}"#),
        ("beyond", br#"{"name": "v2", "height": 9223372036854775808}"#),
        ("far-beyond", br#"{"name": "v2", "height": 99999999999999999999999999}"#),
        ("up", br#"{"name": "../x", "height": 2}"#),
        ("dot", br#"{"name": ".", "height": 2}"#),
        ("no-words", br#"{"name": "", "height": 2}"#),
        ("slash", br#"{"name": "v2/bin", "height": 2}"#),
        ("genesis", br#"{"name": "genesis", "height": 2}"#),
        ("unicode", "{\"name\": \"vé2\", \"height\": 2}".as_bytes()),
        ("nul", br#"{"name": "v2\u0000", "height": 2}"#),
        ("newline", br#"{"name": "v2\nERROR", "height": 2}"#),
        ("long", long.as_bytes()),
    ];
    let mut names: Vec<String> = Vec::new();
    let mut path = |name: &str| {
        names.push(format!("data/upgrades/{name}/upgrade-info.json"));
        let dir = data.join("upgrades").join(name);
        fs::create_dir_all(&dir).unwrap();
        dir.join("upgrade-info.json")
    };
    for (name, text) in texts {
        fs::write(path(name), text).unwrap();
    }
    assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    fs::create_dir(path("directory")).unwrap();
    let open = path("writable");
    fs::write(&open, good).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o666)).unwrap();
    let outside = home.dir.join("outside.json");
    fs::write(&outside, good).unwrap();
    symlink(&outside, path("leaves")).unwrap();
    symlink("../../../wemixvisor/config.toml", path("leaves-by-steps")).unwrap();
    symlink("/dev/zero", path("device")).unwrap();
    symlink("nowhere", path("dangles")).unwrap();
    symlink("upgrade-info.json", path("loop")).unwrap();
    names.sort();
    let before = home.tree();

    let mut visor = standing(&home, &["--set", "poll_interval=20ms"], "50");
    let mut told = broken(&home.until_status("all are named", |s| broken(s).len() == names.len()));
    told.sort();
    assert_eq!(told, names);
    // A file that is fine shows that they were all looked at again.
    home.plan("v9", 1_000_000);
    until_plans(&home, &["v9@1000000 scheduled"]);
    let log = home.log();
    for name in &names {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!("{name} "))).collect();
        assert_eq!(lines.len(), 1, "{name} is told once: {lines:?}");
        assert!(lines[0].contains("ERROR") && lines[0].len() < 500, "{lines:?}");
    }
    assert_eq!((home.current().as_str(), home.started().len()), ("genesis", 1));
    assert!(home.events("term").is_empty() && home.history().is_empty());
    visor.stop();
    fs::remove_dir_all(data.join("upgrades/1000000")).unwrap();
    let kept = |tree: Vec<String>| tree.into_iter().filter(|line| line.contains("/data/")).collect::<Vec<_>>();
    assert_eq!(kept(home.tree()), kept(before), "they are left as they were");
}

#[test]
fn the_other_places_of_plans_are_as_strict() {
    let home = Home::new();
    let mut visor = standing(&home, &[], "50");
    home.put("upgrade-info.json", r#"{"name": "v2", "height": "60"}"#);
    home.put("upgrade-info.json.batch", r#"[{"name": "v3", "height": 70}, {"name": "v4"}]"#);
    home.until_status("both are named", |s| broken(s) == ["data/upgrade-info.json", "data/upgrade-info.json.batch"]);
    assert_eq!(plans(&home.status()), Vec::<String>::new(), "nothing is taken from a batch that is broken anywhere");
    home.put("upgrade-info.json", r#"{"name": "v2", "height": 60}"#);
    home.put("upgrade-info.json.batch", r#"[{"name": "v3", "height": 70}, {"name": "v4", "height": 80}]"#);
    home.plan("v5", 90);
    let status = until_plans(&home, &["v2@60 scheduled", "v3@70 scheduled", "v4@80 scheduled", "v5@90 scheduled"]);
    assert_eq!(broken(&status), Vec::<String>::new());
    // Another broken content of the same file is told anew.
    home.put("upgrade-info.json", "{");
    home.until_log("data/upgrade-info.json is no plan and changes nothing: not JSON");
    until_plans(&home, &["v3@70 scheduled", "v4@80 scheduled", "v5@90 scheduled"]);
    visor.stop();
}

#[test]
fn a_plan_that_is_written_in_pieces_counts_when_it_is_whole() {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = standing(&home, &["--set", "poll_interval=20ms"], "39");
    let path = home.root().join("data/upgrade-info.json");
    let text = r#"{"name": "v2", "height": 40, "info": "long enough"}"#;
    for part in [0, 5, 20, 30, text.len() - 1] {
        fs::write(&path, &text[..part]).unwrap();
        home.until_status("it is named", |s| broken(s) == ["data/upgrade-info.json"]);
        assert_eq!((home.current().as_str(), home.state().as_str()), ("genesis", "running"));
    }
    fs::write(&path, text).unwrap();
    home.until_finished("v2", "committed");
    assert_eq!(broken(&home.status()), Vec::<String>::new());
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn unusual_but_good_plans_count() {
    let home = Home::new();
    let mut visor = standing(&home, &[], "5");
    home.put(
        "upgrades/1/upgrade-info.json",
        "\u{feff}{\r\n\"name\": \"v2\",\r\n\"height\": 60,\r\n\"info\": null, \"time\": \"x\", \"unknown\": [1]}\r\n",
    );
    home.put("elsewhere.json", json!({"name": "v3", "height": 70, "info": {"description": "by a link"}}).to_string());
    fs::create_dir_all(home.root().join("data/upgrades/2")).unwrap();
    symlink("../../elsewhere.json", home.root().join("data/upgrades/2/upgrade-info.json")).unwrap();
    let info = "y".repeat((1 << 20) - 100);
    home.put("upgrades/3/upgrade-info.json", json!({"name": "v4", "height": 80, "info": info}).to_string());
    home.put("upgrade-info.json", json!({"name": "v5", "height": i64::MAX, "info": "{\"binaries\": {}}"}).to_string());
    let last = format!("v5@{} scheduled", i64::MAX);
    let status = until_plans(&home, &["v2@60 scheduled", "v3@70 scheduled", "v4@80 scheduled", &last]);
    assert_eq!(status["plans"][1]["description"], "by a link");
    assert_eq!(broken(&status), Vec::<String>::new());
    visor.stop();
}

#[test]
fn deleting_the_file_withdraws_the_plan() {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = standing(&home, &[], "5");
    home.plan("v2", 60);
    until_plans(&home, &["v2@60 staged"]);
    fs::remove_file(home.root().join("data/upgrades/60/upgrade-info.json")).unwrap();
    let status = until_plans(&home, &[]);
    assert_eq!(status["upgrade"], Value::Null);
    home.until_log("the plan for v2 at block 60 was withdrawn");
    // The whole directory, too.
    home.plan("v2", 70);
    until_plans(&home, &["v2@70 staged"]);
    fs::remove_dir_all(home.root().join("data/upgrades")).unwrap();
    until_plans(&home, &[]);
    home.plan("v2", 6);
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn the_same_plan_in_two_files_is_one() {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = standing(&home, &[], "5");
    home.plan("v2", 60);
    home.put("upgrade-info.json", r#"{"name": "v2", "height": 60, "info": "the other"}"#);
    home.put("upgrade-info.json.batch", r#"[{"name": "v2", "height": 60}]"#);
    until_plans(&home, &["v2@60 staged"]);
    home.run(&["upgrade", "cancel", "v2"]).code(0);
    until_plans(&home, &[]);
    home.plan("v2", 6);
    home.put("upgrade-info.json", r#"{"name": "v2", "height": 6, "info": "the other"}"#);
    home.until_finished("v2", "committed");
    until_plans(&home, &["v2@6 done"]);
    assert_eq!(history(&home), ["v2 committed"]);
    // Nor does the other file bring it again later.
    visor.stop();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    until_plans(&home, &["v2@6 done"]);
    assert_eq!(home.started(), ["genesis", "v2", "v2"]);
    visor.stop();
}

#[test]
fn contradicting_plans_are_shown_and_not_executed_until_it_is_solved() {
    let home = Home::new();
    going_on(&home, "v2");
    going_on(&home, "v3");
    home.plan("v2", 40);
    home.put("upgrade-info.json", r#"{"name": "v3", "height": 40}"#);
    let mut visor = standing(&home, &[], "39");
    let status = until_plans(&home, &["v2@40 conflict", "v3@40 conflict"]);
    assert!(status["plans"][0]["note"].as_str().unwrap().contains("v3"), "{status}");
    assert_eq!(status["upgrade"], Value::Null);
    // One name at two heights.
    home.put("upgrade-info.json", r#"{"name": "v2", "height": 41}"#);
    until_plans(&home, &["v2@40 conflict", "v2@41 conflict"]);
    let shown = home.run(&["status"]).code(0).out;
    assert!(shown.contains("conflict"), "{shown}");
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    fs::remove_file(home.root().join("data/upgrade-info.json")).unwrap();
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

// ---- past ----------------------------------------------------------------------------------------------------

#[test]
fn a_plan_that_was_there_at_the_first_start_and_whose_height_is_past_is_never_executed() {
    let home = Home::new();
    going_on(&home, "v2");
    going_on(&home, "v3");
    home.plan("v2", 20);
    let mut visor = home.supervise(&[], &["--start-head", "30", "--halt-at", "39"]);
    home.until_status("it stands at 39", |s| s["height"] == 39 && s["head_known"] == true);
    let status = home.until_status("v2 is past", |s| plans(s) == ["v2@20 past"]);
    assert!(status["plans"][0]["note"].as_str().is_some_and(|note| !note.is_empty()), "{status}");
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    visor.stop();
    // Also at later starts, and whatever comes after it.
    let mut visor = home.supervise(&[], FROZEN);
    visor.until_up();
    until_plans(&home, &["v2@20 past"]);
    home.plan("v3", 40);
    home.until_finished("v3", "committed");
    assert_eq!(home.started(), ["genesis", "genesis", "v3"]);
    visor.stop();
}

#[test]
fn a_plan_that_was_there_at_the_first_start_runs_when_its_height_is_next() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], &["--start-head", "39", "--halt-at", "39"]);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn a_plan_that_is_not_above_the_one_that_brought_the_current_release_is_past() {
    let home = Home::new();
    for name in ["v2", "v3", "v4"] {
        going_on(&home, name);
    }
    let mut visor = standing(&home, &[], "39");
    home.plan("v2", 40);
    home.until_finished("v2", "committed");
    home.plan("v3", 30);
    home.plan("v4", 40);
    home.until_status("both are past", |s| {
        let list = plans(s);
        list.contains(&"v3@30 past".to_owned()) && list.iter().any(|p| p == "v4@40 past")
    });
    // The one that brought it may be gone: what is stored with the release counts.
    fs::remove_dir_all(home.root().join("data/upgrades/40")).unwrap();
    until_plans(&home, &["v3@30 past"]);
    visor.stop();
    fs::remove_file(home.own("history.jsonl")).unwrap();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    until_plans(&home, &["v3@30 past"]);
    assert_eq!(home.current(), "v2");
    home.run(&["upgrade", "schedule", "v4", "40"]).code(4);
    assert_eq!(home.started(), ["genesis", "v2", "v2"]);
    visor.stop();
}

#[test]
fn a_plan_that_is_written_again_after_its_upgrade_changes_nothing() {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = standing(&home, &[], "39");
    home.plan("v2", 40);
    home.until_finished("v2", "committed");
    let path = home.put("upgrades/40/upgrade-info.json", r#"{"name": "v2", "height": 40, "info": "again"}"#);
    home.until_status("it is read", |s| s["plans"][0]["description"] == "again");
    until_plans(&home, &["v2@40 done"]);
    fs::remove_file(path).unwrap();
    until_plans(&home, &[]);
    home.plan("v2", 40);
    until_plans(&home, &["v2@40 done"]);
    assert_eq!(history(&home), ["v2 committed"]);
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

// ---- due -----------------------------------------------------------------------------------------------------

#[test]
fn of_several_due_plans_the_highest_runs_and_the_lower_are_recorded_as_passed() {
    let home = Home::new();
    // The first run makes the home's head known: the plans that come later are not past.
    let mut visor = standing(&home, &[], "5");
    visor.stop();
    for (name, height) in [("v2", 20), ("v3", 30), ("v4", 40)] {
        going_on(&home, name);
        home.plan(name, height);
    }
    home.plan("v5", 1_000_000);
    // No head is known until all three are due.
    let mut visor = home.supervise(&[], &["--halt-at", "39", "--period", "5ms", "--rpc-delay", "700ms"]);
    home.until_status("v4 is committed", |s| s["release"] == "v4" && s["upgrade"]["name"] == "v5");
    until_plans(&home, &["v2@20 past", "v3@30 past", "v4@40 done", "v5@1000000 scheduled"]);
    let mut ended = history(&home);
    ended.sort();
    assert_eq!(ended, ["v2 passed", "v3 passed", "v4 committed"]);
    assert_eq!(home.started(), ["genesis", "genesis", "v4"]);
    visor.stop();
}

#[test]
fn several_upgrades_follow_one_another_in_order() {
    let home = Home::new();
    for (name, flags) in [("v2", "--halt-at 59"), ("v3", "--halt-at 79"), ("v4", "--halt-at 1000000")] {
        home.release(name, flags);
    }
    home.put(
        "upgrade-info.json.batch",
        r#"[{"name": "v4", "height": 80}, {"name": "v2", "height": 40}, {"name": "v3", "height": 60}]"#,
    );
    let mut visor = home.supervise(&["--set", "trial_blocks=15"], FROZEN);
    home.until_finished("v4", "committed");
    assert_eq!(history(&home), ["v2 committed", "v3 committed", "v4 committed"]);
    assert_eq!(home.started(), ["genesis", "v2", "v3", "v4"]);
    let stops: Vec<String> = home.events("stop").iter().map(|event| event[4].clone()).collect();
    assert_eq!(stops, ["39", "59", "79"]);
    visor.stop();
}

#[test]
fn a_node_that_is_frozen_before_the_height_is_upgraded() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("v2", "committed");
    assert_eq!(home.events("stop")[0][4], "39");
    assert_eq!(home.history()[0]["height"], 40);
    visor.stop();
}

#[test]
fn a_plan_is_not_due_one_block_earlier() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 41);
    let mut visor = standing(&home, &[], "39");
    let status = until_plans(&home, &["v2@41 staged"]);
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("41"), "{status}");
    assert_eq!((home.events("term").len(), home.current().as_str()), (0, "genesis"));
    visor.stop();
}

#[test]
fn an_unknown_head_is_never_due() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--no-rpc"]);
    home.until_status("it runs", |s| s["state"] == "running");
    going_on(&home, "v2");
    home.plan("v2", 1);
    let status = until_plans(&home, &["v2@1 staged"]);
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("no head"), "{status}");
    // The node itself goes far beyond.
    until("the chain goes on", || Some(home.head_on_disk()).filter(|head| *head > 20));
    home.until_status("it was asked", |s| {
        let error = s["health"]["checks"]["rpc_endpoint"]["error"].as_str().unwrap_or("");
        !error.is_empty() && error != "not asked yet"
    });
    let status = home.status();
    assert_eq!(plans(&status), ["v2@1 staged"]);
    assert_eq!((home.events("term").len(), home.current().as_str()), (0, "genesis"));
    visor.stop();
    // Nor at the next start, where the head of the last run is no head either.
    let mut visor = home.supervise(&[], &["--no-rpc"]);
    home.until_status("it runs", |s| s["state"] == "running");
    until_plans(&home, &["v2@1 staged"]);
    assert_eq!(home.current(), "genesis");
    visor.stop();
}

#[test]
fn the_head_of_an_earlier_run_makes_nothing_due_while_the_node_lives() {
    let home = Home::new();
    let mut visor = standing(&home, &[], "39");
    visor.stop();
    going_on(&home, "v2");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], &["--no-rpc", "--halt-at", "39"]);
    until_plans(&home, &["v2@40 staged"]);
    home.until_status("it was asked", |s| {
        s["state"] == "running" && s["health"]["checks"]["rpc_endpoint"]["error"].as_str().is_some_and(|e| e.len() > 15)
    });
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 1));
    visor.stop();
}

#[test]
fn a_lead_makes_a_plan_due_so_many_blocks_earlier() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 40);
    let mut visor = home.supervise(&["--set", "upgrade_lead=10"], &["--start-head", "25", "--halt-at", "29"]);
    home.until_finished("v2", "committed");
    assert_eq!(home.events("stop")[0][4], "29");
    visor.stop();
}

#[test]
fn without_leave_to_upgrade_plans_are_shown_and_not_executed_until_it_is_given() {
    let home = Home::new();
    going_on(&home, "v2");
    let config = home.own("config.toml");
    fs::write(&config, "daemon_name = \"node\"\ndaemon_upgrade_enabled = false\n").unwrap();
    let mut visor = standing(&home, &[], "39");
    home.plan("v2", 20);
    let status = until_plans(&home, &["v2@20 staged"]);
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("DAEMON_UPGRADE_ENABLED"), "{status}");
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    let said = home.run(&["upgrade", "check", "v2"]).code(1);
    assert!(said.out.contains("DAEMON_UPGRADE_ENABLED"), "{said:?}");
    visor.stop();
    // A bad file changes nothing, a good one does.
    home.plan("v2", 40);
    fs::remove_dir_all(home.root().join("data/upgrades/20")).unwrap();
    let mut visor = standing(&home, &[], "39");
    until_plans(&home, &["v2@40 staged"]);
    fs::write(&config, "daemon_name = \"node\"\ndaemon_upgrade_enabled = perhaps\n").unwrap();
    visor.signal(Signal::HUP);
    home.until_log("the settings stay as they were");
    assert_eq!(home.current(), "genesis");
    fs::write(&config, "daemon_name = \"node\"\n").unwrap();
    visor.signal(Signal::HUP);
    home.until_finished("v2", "committed");
    visor.stop();
}

// ---- a node that ends by itself ------------------------------------------------------------------------------

/// The node writes its plan and ends like this before anybody looked; the supervisor is halted meanwhile.
fn written_just_before_the_end(signal: Signal) {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = standing(&home, &[], "39");
    let node = home.nodes()[0];
    visor.signal(Signal::STOP);
    home.put("upgrade-info.json", r#"{"name": "v2", "height": 40, "info": "by the node"}"#);
    kill(node, signal);
    until("the node ends", || (!lives(node)).then_some(()));
    visor.signal(Signal::CONT);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"], "the old release is not started again");
    visor.stop();
}

#[test]
fn a_plan_that_the_node_writes_before_it_exits_with_success_is_carried_out() {
    written_just_before_the_end(Signal::TERM);
}

#[test]
fn a_plan_that_the_node_writes_before_it_fails_is_carried_out() {
    written_just_before_the_end(Signal::QUIT);
}

#[test]
fn a_plan_that_the_node_writes_before_it_is_killed_is_carried_out() {
    written_just_before_the_end(Signal::KILL);
}

/// A node that cannot run at its height any more is upgraded from the last head that it told in an earlier run.
#[test]
fn a_release_on_trial_that_ends_at_the_height_of_the_next_plan_gives_way_to_it() {
    let home = Home::new();
    // On trial for an hour, and it ends where the next one is to go on.
    home.release("v2", "--halt-at 59 --die-after 6s");
    going_on(&home, "v3");
    home.plan("v2", 40);
    home.plan("v3", 60);
    let ours = ["--set", "trial_time=1h", "--set", "trial_blocks=1000", "--set", "max_restarts=1"];
    let mut visor = standing(&home, &ours, "39");
    home.until_status("v3 is on trial", |s| s["release"] == "v3" && s["head_known"] == true);
    assert_eq!(history(&home), ["v2 committed"]);
    assert_eq!(home.events("die").len(), 1);
    visor.stop();
}

fn dead_at_its_height(habit: &str) {
    let home = Home::new();
    let mut visor = standing(&home, &[], "39");
    visor.stop();
    going_on(&home, "v2");
    home.plan("v2", 40);
    home.release("genesis", habit);
    let mut visor = home.supervise(&["--set", "max_restarts=0"], &[]);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "genesis", "v2"]);
    visor.stop();
}

#[test]
fn a_node_that_fails_at_its_height_before_rpc_is_upgraded_from_the_last_known_head() {
    dead_at_its_height("--die-at-start=1");
}

#[test]
fn a_node_that_exits_with_success_at_its_height_is_upgraded_and_taken_for_no_command() {
    dead_at_its_height("--exit-early");
}

#[test]
fn a_node_that_dies_at_its_height_without_rpc_is_upgraded_from_the_last_known_head() {
    dead_at_its_height("--no-rpc --die-after 300ms --die-by-signal ABRT");
}

#[test]
fn a_node_that_dies_below_its_height_is_started_again() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 60);
    let mut visor = standing(&home, &[], "39");
    until_plans(&home, &["v2@60 staged"]);
    kill(home.nodes()[0], Signal::KILL);
    home.until_status("it runs again", |s| {
        s["restart_count"] == 1 && s["state"] == "running" && s["head_known"] == true
    });
    assert_eq!(home.started(), ["genesis", "genesis"]);
    assert!(home.history().is_empty());
    visor.stop();
}

// ---- plan files with more than one plan ----------------------------------------------------------------------

#[test]
fn what_is_refused_of_a_plan_changes_no_file() {
    let home = Home::new();
    home.release("v2", "");
    let batch = r#"[{"name": "v2", "height": 1000}, {"name": "v3", "height": 2000}]"#;
    let refused = |home: &Home, words: &[&str], part: &str| {
        let before = home.tree();
        home.run(words).code(4).one_error(part);
        assert_eq!(home.tree(), before, "{words:?}");
    };
    // The file that would have to go holds another plan.
    let file = home.put("upgrade-info.json.batch", batch);
    let (moved, binary) = (["upgrade", "schedule", "v2", "3000", "--force"], home.own("upgrades/v2/bin/node"));
    refused(&home, &moved, "holds other plans too");
    let added = ["upgrade", "add", "v2", binary.to_str().unwrap(), "--force", "--height", "3000"];
    let before = fs::metadata(&binary).unwrap().modified().unwrap();
    refused(&home, &added, "holds other plans too");
    assert_eq!(fs::metadata(&binary).unwrap().modified().unwrap(), before);
    // And so does the file that would be written.
    fs::remove_file(file).unwrap();
    home.put("upgrades/1000/upgrade-info.json", batch);
    refused(&home, &["upgrade", "schedule", "v2", "1000", "--info", "new"], "holds the plan of v3 for block 2000 too");
    home.run(&["plan", "create", "b", "v2:1000"]).code(0);
    refused(&home, &["plan", "apply", "b"], "holds the plan of v3 for block 2000 too");
}

#[test]
fn what_a_plan_says_stays_when_it_is_moved_and_goes_when_the_operator_says_so() {
    let home = Home::new();
    let file = home.dir.join("new");
    fs::copy(home.own("genesis/bin/node"), &file).unwrap();
    let info = |height: u64| -> Value {
        let path = home.root().join(format!("data/upgrades/{height}/upgrade-info.json"));
        serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()["info"].take()
    };
    let said =
        json!({"rolling": {"start": 500, "spacing": 20}, "binaries": {"any": "file:///nowhere"}, "checksum": "x"});
    home.put("upgrades/1000/upgrade-info.json", json!({"name": "v2", "height": 1000, "info": said}).to_string());
    home.run(&["upgrade", "schedule", "v2", "2000", "--force"]).code(0);
    assert_eq!(info(2000), said);
    // A file that the operator brings takes the place of the one that was to be fetched.
    home.run(&["upgrade", "add", "v2", file.to_str().unwrap(), "--height", "3000", "--force"]).code(0);
    assert_eq!(info(3000), json!({"rolling": said["rolling"]}));
    home.run(&["upgrade", "schedule", "v2", "3000", "--info", "{}"]).code(0);
    assert_eq!(info(3000), Value::Null);
}

#[test]
fn a_plan_that_cannot_be_written_anew_is_not_lost_by_a_retry() {
    let home = Home::new();
    home.release("v2", "--die-at-start");
    let plan = json!({"name": "v2", "height": 40}).to_string();
    let file = home.put("upgrade-info.json", &plan);
    let mut visor = standing(&home, &["--set", "restart_backoff=0"], "39");
    home.until_finished("v2", "reverted");
    visor.stop();
    // Where its own file would be is no directory.
    let place = home.put("upgrades/40", "in the way");
    home.run(&["upgrade", "retry", "v2"]).code(4).one_error("is not a directory");
    assert_eq!(fs::read_to_string(&file).unwrap(), plan);
    fs::remove_file(place).unwrap();
    home.run(&["upgrade", "retry", "v2"]).code(0);
    assert!(!file.exists() && home.root().join("data/upgrades/40/upgrade-info.json").exists());
}

#[test]
fn a_validator_is_told_that_it_goes_in_its_turn() {
    let home = Home::new();
    home.release("v2", "");
    home.plan("v2", 1000);
    let check = |set: &[&str]| home.run(&[set, &["--set", "upgrade_lead=100", "upgrade", "check", "v2"]].concat()).out;
    assert!(check(&["--set", "validator_mode=true"]).contains("in its turn, and at head 999 at the latest"));
    assert!(!check(&[]).contains("in its turn"));
}

// ---- the other trigger ---------------------------------------------------------------------------------------

#[test]
fn with_the_file_trigger_a_plan_that_appears_while_the_node_runs_is_due_at_once() {
    let home = Home::new();
    going_on(&home, "v2");
    going_on(&home, "v3");
    home.plan("v2", 1_000_000);
    let mut visor = standing(&home, &["--set", "upgrade_trigger=file"], "5");
    // What was there before is not: the node did not write it in this run.
    until_plans(&home, &["v2@1000000 staged"]);
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    home.plan("v3", 2_000_000);
    until_plans(&home, &["v2@1000000 past", "v3@2000000 done"]);
    assert_eq!(home.started(), ["genesis", "v3"]);
    visor.stop();
}

#[test]
fn with_the_file_trigger_a_plan_that_changes_is_due() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 1_000_000);
    let mut visor = standing(&home, &["--set", "upgrade_trigger=file"], "5");
    until_plans(&home, &["v2@1000000 staged"]);
    assert_eq!(home.current(), "genesis");
    home.put("upgrades/1000000/upgrade-info.json", r#"{"name": "v2", "height": 1000000, "info": "now"}"#);
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn with_the_file_trigger_a_plan_that_the_node_writes_before_it_dies_is_due() {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = standing(&home, &["--set", "upgrade_trigger=file"], "39");
    let node = home.nodes()[0];
    visor.signal(Signal::STOP);
    home.put("upgrade-info.json", r#"{"name": "v2", "height": 50}"#);
    kill(node, Signal::KILL);
    until("the node ends", || (!lives(node)).then_some(()));
    visor.signal(Signal::CONT);
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

// ---- a release that is not fit -------------------------------------------------------------------------------

#[test]
fn a_due_plan_without_its_release_waits_and_runs_as_soon_as_the_binary_is_there() {
    let home = Home::new();
    let mut visor = standing(&home, &["--set", "poll_interval=20ms"], "39");
    home.plan("v2", 40);
    home.until_log("is due but waits");
    // More to look at, so that there is more to say.
    home.plan("v9", 1_000_000);
    home.until_status("v9 is shown", |s| plans(s).len() == 2);
    assert_eq!(home.logged("is due but waits"), 1, "said once");
    let status = home.status();
    assert_eq!((status["state"].as_str(), status["release"].as_str()), (Some("running"), Some("genesis")));
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("not there"), "{status}");
    going_on(&home, "v2");
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn a_plan_is_announced_once_however_often_its_binary_changes() {
    let home = Home::new();
    let mut visor = standing(&home, &["--set", "poll_interval=20ms"], "39");
    home.plan("v2", 1_000);
    home.until_log("upgrade v2 is planned for block 1000");
    going_on(&home, "v2");
    until_plans(&home, &["v2@1000 staged"]);
    home.plan("v9", 1_000_000);
    until_plans(&home, &["v2@1000 staged", "v9@1000000 scheduled"]);
    assert_eq!(home.logged("upgrade v2 is planned"), 1);
    visor.stop();
}

#[test]
fn a_due_plan_with_a_broken_release_waits_until_it_is_mended() {
    let home = Home::new();
    let mut visor = standing(&home, &["--set", "poll_interval=20ms"], "39");
    let dir = home.own("upgrades/v2/bin");
    fs::create_dir_all(&dir).unwrap();
    let place = |name: &str, bytes: &[u8], mode: u32| {
        let tmp = home.dir.join(name);
        fs::write(&tmp, bytes).unwrap();
        fs::set_permissions(&tmp, Permissions::from_mode(mode)).unwrap();
        fs::rename(tmp, dir.join("node")).unwrap();
    };
    place("text", b"no program", 0o755);
    home.plan("v2", 40);
    home.until_log("neither a program for Linux");
    let whole = fs::read(crate::support::mocknode()).unwrap();
    place("cut", &whole[..64 << 10], 0o755);
    home.until_log("cut short");
    let mut other = whole.clone();
    other[18] = 183;
    place("other", &other, 0o755);
    home.until_log("another machine");
    place("no-x", &whole, 0o644);
    home.until_log("not executable");
    place("fails", b"#!/bin/sh\nexit 3\n", 0o755);
    home.until_log("ended with exit status: 3");
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    assert_eq!(home.status()["restart_count"], 0);
    fs::remove_file(dir.join("node")).unwrap();
    going_on(&home, "v2");
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn a_due_plan_without_its_release_leaves_the_crash_rules_as_they_are() {
    let home = Home::new();
    let mut visor = standing(&home, &["--set", "max_restarts=2"], "39");
    home.plan("v2", 40);
    home.until_log("is due but waits");
    home.release("genesis", "--die-at-start");
    kill(home.nodes()[0], Signal::KILL);
    assert_eq!(visor.end(), 5);
    assert_eq!((home.current().as_str(), home.state().as_str()), ("genesis", "error"));
    assert_eq!(home.started().len(), 3, "the first and two restarts");
    // The binary comes later: the next start needs no node that lives.
    going_on(&home, "v2");
    let mut visor = home.supervise(&[], &[]);
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn the_directory_of_a_release_is_found_by_its_exact_name_then_in_lower_case() {
    let home = Home::new();
    going_on(&home, "v2-big");
    going_on(&home, "V3-Big");
    going_on(&home, "v3-big");
    home.release("v2-big", "--halt-at 59");
    home.plan("V2-BIG", 40);
    home.plan("V3-Big", 60);
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("V3-Big", "committed");
    assert_eq!(home.started(), ["genesis", "v2-big", "V3-Big"]);
    assert_eq!(home.current(), "V3-Big");
    assert_eq!(history(&home), ["V2-BIG committed", "V3-Big committed"]);
    visor.stop();
}

// ---- what the operator does ----------------------------------------------------------------------------------

#[test]
fn schedule_writes_a_plan_and_refuses_what_cannot_come() {
    let home = Home::new();
    let said = home.run(&["upgrade", "schedule", "v2", "60"]).code(0);
    assert!(said.err.contains("is not there") && said.err.contains("no head is known"), "{said:?}");
    let path = home.root().join("data/upgrades/60/upgrade-info.json");
    let plan: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(plan, json!({"name": "v2", "height": 60}));
    going_on(&home, "v2");
    let mut visor = standing(&home, &[], "39");
    until_plans(&home, &["v2@60 staged"]);
    for (name, height, part) in
        [("v3", "39", "has passed"), ("v3", "1", "has passed"), ("v3", "60", "belongs to"), ("v2", "70", "--force")]
    {
        let before = home.tree();
        home.run(&["upgrade", "schedule", name, height]).code(4).one_error(part);
        assert_eq!(home.tree().len(), before.len());
    }
    // The same again is no contradiction, and --force moves it.
    home.run(&["upgrade", "schedule", "v2", "60"]).code(0);
    home.run(&["upgrade", "schedule", "v2", "70", "--force", "--info", "moved"]).code(0);
    let status = until_plans(&home, &["v2@70 staged"]);
    assert_eq!(status["plans"][0]["description"], "moved");
    assert!(!path.exists());
    home.run(&["upgrade", "schedule", "v2", "40", "--force"]).code(0);
    home.until_finished("v2", "committed");
    home.run(&["upgrade", "schedule", "v2", "100"]).code(4).one_error("current one already");
    home.run(&["upgrade", "schedule", "v3", "40"]).code(4);
    visor.stop();
}

#[test]
fn a_height_is_judged_by_the_head_of_now_and_not_by_one_that_was_heard_long_ago() {
    let home = Home::new();
    going_on(&home, "v2");
    // The node is asked far less often than it makes blocks.
    let mut visor = home.supervise(&["--set", "health_check_interval=1h", "--set", "height_poll_interval=1h"], &[]);
    let known = home.until_status("a head is known", |s| s["head_known"] == true)["height"].as_u64().unwrap();
    let passed = known + 10;
    until("the node is far ahead of that", || (home.head_on_disk() > passed + 10).then_some(()));
    assert!(home.status()["height"].as_u64().unwrap() < passed, "{}", home.status());
    let height = passed.to_string();
    home.run(&["upgrade", "schedule", "v2", &height]).code(4).one_error("has passed");
    // Each of these has to ask by itself.
    let passed = home.head_on_disk() + 10;
    let item = format!("v2:{passed}");
    home.run(&["plan", "create", "late", &item]).code(0);
    until("that has passed too", || (home.head_on_disk() > passed + 10).then_some(()));
    home.run(&["plan", "apply", "late"]).code(4).one_error("has passed");
    assert_eq!((home.current(), home.status()["plans"].as_array().unwrap().len()), ("genesis".to_owned(), 0));
    visor.stop();
}

#[test]
fn a_node_that_does_not_answer_keeps_no_plan_waiting() {
    let home = Home::new();
    going_on(&home, "v2");
    let mut visor = home.supervise(&[], &["--hang-after", "800ms"]);
    home.until_status("it does not answer", |s| s["head_known"] == true && s["health"]["healthy"] == false);
    let said = home.run(&["upgrade", "schedule", "v2", "1000000"]).code(0);
    assert!(said.out.contains("(head "), "{said:?}");
    assert!(said.err.contains("the node does not tell its head now"), "{said:?}");
    visor.stop();
}

#[test]
fn schedule_on_a_full_disk_leaves_nothing_behind() {
    let home = Home::new();
    let Some(_full) = tmpfs(&home.root().join("data"), "64k") else { return };
    fs::create_dir(home.root().join("data/node")).unwrap();
    fs::write(home.root().join("data/fill"), vec![b'x'; 60 << 10]).unwrap();
    let before = home.tree();
    let said = home.run(&["upgrade", "schedule", "v2", "100", "--info", &"x".repeat(8000)]).code(1);
    assert!(said.err.contains("No space left on device") && said.err.lines().count() == 1, "{said:?}");
    assert_eq!(home.tree(), before);
}

#[test]
fn schedule_carries_url_and_checksum_into_the_plan() {
    let home = Home::new();
    let sum = format!("sha256:{}", "ab".repeat(32));
    let args =
        ["upgrade", "schedule", "v2", "60", "--url", "https://example.com/v2", "--checksum", &sum, "--info", "words"];
    home.run(&args).code(0);
    let text = fs::read_to_string(home.root().join("data/upgrades/60/upgrade-info.json")).unwrap();
    let plan: Value = serde_json::from_str(&text).unwrap();
    let info = json!({"binaries": {"any": "https://example.com/v2"}, "checksum": sum, "description": "words"});
    assert_eq!(plan, json!({"name": "v2", "height": 60, "info": info}));
}

#[test]
fn info_that_begins_as_json_is_json_and_no_description() {
    let home = Home::new();
    let before = home.tree();
    for more in [&[][..], &["--url", "https://example.com/v2"]] {
        let words = ["upgrade", "schedule", "v2", "60", "--info", r#"{"description": "x""#];
        home.run(&[&words, more].concat()).code(2).one_error("--info begins as JSON and is none");
    }
    assert_eq!(home.tree(), before);
}

#[test]
fn of_two_who_add_a_release_at_once_one_wins_whole() {
    let home = Home::new();
    for round in 0..5 {
        let name = format!("v{round}");
        let files: Vec<_> = (0..6u8)
            .map(|n| {
                let mut bytes = b"#!/bin/sh\n".to_vec();
                bytes.resize(2 << 20, b'a' + n);
                home.put(&format!("file{n}"), bytes)
            })
            .collect();
        let add = |file: &PathBuf| {
            let mut command = home.command(&["upgrade", "add", &name, file.to_str().unwrap()]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = files.iter().map(add).collect();
        let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let won: Vec<usize> = (0..6).filter(|n| outputs[*n].status.success()).collect();
        assert_eq!(won.len(), 1, "{outputs:?}");
        for lost in outputs.iter().filter(|output| !output.status.success()) {
            assert_eq!(lost.status.code(), Some(4), "{lost:?}");
        }
        let binary = home.own("upgrades").join(&name).join("bin/node");
        assert!(fs::read(&binary).unwrap() == fs::read(&files[won[0]]).unwrap(), "it is not the winner's");
        assert_eq!(fs::read_dir(binary.parent().unwrap()).unwrap().count(), 1, "{:?}", home.tree());
    }
}

#[test]
fn releases_can_be_looked_at_by_many_at_once() {
    let home = Home::new();
    going_on(&home, "v2");
    for _ in 0..4 {
        let check = || {
            let mut command = home.command(&["--set", "unsafe_skip_backup=true", "upgrade", "check", "v2"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..8).map(|_| check()).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    // What one who was killed left does not stay.
    for name in ["trial-link-4194305", ".trial-link-4194305.tmp"] {
        symlink("genesis", home.own(name)).unwrap();
    }
    home.run(&["--set", "unsafe_skip_backup=true", "upgrade", "check", "v2"]).code(0);
    assert!(!home.tree().iter().any(|line| line.contains("trial-link")), "{:?}", home.tree());
}

#[test]
fn add_on_a_full_disk_leaves_nothing_behind() {
    let home = Home::new();
    let Some(_full) = tmpfs(&home.own("upgrades"), "256k") else { return };
    let file = home.put("large", [b"#!/bin/sh\n".to_vec(), vec![b'x'; 1 << 20]].concat());
    let before = home.tree();
    let said = home.run(&["upgrade", "add", "v2", file.to_str().unwrap(), "--height", "100"]).code(1);
    assert!(said.err.contains("No space left on device") && said.err.lines().count() == 1, "{said:?}");
    assert_eq!(home.tree(), before);
}

#[test]
fn a_binary_is_asked_for_its_version_in_a_directory_that_is_ours_alone() {
    let home = Home::new();
    let tmp = home.dir.join("tmp");
    fs::create_dir(&tmp).unwrap();
    fs::set_permissions(&tmp, Permissions::from_mode(0o1777)).unwrap();
    home.script(
        "v2",
        "#!/bin/sh\necho \"$(stat -c '%a %n' .) $([ \"$PWD\" = \"$HOME\" ] && echo ours) ${HOME##*-}\"\n",
    );
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut command = home.command(&["--set", "unsafe_skip_backup=true", "upgrade", "check", "v2", "--json"]);
        command.env("TMPDIR", &tmp);
        let told = said(command).json();
        let words: Vec<String> = told["version"].as_str().unwrap().split(' ').map(str::to_owned).collect();
        assert_eq!(words[..3], ["700", ".", "ours"]);
        names.push(words[3].clone());
    }
    assert_ne!(names[0], names[1], "nobody is to know the name beforehand");
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
}

#[test]
fn add_installs_a_release_and_never_replaces_one_unasked() {
    let home = Home::new();
    let file = home.dir.join("new-node");
    fs::write(&file, "#!/bin/sh\necho v2\n").unwrap();
    // Without its execute bit, as a browser leaves it.
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let file = file.to_str().unwrap();
    home.run(&["upgrade", "add", "v2", file]).code(0);
    let binary = home.own("upgrades/v2/bin/node");
    assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o755);
    let before = home.tree();
    home.run(&["upgrade", "add", "v2", file]).code(4).one_error("--force");
    assert_eq!(home.tree(), before);
    fs::write(file, "#!/bin/sh\necho v2 again\n").unwrap();
    home.run(&["upgrade", "add", "v2", file, "--force", "--height", "60"]).code(0);
    assert!(fs::read_to_string(&binary).unwrap().contains("again"));
    assert!(home.root().join("data/upgrades/60/upgrade-info.json").exists());
    let said = home.run(&["upgrade", "check", "v2"]).code(1);
    assert!(said.out.contains("there is nothing to back up"), "{}", said.out);
    home.run(&["--set", "unsafe_skip_backup=true", "upgrade", "check", "v2"]).code(0);
}

#[test]
fn list_and_show_tell_plans_history_and_broken_files() {
    let home = Home::new();
    let said = home.run(&["upgrade", "list"]).code(0);
    assert!(said.out.contains("no upgrade is planned"), "{said:?}");
    home.run(&["upgrade", "show", "v2"]).code(1).one_error("v2");
    home.run(&["upgrade", "check"]).code(1).one_error("no upgrade is planned");
    home.plan("v2", 60);
    home.put("upgrade-info.json", "{");
    let list = home.run(&["--json", "upgrade", "list"]).code(0).json();
    assert_eq!(plans(&list), ["v2@60 scheduled"]);
    assert_eq!(broken(&list), ["data/upgrade-info.json"]);
    assert!(list.get("history").is_none());
    let said = home.run(&["upgrade", "list"]).code(0);
    assert!(said.out.contains("v2") && said.out.contains("data/upgrade-info.json is no plan"), "{said:?}");
    fs::remove_file(home.root().join("data/upgrade-info.json")).unwrap();
    home.plan("v2", 40);
    fs::remove_dir_all(home.root().join("data/upgrades/60")).unwrap();
    going_on(&home, "v2");
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("v2", "committed");
    let list = home.run(&["upgrade", "list", "--all", "--json"]).code(0).json();
    assert_eq!(
        (plans(&list).as_slice(), &list["history"][0]["result"]),
        (&["v2@40 done".to_owned()][..], &json!("committed"))
    );
    let show = home.run(&["upgrade", "show", "v2", "--json"]).code(0).json();
    assert_eq!((&show["plans"][0]["state"], &show["history"][0]["result"]), (&json!("done"), &json!("committed")));
    let said = home.run(&["upgrade", "list", "--all"]).code(0);
    assert!(said.out.contains("committed") && said.out.contains("from genesis"), "{said:?}");
    visor.stop();
}

#[test]
fn cancel_before_the_stop_withdraws_the_plan() {
    let home = Home::new();
    going_on(&home, "v2");
    home.run(&["upgrade", "cancel", "v2"]).code(1).one_error("no upgrade v2 is planned");
    let mut visor = standing(&home, &[], "39");
    home.run(&["upgrade", "schedule", "v2", "60"]).code(0);
    until_plans(&home, &["v2@60 staged"]);
    home.run(&["upgrade", "cancel", "v2"]).code(0);
    until_plans(&home, &[]);
    assert!(!home.root().join("data/upgrades/60").exists());
    assert_eq!((home.events("term").len(), home.history().len()), (0, 0));
    // One of several in a file is not taken out of it.
    home.put("upgrade-info.json.batch", r#"[{"name": "v2", "height": 60}, {"name": "v3", "height": 70}]"#);
    home.run(&["upgrade", "cancel", "v2"]).code(4).one_error("other plans");
    // Said anew it counts.
    fs::remove_file(home.root().join("data/upgrade-info.json.batch")).unwrap();
    home.run(&["upgrade", "schedule", "v2", "40"]).code(0);
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn cancel_between_stop_and_switch_starts_the_old_release_again() {
    let home = Home::new();
    going_on(&home, "v2");
    home.release("genesis", "--stop-time 1500ms");
    let mut visor = standing(&home, &[], "39");
    home.run(&["upgrade", "schedule", "v2", "40"]).code(0);
    let status = home.until_phase("stopping");
    assert_eq!(status["state"], "upgrading");
    home.run(&["upgrade", "cancel", "v2"]).code(0);
    home.until_finished("v2", "cancelled");
    visor.until_release("genesis");
    assert_eq!(home.started(), ["genesis", "genesis"]);
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 1));
    let status = until_plans(&home, &[]);
    assert_eq!((&status["upgrade"], &status["restart_count"]), (&Value::Null, &json!(0)));
    // The same plan again, in so many words of the operator, runs.
    home.run(&["upgrade", "schedule", "v2", "40"]).code(0);
    home.until_finished("v2", "committed");
    visor.stop();
}

#[test]
fn cancel_after_the_switch_is_refused() {
    let home = Home::new();
    home.release("v2", "--no-blocks");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], FROZEN);
    home.until_phase("trial");
    let path = home.root().join("data/upgrades/40/upgrade-info.json");
    home.run(&["upgrade", "cancel", "v2"]).code(4).one_error("upgrade revert");
    assert!(path.exists());
    assert_eq!(home.current(), "v2");
    // Without a supervisor it is refused just as well.
    visor.stop();
    home.run(&["upgrade", "cancel", "v2"]).code(4);
    assert!(path.exists());
}

#[test]
fn retry_is_for_what_has_failed() {
    let home = Home::new();
    home.plan("v2", 60);
    home.run(&["upgrade", "retry", "v2"]).code(4).one_error("no plan of v2 has failed");
    home.run(&["upgrade", "retry", "v3"]).code(4);
}

#[test]
fn now_upgrades_at_once_with_and_without_a_plan() {
    let home = Home::new();
    for name in ["v2", "v3"] {
        going_on(&home, name);
    }
    home.run(&["upgrade", "now", "v2"]).code(3).one_error("no supervisor runs");
    let mut visor = standing(&home, &[], "5");
    home.run(&["upgrade", "now", "v9"]).code(4).one_error("is not there");
    let broken = home.own("upgrades/v8/bin");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("node"), "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(broken.join("node"), Permissions::from_mode(0o755)).unwrap();
    home.run(&["upgrade", "now", "v8"]).code(4).one_error("ended with exit status");
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    home.run(&["upgrade", "now", "V2"]).code(0);
    home.until_finished("V2", "committed");
    assert_eq!((home.current().as_str(), &home.history()[0]["height"]), ("v2", &Value::Null));
    home.run(&["upgrade", "now", "v2"]).code(4).one_error("current");
    home.plan("v3", 1_000_000);
    until_plans(&home, &["v3@1000000 staged"]);
    home.run(&["upgrade", "now", "v3"]).code(0);
    home.until_finished("v3", "committed");
    assert_eq!(home.history()[1]["height"], 1_000_000);
    assert_eq!(home.started(), ["genesis", "v2", "v3"]);
    visor.stop();
}

#[test]
fn revert_goes_back_from_a_trial_and_from_a_committed_upgrade() {
    let home = Home::new();
    for name in ["v2", "v3"] {
        going_on(&home, name);
    }
    home.run(&["upgrade", "revert"]).code(4).one_error("--to");
    let mut visor = standing(&home, &["--set", "trial_blocks=1000000"], "39");
    home.run(&["upgrade", "revert"]).code(4).one_error("--to");
    home.run(&["upgrade", "revert", "--to", "v9"]).code(4).one_error("not there");
    home.run(&["upgrade", "revert", "--to", "genesis"]).code(4).one_error("current");
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_phase("trial");
    home.run(&["upgrade", "revert", "--to", "v3"]).code(4).one_error("only genesis");
    home.run(&["upgrade", "revert"]).code(0);
    home.until_finished("v2", "reverted");
    visor.until_release("genesis");
    visor.stop();
    assert_eq!(history(&home), ["v2 reverted"]);

    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_finished("v2", "committed");
    home.run(&["upgrade", "now", "v3"]).code(0);
    home.until_finished("v3", "committed");
    // To the release before, not to genesis.
    home.run(&["upgrade", "revert"]).code(0);
    home.until_finished("v3", "reverted");
    visor.until_release("v2");
    home.run(&["upgrade", "revert", "--to", "genesis"]).code(0);
    home.until_finished("v2", "reverted");
    visor.until_release("genesis");
    assert_eq!(home.started(), ["genesis", "v2", "genesis", "genesis", "v2", "v3", "v2", "genesis"]);
    visor.stop();
    home.run(&["upgrade", "revert", "--to", "v2"]).code(3).one_error("no supervisor runs");
}

#[test]
fn a_plan_that_was_taken_back_by_the_operator_is_not_executed_again() {
    let home = Home::new();
    going_on(&home, "v2");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], FROZEN);
    home.until_finished("v2", "committed");
    home.run(&["upgrade", "revert"]).code(0);
    home.until_finished("v2", "reverted");
    visor.until_release("genesis");
    until_plans(&home, &["v2@40 failed"]);
    visor.stop();
    let mut visor = home.supervise(&[], FROZEN);
    visor.until_up();
    until_plans(&home, &["v2@40 failed"]);
    assert_eq!(home.current(), "genesis");
    home.run(&["upgrade", "retry", "v2"]).code(0);
    home.until_finished("v2", "committed");
    visor.stop();
}
