//! The operator's own command is told what happens: one event after the other, bounded in number and time, and nothing waits
//! for it but the end of the program, for a moment.

use std::collections::VecDeque;
use std::time::Duration;

use log::Level;

use super::metrics::Why;
use super::{Effect, Exit, Hold, Machine, Now, Role, State, say};
use crate::event::{Event, What};
use crate::home::{Name, Release};
use crate::job::Job;
use crate::journal::{Journal, Outcome, rfc3339, unix_now};

/// How long the command may take for one event.
const COMMAND_TIME: Duration = Duration::from_secs(30);

/// How many events may wait for those before them.
const WAITING_MAX: usize = 64;

/// How long the end of the program waits for what is still to be told.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What is to be told, the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Events {
    waiting: VecDeque<Event>,
    /// The kind of the one that is being told.
    telling: bool,
    /// How many were left out because too many waited.
    left_out: u64,
}

/// The upgrade that an event is about.
pub(super) type About = (Name, Option<u64>);

impl Machine {
    /// Tells that something happened.
    pub(super) fn announce(&mut self, what: What, about: Option<About>, message: String, out: &mut Vec<Effect>) {
        if self.config.event_command.is_none() {
            return;
        }
        let (name, height) = about.map_or((None, None), |(name, height)| (Some(name), height));
        let event = Event {
            what,
            time: rfc3339(unix_now()),
            home: self.home.root().to_owned(),
            network: self.config.network.clone(),
            release: self.current.clone(),
            name,
            height,
            message,
        };
        if self.events.waiting.len() >= WAITING_MAX {
            self.events.waiting.pop_front();
            self.events.left_out += 1;
        }
        // The last word is the one that somebody has to be woken by.
        if matches!(event.what, What::Error { .. }) {
            self.events.waiting.push_front(event);
        } else {
            self.events.waiting.push_back(event);
        }
        self.tell_next(out);
    }

    fn tell_next(&mut self, out: &mut Vec<Effect>) {
        let Some(command) = self.config.event_command.clone().filter(|_| !self.events.telling) else { return };
        if let Some(event) = self.events.waiting.pop_front() {
            self.events.telling = true;
            self.start_job(Role::Event, Job::Event(command, Box::new(event)), COMMAND_TIME, out);
        }
    }

    /// The command has ended.
    pub(super) fn event_told(&mut self, result: Result<(), String>, out: &mut Vec<Effect>) {
        self.events.telling = false;
        if let Err(why) = result {
            say(out, Level::Warn, format!("DAEMON_EVENT_COMMAND: {why}"));
        }
        let left_out = std::mem::take(&mut self.events.left_out);
        if left_out > 0 {
            say(out, Level::Warn, format!("DAEMON_EVENT_COMMAND is too slow: {left_out} events were not told"));
        }
        self.tell_next(out);
    }

    /// Until when the end of the program waits for what is still to be told.
    pub(super) fn last_words(&self) -> Option<Now> {
        (self.events.telling && !self.hurry).then(|| self.now + LAST_WORDS)
    }

    /// How many events are not told, the one that is being told among them.
    pub(super) fn untold(&self) -> usize {
        self.events.waiting.len() + usize::from(self.events.telling)
    }

    /// Whether all is told.
    pub(super) fn told_all(&self) -> bool {
        !self.events.telling
    }

    /// An upgrade was taken back, or is being.
    pub(super) fn announce_turn_back(
        &mut self,
        journal: &Journal,
        outcome: Outcome,
        put_off: bool,
        why: String,
        out: &mut Vec<Effect>,
    ) {
        let (from, to) = (journal.from.clone(), journal.to.clone());
        let what = match outcome {
            Outcome::Reverted => What::UpgradeReverted { from, to, backup: journal.backup.clone() },
            Outcome::Cancelled => What::UpgradeCancelled { from, to },
            Outcome::Failed => What::UpgradeFailed { from, to, put_off },
            Outcome::Committed | Outcome::Passed => return,
        };
        self.announce(what, Some(about(journal)), why, out);
    }

    /// The node is started again though nobody asked it to end.
    pub(super) fn announce_crash(&mut self, exit: Option<Exit>, why: String, out: &mut Vec<Effect>) {
        self.counts.next_start = Some(if exit.is_some() { Why::Crash } else { Why::Hang });
        let about = self.journal.as_ref().map(about);
        let exit = exit.map(|exit| exit.to_string());
        self.announce(What::NodeCrashed { exit, restarts: self.restarts }, about, why, out);
    }

    /// A planned release is not fit.
    pub(super) fn announce_not_staged(&mut self, release: &Release, due: bool, why: String, out: &mut Vec<Effect>) {
        let plan = self.schedule.pending().find(|plan| plan.release == *release);
        let about = plan.map(|plan| (plan.name.clone(), Some(plan.height)));
        self.announce(What::NotStaged { to: release.clone(), due }, about, why, out);
    }

    /// The node is not started for a while.
    pub(super) fn announce_hold(&mut self, why: String, out: &mut Vec<Effect>) {
        let mut until = None;
        if let State::Held { until: end, why: Hold::Signed } = self.state {
            until = Some(rfc3339(unix_now() + end.saturating_sub(self.now).as_secs_f64().ceil() as u64));
        }
        self.announce(What::Hold { until }, None, why, out);
    }
}

/// The upgrade of a journal.
pub(super) fn about(journal: &Journal) -> About {
    (journal.name.clone(), journal.height)
}
