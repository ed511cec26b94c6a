//! Batch plans: how one is made, checked and applied, and how its upgrades run one after the other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Home, Said, Visor, until};

/// The node's arguments that make it stand still just below block 40, as an old binary does.
const FROZEN: &[&str] = &["--start-head", "35", "--halt-at", "39"];

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A supervisor whose node stands still at block 39, which is known.
fn standing(home: &Home) -> Visor<'_> {
    let visor = home.supervise(&["--set", "poll_interval=20ms"], FROZEN);
    home.until_status("it stands at 39", |s| s["head_known"] == true && s["height"] == 39);
    visor
}

/// Three releases that stand still just below the next height, and a batch plan `b` for them.
fn three(home: &Home) {
    home.release("v2", "--halt-at 59");
    home.release("v3", "--halt-at 79");
    home.release("v4", "--halt-at 1000000");
    home.run(&["plan", "create", "b", "v2:40", "v3:60", "v4:80"]).code(0);
}

/// The files in `plans/`.
fn files(home: &Home) -> Vec<PathBuf> {
    fs::read_dir(home.own("plans")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whether it is what somebody who was killed was writing; it is in nobody's way.
fn is_draft(path: &Path) -> bool {
    path.file_name().unwrap().to_str().unwrap().starts_with('.')
}

/// The only batch plan on disk, and its file.
fn kept(home: &Home) -> (PathBuf, Value) {
    let mut files = files(home);
    files.retain(|path| !is_draft(path));
    assert_eq!(files.len(), 1, "{files:?}");
    let text = fs::read_to_string(&files[0]).unwrap();
    (files[0].clone(), serde_json::from_str(&text).unwrap())
}

/// Takes the mark away, as if who applied it had been killed just before.
fn unmark(home: &Home) {
    let (path, mut batch) = kept(home);
    batch.as_object_mut().unwrap().remove("applied_at").unwrap();
    let tmp = home.dir.join("unmarked");
    fs::write(&tmp, batch.to_string()).unwrap();
    fs::rename(tmp, path).unwrap();
}

/// The upgrades that `plan show --json` tells, as `name@height state`.
fn upgrades(home: &Home, name: &str) -> Vec<String> {
    shape(&home.run(&["plan", "show", name, "--json"]).code(0).json()["upgrades"])
}

fn shape(plans: &Value) -> Vec<String> {
    let word = |plan: &Value, key: &str| plan[key].as_str().unwrap().to_owned();
    let list = plans.as_array().unwrap();
    list.iter().map(|p| format!("{}@{} {}", word(p, "name"), p["height"], word(p, "state"))).collect()
}

/// The finished upgrades as `name result`.
fn history(home: &Home) -> Vec<String> {
    let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    home.history().iter().map(|line| format!("{} {}", word(line, "name"), word(line, "result"))).collect()
}

fn plan_file(home: &Home, height: u64) -> PathBuf {
    home.root().join(format!("data/upgrades/{height}/upgrade-info.json"))
}

fn plan_at(home: &Home, height: u64) -> Value {
    serde_json::from_str(&fs::read_to_string(plan_file(home, height)).unwrap()).unwrap()
}

/// A file with this text beside the home.
fn list(home: &Home, name: &str, text: &str) -> String {
    let path = home.dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs a command that must change nothing.
#[track_caller]
fn unchanged(home: &Home, args: &[&str], code: i32) -> Said {
    let before = home.tree();
    let said = home.run(args).code(code);
    assert_eq!(home.tree(), before, "{args:?}");
    said
}

// ---- create --------------------------------------------------------------------------------------------------

#[test]
fn create_writes_the_plan_with_every_kind_of_source_and_plans_nothing() {
    let home = Home::new();
    let script = home.dir.join("a b");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    let (beside, inside) = (format!("v4:80:https://h:80/x#sha256:{HEX}"), format!("v5:90:https://h/x?checksum={HEX}"));
    let args = ["plan", "create", "spring", "--description", "words", "v2:40", "v3:60:a b", &beside, &inside];
    let said = home.run(&args).code(0);
    assert!(said.out.contains("batch plan spring of 4 upgrades") && said.out.contains("plan apply spring"), "{said:?}");
    let (path, batch) = kept(&home);
    let name = path.file_name().unwrap().to_str().unwrap();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let stamp: Vec<&str> = name.strip_prefix("spring-").unwrap().strip_suffix(".json").unwrap().split('-').collect();
    assert!(
        matches!(stamp[..], [day, time] if day.len() == 8 && time.len() == 6 && digits(day) && digits(time)),
        "{name}"
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(
        (&batch["version"], &batch["name"], &batch["description"]),
        (&json!("1.0"), &json!("spring"), &json!("words"))
    );
    assert_eq!(batch.get("applied_at"), None);
    let all = batch["upgrades"].as_array().unwrap();
    assert_eq!(all[0], json!({"name": "v2", "height": 40}));
    let url = all[1]["info"]["binaries"]["any"].as_str().unwrap();
    let real = fs::canonicalize(&home.dir).unwrap().display().to_string();
    assert!(url.starts_with(&format!("file://{real}/a%20b?checksum=sha256:")), "{url}");
    let info = json!({"binaries": {"any": "https://h:80/x"}, "checksum": format!("sha256:{HEX}")});
    assert_eq!(all[2], json!({"name": "v4", "height": 80, "info": info}));
    assert_eq!(all[3]["info"], json!({"binaries": {"any": format!("https://h/x?checksum={HEX}")}}));
    assert!(!home.root().join("data/upgrades").exists());
    assert_eq!(upgrades(&home, "spring")[1], "v3@60 not applied");
    let said = unchanged(&home, &["plan", "create", "spring", "v9:1"], 4);
    said.one_error("there is a batch plan spring already");
    // Another of another name is no trouble.
    home.run(&["plan", "create", "spring-2", "v9:1"]).code(0);
    assert_eq!(files(&home).len(), 2);
}

#[test]
fn create_reads_lists_of_lines_arrays_of_plans_and_batch_plans() {
    let home = Home::new();
    fs::write(home.dir.join("a,b"), "#!/bin/sh\n").unwrap();
    let text = format!("\u{feff}v2,,40\r\n\r\n v3 , \"a,b\" , 60\r\nv4,https://h/x?checksum={HEX},80\r\n");
    let lines = list(&home, "l.csv", &text);
    home.run(&["plan", "create", "lines", "--file", &lines]).code(0);
    let batch = kept(&home).1;
    assert!(batch["upgrades"][1]["info"]["binaries"]["any"].as_str().unwrap().contains("/a%2Cb?checksum="), "{batch}");
    assert_eq!(upgrades(&home, "lines"), ["v2@40 not applied", "v3@60 not applied", "v4@80 not applied"]);
    let array =
        list(&home, "a.json", r#"[{"name": "v2", "height": 40, "info": "words"}, {"name": "v3", "height": 60}]"#);
    home.run(&["plan", "create", "array", "--file", &array]).code(0);
    assert_eq!(upgrades(&home, "array"), ["v2@40 not applied", "v3@60 not applied"]);
    // The name and what it is about are what was typed.
    let object = json!({"version": "1.0", "name": "other", "description": "its own", "applied_at": "2026-01-01T00:00:00Z",
        "upgrades": [{"name": "v2", "height": 40}]});
    let object = list(&home, "o.JSON", &object.to_string());
    home.run(&["plan", "create", "object", "--file", &object]).code(0);
    let shown = home.run(&["plan", "show", "object", "--json"]).code(0).json();
    assert_eq!(
        (&shown["name"], &shown["description"], &shown["applied_at"]),
        (&json!("object"), &json!("its own"), &Value::Null)
    );
    home.run(&["plan", "create", "object-2", "--file", &object, "--description", "mine"]).code(0);
    assert_eq!(home.run(&["plan", "show", "object-2", "--json"]).json()["description"], "mine");
    let all = home.run(&["plan", "list", "--json"]).code(0).json();
    let names: Vec<&str> = all["plans"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!((names, &all["plan_errors"]), (vec!["array", "lines", "object-2", "object"], &json!([])));
}

#[test]
fn create_refuses_what_is_no_plan_and_changes_nothing() {
    let home = Home::new();
    let text = list(&home, "text", "no program");
    let not_a_program = format!("v2:40:{text}");
    let two_fields = list(&home, "two.csv", "v2,,40\nv3,60\n");
    let titles = list(&home, "titles.csv", "name,path,height\n");
    let plain = list(&home, "plain.txt", "v2,,40\n");
    let broken = list(&home, "broken.json", "[{");
    let later = list(&home, "later.json", r#"{"version":"2.0","name":"b","upgrades":[]}"#);
    let bare = list(&home, "bare.json", r#"[{"name":"v2","height":40,"info":{"binaries":{"any":"https://h/x"}}}]"#);
    let empty = list(&home, "empty.csv", "");
    let table: &[(&[&str], &str)] = &[
        (&[], "say the upgrades, as NAME:HEIGHT, or give --file"),
        (&["v2:40", "--file", &bare], "not both"),
        (&["v2"], "upgrade 1 (v2): \"v2\" says no height"),
        (&["v2:0"], "upgrade 1 (v2): height is a whole number from 1"),
        (&["v2:40", "v3:-1"], "upgrade 2 (v3): height is a whole number from 1"),
        (&["v2:40", "../x:60"], "upgrade 2: \"../x\" is no name"),
        (&["v2:40", "v3:40"], "upgrade 2 (v3): its height 40 is not above 40, that of upgrade 1 (v2)"),
        (&["v2:40", "V2:60"], "upgrade 2 (V2): upgrade 1 (v2) has the same name"),
        (&["v2:40:nowhere"], "upgrade 1 (v2): nowhere is not there"),
        (&[&not_a_program], "neither a program for Linux"),
        (&["v2:40:https://h/x"], "upgrade 1 (v2): https://h/x has no checksum"),
        (&["v2:40:https://h/x#md5:0"], "is no checksum"),
        (&["v2:40:ftp://h/x"], "is no URL that can be fetched"),
        (&["--file", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (&["--file", &plain], "ends neither in .json nor in .csv"),
        (&["--file", &two_fields], "two.csv: line 2: it has 2 fields"),
        (&["--file", &titles], "titles.csv: line 1: height is a whole number"),
        (&["--file", &broken], "broken.json: not JSON"),
        (&["--file", &later], "version \"2.0\" is not known"),
        (&["--file", &bare], "upgrade 1 (v2): https://h/x has no checksum"),
        (&["--file", &empty], "empty.csv: empty"),
    ];
    for (words, part) in table {
        let args: Vec<&str> = ["plan", "create", "b"].iter().chain(*words).copied().collect();
        unchanged(&home, &args, 2).one_error(part);
    }
    unchanged(&home, &["plan", "create", "../b", "v2:40"], 2).one_error("no name");
    // Everything that is wrong is told at once.
    let said = unchanged(&home, &["plan", "create", "b", "v2", "v3:x", "v4:9:nowhere"], 2);
    assert_eq!(said.err.lines().count(), 2, "{said:?}");
    // In so many words of the operator.
    home.run(&["--set", "unsafe_skip_checksum=true", "plan", "create", "b", "v2:40:https://h/x"]).code(0);
}

// ---- validate and prepare ------------------------------------------------------------------------------------

#[test]
fn validate_tells_every_finding_of_a_plan_and_of_a_file() {
    let home = Home::new();
    home.release("v2", "");
    fs::write(home.dir.join("new"), "#!/bin/sh\necho 1\n").unwrap();
    home.run(&["plan", "create", "b", "v2:40", "v3:60:new", "v4:80"]).code(0);
    let said = unchanged(&home, &["plan", "validate", "b"], 0);
    for part in [
        "yes it is a batch plan: 3 upgrades",
        "yes v2 can be planned for block 40",
        "yes release v2 can be executed",
        "yes release v3 has a source",
        "warning: it is not there yet: `wemixvisor upgrade add v4 FILE`",
    ] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    assert!(!said.out.contains("NO "), "{said:?}");
    let told = home.run(&["plan", "validate", "b", "--json"]).code(0).json();
    assert_eq!((&told["name"], &told["valid"]), (&json!("b"), &json!(true)));
    // A file that was changed since, a release that is none, a height of somebody else, a name planned elsewhere.
    fs::write(home.dir.join("new"), "#!/bin/sh\necho 2\n").unwrap();
    let said = home.run(&["plan", "validate", "b"]).code(1);
    assert!(said.out.contains("NO  release v3 has a source: ") && said.out.contains("changed since"), "{said:?}");
    // A file of its own: the mock node is one file for all tests.
    fs::remove_file(home.own("upgrades/v2/bin/node")).unwrap();
    home.script("v2", "echo 2");
    fs::set_permissions(home.own("upgrades/v2/bin/node"), fs::Permissions::from_mode(0o644)).unwrap();
    home.plan("v9", 40);
    home.plan("v4", 90);
    let told = home.run(&["plan", "validate", "b", "--json"]).code(1).json();
    let problems: Vec<&str> = told["checks"].as_array().unwrap().iter().filter_map(|c| c["problem"].as_str()).collect();
    assert_eq!((problems.len(), &told["valid"]), (4, &json!(false)), "{told:#}");
    for part in ["belongs to upgrade v9", "is not executable", "changed since", "v4 is planned for block 90"] {
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
    }
    let file = list(&home, "f.csv", "v5,,100\nv6,,x\n");
    let said = home.run(&["plan", "validate", &file]).code(1);
    assert!(said.out.contains("NO  it is a batch plan: line 2: height is"), "{said:?}");
    let file = list(&home, "f.json", r#"[{"name":"v5","height":100}]"#);
    home.run(&["plan", "validate", &file]).code(0);
    home.run(&["plan", "validate", "f.json"]).code(0);
    let said = home.run(&["plan", "validate", "./nowhere.csv"]).code(1);
    assert!(said.out.contains("cannot be read"), "{said:?}");
    home.run(&["plan", "validate", "c"]).code(1).one_error("there is no batch plan c");
}

#[test]
fn a_list_that_is_no_file_keeps_nobody_waiting() {
    let home = Home::new();
    let fifo = home.dir.join("list.csv");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.to_str().unwrap();
    home.run(&["plan", "create", "a", "--file", path]).code(2).one_error("not a regular file");
    let said = home.run(&["plan", "validate", path]).code(1);
    assert!(said.out.contains("not a regular file"), "{said:?}");
}

#[test]
fn validate_knows_the_head_the_current_release_and_plans_of_other_batches() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    let mut visor = standing(&home);
    home.run(&["plan", "create", "late", "v3:39"]).code(0);
    let said = home.run(&["plan", "validate", "late"]).code(1);
    assert!(said.out.contains("block 39 has passed (head 39)"), "{said:?}");
    home.run(&["plan", "create", "a", "v3:1000", "v4:2000"]).code(0);
    home.run(&["plan", "apply", "a"]).code(0);
    let file = list(&home, "f.csv", "v3,,1000\n");
    for what in ["b", file.as_str()] {
        home.run(&["plan", "create", "b", "--file", &file]);
        let said = home.run(&["plan", "validate", what]).code(1);
        assert!(said.out.contains("v3 is part of batch plan a already"), "{said:?}");
    }
    unchanged_data(&home, &["plan", "apply", "b"], "v3 is part of batch plan a already");
    home.run(&["upgrade", "now", "v2"]).code(0);
    home.until_finished("v2", "committed");
    let file = list(&home, "g.csv", "v2,,3000\n");
    let said = home.run(&["plan", "validate", &file]).code(1);
    assert!(said.out.contains("release v2 is the current one"), "{said:?}");
    visor.stop();
}

/// Runs a command that is refused (4) and leaves the plans as they are.
#[track_caller]
fn unchanged_data(home: &Home, args: &[&str], part: &str) {
    let plans = |home: &Home| {
        home.tree().into_iter().filter(|line| line.contains("/data/") || line.contains("/plans/")).collect::<Vec<_>>()
    };
    let before = plans(home);
    home.run(args).code(4).one_error(part);
    assert_eq!(plans(home), before, "{args:?}");
}

#[test]
fn prepare_fetches_what_is_missing_checks_all_and_goes_on_after_a_failure() {
    let home = Home::new();
    let prepare =
        |code| home.run(&["--set", "unsafe_skip_backup=true", "plan", "prepare", "b", "--json"]).code(code).json();
    for name in ["one", "two", "three"] {
        fs::write(home.dir.join(name), format!("#!/bin/sh\necho {name}\n")).unwrap();
    }
    home.release("v5", "");
    home.run(&["plan", "create", "b", "v2:40:one", "v3:60:two", "v4:80:three", "v5:100", "v6:120"]).code(0);
    fs::write(home.dir.join("two"), "#!/bin/sh\necho other\n").unwrap();
    let told = prepare(1);
    let ready: Vec<bool> = told["upgrades"].as_array().unwrap().iter().map(|u| u["ready"].as_bool().unwrap()).collect();
    assert_eq!((ready, &told["ready"]), (vec![true, false, true, true, false], &json!(false)), "{told:#}");
    assert_eq!(told["upgrades"][0]["version"], "one");
    let problem = |i: usize| {
        let checks = told["upgrades"][i]["checks"].as_array().unwrap().clone();
        checks.iter().find_map(|check| check["problem"].as_str().map(str::to_owned)).unwrap()
    };
    assert!(problem(1).contains("is not what it should be"), "{}", problem(1));
    assert!(problem(4).contains("is not there"), "{}", problem(4));
    assert!(!home.own("upgrades/v3").exists() && home.own("upgrades/v4/bin/node").exists());
    let mode = fs::metadata(home.own("upgrades/v2/bin/node")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // What is there is not fetched again.
    fs::write(home.dir.join("two"), "#!/bin/sh\necho two\n").unwrap();
    fs::remove_file(home.dir.join("one")).unwrap();
    home.release("v6", "");
    assert_eq!(prepare(0)["ready"], true);
    let said = home.run(&["--set", "unsafe_skip_backup=true", "plan", "prepare", "b"]).code(0);
    assert!(said.out.contains("upgrade v2, release ") && said.out.contains("  yes "), "{said:?}");
    home.run(&["plan", "prepare", "c"]).code(1).one_error("there is no batch plan c");
}

// ---- apply and remove ----------------------------------------------------------------------------------------

#[test]
fn apply_plans_all_upgrades_or_none_of_them() {
    let home = Home::new();
    home.run(&["plan", "create", "b", "v2:40", "v3:60", "v4:80"]).code(0);
    unchanged(&home, &["plan", "apply", "c"], 1).one_error("there is no batch plan c");
    home.plan("x", 60);
    home.plan("v4", 90);
    let said = unchanged(&home, &["plan", "apply", "b"], 4);
    assert_eq!(said.err.lines().count(), 2, "{said:?}");
    for part in ["upgrade 2 (v3): height 60 belongs to upgrade x", "upgrade 3 (v4): upgrade v4 is planned for block 90"]
    {
        assert!(said.err.contains(part), "{said:?}");
    }
    for name in ["x", "v4"] {
        home.run(&["upgrade", "cancel", name]).code(0);
    }
    let said = home.run(&["plan", "apply", "b"]).code(0);
    assert!(said.out.contains("batch plan b is applied, 3 upgrades planned"), "{said:?}");
    assert!(said.err.contains("v3 is not there") || said.err.contains("upgrade add v3"), "{said:?}");
    assert!(said.err.contains("no head is known"), "{said:?}");
    assert_eq!(plan_at(&home, 60), json!({"name": "v3", "height": 60, "batch": "b"}));
    assert_eq!(fs::metadata(plan_file(&home, 60)).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(kept(&home).1["applied_at"].is_string());
    assert_eq!(upgrades(&home, "b"), ["v2@40 scheduled", "v3@60 scheduled", "v4@80 scheduled"]);
    let said = unchanged(&home, &["plan", "apply", "b"], 0);
    assert!(said.out.contains("is applied already"), "{said:?}");
    home.run(&["plan", "validate", "b"]).code(0);
}

#[test]
fn an_apply_that_cannot_write_leaves_nothing_behind() {
    let home = Home::new();
    home.run(&["upgrade", "schedule", "v2", "40", "--info", "mine"]).code(0);
    home.run(&["plan", "create", "b", "v2:40", "v3:60", "v4:80", "v5:100"]).code(0);
    // Neither a directory nor a plan file can be made there.
    let other = home.root().join("data/upgrades/80");
    fs::write(&other, "").unwrap();
    unchanged(&home, &["plan", "apply", "b"], 1).one_error("none of batch plan b is planned");
    fs::remove_file(&other).unwrap();
    fs::create_dir_all(other.join("upgrade-info.json")).unwrap();
    let said = unchanged(&home, &["plan", "apply", "b"], 1);
    assert!(said.err.contains("data/upgrades/80") && said.err.contains("none of batch plan b is planned"), "{said:?}");
    assert_eq!(plan_at(&home, 40), json!({"name": "v2", "height": 40, "info": "mine"}));
    fs::remove_dir_all(&other).unwrap();
    home.run(&["plan", "apply", "b"]).code(0);
    assert_eq!(plan_at(&home, 40), json!({"name": "v2", "height": 40, "batch": "b"}));
}

#[test]
fn what_was_not_applied_whole_counts_for_nothing_until_it_is() {
    let home = Home::new();
    three(&home);
    home.run(&["plan", "apply", "b"]).code(0);
    unmark(&home);
    fs::remove_dir_all(home.root().join("data/upgrades/80")).unwrap();
    let mut visor = standing(&home);
    let status = home.until_status("the files are named", |s| s["plan_errors"].as_array().unwrap().len() == 2);
    assert_eq!((&status["plans"], &status["upgrade"]), (&json!([]), &Value::Null));
    assert!(
        status["plan_errors"][0]["error"].as_str().unwrap().contains("`wemixvisor plan apply b` again"),
        "{status}"
    );
    assert_eq!(upgrades(&home, "b"), ["v2@40 not applied", "v3@60 not applied", "v4@80 not applied"]);
    home.plan("v9", 1_000_000);
    home.until_status("another plan counts", |s| shape(&s["plans"]) == ["v9@1000000 scheduled"]);
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0), "v2 was due");
    home.run(&["plan", "apply", "b"]).code(0);
    home.until_finished("v4", "committed");
    assert_eq!(home.started(), ["genesis", "v2", "v3", "v4"]);
    visor.stop();
}

#[test]
fn an_apply_that_is_killed_plans_nothing_and_another_one_completes_it() {
    let home = Home::new();
    let words: Vec<String> = (1..=40).map(|n| format!("v{n}:{}", 1000 * n)).collect();
    let args: Vec<&str> = ["plan", "create", "b"].into_iter().chain(words.iter().map(String::as_str)).collect();
    home.run(&args).code(0);
    let planned = || home.run(&["upgrade", "list", "--json"]).code(0).json()["plans"].as_array().unwrap().len();
    for written in [1, 5, 20, 40] {
        let mut apply =
            home.command(&["plan", "apply", "b"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it has written some", || {
            (plan_file(&home, 1000 * written).exists() || apply.try_wait().unwrap().is_some()).then_some(())
        });
        apply.kill().unwrap();
        apply.wait().unwrap();
        let marked = kept(&home).1.get("applied_at").is_some();
        assert_eq!(planned(), if marked { 40 } else { 0 }, "killed when {written} were there");
    }
    home.run(&["plan", "apply", "b"]).code(0);
    assert_eq!(planned(), 40);
    let said = home.run(&["plan", "remove", "b"]).code(0);
    assert!(said.out.contains("withdrawn: v1, v2, v3, ") && planned() == 0, "{said:?}");
}

#[test]
fn a_supervisor_never_sees_an_apply_in_the_middle() {
    let home = Home::new();
    let words: Vec<String> = (1..=60).map(|n| format!("v{n}:{}", 1000 * n)).collect();
    let args: Vec<&str> = ["plan", "create", "b"].into_iter().chain(words.iter().map(String::as_str)).collect();
    home.run(&args).code(0);
    let mut visor = standing(&home);
    home.run(&["plan", "apply", "b"]).code(0);
    let status = home.until_status("all are planned", |s| s["plans"].as_array().unwrap().len() == 60);
    assert_eq!(status["plan_errors"], json!([]));
    assert_eq!(home.logged("is no plan"), 0, "{}", home.log());
    home.run(&["plan", "remove", "b"]).code(0);
    home.until_status("all are withdrawn", |s| s["plans"].as_array().unwrap().is_empty());
    assert_eq!(home.logged("is no plan"), 0, "{}", home.log());
    visor.stop();
}

#[test]
fn a_plan_file_whose_batch_plan_is_gone_counts_by_itself() {
    let home = Home::new();
    three(&home);
    home.run(&["plan", "apply", "b"]).code(0);
    unmark(&home);
    fs::remove_file(kept(&home).0).unwrap();
    let list = home.run(&["upgrade", "list", "--json"]).code(0).json();
    assert_eq!(shape(&list["plans"]), ["v2@40 scheduled", "v3@60 scheduled", "v4@80 scheduled"]);
    home.run(&["plan", "show", "b"]).code(1).one_error("there is no batch plan b");
}

#[test]
fn remove_withdraws_what_is_left_and_keeps_what_is_done() {
    let home = Home::new();
    three(&home);
    let said = home.run(&["plan", "remove", "b"]).code(0);
    assert!(said.out.contains("it was not applied") && files(&home).is_empty(), "{said:?}");
    home.run(&["plan", "remove", "b"]).code(1).one_error("there is no batch plan b");
    // Half applied.
    three(&home);
    home.run(&["plan", "apply", "b"]).code(0);
    unmark(&home);
    let said = home.run(&["plan", "remove", "b"]).code(0);
    assert!(said.out.contains("withdrawn: v2, v3, v4") && files(&home).is_empty(), "{said:?}");
    assert!(!plan_file(&home, 40).exists());
    // Under way, then partly done.
    three(&home);
    home.release("v2", "--no-blocks");
    home.run(&["plan", "apply", "b"]).code(0);
    let mut visor = standing_anywhere(&home);
    home.until_phase("trial");
    unchanged_data(&home, &["plan", "remove", "b"], "upgrade v2 of batch plan b is under way (trial)");
    visor.stop();
    home.release("v2", "--halt-at 45");
    let mut visor = home.supervise(&[], &[]);
    home.until_finished("v2", "committed");
    let said = home.run(&["plan", "remove", "b"]).code(0);
    assert!(said.out.contains("withdrawn: v3, v4"), "{said:?}");
    home.until_status("only what is done is left", |s| shape(&s["plans"]) == ["v2@40 done"]);
    assert!(home.own("upgrades/v3/bin/node").exists(), "releases stay");
    visor.stop();
}

/// A supervisor whose node stands still at block 39, as long as nothing is due.
fn standing_anywhere(home: &Home) -> Visor<'_> {
    home.supervise(&["--set", "poll_interval=20ms"], FROZEN)
}

// ---- how they run --------------------------------------------------------------------------------------------

#[test]
fn the_upgrades_of_an_applied_plan_run_one_after_the_other_each_with_its_own_trial() {
    let home = Home::new();
    three(&home);
    let mut visor = standing(&home);
    home.run(&["plan", "create", "later", "v5:1000"]).code(0);
    home.run(&["plan", "apply", "later"]).code(0);
    home.run(&["plan", "apply", "b"]).code(0);
    home.until_finished("v4", "committed");
    assert_eq!(home.started(), ["genesis", "v2", "v3", "v4"]);
    assert_eq!(history(&home), ["v2 committed", "v3 committed", "v4 committed"]);
    let shown = home.run(&["plan", "show", "b", "--json"]).code(0).json();
    assert_eq!(shape(&shown["upgrades"]), ["v2@40 done", "v3@60 done", "v4@80 done"]);
    assert_eq!((&shown["done"], &shown["pending"], &shown["next"]), (&json!(3), &json!(0), &Value::Null));
    let shown = home.run(&["plan", "show", "later"]).code(0).out;
    assert!(shown.contains("0 of 1 done") && shown.contains("next: v5 at block 1000, "), "{shown}");
    let listed = home.run(&["plan", "list"]).code(0).out;
    assert!(listed.contains("3 of 3 done") && listed.contains("0 of 1 done"), "{listed}");
    home.run(&["plan", "validate", "b"]).code(0);
    visor.stop();
    // Also without a supervisor.
    assert_eq!(upgrades(&home, "b"), ["v2@40 done", "v3@60 done", "v4@80 done"]);
}

#[test]
fn one_that_fails_holds_those_behind_it_until_it_is_mended_and_retried() {
    let home = Home::new();
    three(&home);
    home.release("v3", "--die-at-start");
    home.run(&["plan", "apply", "b"]).code(0);
    let mut visor = standing_anywhere(&home);
    home.until_finished("v3", "reverted");
    visor.until_release("v2");
    let status = home.until_status("v4 is held", |s| shape(&s["plans"])[1..] == ["v3@60 failed", "v4@80 held"]);
    assert!(status["plans"][2]["note"].as_str().unwrap().contains("v3, before it in plan b, failed"), "{status}");
    let text = home.run(&["status"]).code(0).out;
    assert!(text.contains("v4 held: v3, before it in plan b, failed"), "{text}");
    let list = home.run(&["upgrade", "list"]).code(0).out;
    assert!(list.lines().any(|line| line.starts_with("v4") && line.contains("held")), "{list}");
    let shown = home.run(&["plan", "show", "b", "--json"]).code(0).json();
    assert_eq!(shape(&shown["upgrades"]), ["v2@40 done", "v3@60 failed", "v4@80 held"]);
    assert_eq!((&shown["done"], &shown["pending"], &shown["next"]), (&json!(1), &json!(1), &Value::Null));
    assert_eq!(shown["progress"], "1 of 3 done");
    let text = home.run(&["plan", "show", "b"]).code(0).out;
    assert!(text.contains("next: nothing until v3 is retried or cancelled"), "{text}");
    home.run(&["plan", "validate", "b"]).code(1);
    home.release("v3", "--halt-at 79");
    home.run(&["upgrade", "retry", "v3"]).code(0);
    home.until_finished("v4", "committed");
    assert_eq!(history(&home), ["v2 committed", "v3 reverted", "v3 committed", "v4 committed"]);
    assert_eq!(plan_at(&home, 60), json!({"name": "v3", "height": 60, "batch": "b", "retry": 1}));
    assert_eq!(upgrades(&home, "b"), ["v2@40 done", "v3@60 done", "v4@80 done"]);
    visor.stop();
}

#[test]
fn one_that_failed_and_is_cancelled_lets_the_others_go_on() {
    let home = Home::new();
    three(&home);
    home.release("v2", "--halt-at 1000000");
    home.release("v3", "--die-at-start");
    home.run(&["plan", "apply", "b"]).code(0);
    let mut visor = standing_anywhere(&home);
    home.until_finished("v3", "reverted");
    home.run(&["upgrade", "cancel", "v3"]).code(0);
    home.until_finished("v4", "committed");
    assert_eq!(upgrades(&home, "b"), ["v2@40 done", "v3@60 withdrawn", "v4@80 done"]);
    visor.stop();
}

#[test]
fn one_that_failed_can_be_moved_behind_the_others() {
    let home = Home::new();
    three(&home);
    home.release("v2", "--halt-at 1000000");
    home.release("v3", "--die-at-start");
    home.run(&["plan", "apply", "b"]).code(0);
    let mut visor = standing_anywhere(&home);
    home.until_finished("v3", "reverted");
    home.run(&["upgrade", "schedule", "v3", "100000"]).code(4).one_error("--force moves it");
    home.run(&["upgrade", "schedule", "v3", "100000", "--force"]).code(0);
    home.until_finished("v4", "committed");
    assert_eq!(plan_at(&home, 100_000), json!({"name": "v3", "height": 100_000, "batch": "b"}));
    let next = home.run(&["plan", "show", "b", "--json"]).code(0).json()["next"].clone();
    assert_eq!((&next["name"], &next["height"]), (&json!("v3"), &json!(100_000)), "{next}");
    assert!(next["blocks_left"].as_u64().is_some_and(|left| left < 100_000), "{next}");
    visor.stop();
}

#[test]
fn a_node_that_catches_up_goes_through_all_releases_in_order() {
    let home = Home::new();
    // Quick enough to pass the later heights before its trial ends.
    home.release("v2", "--period 2ms");
    home.release("v3", "");
    home.release("v4", "");
    home.run(&["plan", "create", "b", "v2:60", "v3:90", "v4:120"]).code(0);
    home.run(&["plan", "apply", "b"]).code(0);
    let data = home.datadir();
    let mut visor = home.supervise_with(&[], &["--datadir", data.to_str().unwrap(), "--period", "20ms"]);
    home.until_finished("v4", "committed");
    assert_eq!(home.started(), ["genesis", "v2", "v3", "v4"]);
    assert_eq!(history(&home), ["v2 committed", "v3 committed", "v4 committed"], "none is passed over");
    assert_eq!(home.current(), "v4");
    visor.stop();
}

#[test]
fn moving_cancelling_and_planning_an_upgrade_again_keep_its_batch() {
    let home = Home::new();
    home.run(&["plan", "create", "b", "v2:1000", "v3:2000", "v4:3000"]).code(0);
    home.run(&["plan", "apply", "b"]).code(0);
    home.run(&["upgrade", "schedule", "v2", "1000", "--info", "words"]).code(0);
    assert_eq!(plan_at(&home, 1000), json!({"name": "v2", "height": 1000, "info": "words", "batch": "b"}));
    home.run(&["upgrade", "schedule", "v3", "2500", "--force"]).code(0);
    assert_eq!(plan_at(&home, 2500), json!({"name": "v3", "height": 2500, "batch": "b"}));
    assert!(!plan_file(&home, 2000).exists());
    home.run(&["upgrade", "cancel", "v4"]).code(0);
    assert_eq!(upgrades(&home, "b"), ["v2@1000 scheduled", "v3@2500 scheduled", "v4@3000 withdrawn"]);
    home.run(&["upgrade", "cancel", "v9"]).code(1);
    // A half-applied one can be taken apart as well.
    unmark(&home);
    home.run(&["upgrade", "cancel", "v2"]).code(0);
    assert!(!plan_file(&home, 1000).exists());
}

// ---- what lies in plans/ -------------------------------------------------------------------------------------

#[test]
fn a_file_that_is_no_batch_plan_is_named_and_stops_nothing() {
    let home = Home::new();
    let said = home.run(&["plan", "list"]).code(0);
    assert!(said.out.contains("there is no batch plan"), "{said:?}");
    three(&home);
    home.run(&["plan", "apply", "b"]).code(0);
    let good = json!({"version": "1.0", "name": "g", "upgrades": [{"name": "v9", "height": 9}]}).to_string();
    let put = |name: &str, text: &str| fs::write(home.own("plans").join(name), text).unwrap();
    put("broken-20260101-000000.json", "{\"version\"");
    put("empty-20260101-000000.json", "");
    put("other-20260101-000000.json", &good);
    put("g.json", &good);
    put("notes.txt", "mine");
    put(".hidden.json", "");
    fs::create_dir(home.own("plans/d-20260101-000000.json")).unwrap();
    put("open-20260101-000000.json", &good);
    fs::set_permissions(home.own("plans/open-20260101-000000.json"), fs::Permissions::from_mode(0o666)).unwrap();
    let told = home.run(&["plan", "list", "--json"]).code(0).json();
    let errors: Vec<String> = told["plan_errors"].as_array().unwrap().iter().map(|e| format!("{e}")).collect();
    assert_eq!((errors.len(), told["plans"].as_array().unwrap().len()), (6, 1), "{told:#}");
    for part in ["not JSON", "empty", "its name is not g-YYYYMMDD", "not a regular file", "everybody may write"] {
        assert!(errors.iter().any(|error| error.contains(part)), "{part}: {errors:?}");
    }
    let said = home.run(&["plan", "list"]).code(0);
    assert!(said.out.contains("wemixvisor/plans/broken-20260101-000000.json is no batch plan: not JSON"), "{said:?}");
    for args in [["plan", "show", "broken"], ["plan", "apply", "broken"], ["plan", "remove", "broken"]] {
        unchanged(&home, &args, 1).one_error("mend it or delete it");
    }
    unchanged(&home, &["plan", "create", "broken", "v2:9"], 4).one_error("already");
    // Two files of one name: nobody can tell which is meant.
    let (path, name) = (home.own("plans/b-20200101-000000.json"), "b");
    fs::copy(files(&home).iter().find(|p| p.to_str().unwrap().contains("/b-")).unwrap(), path).unwrap();
    unchanged(&home, &["plan", "remove", name], 4).one_error("move one of them away");
    let mut visor = standing_anywhere(&home);
    home.until_finished("v4", "committed");
    visor.stop();
}
