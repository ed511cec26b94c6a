//! The durable steps of an upgrade: begun one at a time, and what follows when one worked or failed.

use super::events::about;
use super::metrics::Why;
use super::plans::{STAGE_PAUSE, STAGE_PAUSE_MAX, shown};
use super::*;
use crate::event::What;

/// How often a step is tried at once before the node is preferred to the upgrade.
const STEP_TRIES: u32 = 3;

/// How often an upgrade is put off because a step of it could not be done, each time with a stop of the node, until its plan
/// counts as failed.
const PUT_OFFS: u32 = 3;

/// The reason of what is taken back because somebody said so.
pub(super) const SAID_SO: &str = "the operator said so";

/// How long a step may take that only writes some small files.
const SHORT_STEP_TIME: Duration = Duration::from_mins(2);

/// A step that fails after so long is not tried again at once.
const LONG: Duration = Duration::from_secs(10);

impl Machine {
    pub(super) fn start_step(&mut self, step: Step, out: &mut Vec<Effect>) {
        debug_assert!(self.step.is_none(), "one step at a time");
        // What was to be tried again either is this step, or is asked for anew once the journal is where this one leaves it.
        self.step_retry = None;
        self.step = Some(step.clone());
        if !matches!(step, Step::Backup(_) | Step::Restore) {
            self.late.insert(Role::Step, self.now + SHORT_STEP_TIME);
        }
        out.push(Effect::Start(Role::Step, Job::Step(Box::new(step))));
    }

    pub(super) fn step_done(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let Some(step) = self.step.take() else { return };
        // What was read before this step may be older than it.
        if self.looking != Looking::No {
            self.looking = Looking::Stale;
        }
        match result {
            Ok(Report::Stepped(journal)) => {
                let before = std::mem::replace(&mut self.journal, journal.map(|j| *j));
                self.step_failures = 0;
                self.reread = false;
                // What follows is decided on what is read after this step.
                if self.looking == Looking::No {
                    self.ask_look(out);
                }
                self.step_worked(&step, before, out);
            }
            Ok(_) => self.step_failed(step, "no report came".to_owned(), out),
            Err(why) => self.step_failed(step, why, out),
        }
    }

    pub(super) fn step_worked(&mut self, step: &Step, before: Option<Journal>, out: &mut Vec<Effect>) {
        // There is a disk to write to again.
        self.parked = false;
        match step {
            Step::Begin(begin) => {
                self.begin_error = None;
                if self.put_off.0 != begin.digest {
                    self.put_off = (begin.digest.clone(), 0);
                }
                self.phases = Phases::default();
                self.end_ahead(out);
                self.stop_began = Some(self.now);
                let begun = Wish::Begun(begin.name.clone(), begin.to.clone());
                self.grant(begun, Reply::done(serde_json::json!({})), out);
                self.refuse_begun(&format!("upgrade {} is under way", begin.name), out);
                self.counts.next_start = Some(Why::Upgrade);
                if let Some(journal) = self.journal.clone() {
                    let what = What::UpgradeBegun { from: journal.from.clone(), to: journal.to.clone() };
                    let message =
                        format!("upgrade {} begins: {} gives way to {}", journal.name, journal.from, journal.to);
                    self.announce(what, Some(about(&journal)), message, out);
                }
            }
            Step::Backup(_) => {
                self.phases.backup = self.part_began.take().map(|at| ms(self.now.saturating_sub(at)));
                if let Some(journal) = &self.journal {
                    match &journal.backup {
                        Some(name) => {
                            let size = if self.progress.is_some() {
                                format!(" {}", self.shown_progress())
                            } else {
                                String::new()
                            };
                            say(out, Level::Info, format!("the data is backed up as {name}{size}"));
                        }
                        None => say(out, Level::Warn, "no backup was made: UNSAFE_SKIP_BACKUP is set".to_owned()),
                    }
                }
            }
            Step::Hooked { hook_ms, .. } => {
                self.phases.hook = *hook_ms;
                if self.journal.as_ref().is_some_and(|j| j.hooks.is_empty()) {
                    self.part_began = None;
                }
            }
            Step::Switch => {
                if std::mem::take(&mut self.cancel) {
                    self.grant(
                        Wish::Stepped,
                        Reply::error(Code::Refused, "the link had moved already: use `wemixvisor upgrade revert`"),
                        out,
                    );
                }
                self.current = self.journal.as_ref().map(|j| j.to.clone());
                self.known.client_version = None;
                self.phases.switch = self.part_began.take().map(|at| ms(self.now.saturating_sub(at)));
                self.switched = Some(self.now);
                if let Some(journal) = &self.journal {
                    say(out, Level::Info, format!("current points at {} (it was {})", journal.to, journal.from));
                }
            }
            Step::Prove { .. } => {
                if let Some(journal) = &self.journal {
                    say(
                        out,
                        Level::Info,
                        format!("release {} has proved itself head={}", journal.to, shown(self.life.head)),
                    );
                }
                // Who it is may now be remembered.
                self.life.identity = None;
            }
            Step::Commit => {
                self.restarts = 0;
                self.put_off = (None, 0);
                self.prune_at = Some(self.now);
                if let Some(journal) = before {
                    let down = crate::config::show_duration(Duration::from_millis(journal.phases.total()));
                    say(out, Level::Info, format!("upgrade {} is committed downtime={down}", journal.name));
                    let message =
                        format!("upgrade {} is committed, {} runs; downtime {down}", journal.name, journal.to);
                    let about = about(&journal);
                    let what = What::UpgradeCommitted {
                        from: journal.from,
                        to: journal.to,
                        downtime_ms: journal.phases.total(),
                        phases: journal.phases,
                        backup: journal.backup,
                    };
                    self.announce(what, Some(about), message, out);
                }
            }
            Step::TurnBack { outcome, reason, put_off } => {
                if !put_off {
                    self.put_off = (None, 0);
                }
                let name = self.journal.as_ref().map_or_else(String::new, |j| j.name.to_string());
                let asked_for = *outcome == Outcome::Cancelled || reason == SAID_SO;
                let level = if asked_for { Level::Info } else { Level::Error };
                say(out, level, format!("upgrade {name} is taken back: {reason}"));
                if let Some(journal) = self.journal.clone().or(before) {
                    let message = format!("upgrade {name} is taken back: {reason}");
                    self.announce_turn_back(&journal, *outcome, *put_off, message, out);
                }
                self.counts.next_start = Some(Why::Revert);
                self.cancel = false;
                self.grant(Wish::Stepped, Reply::done(serde_json::json!({})), out);
            }
            Step::Undo { .. } => {
                self.counts.next_start = Some(Why::Revert);
                self.grant(Wish::Stepped, Reply::done(serde_json::json!({})), out);
                self.refuse_begun("a revert is under way", out);
                if let Some(journal) = self.journal.clone() {
                    let message = format!("release {} is taken back: {SAID_SO}", journal.to);
                    self.announce_turn_back(&journal, Outcome::Reverted, false, message, out);
                }
            }
            Step::Restore => {
                self.restoring = false;
                // The last known head is another one now.
                self.reread = true;
                self.hold_longer();
                match self.journal.as_ref().and_then(|j| Some((j.backup.clone()?, j.replaced.clone()?))) {
                    Some((name, replaced)) => {
                        say(
                            out,
                            Level::Warn,
                            format!("the data is that of backup {name} again, what it replaced is {replaced}"),
                        );
                    }
                    None => say(out, Level::Warn, "the restore that was interrupted is done".to_owned()),
                }
            }
            Step::Forgo { reason } => say(out, Level::Error, format!("the data stays as it is: {reason}")),
            Step::Back { .. } => {
                self.restarts = 0;
                self.known.client_version = None;
                self.hold_longer();
                if let Some(journal) = before.filter(|j| j.stage == Stage::Back) {
                    say(out, Level::Info, format!("current points at {}", journal.from));
                    self.current = Some(journal.from);
                }
            }
        }
        self.progress = None;
        self.progress_said = None;
        match self.state.clone() {
            State::Working { then: Then::Go } => match step {
                // The node is down already; what it left behind may still hold the data.
                Step::Begin(_) | Step::TurnBack { .. } | Step::Undo { .. } | Step::Hooked { .. } => {
                    self.clear(Then::Go, false, None, out);
                }
                Step::Switch if !self.config.restart_after_upgrade => {
                    say(out, Level::Info, "DAEMON_RESTART_AFTER_UPGRADE is false: leaving after the switch".to_owned());
                    self.leave(0, out);
                }
                Step::Switch if !self.config.restart_delay.is_zero() => {
                    self.state = State::Backoff { until: self.now + self.config.restart_delay };
                }
                Step::Backup(_)
                | Step::Switch
                | Step::Prove { .. }
                | Step::Commit
                | Step::Restore
                | Step::Forgo { .. }
                | Step::Back { .. } => self.go(out),
            },
            State::Working { then } => self.settle(then, out),
            State::Deciding(_) => self.decide(out),
            State::Up => {
                self.stop_began = None;
                self.after_up(out);
            }
            State::Boot
            | State::Starting
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Hooking { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Clearing { .. }
            | State::Leaving { .. } => {}
        }
    }

    pub(super) fn step_failed(&mut self, step: Step, why: String, out: &mut Vec<Effect>) {
        self.step_failures += 1;
        // It may have been done but for its last word: what is there now is read again.
        self.reread = true;
        self.ask_look(out);
        if let Step::Switch = step {
            self.current = None;
        }
        self.progress = None;
        self.progress_said = None;
        let what = match &step {
            Step::Begin(begin) => format!("upgrade {} cannot begin", begin.name),
            Step::Backup(_) if self.interrupted() => "the backup was interrupted".to_owned(),
            Step::Backup(_) => "the data cannot be backed up".to_owned(),
            Step::Hooked { .. } => "the end of the hook cannot be written down".to_owned(),
            Step::Switch => "the link cannot be moved".to_owned(),
            Step::Prove { .. } => "the proof cannot be written down".to_owned(),
            Step::Commit => "the upgrade cannot be committed".to_owned(),
            Step::Restore | Step::Forgo { .. } => "the data cannot be brought back".to_owned(),
            Step::TurnBack { .. } | Step::Back { .. } => "the upgrade cannot be taken back".to_owned(),
            Step::Undo { .. } => "the revert cannot begin".to_owned(),
        };
        let fault = format!("{what}: {why}");
        let asked_for = matches!(step, Step::Backup(_)) && self.interrupted();
        let level = if asked_for { Level::Info } else { Level::Error };
        say(out, level, if asked_for { what } else { fault.clone() });
        let leaving = matches!(self.state, State::Working { then: Then::Exit(_) });
        match step {
            Step::Begin(_) => {
                if std::mem::take(&mut self.cancel) {
                    self.grant(Wish::Stepped, Reply::done(serde_json::json!({"under_way": false})), out);
                }
                self.begin_after =
                    self.now + STAGE_PAUSE.saturating_mul(1 << self.step_failures.min(7)).min(STAGE_PAUSE_MAX);
                self.refuse_begun(&why, out);
                self.begin_error = Some(why);
                if let State::Working { then } = self.state {
                    self.settle(then, out);
                }
                self.decide(out);
            }
            Step::Undo { .. } => {
                self.grant(Wish::Stepped, Reply::error(Code::Failed, why), out);
                if let State::Working { then } = self.state {
                    self.settle(then, out);
                }
            }
            _ if leaving => {
                if let State::Working { then } = self.state {
                    self.settle(then, out);
                }
            }
            // What goes wrong here is the fault of a disk, not of a release: the plan stays pending and is tried again later.
            Step::Backup(_) | Step::Hooked { .. } | Step::Switch if self.cancel => self.go(out),
            Step::Backup(_) | Step::Hooked { .. } | Step::Switch
                if self.step_failures >= STEP_TRIES || self.took_long() =>
            {
                self.step_failures = 0;
                let step = self.turn_back(Outcome::Failed, fault, true);
                self.start_step(step, out);
            }
            // As long as the exchange has not begun the node is preferred to its data of before.
            Step::Restore if self.step_failures >= STEP_TRIES && !self.restoring && self.journal.is_some() => {
                self.step_failures = 0;
                self.start_step(Step::Forgo { reason: why }, out);
            }
            Step::TurnBack { .. } | Step::Back { .. } | Step::Forgo { .. }
                if self.step_failures >= STEP_TRIES && !self.restoring && self.consistent() =>
            {
                // The link is where the journal has it: the node comes first, what is left is only to be written down.
                self.parked = true;
                self.grant(Wish::Stepped, Reply::error(Code::Failed, fault.clone()), out);
                self.step_failures = 0;
                if self.journal.as_ref().is_some_and(|j| self.current.as_ref() == Some(&j.from)) {
                    self.try_again(step, 30, fault);
                }
                if let State::Working { then: Then::Go } = self.state {
                    let release = self.current.as_ref().map_or_else(String::new, Release::to_string);
                    say(out, Level::Error, format!("release {release} is started all the same"));
                    self.go(out);
                }
            }
            Step::Backup(_)
            | Step::Hooked { .. }
            | Step::Switch
            | Step::TurnBack { .. }
            | Step::Restore
            | Step::Forgo { .. }
            | Step::Back { .. } => {
                let pause = if self.step_failures < STEP_TRIES { 1 } else { 10 };
                self.try_again(step, pause, fault);
            }
            Step::Prove { .. } | Step::Commit => {
                self.try_again(step, 10, fault);
                // Bookkeeping keeps no node down.
                if let State::Working { then: Then::Go } = self.state {
                    self.go(out);
                } else {
                    self.decide(out);
                }
            }
        }
    }

    fn try_again(&mut self, step: Step, seconds: u64, fault: String) {
        self.step_retry = Some(Retry { step, at: self.now + Duration::from_secs(seconds), fault });
    }

    /// Whether the step that just failed had taken so long that it is not tried again at once.
    fn took_long(&self) -> bool {
        self.part_began.is_some_and(|at| self.now.saturating_sub(at) >= LONG)
    }

    /// Whether the step that just failed was ended by us.
    fn interrupted(&self) -> bool {
        self.cancel || matches!(self.state, State::Working { then: Then::Exit(_) })
    }

    /// The step that takes the upgrade back; one that was put off too often is not tried again.
    pub(super) fn turn_back(&mut self, outcome: Outcome, reason: String, put_off: bool) -> Step {
        if !put_off {
            return Step::TurnBack { outcome, reason, put_off };
        }
        self.put_off.1 += 1;
        let pause = STAGE_PAUSE.saturating_mul(1 << self.put_off.1.min(7)).min(STAGE_PAUSE_MAX);
        self.begin_after = self.now + pause;
        // What stood in its way may be found by looking at the release again, the node running.
        if let Some(journal) = &self.journal {
            self.staged.remove(&journal.to);
        }
        let last = self.put_off.1 >= PUT_OFFS;
        let reason =
            if last { format!("{reason}; given up after {PUT_OFFS} tries") } else { format!("put off: {reason}") };
        Step::TurnBack { outcome, reason, put_off: !last }
    }

    /// Whether the node may be started although an upgrade cannot be moved on: the link is back, or its trial goes on.
    fn consistent(&self) -> bool {
        self.journal.as_ref().is_some_and(|j| {
            let at = |release| self.current.as_ref() == Some(release);
            at(&j.from) || (j.stage == Stage::Trial && at(&j.to))
        })
    }
}
