//! Bad input: one clear line on stderr, an exit status of its own, and nothing is changed.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Said, said, under, until, wemixvisor};

/// Runs a command that must fail: one line that holds this text, this status, no answer, and a home as it was.
#[track_caller]
fn refused(home: &Home, args: &[&str], code: i32, part: &str) {
    let before = home.tree();
    let said = home.run(args);
    let shown = format!("{args:?}: {said:?}");
    assert_eq!(said.code, code, "{shown}");
    assert_eq!(said.out, "", "{shown}");
    assert_eq!(said.err.lines().count(), 1, "{shown}");
    assert!(said.err.starts_with("wemixvisor: ") && said.err.contains(part), "wanted {part:?} in {shown}");
    assert_eq!(home.tree(), before, "{args:?} changed the home");
}

const NEED_A_HOME: &[&[&str]] = &[
    &["run"],
    &["start"],
    &["stop"],
    &["restart"],
    &["status"],
    &["status", "--json"],
    &["upgrade", "list"],
    &["upgrade", "check"],
    &["upgrade", "schedule", "v2", "10"],
    &["upgrade", "cancel", "v2"],
    &["upgrade", "now", "v2"],
    &["upgrade", "revert"],
    &["plan", "list"],
    &["plan", "create", "b", "v2:10"],
    &["plan", "apply", "b"],
    &["plan", "validate", "b.csv"],
    &["backup", "list"],
    &["backup", "create"],
    &["backup", "restore", "v2-20260101-000000"],
    &["backup", "prune"],
];

#[test]
fn without_a_home_every_command_says_how_to_get_one() {
    let home = Home::empty();
    for args in NEED_A_HOME {
        refused(&home, args, 2, "init");
        assert!(!home.root().exists(), "{args:?} made the home");
    }
    fs::create_dir(home.root()).unwrap();
    for args in NEED_A_HOME {
        refused(&home, args, 2, "init");
    }
    fs::remove_dir(home.root()).unwrap();
    fs::write(home.root(), "a file").unwrap();
    for args in NEED_A_HOME {
        refused(&home, args, 2, "ot a directory");
    }
    refused(&home, &["init"], 2, "ot a directory");
}

#[test]
fn a_home_that_is_no_absolute_path_is_refused_with_its_origin() {
    let home = Home::new();
    for value in ["home", "./home", "../home", "~/home", "-"] {
        refused(&home, &["--home", value, "run"], 2, "absolute path");
        refused(&home, &["--home", value, "init"], 2, "--home");
        let mut command = home.command(&["status"]);
        command.env("DAEMON_HOME", value);
        said(command).code(2).one_error("variable DAEMON_HOME");
    }
    let mut command = home.command(&["status"]);
    command.env_remove("DAEMON_HOME").env_remove("HOME");
    said(command).code(2).one_error("DAEMON_HOME");
    let mut command = home.command(&["status"]);
    command.env("DAEMON_HOME", "").env_remove("HOME");
    said(command).code(2).one_error("DAEMON_HOME");
    use std::os::unix::ffi::OsStrExt;
    let mut command = home.command(&["status"]);
    command.env("DAEMON_HOME", std::ffi::OsStr::from_bytes(b"/tmp/\xff"));
    said(command).code(2).one_error("UTF-8");
}

#[test]
fn a_genesis_release_that_cannot_run_is_named_with_its_reason() {
    let home = Home::new();
    let binary = home.own("genesis/bin/node");
    let good = home.dir.join("good");
    fs::rename(&binary, &good).unwrap();
    let all = |part: &str| {
        for verb in ["run", "start", "restart"] {
            refused(&home, &[verb], 2, part);
        }
    };
    all("is not there");
    fs::create_dir(&binary).unwrap();
    all("is a directory");
    fs::remove_dir(&binary).unwrap();
    // Copies: the good one is a link to a file that others execute.
    let copy = || {
        let mut copy = Command::new("cp");
        assert!(copy.arg(&good).arg(&binary).status().unwrap().success());
    };
    copy();
    fs::set_permissions(&binary, Permissions::from_mode(0o644)).unwrap();
    all("not executable");
    let whole = fs::read(&good).unwrap();
    let mut other = whole.clone();
    other[18] = 243;
    fs::write(&binary, other).unwrap();
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    all("another machine");
    fs::write(&binary, &whole[..40]).unwrap();
    all("cut short");
    fs::write(&binary, "hello\n").unwrap();
    all("neither");
    fs::write(&binary, "").unwrap();
    all("neither");
    fs::remove_file(&binary).unwrap();
    symlink("/nowhere", &binary).unwrap();
    all("is not there");
    let fifo = home.own("genesis/bin/fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::remove_file(&binary).unwrap();
    fs::rename(&fifo, &binary).unwrap();
    all("not a regular file");
}

#[test]
fn a_current_that_points_nowhere_is_told_and_never_replaced_by_genesis() {
    let home = Home::new();
    let current = home.own("current");
    let all = |part: &str| {
        for verb in ["run", "start", "restart"] {
            refused(&home, &[verb], 4, part);
        }
        // What only tells must work all the same.
        let status = home.run(&["status"]);
        assert_eq!((status.code, status.err.as_str()), (3, ""), "{status:?}");
    };
    fs::remove_file(&current).unwrap();
    all("is missing");
    symlink("upgrades/v9", &current).unwrap();
    all("dangles");
    fs::remove_file(&current).unwrap();
    let outside = home.dir.join("outside/bin");
    fs::create_dir_all(&outside).unwrap();
    symlink("../../outside", &current).unwrap();
    all("neither genesis nor upgrades");
    fs::remove_file(&current).unwrap();
    symlink(home.dir.join("outside"), &current).unwrap();
    all("neither genesis nor upgrades");
    fs::remove_file(&current).unwrap();
    symlink("upgrades/../../../outside", &current).unwrap();
    all("neither genesis nor upgrades");
    fs::remove_file(&current).unwrap();
    fs::write(&current, "genesis").unwrap();
    all("is not a link");
    fs::remove_file(&current).unwrap();
    fs::create_dir(&current).unwrap();
    all("is not a link");
}

#[test]
fn a_current_that_breaks_while_the_node_runs_is_told_once_and_the_node_runs_on() {
    let home = Home::new();
    let mut visor = home.supervise(&["--set", "poll_interval=20ms"], &[]);
    visor.until_up();
    fs::remove_file(home.own("current")).unwrap();
    home.until_log("is missing");
    home.plan("v9", 1_000_000);
    home.until_status("the plan is seen", |s| s["plans"][0]["name"] == "v9");
    assert_eq!(home.logged("is missing"), 1);
    assert_eq!(home.state(), "running");
    symlink("genesis", home.own("current")).unwrap();
    home.plan("v10", 2_000_000);
    home.until_status("the next plan is seen", |s| s["plans"][1]["name"] == "v10");
    assert_eq!(home.started(), ["genesis"]);
    visor.stop();
}

#[test]
fn what_is_mistyped_is_refused_naming_the_nearest_known_word() {
    let home = Home::new();
    for (args, part) in [
        (&["--hom", "/x", "status"][..], "--home"),
        (&["--quite", "status"], "--quiet"),
        (&["stats"], "status"),
        (&["upgrade", "shedule", "v2", "10"], "schedule"),
        (&["confg", "show"], "config"),
        (&["--set", "pol_interval=1s", "status"], "poll_interval"),
        (&["--set", "poll_interval", "status"], "KEY=VALUE"),
        (&["stop", "--nwo"], "--now"),
        (&["status", "--chek"], "--check"),
        (&["status", "extra"], "extra"),
        (&["upgrade", "cancel"], "NAME"),
        (&["upgrade"], "schedule"),
        (&["start", "--max-restart", "10", "--", "--datadir", "D"], "--max-restarts"),
        (&["restart", "--nmae", "x", "--", "--datadir", "D"], "--name"),
        (&["start", "word", "--", "--datadir", "D"], "before `--`"),
        (&["--max-restarts", "status"], "no command"),
        (&["--json=yes", "status"], "--json"),
    ] {
        refused(&home, args, 2, part);
    }
}

#[test]
fn values_that_cannot_be_are_refused_and_named() {
    let home = Home::new();
    for (args, part) in [
        (&["upgrade", "schedule", "v2", "0"][..], "0"),
        (&["upgrade", "schedule", "v2", "-1"], "-1"),
        (&["upgrade", "schedule", "v2", "1.5"], "1.5"),
        (&["upgrade", "schedule", "v2", "abc"], "abc"),
        (&["upgrade", "schedule", "v2", "9223372036854775808"], "9223372036854775807"),
        (&["upgrade", "schedule", "../x", "10"], "no name"),
        (&["upgrade", "schedule", ".", "10"], "no name"),
        (&["upgrade", "schedule", "", "10"], "no name"),
        (&["upgrade", "schedule", "genesis", "10"], "genesis"),
        (&["upgrade", "schedule", "v2/../../x", "10"], "no name"),
        (&["upgrade", "now", "a b"], "no name"),
        (&["upgrade", "revert", "--to", "/bin"], "no name"),
        (&["upgrade", "add", "v2", "/nowhere/node"], "/nowhere/node"),
        (&["upgrade", "add", "v2", "/etc/passwd"], "neither"),
        (&["upgrade", "add", "v2", "/tmp"], "directory"),
        (&["upgrade", "schedule", "v2", "10", "--checksum", "sha256:00"], "--url"),
        (&["upgrade", "schedule", "v2", "10", "--url", "https://example.com/x"], "checksum"),
        (&["init", "/nowhere/node"], "/nowhere/node"),
        (&["init", "/etc/passwd"], "neither"),
        (&["config", "validate", "/nowhere.toml"], "/nowhere.toml"),
    ] {
        refused(&home, args, 2, part);
    }
    let long = "x".repeat(300);
    refused(&home, &["upgrade", "schedule", &long, "10"], 2, "no name");
}

#[test]
fn all_wrong_settings_are_told_at_once_with_value_origin_and_what_is_allowed() {
    let home = Home::new();
    let file = home.own("config.toml");
    fs::write(
        &file,
        "daemon_poll_interval = \"600\"\ndaemon_shutdown_grace = \"-3m\"\nno_such_key = 1\ndaemon_backup_mode = 7\n",
    )
    .unwrap();
    for verb in [&["run"][..], &["start"], &["status"], &["stop"], &["config", "show"], &["upgrade", "list"]] {
        let before = home.tree();
        let mut command = home.command(&[&["--max-restarts", "many", "--set", "trial_blocks=-1"], verb].concat());
        command.env("DAEMON_RESTART_DELAY", "600").env("UNSAFE_SKIP_BACKUP", "maybe");
        command.env("DAEMON_RPC_ADDRESS", "nonsense").env("DAEMON_UPGRADE_TRIGGER", "now");
        let said = said(command).code(2);
        assert_eq!(said.out, "");
        assert_eq!(home.tree(), before, "{verb:?} changed the home");
        let wanted = [
            ("poll_interval", "600", "config.toml"),
            ("shutdown_grace", "-3m", "config.toml"),
            ("no_such_key", "", "config.toml"),
            ("backup_mode", "7", "config.toml"),
            ("max_restarts", "many", "--max-restarts"),
            ("trial_blocks", "-1", "--set"),
            ("restart_delay", "600", "variable DAEMON_RESTART_DELAY"),
            ("skip_backup", "maybe", "variable UNSAFE_SKIP_BACKUP"),
            ("rpc_address", "nonsense", "variable DAEMON_RPC_ADDRESS"),
            ("upgrade_trigger", "now", "variable DAEMON_UPGRADE_TRIGGER"),
        ];
        let lines: Vec<&str> = said.err.lines().collect();
        assert_eq!(lines.len(), wanted.len(), "{verb:?}: {}", said.err);
        for (setting, value, origin) in wanted {
            let tells = |line: &&str| {
                line.starts_with("wemixvisor: ")
                    && line.to_ascii_lowercase().contains(setting)
                    && line.contains(value)
                    && line.contains(origin)
            };
            assert_eq!(lines.iter().filter(|l| tells(l)).count(), 1, "{setting} {value} {origin}: {}", said.err);
        }
    }
    // Help and version work when all else is broken.
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["upgrade", "-h"]] {
        if args[0] != "run" {
            home.run(args).code(0);
        }
    }
}

#[test]
fn settings_that_must_not_be_are_refused_one_by_one() {
    let home = Home::new();
    for (setting, value) in [
        ("poll_interval", "0"),
        ("poll_interval", "bad"),
        ("poll_interval", "600"),
        ("poll_interval", "-3m"),
        ("restart_delay", "bad"),
        ("restart_delay", "-3m"),
        ("restart_after_upgrade", "bad"),
        ("unsafe_skip_backup", "1"),
        ("preupgrade_max_retries", "bad"),
        ("cosmovisor_color_logs", "bad"),
        ("cosmovisor_disable_logs", "bad"),
        ("daemon_name", "a/b"),
        ("daemon_name", ".."),
        ("daemon_network", "a\nb"),
        ("max_restarts", "-1"),
        ("max_restarts", "99999999999999999999"),
        ("log_max_size", "12"),
        ("log_max_size", "1XB"),
        ("data_dir", "relative"),
        ("rpc_address", "localhost"),
        ("rpc_address", "localhost:99999"),
        ("rpc_address", "localhost:0"),
        ("rpc_address", "ftp://localhost:1"),
        ("rpc_address", "http://"),
        ("rpc_address", "a b:1"),
        ("rpc_address", "localhost:8545,,localhost:8546"),
        ("rpc_address", "relative/geth.ipc"),
        ("shutdown_limit", "999999999999999999999h"),
    ] {
        refused(&home, &["--set", &format!("{setting}={value}"), "run"], 2, setting.trim_start_matches("daemon_"));
    }
}

#[test]
fn a_config_file_that_cannot_be_read_is_named() {
    let home = Home::new();
    refused(&home, &["--config", "/nowhere.toml", "run"], 2, "/nowhere.toml");
    refused(&home, &["--config", "/tmp", "run"], 2, "/tmp");
    for text in ["a = ", "poll_interval 5s", "\u{0}", "poll_interval = 5s", "node_args = \"x\"", "[section]\nx = 1\n"] {
        fs::write(home.own("config.toml"), text).unwrap();
        refused(&home, &["run"], 2, "config.toml");
    }
    fs::write(home.own("config.toml"), b"\xff\xfe").unwrap();
    refused(&home, &["run"], 2, "config.toml");
}

#[test]
fn a_journal_that_cannot_be_understood_starts_nothing() {
    let home = Home::new();
    for text in ["", "{", "{}", "not json", "[]"] {
        fs::write(home.own("journal.json"), text).unwrap();
        let mut visor = home.supervise(&[], &[]);
        assert_eq!(visor.end(), 4, "{text:?}");
        assert_eq!(fs::read_to_string(home.own("journal.json")).unwrap(), text);
    }
    assert_eq!(home.started(), Vec::<String>::new());
    assert_eq!(home.current(), "genesis");
    assert!(home.log().contains("journal.json"));
}

#[test]
fn state_and_history_that_are_garbage_cost_nothing() {
    let home = Home::new();
    fs::write(home.own("state.json"), "{\"head\":").unwrap();
    fs::write(home.own("history.jsonl"), "garbage\n\n{\"id\":1}\n").unwrap();
    fs::write(home.own("data.lock"), "garbage").unwrap();
    fs::write(home.own("lock"), "garbage").unwrap();
    fs::write(home.own("control.sock"), "no socket").unwrap();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    visor.stop();
}

/// A good request.
const STATUS: &[u8] = b"\"status\"\n";

/// Opens the control socket.
fn client(home: &Home) -> UnixStream {
    let stream = until("the supervisor listens", || UnixStream::connect(home.own("control.sock")).ok());
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// The reply to these bytes; none when the supervisor only closed the connection.
fn reply(home: &Home, request: &[u8]) -> Option<Value> {
    let mut stream = client(home);
    // The other side may answer and close before it has read all.
    let _ = stream.write_all(request);
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
}

#[test]
fn garbage_at_the_control_socket_is_answered_as_wrong_usage_and_changes_nothing() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    let pid = home.status()["pid"].clone();
    let huge = [vec![b'x'; 64 << 10], b"\n".to_vec()].concat();
    let requests: &[&[u8]] = &[
        b"\n",
        b"hello\n",
        b"\x00\xff\xfe\x80\n",
        b"{\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\"nothing\"\n",
        b"{\"stop\":{}}\n",
        b"{\"stop\":{\"now\":7}}\n",
        b"{\"now\":{\"name\":\"../x\",\"release\":\"v2\"}}\n",
        b"{\"revert\":{\"to\":\"../../bin\"}}\n",
        &huge,
    ];
    for request in requests {
        let answer = reply(&home, request).unwrap_or_else(|| panic!("no reply to {}", request.escape_ascii()));
        assert_eq!(answer["code"], 2, "{}: {answer}", request.escape_ascii());
        assert_eq!(answer["error"].as_str().unwrap().lines().count(), 1);
    }
    // Without an end: it is read up to its limit and no further.
    let _ = reply(&home, &vec![b'x'; 1 << 20]);
    let deep = [vec![b'['; 60_000], b"\n".to_vec()].concat();
    assert_eq!(reply(&home, &deep).unwrap()["code"], 2);
    let status = home.status();
    assert_eq!((status["state"].as_str(), &status["pid"]), (Some("running"), &pid));
    visor.stop();
}

#[test]
fn half_a_request_holds_nobody_up() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    let mut half: Vec<UnixStream> = (0..8).map(|_| client(&home)).collect();
    for stream in &mut half {
        stream.write_all(&STATUS[..3]).unwrap();
    }
    assert_eq!(home.state(), "running");
    half[0].write_all(&STATUS[3..]).unwrap();
    let mut line = String::new();
    BufReader::new(&half[0]).read_line(&mut line).unwrap();
    assert!(line.contains("\"running\""), "{line}");
    // Who never goes on is let go of.
    let mut rest = Vec::new();
    half[1].read_to_end(&mut rest).unwrap();
    visor.stop();
}

#[test]
fn a_thousand_clients_are_all_answered() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    // Frozen until all have asked: it meets the thousand at once, and nobody who has not spoken yet.
    visor.signal(Signal::STOP);
    let mut clients: Vec<UnixStream> = (0..1000).map(|_| client(&home)).collect();
    for stream in &mut clients {
        stream.write_all(STATUS).unwrap();
    }
    visor.signal(Signal::CONT);
    let mut answered = 0;
    for stream in clients {
        let mut line = String::new();
        if BufReader::new(stream).read_line(&mut line).is_ok() && line.contains("\"state\":\"running\"") {
            answered += 1;
        }
    }
    assert_eq!(answered, 1000);
    assert_eq!(home.state(), "running");
    visor.stop();
}

#[test]
fn a_thousand_clients_that_say_nothing_keep_nobody_from_being_answered() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    let silent: Vec<UnixStream> = (0..1000).map(|_| client(&home)).collect();
    assert_eq!(home.state(), "running");
    home.run(&["upgrade", "list"]).code(0);
    home.run(&["stop"]).code(0);
    assert_eq!(visor.end(), 0);
    drop(silent);
}

#[test]
fn a_client_that_does_not_take_its_answer_holds_nobody_up() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    let mut deaf: Vec<UnixStream> = (0..10).map(|_| client(&home)).collect();
    for stream in &mut deaf {
        stream.write_all(STATUS).unwrap();
    }
    // Gone without having read.
    let gone: Vec<UnixStream> = (0..10).map(|_| client(&home)).collect();
    for mut stream in gone {
        let _ = stream.write_all(STATUS);
    }
    assert_eq!(home.state(), "running");
    visor.stop();
}

/// Runs a shell line around our command, which is `"$@"` in it.
fn shell(home: &Home, line: &str, args: &[&str]) -> Said {
    said(under(&["sh", "-c", line, "sh"], &home.command(args)))
}

#[test]
fn an_answer_that_nobody_reads_is_no_failure_and_no_panic() {
    let home = Home::new();
    home.plan("v2", 1000);
    for (args, code) in [
        (&["--help"][..], 0),
        (&["config", "show"], 0),
        (&["status", "--json"], 3),
        (&["upgrade", "list"], 0),
        (&["init"], 0),
    ] {
        for line in ["\"$@\" >&-", "{ \"$@\"; echo $? >code; } | true; exit $(cat code)"] {
            let said = shell(&home, line, args);
            assert!(!said.err.contains("panicked"), "{line} {args:?}: {said:?}");
            assert_eq!(said.code, code, "{line} {args:?}: {said:?}");
        }
        let full = shell(&home, "\"$@\" >/dev/full", args);
        assert_eq!(full.code, 1, "{args:?}: {full:?}");
        full.one_error("cannot write the answer");
        // Nor where its errors go.
        let said = shell(&home, "\"$@\" >&- 2>&-", args);
        assert_eq!(said.code, code, "{args:?}");
    }
}

#[test]
fn a_supervisor_whose_output_nobody_reads_goes_on() {
    let home = Home::new();
    let args = home.node_args();
    // The node itself, as any Go program, would die of SIGPIPE: its output goes to a file.
    let ours = ["--set", "log_file=$DAEMON_HOME/logs/node.log", "run"];
    let words: Vec<&str> = ours.into_iter().chain(args.iter().map(String::as_str)).collect();
    for line in ["exec \"$0\" \"$@\" >&- 2>&- <&-", "exec \"$0\" \"$@\""] {
        let mut shell = Command::new("sh");
        shell.args(["-c", line, wemixvisor()]).args(&words).env("DAEMON_HOME", home.root());
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The readers are gone at once.
        drop((child.stdout.take(), child.stderr.take()));
        home.until_status("the node answers", |s| s["state"] == "running" && s["head_known"] == true);
        home.run(&["stop"]).code(0);
        let status = until("it ends", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
    assert_eq!(home.started().len(), 2, "nothing died and was started again");
}

#[test]
fn a_read_only_home_is_told_in_one_line_and_can_still_be_looked_at() {
    let home = Home::new();
    // In a mount namespace of its own: nothing is left behind, whoever is killed.
    let line = "mount --bind \"$DAEMON_HOME\" \"$DAEMON_HOME\" && mount -o remount,ro,bind \"$DAEMON_HOME\" || exit 99; exec \"$@\"";
    let inside = |args: &[&str]| {
        let mut command = under(&["unshare", "-m", "sh", "-c", line, "sh"], &home.command(args));
        command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        said(command)
    };
    let trial = inside(&["--version"]);
    if trial.code != 0 {
        eprintln!("skipped: no read-only mount can be made here: {}", trial.err);
        return;
    }
    let before = home.tree();
    let binary = home.own("genesis/bin/node");
    let binary = binary.to_str().unwrap();
    for args in [
        &["run", "--datadir", "/nowhere"][..],
        &["start", "--", "--datadir", "/nowhere"],
        &["upgrade", "schedule", "v2", "100"],
        &["upgrade", "add", "v2", binary],
    ] {
        inside(args).code(1).one_error("Read-only file system");
    }
    assert_eq!(inside(&["status"]).code, 3);
    inside(&["upgrade", "list"]).code(0);
    inside(&["config", "show"]).code(0);
    inside(&["stop"]).code(0);
    assert_eq!(home.tree(), before);
}

#[test]
fn a_data_directory_that_lost_its_content_is_not_started_on() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    home.until_status("a block was made", |s| s["head_known"] == true && s["height"].as_u64() > Some(0));
    visor.stop();
    let kept = home.dir.join("kept");
    fs::rename(home.datadir(), &kept).unwrap();
    let started = |home: &Home| home.datadir().join("mock.journal").exists();
    // Not there, empty, and as a fresh file system is.
    for step in ["none", "empty", "lost+found"] {
        match step {
            "none" => {}
            "empty" => fs::create_dir(home.datadir()).unwrap(),
            _ => fs::create_dir(home.datadir().join("lost+found")).unwrap(),
        }
        let told = home.logged("not mounted");
        let mut visor = home.supervise(&[], &[]);
        assert_eq!(visor.end(), 4, "{step}");
        assert_eq!(home.logged("not mounted"), told + 1, "{step}: told once");
        assert!(!started(&home), "{step}: the node was started");
        let status = home.run(&["status"]);
        assert!(status.code == 3 && status.out.contains("not mounted"), "{step}: {status:?}");
        let args = home.node_args();
        let words: Vec<&str> = ["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let said = home.run(&words).code(4);
        said.one_error("not mounted");
    }
    // Mounted again.
    fs::remove_dir_all(home.datadir()).unwrap();
    fs::rename(&kept, home.datadir()).unwrap();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    visor.stop();
    fs::remove_dir_all(home.datadir()).unwrap();
    let mut visor = home.supervise(&["--set", "allow_empty_data=true"], &[]);
    visor.until_up();
    visor.stop();
}

#[test]
fn a_home_with_a_path_longer_than_a_socket_address_works() {
    let outer = Home::empty();
    let mut home = Home::empty();
    home.dir = outer.dir.join("x".repeat(100)).join("with a space and ü");
    fs::create_dir_all(&home.dir).unwrap();
    assert!(home.own("control.sock").as_os_str().len() > 107);
    let node = home.dir.join("node");
    fs::hard_link(outer_node(), &node).or_else(|_| fs::copy(outer_node(), &node).map(|_| ())).unwrap();
    home.run(&["init", node.to_str().unwrap()]).code(0);
    let mut visor = home.supervise(&[], &["--halt-at", "9"]);
    home.until_status("it stands at 9", |s| s["height"] == 9 && s["head_known"] == true);
    home.release("v2", "--halt-at 1000000");
    home.run(&["upgrade", "schedule", "v2", "10"]).code(0);
    home.until_finished("v2", "committed");
    home.run(&["stop"]).code(0);
    assert_eq!(visor.end(), 0);
    let args = home.node_args();
    let words: Vec<&str> = ["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
    home.run(&words).code(0);
    home.run(&["restart"]).code(0);
    home.run(&["stop"]).code(0);
}

fn outer_node() -> &'static Path {
    crate::support::mocknode()
}

#[test]
fn standard_input_is_never_read_by_a_command() {
    let home = Home::new();
    let mut command = home.command(&["status"]);
    // A writer that never writes and never goes: who reads, waits for ever.
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdin(reader);
    assert_eq!(said(command).code, 3);
    drop(writer);
}
