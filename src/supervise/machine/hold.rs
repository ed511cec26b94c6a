//! The hold before a validator starts. Nothing of a WBFT node's consensus state is on disk: one that comes back before the
//! block was decided that it signed last could sign another one in its place. So it waits until the chain has gone on.

use std::time::Duration;

use log::Level;

use super::{Effect, Machine, Now, State, say};
use crate::config::show_duration;
use crate::journal::Journal;

/// The block period where the chain's pace is not known, and the request timeout (go-wbft's and go-stablenet's genesis).
const BLOCK_PERIOD: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

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
        self.state = State::Held { until };
        let left = show_duration(until.saturating_sub(self.now));
        say(out, Level::Info, format!("the start is held for {left}: {}", self.why_held()));
        true
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
