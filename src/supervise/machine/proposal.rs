//! Before a validator is asked to end: it is waited until it proposes no block for a while, so that it ends with none under
//! way.

use super::*;
use crate::job::proposal::{CLEAR_BLOCKS, Spec};

/// What is waited for.
pub(super) const QUIET: &str = "a block after which this validator proposes none for a while";

/// How long the job may take beyond what it waits.
const ANSWER_TIME: Duration = Duration::from_secs(3);

impl Machine {
    /// Whether it is worth to wait: the node is a validator that signs and answers, and the others go on, so that its turn
    /// passes.
    pub(super) fn may_propose(&self) -> bool {
        let Some(validators) = self.life.validators.as_ref().filter(|v| v.kind == Kind::Wbft && v.is_validator())
        else {
            return false;
        };
        let answers = self.life.silent_since.is_none() && !self.late.contains_key(&Role::Proposal);
        let signs = validators.active.contains(&validators.own);
        let enough = validators.active_others() + 1 >= validators.quorum();
        self.config.validator_mode && signs && answers && enough && !self.at_the_height()
    }

    /// Whether the next block is one that none of the validators makes with the release that runs.
    fn at_the_height(&self) -> bool {
        let Some(next) = self.life.head.map(|head| head.saturating_add(1)) else { return false };
        let under_way =
            self.journal.as_ref().filter(|journal| journal.before_switch()).and_then(|journal| journal.height);
        // Where the chain has passed a height with this release, it is none for it.
        under_way == Some(next) || self.schedule.pending().any(|plan| plan.height == next)
    }

    /// Waits.
    pub(super) fn await_proposal(&mut self, out: &mut Vec<Effect>) {
        self.awaits_proposal = true;
        let blocks = u32::try_from(CLEAR_BLOCKS).unwrap_or(u32::MAX);
        let patience = self.time_of(2 * (blocks + 1)).min(self.config.validator_hold);
        let spec = Spec { addresses: self.addresses(), patience };
        say(out, Level::Info, format!("waiting for {QUIET} before the node is asked to end"));
        self.start_job(Role::Proposal, Job::Proposal(spec), patience + ANSWER_TIME, out);
    }

    /// Whatever came of it, now the node is asked to end.
    pub(super) fn proposal_passed(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.awaits_proposal) {
            return;
        }
        let why = match result {
            Ok(Report::ProposesNothing(true)) => None,
            Ok(_) => Some("no such block came in time".to_owned()),
            Err(why) => Some(why),
        };
        if let Some(why) = why {
            let text =
                format!("the validator may end with a proposal of its own under way, which it then signs twice: {why}");
            say(out, Level::Warn, text);
        }
        if let State::Stopping { .. } = self.state {
            self.terminate(out);
        }
    }
}
