//! Metrics: the same in each form, from a running supervisor and without one, and a file that is always whole.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Said, kill, under, until};

/// The value of a series.
/// The value of a series, whose home is left out.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let (name, rest) = line.split_once("{home=\"")?;
        let (_, rest) = rest.split_once('"')?;
        let plain = match rest.strip_prefix(',') {
            Some(labels) => format!("{name}{{{labels}"),
            None => format!("{name}{}", rest.strip_prefix('}')?),
        };
        plain.strip_prefix(series)?.strip_prefix(' ')?.parse().ok()
    })
}

fn shown(home: &Home) -> String {
    home.run(&["metrics", "show", "--prometheus"]).code(0).out
}

/// What Prometheus' own checker says of it; none where it is not installed.
fn promtool(text: &str) -> Option<Said> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .inspect_err(|_| eprintln!("SKIPPED: promtool is not here to check the metrics"))
        .ok()?;
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Some(Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) })
}

#[test]
fn an_upgrade_is_seen_in_the_metrics_from_its_plan_to_its_figures() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000");
    home.plan("v2", 40);
    // However full this machine's disk is: the backup is counted.
    let mut visor = home.supervise(&["--set", "min_disk=0"], &["--start-head", "35", "--halt-at", "38"]);
    let text = until("all is measured", || {
        let text = shown(&home);
        (value(&text, "wemixvisor_head_block") == Some(38.0)
            && value(&text, "wemixvisor_upgrade_staged{name=\"v2\"}") == Some(1.0)
            && value(&text, "wemixvisor_node_memory_bytes").is_some())
        .then_some(text)
    });
    for (series, wanted) in [
        ("wemixvisor_up", 1.0),
        ("wemixvisor_node_up", 1.0),
        ("wemixvisor_state{state=\"running\"}", 1.0),
        ("wemixvisor_upgrade_due_block{name=\"v2\"}", 39.0),
        ("wemixvisor_upgrade_left_blocks{name=\"v2\"}", 1.0),
        ("wemixvisor_node_restarts_total{reason=\"upgrade\"}", 0.0),
        ("wemixvisor_upgrades_total{result=\"committed\"}", 0.0),
        ("wemixvisor_backups", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(wanted), "{series}\n{text}");
    }
    assert!(value(&text, "wemixvisor_supervisor_memory_bytes").unwrap() > 1e5, "{text}");
    assert!(
        value(&text, "wemixvisor_data_free_bytes").unwrap() > 0.0
            && value(&text, "wemixvisor_node_cpu_seconds_total").is_some()
    );
    if let Some(said) = promtool(&text) {
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "{text}");
        // The control: it sees a name that breaks the rules.
        assert_ne!(
            promtool(&text.replace("wemixvisor_node_restarts_total", "wemixvisor_node_restarts")).unwrap().code,
            0
        );
    }
    home.run(&["upgrade", "now", "v2"]).code(0);
    let line = home.until_finished("v2", "committed")["last_upgrade"].clone();
    let text = shown(&home);
    let down: f64 = ["stop", "backup", "hook", "switch", "start"]
        .iter()
        .map(|phase| value(&text, &format!("wemixvisor_upgrade_downtime_seconds{{phase=\"{phase}\"}}")).unwrap())
        .sum();
    assert!((down * 1000.0 - line["downtime_ms"].as_f64().unwrap()).abs() < 1.0, "{down} {line}");
    for (series, wanted) in [
        ("wemixvisor_node_restarts_total{reason=\"upgrade\"}", 1.0),
        ("wemixvisor_upgrades_total{result=\"committed\"}", 1.0),
        ("wemixvisor_backups", 1.0),
    ] {
        assert_eq!(value(&text, series), Some(wanted), "{series}\n{text}");
    }
    assert!(value(&text, "wemixvisor_backup_bytes").unwrap() > 0.0, "{text}");
    // A crash and a restart that was asked for are told apart.
    kill(home.status()["pid"].as_u64().unwrap().try_into().unwrap(), Signal::KILL);
    until("it was counted", || {
        (value(&shown(&home), "wemixvisor_node_restarts_total{reason=\"crash\"}") == Some(1.0)).then_some(())
    });
    home.run(&["restart"]).code(0);
    assert_eq!(value(&shown(&home), "wemixvisor_node_restarts_total{reason=\"operator\"}"), Some(1.0));
    // The same in the other forms.
    let json = home.run(&["metrics", "show", "--json"]).code(0).json();
    let metric = |name: &str| json["metrics"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone();
    assert_eq!(metric("wemixvisor_up")["samples"][0]["value"].as_f64(), Some(1.0));
    assert!(
        home.run(&["metrics", "show"])
            .code(0)
            .out
            .lines()
            .any(|line| line.starts_with("wemixvisor_node_memory_bytes") && line.ends_with("iB"))
    );
    visor.stop();
    let text = shown(&home);
    assert_eq!((value(&text, "wemixvisor_up"), value(&text, "wemixvisor_backups")), (Some(0.0), Some(1.0)));
}

/// A directory for the file, which whoever runs this may be kept out of.
fn textfile(home: &Home) -> (std::path::PathBuf, String) {
    let dir = home.dir.join("textfile");
    fs::create_dir(&dir).unwrap();
    let set = format!("metrics_textfile={}/wemixvisor.prom", dir.display());
    (dir, set)
}

#[test]
fn the_file_is_always_whole_and_says_when_the_supervisor_has_left() {
    let home = Home::new();
    let (dir, set) = textfile(&home);
    let mut visor = home.supervise(&["--set", &set, "--set", "metrics_interval=1s"], &[]);
    let file = dir.join("wemixvisor.prom");
    until("it is there", || file.exists().then_some(()));
    let first = fs::metadata(&file).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o644);
    // Read all the time, it is never seen in part.
    let later = until("it was written again", || {
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(value(&text, "wemixvisor_up"), Some(1.0), "{text}");
        assert!(text.ends_with('\n') && text.contains("wemixvisor_supervisor_log_lines_lost_total{"), "{text}");
        (fs::metadata(&file).unwrap().ino() != first.ino() && value(&text, "wemixvisor_node_up") == Some(1.0))
            .then_some(text)
    });
    assert_eq!(value(&later, "wemixvisor_node_up"), Some(1.0));
    visor.stop();
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!((value(&text, "wemixvisor_up"), value(&text, "wemixvisor_node_up")), (Some(0.0), Some(0.0)), "{text}");
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["wemixvisor.prom"], "no draft is left");
}

#[test]
fn a_file_that_cannot_be_written_is_a_warning_once_and_counts_again_when_it_can() {
    let home = Home::new();
    let dir = home.dir.join("later");
    let set = format!("metrics_textfile={}/x.prom", dir.display());
    let mut visor = home.supervise(&["--set", &set, "--set", "metrics_interval=1s"], &[]);
    home.until_log("x.prom");
    visor.until_up();
    fs::create_dir(&dir).unwrap();
    until("it is written", || dir.join("x.prom").exists().then_some(()));
    visor.stop();
    assert_eq!(home.logged("cannot write the metrics"), 1, "{}", home.log());
}

#[test]
fn the_file_is_for_everybody_to_read_and_a_draft_that_lies_about_is_no_way_to_other_files() {
    let home = Home::new();
    let (dir, set) = textfile(&home);
    let other = home.dir.join("other");
    fs::write(&other, "untouched").unwrap();
    std::os::unix::fs::symlink(&other, dir.join(".wemixvisor.prom.tmp")).unwrap();
    let inner = home.command(&["--set", &set, "--set", "metrics_interval=1s", "run"]);
    let mut command = under(&["sh", "-c", "umask 077; exec \"$0\" \"$@\""], &inner);
    command.args(home.node_args());
    let mut visor = home.spawn(command);
    visor.until_up();
    let file = dir.join("wemixvisor.prom");
    until("it is there", || file.exists().then_some(()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    visor.stop();
    assert_eq!(fs::read_to_string(&other).unwrap(), "untouched");
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["wemixvisor.prom"], "no draft is left");
}

#[test]
fn the_dashboard_is_json_and_needs_no_home() {
    let said = crate::support::said({
        let mut command = Command::new(crate::support::wemixvisor());
        command.args(["--home", "/nowhere", "metrics", "dashboard"]);
        command
    })
    .code(0);
    let dashboard: Value = said.json();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn a_file_that_another_takes_the_place_of_is_removed_and_the_last_one_says_that_all_is_over() {
    let home = Home::new();
    let files: Vec<_> = ["a.prom", "b.prom"].map(|name| home.dir.join(name)).to_vec();
    let set = |file: &Path| {
        home.run(&["config", "set", "metrics_textfile", file.to_str().unwrap()]).code(0);
    };
    let says = |file: &Path, up: f64| {
        until(&format!("{} says {up}", file.display()), || {
            let text = fs::read_to_string(file).unwrap_or_default();
            (value(&text, "wemixvisor_up") == Some(up)).then_some(())
        });
    };
    let mut visor = home.supervise(&["--set", "metrics_interval=1s"], &[]);
    visor.until_up();
    // Named while it runs.
    set(&files[0]);
    visor.signal(Signal::HUP);
    says(&files[0], 1.0);
    set(&files[1]);
    visor.signal(Signal::HUP);
    says(&files[1], 1.0);
    until("the first one is removed", || (!files[0].exists()).then_some(()));
    visor.stop();
    says(&files[1], 0.0);
    assert_eq!(value(&fs::read_to_string(&files[1]).unwrap(), "wemixvisor_state{state=\"stopped\"}"), Some(1.0));
}

#[test]
fn without_a_supervisor_the_state_is_the_one_that_status_tells() {
    let (home, killed) = (Home::new(), Home::new());
    let state = |home: &Home, state: &str| value(&shown(home), &format!("wemixvisor_state{{state=\"{state}\"}}"));
    let file = home.dir.join("x.prom");
    let setting = format!("metrics_textfile={}", file.display());
    let mut visor = home.supervise(&["--set", "max_restarts=0", "--set", &setting], &["--die-after", "1500ms"]);
    visor.until_up();
    assert_eq!(visor.end(), 5);
    assert_eq!((state(&home, "error"), state(&home, "stopped")), (Some(1.0), Some(0.0)));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(value(&text, "wemixvisor_state{state=\"error\"}"), Some(1.0), "who left says why");
    let mut visor = killed.supervise(&[], &[]);
    visor.until_up();
    visor.kill();
    until("its node is gone", || killed.nodes().is_empty().then_some(()));
    assert_eq!((state(&killed, "crashed"), state(&killed, "stopped")), (Some(1.0), Some(0.0)));
}
