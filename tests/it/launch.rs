//! What a node is given: arguments, environment, stdin, session, signals; and a supervisor that was itself given bad ones.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{Home, said, under, until};

/// A home whose genesis release is this script.
fn scripted(script: &str) -> Home {
    let home = Home::new();
    home.script("genesis", script);
    home
}

/// A home whose node writes its arguments down, one a line in brackets, and is done.
fn listing() -> Home {
    scripted("for word; do echo \"[$word]\"; done > args")
}

#[track_caller]
fn given(home: &Home, line: &[&str]) -> Vec<String> {
    home.run(line).code(0);
    let text = fs::read_to_string(home.dir.join("args")).unwrap();
    text.lines().map(|line| line[1..line.len() - 1].to_owned()).collect()
}

fn append(home: &Home, text: &str) {
    File::options().append(true).open(home.own("config.toml")).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn everything_behind_run_is_the_nodes_but_for_one_double_dash() {
    let home = listing();
    let rows: &[(&[&str], &[&str])] = &[
        (&[], &[]),
        (&["start"], &["start"]),
        (&["start", "--x"], &["start", "--x"]),
        (&["--", "--x"], &["--x"]),
        (&["--", "--", "x"], &["--", "x"]),
        (&["x", "--", "y"], &["x", "--", "y"]),
        (&["--"], &[]),
        (&["--home", "/n", "--help", "-V", "--json"], &["--home", "/n", "--help", "-V", "--json"]),
        (&["a b", "", "ä", "$HOME", "*"], &["a b", "", "ä", "$HOME", "*"]),
    ];
    for (typed, expected) in rows {
        let line: Vec<&str> = ["--quiet", "run"].into_iter().chain(typed.iter().copied()).collect();
        assert_eq!(given(&home, &line), *expected, "{typed:?}");
    }
}

#[test]
fn arguments_of_the_configuration_count_when_none_are_typed() {
    let home = listing();
    append(&home, "node_args = [\"--from\", \"the file\"]\n");
    assert_eq!(given(&home, &["run"]), ["--from", "the file"]);
    assert_eq!(given(&home, &["run", "--"]), ["--from", "the file"]);
    assert_eq!(given(&home, &["run", "--typed"]), ["--typed"]);
}

#[test]
fn a_releases_own_arguments_replace_the_given_ones_or_take_them_in() {
    let home = listing();
    fs::write(home.own("genesis/node-args"), "--first\n%{args}\n--a b\n").unwrap();
    assert_eq!(given(&home, &["run", "x", "y z"]), ["--first", "x", "y z", "--a b"]);
    assert_eq!(given(&home, &["run"]), ["--first", "--a b"]);
    fs::write(home.own("genesis/node-args"), "--only\r\n").unwrap();
    assert_eq!(given(&home, &["run", "x"]), ["--only"]);
    append(&home, "node_args = [\"--from\"]\n");
    fs::write(home.own("genesis/node-args"), "%{args}\n--more\n").unwrap();
    assert_eq!(given(&home, &["run"]), ["--from", "--more"]);
}

#[test]
fn the_environment_is_ours_without_what_speaks_of_the_supervisor() {
    let home = scripted("env > env; pwd > cwd");
    let mut command = home.command(&["run"]);
    let hidden = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    for name in hidden {
        command.env(name, "1");
    }
    command.env("KEPT", "as it is").env("DAEMON_NETWORK", "label");
    said(command).code(0);
    let env = fs::read_to_string(home.dir.join("env")).unwrap();
    for name in hidden {
        assert!(!env.contains(name), "{name} was handed on: {env}");
    }
    for line in ["KEPT=as it is", "DAEMON_NETWORK=label", &format!("DAEMON_HOME={}", home.root().display())] {
        assert!(env.lines().any(|l| l == line), "{line} is missing: {env}");
    }
    assert_eq!(fs::read_to_string(home.dir.join("cwd")).unwrap().trim(), home.dir.to_str().unwrap());
}

#[test]
fn run_hands_its_stdin_on() {
    let home = scripted("cat > heard");
    let mut child = home.command(&["run"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let status = until("it ends", || child.try_wait().unwrap());
    assert!(status.success());
    assert_eq!(fs::read_to_string(home.dir.join("heard")).unwrap(), "through\n");
}

#[test]
fn a_node_leads_a_session_of_its_own_and_holds_the_data_lock() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    let node = u32::try_from(visor.until_up()["pid"].as_u64().unwrap()).unwrap();
    let stat = fs::read_to_string(format!("/proc/{node}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let me = node.to_string();
    assert_eq!((fields[1], fields[2], fields[3]), (visor.pid().to_string().as_str(), me.as_str(), me.as_str()));
    assert_eq!(home.holders(), [node]);
    // Of ours it has nothing but that lock.
    for fd in fs::read_dir(format!("/proc/{node}/fd")).unwrap().flatten() {
        let to = fs::read_link(fd.path()).unwrap_or_default();
        let ours = to.starts_with(home.own("")) && to != home.own("data.lock");
        assert!(!ours, "{} was handed on", to.display());
    }
    visor.stop();
    assert_eq!(home.holders(), Vec::<u32>::new());
}

#[test]
fn signals_that_were_ignored_before_us_are_not_ignored_by_supervisor_and_node() {
    const LIST: &str = "--ignore-signal=HUP,INT,QUIT,TERM,USR1,USR2,PIPE,CHLD,ALRM,TSTP,TTIN,TTOU";
    let home = scripted("exec grep SigIgn /proc/self/status > ignored");
    said(under(&["env", LIST], &home.command(&["run"]))).code(0);
    let text = fs::read_to_string(home.dir.join("ignored")).unwrap();
    let mask = u64::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap();
    let ignored: Vec<u32> = (1..32).filter(|signal| mask >> (signal - 1) & 1 == 1).collect();
    assert_eq!(ignored, Vec::<u32>::new(), "{text}");
    // The control: without us they are ignored.
    let mut grep = Command::new("grep");
    grep.args(["SigIgn", "/proc/self/status"]).env("PATH", "/usr/bin:/bin");
    let control = said(under(&["env", LIST], &grep));
    assert_ne!(control.out.split_whitespace().nth(1), Some("0000000000000000"));

    let home = Home::new();
    let args = home.node_args();
    let words: Vec<&str> = std::iter::once("run").chain(args.iter().map(String::as_str)).collect();
    let mut visor = home.spawn(under(&["env", LIST], &home.command(&words)));
    visor.until_up();
    visor.signal(Signal::HUP);
    home.until_log("the settings were read again");
    visor.stop();
    assert_eq!(home.events("term").len(), 1);
    assert_eq!(home.events("stop").len(), 1);
}

#[test]
fn a_supervisor_started_with_a_blocked_signal_refuses_to_run() {
    let home = Home::new();
    let args = home.node_args();
    for signal in ["TERM", "INT", "HUP", "CHLD"] {
        for verb in [&["run"][..], &["start", "--"]] {
            let words: Vec<&str> = verb.iter().copied().chain(args.iter().map(String::as_str)).collect();
            let blocked = format!("--block-signal={signal}");
            let said = said(under(&["env", &blocked], &home.command(&words))).code(2);
            let line = said.err.lines().find(|line| line.starts_with("wemixvisor: ")).unwrap_or_default();
            assert!(line.contains(&format!("SIG{signal} is blocked")), "{verb:?}: {said:?}");
        }
    }
    assert_eq!(home.events("start").len(), 0);
}
