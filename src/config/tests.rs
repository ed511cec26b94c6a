//! Settings from all their sources: which wins, what is refused, and how it is told.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::time::Duration;

use super::*;

/// A directory of its own for each test that needs files.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("wemixvisor-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("wemixvisor")).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn from(flags: &[(&str, &str)], env: &[(&str, &str)], etc: &str, config_file: Option<&Path>) -> Result<Settings> {
    let (flags, env) = (pairs(flags), pairs(env));
    resolve(&Sources { flags: &flags, config_file: config_file.map(Path::to_owned), env: &env, etc: Path::new(etc) })
}

/// With these variables and nothing else but a home.
fn with(env: &[(&str, &str)]) -> Result<Config> {
    let all: Vec<(&str, &str)> = [("HOME", "/nowhere")].iter().chain(env).copied().collect();
    from(&[], &all, "/nowhere", None)?.config()
}

fn error(result: Result<Settings>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code, crate::error::Code::Usage);
    error.message
}

#[test]
fn every_default_goes_through_its_parser() {
    let settings = from(&[], &[("HOME", "/nowhere")], "/nowhere", None).unwrap();
    assert!(settings.warnings.is_empty() && settings.files.is_empty() && settings.values.len() == SETTINGS.len());
    let config = settings.config().unwrap();
    assert_eq!(config.home, Path::new("/nowhere/.wemixd"));
    assert_eq!((config.name.as_str(), config.network.as_str()), ("wemixd", "mainnet"));
    assert_eq!(config.rpc_address, [Address::Http("http://127.0.0.1:8545".to_owned())]);
    assert_eq!(settings.get("DAEMON_RPC_ADDRESS").value, "localhost:8545");
    assert_eq!(config.data_backup_dir, Path::new("/nowhere/.wemixd/backups"));
    assert_eq!((config.min_disk, config.max_memory, config.log_max_size), (10 << 30, None, 512 << 20));
    assert_eq!((config.poll_interval, config.restart_delay), (Duration::from_millis(300), Duration::ZERO));
    assert!(config.restart_after_upgrade && config.restart_on_failure && config.upgrade_enabled && config.color_logs);
    assert!(!config.rpc_address_given && !config.skip_backup && !config.skip_checksum && !config.allow_empty_data);
    assert_eq!((config.max_restarts, config.trial_blocks, config.rolling_spacing), (5, 20, 60));
    let mut variables: Vec<&str> = SETTINGS.iter().map(|setting| setting.variable).collect();
    variables.sort_unstable();
    variables.dedup();
    assert_eq!(variables.len(), SETTINGS.len());
}

#[test]
fn what_was_resolved_survives_a_journey_as_json() {
    let settings = from(&[("DAEMON_NAME", "geth")], &[("HOME", "/nowhere")], "/nowhere", None).unwrap();
    let back: Settings = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
    assert_eq!(back, settings);
    let from_elsewhere = Settings { values: Vec::new(), ..settings };
    assert!(from_elsewhere.config().unwrap_err().message.contains("DAEMON_HOME"));
}

#[test]
fn values_as_in_the_cases() {
    // Variable, what is fine and what is not: CASES.md A10-A51, where SPEC.md does not say otherwise.
    let table: &[(&str, &[&str], &[&str])] = &[
        (
            "DAEMON_ALLOW_DOWNLOAD_BINARIES",
            &["", "true", "false", "faLSe", "TRUE"],
            &["wrong", "truee", "1", "yes", " true"],
        ),
        ("DAEMON_RESTART_AFTER_UPGRADE", &["", "true", "false"], &["bad"]),
        ("UNSAFE_SKIP_BACKUP", &["", "true", "false"], &["bad"]),
        ("DAEMON_POLL_INTERVAL", &["", "1s", "10ms"], &["bad", "0", "600", "-3m", "9ms", "1.5s"]),
        ("DAEMON_RESTART_DELAY", &["", "0", "1s"], &["bad", "600", "-3m", "1w", "s", "5s "]),
        ("DAEMON_PREUPGRADE_MAX_RETRIES", &["", "0", "5"], &["bad", "-1", "+1", "1.5", "99999999999999999999"]),
        ("COSMOVISOR_DISABLE_LOGS", &["", "true"], &["bad"]),
        ("COSMOVISOR_COLOR_LOGS", &["", "false"], &["bad"]),
        ("COSMOVISOR_TIMEFORMAT_LOGS", &["", "rfc3339", "kitchen"], &["wrong"]),
        ("COSMOVISOR_DISABLE_RECASE", &["", "true"], &["bad"]),
        ("DAEMON_SHUTDOWN_GRACE", &["", "15s", "0"], &["15"]),
        ("DAEMON_SHUTDOWN_LIMIT", &["1s"], &["0", "999ms"]),
        ("DAEMON_HEIGHT_POLL_INTERVAL", &["100ms"], &["99ms", "0"]),
        ("DAEMON_HOME", &["", "/a", "/a//b/", "/"], &["a", "./a", "~/a", "/a\nb"]),
        ("DAEMON_NAME", &["", "geth", "a b", "ß"], &["a/b", "/", ".", "..", "a\nb"]),
        ("DAEMON_NETWORK", &["", "testnet"], &["a\u{7}", &"x".repeat(65)]),
        ("DAEMON_DATA_BACKUP_DIR", &["", "/b", "$DAEMON_HOME/b"], &["relative", "$HOME/b"]),
        ("DAEMON_UPGRADE_TRIGGER", &["height", "file"], &["heigth"]),
        ("DAEMON_BACKUP_MODE", &["auto", "snapshot", "copy"], &["tar"]),
        (
            "DAEMON_MIN_DISK",
            &["0", "1B", "100GB", "512mib", "1048576TiB"],
            &["100", "1.5GB", "GB", "1GB1MB", "1PB", "1048577TiB", "99999999999999999999B"],
        ),
        ("DAEMON_UPGRADE_LEAD", &["0", "1000000000"], &["-1", "1000000001", "1e3"]),
        ("COSMOVISOR_CUSTOM_PREUPGRADE", &["", "/x", "hook.sh", "a/hook.sh"], &["../x", "a/../../x"]),
        (
            "DAEMON_RPC_ADDRESS",
            &[
                "",
                "localhost:8545",
                "[::1]:8545",
                "http://h",
                "https://h:1/path?x=y",
                "https://u:p@h/",
                "/a/geth.ipc",
                "a:1, /b,http://c:3",
            ],
            &[
                "localhost",
                ":8545",
                "h:0",
                "h:65536",
                "h:+1",
                "h:",
                "http://",
                "http://:1",
                "ws://h:1",
                "a:1,,b:1",
                "a:1,",
                "a b:1",
                "[::1]",
                "[x]:1",
                "geth.ipc",
            ],
        ),
    ];
    for (variable, good, bad) in table {
        for value in *good {
            assert!(with(&[(variable, value)]).is_ok(), "{variable}={value}: {:?}", with(&[(variable, value)]));
        }
        for value in *bad {
            let error = with(&[(variable, value)]).unwrap_err().message;
            assert!(
                error.starts_with(variable) && error.contains("allowed: ") && error.lines().count() == 1,
                "{variable}={value}: {error}"
            );
        }
    }
}

#[test]
fn values_mean_what_they_say() {
    let config = with(&[
        ("DAEMON_HOME", "//srv/./node//"),
        ("DAEMON_SHUTDOWN_GRACE", "15s"),
        ("DAEMON_RESTART_AFTER_UPGRADE", "faLSe"),
        ("DAEMON_RPC_ADDRESS", "localhost:8546,/srv/geth.ipc,https://h"),
        ("DAEMON_LOG_FILE", "$DAEMON_HOME/logs/x.log"),
        ("DAEMON_MAX_MEMORY", "100GB"),
        ("DAEMON_UPGRADE_TRIGGER", "FILE"),
        ("DAEMON_MAX_RESTARTS", "7"),
    ])
    .unwrap();
    assert_eq!(config.home.to_str(), Some("/srv/node"));
    assert_eq!(config.log_file.as_deref(), Some(Path::new("/srv/node/logs/x.log")));
    assert_eq!(config.shutdown_grace, Duration::from_secs(15));
    assert!(!config.restart_after_upgrade && config.rpc_address_given);
    let shown: Vec<String> = config.rpc_address.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["http://localhost:8546", "/srv/geth.ipc", "https://h"]);
    assert_eq!(
        (config.max_memory, config.upgrade_trigger, config.max_restarts),
        (Some(100_000_000_000), Trigger::File, 7)
    );
}

#[test]
fn flag_beats_variable_beats_file_beats_etc_beats_default() {
    let folder = Folder::new("precedence");
    let home = folder.0.to_str().unwrap();
    let etc = folder.file(
        "etc.toml",
        &format!("daemon_home = {home:?}\ndaemon_name = 'e'\ndaemon_network = 'e'\nnode_args = ['e']\ndaemon_max_restarts = 1"),
    );
    let own = folder.file(
        "wemixvisor/config.toml",
        "# mine\ndaemon_name = 'f'\ndaemon_network = 'f'\nvalidator_mode = true\ncosmovisor_disable_recase = true\nnode_args = ['--port', 1]",
    );
    let etc = etc.to_str().unwrap();
    let settings = from(
        &[("network", "x"), ("NETWORK", "g")],
        &[("DAEMON_NAME", "v"), ("DAEMON_NETWORK", "v"), ("DAEMON_POLL_INTERVAL", "")],
        etc,
        None,
    )
    .unwrap();
    let told = |variable: &str| (settings.get(variable).value.as_str(), settings.get(variable).origin.to_string());
    assert_eq!(told("DAEMON_HOME"), (home, format!("file {etc}")));
    assert_eq!(told("DAEMON_NETWORK"), ("g", "flag --set NETWORK".to_owned()));
    assert_eq!(told("DAEMON_NAME"), ("v", "variable DAEMON_NAME".to_owned()));
    assert_eq!(told("VALIDATOR_MODE"), ("true", format!("file {}", own.display())));
    assert_eq!(told("DAEMON_MAX_RESTARTS"), ("1", format!("file {etc}")));
    assert_eq!(told("DAEMON_POLL_INTERVAL"), ("300ms", "default".to_owned()));
    assert_eq!(settings.files, [Path::new(etc), &own]);
    assert_eq!(settings.node_args, ["--port", "1"]);
    assert_eq!(settings.node_args_origin, Origin::File(own));
    assert_eq!(settings.warnings, ["COSMOVISOR_DISABLE_RECASE of cosmovisor is accepted but does nothing"]);

    // A file named takes the place of the home's, and it may say where the home is; DAEMON_CONFIG names one too.
    let other = folder.file("other.toml", "daemon_network = 'o'\ndaemon_home = '/o'");
    for settings in [
        from(&[], &[], etc, Some(&other)).unwrap(),
        from(&[], &[("DAEMON_CONFIG", other.to_str().unwrap())], etc, None).unwrap(),
    ] {
        assert_eq!(
            (settings.get("DAEMON_NETWORK").value.as_str(), settings.get("DAEMON_HOME").value.as_str()),
            ("o", "/o")
        );
        assert_eq!(settings.get("DAEMON_NAME").value, "e");
        assert_eq!((settings.node_args, settings.node_args_origin), (vec!["e".to_owned()], Origin::File(etc.into())));
        assert!(settings.warnings.is_empty());
    }
    let flag = from(&[("DAEMON_HOME", "/f")], &[("DAEMON_HOME", "/v")], etc, None).unwrap();
    assert_eq!(
        flag.get("DAEMON_HOME"),
        &Resolved { key: "daemon_home".into(), value: "/f".into(), origin: Origin::Flag("--home".into()) }
    );
}

#[test]
fn all_errors_of_all_sources_are_told_at_once() {
    let folder = Folder::new("errors");
    let home = folder.0.to_str().unwrap();
    folder.file(
        "wemixvisor/config.toml",
        "\ndaemon_home = '/x'\ndaemon_pol_interval = '1s'\ndaemon_name = 1.5\nnode_args = 'x'\n[section]\n",
    );
    let etc = folder.file("etc.toml", "daemon_min_peers = -1\ndaemon_grpc_address = 'x'\n");
    let etc = etc.to_str().unwrap();
    let flags = [("nonsense_of_mine", "1"), ("DAEMON_MAX_RESTARTS", "many"), ("max_restarts", "3")];
    let error = error(from(&flags, &[("DAEMON_HOME", home), ("DAEMON_POLL_INTERVAL", "600")], etc, None));
    let wanted = [
        "daemon_home (file H/wemixvisor/config.toml, line 2): a file in the home cannot say where the home is",
        "daemon_pol_interval: no such setting (file H/wemixvisor/config.toml, line 3); did you mean daemon_poll_interval?",
        "daemon_name (file H/wemixvisor/config.toml, line 4) must be a string",
        "node_args (file H/wemixvisor/config.toml, line 5) must be a list of strings",
        "section: no such setting (file H/wemixvisor/config.toml, line 6)",
        "daemon_grpc_address: no such setting (file H/etc.toml, line 2); the head is asked for by JSON-RPC",
        "nonsense_of_mine: no such setting (flag --set)",
        "DAEMON_MIN_PEERS: \"-1\" (file H/etc.toml, line 1) is not a whole number; allowed: ",
        "DAEMON_POLL_INTERVAL: \"600\" (variable DAEMON_POLL_INTERVAL) has no unit (ms, s, m, h, d); allowed: a duration of at least 10ms",
        "DAEMON_MAX_RESTARTS: \"many\" (flag --max-restarts) is not a whole number",
    ];
    assert_eq!(error.lines().count(), wanted.len(), "{error}");
    for line in wanted {
        assert!(error.contains(&line.replace("H/", &format!("{home}/"))), "{line}\n---\n{error}");
    }
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let folder = Folder::new("files");
    let home = folder.0.to_str().unwrap();
    let missing = folder.0.join("missing.toml");
    assert!(
        error(from(&[], &[("DAEMON_HOME", home)], "/nowhere", Some(&missing))).contains("missing.toml: No such file")
    );
    assert!(error(from(&[], &[("DAEMON_HOME", home)], home, None)).contains("not a regular file"));
    folder.file("wemixvisor/config.toml", "daemon_name = 'a'\ndaemon_name = 'b'\n");
    let twice = error(from(&[], &[("DAEMON_HOME", home)], "/nowhere", None));
    assert!(twice.contains("config.toml, line 2: not TOML: ") && twice.lines().count() == 1, "{twice}");
}

#[test]
fn a_home_must_come_from_somewhere() {
    assert!(error(from(&[], &[], "/nowhere", None)).contains("set DAEMON_HOME or give --home"));
    assert!(error(from(&[], &[("HOME", ""), ("DAEMON_HOME", "")], "/nowhere", None)).contains("set DAEMON_HOME"));
    assert!(
        error(from(&[("DAEMON_HOME", "")], &[("HOME", "/h")], "/nowhere", None)).contains("(flag --home) is empty")
    );
    use std::os::unix::ffi::OsStringExt;
    let odd = || OsString::from_vec(b"/\xff".to_vec());
    let told = environment([("DAEMON_HOME".into(), odd()), ("DAEMON_NAME".into(), "x".into())]).unwrap_err().message;
    assert!(told.starts_with("DAEMON_HOME: ") && told.contains("not UTF-8"), "{told}");
    assert_eq!(environment([("LS_COLORS".into(), odd()), ("A".into(), "b".into())]).unwrap(), pairs(&[("A", "b")]));
}

#[test]
fn unknown_variables_are_warnings_and_name_the_nearest() {
    let env = [
        ("HOME", "/h"),
        ("DAEMON_POL_INTERVAL", "x"),
        ("DAEMON_GRPC_ADDRESS", "x"),
        ("DAEMON_CONFIG", ""),
        ("COSMOVISOR_DISABLE_RECASE", "true"),
        ("DAEMON_QZJXKWVQZ", "1"),
    ];
    let warnings = from(&[], &env, "/nowhere", None).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "DAEMON_POL_INTERVAL is no setting and does nothing; did you mean DAEMON_POLL_INTERVAL?",
            "DAEMON_GRPC_ADDRESS is no setting and does nothing; the head is asked for by JSON-RPC, see DAEMON_RPC_ADDRESS",
            "DAEMON_QZJXKWVQZ is no setting and does nothing; `wemixvisor config show` lists them all",
            "COSMOVISOR_DISABLE_RECASE of cosmovisor is accepted but does nothing",
        ]
    );
}

#[test]
fn durations_are_shown_as_they_are_read() {
    for text in ["0", "1ms", "300ms", "5s", "2m30s", "1h", "7d", "2h30m45s", "1d2h3m4s5ms", "36500d"] {
        assert_eq!(show_duration(duration(text).unwrap()), text);
    }
    for (text, same) in [("90s", "1m30s"), ("1000ms", "1s"), ("0s", "0"), ("007s", "7s"), ("30s2m", "2m30s")] {
        assert_eq!(show_duration(duration(text).unwrap()), same);
    }
    assert_eq!(show_duration(Duration::from_micros(1_999)), "1ms");
    for text in [
        "",
        "s",
        "5",
        "05",
        "5x",
        "5 s",
        "-5s",
        "+5s",
        "1.5h",
        "5sm",
        "5µs",
        "36501d",
        "18446744073709551615d",
        "99999999999999999999999s",
        "36500d1ms",
    ] {
        assert!(duration(text).is_err(), "{text}");
    }
    let _ = show_duration(Duration::MAX);
}

#[test]
fn sizes_are_shown_for_people() {
    for text in ["0", "1B", "1KiB", "512MiB", "10GiB", "2TiB"] {
        assert_eq!(show_size(size(text).unwrap()), text);
    }
    assert_eq!(show_size(100_000_000_000), "93.1GiB");
    assert_eq!(show_size(u64::MAX), "16777215.9TiB");
}

#[test]
fn the_nearest_word_is_near() {
    let words = ["--max-restarts", "--home", "--name"];
    assert_eq!(nearest("--max-restart", words), Some("--max-restarts"));
    assert_eq!(nearest("--hoem", words), Some("--home"));
    assert_eq!(nearest("quarrelsome", words), None);
    assert_eq!(nearest("", words), None);
}

#[test]
fn the_file_that_init_writes_holds_every_setting_and_can_be_read() {
    let folder = Folder::new("commented");
    let home = folder.0.to_str().unwrap();
    let name = "a \"b\"";
    folder.file("wemixvisor/config.toml", &file::commented(file::INTRO, &[("daemon_name", file::literal(name))]));
    let settings = from(&[], &[("DAEMON_HOME", home)], "/nowhere", None).unwrap();
    assert_eq!(settings.get("DAEMON_NAME").value, name);
    assert!(settings.warnings.is_empty());

    // With every comment sign in front of a setting removed, it says the defaults.
    let text = file::commented(file::INTRO, &[]);
    let open: Vec<&str> =
        text.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)).collect();
    folder.file("wemixvisor/config.toml", &open.join("\n"));
    let all = from(&[], &[("DAEMON_HOME", home)], "/nowhere", None).unwrap();
    let said = all.values.iter().filter(|said| matches!(said.origin, Origin::File(_))).count();
    assert_eq!(said, SETTINGS.len() - 1);
    fs::remove_file(folder.0.join("wemixvisor/config.toml")).unwrap();
    let none = from(&[], &[("DAEMON_HOME", home)], "/nowhere", None).unwrap();
    let texts = |settings: &Settings| settings.values.iter().map(|said| said.value.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&all), texts(&none));
}
