//! The hold before a validator starts. Nothing of a WBFT node's consensus state is on disk: one that comes back before the
//! block was decided that it signed last could sign another one in its place. So it waits until the chain has gone on.

use std::time::Duration;

use log::Level;

use super::{Effect, Hold, Machine, Now, PROBE_TIME, Role, State, say};
use crate::config::show_duration;
use crate::job::{Job, Report};
use crate::journal::Journal;

/// The block period where the chain's pace is not known, and the request timeout (go-wbft's and go-stablenet's genesis).
const BLOCK_PERIOD: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How many blocks beyond the last one that this node may have had show that what it signed is decided.
const DECIDED_AFTER: u64 = 2;

/// How often another node is asked for its head.
const REFERENCE_PAUSE: Duration = Duration::from_secs(1);

impl Machine {
    /// Until when the start is held, if it is. After a clean stop the chain decides within two block periods and one
    /// request timeout; after any other end, and after data or release went back, nobody here knows, so it is the longest hold.
    pub(super) fn held_until(&self) -> Option<Now> {
        let (ended, clean) = self.last_end.filter(|_| self.config.validator_mode)?;
        let most = self.config.validator_hold;
        let hold =
            if clean { (self.life.block_time.unwrap_or(BLOCK_PERIOD) * 2 + REQUEST_TIMEOUT).min(most) } else { most };
        Some(ended + hold).filter(|until| *until > self.now)
    }

    /// Holds the start, if that is called for.
    pub(super) fn hold(&mut self, out: &mut Vec<Effect>) -> bool {
        let Some(until) = self.held_until() else { return false };
        self.state = State::Held { until, why: Hold::Signed };
        self.reached = None;
        if !self.config.reference_rpc.is_empty() && self.last_end.is_some_and(|(_, clean)| !clean) {
            self.reference_at = Some(self.now);
        }
        let left = show_duration(until.saturating_sub(self.now));
        let text = format!("the start is held for {left}: {}", self.why_held());
        say(out, Level::Info, text.clone());
        self.announce_hold(text, out);
        true
    }

    /// Asks another node whether the chain has gone on without this one.
    pub(super) fn ask_reference(&mut self, out: &mut Vec<Effect>) {
        self.reference_at = None;
        if let State::Held { why: Hold::Signed, .. } = self.state {
            let addresses = self.config.reference_rpc.clone();
            let count = u32::try_from(addresses.len()).unwrap_or(1).max(1);
            self.start_job(Role::Reference, Job::Reference(addresses), PROBE_TIME * count, out);
        }
    }

    /// The block that this node may have had when it ended: the last one that it told, and as many as the chain has made
    /// until then.
    fn may_have_reached(&self) -> u64 {
        let told = self.known.head.as_ref().map_or(0, |head| head.number);
        let since = self.last_end.filter(|_| self.life.head.is_some());
        let since = since.map_or(Duration::ZERO, |(ended, _)| ended.saturating_sub(self.life.progress));
        let pace = self.life.block_time.unwrap_or(BLOCK_PERIOD).as_millis().max(1);
        told.saturating_add(u64::try_from(since.as_millis().div_ceil(pace)).unwrap_or(u64::MAX))
    }

    /// The chain is two blocks further than this node may have been, and than the other one was in the beginning: what this
    /// one signed last is decided.
    pub(super) fn reference_told(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let State::Held { until, why: Hold::Signed } = self.state else { return };
        self.reference_at = Some(self.now + REFERENCE_PAUSE).filter(|at| *at < until);
        let head = match result {
            Ok(Report::ReferenceHead(head)) => head,
            Ok(_) => return,
            Err(why) => {
                return self.tell_once("reference", &format!("DAEMON_REFERENCE_RPC does not answer: {why}"), out);
            }
        };
        // What this node told last may be old, or of a supervisor that was killed since: the other's first word counts too.
        let reached = self.reached.unwrap_or_else(|| self.may_have_reached().max(head));
        self.reached = Some(reached);
        if head >= reached.saturating_add(DECIDED_AFTER) {
            self.reference_at = None;
            let text = format!("the chain is at {head}, this node stopped at {reached} at most: the hold is over");
            say(out, Level::Info, text);
            // Whatever its end was, it is decided now.
            self.last_end = None;
            self.go(out);
        }
    }

    pub(super) fn why_held(&self) -> &'static str {
        match self.last_end {
            Some((_, true)) => "a validator waits until the block that it signed last is decided (VALIDATOR_MODE)",
            _ => {
                "a validator whose last end was not clean, or whose release or data went back, waits longer (VALIDATOR_MODE)"
            }
        }
    }

    /// What came last is worth nothing for telling what was signed.
    pub(super) fn hold_longer(&mut self) {
        self.last_end = self.last_end.map(|(at, _)| (at, false));
    }

    /// Whether the release before may run again without the operator's word: a validator's may not once the height is next.
    pub(super) fn old_may_run(&self, journal: &Journal) -> bool {
        let head = self.known.head.as_ref().map(|head| head.number).max(journal.head);
        let reached = journal.height.zip(head).is_some_and(|(height, head)| head >= height.saturating_sub(1));
        !(self.config.validator_mode && reached)
    }
}
