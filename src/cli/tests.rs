//! What may be typed, what may not, and what is said then.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;

use super::help::COMMANDS;
use super::*;
use crate::error::Result;

/// A line, the settings that it says, the command that it is.
type Row = (&'static str, &'static [(&'static str, &'static str)], Command);

fn typed(line: &str) -> Result<Invocation> {
    parse(line.split_whitespace().map(OsString::from))
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(args: &[&str]) -> Command {
    Command::Run { args: texts(args) }
}

fn start(args: &[&str]) -> Command {
    Command::Start { args: texts(args) }
}

fn restart(args: Option<&[&str]>) -> Command {
    Command::Restart { args: args.map(texts) }
}

#[test]
fn what_may_be_typed() {
    let name = || "v2".to_owned();
    let table: Vec<Row> = vec![
        ("", &[], Command::Help(None)),
        ("-h", &[], Command::Help(None)),
        (
            "--home /h --max-restarts nonsense --help",
            &[("DAEMON_HOME", "/h"), ("DAEMON_MAX_RESTARTS", "nonsense")],
            Command::Help(None),
        ),
        ("-V", &[], Command::OurVersion),
        ("-hV", &[], Command::Help(None)),
        ("--version --nonsense", &[], Command::OurVersion),
        ("help", &[], Command::Help(None)),
        ("help upgrade now", &[], Command::Help(Some("upgrade now"))),
        ("upgrade --help", &[], Command::Help(Some("upgrade"))),
        ("upgrade schedule v2 --help", &[], Command::Help(Some("upgrade schedule"))),
        ("start --help", &[], Command::Help(Some("start"))),
        ("start --home /h -h", &[("DAEMON_HOME", "/h")], Command::Help(Some("start"))),
        ("status -V", &[], Command::OurVersion),
        ("init", &[], Command::Init { binary: None }),
        ("init ./geth --name g", &[("DAEMON_NAME", "g")], Command::Init { binary: Some("./geth".into()) }),
        ("init -- -odd", &[], Command::Init { binary: Some("-odd".into()) }),
        ("run", &[], run(&[])),
        ("run start", &[], run(&["start"])),
        ("run --", &[], run(&[])),
        ("run -- -- x", &[], run(&["--", "x"])),
        ("run x -- y", &[], run(&["x", "--", "y"])),
        ("run --home /n -h -V -1 --bogus=1", &[], run(&["--home", "/n", "-h", "-V", "-1", "--bogus=1"])),
        ("--home /h --home=/i run --home /n", &[("DAEMON_HOME", "/h"), ("DAEMON_HOME", "/i")], run(&["--home", "/n"])),
        ("--set poll_interval=1s --set a==b run", &[("poll_interval", "1s"), ("a", "=b")], run(&[])),
        ("--auto-restart run x", &[("DAEMON_RESTART_ON_FAILURE", "true")], run(&["x"])),
        ("--auto-restart=false run", &[("DAEMON_RESTART_ON_FAILURE", "false")], run(&[])),
        ("start", &[], start(&[])),
        ("start --datadir D", &[], start(&["--datadir", "D"])),
        (
            "start --max-restarts 10 --datadir D --home H",
            &[("DAEMON_MAX_RESTARTS", "10")],
            start(&["--datadir", "D", "--home", "H"]),
        ),
        ("start --max-restarts=10 -- --home D", &[("DAEMON_MAX_RESTARTS", "10")], start(&["--home", "D"])),
        ("start --max-restart 10 --datadir D", &[], start(&["--max-restart", "10", "--datadir", "D"])),
        ("start console -h", &[], start(&["console", "-h"])),
        ("start -1", &[], start(&["-1"])),
        ("start --auto-restart console", &[("DAEMON_RESTART_ON_FAILURE", "true")], start(&["console"])),
        ("start -- x -- y", &[], start(&["x", "--", "y"])),
        ("start --health-check-interval 1s", &[("DAEMON_HEALTH_CHECK_INTERVAL", "1s")], start(&[])),
        ("start --network -- --datadir D", &[("DAEMON_NETWORK", "--")], start(&["--datadir", "D"])),
        ("restart", &[], restart(None)),
        ("restart --home /h", &[("DAEMON_HOME", "/h")], restart(None)),
        ("restart --", &[], restart(Some(&[]))),
        ("restart -- --x", &[], restart(Some(&["--x"]))),
        ("restart --x", &[], restart(Some(&["--x"]))),
        ("stop --now --home /h", &[("DAEMON_HOME", "/h")], Command::Stop { now: true }),
        ("stop", &[], Command::Stop { now: false }),
        ("status --check", &[], Command::Status { check: true }),
        ("version", &[], Command::Version),
        ("logs", &[], Command::Logs(Logs::default())),
        (
            "logs -fn5 --since 10m --until 5m --grep=a|b",
            &[],
            Command::Logs(Logs {
                follow: true,
                lines: Some(5),
                since: Some("10m".to_owned()),
                until: Some("5m".to_owned()),
                grep: Some("a|b".to_owned()),
            }),
        ),
        ("logs -n 7 -f", &[], Command::Logs(Logs { follow: true, lines: Some(7), ..Logs::default() })),
        (
            "logs --lines all --follow",
            &[],
            Command::Logs(Logs { follow: true, lines: Some(u64::MAX), ..Logs::default() }),
        ),
        ("config show", &[], Command::Config(ConfigCommand::Show)),
        ("config validate f", &[], Command::Config(ConfigCommand::Validate { file: Some("f".into()) })),
        (
            "config set daemon_x -1",
            &[],
            Command::Config(ConfigCommand::Set { key: "daemon_x".to_owned(), value: "-1".to_owned() }),
        ),
        (
            "config set node_args --datadir",
            &[],
            Command::Config(ConfigCommand::Set { key: "node_args".to_owned(), value: "--datadir".to_owned() }),
        ),
        ("config set k --help", &[], Command::Help(Some("config set"))),
        ("config set --help", &[], Command::Help(Some("config set"))),
        ("config unset k", &[], Command::Config(ConfigCommand::Unset { key: "k".to_owned() })),
        ("config template", &[], Command::Config(ConfigCommand::Template { name: None, list: false })),
        (
            "config template rpc --list",
            &[],
            Command::Config(ConfigCommand::Template { name: Some("rpc".to_owned()), list: true }),
        ),
        ("config migrate", &[], Command::Config(ConfigCommand::Migrate)),
        ("completions bash", &[], Command::Completions { shell: "bash".to_owned() }),
        ("complete --home -h", &[], Command::Complete(texts(&["--home", "-h"]))),
        ("config --name n validate", &[("DAEMON_NAME", "n")], Command::Config(ConfigCommand::Validate { file: None })),
        (
            "upgrade schedule v2 --url U --force 100 --url=X --checksum sha256:0 --info T",
            &[],
            Command::Upgrade(Upgrade::Schedule {
                name: name(),
                height: 100,
                url: Some("X".to_owned()),
                checksum: Some("sha256:0".to_owned()),
                info: Some("T".to_owned()),
                force: true,
            }),
        ),
        (
            "upgrade schedule v2 9223372036854775807",
            &[],
            Command::Upgrade(Upgrade::Schedule {
                name: name(),
                height: i64::MAX as u64,
                url: None,
                checksum: None,
                info: None,
                force: false,
            }),
        ),
        (
            "upgrade add v2 f --height 7",
            &[],
            Command::Upgrade(Upgrade::Add { name: name(), file: "f".into(), height: Some(7), force: false }),
        ),
        ("upgrade prepare", &[], Command::Upgrade(Upgrade::Prepare { name: None, url: None, checksum: None })),
        (
            "upgrade prepare v2 --url U --checksum C",
            &[],
            Command::Upgrade(Upgrade::Prepare {
                name: Some(name()),
                url: Some("U".to_owned()),
                checksum: Some("C".to_owned()),
            }),
        ),
        ("upgrade check", &[], Command::Upgrade(Upgrade::Check { name: None })),
        ("upgrade check v2", &[], Command::Upgrade(Upgrade::Check { name: Some(name()) })),
        ("upgrade list --all", &[], Command::Upgrade(Upgrade::List { all: true })),
        ("upgrade show v2", &[], Command::Upgrade(Upgrade::Show { name: name() })),
        ("upgrade cancel v2", &[], Command::Upgrade(Upgrade::Cancel { name: name() })),
        ("upgrade retry v2", &[], Command::Upgrade(Upgrade::Retry { name: name() })),
        ("upgrade now v2", &[], Command::Upgrade(Upgrade::Now { name: name() })),
        ("upgrade revert --to genesis", &[], Command::Upgrade(Upgrade::Revert { to: Some("genesis".to_owned()) })),
        (
            "plan create p v2:7 --description D v3:8:f v4:9:https://h/x#0",
            &[],
            Command::Plan(Plan::Create {
                name: "p".to_owned(),
                description: Some("D".to_owned()),
                upgrades: texts(&["v2:7", "v3:8:f", "v4:9:https://h/x#0"]),
                file: None,
            }),
        ),
        (
            "plan create p --file f.csv",
            &[],
            Command::Plan(Plan::Create {
                name: "p".to_owned(),
                description: None,
                upgrades: Vec::new(),
                file: Some("f.csv".into()),
            }),
        ),
        ("plan validate ./f.json", &[], Command::Plan(Plan::Validate { what: "./f.json".to_owned() })),
        ("plan prepare p", &[], Command::Plan(Plan::Prepare { name: "p".to_owned() })),
        ("plan apply p", &[], Command::Plan(Plan::Apply { name: "p".to_owned() })),
        ("plan list", &[], Command::Plan(Plan::List)),
        ("plan show p", &[], Command::Plan(Plan::Show { name: "p".to_owned() })),
        ("plan remove p", &[], Command::Plan(Plan::Remove { name: "p".to_owned() })),
        ("worker", &[], Command::Worker),
        ("exec --help -- x --", &[], Command::Exec(texts(&["--help", "--", "x", "--"]))),
    ];
    for (line, settings, command) in table {
        let found = typed(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(found.command, command, "{line}");
        let settings: Vec<(String, String)> =
            settings.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(found.settings, settings, "{line}");
        assert!(!found.json && !found.quiet && found.config_file.is_none(), "{line}");
    }
}

#[test]
fn options_without_a_variable_may_stand_on_both_sides() {
    for line in
        ["--json --quiet --config f status", "status --json --quiet --config=f", "--json status --config f --quiet"]
    {
        let found = typed(line).unwrap();
        assert!(
            found.json && found.quiet && found.config_file == Some("f".into()) && found.settings.is_empty(),
            "{line}"
        );
    }
    let found = typed("start --json --config f --datadir D").unwrap();
    assert!(found.json && found.config_file == Some("f".into()));
    assert_eq!(found.command, start(&["--datadir", "D"]));
}

#[test]
fn what_may_not_be_typed() {
    let table = [
        ("--hoem /h run", "unknown option --hoem; did you mean --home?"),
        ("--home", "--home needs a value: --home DIR"),
        ("--home /h", "no command was given; there are: init, run,"),
        ("--set x run", "--set: \"x\" is not KEY=VALUE"),
        ("--set =x run", "--set: \"=x\" is not KEY=VALUE"),
        ("--json=yes status", "--json takes no value"),
        ("-x run", "unknown option -x; `wemixvisor --help` tells"),
        ("strat", "\"strat\" is no command; did you mean `start`?"),
        ("frobnicate", "\"frobnicate\" is no command; there are: init, run,"),
        ("cancel v2", "did you mean `upgrade cancel`?"),
        ("worker x", "\"worker\" is no command"),
        ("upgrade", "upgrade: a command is missing behind it; there are: schedule, add,"),
        ("upgrade shedule v2 1", "upgrade: \"shedule\" is no command; did you mean `upgrade schedule`?"),
        ("help upgrade bogus-word", "upgrade: \"bogus-word\" is no command"),
        ("upgrade list --al", "upgrade list: unknown option --al; did you mean --all?"),
        (
            "start --max-restart 10 -- --datadir D",
            "start: \"--max-restart\" stands before `--` and is no option of ours; did you mean --max-restarts?",
        ),
        (
            "start console -- x",
            "start: \"console\" stands before `--` and is no option of ours; the node's arguments stand behind it",
        ),
        ("restart --max-restarts", "--max-restarts needs a value: --max-restarts N"),
        ("stop now", "stop: \"now\" is one word too many; usage: wemixvisor stop [OPTIONS]"),
        ("stop --now=1", "--now takes no value"),
        ("status --now", "status: unknown option --now"),
        ("logs -n", "--lines needs a value: --lines N"),
        ("logs -n many", "--lines: \"many\" is no count: give a whole number, or all"),
        ("logs -n -5", "--lines: \"-5\" is no count"),
        ("logs --folow", "logs: unknown option --folow; did you mean --follow?"),
        ("status -f", "status: unknown option -f"),
        (
            "upgrade schedule v2",
            "upgrade schedule: HEIGHT is missing; usage: wemixvisor upgrade schedule [OPTIONS] NAME HEIGHT",
        ),
        ("upgrade show", "upgrade show: NAME is missing"),
        ("upgrade schedule v2 0", "\"0\" is no height: give a whole number from 1 to 9223372036854775807"),
        ("upgrade schedule v2 -1", "\"-1\" is no height"),
        ("upgrade schedule v2 +1", "\"+1\" is no height"),
        ("upgrade schedule v2 1.5", "\"1.5\" is no height"),
        ("upgrade schedule v2 0x10", "\"0x10\" is no height"),
        ("upgrade schedule v2 9223372036854775808", "is no height"),
        ("upgrade schedule v2 99999999999999999999999", "is no height"),
        ("upgrade add v2 f --height -5", "\"-5\" is no height"),
        ("config set k", "config set: VALUE is missing; usage: wemixvisor config set KEY VALUE"),
        ("config sett k v", "config: \"sett\" is no command; did you mean `config set`?"),
        ("completions", "completions: SHELL is missing"),
        ("init a b", "init: \"b\" is one word too many"),
        ("plan create", "plan create: NAME is missing; usage: wemixvisor plan create [OPTIONS] NAME [UPGRADE…]"),
        ("plan apply a b", "plan apply: \"b\" is one word too many"),
        ("plan aply a", "plan: \"aply\" is no command; did you mean `plan apply`?"),
        ("apply a", "did you mean `plan apply`?"),
    ];
    for (line, fragment) in table {
        let error = typed(line).err().unwrap_or_else(|| panic!("{line} was taken"));
        assert!(error.message.contains(fragment) && error.message.lines().count() == 1, "{line}: {error}");
        assert_eq!(error.code, crate::error::Code::Usage, "{line}");
    }
    use std::os::unix::ffi::OsStringExt;
    let odd = [OsString::from("run"), OsString::from_vec(vec![0xff])];
    assert!(parse(odd).unwrap_err().message.contains("is not UTF-8"));
}

#[test]
fn every_command_of_the_table_can_be_typed() {
    for item in COMMANDS.iter().filter(|item| !item.is_group()) {
        let words: Vec<&str> = item.words.iter().filter(|word| !word.starts_with('[')).map(|_| "1").collect();
        let line = format!("{} {}", item.path, words.join(" "));
        assert!(typed(&line).is_ok(), "{line}");
    }
}
