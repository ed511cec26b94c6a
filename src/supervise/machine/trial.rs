//! The trial of a new release: what proves it, what commits it, and what brings the old one back. It judges the release,
//! not the chain: no new blocks is never a failure.

use std::time::Duration;

use log::Level;

use super::{Effect, Machine, Now, State, Then, say};
use crate::error::Code;
use crate::job::step::Step;
use crate::journal::{Journal, Outcome, Stage};

/// How often a release may end before it has proved itself.
const STARTS: u32 = 3;

/// What the operator of such a validator can do.
const REMEDY: &str = "mend the release and start again, or go back with VALIDATOR_MODE=false";

impl Machine {
    /// Whether the current release is on probation.
    pub(super) fn on_trial(&self) -> bool {
        self.journal.as_ref().is_some_and(|j| j.stage == Stage::Trial)
    }

    /// Whether a failed release may be replaced by the one before: not once a block of the new rules ran under it.
    pub(super) fn may_go_back(&self) -> bool {
        let Some(journal) = self.journal.as_ref().filter(|j| j.stage == Stage::Trial && !j.proven) else {
            return false;
        };
        let Some(height) = journal.height else { return true };
        let under_new = self.known.head.as_ref().filter(|head| head.release == journal.to).map(|head| head.number);
        !under_new.is_some_and(|head| head >= height && journal.head.is_none_or(|stopped| head > stopped))
    }

    /// Whether the release that runs has to prove itself.
    pub(super) fn on_probation(&self) -> bool {
        self.journal.as_ref().is_some_and(|j| j.on_probation().is_some())
    }

    /// Whether an end of the node by itself counts against the release that runs.
    pub(super) fn end_counts(&self) -> bool {
        self.may_go_back() || self.data_may_go_back()
    }

    /// Why an upgrade is to be taken back before anything is started, if so.
    pub(super) fn reason_to_turn_back(&self) -> Option<(Outcome, String)> {
        let journal = self.journal.as_ref()?;
        let last = self.life.exit.map_or_else(String::new, |exit| format!(", last with {exit}"));
        let ended =
            |release| format!("release {release} ended {} times before it had proved itself{last}", journal.starts);
        match journal.stage {
            Stage::Stop | Stage::Hook | Stage::Switch => self.withdrawn(),
            Stage::Trial if journal.starts >= STARTS && self.may_go_back() && self.old_may_run(journal) => {
                Some((Outcome::Reverted, ended(&journal.to)))
            }
            Stage::Return if journal.starts >= STARTS && self.data_may_go_back() => {
                Some((Outcome::Reverted, ended(&journal.from)))
            }
            Stage::Trial | Stage::Return | Stage::Restore | Stage::Back => None,
        }
    }

    /// Why a release on trial that failed stays all the same, if so: the one before may not run any more.
    pub(super) fn no_way_back(&self) -> Option<String> {
        let journal = self.journal.as_ref().filter(|j| j.stage == Stage::Trial && j.starts >= STARTS)?;
        (self.may_go_back() && !self.old_may_run(journal)).then(|| {
            format!(
                "release {} ended {} times before it had proved itself, and a validator at its height is not given back to {}: {REMEDY}",
                journal.to, journal.starts, journal.from
            )
        })
    }

    /// Whether the data may go back to the backup that the upgrade made: never over blocks that are newer.
    pub(super) fn data_may_go_back(&self) -> bool {
        let Some(journal) = self.journal.as_ref().filter(|j| j.stage == Stage::Return && !j.proven) else {
            return false;
        };
        let head = self.known.head.as_ref().map(|head| head.number);
        journal.way_back().is_some() && head.is_none_or(|head| journal.head.is_some_and(|backed_up| head <= backed_up))
    }

    /// What the operator can do where the data was not put back by itself.
    pub(super) fn way_back_by_hand(&self) -> String {
        let journal = self.journal.as_ref().filter(|j| j.stage == Stage::Return);
        journal.and_then(Journal::way_back).map_or_else(String::new, |backup| {
            format!("; the data may have blocks newer than its backup and was left alone: `wemixvisor backup restore {backup}` puts that back")
        })
    }

    /// Whether the operator withdrew the upgrade in time.
    pub(super) fn withdrawn(&self) -> Option<(Outcome, String)> {
        let begun = self.journal.as_ref().is_some_and(Journal::before_switch);
        (self.cancel && begun).then(|| (Outcome::Cancelled, "the operator withdrew it".to_owned()))
    }

    /// When the trial is to be judged although nothing happened.
    fn next_mark(&self) -> Option<Now> {
        let since = self.life.executed?;
        let marks = [
            since + self.config.trial_time,
            self.life.progress + self.config.trial_timeout,
            since + self.config.trial_timeout,
        ];
        marks.into_iter().filter(|mark| *mark > self.now).min()
    }

    /// Moves the trial on, if it is time.
    pub(super) fn judge(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Up || self.step.is_some() || self.step_retry.is_some() {
            return;
        }
        let Some(journal) = self.journal.clone().filter(|j| j.on_probation().is_some()) else { return };
        self.judge_at = self.next_mark();
        if journal.stage == Stage::Return {
            // The old release runs: that is all that was left to see. One that never answers must not hold up what comes next.
            let known = self.known.head.is_some() || self.life.answered.is_some();
            let long = if known { self.config.trial_timeout } else { self.config.trial_time };
            if self.life.head.is_some() || self.age() >= long {
                self.start_step(Step::Back { stage: Stage::Return }, out);
            }
            return;
        }
        if let Some(reason) = self.failure(&journal) {
            if !self.old_may_run(&journal) {
                self.error = Some(format!(
                    "{reason}, and a validator at its height is not given back to {}: {REMEDY}",
                    journal.from
                ));
                return self.stop(Then::Exit(Code::Node as u8), out);
            }
            let step = self.turn_back(Outcome::Reverted, reason, false);
            return self.start_step(step, out);
        }
        if !journal.proven {
            if self.proves(&journal) {
                self.start_step(Step::Prove { phases: self.phases }, out);
            }
            return;
        }
        if self.commits(&journal) {
            return self.start_step(Step::Commit, out);
        }
        if !self.life.said_open && self.age() >= self.config.trial_timeout {
            self.life.said_open = true;
            let text = format!(
                "release {} runs, but the chain made fewer than {} new blocks: the trial stays open",
                journal.to, self.config.trial_blocks
            );
            say(out, Level::Warn, text);
        }
        self.consider(out);
    }

    /// What shows, while it runs, that the new release is no good.
    fn failure(&self, journal: &Journal) -> Option<String> {
        if journal.proven {
            return None;
        }
        // A wrong identity is judged whatever its head is: that head is another chain's.
        if let Some(what) = self.life.identity.as_ref().and_then(|identity| identity.contradiction(&journal.identity)) {
            return Some(format!("under release {} {what}", journal.to));
        }
        let quiet = self.now.saturating_sub(self.life.progress);
        if self.may_go_back() && self.life.answered.is_none() && quiet >= self.config.trial_timeout {
            return Some(format!(
                "release {} neither answered nor made progress for {}",
                journal.to,
                crate::config::show_duration(Duration::from_secs(quiet.as_secs()))
            ));
        }
        None
    }

    /// Alive for long enough; and where RPC ever answered at this home: it answers, with a head that did not go back.
    fn proves(&self, journal: &Journal) -> bool {
        if self.age() < self.config.trial_time {
            return false;
        }
        let head_is_good =
            self.life.head.is_some_and(|head| head > 0 && journal.head.is_none_or(|stopped| head >= stopped));
        let answers = self.life.identity.is_some() && self.life.silent_since.is_none() && head_is_good;
        self.never_answered(journal) || answers
    }

    /// Whether no RPC ever answered at this home. The journal remembers a head also when state.json was lost with the power.
    fn never_answered(&self, journal: &Journal) -> bool {
        journal.head.is_none() && self.known.head.is_none() && self.life.answered.is_none()
    }

    fn commits(&self, journal: &Journal) -> bool {
        if self.never_answered(journal) {
            return true;
        }
        let base = journal.head.or(self.life.first_head);
        match (base, self.life.head) {
            (Some(base), Some(head)) => head >= base.saturating_add(self.config.trial_blocks),
            (Some(_) | None, Some(_) | None) => false,
        }
    }
}
