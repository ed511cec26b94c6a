//! Where an upgrade stands and what comes next: the journal and `next` (pure), and the forms of what else is remembered on
//! disk (run record, last known state, history). Who writes each of them, and when, is said with the job that does.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{show_duration, show_size};
use crate::home::{Name, Release};
use crate::job::backup;
use crate::plan::Plan;

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The new release proved itself.
    Committed,
    /// The new release ran and was taken back.
    Reverted,
    /// It ended before the new release ran.
    Failed,
    /// The operator withdrew it before the switch.
    Cancelled,
    /// A higher plan was carried out instead, or its time was before.
    Passed,
}

impl Outcome {
    /// The word for it in history and status.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::Reverted => "reverted",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::Passed => "passed",
        }
    }
}

/// Where an upgrade stands. Forward it goes from the first to `Trial`; what is taken back goes by `Restore` where the data
/// goes back too, else by `Back`, and by `Return` where the new release or a hook may have changed the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The old release is to end, then the data is to be backed up.
    Stop,
    /// The data is safe; the first of the remaining hooks is to run.
    Hook,
    /// The hooks are done; the link is to move.
    Switch,
    /// The link has moved; the new release is on probation.
    Trial,
    /// The backup is to take the data's place.
    Restore,
    /// The link is to go back to the release before.
    Back,
    /// The link is back; the old release is to show that it can run on what the new one left.
    Return,
}

/// What comes next in an upgrade, once no node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start the release that `current` points at.
    Start,
    /// Back up the data.
    Backup,
    /// Run a hook.
    Hook,
    /// Move the link to the new release.
    Switch,
    /// Put the backup in the data's place.
    Restore,
    /// Move the link back and write down why.
    Back,
}

/// The only place that knows the order of an upgrade; asked after boot and after every step alike.
pub fn next(journal: Option<&Journal>) -> Next {
    match journal.map(|j| j.stage) {
        None | Some(Stage::Trial | Stage::Return) => Next::Start,
        Some(Stage::Stop) => Next::Backup,
        Some(Stage::Hook) => Next::Hook,
        Some(Stage::Switch) => Next::Switch,
        Some(Stage::Restore) => Next::Restore,
        Some(Stage::Back) => Next::Back,
    }
}

/// An upgrade under way: `journal.json`, there exactly as long as one is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// Version of this form: 1.
    pub version: u32,
    /// Tells this upgrade from every other one; the key of its history line.
    pub id: String,
    /// The name of the upgrade.
    pub name: Name,
    /// Where it stands.
    pub stage: Stage,
    /// The release that runs until the switch, and again after a revert.
    pub from: Release,
    /// The release that it brings.
    pub to: Release,
    /// The first block that the new release must execute; none for `upgrade now` without a plan.
    #[serde(default)]
    pub height: Option<u64>,
    /// Digest of the plan's content.
    #[serde(default)]
    pub digest: Option<String>,
    /// The plan itself, as it goes into the release's directory.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// Lower plans that this one passes over.
    #[serde(default)]
    pub passed: Vec<Passed>,
    /// The head where the old release stopped.
    #[serde(default)]
    pub head: Option<u64>,
    /// Who the node was before.
    #[serde(default)]
    pub identity: Identity,
    /// Which data is backed up and where to, named from the home; none: the operator wants no backup.
    #[serde(default)]
    pub data: Option<backup::Spec>,
    /// The backup that it made.
    #[serde(default)]
    pub backup: Option<String>,
    /// The hooks that are still to run, in order, named from our own folder.
    #[serde(default)]
    pub hooks: Vec<PathBuf>,
    /// How often the first of them was started; counted on disk before each exec.
    #[serde(default)]
    pub attempt: u32,
    /// Whether the data may be other than the old release left it: a hook or the new release was started.
    #[serde(default)]
    pub touched: bool,
    /// The backup that the data became when it was replaced by the one from before the upgrade.
    #[serde(default)]
    pub replaced: Option<String>,
    /// How often the release that has to prove itself was started; counted on disk before each exec.
    #[serde(default)]
    pub starts: u32,
    /// Whether the new release has proved that it runs.
    #[serde(default)]
    pub proven: bool,
    /// Why it goes back, and how it then ends.
    #[serde(default)]
    pub back: Option<(Outcome, String)>,
    /// When it began, seconds since 1970.
    pub begun: u64,
    /// How long each part took while no node ran.
    #[serde(default)]
    pub phases: Phases,
    /// Whether the old release ended by itself after TERM; unknown when its supervisor died with it.
    #[serde(default)]
    pub clean_stop: Option<bool>,
}

impl Journal {
    /// One of which nothing more is known yet.
    pub fn new(id: String, name: Name, stage: Stage, from: Release, to: Release, begun: u64) -> Journal {
        Journal {
            version: 1,
            id,
            name,
            stage,
            from,
            to,
            height: None,
            digest: None,
            plan: None,
            passed: Vec::new(),
            head: None,
            identity: Identity::default(),
            data: None,
            backup: None,
            hooks: Vec::new(),
            attempt: 0,
            touched: false,
            replaced: None,
            starts: 0,
            proven: false,
            back: None,
            begun,
            phases: Phases::default(),
            clean_stop: None,
        }
    }

    /// The release whose starts are counted because it has to prove itself, if one has.
    pub fn on_probation(&self) -> Option<&Release> {
        match self.stage {
            Stage::Trial => Some(&self.to),
            Stage::Return => Some(&self.from),
            Stage::Stop | Stage::Hook | Stage::Switch | Stage::Restore | Stage::Back => None,
        }
    }

    /// Whether the link was not moved to the new release yet.
    pub fn before_switch(&self) -> bool {
        matches!(self.stage, Stage::Stop | Stage::Hook | Stage::Switch)
    }

    /// The backup that could still take the data's place: there is one, and it was not done yet.
    pub fn way_back(&self) -> Option<&str> {
        self.backup.as_deref().filter(|_| self.touched && self.replaced.is_none())
    }
}

/// A lower plan that a due one passes over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    /// The name of the upgrade.
    pub name: Name,
    /// Its height.
    pub height: u64,
    /// Digest of its content.
    pub digest: String,
}

/// The parts of the time without a node, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// From TERM until nobody held the data any more.
    #[serde(default)]
    pub stop: Option<u64>,
    /// The backup.
    #[serde(default)]
    pub backup: Option<u64>,
    /// The hooks.
    #[serde(default)]
    pub hook: Option<u64>,
    /// The move of the link.
    #[serde(default)]
    pub switch: Option<u64>,
    /// From the move of the link until the new release was executed.
    #[serde(default)]
    pub start: Option<u64>,
}

impl Phases {
    /// What these do not tell, the others may.
    pub fn or(self, others: Phases) -> Phases {
        Phases {
            stop: self.stop.or(others.stop),
            backup: self.backup.or(others.backup),
            hook: self.hook.or(others.hook),
            switch: self.switch.or(others.switch),
            start: self.start.or(others.start),
        }
    }

    /// All parts together, in milliseconds.
    pub fn total(&self) -> u64 {
        let parts = [self.stop, self.backup, self.hook, self.switch, self.start];
        parts.into_iter().flatten().fold(0, u64::saturating_add)
    }
}

/// Who a node is: what must not change by an upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `eth_chainId`, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<String>,
    /// The hash of block 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis: Option<String>,
    /// The node's own id or validator address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl Identity {
    /// What contradicts the earlier identity, in words; what either side does not know contradicts nothing.
    pub fn contradiction(&self, earlier: &Identity) -> Option<String> {
        let differs = |what: &str, now: &Option<String>, then: &Option<String>| match (now, then) {
            (Some(now), Some(then)) if now != then => Some(format!("{what} is {now}, it was {then}")),
            (Some(_) | None, Some(_) | None) => None,
        };
        differs("chain id", &self.chain_id, &earlier.chain_id)
            .or_else(|| differs("the genesis block", &self.genesis, &earlier.genesis))
            .or_else(|| {
                same_kind(&self.node, &earlier.node)
                    .then(|| differs("the node's identity", &self.node, &earlier.node))?
            })
    }

    /// What is known of either, the newer first.
    pub fn or(self, earlier: &Identity) -> Identity {
        Identity {
            chain_id: self.chain_id.or_else(|| earlier.chain_id.clone()),
            genesis: self.genesis.or_else(|| earlier.genesis.clone()),
            node: self.node.or_else(|| earlier.node.clone()),
        }
    }
}

/// Whether two names of a node are of one kind: `id:…` or `address:…`. A release may offer one and not the other.
fn same_kind(one: &Option<String>, other: &Option<String>) -> bool {
    let kind = |name: &Option<String>| name.as_deref().and_then(|n| n.split_once(':')).map(|(kind, _)| kind.to_owned());
    kind(one) == kind(other)
}

/// The highest block that the node's own RPC has told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Block number.
    pub number: u64,
    /// When it was told, seconds since 1970.
    pub seen: u64,
    /// The release that told it.
    pub release: Release,
}

/// The highest head that the node has ever told. What it may have signed since then lies above it, by as many blocks as the
/// chain can have made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highest {
    /// Block number.
    pub number: u64,
    /// When it was told last, seconds since 1970.
    pub seen: u64,
}

/// `state.json`: what is known of the node across starts. Older is safe, so it is not synced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The last head.
    #[serde(default)]
    pub head: Option<Head>,
    /// The highest head of all, which no restored backup takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest: Option<Highest>,
    /// Who the node is.
    #[serde(default)]
    pub identity: Identity,
    /// `web3_clientVersion`, as last told.
    #[serde(default)]
    pub client_version: Option<String>,
    /// The machine that it ran on last, see [`crate::proc::machine`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// How the last supervisor ended.
    #[serde(default)]
    pub last: Option<Last>,
}

impl Known {
    /// The highest head of all, now that the node tells this one.
    pub fn highest_with(&self, head: &Head) -> Option<Highest> {
        let told = Highest { number: head.number, seen: head.seen };
        // Where only the last head is on record, it was the highest.
        let before = self.highest.clone().or(self.head.as_ref().map(|h| Highest { number: h.number, seen: h.seen }));
        Some(before.filter(|before| before.number > told.number).unwrap_or(told))
    }
}

/// How a supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The public state: `stopped` or `error`.
    pub state: String,
    /// Why, in a line.
    pub reason: String,
    /// When, RFC 3339.
    pub time: String,
    /// The last start of a node that it knew of, see [`Record::key`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// The run record: who was started last, on which data. Content of `data.lock`, written by who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process id of the node.
    pub pid: u32,
    /// Its start time in clock ticks since boot: tells it from another process of the same number.
    pub start_time: u64,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The release that was started.
    pub release: Release,
    /// The arguments that were given (before node-args).
    pub args: Vec<String>,
    /// When, seconds since 1970.
    pub started: u64,
    /// Whether the death of its supervisor sends it TERM; a binary with file capabilities loses that.
    pub death_signal: bool,
    /// How it ended; none while it runs, and for ever when nobody saw its end.
    #[serde(default)]
    pub ended: Option<String>,
}

impl Record {
    /// Tells this start from any other.
    pub fn key(&self) -> String {
        format!("{}-{}-{}", self.pid, self.start_time, self.boot_id)
    }
}

/// One line of `history.jsonl`: a finished upgrade.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The upgrade's id.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// Its height, when a plan gave one.
    pub height: Option<u64>,
    /// The release that ran before.
    pub from: Release,
    /// The release that it was to bring.
    pub to: Release,
    /// How it ended.
    pub result: Outcome,
    /// Why; empty for a committed one.
    pub reason: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// When it ended, RFC 3339.
    pub finished: String,
    /// The time without a node, in milliseconds.
    pub downtime_ms: u64,
    /// The same by part.
    pub phases: Phases,
    /// The backup that it made.
    pub backup: Option<String>,
    /// Whether the old release ended by itself after TERM.
    pub clean_stop: Option<bool>,
    /// Digest of the plan's content: a changed plan is tried again.
    #[serde(default)]
    pub digest: Option<String>,
}

/// The lines of a history file; one that a power loss cut short is left out.
pub fn parse_history(text: &str) -> Vec<History> {
    text.lines().filter_map(|line| serde_json::from_slice(line.as_bytes()).ok()).collect()
}

/// What an upgrade is expected to cost without a node, from what the last one of this home did; `copying` are the bytes that
/// its backup must copy meanwhile.
pub fn expected_downtime(last: Option<&History>, copying: u64) -> String {
    let shown = |ms: u64| show_duration(Duration::from_millis(ms));
    let copy = if copying == 0 { String::new() } else { format!(", and the time to copy {}", show_size(copying)) };
    match last.and_then(|last| Some((last, last.phases.stop?, last.phases.start?))) {
        Some((last, stop, start)) => {
            let rest = last.phases.total().saturating_sub(last.phases.hook.unwrap_or(0));
            format!(
                "about {} as in upgrade {} (stop {}, start {}), its hooks{copy}",
                shown(rest),
                last.name,
                shown(stop),
                shown(start)
            )
        }
        None if copying == 0 => {
            "the node's own stop and start, its hooks, and between them some milliseconds".to_owned()
        }
        None => format!("the node's own stop and start, its hooks{copy}"),
    }
}

/// A time as people and machines read it: RFC 3339, UTC, whole seconds.
pub fn rfc3339(unix: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(unix).unwrap_or(0)).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_an_upgrade_is_backup_hooks_switch_trial_and_what_is_taken_back_starts_the_old_release() {
        let text = include_str!("../fixtures/journal.json");
        let mut journal: Journal = serde_json::from_str(text).unwrap();
        assert_eq!(next(None), Next::Start);
        for (stage, expected) in [
            (Stage::Stop, Next::Backup),
            (Stage::Hook, Next::Hook),
            (Stage::Switch, Next::Switch),
            (Stage::Trial, Next::Start),
            (Stage::Restore, Next::Restore),
            (Stage::Back, Next::Back),
            (Stage::Return, Next::Start),
        ] {
            journal.stage = stage;
            assert_eq!(next(Some(&journal)), expected);
        }
    }

    #[test]
    fn the_forms_on_disk_are_frozen() {
        let same = |text: &str, again: String| {
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(text).unwrap(),
                serde_json::from_str::<serde_json::Value>(&again).unwrap()
            )
        };
        let journal = include_str!("../fixtures/journal.json");
        same(journal, serde_json::to_string(&serde_json::from_str::<Journal>(journal).unwrap()).unwrap());
        let state = include_str!("../fixtures/state.json");
        same(state, serde_json::to_string(&serde_json::from_str::<Known>(state).unwrap()).unwrap());
        let record = include_str!("../fixtures/record.json");
        same(record, serde_json::to_string(&serde_json::from_str::<Record>(record).unwrap()).unwrap());
        let history = include_str!("../fixtures/history.jsonl");
        let lines = parse_history(history);
        assert_eq!(lines.len(), 2, "a line that was cut short is left out, the others count");
        same(history.lines().next().unwrap(), serde_json::to_string(&lines[0]).unwrap());
    }

    #[test]
    fn an_identity_is_contradicted_only_by_what_both_sides_know() {
        let full = Identity { chain_id: Some("0x457".into()), genesis: Some("0xa".into()), node: Some("n".into()) };
        assert_eq!(full.contradiction(&Identity::default()), None);
        assert_eq!(Identity::default().contradiction(&full), None);
        let other = Identity { node: Some("m".into()), ..full.clone() };
        assert!(other.contradiction(&full).unwrap().contains("identity is m, it was n"));
    }
}
