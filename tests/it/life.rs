//! The life of a node under `run`: start, stop, signals, crashes, and the exit status that each of them earns.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, kill, lives, text, until};

/// The kinds of events in the mock's journal, in order.
fn kinds(home: &Home) -> Vec<String> {
    home.journal().into_iter().map(|event| event[0].clone()).collect()
}

fn pid(status: &Value) -> u32 {
    u32::try_from(status["pid"].as_u64().unwrap()).unwrap()
}

/// Waits until another process than this one is the node, and answers.
#[track_caller]
fn runs_again(home: &Home, first: u32) -> Value {
    home.until_status("it runs again", |s| s["state"] == "running" && s["head_known"] == true && s["pid"] != first)
}

#[track_caller]
fn until_told_to_end(home: &Home) {
    until("the node was told to end", || home.events("term").first().cloned());
}

// ---- stopping -----------------------------------------------------------------------------------

#[test]
fn a_node_is_told_to_end_once_and_then_its_supervisor_leaves_with_0() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let status = visor.until_up();
    assert_eq!(home.nodes(), [pid(&status)]);
    assert_eq!(status["supervisor_pid"], visor.pid());
    assert_eq!((&status["release"], &status["restart_count"]), (&"genesis".into(), &0.into()));
    assert_eq!(status["health"]["healthy"], true);
    home.run(&["status"]).code(0);
    home.run(&["status", "--check"]).code(0);
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
    let status = home.run(&["status", "--json"]).code(3).json();
    assert_eq!((text(&status, "state"), text(&status, "uptime")), ("stopped".to_owned(), "0s".to_owned()));
    assert_eq!((&status["pid"], &status["supervisor_pid"]), (&0.into(), &0.into()));
    assert!(status["height"].as_u64().is_some(), "the last known head: {status}");
    assert!(!home.log().contains("UNCLEAN"));
}

#[test]
fn int_and_quit_are_a_gentle_stop_too_and_the_node_sees_neither() {
    for signal in [Signal::INT, Signal::QUIT] {
        let home = Home::new();
        let mut visor = home.supervise(&[], &[]);
        visor.until_up();
        visor.signal(signal);
        assert_eq!(visor.end(), 0);
        assert_eq!(kinds(&home), ["start", "term", "stop"]);
    }
}

#[test]
fn each_further_signal_to_stop_only_tells_what_is_waited_for() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=0"], &["--stop-time", "1h"]);
    let node = pid(&visor.until_up());
    visor.signal(Signal::TERM);
    until_told_to_end(&home);
    home.until_status("it is stopping", |s| s["state"] == "stopping");
    let waits = format!("waiting for the node (pid {node})");
    for (times, signal) in [(1, Signal::TERM), (2, Signal::INT), (3, Signal::QUIT), (4, Signal::TERM)] {
        visor.signal(signal);
        until("it tells what it waits for", || (home.logged(&waits) == times).then_some(()));
    }
    assert_eq!(home.run(&["status", "--json"]).code(0).json()["waits_for"], format!("the node (pid {node}) to end"));
    assert_eq!(kinds(&home), ["start", "term"]);
    assert!(lives(node));
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(visor.end(), 0);
}

#[test]
fn signals_of_the_terminal_and_of_pipes_change_nothing() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let node = pid(&visor.until_up());
    for signal in [Signal::TTOU, Signal::TTIN, Signal::PIPE, Signal::USR1] {
        visor.signal(signal);
    }
    // An answer to a question that is asked afterwards shows that the signals were survived.
    assert_eq!(pid(&home.status()), node);
    assert_eq!(pid(&home.status()), node);
    assert!(visor.lives());
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
}

#[test]
fn a_node_that_works_while_it_stops_is_waited_for_beyond_the_grace() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], &["--stop-time", "3s", "--stop-busy"]);
    visor.until_up();
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
    assert!(!home.log().contains("UNCLEAN"));
}

#[test]
fn a_node_that_writes_while_it_stops_is_waited_for_beyond_the_grace() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], &["--stop-time", "3s", "--stop-write"]);
    visor.until_up();
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
    assert!(!home.log().contains("UNCLEAN"));
}

#[test]
fn a_grace_of_0_waits_for_a_node_without_progress() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=0"], &["--stop-time", "2500ms"]);
    visor.until_up();
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
}

#[test]
fn a_stop_without_progress_ends_by_kill_after_the_grace_and_is_called_unclean() {
    for habits in [&["--stop-time", "1h"][..], &["--deaf", "--no-blocks"]] {
        let home = Home::new();
        let mut visor = home.supervise(&["--set", "shutdown_grace=1s"], habits);
        visor.until_up();
        visor.stop();
        assert_eq!(kinds(&home), ["start", "term"], "{habits:?}");
        assert_eq!(home.logged("UNCLEAN"), 1);
        assert!(home.until_log("UNCLEAN").contains("no progress"));
        assert_eq!(home.holders(), Vec::<u32>::new());
    }
}

#[test]
fn the_limit_ends_a_stop_whatever_its_progress() {
    let home = Home::new();
    let ours = ["--set", "shutdown_grace=1s", "--set", "shutdown_limit=2s"];
    let mut visor = home.supervise(&ours, &["--stop-time", "1h", "--stop-busy"]);
    visor.until_up();
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term"]);
    assert!(home.until_log("UNCLEAN").contains("did not end within 2 s"));
}

#[test]
fn stop_now_kills_at_once_and_says_so() {
    let home = Home::new();
    let ours = ["--set", "shutdown_grace=0", "--set", "shutdown_limit=10h"];
    let mut visor = home.supervise(&ours, &["--stop-time", "1h"]);
    visor.until_up();
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(visor.end(), 0);
    assert_eq!(home.nodes(), Vec::<u32>::new());
    assert_eq!(home.events("stop").len(), 0);
    assert!(home.log().contains("UNCLEAN"), "a KILL is called unclean, also when it was asked for");
}

#[test]
fn stop_now_ends_a_gentle_stop_under_way() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "shutdown_grace=0"], &["--stop-time", "1h"]);
    visor.until_up();
    visor.signal(Signal::TERM);
    until_told_to_end(&home);
    home.run(&["stop", "--now"]).code(0);
    assert_eq!(visor.end(), 0);
    assert_eq!(kinds(&home), ["start", "term"]);
}

#[test]
fn a_node_that_opens_its_database_can_be_stopped() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--slow-start", "1h"]);
    home.until_status("the node runs", |s| s["state"] == "running");
    until("the node began", || home.events("start").first().cloned());
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term"]);
}

#[test]
fn a_stop_while_the_node_is_being_started_ends_in_good_order() {
    let home = Home::new();
    // From the moment when its socket is there it hears signals.
    let socket = |home: &Home| home.own("control.sock").exists();
    let held = |home: &Home| !home.holders().is_empty();
    let began = |home: &Home| home.events("start").len() > home.events("term").len();
    type Moment = fn(&Home) -> bool;
    let moments: [(&str, Moment); 3] =
        [("its socket is there", socket), ("somebody has the data", held), ("the node began", began)];
    for (why, moment) in moments {
        let mut visor = home.supervise(&[], &[]);
        until(why, || moment(&home).then_some(()));
        visor.stop();
        assert_eq!(home.holders(), Vec::<u32>::new(), "{why}");
        assert_eq!(home.state(), "stopped", "{why}");
    }
    assert!(!home.log().contains("ERROR"), "{}", home.log());
}

// ---- settings -----------------------------------------------------------------------------------

#[test]
fn hup_reads_good_settings_and_a_bad_file_changes_nothing() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let before = visor.until_up();
    assert_eq!(before["network"], "mainnet");
    let file = home.own("config.toml");
    let good = fs::read_to_string(&file).unwrap() + "daemon_network = \"testnet\"\n";
    fs::write(&file, &good).unwrap();
    visor.signal(Signal::HUP);
    home.until_log("the settings were read again");
    assert_eq!(home.status()["network"], "testnet");
    // Asked for with settings of its own: the home's file will be broken.
    let sound = home.dir.join("sound.toml");
    fs::write(&sound, "daemon_name = \"node\"\n").unwrap();
    let status = || home.run(&["--config", sound.to_str().unwrap(), "status", "--json"]).code(0).json();
    // Each of these also says something good, which must not be taken by halves.
    for (bad, named) in [
        ("daemon_poll_interval = \"-3m\"", "DAEMON_POLL_INTERVAL"),
        ("daemon_no_such = 1", "daemon_no_such"),
        ("this is no toml", "config.toml"),
        ("daemon_name = \"other\"", "DAEMON_NAME"),
    ] {
        let text = good.replace("testnet", "devnet").replace("daemon_name = \"node\"", "");
        let name = if bad.contains("daemon_name") { "" } else { "daemon_name = \"node\"\n" };
        fs::write(&file, format!("{text}{name}{bad}\n")).unwrap();
        let told = home.logged("the settings stay as they were");
        visor.signal(Signal::HUP);
        until("it is refused", || (home.logged("the settings stay as they were") > told).then_some(()));
        let line = home.log().lines().rfind(|line| line.contains("the settings stay")).unwrap().to_owned();
        assert!(line.contains(named), "{line}");
        assert_eq!(status()["network"], "testnet", "{bad}");
    }
    assert_eq!(pid(&status()), pid(&before), "the node was left alone");
    fs::write(&file, &good).unwrap();
    visor.stop();
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
}

// ---- ends unasked -------------------------------------------------------------------------------

#[test]
fn a_command_that_ends_with_0_is_done_and_not_started_again() {
    let home = Home::new();
    for words in [&["version"][..], &["command-ok"], &["--help"]] {
        let mut visor = home.supervise_with(&[], words);
        assert_eq!(visor.end(), 0, "{words:?}");
    }
    let mut visor = home.supervise(&[], &["--exit-early"]);
    assert_eq!(visor.end(), 0);
    assert_eq!(home.events("start").len(), 1);
    assert_eq!(home.state(), "stopped");
    assert!(fs::read_to_string(home.dir.join("out")).unwrap().contains("Version: genesis-stable"));
}

#[test]
fn a_command_that_fails_is_a_crash() {
    let home = Home::new();
    let mut visor = home.supervise_with(&["--max-restarts", "1"], &["command-fail"]);
    assert_eq!(visor.end(), 5);
    assert!(text(&home.status(), "error").contains("exit status 3"));
}

#[test]
fn a_node_that_has_answered_and_ends_itself_with_0_has_crashed() {
    let home = Home::new();
    let mut visor = home.supervise(&["--max-restarts", "1"], &[]);
    let first = pid(&visor.until_up());
    kill(first, Signal::INT);
    let again = runs_again(&home, first);
    assert_eq!(again["restart_count"], 1);
    kill(pid(&again), Signal::INT);
    assert_eq!(visor.end(), 5);
    assert!(text(&home.status(), "error").contains("ended itself"), "{}", home.status());
    assert_eq!(kinds(&home), ["start", "sig", "stop", "start", "sig", "stop"]);
}

#[test]
fn a_node_that_crashes_is_started_again_with_growing_pauses_and_given_up_with_5() {
    let home = Home::new();
    let log = home.dir.join("node.log");
    let setting = format!("log_file={}", log.display());
    let ours = ["--max-restarts", "3", "--set", "restart_backoff=10ms", "--set", &setting];
    let mut visor = home.supervise(&ours, &["--die-at-start=7"]);
    assert_eq!(visor.end(), 5);
    assert_eq!(kinds(&home), ["start", "die"].repeat(4));
    for line in ["restart 1 of 3 in 10ms", "restart 2 of 3 in 20ms", "restart 3 of 3 in 40ms"] {
        assert_eq!(home.logged(line), 1, "{line}");
    }
    let status = home.run(&["status", "--json"]).code(3).json();
    assert_eq!(status["state"], "error");
    assert!(text(&status, "error").contains("exit status 7"), "{status}");
    assert_eq!(home.logged("did not help"), 1, "one error line");
    let last = home.log().lines().filter(|line| line.contains("last lines")).map(str::to_owned).collect::<Vec<_>>();
    assert!(last.iter().any(|line| line.contains("MOCK start")), "the node's last lines are shown: {last:?}");
    assert!(home.run(&["status"]).code(3).out.contains("exit status 7"), "people are told too");
}

#[test]
fn a_node_that_recovers_runs_on_and_its_restarts_are_counted() {
    let home = Home::new();
    home.release("genesis", "--die-at-start");
    let mut visor = home.supervise(&["--set", "restart_backoff=500ms"], &[]);
    let status = home.until_status("it has crashed", |s| s["state"] == "crashed" && s["restart_count"] == 1);
    assert!(text(&status, "waits_for").contains("restart"), "{status}");
    home.release("genesis", "");
    let restarts = visor.until_up()["restart_count"].as_u64().unwrap();
    assert_eq!(u64::try_from(home.events("start").len()).unwrap(), restarts + 1);
    assert_eq!(home.run(&["status", "--json"]).code(0).json()["state"], "running");
    visor.stop();
}

#[test]
fn a_crashed_node_that_waits_for_its_restart_can_be_stopped_at_once() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "restart_backoff=1h"], &["--die-at-start"]);
    home.until_status("it has crashed", |s| s["state"] == "crashed");
    home.run(&["status"]).code(3);
    visor.signal(Signal::TERM);
    assert_eq!(visor.end(), 0);
    assert_eq!(home.events("start").len(), 1);
    assert_eq!(home.run(&["status", "--json"]).code(3).json()["state"], "stopped");
}

#[test]
fn without_restarts_the_first_crash_is_the_end() {
    for ours in [&["--auto-restart=false"][..], &["--max-restarts", "0"]] {
        let home = Home::new();
        let mut visor = home.supervise(ours, &["--die-after", "200ms", "--die-by-signal", "SEGV"]);
        assert_eq!(visor.end(), 5, "{ours:?}");
        assert_eq!(kinds(&home), ["start", "die"]);
        let status = home.run(&["status", "--json"]).code(3).json();
        assert_eq!(status["state"], "error");
        assert!(text(&status, "error").contains("signal 11 (SEGV)"), "{status}");
    }
}

#[test]
fn a_node_that_another_one_killed_is_started_again() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let first = pid(&visor.until_up());
    kill(first, Signal::KILL);
    let again = runs_again(&home, first);
    assert_eq!(again["restart_count"], 1);
    assert!(home.until_log("ended by itself").contains("signal 9 (KILL)"));
    visor.stop();
    assert_eq!(kinds(&home), ["start", "start", "term", "stop"]);
}

#[test]
fn a_node_that_ends_while_it_is_told_to_is_no_crash() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--stop-time", "1h"]);
    let node = pid(&visor.until_up());
    visor.signal(Signal::TERM);
    until_told_to_end(&home);
    kill(node, Signal::KILL);
    assert_eq!(visor.end(), 0);
    assert_eq!(home.state(), "stopped");
    assert_eq!(home.events("start").len(), 1);
}

// ---- what is refused ----------------------------------------------------------------------------

#[test]
fn an_empty_data_directory_of_a_node_that_had_blocks_is_refused() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--start-head", "10"]);
    visor.until_up();
    visor.stop();
    fs::rename(home.datadir(), home.dir.join("elsewhere")).unwrap();
    let refused = |home: &Home| {
        let mut visor = home.supervise(&[], &[]);
        assert_eq!(visor.end(), 4);
        assert!(home.until_log("is empty").contains("not mounted"), "{}", home.log());
        let status = home.run(&["status", "--json"]).code(3).json();
        assert_eq!(status["state"], "error");
        assert!(text(&status, "error").contains("is empty"), "{status}");
        assert!(!home.datadir().join("geth").exists());
    };
    refused(&home);
    // An empty file system is as empty.
    fs::create_dir_all(home.datadir().join("lost+found")).unwrap();
    refused(&home);
    let args = home.node_args();
    let words: Vec<&str> = ["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let said = home.run(&words).code(4);
    assert!(said.err.contains("is empty"), "{said:?}");
    assert!(!home.datadir().join("geth").exists());
    let mut visor = home.supervise(&["--set", "allow_empty_data=true"], &[]);
    visor.until_up();
    visor.stop();
}

#[test]
fn a_release_or_link_that_cannot_be_run_is_refused_and_never_replaced_by_a_guess() {
    let home = Home::new();
    let link = home.own("current");
    let refused = |code: i32, part: &str| {
        for verb in ["run", "start"] {
            home.run(&[verb]).code(code).one_error(part);
        }
    };
    fs::remove_file(&link).unwrap();
    refused(4, "is missing");
    assert!(link.symlink_metadata().is_err(), "not repaired");
    std::os::unix::fs::symlink("upgrades/v9", &link).unwrap();
    refused(4, "dangles");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/usr", &link).unwrap();
    refused(4, "neither genesis nor");
    fs::remove_file(&link).unwrap();
    fs::write(&link, "genesis").unwrap();
    refused(4, "is not a link");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("genesis", &link).unwrap();
    let binary = home.own("genesis/bin/node");
    fs::rename(&binary, home.own("genesis/bin/other")).unwrap();
    refused(2, "is not there");
    fs::write(&binary, "neither ELF nor script").unwrap();
    refused(2, "is not executable");
    assert!(!home.own("lock").exists() || home.events("start").is_empty());
}

#[test]
fn a_directory_that_is_no_home_is_refused() {
    let home = Home::empty();
    home.run(&["run"]).code(2).one_error("is no directory");
    fs::create_dir(home.root()).unwrap();
    for verb in ["run", "start", "stop", "status"] {
        home.run(&[verb]).code(2).one_error("is no home");
    }
    assert_eq!(fs::read_dir(home.root()).unwrap().count(), 0, "nothing was made");
}

// ---- what is told -------------------------------------------------------------------------------

#[test]
fn version_tells_ours_and_the_releases_whether_it_runs_or_not() {
    let home = Home::new();
    let ours = format!("wemixvisor {}", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        assert_eq!(home.run(&[flag]).code(0).out.trim(), ours);
    }
    let said = home.run(&["version"]).code(0);
    assert!(said.out.starts_with(&ours) && said.out.contains("genesis-stable"), "{said:?}");
    let said = home.run(&["version", "--json"]).code(0).json();
    assert_eq!((&said["wemixvisor"], &said["release"]), (&env!("CARGO_PKG_VERSION").into(), &"genesis".into()));
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    let said = home.run(&["version", "--json"]).code(0).json();
    assert!(text(&said, "version").starts_with("Geth/vgenesis-stable"), "{said}");
    assert_eq!(home.events("start").len(), 1, "asking starts no node");
    visor.stop();
}

#[test]
fn a_supervisor_whose_log_is_not_read_goes_on() {
    let home = Home::new();
    let args = home.node_args();
    let mut words = vec!["--set", "log_file=/dev/null", "run"];
    words.extend(args.iter().map(String::as_str));
    let (read, write) = std::io::pipe().unwrap();
    let mut command = home.command(&words);
    command.env("RUST_LOG", "debug").stdout(std::process::Stdio::null()).stderr(write);
    let mut child = command.spawn().unwrap();
    drop(command);
    home.until_status("the node answers", |s| s["head_known"] == true);
    // Debug lines fill the pipe soon; a supervisor that waited for its reader would not answer any more.
    for _ in 0..300 {
        assert_eq!(home.status()["state"], "running");
    }
    home.run(&["stop"]).code(0);
    until("it ends", || child.try_wait().unwrap());
    drop(read);
    assert_eq!(kinds(&home), ["start", "term", "stop"]);
}
