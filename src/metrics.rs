//! What is measured: one table of metrics, from which all of their forms are made, and the facts that it is filled from.
//! Names follow Prometheus: base units, `_total` for what only grows, `_info` for what is told by labels.

pub mod dashboard;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{show_duration, show_size};
use crate::journal::{History, Outcome};

/// What every name begins with.
pub const PREFIX: &str = "wemixvisor_";

/// All that the metrics are made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The home that they are of.
    pub home: String,
    /// What the supervisor tells; none where there is none.
    pub live: Option<Live>,
    /// What is on disk.
    pub disk: OnDisk,
}

/// What a supervisor knows without looking anywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Its process id.
    pub supervisor: u32,
    /// The public state.
    pub state: String,
    /// DAEMON_NETWORK.
    pub network: String,
    /// The release that `current` points at.
    pub release: Option<String>,
    /// The node's version.
    pub version: Option<String>,
    /// Whether the node lives.
    pub node: bool,
    /// How long it has lived.
    pub uptime: Duration,
    /// How often it was started again, by reason.
    pub restarts: BTreeMap<String, u64>,
    /// Its head.
    pub head: Option<u64>,
    /// The block that it knows to be the highest, while it syncs.
    pub highest: Option<u64>,
    /// How old the head is.
    pub head_age: Option<Duration>,
    /// How long the head has stood still.
    pub head_still: Option<Duration>,
    /// How many peers it has.
    pub peers: Option<u64>,
    /// Whether it syncs; none: it does not answer.
    pub syncing: Option<bool>,
    /// How long its last answer took.
    pub latency: Option<Duration>,
    /// Resident memory of it and all that it started, in bytes.
    pub memory: Option<u64>,
    /// Processor time of the same.
    pub cpu: Option<Duration>,
    /// Free and all bytes of the file system that its data lies on.
    pub disk: Option<(u64, u64)>,
    /// Whether it is healthy in all.
    pub healthy: bool,
    /// By check.
    pub checks: BTreeMap<String, bool>,
    /// The next plan.
    pub pending: Option<Pending>,
    /// Whether an upgrade is under way, its trial included.
    pub upgrading: bool,
    /// Files that should be plans and are not.
    pub plan_errors: u64,
    /// Bytes of releases that were fetched.
    pub downloaded: u64,
    /// Why the start is held, in a word.
    pub hold: Option<String>,
    /// The validator that it is.
    pub validator: Option<Validator>,
    /// The longest turn of the supervisor's loop.
    pub longest_turn: Duration,
    /// Lines of the supervisor's log that nobody read.
    pub log_lines_lost: u64,
}

/// A plan that waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// Its name.
    pub name: String,
    /// Its height.
    pub height: u64,
    /// The head at which it is due here.
    pub due: u64,
    /// Whether its release passes all checks.
    pub staged: bool,
}

/// A validator among the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validator {
    /// Its place, from 0; none: it is in no set.
    pub rank: Option<u64>,
    /// How many there are.
    pub of: u64,
    /// The fewest that can go on.
    pub quorum: u64,
    /// How many others signed lately.
    pub others: u64,
    /// The block of its turn in the next plan.
    pub slot: Option<u64>,
}

/// What is found on disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnDisk {
    /// Finished upgrades by result.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// The last one that was committed.
    pub committed: Option<History>,
    /// How many complete backups there are.
    pub backups: u64,
    /// The newest of them: when it was made, seconds since 1970, and how many bytes it holds.
    pub backup: Option<(u64, u64)>,
    /// Resident memory of the supervisor, in bytes.
    pub supervisor_memory: Option<u64>,
    /// The state while there is no supervisor.
    pub state: &'static str,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, but for a new start of the supervisor.
    Counter,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

/// The values of its labels, and its own.
type Sample = (Vec<String>, f64);

/// One row of the table.
pub struct Metric {
    /// Its name behind the prefix.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The panel of the dashboard that shows it.
    pub panel: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Its samples; none where nothing is known.
    samples: fn(&Facts) -> Vec<Sample>,
}

/// The public states.
const STATES: [&str; 7] = ["stopped", "starting", "running", "stopping", "upgrading", "error", "crashed"];

/// Every metric, in the order in which they are told.
#[rustfmt::skip]
pub static METRICS: &[Metric] = &[
    gauge("build_info", &["version"], "Versions", "The version of wemixvisor, always 1.",
        |_| vec![(vec![env!("CARGO_PKG_VERSION").to_owned()], 1.0)]),
    gauge("up", &[], "State", "Whether a supervisor runs.", |f| one(Some(truth(f.live.is_some())))),
    gauge("state", &["state"], "State", "The public state: 1 for the present one.", states),
    gauge("node_up", &[], "State", "Whether the node lives.", |f| one(Some(truth(f.live.as_ref().is_some_and(|l| l.node))))),
    gauge("node_info", &["version", "release", "network"], "Versions", "What runs, always 1.", node_info),
    gauge("node_uptime_seconds", &[], "Uptime", "How long the node has lived.", |f| live(f, |l| seconds(l.node.then_some(l.uptime)))),
    counter("node_restarts_total", &["reason"], "Restarts", "How often the node was started again since the supervisor was started.",
        |f| by(f.live.iter().flat_map(|l| &l.restarts))),
    gauge("node_memory_bytes", &[], "Memory", "Resident memory of the node and all that it started.", |f| live(f, |l| number(l.memory))),
    counter("node_cpu_seconds_total", &[], "Processor", "Processor time of the node and all that it started.", |f| live(f, |l| seconds(l.cpu))),
    gauge("head_block", &[], "Head", "The node's head.", |f| live(f, |l| number(l.head))),
    gauge("highest_block", &[], "Head", "The highest block that a syncing node knows of.", |f| live(f, |l| number(l.highest))),
    gauge("head_age_seconds", &[], "Age of the head", "The time since the head's own time stamp.", |f| live(f, |l| seconds(l.head_age))),
    gauge("head_still_seconds", &[], "Age of the head", "The time since the head changed last.", |f| live(f, |l| seconds(l.head_still))),
    gauge("peers", &[], "Peers", "How many peers the node has.", |f| live(f, |l| number(l.peers))),
    gauge("syncing", &[], "State", "Whether the node says that it syncs.", |f| live(f, |l| l.syncing.map(truth))),
    gauge("rpc_latency_seconds", &[], "Latency of the RPC", "How long the node's last answer took.", |f| live(f, |l| seconds(l.latency))),
    gauge("data_free_bytes", &[], "Disk", "Free bytes of the file system that the node's data lies on.", |f| live(f, |l| number(l.disk.map(|(free, _)| free)))),
    gauge("data_used_bytes", &[], "Disk", "Used bytes of the same file system.", |f| live(f, |l| number(l.disk.map(|(free, all)| all.saturating_sub(free))))),
    gauge("healthy", &[], "Health", "Whether the node is healthy in all.", |f| live(f, |l| Some(truth(l.healthy)))),
    gauge("check_healthy", &["check"], "Health", "The same by check.",
        |f| f.live.iter().flat_map(|l| &l.checks).map(|(name, well)| (vec![name.clone()], truth(*well))).collect()),
    counter("upgrades_total", &["result"], "Upgrades", "Finished upgrades, as the history has them.", outcomes),
    gauge("upgrade_running", &[], "Upgrades", "Whether an upgrade is under way, its trial included.", |f| live(f, |l| Some(truth(l.upgrading)))),
    gauge("upgrade_height_block", &["name"], "Next upgrade", "The height of the next plan.", |f| pending(f, |p, _| Some(p.height as f64))),
    gauge("upgrade_due_block", &["name"], "Next upgrade", "The head at which the next plan is due here.", |f| pending(f, |p, _| Some(p.due as f64))),
    gauge("upgrade_left_blocks", &["name"], "Blocks until the next upgrade", "How many blocks that is away.",
        |f| pending(f, |p, head| head.map(|head| p.due.saturating_sub(head) as f64))),
    gauge("upgrade_staged", &["name"], "Next upgrade", "Whether the release of the next plan passes all checks.", |f| pending(f, |p, _| Some(truth(p.staged)))),
    gauge("upgrade_downtime_seconds", &["phase"], "Downtime of the last upgrade", "The time without a node of the last committed upgrade, by phase.", phases),
    gauge("upgrade_finished_timestamp_seconds", &[], "Last upgrade", "When the last committed upgrade was finished.",
        |f| one(f.disk.committed.as_ref().and_then(|h| timestamp(&h.finished)))),
    gauge("plan_errors", &[], "Next upgrade", "Files that should be plans and are not.", |f| live(f, |l| Some(l.plan_errors as f64))),
    counter("download_bytes_total", &[], "Downloads", "Bytes of releases that were fetched since the supervisor was started.", |f| live(f, |l| Some(l.downloaded as f64))),
    gauge("backups", &[], "Backups", "How many complete backups there are.", |f| one(Some(f.disk.backups as f64))),
    gauge("backup_bytes", &[], "Size of the newest backup", "The size of the files of the newest backup.", |f| one(f.disk.backup.map(|(_, bytes)| bytes as f64))),
    gauge("backup_created_timestamp_seconds", &[], "Newest backup", "When the newest backup was made.", |f| one(f.disk.backup.map(|(at, _)| at as f64))),
    gauge("backup_duration_seconds", &[], "Downtime of the last upgrade", "How long the backup of the last committed upgrade took with the node down.",
        |f| one(f.disk.committed.as_ref().and_then(|h| h.phases.backup).map(milliseconds))),
    gauge("hold", &["reason"], "State", "Whether the start of the node is held: for what it may have signed, or for room.", holds),
    gauge("validator_rank", &[], "Validator", "The place of this validator in the set, from 0.", |f| validator(f, |v| v.rank.map(|rank| rank as f64))),
    gauge("validator_slot_block", &[], "Next upgrade", "The block of its turn in the next plan.", |f| validator(f, |v| v.slot.map(|slot| slot as f64))),
    gauge("validators", &[], "Validator", "How many validators there are.", |f| validator(f, |v| Some(v.of as f64))),
    gauge("validator_quorum", &[], "Validator", "The fewest validators that can go on.", |f| validator(f, |v| Some(v.quorum as f64))),
    gauge("validator_others_active", &[], "Validator", "How many other validators signed lately.", |f| validator(f, |v| Some(v.others as f64))),
    gauge("validator_quorum_margin", &[], "Validator", "The active others less the quorum: below 0 this one must not go down.",
        |f| validator(f, |v| Some(v.others as f64 - v.quorum as f64))),
    gauge("supervisor_memory_bytes", &[], "Memory of the supervisor", "Resident memory of the supervisor.", |f| one(number(f.disk.supervisor_memory))),
    gauge("supervisor_turn_max_seconds", &[], "Supervisor's loop", "The longest turn of the supervisor's loop since it was started.", |f| live(f, |l| seconds(Some(l.longest_turn)))),
    counter("supervisor_log_lines_lost_total", &[], "Lost lines of the log", "Lines of the supervisor's log that nobody read.", |f| live(f, |l| Some(l.log_lines_lost as f64))),
];

/// A row, on as few lines as it takes.
const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    panel: &'static str,
    help: &'static str,
    samples: fn(&Facts) -> Vec<Sample>,
) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, panel, help, samples }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    panel: &'static str,
    help: &'static str,
    samples: fn(&Facts) -> Vec<Sample>,
) -> Metric {
    Metric { name, kind: Kind::Counter, labels, panel, help, samples }
}

fn truth(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

fn number(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

/// To the microsecond: what is behind it is noise, and long.
fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| (time.as_secs_f64() * 1e6).round() / 1e6)
}

fn milliseconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn timestamp(text: &str) -> Option<f64> {
    text.parse::<jiff::Timestamp>().ok().map(|at| at.as_second() as f64)
}

fn one(value: Option<f64>) -> Vec<Sample> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn live(facts: &Facts, value: fn(&Live) -> Option<f64>) -> Vec<Sample> {
    one(facts.live.as_ref().and_then(value))
}

fn by<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> Vec<Sample> {
    counts.map(|(label, count)| (vec![label.clone()], *count as f64)).collect()
}

fn states(facts: &Facts) -> Vec<Sample> {
    let now = facts.live.as_ref().map_or(facts.disk.state, |live| live.state.as_str());
    STATES.iter().map(|state| (vec![(*state).to_owned()], truth(*state == now))).collect()
}

fn node_info(facts: &Facts) -> Vec<Sample> {
    let Some(live) = &facts.live else { return Vec::new() };
    let told = |text: &Option<String>| text.clone().unwrap_or_default();
    vec![(vec![told(&live.version), told(&live.release), live.network.clone()], 1.0)]
}

fn outcomes(facts: &Facts) -> Vec<Sample> {
    let all = [Outcome::Committed, Outcome::Reverted, Outcome::Failed, Outcome::Cancelled, Outcome::Passed];
    let count = |word: &str| facts.disk.outcomes.get(word).copied().unwrap_or(0) as f64;
    all.iter().map(|outcome| (vec![outcome.word().to_owned()], count(outcome.word()))).collect()
}

fn phases(facts: &Facts) -> Vec<Sample> {
    let Some(phases) = facts.disk.committed.as_ref().map(|history| history.phases) else { return Vec::new() };
    let parts = [
        ("stop", phases.stop),
        ("backup", phases.backup),
        ("hook", phases.hook),
        ("switch", phases.switch),
        ("start", phases.start),
    ];
    parts.iter().map(|(name, ms)| (vec![(*name).to_owned()], milliseconds(ms.unwrap_or(0)))).collect()
}

fn pending(facts: &Facts, value: fn(&Pending, Option<u64>) -> Option<f64>) -> Vec<Sample> {
    let Some((live, plan)) = facts.live.as_ref().and_then(|live| Some((live, live.pending.as_ref()?))) else {
        return Vec::new();
    };
    value(plan, live.head).map(|value| (vec![plan.name.clone()], value)).into_iter().collect()
}

fn holds(facts: &Facts) -> Vec<Sample> {
    let Some(live) = &facts.live else { return Vec::new() };
    let held = |reason: &str| truth(live.hold.as_deref() == Some(reason));
    ["signed", "room"].iter().map(|reason| (vec![(*reason).to_owned()], held(reason))).collect()
}

fn validator(facts: &Facts, value: fn(&Validator) -> Option<f64>) -> Vec<Sample> {
    one(facts.live.as_ref().and_then(|live| live.validator.as_ref()).and_then(value))
}

impl Metric {
    /// Its whole name.
    pub fn full_name(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// A sample's name with its labels, after others that it shares with all.
    fn series(&self, shared: &[(&str, &str)], values: &[String]) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let own = self.labels.iter().copied().zip(values.iter().map(String::as_str));
        let labels: Vec<String> =
            shared.iter().copied().chain(own).map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        if labels.is_empty() { self.full_name() } else { format!("{}{{{}}}", self.full_name(), labels.join(",")) }
    }

    /// A value as people read it.
    fn shown(&self, value: f64) -> String {
        if self.name.ends_with("_bytes") || self.name.ends_with("_bytes_total") {
            show_size(value as u64)
        } else if self.name.ends_with("_timestamp_seconds") {
            crate::journal::rfc3339(value as u64)
        } else if self.name.contains("_seconds") {
            show_duration(Duration::from_millis((value * 1000.0).round() as u64))
        } else {
            value.to_string()
        }
    }
}

/// Prometheus' text format. Each sample has the home: those of two homes on one host are collected together.
pub fn prometheus(facts: &Facts) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let samples = (metric.samples)(facts);
        if samples.is_empty() {
            continue;
        }
        let name = metric.full_name();
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind.word());
        for (labels, value) in samples {
            let _ = writeln!(text, "{} {value}", metric.series(&[("home", &facts.home)], &labels));
        }
    }
    text
}

/// The same for programs: `{"metrics": [{"name", "type", "help", "samples": [{"labels", "value"}]}]}`.
pub fn to_json(facts: &Facts) -> Value {
    let one = |metric: &Metric| {
        let samples: Vec<Value> = (metric.samples)(facts)
            .into_iter()
            .map(|(values, value)| {
                let labels: BTreeMap<&str, String> = metric.labels.iter().copied().zip(values).collect();
                json!({"labels": labels, "value": value})
            })
            .collect();
        json!({"name": metric.full_name(), "type": metric.kind.word(), "help": metric.help, "samples": samples})
    };
    json!({"metrics": METRICS.iter().map(one).collect::<Vec<Value>>()})
}

/// The same for people.
pub fn text(facts: &Facts) -> String {
    let mut lines = Vec::new();
    for metric in METRICS {
        for (labels, value) in (metric.samples)(facts) {
            lines.push((metric.series(&[], &labels), metric.shown(value)));
        }
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every metric has a sample of these.
    fn full() -> Facts {
        let history = crate::journal::parse_history(include_str!("../fixtures/history.jsonl"));
        let live = Live {
            supervisor: 7,
            state: "running".to_owned(),
            network: "main\"net\\\n".to_owned(),
            release: Some("v2".to_owned()),
            version: Some("geth/v1".to_owned()),
            node: true,
            uptime: Duration::from_millis(90_500),
            restarts: BTreeMap::from([("crash".to_owned(), 2)]),
            head: Some(100),
            highest: Some(120),
            head_age: Some(Duration::from_secs(3)),
            head_still: Some(Duration::from_secs(1)),
            peers: Some(8),
            syncing: Some(true),
            latency: Some(Duration::from_millis(12)),
            memory: Some(1 << 30),
            cpu: Some(Duration::from_millis(1500)),
            disk: Some((10, 30)),
            healthy: true,
            checks: BTreeMap::from([("process".to_owned(), true), ("peer_count".to_owned(), false)]),
            pending: Some(Pending { name: "v3".to_owned(), height: 1000, due: 999, staged: true }),
            upgrading: false,
            plan_errors: 1,
            downloaded: 5,
            hold: Some("room".to_owned()),
            validator: Some(Validator { rank: Some(2), of: 4, quorum: 3, others: 2, slot: Some(900) }),
            longest_turn: Duration::from_millis(3),
            log_lines_lost: 4,
        };
        let disk = OnDisk {
            outcomes: BTreeMap::from([("committed", 1)]),
            committed: history.into_iter().find(|h| h.result == Outcome::Committed).map(|mut h| {
                h.phases.backup = Some(12);
                h
            }),
            backups: 1,
            backup: Some((1_700_000_000, 77)),
            supervisor_memory: Some(1900 << 10),
            state: "stopped",
        };
        Facts { home: "/h".to_owned(), live: Some(live), disk }
    }

    #[test]
    fn every_metric_is_told_once_in_each_form_by_its_rules() {
        let facts = full();
        let (text, json) = (prometheus(&facts), to_json(&facts));
        for metric in METRICS {
            let name = metric.full_name();
            assert_eq!(METRICS.iter().filter(|other| other.name == metric.name).count(), 1, "{name}");
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{name}");
            let told = json["metrics"].as_array().unwrap().iter().find(|told| told["name"] == name.as_str()).unwrap();
            let samples = told["samples"].as_array().unwrap();
            assert!(!samples.is_empty(), "{name}");
            for sample in samples {
                assert_eq!(sample["labels"].as_object().unwrap().len(), metric.labels.len(), "{name}");
            }
            assert_eq!((metric.samples)(&facts).len(), samples.len());
        }
        for line in [
            "wemixvisor_up{home=\"/h\"} 1",
            "wemixvisor_state{home=\"/h\",state=\"running\"} 1",
            "wemixvisor_state{home=\"/h\",state=\"error\"} 0",
            "wemixvisor_node_info{home=\"/h\",version=\"geth/v1\",release=\"v2\",network=\"main\\\"net\\\\\\n\"} 1",
            "wemixvisor_node_uptime_seconds{home=\"/h\"} 90.5",
            "wemixvisor_check_healthy{home=\"/h\",check=\"peer_count\"} 0",
            "wemixvisor_upgrade_left_blocks{home=\"/h\",name=\"v3\"} 899",
            "wemixvisor_validator_quorum_margin{home=\"/h\"} -1",
            "wemixvisor_data_used_bytes{home=\"/h\"} 20",
            "wemixvisor_hold{home=\"/h\",reason=\"room\"} 1",
            "wemixvisor_upgrades_total{home=\"/h\",result=\"reverted\"} 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }

    #[test]
    fn without_a_supervisor_only_what_is_on_disk_is_told() {
        let told = prometheus(&Facts { live: None, ..full() });
        for line in [
            "wemixvisor_up{home=\"/h\"} 0",
            "wemixvisor_node_up{home=\"/h\"} 0",
            "wemixvisor_state{home=\"/h\",state=\"stopped\"} 1",
            "wemixvisor_backups{home=\"/h\"} 1",
        ] {
            assert!(told.lines().any(|l| l == line), "{line}\n{told}");
        }
        assert!(!told.contains("wemixvisor_head_block"));
    }

    #[test]
    fn people_read_units() {
        let told = text(&full());
        assert!(
            told.lines().any(|line| line.starts_with("wemixvisor_node_memory_bytes ") && line.ends_with(" 1GiB")),
            "{told}"
        );
        assert!(
            told.lines().any(|line| line.starts_with("wemixvisor_rpc_latency_seconds ") && line.ends_with(" 12ms")),
            "{told}"
        );
        assert!(told.contains("2023-11-14T22:13:20Z"), "{told}");
    }
}
