//! `config set`, `unset`, `template` and `migrate`; where settings come from; and completions, by the shells themselves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Home, Said, said, take_env, tmpfs, under, until, wemixvisor};

fn config(home: &Home) -> String {
    fs::read_to_string(home.own("config.toml")).unwrap()
}

/// The lines of one text that are not in the other.
fn new_lines(text: &str, before: &str) -> Vec<String> {
    text.lines().filter(|line| !before.lines().any(|old| old == *line)).map(str::to_owned).collect()
}

/// A command that must leave the home as it is.
#[track_caller]
fn refused(home: &Home, args: &[&str], code: i32, part: &str) {
    let before = home.tree();
    home.run(args).code(code).one_error(part);
    assert_eq!(home.tree(), before, "{args:?}");
}

fn nobody(mut command: Command) -> Command {
    use std::os::unix::process::CommandExt;
    command.uid(65534).gid(65534);
    command
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can become somebody else");
    }
    root
}

// ---- set and unset ------------------------------------------------------------------------------

#[test]
fn a_value_is_set_in_its_place_and_unset_again_and_nothing_else_moves() {
    let home = Home::new();
    fs::set_permissions(home.own("config.toml"), fs::Permissions::from_mode(0o640)).unwrap();
    let fresh = config(&home);
    for (key, value, line) in [
        ("daemon_max_restarts", "7", "daemon_max_restarts = 7"),
        ("DAEMON_SHUTDOWN_GRACE", "5m", "daemon_shutdown_grace = \"5m\""),
        ("upgrade_enabled", "false", "daemon_upgrade_enabled = false"),
        ("daemon_data_dir", "$DAEMON_HOME/x y", "daemon_data_dir = \"$DAEMON_HOME/x y\""),
        ("node_args", "[\"--datadir\",'/d d']", "node_args = [\"--datadir\", \"/d d\"]"),
    ] {
        let told = home.run(&["config", "set", key, value]).code(0);
        assert!(told.out.contains(line) && told.err.is_empty(), "{told:?}");
        let text = config(&home);
        assert_eq!(new_lines(&text, &fresh), [line]);
        assert_eq!(text.lines().count(), fresh.lines().count());
        let again = home.run(&["config", "set", key, value]).code(0);
        assert!(again.out.contains("already"), "{again:?}");
        home.run(&["config", "unset", key]).code(0);
        assert_eq!(config(&home), fresh, "{key}");
        assert!(home.run(&["config", "unset", key]).code(0).out.contains("is not set"));
    }
    let meta = fs::metadata(home.own("config.toml")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o640, "the mode stays");
    // A file of an operator's own making.
    let own = "# mine\n\tdaemon_max_restarts=3 # three\n\n\ndaemon_name = 'node'";
    fs::write(home.own("config.toml"), own).unwrap();
    home.run(&["config", "set", "max_restarts", "4"]).code(0);
    home.run(&["config", "set", "trial_blocks", "9"]).code(0);
    assert_eq!(
        config(&home),
        "# mine\n\tdaemon_max_restarts=4 # three\n\n\ndaemon_name = 'node'\ndaemon_trial_blocks = 9\n"
    );
    assert!(!home.tree().iter().any(|line| line.contains(".tmp")));
}

#[test]
fn a_value_that_does_not_fit_changes_nothing() {
    let home = Home::new();
    for (args, part) in [
        (&["daemon_max_restarts", "many"][..], "is not a whole number; allowed: "),
        (&["daemon_max_restarts", "-1"], "is not a whole number; allowed: "),
        (&["daemon_max_restarts", ""], "is empty; allowed: "),
        (&["daemon_max_restart", "1"], "did you mean daemon_max_restarts?"),
        (&["nodeargs", "[]"], "did you mean node_args?"),
        (&["daemon_grpc_address", "h:1"], "see DAEMON_RPC_ADDRESS"),
        (&["daemon_home", "/x"], "a file in the home cannot say where the home is"),
        (&["node_args", "--datadir /d --mine"], "such as '[\"--datadir\", \"/d\", \"--mine\"]'"),
        (&["node_args", "[\"--datadir\""], "node_args takes a list of strings"),
        (&["node_args", "[]\ndaemon_name = 'x'"], "node_args takes a list of strings"),
        (&["node_args", "--datadir", "/d"], "one word too many"),
        (&["daemon_network", "a\nb"], "has a control character in it"),
    ] {
        refused(&home, &[&["config", "set"], args].concat(), 2, part);
    }
    // What was wrong before can be put right, one thing at a time where it is the only one.
    let sound = config(&home);
    fs::write(home.own("config.toml"), format!("{sound}daemon_max_restarts = 'x'\n")).unwrap();
    refused(&home, &["config", "set", "trial_blocks", "9"], 2, "DAEMON_MAX_RESTARTS");
    home.run(&["config", "set", "max_restarts", "2"]).code(0);
    fs::write(home.own("config.toml"), format!("{sound}daemon_nam = 'x' # oh\n")).unwrap();
    refused(&home, &["config", "unset", "daemon_nme"], 2, "did you mean daemon_name?");
    home.run(&["config", "unset", "daemon_nam"]).code(0);
    assert_eq!(config(&home), sound);
}

#[test]
fn a_file_that_cannot_be_changed_is_told_in_a_line_and_left_alone() {
    let home = Home::new();
    let file = home.own("config.toml");
    let set = ["config", "set", "max_restarts", "2"];
    let other = home.dir.join("other.toml");
    fs::rename(&file, &other).unwrap();
    symlink("../../other.toml", &file).unwrap();
    refused(&home, &set, 4, "is a link to ../../other.toml: change that file");
    // The way that it tells.
    home.run(&[&["--config", other.to_str().unwrap()], &set[..]].concat()).code(0);
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink() && config(&home).contains("\ndaemon_max_restarts = 2\n"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&home, &set, 2, "config.toml: not a regular file");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "daemon_name = 'node'\nthis is no toml\n").unwrap();
    refused(&home, &set, 2, "config.toml, line 2: not TOML");
    fs::write(&file, [0xff, 0xfe]).unwrap();
    refused(&home, &set, 2, "config.toml: ");
    refused(&home, &[&["--config", "/dev/null"], &set[..]].concat(), 2, "/dev/null keeps nothing");
    refused(&home, &[&["--config", "/nowhere/x.toml"], &set[..]].concat(), 2, "/nowhere/x.toml has no directory");
    // None is there: one is made, and belongs to who has the home.
    fs::remove_file(&file).unwrap();
    home.run(&set).code(0);
    assert_eq!(config(&home), "daemon_max_restarts = 2\n");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let empty = Home::empty();
    empty.run(&set).code(2).one_error("`wemixvisor init` lays out a home");
    assert!(!empty.root().exists());
}

#[test]
fn who_may_not_write_changes_nothing_and_root_leaves_the_owner() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let file = home.own("config.toml");
    let as_nobody = |home: &Home| said(nobody(home.command(&["config", "set", "max_restarts", "2"])));
    let before = home.tree();
    as_nobody(&home).code(1).one_error("Permission denied");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    as_nobody(&home).code(2).one_error("Permission denied");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    // In a directory that everybody may write to: the file would change its owner.
    fs::set_permissions(home.own(""), fs::Permissions::from_mode(0o777)).unwrap();
    as_nobody(&home).code(1).one_error("cannot keep the owner and group of");
    fs::set_permissions(home.own(""), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(home.tree(), before);
    std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
    home.run(&["config", "set", "max_restarts", "2"]).code(0);
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o777), (65534, 65534, 0o644));
    // A new one belongs to who has the directory.
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::chown(home.own(""), Some(65534), Some(65533)).unwrap();
    home.run(&["config", "set", "max_restarts", "2"]).code(0);
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (65534, 65533));
}

#[test]
fn a_full_and_a_read_only_disk_change_nothing() {
    let home = Home::new();
    let text = config(&home);
    let Some(disk) = tmpfs(&home.dir.join("disk"), "64k") else { return };
    fs::create_dir_all(disk.0.join("home/wemixvisor")).unwrap();
    let file = disk.0.join("home/wemixvisor/config.toml");
    fs::write(&file, &text).unwrap();
    let set = || {
        let root = disk.0.join("home");
        home.run(&["--home", root.to_str().unwrap(), "config", "set", "max_restarts", "2"])
    };
    let fill = disk.0.join("fill");
    let mut size = 64 << 10;
    while size > 0 && fs::write(&fill, vec![0; size]).is_err() {
        size -= 4096;
    }
    set().code(1).one_error("No space left on device");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert_eq!(fs::read_dir(disk.0.join("home/wemixvisor")).unwrap().count(), 1, "nothing half-made is left");
    fs::remove_file(&fill).unwrap();
    let remount = |how: &str| Command::new("mount").args(["-o", how]).arg(&disk.0).status().unwrap().success();
    assert!(remount("remount,ro"));
    set().code(1).one_error("Read-only file system");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert!(remount("remount,rw"));
    set().code(0);
}

#[test]
fn two_changes_at_once_are_both_there() {
    let home = Home::new();
    let keys = ["max_restarts", "trial_blocks", "min_peers", "upgrade_lead", "rolling_spacing", "backup_keep"];
    let children: Vec<_> = keys
        .iter()
        .map(|key| home.command(&["config", "set", key, "42"]).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(config(&home).lines().filter(|line| line.ends_with(" = 42")).count(), keys.len());
}

#[test]
fn it_is_told_what_wins_over_the_file_and_when_the_supervisor_takes_it() {
    let home = Home::new();
    let mut command = home.command(&["--max-restarts", "8", "config", "set", "daemon_max_restarts", "7"]);
    let by_flag = said(command).code(0).err;
    assert!(by_flag.contains("without effect, for flag --max-restarts says \"8\""), "{by_flag}");
    command = home.command(&["config", "unset", "daemon_max_restarts"]);
    command.env("DAEMON_MAX_RESTARTS", "9");
    assert!(said(command).code(0).out.contains("now \"9\" (variable DAEMON_MAX_RESTARTS)"));

    let datadir = home.datadir();
    let args = json!(["--datadir", datadir, "--period", "50ms"]).to_string();
    assert_eq!(home.run(&["config", "set", "node_args", &args]).code(0).err, "", "nobody runs");
    let mut visor = home.supervise_with(&[], &[]);
    visor.until_up();
    assert_eq!(home.nodes().len(), 1, "node_args are used");
    let told = home.run(&["config", "set", "daemon_network", "testnet"]).code(0).err;
    let reload = format!("kill -HUP {}", visor.pid());
    assert!(told.contains(&reload), "{told}");
    assert_eq!(home.status()["network"], "mainnet", "not by itself");
    visor.signal(Signal::HUP);
    until("it is read", || (home.status()["network"] == "testnet").then_some(()));
    let started_afresh = home.run(&["config", "set", "node_args", "[]"]).code(0).err;
    assert!(
        started_afresh.contains("stopped and started again") && !started_afresh.contains("HUP"),
        "{started_afresh}"
    );
    visor.stop();
}

// ---- where settings come from -------------------------------------------------------------------

#[test]
fn the_machines_file_says_where_the_home_is_and_loses_to_the_homes_own() {
    let home = Home::new();
    home.run(&["config", "set", "network", "from-home"]).code(0);
    let text = format!(
        "daemon_home = {:?}\ndaemon_network = 'from-etc'\ndaemon_trial_blocks = 9\nnode_args = ['--from-etc']\n",
        home.root()
    );
    let etc = home.dir.join("etc.toml");
    fs::write(&etc, text).unwrap();
    let shown = |args: &[&str]| {
        // A file system of its own in the place of /etc, seen by this command alone.
        let script = "mount -t tmpfs none /etc && mkdir /etc/wemixvisor && cp etc.toml /etc/wemixvisor/config.toml && exec \"$@\"";
        let mut command = home.command(args);
        command.env_remove("DAEMON_HOME");
        said(under(&["unshare", "-m", "sh", "-c", script, "sh"], &command))
    };
    let found = shown(&["config", "show", "--json"]);
    if found.out.is_empty() && found.err.contains("unshare") {
        eprintln!("SKIPPED: no mount namespace can be had here");
        return;
    }
    let found = found.code(0).json();
    let said = |key: &str| (found[key]["value"].clone(), found[key]["origin"].clone());
    let of_etc = json!("file /etc/wemixvisor/config.toml");
    assert_eq!(said("daemon_home"), (json!(home.root()), of_etc.clone()));
    assert_eq!(said("daemon_trial_blocks"), (json!("9"), of_etc.clone()));
    assert_eq!(said("node_args"), (json!(["--from-etc"]), of_etc));
    let own = json!(format!("file {}", home.own("config.toml").display()));
    assert_eq!(said("daemon_network"), (json!("from-home"), own));
    // What is set goes into the home's file, wherever the home was named.
    shown(&["config", "set", "trial_blocks", "11"]).code(0);
    assert!(config(&home).contains("\ndaemon_trial_blocks = 11\n"));
    // A broken one is told with its line, and nothing starts.
    fs::write(&etc, "daemon_home = 'relative'\ndaemon_min_peers = 'x'\n").unwrap();
    let wrong = shown(&["run"]).code(2).err;
    for line in
        ["DAEMON_HOME: \"relative\" (file /etc/wemixvisor/config.toml, line 1)", "config.toml, line 2) is not a whole"]
    {
        assert!(wrong.contains(line), "{wrong}");
    }
}

#[test]
fn the_command_line_wins_over_node_args() {
    let home = Home::new();
    home.run(&["config", "set", "node_args", "[\"--from-file\"]"]).code(0);
    home.script("genesis", "echo \"$@\"; exit 0");
    for (words, expected) in [(&["run"][..], "--from-file\n"), (&["run", "--typed"], "--typed\n")] {
        let found = home.run(words).code(0);
        assert_eq!(found.out, expected);
    }
}

// ---- templates ----------------------------------------------------------------------------------

#[test]
fn a_template_written_over_the_homes_file_is_valid_and_keeps_the_binarys_name() {
    let home = Home::new();
    let plain = home.run(&["config", "template"]).code(0).out;
    assert_eq!(new_lines(&config(&home), &plain), ["daemon_name = \"node\""], "without a name: what init writes");
    let list = home.run(&["config", "template", "--list", "--json"]).code(0).json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mainnet", "testnet", "devnet", "validator", "archive", "rpc"]);
    for name in names {
        // As a shell does it: the file is empty when the command begins.
        let file = fs::File::create(home.own("config.toml")).unwrap();
        let mut command = home.command(&["config", "template", name]);
        assert!(command.stdout(file).status().unwrap().success());
        home.run(&["config", "validate"]).code(0);
        let shown = home.run(&["config", "show", "--json"]).code(0).json();
        assert_eq!(shown["daemon_name"]["value"], "node", "{name}");
        let args: Vec<String> = serde_json::from_value(shown["node_args"]["value"].clone()).unwrap();
        assert_eq!(args[..2], ["--datadir".to_owned(), home.root().join("data").display().to_string()]);
    }
    home.run(&["config", "template", "mainet"]).code(2).one_error("did you mean mainnet?");
    home.run(&["config", "template", "xyzzy"]).code(2).one_error("there are: mainnet, testnet,");
    home.run(&["config", "template", "rpc", "--list"]).code(2).one_error("not both");
}

#[test]
fn init_records_the_binarys_name_in_a_file_that_is_there_before_it() {
    let home = Home::empty();
    fs::create_dir_all(home.own("")).unwrap();
    let text = home.run(&["config", "template", "validator"]).code(0).out;
    fs::write(home.own("config.toml"), &text).unwrap();
    fs::copy("/bin/true", home.dir.join("gwemix")).unwrap();
    home.run(&["init", "gwemix"]).code(0);
    assert_eq!(new_lines(&config(&home), &text), ["daemon_name = \"gwemix\""]);
    assert!(home.own("genesis/bin/gwemix").is_file());
    // What the file says is not overruled.
    let before = config(&home);
    home.run(&["init", "gwemix"]).code(0);
    assert_eq!(config(&home), before);
}

// ---- migrate ------------------------------------------------------------------------------------

/// A home of cosmovisor's with two releases, its file as its own `init` writes it.
fn cosmovisors(home: &Home) {
    let own = home.root().join("cosmovisor");
    fs::create_dir_all(own.join("upgrades/empty/bin")).unwrap();
    // One name is none here, and one would end the comment that tells of it.
    for dir in ["genesis", "upgrades/v2", "upgrades/odd%2fname", "upgrades/x\ntouch ended-the-comment\n"] {
        fs::create_dir_all(own.join(dir).join("bin")).unwrap();
        fs::copy("/bin/true", own.join(dir).join("bin/simd")).unwrap();
    }
    symlink("upgrades/v2", own.join("current")).unwrap();
    let text = format!(
        "daemon_home = {:?}\ndaemon_name = 'simd'\ndaemon_allow_download_binaries = true\n\
         daemon_download_must_have_checksum = true\ndaemon_restart_after_upgrade = true\ndaemon_restart_delay = 5000000000\n\
         daemon_shutdown_grace = 0\ndaemon_poll_interval = 300000000\nunsafe_skip_backup = false\n\
         daemon_data_backup_dir = {:?}\ndaemon_preupgrade_max_retries = 3\ndaemon_grpc_address = 'localhost:9090'\n\
         cosmovisor_disable_logs = false\ncosmovisor_color_logs = true\ncosmovisor_timeformat_logs = 'kitchen'\n\
         cosmovisor_custom_preupgrade = 'hook.sh'\ncosmovisor_disable_recase = false\nsomething_else = 1\n",
        home.root(),
        home.root(),
    );
    fs::write(own.join("config.toml"), text).unwrap();
}

fn migrate(home: &Home) -> Said {
    let mut command = home.command(&["config", "migrate"]);
    command.env("DAEMON_POLL_INTERVAL", "1s").env("DAEMON_RESTART_DELAY", "").env("DAEMON_TRIAL_TIME", "5s");
    said(command)
}

#[test]
fn cosmovisors_settings_are_taken_over_once_and_each_is_told_of() {
    let home = Home::empty();
    home.run(&["init"]).code(0);
    assert!(home.run(&["config", "migrate"]).code(0).out.contains("nothing to migrate"));
    cosmovisors(&home);
    let fresh = config(&home);
    let told = migrate(&home).code(0).out;
    for line in [
        "daemon_name: \"simd\", from file ",
        "daemon_poll_interval: \"1s\", from variable DAEMON_POLL_INTERVAL",
        "daemon_restart_delay: \"5s\", from file ",
        "here the pause is after the switch",
        "daemon_restart_after_upgrade: left out",
        "\"true\" is the default here too",
        "daemon_shutdown_grace: left out",
        "daemon_data_backup_dir: left out",
        "daemon_home: left out",
        "daemon_grpc_address: left out",
        "see DAEMON_RPC_ADDRESS",
        "cosmovisor_timeformat_logs: left out",
        "cosmovisor_custom_preupgrade: \"hook.sh\"",
        "copy it: cp -p ",
        "something_else: left out",
    ] {
        assert!(told.contains(line), "{line}\n---\n{told}");
    }
    let mut taken = new_lines(&config(&home), &fresh);
    taken.sort();
    assert_eq!(
        taken,
        [
            "cosmovisor_custom_preupgrade = \"hook.sh\"",
            "daemon_allow_download_binaries = true",
            "daemon_name = \"simd\"",
            "daemon_poll_interval = \"1s\"",
            "daemon_preupgrade_max_retries = 3",
            "daemon_restart_delay = \"5s\"",
        ]
    );
    home.run(&["config", "validate"]).code(0);
    let copies = || {
        let names = fs::read_dir(home.own("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("config.toml.before-migrate-")).collect::<Vec<_>>()
    };
    let [copy] = copies().try_into().unwrap();
    assert_eq!(fs::read_to_string(home.own(&copy)).unwrap(), fresh);

    // A second time there is nothing to do, and what the operator changed since stays.
    home.run(&["config", "set", "restart_delay", "7s"]).code(0);
    let before = home.tree();
    let again = migrate(&home).code(0).out;
    assert!(again.contains("nothing is to be done in config.toml"), "{again}");
    assert!(again.contains("daemon_restart_delay: stays \"7s\""), "{again}");
    assert_eq!(home.tree(), before);

    // The commands that it lists do bring the binaries over.
    let steps: Vec<&str> = again.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(steps.iter().any(|step| step.starts_with("# ") && step.contains("odd%252fname")), "{steps:?}");
    let script = steps.join("\n").replace("wemixvisor ", &format!("{} ", wemixvisor()));
    let mut shell = Command::new("sh");
    shell.args(["-ec", &script]).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home.dir);
    shell.current_dir(&home.dir);
    said(shell).code(0);
    assert!(!home.dir.join("ended-the-comment").exists());
    assert_eq!(home.current(), "v2");
    assert!(home.own("genesis/bin/simd").is_file() && home.own("upgrades/v2/bin/simd").is_file());
    let last = migrate(&home).code(0).out;
    assert!(!last.contains("upgrade add v2") && !last.contains("ln -sfn") && !last.contains(" init "), "{last}");
}

#[test]
fn a_value_that_cannot_be_taken_over_is_told_and_nothing_is_changed() {
    let home = Home::empty();
    home.run(&["init"]).code(0);
    let theirs = home.root().join("cosmovisor/config.toml");
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    for (text, part) in [
        ("daemon_name = 'ok'\ndaemon_restart_delay = '1.5s'\n", "DAEMON_RESTART_DELAY: \"1.5s\" (file "),
        ("daemon_name = 'ok'\ndaemon_poll_interval = 300\n", "DAEMON_POLL_INTERVAL: \"0\" (file "),
        ("daemon_name = 'ok'\ndaemon_poll_interval = -5\n", "DAEMON_POLL_INTERVAL: \"-5\" (file "),
        ("daemon_name = 'ok'\ndaemon_poll_interval = 5.5\n", "daemon_poll_interval (file "),
        ("not toml\n", "cosmovisor/config.toml, line 1: not TOML"),
    ] {
        fs::write(&theirs, text).unwrap();
        refused(&home, &["config", "migrate"], 2, part);
    }
    fs::remove_file(&theirs).unwrap();
    fs::create_dir(&theirs).unwrap();
    refused(&home, &["config", "migrate"], 2, "not a regular file");
}

#[test]
fn a_file_of_cosmovisors_that_was_moved_to_ours_is_put_right() {
    let home = Home::empty();
    cosmovisors(&home);
    fs::rename(home.root().join("cosmovisor"), home.own("")).unwrap();
    let before = config(&home).replace("something_else = 1\n", "");
    fs::write(home.own("config.toml"), &before).unwrap();
    home.run(&["config", "validate"]).code(2);
    let told = home.run(&["config", "migrate"]).code(0).out;
    assert!(told.contains("daemon_grpc_address: removed from"), "{told}");
    assert!(told.contains("daemon_restart_delay: \"5s\", from the nanoseconds in "), "{told}");
    home.run(&["config", "validate"]).code(0);
    let gone = new_lines(&before, &config(&home));
    assert_eq!(gone.len(), 5, "{gone:?}");
    let mut put = new_lines(&config(&home), &before);
    put.retain(|line| !line.starts_with('#'));
    put.sort();
    assert_eq!(put, ["daemon_poll_interval = \"300ms\"", "daemon_restart_delay = \"5s\""]);
}

// ---- completions --------------------------------------------------------------------------------

/// Whether this shell is here; a test without it says so.
fn shell(name: &str) -> bool {
    let mut command = Command::new(name);
    let there = command.args(["-c", "true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: there is no {name} here");
    }
    there
}

#[test]
fn each_shell_understands_its_script() {
    let home = Home::empty();
    for name in ["bash", "zsh", "fish"] {
        let script = home.run(&["completions", name]).code(0).out;
        let file = home.dir.join(name);
        fs::write(&file, format!("{script}\nif then fi (\n")).unwrap();
        if !shell(name) {
            continue;
        }
        let check = |file: &Path| {
            said({
                let mut command = Command::new(name);
                command.arg("-n").arg(file);
                command
            })
        };
        assert_ne!(check(&file).code, 0, "{name} sees a fault");
        fs::write(&file, script).unwrap();
        let found = check(&file).code(0);
        assert_eq!(found.err, "");
    }
    home.run(&["completions", "tcsh"]).code(2).one_error("is none of bash, zsh, fish");
    home.run(&["completions"]).code(2).one_error("SHELL is missing");
}

/// A home with names to complete, and a directory that has the program alone.
fn with_names() -> (Home, String) {
    let home = Home::new();
    home.release("v2.0.0", "");
    home.release("v2.1.0", "");
    home.plan("v3.0.0", 300);
    fs::create_dir_all(home.root().join("backups/v2.0.0-20260101-000000")).unwrap();
    fs::write(home.root().join("backups/v2.0.0-20260101-000000/manifest.json"), "{}").unwrap();
    let bin = home.dir.join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(wemixvisor(), bin.join("wemixvisor")).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.display());
    (home, path)
}

/// Lines up to the key, and what must then be offered (all of it) or, empty, nothing.
const LINES: &[(&str, &[&str])] = &[
    ("wemixvisor upgrade sch", &["schedule"]),
    ("wemixvisor upgrade show ", &["v2.0.0", "v2.1.0", "v3.0.0"]),
    ("wemixvisor upgrade now v2.1", &["v2.1.0"]),
    ("wemixvisor upgrade revert --to ", &["genesis", "v2.0.0", "v2.1.0"]),
    ("wemixvisor config set daemon_max_r", &["daemon_max_restarts"]),
    ("wemixvisor config set validator_mode ", &["false", "true"]),
    ("wemixvisor config unset ", &["daemon_name"]),
    ("wemixvisor config template v", &["validator"]),
    ("wemixvisor --set daemon_trial_b", &["daemon_trial_blocks="]),
    ("wemixvisor backup restore ", &["v2.0.0-20260101-000000"]),
    ("wemixvisor status --ch", &["--check"]),
    ("wemixvisor completions ", &["bash", "fish", "zsh"]),
    ("wemixvisor no-such ", &[]),
];

/// What a shell offers for a line, asked by a script.
fn offered(home: &Home, path: &str, shell: &[&str], script: &str) -> Vec<String> {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg(script).current_dir(&home.dir);
    take_env(&mut command, &home.command(&[]));
    command.env("PATH", path).env("TERM", "dumb");
    let found = said(command);
    let mut words: Vec<String> = found.out.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
    words.sort();
    assert_eq!(found.err, "", "{script}");
    words
}

#[test]
fn bash_completes_commands_settings_and_the_homes_names() {
    if !shell("bash") {
        return;
    }
    let (home, path) = with_names();
    let ask = |line: &str| {
        // Words as bash takes a line apart: = and : stand alone.
        let apart = line.replace('=', " = ").replace(':', " : ");
        let words: Vec<String> = apart.split(' ').map(|word| format!("$'{}'", word.replace('\'', "\\'"))).collect();
        let script = format!(
            "eval \"$(wemixvisor completions bash)\"; COMP_WORDS=({}); COMP_CWORD={}; _wemixvisor; \
             [ ${{#COMPREPLY[@]}} = 0 ] || printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1
        );
        offered(&home, &path, &["bash", "--norc", "-c"], &script)
    };
    for (line, words) in LINES {
        assert_eq!(ask(line), *words, "{line}");
    }
    // Behind = only what follows it is bash's to put in.
    assert_eq!(ask("wemixvisor --set validator_mode=t"), ["true"]);
    assert_eq!(ask("wemixvisor --auto-restart=f"), ["false"]);
    assert_eq!(ask("wemixvisor --set rpc_address=http://127.0.0.1:8545 upgrade sch"), ["schedule"]);
    // Files are bash's own affair.
    assert_eq!(ask("wemixvisor init bi"), ["bin"]);
    assert_eq!(ask("wemixvisor --home=bi"), ["bin"]);
    // Of another home.
    let other = home.dir.join("nobody");
    assert_eq!(ask(&format!("wemixvisor --home {} upgrade show ", other.display())), Vec::<String>::new());
    // In quotes, as a name with a space has to be.
    for quote in ['\'', '"'] {
        let line = format!("wemixvisor --home {quote}{}{quote} upgrade now v2.1", home.root().display());
        assert_eq!(ask(&line), ["v2.1.0"]);
    }
}

#[test]
fn fish_completes_the_same() {
    if !shell("fish") {
        return;
    }
    let (home, path) = with_names();
    for (line, words) in LINES {
        let script = format!("wemixvisor completions fish | source; complete -C '{line}'");
        assert_eq!(offered(&home, &path, &["fish", "--no-config", "-c"], &script), *words, "{line}");
    }
    fs::create_dir(home.dir.join("binaries")).unwrap();
    for (line, words) in [
        ("wemixvisor init bin", &["bin/", "binaries/"][..]),
        ("wemixvisor init ~/bina", &["~/binaries/"]),
        ("wemixvisor --config=bina", &["--config=binaries/"]),
        ("wemixvisor --home bina", &["binaries/"]),
    ] {
        let script = format!("set -gx HOME $PWD; wemixvisor completions fish | source; complete -C '{line}'");
        assert_eq!(offered(&home, &path, &["fish", "--no-config", "-c"], &script), *words, "{line}");
    }
}

#[test]
fn zsh_completes_the_same() {
    if !shell("zsh") {
        return;
    }
    let (home, path) = with_names();
    for (line, words) in LINES {
        // What zsh's own `_describe` would show: word:meaning.
        let script = format!(
            "compdef() {{ }}; _describe() {{ print -l -- ${{(P)2}} }}; eval \"$(wemixvisor completions zsh)\"; \
             words=({}); CURRENT=$#words; PREFIX=$words[-1]; _wemixvisor || true",
            line.split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
        );
        let found = offered(&home, &path, &["zsh", "-f", "-c"], &script);
        let found: Vec<&str> = found.iter().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(found, *words, "{line}");
    }
}
