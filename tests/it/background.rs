//! The background verbs: start, stop, restart, status, with and without a supervisor.

use std::fs::{self, File};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Said, kill, lives, mocknode, text, until};

/// `start` with quick settings, more options of ours, and the mock's arguments and more.
fn start(home: &Home, ours: &[&str], node: &[&str]) -> Said {
    let args = home.node_args();
    let quick = ["--set", "height_poll_interval=200ms", "--set", "health_check_interval=200ms"];
    let words = quick.iter().chain(ours).chain(&["start", "--"]).copied();
    let words: Vec<&str> = words.chain(args.iter().map(String::as_str)).chain(node.iter().copied()).collect();
    home.run(&words)
}

fn number(status: &Value, key: &str) -> u32 {
    u32::try_from(status[key].as_u64().unwrap()).unwrap()
}

/// What the node said of its arguments at each start.
fn starts(home: &Home) -> Vec<String> {
    let text = fs::read_to_string(home.root().join("logs/node.log")).unwrap_or_default();
    text.lines().filter(|line| line.starts_with("MOCK start")).map(str::to_owned).collect()
}

fn ended(home: &Home, supervisor: u32) {
    until("the supervisor is gone", || (!lives(supervisor)).then_some(()));
    assert_eq!(home.nodes(), Vec::<u32>::new());
    assert_eq!(home.holders(), Vec::<u32>::new());
}

#[test]
fn start_returns_when_the_node_is_up_and_stop_when_both_are_gone() {
    let home = Home::new();
    let said = start(&home, &[], &[]).code(0);
    let status = home.run(&["status", "--json"]).code(0).json();
    assert_eq!(status["state"], "running");
    let (node, supervisor) = (number(&status, "pid"), number(&status, "supervisor_pid"));
    assert!(said.out.contains(&format!("pid {node}")) && said.out.contains(&format!("pid {supervisor}")), "{said:?}");
    assert_eq!(home.nodes(), [node]);
    assert_eq!(starts(&home).len(), 1, "its output is in logs/node.log");
    let refused = start(&home, &[], &[]).code(4);
    refused.one_error(&format!("pid {supervisor}"));
    let said = home.run(&["stop"]).code(0);
    assert_eq!(said.out.trim(), "stopped");
    assert_eq!(home.nodes(), Vec::<u32>::new());
    assert_eq!(home.run(&["status", "--json"]).code(3).json()["state"], "stopped");
    ended(&home, supervisor);
    assert_eq!(home.journal().iter().map(|e| e[0].as_str()).collect::<Vec<_>>(), ["start", "term", "stop"]);
}

#[test]
fn the_supervisor_of_start_is_a_daemon() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    let status = home.status();
    for key in ["pid", "supervisor_pid"] {
        let pid = number(&status, key);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session = stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(3).unwrap().to_owned();
        assert_eq!(session, pid.to_string(), "{key} leads a session");
        let stdin = fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
        assert_eq!(stdin.to_str(), Some("/dev/null"), "{key}");
    }
    home.run(&["stop"]).code(0);
}

#[test]
fn without_a_supervisor_stop_is_done_restart_starts_and_status_says_3() {
    let home = Home::new();
    home.run(&["stop"]).code(0);
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(home.run(&["status", "--json"]).code(3).json()["state"], "stopped");
    let args = home.node_args();
    let words: Vec<&str> = ["restart", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
    home.run(&words).code(0);
    assert_eq!(home.run(&["status", "--json"]).code(0).json()["state"], "running");
    home.run(&["stop"]).code(0);
    assert_eq!(home.events("start").len(), 1);
}

#[test]
fn restart_ends_the_node_gently_and_starts_it_under_the_same_supervisor() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    let before = home.status();
    let said = home.run(&["restart"]).code(0);
    let after = home.status();
    assert_eq!(before["supervisor_pid"], after["supervisor_pid"]);
    assert_ne!(before["pid"], after["pid"]);
    assert!(said.out.contains(&format!("pid {}", after["pid"])), "{said:?}");
    assert_eq!((&after["state"], &after["restart_count"]), (&"running".into(), &0.into()));
    assert_eq!(starts(&home)[0].split("args=").nth(1), starts(&home)[1].split("args=").nth(1), "the same arguments");
    // New arguments and settings of ours, if given.
    let args = home.node_args();
    let words = ["restart", "--network", "testnet", "--"].into_iter().chain(args.iter().map(String::as_str));
    home.run(&words.chain(["--cache", "77"]).collect::<Vec<_>>()).code(0);
    assert!(starts(&home)[2].contains("--cache 77"), "{:?}", starts(&home));
    let status = home.status();
    assert_eq!(status["network"], "testnet");
    assert!(status["args"].as_array().unwrap().contains(&"77".into()), "{status}");
    home.run(&["stop"]).code(0);
    let kinds: Vec<String> = home.journal().into_iter().map(|event| event[0].clone()).collect();
    assert_eq!(kinds, ["start", "term", "stop"].repeat(3));
    let output = fs::read_to_string(home.root().join("logs/node.log")).unwrap();
    assert_eq!(output.matches("Got interrupt").count(), 3, "all lives of the node write to its log");
}

#[test]
fn restart_of_a_crashed_node_does_not_wait_for_its_pause() {
    let home = Home::new();
    start(&home, &["--set", "restart_backoff=1h"], &[]).code(0);
    kill(number(&home.status(), "pid"), Signal::KILL);
    home.until_status("it has crashed", |s| s["state"] == "crashed");
    home.run(&["restart"]).code(0);
    assert_eq!(home.state(), "running");
    home.run(&["stop"]).code(0);
}

#[test]
fn restart_of_a_node_that_does_not_come_up_again_says_so_with_5() {
    let home = Home::new();
    start(&home, &["--max-restarts", "1", "--set", "restart_backoff=10ms"], &[]).code(0);
    home.release("genesis", "--die-at-start=7");
    let said = home.run(&["restart"]).code(5);
    assert!(said.err.contains("exit status 7"), "{said:?}");
    until("it is given up", || (home.state() == "error").then_some(()));
    home.run(&["status"]).code(3);
}

#[test]
fn restart_is_refused_while_everything_ends() {
    let home = Home::new();
    start(&home, &["--set", "shutdown_grace=0"], &["--stop-time", "1h"]).code(0);
    let mut stop = home.command(&["stop"]).spawn().unwrap();
    home.until_status("it is stopping", |s| s["state"] == "stopping");
    home.run(&["restart"]).code(4).one_error("is being stopped");
    home.run(&["stop", "--now"]).code(0);
    assert!(until("stop returns", || stop.try_wait().unwrap()).success());
    assert_eq!(home.events("start").len(), 1);
}

#[test]
fn a_wrong_setting_at_restart_changes_nothing() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    let before = home.status();
    home.run(&["restart", "--max-restarts", "many"]).code(2);
    home.run(&["restart", "--nonsense", "--", "x"]).code(2);
    let after = home.status();
    assert_eq!((&before["pid"], &before["args"]), (&after["pid"], &after["args"]));
    home.run(&["stop"]).code(0);
}

#[test]
fn start_without_arguments_uses_those_of_the_last_run_and_says_so() {
    let home = Home::new();
    start(&home, &[], &["--cache", "77"]).code(0);
    home.run(&["stop"]).code(0);
    let said = home.run(&["start"]).code(0);
    assert!(said.err.contains("last run") && said.err.contains("--cache 77"), "{said:?}");
    assert_eq!(starts(&home).len(), 2);
    assert_eq!(starts(&home)[0].split("args=").nth(1), starts(&home)[1].split("args=").nth(1));
    home.run(&["stop"]).code(0);
    // The configuration goes before the last run.
    let args: Vec<String> = home.node_args().iter().map(|arg| format!("{arg:?}")).collect();
    let line = format!("node_args = [{}, \"--cache\", \"88\"]\n", args.join(", "));
    let text = fs::read_to_string(home.own("config.toml")).unwrap() + &line;
    fs::write(home.own("config.toml"), text).unwrap();
    let said = home.run(&["start"]).code(0);
    assert!(!said.err.contains("last run"), "{said:?}");
    assert!(starts(&home)[2].contains("--cache 88"));
    home.run(&["stop"]).code(0);
}

#[test]
fn start_of_a_node_that_dies_before_it_is_up_says_why_with_its_last_lines() {
    let home = Home::new();
    let said = start(&home, &[], &["--die-at-start=7"]).code(5);
    assert!(said.err.contains("exit status 7") && said.err.contains("MOCK start"), "{said:?}");
    assert_eq!(home.events("start").len(), 1, "it is not tried again");
    let status = home.run(&["status", "--json"]).code(3).json();
    assert_eq!(status["state"], "error");
    assert!(text(&status, "error").contains("exit status 7"), "{status}");
    // A node that refuses its command line.
    let said = start(&home, &[], &["--no-such-flag"]).code(5);
    assert!(said.err.contains("flag provided but not defined: -no-such-flag"), "{said:?}");
    // And one that is a command: nothing runs, so `start` has failed.
    let said = start(&home, &[], &["--exit-early"]).code(5);
    assert!(said.err.contains("ended itself") && said.err.contains("MOCK start"), "{said:?}");
    assert_eq!(home.nodes(), Vec::<u32>::new());
}

#[test]
fn a_supervisor_that_was_just_killed_is_in_nobodys_way() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    for words in [&["start"][..], &["restart"], &["start"], &["restart"]] {
        let supervisor = number(&home.status(), "supervisor_pid");
        kill(supervisor, Signal::KILL);
        let said = home.run(words).code(0);
        assert!(said.out.contains("the node runs (pid "), "{said:?}");
        assert_ne!(number(&home.status(), "supervisor_pid"), supervisor);
    }
    home.run(&["stop"]).code(0);
}

#[test]
fn a_log_that_cannot_be_written_keeps_no_node_down_unheard() {
    let home = Home::new();
    home.release("v2", "");
    start(&home, &[], &[]).code(0);
    // The home's own place is made again.
    fs::remove_dir_all(home.root().join("logs")).unwrap();
    home.run(&["restart"]).code(0);
    assert_eq!(starts(&home).len(), 1);
    home.run(&["stop"]).code(0);
    // One that was named is looked at ahead, and told of when it is gone.
    let far = home.dir.join("far");
    fs::create_dir(&far).unwrap();
    let setting = format!("log_file={}", far.join("n.log").display());
    let check = || home.run(&["--set", &setting, "--set", "unsafe_skip_backup=true", "upgrade", "check", "v2"]);
    start(&home, &["--set", &setting], &[]).code(0);
    home.run(&["upgrade", "schedule", "v2", "1000000"]).code(0);
    assert!(check().code(0).out.contains("yes the node's log can be written"));
    fs::remove_dir_all(&far).unwrap();
    assert!(check().code(1).out.contains("NO  the node's log can be written: "));
    home.run(&["restart"]).code(5).one_error("the node was not started: cannot open the node's log");
    until("status says why", || {
        let status = home.status();
        status["waits_for"].as_str().is_some_and(|waits| waits.contains("cannot open the node's log")).then_some(())
    });
    fs::create_dir(&far).unwrap();
    home.until_status("it comes back", |s| s["state"] == "running");
    home.run(&["stop"]).code(0);
}

#[test]
fn a_log_that_is_named_anew_counts_from_the_nodes_next_start_on() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    let other = home.dir.join("other.log");
    home.run(&["config", "set", "log_file", other.to_str().unwrap()]).code(0);
    kill(number(&home.status(), "supervisor_pid"), Signal::HUP);
    until("the settings were read again", || {
        fs::read_to_string(home.root().join("logs/wemixvisor.log")).unwrap().contains("were read again").then_some(())
    });
    let said = home.run(&["logs", "-n", "1000"]).code(0);
    assert!(said.out.contains("MOCK start") && !other.exists(), "{said:?}");
    home.run(&["restart"]).code(0);
    let said = home.run(&["logs", "-n", "1000"]).code(0);
    assert!(said.out.contains("MOCK start") && other.exists(), "{said:?}");
    home.run(&["stop"]).code(0);
    assert!(home.run(&["logs", "-n", "1000"]).code(0).out.contains("MOCK start"));
}

#[test]
fn a_start_that_is_refused_shows_no_lines_of_an_earlier_run() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    until("the node was at a block", || {
        home.run(&["status", "--json"]).json()["height"].as_u64().filter(|height| *height > 1)
    });
    home.run(&["stop"]).code(0);
    fs::remove_dir_all(home.datadir()).unwrap();
    start(&home, &[], &[]).code(4).one_error("is its disk not mounted?");
}

#[test]
fn a_node_that_root_starts_in_a_home_of_somebody_else_is_warned_of_and_that_one_is_told_whose_it_is() {
    let home = Home::new();
    let chown = |owner: &str| {
        let mut command = std::process::Command::new("chown");
        command.args(["-R", owner]).arg(&home.dir).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !chown("4242:4242") {
        eprintln!("SKIPPED: only root can give a home away");
        return;
    }
    let said = start(&home, &[], &[]).code(0);
    assert!(said.err.contains("warning: the node runs as root, ") && said.err.contains("uid 4242"), "{said:?}");
    // Neither root nor the owner may speak to it, and is told who may.
    let user = ["setpriv", "--reuid=4343", "--regid=4343", "--clear-groups"];
    for words in [&["status"][..], &["stop"], &["upgrade", "list"]] {
        let said = crate::support::said(crate::support::under(&user, &home.command(words)));
        assert!(said.code != 0 && said.err.contains("do it as root, or as the owner of the home"), "{said:?}");
    }
    home.run(&["stop"]).code(0);
    assert!(chown("0:0"));
    let said = start(&home, &[], &[]).code(0);
    assert!(!said.err.contains("warning: the node runs as root"), "{said:?}");
    home.run(&["stop"]).code(0);
}

#[test]
fn start_says_so_when_the_binary_cannot_be_executed() {
    let home = Home::new();
    fs::remove_file(home.own("genesis/bin/node")).unwrap();
    home.script("genesis", "");
    fs::write(home.own("genesis/bin/node"), "#!/no/such/interpreter\n").unwrap();
    let said = start(&home, &[], &[]).code(5).one_error("cannot execute");
    assert_eq!(home.state(), "error");
    // It has no last words: those in its log are of another life.
    fs::write(home.root().join("logs/node.log"), "from before\n").unwrap();
    let again = start(&home, &[], &[]).code(5).one_error("cannot execute");
    assert!(!format!("{said:?}{again:?}").contains("from before"), "{again:?}");
}

#[test]
fn start_does_not_wait_for_ever_when_its_supervisor_is_killed() {
    let home = Home::new();
    let args = home.node_args();
    let words: Vec<&str> = ["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let mut start = home.command(&words).spawn().unwrap();
    let supervisor: u32 = until("there is a supervisor", || {
        fs::read_to_string(home.own("lock")).ok()?.split_whitespace().next()?.parse().ok()
    });
    kill(supervisor, Signal::KILL);
    assert!(!until("start returns", || start.try_wait().unwrap()).success());
    home.run(&["status"]).code(3);
    until("its node is gone", || home.nodes().is_empty().then_some(()));
}

#[test]
fn start_tells_at_once_what_cannot_work() {
    let home = Home::new();
    home.run(&["start", "--nonsense", "--", "x"]).code(2).one_error("--nonsense");
    home.run(&["--set", "poll_interval=never", "start"]).code(2).one_error("POLL_INTERVAL");
    assert_eq!(home.journal().len(), 0);
    assert!(!home.own("control.sock").exists());
}

#[test]
fn stop_shows_what_it_waits_for() {
    let home = Home::new();
    start(&home, &["--set", "shutdown_grace=0"], &["--stop-time", "3500ms"]).code(0);
    let node = number(&home.status(), "pid");
    let said = home.run(&["stop"]).code(0);
    assert!(said.err.contains(&format!("waiting for the node (pid {node})")), "{said:?}");
    assert_eq!(home.events("term").len(), 1);
}

#[test]
fn stop_now_kills_node_and_supervisor_ends() {
    let home = Home::new();
    start(&home, &["--set", "shutdown_grace=0"], &["--deaf"]).code(0);
    let supervisor = number(&home.status(), "supervisor_pid");
    home.run(&["stop", "--now"]).code(0);
    ended(&home, supervisor);
    assert_eq!(home.events("stop").len(), 0);
}

#[test]
fn two_stops_at_once_both_wait_for_the_end() {
    let home = Home::new();
    start(&home, &[], &["--stop-time", "500ms"]).code(0);
    let node = number(&home.status(), "pid");
    let mut stops: Vec<_> = (0..4).map(|_| home.command(&["stop"]).spawn().unwrap()).collect();
    for stop in &mut stops {
        let status = until("stop returns", || stop.try_wait().unwrap());
        assert!(status.success());
        assert!(!lives(node));
    }
    assert_eq!(home.events("term").len(), 1);
}

#[test]
fn usr1_opens_the_log_anew() {
    let home = Home::new();
    start(&home, &[], &[]).code(0);
    let log = home.root().join("logs/wemixvisor.log");
    let old = home.root().join("logs/old.log");
    fs::rename(&log, &old).unwrap();
    kill(number(&home.status(), "supervisor_pid"), Signal::USR1);
    until("the log is there again", || log.exists().then_some(()));
    home.run(&["stop"]).code(0);
    assert!(fs::read_to_string(&log).unwrap().contains("asked to stop"));
    assert!(!fs::read_to_string(&old).unwrap().contains("asked to stop"));
}

/// Who finds the lock free may start at once: an end that is written down later would overwrite what that one knows.
#[test]
fn the_end_is_on_record_before_the_lock_is_free() {
    let home = Home::new();
    start(&home, &[], &["--die-at-start"]).code(5);
    assert_eq!(home.state(), "error");
    start(&home, &[], &[]).code(0);
    let lock = File::open(home.own("lock")).unwrap();
    let mut stop = home.command(&["stop"]).spawn().unwrap();
    let began = std::time::Instant::now();
    while lock.try_lock_shared().is_err() {
        assert!(began.elapsed() < crate::support::PATIENCE);
        std::thread::sleep(Duration::from_micros(50));
    }
    let state = fs::read_to_string(home.own("state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["last"]["state"], "stopped", "{state}");
    until("stop returns", || stop.try_wait().unwrap());
}

#[test]
fn with_json_every_command_answers_with_an_object() {
    let home = Home::new();
    let binary = mocknode().to_str().unwrap();
    let data = home.datadir();
    let args = ["--datadir", data.to_str().unwrap(), "--period", "50ms"];
    let json = |words: &[&str]| {
        let said = home.run(&[&["--json"], words].concat()).code(0);
        let object = said.json();
        assert!(object["message"].as_str().is_some_and(|text| !text.contains('\n')), "{words:?}: {said:?}");
        object
    };
    assert_eq!(json(&["init"])["home"], home.root().to_str().unwrap());
    let started = json(&[&["start"], &args[..]].concat());
    assert_eq!(started["pid"], home.status()["pid"]);
    assert_eq!(started["supervisor_pid"], home.status()["supervisor_pid"]);
    assert_eq!(json(&["upgrade", "add", "v2", binary])["name"], "v2");
    assert_eq!(json(&["upgrade", "add", "v3", binary, "--height", "90000"])["height"], 90000);
    assert_eq!(json(&["upgrade", "schedule", "v2", "80000"])["height"], 80000);
    assert_eq!(json(&["upgrade", "cancel", "v2"])["name"], "v2");
    json(&["config", "set", "min_peers", "0"]);
    assert_eq!(json(&["plan", "create", "q3", "v4:100000"])["name"], "q3");
    assert_eq!(json(&["plan", "apply", "q3"])["planned"], 1);
    assert_eq!(json(&["plan", "remove", "q3"])["withdrawn"][0], "v4");
    assert_eq!(json(&["restart"])["pid"], home.status()["pid"]);
    assert_ne!(home.status()["pid"], started["pid"]);
    json(&["upgrade", "now", "v2"]);
    home.until_status("the new release runs", |s| s["release"] == "v2" && s["head_known"] == true);
    assert_eq!(json(&["upgrade", "revert"])["from"], "v2");
    assert_eq!(json(&["stop"])["was_running"], true);
    assert_eq!(json(&["stop"])["was_running"], false);
}
