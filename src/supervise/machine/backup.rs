//! What the supervisor has to do with backups besides making one: copying ahead of an upgrade, progress, and giving up old
//! ones.

use std::time::Duration;

use log::Level;

use super::{Effect, Machine, Now, Role, State, say};
use crate::config::{Trigger, show_duration, show_size};
use crate::job::backup::Spec;
use crate::job::backup::prune::Limits;
use crate::job::{Job, Progress, Report};
use crate::schedule::Found;

/// How long removing old backups, and copying ahead, may take.
const PRUNE_TIME: Duration = Duration::from_hours(1);
const AHEAD_TIME: Duration = Duration::from_hours(48);

/// When old backups are looked at first, and how often from then on.
pub(super) const PRUNE_FIRST: Duration = Duration::from_mins(1);
const PRUNE_AGAIN: Duration = Duration::from_hours(1);

/// How long before its upgrade copying ahead begins at the latest, and the pace that is assumed of a disk, in bytes a second.
const AHEAD_LEAST: Duration = Duration::from_mins(30);
const DISK_PACE: u64 = 50 << 20;

/// Where nobody can tell when the upgrade will be, what was copied ahead is brought up to date this often.
const AHEAD_AGAIN: Duration = Duration::from_hours(1);

/// How often a line tells how far a backup is.
pub(super) const PROGRESS_LINE: Duration = Duration::from_secs(5);

/// Copying ahead of the nearest upgrade.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ahead {
    /// The plan that it was done for.
    digest: Option<String>,
    /// When the pass under way began.
    began: Option<Now>,
    /// When the last one ended, and how long the upgrade may be away for the next one to begin.
    last: Option<(Now, Duration)>,
}

impl Machine {
    /// What an upgrade backs up and where to; none: the operator wants no backup.
    pub(super) fn backup_spec(&self) -> Option<Spec> {
        let args = if self.life.args.is_empty() { &self.args } else { &self.life.args };
        (!self.config.skip_backup).then(|| Spec::new(&self.config, &self.home, args))
    }

    /// How long the chain needs until a plan is due, as far as its pace is known.
    pub(super) fn time_until(&self, plan: &Found) -> Option<Duration> {
        let (head, pace) = self.life.head.zip(self.life.block_time)?;
        let blocks = self.due_at(plan).saturating_sub(head);
        Some(pace.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX)))
    }

    pub(super) fn progressed(&mut self, progress: Progress, out: &mut Vec<Effect>) {
        self.progress = Some(progress);
        let last = *self.progress_said.get_or_insert(self.now);
        if self.now.saturating_sub(last) >= PROGRESS_LINE {
            self.progress_said = Some(self.now);
            say(out, Level::Info, format!("{}: {}", self.what_goes_on(), self.shown_progress()));
        }
    }

    fn what_goes_on(&self) -> &'static str {
        match &self.step {
            Some(crate::job::step::Step::Restore) => "the data goes back",
            Some(_) | None => "the data is backed up",
        }
    }

    /// `1.2GiB of 3.4GiB in 567 files`.
    pub(super) fn shown_progress(&self) -> String {
        let Some(progress) = self.progress else { return String::new() };
        let of = progress.of.map_or_else(String::new, |of| format!(" of {}", show_size(of)));
        format!("{}{of} in {} files", show_size(progress.bytes), progress.files)
    }

    /// Copies ahead of the nearest upgrade what its backup must copy and what the node will not change any more: first in
    /// good time, then again and again the closer it comes, so that less and less is left for the time without a node.
    pub(super) fn consider_ahead(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Up || self.journal.is_some() || self.step.is_some() || self.ahead.began.is_some() {
            return;
        }
        let Some(plan) = self.next_plan().cloned() else { return };
        let forecast = self.staged.get(&plan.release).filter(|s| s.problem().is_none()).and_then(|s| s.backup.clone());
        let Some(bytes) = forecast.map(|f| f.to_copy.saturating_sub(f.down_copy)).filter(|bytes| *bytes > 0) else {
            return;
        };
        if self.ahead.digest.as_ref() != Some(&plan.digest) {
            self.ahead = Ahead { digest: Some(plan.digest.clone()), began: None, last: None };
        }
        let first = AHEAD_LEAST.max(Duration::from_secs(bytes / DISK_PACE * 3));
        let within = self.ahead.last.map_or(first, |(_, within)| within);
        let wanted = match self.time_until(&plan) {
            Some(left) => left <= within,
            None if self.config.upgrade_trigger == Trigger::File => {
                self.ahead.last.is_none_or(|(at, _)| self.now.saturating_sub(at) >= AHEAD_AGAIN)
            }
            None => false,
        };
        let Some(spec) = self.backup_spec().filter(|_| wanted && self.config.upgrade_enabled) else { return };
        say(out, Level::Info, format!("copying ahead of upgrade {}: up to {}", plan.name, show_size(bytes)));
        self.ahead.began = Some(self.now);
        self.start_job(Role::Ahead, Job::CopyAhead(spec), AHEAD_TIME, out);
    }

    pub(super) fn copied_ahead(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let Some(began) = self.ahead.began.take() else { return };
        let took = self.now.saturating_sub(began);
        let plan = self.next_plan().cloned();
        let left = plan.and_then(|plan| self.time_until(&plan));
        // Once more at a quarter of the time that is left, as long as that is enough for it.
        let within = left.map(|left| left / 4).filter(|quarter| *quarter >= took * 2).unwrap_or(Duration::ZERO);
        self.ahead.last = Some((self.now, within));
        match result {
            Ok(Report::CopiedAhead(bytes)) => {
                let took = show_duration(super::whole(took));
                say(out, Level::Info, format!("copied ahead {} in {took}", show_size(bytes)));
            }
            Ok(_) => {}
            Err(why) if self.state == State::Up && self.journal.is_none() => {
                say(out, Level::Warn, format!("cannot copy ahead, the upgrade will take longer: {why}"));
            }
            Err(_) => {}
        }
    }

    /// The upgrade begins: what was not copied by now is copied when the node is down.
    pub(super) fn end_ahead(&mut self, out: &mut Vec<Effect>) {
        if self.ahead.began.is_some() {
            out.push(Effect::Kill(Role::Ahead));
        }
    }

    pub(super) fn prune(&mut self, out: &mut Vec<Effect>) {
        self.prune_at = Some(self.now + PRUNE_AGAIN);
        if self.state != State::Up || self.journal.is_some() {
            return;
        }
        let args = if self.life.args.is_empty() { &self.args } else { &self.life.args };
        let limits = Limits { min_free: Some(self.config.min_disk.saturating_mul(2)), ..Limits::of(&self.config) };
        let spec = Spec::new(&self.config, &self.home, args);
        self.start_job(Role::Prune, Job::Prune(spec, limits), PRUNE_TIME, out);
    }

    pub(super) fn pruned(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        match result {
            Ok(Report::Pruned(names)) => {
                for name in names {
                    say(out, Level::Info, format!("old backup removed: {name}"));
                }
            }
            Ok(_) => {}
            Err(why) => say(out, Level::Warn, format!("cannot remove old backups: {why}")),
        }
    }
}
