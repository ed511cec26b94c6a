//! The hold before a validator starts. Nothing of a WBFT node's consensus state is on disk: one that comes back before the
//! block was decided that it signed last could sign another one in its place. So it waits until the chain has gone on.

use std::time::Duration;

use log::Level;

use super::{Effect, Hold, Machine, Now, PROBE_TIME, Role, State, say};
use crate::config::show_duration;
use crate::job::{Job, Report};
use crate::journal::{self, Journal, Known, unix_now};

/// The block period where the chain's pace is not known, and the request timeout (go-wbft's and go-stablenet's genesis).
const BLOCK_PERIOD: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How many blocks beyond the last one that this node may have had show that what it signed is decided.
const DECIDED_AFTER: u64 = 2;

/// How often another node is asked for its head.
const REFERENCE_PAUSE: Duration = Duration::from_secs(1);

/// The highest head that was ever told, by whichever life of the node, and how long ago.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Highest {
    number: u64,
    /// When it was heard or read.
    at: Now,
    /// How old it was by then; none: nobody knows, for the clock went back.
    age: Option<Duration>,
}

impl Highest {
    /// What is on record when the program begins.
    pub(super) fn on_record(known: &Known, now: Now) -> Option<Highest> {
        let highest = known
            .highest
            .clone()
            .or(known.head.as_ref().map(|h| journal::Highest { number: h.number, seen: h.seen }))?;
        let age = unix_now().checked_sub(highest.seen).map(|age| Duration::from_secs(age + 1));
        Some(Highest { number: highest.number, at: now, age })
    }

    /// The same, once the node was asked at this time and has told this head.
    pub(super) fn told(before: Option<Highest>, head: u64, asked: Now) -> Highest {
        let told = Highest { number: head, at: asked, age: Some(Duration::ZERO) };
        before.filter(|before| before.number > head).unwrap_or(told)
    }
}

impl Machine {
    /// Until when the start is held, if it is. After a clean stop the chain decides within two block periods and one
    /// request timeout; after any other end, and after data or release went back, nobody here knows, so it is the longest hold.
    pub(super) fn held_until(&self) -> Option<Now> {
        let (ended, clean) = self.last_end.filter(|_| self.config.validator_mode)?;
        let most = self.config.validator_hold;
        let hold = if clean { self.time_of(2).min(most) } else { most };
        Some(ended + hold).filter(|until| *until > self.now)
    }

    /// How long so many blocks take, when a validator is missing that is in turn for one of them.
    pub(super) fn time_of(&self, blocks: u32) -> Duration {
        self.life.block_time.unwrap_or(BLOCK_PERIOD) * blocks + REQUEST_TIMEOUT
    }

    /// Holds the start, if that is called for.
    pub(super) fn hold(&mut self, out: &mut Vec<Effect>) -> bool {
        let Some(until) = self.held_until() else { return false };
        self.state = State::Held { until, why: Hold::Signed };
        self.reached = None;
        let unclean = self.last_end.is_some_and(|(_, clean)| !clean);
        if !self.config.reference_rpc.is_empty() && unclean && self.may_have_reached().is_some() {
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

    /// The block that this node may have had when it ended: the highest that it told, and as many as the chain can have made
    /// until then, whoever heard of them: it may have gone on without its supervisor. None: nobody knows.
    fn may_have_reached(&self) -> Option<u64> {
        let ((ended, _), highest) = self.last_end.zip(self.highest)?;
        let since = highest.age? + ended.saturating_sub(highest.at);
        // As fast as it can be: what was measured may have a standstill in it.
        let pace = self.life.block_time.unwrap_or(BLOCK_PERIOD).min(BLOCK_PERIOD).as_millis().max(1);
        let made = u64::try_from(since.as_millis().div_ceil(pace)).unwrap_or(u64::MAX);
        Some(highest.number.saturating_add(made))
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
        // The chain may be faster than it was: the other's first word counts, too.
        let Some(reached) = self.reached.or_else(|| Some(self.may_have_reached()?.max(head))) else { return };
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
