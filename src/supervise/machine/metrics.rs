//! What metrics tell of the running supervisor, from its memory alone, and when they are written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{Effect, Hold, Machine, Role, State, say};
use crate::job::metrics::Spec;
use crate::job::{Job, Report, backup};
use crate::metrics::{Live, Pending, Validator};
use crate::supervise::validator::rank;

/// How long writing them may take: longer only where a disk hangs.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// Why the node is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// It ended by itself.
    Crash,
    /// It hung.
    Hang,
    /// It had ended for want of room.
    Room,
    /// Somebody asked for it.
    Operator,
    /// A new release takes over.
    Upgrade,
    /// The release before takes over again.
    Revert,
}

impl Why {
    const ALL: [(Why, &str); 6] = [
        (Why::Crash, "crash"),
        (Why::Hang, "hang"),
        (Why::Room, "room"),
        (Why::Operator, "operator"),
        (Why::Upgrade, "upgrade"),
        (Why::Revert, "revert"),
    ];
}

/// What is counted for the metrics alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Why the next start is one that is not the first.
    pub(super) next_start: Option<Why>,
    restarts: BTreeMap<Why, u64>,
    /// Bytes of releases that were fetched.
    pub(super) downloaded: u64,
    longest_turn: Duration,
    log_lines_lost: u64,
    /// When the file is written next.
    pub(super) write_at: Option<super::Now>,
    writing: bool,
    /// The file that was written before another one, or none, was named: it is to be removed.
    pub(super) retired: Option<PathBuf>,
    /// What went wrong last.
    told: Option<String>,
}

impl Machine {
    /// A turn of the loop took so long; so many lines of the log are lost by now.
    pub fn turned(&mut self, took: Duration, log_lines_lost: u64) {
        self.counts.longest_turn = self.counts.longest_turn.max(took);
        self.counts.log_lines_lost = log_lines_lost;
    }

    /// The node was started.
    pub(super) fn count_start(&mut self) {
        if let Some(why) = self.counts.next_start.take() {
            *self.counts.restarts.entry(why).or_default() += 1;
        }
    }

    /// All that metrics tell of the running supervisor.
    pub(super) fn live(&self) -> Live {
        let life = &self.life;
        let runs = self.state == State::Up;
        let answers = runs && life.answered.is_some() && life.silent_since.is_none();
        let following = self.following().filter(|_| answers);
        let measured = self.health.measured;
        let validators = self.validators();
        let slot = self.schedule.pending().find_map(|plan| Some((plan, self.slot(plan)?)));
        Live {
            supervisor: std::process::id(),
            state: self.public_state().to_owned(),
            network: self.config.network.clone(),
            release: self.current.as_ref().map(ToString::to_string),
            version: self.version(),
            node: self.lives(),
            uptime: self.age(),
            restarts: Why::ALL
                .iter()
                .map(|(why, word)| ((*word).to_owned(), self.counts.restarts.get(why).copied().unwrap_or(0)))
                .collect(),
            head: life.head.filter(|_| answers),
            highest: life.syncing,
            head_age: following.as_ref().and_then(|following| following.age),
            head_still: following.as_ref().map(|following| following.still),
            peers: life.peers.filter(|_| answers),
            syncing: answers.then_some(life.syncing.is_some()),
            latency: answers.then_some(life.latency),
            memory: measured.and_then(|measured| measured.memory).filter(|_| runs),
            cpu: measured.and_then(|measured| measured.cpu).filter(|_| runs),
            disk: measured.and_then(|measured| measured.disk),
            healthy: self.healthy(),
            checks: self.check_results(),
            pending: self.schedule.pending().next().map(|plan| Pending {
                name: plan.name.to_string(),
                height: plan.height,
                due: self.due_at(plan),
                staged: self.staged.get(&plan.release).is_some_and(|staged| staged.problem().is_none()),
            }),
            upgrading: self.journal.is_some(),
            plan_errors: self.survey.as_ref().map_or(0, |survey| survey.errors.len() as u64),
            downloaded: self.counts.downloaded,
            hold: self.held_for().map(str::to_owned),
            validator: validators.map(|validators| Validator {
                rank: rank(&validators.set, &validators.own).map(|rank| rank as u64),
                of: validators.set.len() as u64,
                quorum: validators.quorum() as u64,
                others: validators.active_others() as u64,
                slot: slot.map(|(plan, _)| self.due_at(plan)),
            }),
            longest_turn: self.counts.longest_turn,
            log_lines_lost: self.counts.log_lines_lost,
        }
    }

    /// What the start is held for, in a word.
    fn held_for(&self) -> Option<&'static str> {
        let State::Held { why, .. } = self.state else { return None };
        Some(match why {
            Hold::Signed => "signed",
            Hold::Room(_) => "room",
        })
    }

    /// Metrics are written from now on, if somebody wants them.
    pub(super) fn plan_metrics(&mut self) {
        let wanted = self.config.metrics_textfile.is_some() || self.counts.retired.is_some();
        self.counts.write_at = (wanted && !self.counts.writing).then_some(self.now);
    }

    pub(super) fn write_metrics(&mut self, out: &mut Vec<Effect>) {
        self.counts.write_at = None;
        if self.is_leaving() {
            return;
        }
        let file = self.config.metrics_textfile.clone();
        // It may be the present one again.
        let retired = self.counts.retired.take().filter(|retired| file.as_ref() != Some(retired));
        if file.is_none() && retired.is_none() {
            return;
        }
        self.counts.writing = true;
        let args = if self.life.args.is_empty() { &self.args } else { &self.life.args };
        let backup = backup::Spec::new(&self.config, &self.home, args);
        let spec = Spec { file, retired, live: Some(self.live()), backup };
        self.start_job(Role::Metrics, Job::Metrics(Box::new(spec)), WRITE_TIME, out);
    }

    pub(super) fn metrics_written(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        self.counts.writing = false;
        let wanted = self.config.metrics_textfile.is_some() || self.counts.retired.is_some();
        self.counts.write_at = wanted.then(|| self.now + self.config.metrics_interval);
        let problem = result.err();
        if let Some(why) = problem.as_ref().filter(|_| self.counts.told != problem) {
            say(out, log::Level::Warn, format!("{why}; it is tried again"));
        }
        self.counts.told = problem;
    }
}
