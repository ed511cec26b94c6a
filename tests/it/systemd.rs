//! Under a service manager: what it is told and when, that nobody else is told of it, and the unit that is printed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Home, Said, Visor, said, take_env, until, wemixvisor};

/// A service manager: the socket that it reads, and what was heard, each word with its time.
struct Manager {
    socket: UnixDatagram,
    address: OsString,
    heard: Vec<(Instant, String)>,
}

impl Manager {
    fn at(home: &Home) -> Manager {
        let path = home.dir.join("notify");
        Manager { socket: UnixDatagram::bind(&path).unwrap(), address: path.into(), heard: Vec::new() }.quick()
    }

    fn abstract_name(home: &Home) -> Manager {
        let name = format!("wv-notify{}", home.dir.display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Manager { socket, address: format!("@{name}").into(), heard: Vec::new() }.quick()
    }

    fn quick(self) -> Manager {
        self.socket.set_nonblocking(true).unwrap();
        self
    }

    /// Starts a supervisor for a mock node under it.
    fn supervise<'a>(&self, home: &'a Home, ours: &[&str], node: &[&str]) -> Visor<'a> {
        self.supervise_with(home, ours, node, &[])
    }

    /// The same with more in the environment.
    fn supervise_with<'a>(&self, home: &'a Home, ours: &[&str], node: &[&str], env: &[(&str, &str)]) -> Visor<'a> {
        let quick = ["trial_time=300ms", "trial_blocks=3", "restart_backoff=50ms", "height_poll_interval=200ms"];
        let mut command = home.command(&[]);
        command.args(quick.iter().chain(ours).flat_map(|setting| ["--set", *setting])).arg("run");
        command.args(home.node_args()).args(node).env("NOTIFY_SOCKET", &self.address).envs(env.iter().copied());
        home.spawn(command)
    }

    /// All words so far.
    fn words(&mut self) -> Vec<String> {
        let mut bytes = [0; 8192];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[..length]).unwrap();
            self.heard.extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
        }
        self.heard.iter().map(|(_, word)| word.clone()).collect()
    }

    fn count(&mut self, word: &str) -> usize {
        self.words().iter().filter(|heard| *heard == word).count()
    }

    /// Waits for a word that begins like this.
    #[track_caller]
    fn until(&mut self, word: &str) -> String {
        until(&format!("{word:?} is said"), || self.words().into_iter().find(|heard| heard.starts_with(word)))
    }

    /// When each word was heard that begins like this.
    fn times(&mut self, word: &str) -> Vec<Instant> {
        self.words();
        self.heard.iter().filter(|(_, heard)| heard.starts_with(word)).map(|(at, _)| *at).collect()
    }
}

#[test]
fn a_start_is_told_when_the_node_has_lived_for_a_second_and_a_stop_when_it_begins() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise(&home, &["shutdown_grace=0"], &["--stop-time", "1s"]);
    manager.until("STATUS=starting");
    let words = manager.words();
    assert!(words.iter().any(|word| word.starts_with("EXTEND_TIMEOUT_USEC=")), "{words:?}");
    home.until_log("the node runs");
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.words());
    manager.until("READY=1");
    manager.until("STATUS=running, block ");
    let extended = manager.times("EXTEND_TIMEOUT_USEC=").len();
    visor.signal(Signal::TERM);
    manager.until("STOPPING=1");
    assert_eq!(home.nodes().len(), 1, "it is told before the node has ended");
    assert_eq!(visor.end(), 0);
    let words = manager.words();
    assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (1, 1), "{words:?}");
    assert_eq!(manager.times("EXTEND_TIMEOUT_USEC=").len(), extended + 1, "{words:?}");
    let at = |word: &str| words.iter().position(|heard| heard.starts_with(word)).unwrap();
    assert!(at("STATUS=starting") < at("READY=1") && at("READY=1") < at("STOPPING=1"), "{words:?}");
    assert!(words[at("STOPPING=1")..].iter().any(|word| word.starts_with("STATUS=stopping")), "{words:?}");
}

#[test]
fn an_abstract_socket_is_told_too() {
    let home = Home::new();
    let mut manager = Manager::abstract_name(&home);
    let mut visor = manager.supervise(&home, &[], &[]);
    manager.until("READY=1");
    visor.stop();
    manager.until("STOPPING=1");
}

#[test]
fn a_socket_that_nobody_reads_any_more_holds_nothing_up_and_is_spoken_of_once() {
    let home = Home::new();
    let manager = Manager::at(&home);
    fs::remove_file(home.dir.join("notify")).unwrap();
    let mut visor = manager.supervise(&home, &[], &[]);
    visor.until_up();
    until("it was up for long enough", || home.status()["uptime"].as_str().filter(|time| *time > "2s").map(|_| ()));
    visor.stop();
    assert_eq!(home.logged("NOTIFY_SOCKET"), 1, "{}", home.log());
    for (address, reason) in [("nonsense", "absolute path"), ("", "")] {
        let mut command = home.command(&["run"]);
        command.args(home.node_args()).env("NOTIFY_SOCKET", address);
        let mut visor = home.spawn(command);
        visor.until_up();
        visor.stop();
        assert!(home.log().contains(reason));
    }
    assert_eq!(home.logged("NOTIFY_SOCKET"), 2, "{}", home.log());
}

#[test]
fn what_a_full_socket_does_not_take_is_said_when_it_has_room_again() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"FILLER=1", home.dir.join("notify")).is_ok() {}
    let mut visor = manager.supervise(&home, &[], &[]);
    visor.until_up();
    home.until_log("NOTIFY_SOCKET takes nothing");
    manager.until("READY=1");
    visor.stop();
    manager.until("STOPPING=1");
    assert_eq!(home.logged("NOTIFY_SOCKET"), 1, "{}", home.log());
}

/// The longest wait of these tests: until more time was asked for twice.
#[test]
fn a_slow_stop_asks_for_more_time_before_the_last_one_runs_out() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise(&home, &["shutdown_grace=0"], &["--stop-time", "1h"]);
    manager.until("READY=1");
    let before = manager.times("EXTEND_TIMEOUT_USEC=").len();
    visor.signal(Signal::TERM);
    let word = manager.until("EXTEND_TIMEOUT_USEC=");
    let extension = Duration::from_micros(word.split('=').nth(1).unwrap().parse().unwrap());
    let times = until("it is asked for twice", || {
        Some(manager.times("EXTEND_TIMEOUT_USEC=").split_off(before)).filter(|times| times.len() > 1)
    });
    assert!(times[1] - times[0] < extension / 2, "{:?} of {extension:?}", times[1] - times[0]);
    assert_eq!((manager.count("STOPPING=1"), home.events("term").len()), (1, 1));
    home.run(&["stop", "--now"]).code(0);
    visor.end();
}

#[test]
fn an_upgrade_asks_for_time_and_tells_its_phases_and_the_unit_stays_up() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    let gate = home.dir.join("gate");
    let hook = home.own("upgrades/v2/pre-upgrade");
    home.put("hook", format!("#!/bin/sh\nuntil test -e {}; do sleep 0.05; done\n", gate.display()));
    fs::set_permissions(home.root().join("data/hook"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(home.root().join("data/hook"), hook).unwrap();
    home.plan("v2", 40);
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise(&home, &[], &["--halt-at", "39"]);
    manager.until("READY=1");
    manager.until("STATUS=running, block ");
    let before = manager.times("EXTEND_TIMEOUT_USEC=").len();
    manager.until("STATUS=upgrading, block 39; upgrade v2: hook");
    assert!(manager.times("EXTEND_TIMEOUT_USEC=").len() > before, "{:?}", manager.words());
    fs::write(gate, "").unwrap();
    home.until_finished("v2", "committed");
    let words = manager.words();
    assert!(words.iter().any(|word| word.contains("; upgrade v2 at block 40: ")), "{words:?}");
    assert!(words.iter().any(|word| word.contains("; upgrade v2: trial")), "{words:?}");
    assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (1, 0), "{words:?}");
    visor.stop();
}

#[test]
fn a_hold_before_the_first_start_is_told_and_is_not_up() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise(&home, &[], &[]);
    visor.until_up();
    visor.kill();
    until("its node is gone", || home.holders().is_empty().then_some(()));
    manager.words();
    manager.heard.clear();
    let mut visor = manager.supervise(&home, &["validator_mode=true", "validator_hold=2s"], &[]);
    let told = manager.until("STATUS=starting; held: ");
    assert!(told.contains("VALIDATOR_MODE"), "{told}");
    let words = manager.words();
    assert!(words.iter().any(|word| word.starts_with("EXTEND_TIMEOUT_USEC=")), "{words:?}");
    assert_eq!(manager.count("READY=1"), 0, "{words:?}");
    manager.until("READY=1");
    visor.stop();
}

#[test]
fn a_reload_is_told_with_its_time_and_its_end_also_when_the_settings_are_wrong() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise(&home, &[], &[]);
    manager.until("READY=1");
    for (count, line) in [(1, "daemon_min_peers = 2\n"), (2, "daemon_min_peers = \"many\"\n")] {
        let config = fs::read_to_string(home.own("config.toml")).unwrap();
        let config: String =
            config.lines().filter(|l| !l.starts_with("daemon_min_peers")).map(|l| format!("{l}\n")).collect();
        fs::write(home.own("config.toml"), config + line).unwrap();
        let now = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            now.tv_sec * 1_000_000 + now.tv_nsec / 1000
        };
        let began = now();
        visor.signal(Signal::HUP);
        until("the reload is over", || (manager.count("READY=1") > count).then_some(()));
        let words = manager.words();
        assert_eq!(manager.count("RELOADING=1"), count, "{words:?}");
        let usec = words.iter().filter_map(|word| word.strip_prefix("MONOTONIC_USEC=")).next_back().unwrap();
        let usec: i64 = usec.parse().unwrap();
        assert!(began <= usec && usec <= now(), "{usec} is not between {began} and {}", now());
        let reloading = words.iter().rposition(|word| word == "RELOADING=1");
        assert!(reloading < words.iter().rposition(|word| word == "READY=1"), "{words:?}");
    }
    home.until_log("the settings stay as they were");
    visor.stop();
}

#[test]
fn a_node_that_never_comes_up_is_never_ready() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise(&home, &["max_restarts=1"], &["--die-at-start=7"]);
    assert_eq!(visor.end(), 5);
    let words = manager.words();
    assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (0, 1), "{words:?}");
    assert!(words.iter().any(|word| word.starts_with("STATUS=error") && word.contains("exit status 7")), "{words:?}");
}

#[test]
fn the_watchdog_is_fed_in_time_by_a_loop_that_turns_and_not_by_one_that_stands_still() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let interval = Duration::from_secs(2);
    let mut visor = manager.supervise_with(&home, &[], &[], &[("WATCHDOG_USEC", "2000000")]);
    manager.until("READY=1");
    let times = until("it was fed five times", || Some(manager.times("WATCHDOG=1")).filter(|times| times.len() >= 5));
    for pair in times.windows(2) {
        let pause = pair[1] - pair[0];
        assert!(pause < interval && pause > interval / 4, "{pause:?} of {interval:?}");
    }
    visor.signal(Signal::STOP);
    let stopped = Instant::now();
    until("more than its time is over", || (stopped.elapsed() > interval + interval / 2).then_some(()));
    let last = *manager.times("WATCHDOG=1").last().unwrap();
    assert!(last.saturating_duration_since(stopped) < interval / 4, "a loop that stands still feeds it");
    assert_eq!(home.nodes().len(), 1);
    let fed = times_heard(&mut manager);
    visor.signal(Signal::CONT);
    until("it is fed again", || (times_heard(&mut manager) > fed).then_some(()));
    visor.stop();
}

fn times_heard(manager: &mut Manager) -> usize {
    manager.times("WATCHDOG=1").len()
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let mut visor = manager.supervise_with(&home, &[], &[], &[("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", "1")]);
    manager.until("READY=1");
    manager.until("STATUS=running, block ");
    visor.stop();
    assert_eq!(times_heard(&mut manager), 0, "{:?}", manager.words());
    // One that is ours is: the shell keeps its process id.
    let mut command = Command::new("sh");
    let inner = home.command(&["run"]);
    command.args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
    command.args(home.node_args());
    take_env(&mut command, &inner);
    command.env("NOTIFY_SOCKET", &manager.address).env("WATCHDOG_USEC", "200000");
    let mut visor = home.spawn(command);
    manager.until("WATCHDOG=1");
    visor.stop();
}

/// Variables that speak of the supervisor alone, and one that is for all.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("WATCHDOG_USEC", "60000000"),
    ("LISTEN_PID", "1"),
    ("LISTEN_PIDFDID", "1"),
    ("LISTEN_FDS", "0"),
    ("LISTEN_FDNAMES", "x"),
    ("MARK", "inherited"),
];

#[test]
fn node_hooks_and_jobs_know_nothing_of_the_service_manager() {
    let home = Home::new();
    let file = |who: &str| home.dir.join(format!("environment-of-{who}"));
    let write = |who: &str| format!("env >{}", file(who).display());
    // A release is asked for its version by a job, whose environment it does not have itself.
    let job = format!("tr '\\0' '\\n' </proc/$PPID/environ >{}", file("job").display());
    let script = format!("case $1 in *v*) {job}; echo 2;; *) {}; exec sleep 1000; esac", write("node"));
    home.script("genesis", &script);
    home.script("v2", &script);
    fs::write(home.dir.join("draft"), format!("#!/bin/sh\n{}\n", write("hook"))).unwrap();
    fs::set_permissions(home.dir.join("draft"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(home.dir.join("draft"), home.own("upgrades/v2/pre-upgrade")).unwrap();
    fs::create_dir_all(home.datadir().join("geth")).unwrap();
    fs::write(home.datadir().join("geth/x"), "x").unwrap();
    let manager = Manager::at(&home);
    let mut command = home.command(&["--set", "allow_empty_data=true", "--set"]);
    command.arg(format!("data_dir={}", home.datadir().display())).args(["run", "node"]);
    command.envs(ENVIRONMENT.iter().copied()).env("NOTIFY_SOCKET", &manager.address);
    let mut visor = home.spawn(command);
    until("the node runs", || (home.state() == "running").then_some(()));
    home.run(&["upgrade", "now", "v2"]).code(0);
    until("the new release runs", || (home.status()["release"] == "v2").then_some(()));
    for who in ["node", "job", "hook"] {
        let text = until("its environment is written", || {
            fs::read_to_string(file(who)).ok().filter(|text| text.contains("MARK"))
        });
        let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(names.contains(&"MARK"), "{who}: {names:?}");
        for name in ENVIRONMENT.iter().map(|(name, _)| *name).filter(|name| *name != "MARK").chain(["NOTIFY_SOCKET"]) {
            assert!(!names.contains(&name), "{who} has {name}");
        }
    }
    visor.signal(Signal::TERM);
    visor.end();
}

#[test]
fn start_is_no_service_and_tells_nobody() {
    let home = Home::new();
    let mut manager = Manager::at(&home);
    let args = home.node_args();
    let mut command = home.command(&["start", "--"]);
    command.args(args).env("NOTIFY_SOCKET", &manager.address);
    said(command).code(0);
    home.run(&["stop"]).code(0);
    assert_eq!(manager.words(), Vec::<String>::new());
}

// ---- the unit ---------------------------------------------------------------------------------------------------

/// The unit by key, its comments under `#`.
fn unit(said: &Said) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in said.out.lines().filter(|line| !line.is_empty() && !line.starts_with('[')) {
        let (key, value) = if line.starts_with('#') { ("#", line) } else { line.split_once('=').unwrap() };
        all.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    all
}

/// systemd's own look at a unit; none, and a line, where there is no systemd.
fn analyze(home: &Home, said: &Said) -> Option<String> {
    let path = home.dir.join("wemixvisor-test.service");
    fs::write(&path, &said.out).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).env("SYSTEMD_LOG_LEVEL", "warning").output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            // Other units of this machine are none of ours.
            Some(text.lines().filter(|line| line.contains("wemixvisor")).map(|line| format!("{line}\n")).collect())
        }
        Err(e) => {
            eprintln!("SKIPPED: systemd-analyze cannot be run: {e}");
            None
        }
    }
}

#[test]
fn the_unit_runs_this_program_with_the_present_settings_and_systemd_has_nothing_to_say() {
    let home = Home::new();
    let mut command = home.command(&["--set", "shutdown_limit=5m", "--network", "test net", "systemd"]);
    command.env("VALIDATOR_MODE", "true").env("SECRET_TOKEN", "hidden").env("PASSWORD", "hidden");
    let said = said(command).code(0);
    assert_eq!(said.err, "");
    assert!(!said.out.contains("hidden"), "{}", said.out);
    let unit = unit(&said);
    let one = |key: &str| match unit.get(key).map(Vec::as_slice) {
        Some([value]) => value.clone(),
        other => panic!("{key}: {other:?}"),
    };
    let program = fs::canonicalize(wemixvisor()).unwrap();
    assert_eq!(one("ExecStart"), format!("{} run", program.display()));
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "process"),
        ("WatchdogSignal", "SIGTERM"),
        ("TimeoutStartSec", "infinity"),
        ("TimeoutStopSec", "360"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2 4 5"),
        ("OOMPolicy", "continue"),
        ("NoNewPrivileges", "yes"),
        ("LimitNOFILE", "1048576"),
        ("ProtectSystem", "strict"),
    ] {
        assert_eq!(one(key), value, "{key}");
    }
    let reload = [format!("{} --quiet config validate", program.display()), "/bin/kill -HUP $MAINPID".to_owned()];
    assert_eq!(unit["ExecReload"], reload);
    assert_eq!(one("ReadWritePaths"), home.root().to_str().unwrap());
    assert!(one("WatchdogSec").parse::<u64>().unwrap() > 0);
    let mut environment = unit["Environment"].clone();
    environment.sort();
    let root = format!("DAEMON_HOME={}", home.root().display());
    let expected = ["\"DAEMON_NETWORK=test net\"", &root, "DAEMON_SHUTDOWN_LIMIT=5m", "VALIDATOR_MODE=true"];
    assert_eq!(environment, expected);
    if let Some(told) = analyze(&home, &said) {
        assert_eq!(told, "");
        // The control: a wrong key is seen.
        let wrong = Said { out: said.out.replace("KillMode=", "KilMode="), ..said };
        assert!(analyze(&home, &wrong).unwrap().contains("KilMode"));
    }
}

#[test]
fn the_unit_has_the_arguments_of_the_last_run_unless_the_configuration_has_some() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--identity", "50% \"off\" $HOME; it's \\"]);
    visor.until_up();
    visor.stop();
    let said = home.run(&["systemd"]).code(0);
    let line = unit(&said)["ExecStart"][0].clone();
    let datadir = home.datadir().display().to_string();
    let expected = format!(" run --datadir {datadir} --period 50ms --identity \"50%% \\\"off\\\" $$HOME; it's \\\\\"");
    assert!(line.ends_with(&expected), "{line}");
    // The data lies beside the home: the one tree that may be written to holds both.
    assert_eq!(unit(&said)["ReadWritePaths"], [home.dir.to_str().unwrap()]);
    if let Some(told) = analyze(&home, &said) {
        assert_eq!(told, "");
    }
    let config = fs::read_to_string(home.own("config.toml")).unwrap() + "node_args = [\"--datadir\", \"/data/x\"]\n";
    fs::write(home.own("config.toml"), config).unwrap();
    let said = home.run(&["systemd"]).code(0);
    assert!(unit(&said)["ExecStart"][0].ends_with(" run"), "{}", said.out);
}

#[test]
fn the_unit_leaves_in_sight_what_the_node_and_the_supervisor_are_told_to_read() {
    // The tests' own homes lie where others write: this needs places that are not there.
    let home = Home::new();
    let of = |ours: &[&str], args: &str| {
        let text = format!("node_args = [\"--datadir\", \"/wv-nowhere/d\"{args}]\n");
        fs::write(home.own("config.toml"), text).unwrap();
        let far = ["--set", "data_dir=/wv-nowhere/d", "--set", "data_backup_dir=/wv-nowhere/b"];
        unit(&home.run(&[&far, ours, &["systemd"]].concat()).code(0))
    };
    assert_eq!(of(&[], "")["ProtectHome"], ["yes"]);
    for args in
        [r#", "--nodekey", "/root/key""#, r#", "--keystore=/home/me/keys""#, r#", "--password", "/run/user/1/p""#]
    {
        assert_ne!(of(&[], args)["ProtectHome"], ["yes"], "{args}");
    }
    assert_eq!(of(&[], r#", "--extradata", "x=/root/no-path-of-its-own""#)["ProtectHome"].len(), 1);
    let file = Path::new("/root").join(format!("wv-{}.toml", std::process::id()));
    if fs::write(&file, "daemon_name = \"node\"\n").is_err() {
        eprintln!("SKIPPED: /root cannot be written to");
        return;
    }
    let found = of(&["--config", file.to_str().unwrap()], "");
    fs::remove_file(&file).unwrap();
    assert_ne!(found["ProtectHome"], ["yes"], "{found:?}");
}

#[test]
fn a_relative_data_directory_is_warned_of_and_makes_no_unit() {
    let home = Home::new();
    let mut command = home.command(&["start", "--datadir", "relative", "--period", "50ms"]);
    command.current_dir(&home.dir);
    let started = said(command).code(0);
    let here = home.dir.join("relative").display().to_string();
    assert!(started.err.contains(&format!("warning: --datadir relative is {here} here")), "{started:?}");
    home.run(&["stop"]).code(0);
    home.run(&["systemd"]).code(4).one_error("the node ran with --datadir relative");
    // As a unit runs it, it is the same everywhere.
    let mut command =
        home.command(&["--set", "allow_empty_data=true", "start", "--datadir", "relative", "--period", "50ms"]);
    command.current_dir(home.root());
    let started = said(command).code(0);
    assert!(!started.err.contains("--datadir"), "{started:?}");
    home.run(&["stop"]).code(0);
}

#[test]
fn the_unit_tells_where_it_cannot_be_strict_and_never_a_password() {
    let home = Home::new();
    let said = home
        .run(&[
            "--set",
            "data_dir=/wv-nowhere/data",
            "--set",
            "reference_rpc=https://me:hidden@node.example",
            "systemd",
        ])
        .code(0);
    assert!(
        !said.out.contains("hidden") && said.out.contains("# DAEMON_REFERENCE_RPC holds a password"),
        "{}",
        said.out
    );
    let unit = unit(&said);
    let same = |a: &Path, b: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(a).unwrap().dev() == fs::metadata(b).unwrap().dev()
    };
    if same(&home.dir, Path::new("/")) {
        assert_eq!(unit["ProtectSystem"], ["full"], "{}", said.out);
        assert!(unit["#"].iter().any(|line| line.contains("Not strict")), "{}", said.out);
    }
    home.run(&["--home", "/nowhere/at/all", "systemd"]).code(2).one_error("/nowhere/at/all");
}
