//! Validators upgrade one after the other: each in the slot of its rank, and only while the others can go on without it.

use std::time::Duration;

use log::Level;
use serde_json::{Value, json};

use super::{Effect, Machine, say};
use crate::config::show_duration;
use crate::job::validators::Validators;
use crate::schedule::{self, Found};
use crate::supervise::validator::{self, default_start, has_slack, needed_others, rank};

/// A chain that made no block for so long is not stopped any further by one validator less.
const STANDS_STILL: Duration = Duration::from_mins(1);

/// When a validator's turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its place in the set, from 0.
    rank: usize,
    /// How many there are.
    of: usize,
    /// The head at which it is due.
    due: u64,
}

impl Machine {
    /// The validator set, where this node runs as one of it.
    pub(super) fn validators(&self) -> Option<&Validators> {
        self.life.validators.as_ref().filter(|v| self.config.validator_mode && v.is_validator())
    }

    /// This node's turn in a plan's rolling upgrade; none: it has none, and the plan is due at its height.
    pub(super) fn slot(&self, plan: &Found) -> Option<Slot> {
        let validators = self.validators()?;
        let spacing = plan.rolling.spacing.unwrap_or(self.config.rolling_spacing);
        let start = self.slots_begin(plan)?;
        // All take the set of the same block, whenever they look.
        let set = validators.at.get(&start).unwrap_or(&validators.set);
        let rank = rank(set, &validators.own)?;
        Some(Slot { rank, of: set.len(), due: validator::due_at(plan.height, start, spacing, rank) })
    }

    /// The block at which the first slot of a plan begins; once reached, a set that changes does not move it any more.
    fn slots_begin(&self, plan: &Found) -> Option<u64> {
        let validators = self.validators()?;
        let spacing = plan.rolling.spacing.unwrap_or(self.config.rolling_spacing);
        let begun = self.slots_begun.get(&plan.digest).copied();
        Some(begun.or(plan.rolling.start).unwrap_or_else(|| default_start(plan.height, validators.set.len(), spacing)))
    }

    /// The head at which a plan is due for this node.
    pub(super) fn due_at(&self, plan: &Found) -> u64 {
        self.slot(plan).map_or_else(|| schedule::due_at(plan.height, self.config.lead()), |slot| slot.due)
    }

    /// The blocks whose validator sets decide upon slots.
    pub(super) fn slot_blocks(&self) -> std::collections::BTreeSet<u64> {
        self.schedule.pending().filter_map(|plan| self.slots_begin(plan)).collect()
    }

    /// Takes in what the node told of its set.
    pub(super) fn heard_validators(&mut self, mut heard: Validators, out: &mut Vec<Effect>) {
        if !self.config.validator_mode {
            if heard.is_validator() && !std::mem::replace(&mut self.said_validator, true) {
                say(
                    out,
                    Level::Warn,
                    format!(
                        "this node is a validator ({}): with VALIDATOR_MODE=true it is upgraded in its turn and never started too early",
                        heard.own
                    ),
                );
            }
            return;
        }
        if heard.clients.is_empty()
            && let Some(before) = &mut self.life.validators
        {
            // They are asked for only now and then.
            heard.clients = std::mem::take(&mut before.clients);
        }
        self.life.validators = Some(heard);
        let Some(head) = self.life.head else { return };
        let plans: Vec<Found> = self.schedule.pending().cloned().collect();
        for plan in &plans {
            if let Some(start) = self.slots_begin(plan).filter(|start| head >= *start) {
                self.slots_begun.entry(plan.digest.clone()).or_insert(start);
            }
        }
        self.slots_begun.retain(|digest, _| plans.iter().any(|plan| plan.digest == *digest));
        for plan in plans {
            let Some(slot) = self.slot(&plan) else { continue };
            let (level, when) = self.when(&plan, slot, head);
            let text =
                format!("upgrade {}: this validator's turn {when} (rank {} of {})", plan.name, slot.rank, slot.of);
            if self.told_slots.get(&plan.digest) != Some(&text) {
                say(out, level, text.clone());
                if self.no_slack() {
                    say(
                        out,
                        Level::Warn,
                        format!(
                            "in a set of {} none can be missing: the chain will stand still while each validator is upgraded",
                            slot.of
                        ),
                    );
                }
                self.told_slots.insert(plan.digest.clone(), text);
            }
        }
    }

    /// When a turn is, and whether that is worth a warning.
    fn when(&self, plan: &Found, slot: Slot, head: u64) -> (Level, String) {
        let last = plan.height.saturating_sub(1);
        match self.next_turn(plan).filter(|turn| *turn > head && head > slot.due) {
            None => (Level::Info, format!("is at block {}", slot.due)),
            Some(turn) if turn < last => {
                (Level::Info, format!("was at block {}, its next one is at block {turn}", slot.due))
            }
            Some(_) => (
                Level::Warn,
                format!(
                    "was at block {}, and it has no other before the height: it goes down at block {last} with all who missed theirs, unless every validator's plan has turns that are closer (info.rolling)",
                    slot.due
                ),
            ),
        }
    }

    /// The head at which this validator may go down, from now on.
    fn next_turn(&self, plan: &Found) -> Option<u64> {
        let (head, slot, start) = (self.life.head?, self.slot(plan)?, self.slots_begin(plan)?);
        let spacing = plan.rolling.spacing.unwrap_or(self.config.rolling_spacing);
        let turn = validator::next_turn(head, start, spacing, slot.rank, slot.of);
        Some(turn.min(plan.height.saturating_sub(1)))
    }

    fn no_slack(&self) -> bool {
        self.validators().is_some_and(|v| !has_slack(v.set.len(), v.quorum()))
    }

    /// Why this validator may not go down right now, if so. At the height, or where the chain stands still, nothing is won by
    /// waiting any longer.
    pub(super) fn gate(&self, plan: &Found) -> Option<String> {
        let validators = self.validators()?;
        let head = self.life.head?;
        if head >= plan.height.saturating_sub(1) {
            return None;
        }
        if self.life.silent_since.is_some() {
            // Nobody can tell how the others are, nor that the chain stands still.
            return Some("the node's RPC to answer".to_owned());
        }
        if self.life.answered.is_some_and(|at| self.now.saturating_sub(at) >= STANDS_STILL) {
            return None;
        }
        let needed = needed_others(validators.set.len(), validators.quorum());
        let others = validators.active_others();
        if others < needed {
            return Some(format!(
                "the other validators to be there: {others} of {} signed lately, {needed} are needed while this one is down",
                validators.set.len() - 1
            ));
        }
        // Others may have missed theirs for the same reason, and see the same.
        let turn = self.next_turn(plan)?;
        (turn > head).then(|| format!("its next turn at block {turn}"))
    }

    /// `validator` of the status.
    pub(super) fn validator_status(&self) -> Value {
        let Some(validators) = self.life.validators.as_ref() else { return Value::Null };
        let slot = self.schedule.pending().find_map(|plan| self.slot(plan)).map(|slot| slot.due);
        let (others, quorum) = (validators.active_others(), validators.quorum());
        json!({
            "address": validators.own,
            "rank": rank(&validators.set, &validators.own),
            "validators": validators.set.len(),
            "quorum": quorum,
            "active_others": others,
            "margin": i64::try_from(others).unwrap_or(0) - i64::try_from(quorum).unwrap_or(0),
            "slot": slot,
        })
    }

    /// `readiness` of the status: who is there, and what each of them runs.
    pub(super) fn readiness(&self) -> Vec<Value> {
        let Some(validators) = self.life.validators.as_ref() else { return Vec::new() };
        let one = |(rank, address): (usize, &String)| {
            json!({
                "address": address,
                "rank": rank,
                "signed": validators.active.contains(address),
                "client": validators.clients.get(address),
            })
        };
        validators.set.iter().enumerate().map(one).collect()
    }

    /// What a plan that waits for its turn waits for.
    pub(super) fn turn(&self, plan: &Found) -> Option<String> {
        let slot = self.slot(plan)?;
        let head = self.life.head?;
        if head < slot.due {
            return Some(format!("its turn at block {} (rank {} of {}, head {head})", slot.due, slot.rank, slot.of));
        }
        self.gate(plan).map(|why| {
            let still = self.now.saturating_sub(self.life.answered.unwrap_or(self.now));
            let so_long = if still.as_secs() > 5 {
                format!("; no block for {}", show_duration(super::whole(still)))
            } else {
                String::new()
            };
            format!("{why}{so_long}")
        })
    }
}
