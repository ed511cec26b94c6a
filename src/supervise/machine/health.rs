//! The node's health: what was measured and heard, what it means, and what is done about the two things that somebody
//! must do something about by itself: a node that hangs, and one that ended for want of room.

use std::collections::VecDeque;
use std::time::Duration;

use log::Level;
use serde_json::{Value, json};

use super::grace::Grace;
use super::metrics::Why;
use super::{Effect, Exit, Hold, Machine, Now, Role, Room, State, Then, say};
use crate::config::{show_duration, show_size};
use crate::error::Code;
use crate::job::backup;
use crate::job::measure::{Measured, Spec};
use crate::job::{Job, Report};
use crate::journal::{rfc3339, unix_now};
use crate::supervise::health::Following;

/// How many results are kept.
const RESULTS: usize = 20;

/// How long it may take to measure.
const MEASURE_TIME: Duration = Duration::from_secs(10);

/// How often a node that waits for room is looked at.
const ROOM_PAUSE: Duration = Duration::from_secs(5);

/// How a node ended that had no room, for the run record.
pub(super) const ENDED_FOR_ROOM: &str = "by itself, for want of room";

/// With less than this free (or a hundredth, on a small file system) nothing can be written any more, and no node lives.
const NOTHING_LEFT: u64 = 64 << 20;

/// With less than this geth may end itself: twice its dirty cache, which is a quarter of `--cache 8192` at most here.
const LITTLE_LEFT: u64 = 4 << 30;

/// One check and what it says now.
pub(super) struct Check {
    name: &'static str,
    /// What is wrong; empty: nothing.
    error: String,
    figures: Value,
}

/// How the node was at some time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    timestamp: u64,
    healthy: bool,
    failed: Vec<&'static str>,
}

/// What is remembered of the node's health.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Health {
    /// What was measured last.
    pub(super) measured: Option<Measured>,
    /// When the next measuring is.
    pub(super) measure_at: Option<Now>,
    measuring: bool,
    /// The last results, the newest last.
    results: VecDeque<Outcome>,
    /// What was said to be wrong, by check.
    told: std::collections::BTreeMap<&'static str, String>,
    /// Since when the node says that it syncs.
    syncing_since: Option<Now>,
}

impl Machine {
    /// Measures what the node takes of the machine.
    pub(super) fn measure(&mut self, out: &mut Vec<Effect>) {
        self.health.measure_at = None;
        if std::mem::replace(&mut self.health.measuring, true) {
            return;
        }
        let args = if self.life.args.is_empty() { &self.args } else { &self.life.args };
        let spec = Spec { data_dir: backup::Spec::new(&self.config, &self.home, args).data_dir };
        self.start_job(Role::Measure, Job::Measure(spec), MEASURE_TIME, out);
    }

    pub(super) fn measured(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        self.health.measuring = false;
        if let Ok(Report::Measured(measured)) = result {
            self.health.measured = Some(measured);
        }
        self.health.measure_at = Some(self.now + self.config.health_check_interval);
        match self.state {
            State::Up => self.take_stock(out),
            State::Held { why: Hold::Room(room), .. } => self.room_told(room, out),
            State::Deciding(_) => self.decide(out),
            State::Boot
            | State::Starting
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Hooking { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Clearing { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    /// Remembers how the node is, and says what has changed.
    fn take_stock(&mut self, out: &mut Vec<Effect>) {
        self.health.syncing_since = match self.life.syncing {
            Some(_) => self.health.syncing_since.or(Some(self.now)),
            None => None,
        };
        let checks = self.checks();
        let failed: Vec<&'static str> = checks.iter().filter(|c| !c.error.is_empty()).map(|c| c.name).collect();
        for check in checks {
            // Of these two the probe tells by itself; a block that is late changes its words all the time.
            if matches!(check.name, "process" | "rpc_endpoint" | "peer_count" | "pending_plan") {
                continue;
            }
            let told = self.health.told.contains_key(check.name);
            if check.error.is_empty() {
                if self.health.told.remove(check.name).is_some() {
                    say(out, Level::Info, format!("{} is well again", check.name));
                }
            } else if !told {
                say(out, Level::Warn, format!("{}: {}", check.name, check.error));
                self.health.told.insert(check.name, check.error);
            }
        }
        let healthy = self.healthy();
        self.health.results.push_back(Outcome { timestamp: unix_now(), healthy, failed });
        while self.health.results.len() > RESULTS {
            self.health.results.pop_front();
        }
    }

    /// Whether the data's file system has less than the least room.
    pub(super) fn is_full(&self) -> bool {
        self.has_less_than(self.config.min_disk)
    }

    /// Whether the data's file system has less than this.
    fn has_less_than(&self, least: u64) -> bool {
        self.health.measured.and_then(|m| m.disk).is_some_and(|(free, _)| free < least)
    }

    /// Below this nothing can be written any more.
    fn nothing(&self) -> u64 {
        let all = self.health.measured.and_then(|m| m.disk).map_or(0, |(_, all)| all);
        NOTHING_LEFT.min(all / 100).min(self.config.min_disk)
    }

    /// Whether the node ended as geth does, with status 0, when too little is left: once it has answered, or, where it runs
    /// into that at its start, in a home that had blocks and with arguments that run a node.
    fn ended_itself(&self, exit: Exit) -> bool {
        let a_node = self.known.head.is_some() && crate::geth::command(&self.args).is_none();
        exit == Exit::Code(0)
            && self.life.executed.is_some()
            && (self.life.answered.is_some() || (a_node && self.has_less_than(LITTLE_LEFT)))
    }

    /// Whether it may have ended for want of room, so that it is worth to be measured.
    pub(super) fn may_want_room(&self, exit: Exit) -> bool {
        self.has_less_than(LITTLE_LEFT) || self.ended_itself(exit)
    }

    /// Whether that is being measured.
    pub(super) fn asks_for_room(&self, exit: Exit) -> bool {
        self.health.measuring && self.may_want_room(exit)
    }

    /// What room the node waits for, if it ended for want of it, by what was measured last.
    pub(super) fn wants_room(&self, exit: Exit) -> Option<Room> {
        // A new release that ends itself has its own reasons, but where so little is left.
        let believed = !self.end_counts() || self.has_less_than(LITTLE_LEFT);
        if self.ended_itself(exit) && self.is_full() && believed {
            return Some(Room::Least);
        }
        let may = self.config.restart_on_failure || self.on_probation();
        (self.has_less_than(self.nothing()) && may).then_some(Room::Any)
    }

    /// So many bytes must be free.
    fn needed(&self, room: Room) -> u64 {
        match room {
            Room::Least => self.config.min_disk,
            Room::Any => self.nothing().saturating_mul(8).min(self.config.min_disk),
        }
    }

    /// Waits until there is room: whichever release it is, it would end again, and none is to pay for that.
    pub(super) fn wait_for_room(&mut self, exit: Exit, room: Room, out: &mut Vec<Effect>) {
        self.state = State::Held { until: self.now + ROOM_PAUSE, why: Hold::Room(room) };
        self.counts.next_start = Some(Why::Room);
        self.uncount();
        let text = format!("the node ended by itself ({exit}), and {}: make room, then it is started", self.room(room));
        say(out, Level::Error, text.clone());
        self.announce_hold(text, out);
    }

    /// How much room there is, and how much there should be.
    pub(super) fn room(&self, room: Room) -> String {
        let free = self.health.measured.and_then(|m| m.disk).map_or(0, |(free, _)| free);
        let why = if room == Room::Least { " (DAEMON_MIN_DISK)" } else { "" };
        format!("only {} of {} are free for its data{why}", show_size(free), show_size(self.needed(room)))
    }

    fn room_told(&mut self, room: Room, out: &mut Vec<Effect>) {
        if self.has_less_than(self.needed(room)) {
            self.state = State::Held { until: self.now + ROOM_PAUSE, why: Hold::Room(room) };
            return;
        }
        say(out, Level::Info, "there is room again: the node is started".to_owned());
        // What was not counted against a release can be written down by now.
        self.clear(Then::Go, false, Some(ENDED_FOR_ROOM.to_owned()), out);
    }

    /// How the node follows its chain, once it has told anything of it.
    pub(super) fn following(&self) -> Option<Following> {
        let life = &self.life;
        let now = Duration::from_secs(unix_now());
        Some(Following {
            head: life.head?,
            highest: life.syncing,
            syncing: self.health.syncing_since.map_or(Duration::ZERO, |since| self.now.saturating_sub(since)),
            peers: life.peers,
            still: life.answered.map_or(Duration::ZERO, |at| self.now.saturating_sub(at)),
            age: life.head_time.map(|time| now.saturating_sub(Duration::from_secs(time))),
            period: life.block_time,
        })
    }

    /// Every check, and what it says now.
    fn checks(&self) -> Vec<Check> {
        let life = &self.life;
        let runs = self.state == State::Up;
        let not_running = || "the node does not run".to_owned();
        let mut checks = Vec::new();
        let mut check = |name, error: String, figures| checks.push(Check { name, error, figures });
        check("process", if runs { String::new() } else { not_running() }, json!({}));
        let answers = runs && life.answered.is_some() && life.silent_since.is_none();
        let silent =
            || life.rpc_error.clone().unwrap_or_else(|| if runs { "not asked yet".to_owned() } else { not_running() });
        check(
            "rpc_endpoint",
            if answers { String::new() } else { silent() },
            json!({"latency_ms": super::ms(life.latency)}),
        );
        if answers {
            let least = self.config.min_peers;
            let few = life.peers.is_some_and(|peers| peers < least);
            let error = if few { format!("fewer than {least} peers") } else { String::new() };
            check("peer_count", error, json!({"peers": life.peers, "min_required": least}));
        }
        if let Some(following) = self.following().filter(|_| answers) {
            check(
                "sync_status",
                following.problem().unwrap_or_default(),
                json!({
                    "syncing": life.syncing.is_some(),
                    "current_block": life.head,
                    "highest_block": life.syncing.or(life.head),
                    "head_age_seconds": following.age.map(|age| age.as_secs()),
                    "still_seconds": following.still.as_secs(),
                }),
            );
        }
        if let Some(used) = self.health.measured.and_then(|m| m.memory).filter(|_| runs) {
            let most = self.config.max_memory;
            let error = most
                .filter(|most| used > *most)
                .map(|most| format!("{} used, more than {} (DAEMON_MAX_MEMORY)", show_size(used), show_size(most)));
            check("memory", error.unwrap_or_default(), json!({"used_bytes": used, "max_bytes": most}));
        }
        if let Some((free, total)) = self.health.measured.and_then(|m| m.disk) {
            let least = self.config.min_disk;
            let error = (free < least)
                .then(|| format!("{} free, less than {} (DAEMON_MIN_DISK)", show_size(free), show_size(least)));
            let figures = json!({"free_bytes": free, "total_bytes": total, "min_bytes": least});
            check("disk_space", error.unwrap_or_default(), figures);
        }
        if self.headless() {
            check("pending_plan", "a plan waits for a height, but no head is known".to_owned(), json!({}));
        }
        checks
    }

    /// Every check, and whether all is well.
    pub(super) fn check_results(&self) -> std::collections::BTreeMap<String, bool> {
        self.checks().into_iter().map(|check| (check.name.to_owned(), check.error.is_empty())).collect()
    }

    /// `health` of the status.
    pub(super) fn health_status(&self) -> Value {
        let mut checks = serde_json::Map::new();
        for check in self.checks() {
            let mut entry = json!({"name": check.name, "healthy": check.error.is_empty(), "error": check.error});
            if let (Some(entry), Value::Object(figures)) = (entry.as_object_mut(), check.figures) {
                entry.extend(figures);
            }
            checks.insert(check.name.to_owned(), entry);
        }
        let results: Vec<Value> = self
            .health
            .results
            .iter()
            .map(|r| json!({"timestamp": rfc3339(r.timestamp), "healthy": r.healthy, "failed": r.failed}))
            .collect();
        json!({"healthy": self.healthy(), "timestamp": rfc3339(unix_now()), "checks": checks, "results": results})
    }

    /// Looks at a node that has fallen silent: whether it still does anything.
    pub(super) fn watch_for_hang(&mut self) {
        if self.sample_at.is_none() && self.may_hang() {
            self.grace = Grace::default();
            self.sample_at = Some(self.now);
        }
    }

    /// Whether the node could be one that hangs: it answered once, and is silent; start-up, stopping and upgrades take what
    /// time they need.
    pub(super) fn may_hang(&self) -> bool {
        self.state == State::Up
            && self.journal.is_none()
            && self.life.answered.is_some()
            && self.life.silent_since.is_some()
            && !self.config.hang_timeout.is_zero()
    }

    /// Restarts a node that neither answers nor makes progress.
    pub(super) fn end_hang(&mut self, out: &mut Vec<Effect>) {
        let Some(silent) = self.life.silent_since.filter(|_| self.may_hang() && self.step.is_none()) else { return };
        let quiet = self.now.saturating_sub(silent.max(self.life.progress));
        if quiet < self.config.hang_timeout {
            return;
        }
        let what = format!(
            "the node neither answers nor makes progress for {} (DAEMON_HANG_TIMEOUT)",
            show_duration(super::whole(quiet))
        );
        if !self.config.restart_on_failure || self.restarts >= self.config.max_restarts {
            self.error = Some(if self.config.restart_on_failure {
                format!("{what}; {} restarts in a row did not help (DAEMON_MAX_RESTARTS)", self.restarts)
            } else {
                format!("{what}, and DAEMON_RESTART_ON_FAILURE is false")
            });
            return self.stop(Then::Exit(Code::Node as u8), out);
        }
        self.restarts += 1;
        let text = format!("{what}: restart {} of {}", self.restarts, self.config.max_restarts);
        say(out, Level::Error, text.clone());
        self.announce_crash(None, text, out);
        self.stop(Then::Go, out);
    }
}
