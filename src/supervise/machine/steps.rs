//! The durable steps of an upgrade: begun one at a time, and what follows when one worked or failed.

use super::plans::{STAGE_PAUSE, STAGE_PAUSE_MAX, shown};
use super::*;

/// How often a step is tried at once before the node is preferred to the upgrade.
const STEP_TRIES: u32 = 3;

impl Machine {
    pub(super) fn start_step(&mut self, step: Step, out: &mut Vec<Effect>) {
        debug_assert!(self.step.is_none(), "one step at a time");
        // What was to be tried again either is this step, or is asked for anew once the journal is where this one leaves it.
        self.step_retry = None;
        self.step = Some(step.clone());
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
        match step {
            Step::Begin(begin) => {
                self.begin_error = None;
                self.stop_began = Some(self.now);
                let begun = Wish::Begun(begin.name.clone(), begin.to.clone());
                self.grant(begun, Reply::done(serde_json::json!({})), out);
                self.refuse_begun(&format!("upgrade {} is under way", begin.name), out);
            }
            Step::Switch { .. } => {
                if std::mem::take(&mut self.cancel) {
                    self.grant(
                        Wish::Stepped,
                        Reply::error(Code::Refused, "the link had moved already: use `wemixvisor upgrade revert`"),
                        out,
                    );
                }
                self.current = self.journal.as_ref().map(|j| j.to.clone());
                self.known.client_version = None;
                self.switch_ms = self.switch_began.take().map(|at| ms(self.now.saturating_sub(at)));
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
                if let Some(journal) = before {
                    let down = crate::config::show_duration(Duration::from_millis(journal.phases.total()));
                    say(out, Level::Info, format!("upgrade {} is committed downtime={down}", journal.name));
                }
            }
            Step::TurnBack { outcome, reason } => {
                let name = self.journal.as_ref().map_or_else(String::new, |j| j.name.to_string());
                let level = if *outcome == Outcome::Cancelled { Level::Info } else { Level::Error };
                say(out, level, format!("upgrade {name} is taken back: {reason}"));
                self.cancel = false;
                self.parked = false;
                self.grant(Wish::Stepped, Reply::done(serde_json::json!({})), out);
            }
            Step::Undo { .. } => {
                self.grant(Wish::Stepped, Reply::done(serde_json::json!({})), out);
                self.refuse_begun("a revert is under way", out);
            }
            Step::Back => {
                self.restarts = 0;
                self.parked = false;
                self.known.client_version = None;
                if let Some(journal) = before {
                    say(out, Level::Info, format!("current points at {} again", journal.from));
                    self.current = Some(journal.from);
                }
            }
        }
        match self.state.clone() {
            State::Working { then: Then::Go } => match step {
                // The node is down already; what it left behind may still hold the data.
                Step::Begin(_) | Step::TurnBack { .. } | Step::Undo { .. } => self.clear(Then::Go, false, None, out),
                Step::Switch { .. } if !self.config.restart_after_upgrade => {
                    say(out, Level::Info, "DAEMON_RESTART_AFTER_UPGRADE is false: leaving after the switch".to_owned());
                    self.leave(0, out);
                }
                Step::Switch { .. } if !self.config.restart_delay.is_zero() => {
                    self.state = State::Backoff { until: self.now + self.config.restart_delay };
                }
                Step::Switch { .. } | Step::Prove { .. } | Step::Commit | Step::Back => self.go(out),
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
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Clearing { .. }
            | State::Leaving { .. } => {}
        }
    }

    pub(super) fn step_failed(&mut self, step: Step, why: String, out: &mut Vec<Effect>) {
        self.step_failures += 1;
        // It may have been done but for its last word: what is there now is read again.
        self.ask_look(out);
        if let Step::Switch { .. } = step {
            self.current = None;
        }
        let what = match &step {
            Step::Begin(begin) => format!("upgrade {} cannot begin", begin.name),
            Step::Switch { .. } => "the link cannot be moved".to_owned(),
            Step::Prove { .. } => "the proof cannot be written down".to_owned(),
            Step::Commit => "the upgrade cannot be committed".to_owned(),
            Step::TurnBack { .. } | Step::Back => "the upgrade cannot be taken back".to_owned(),
            Step::Undo { .. } => "the revert cannot begin".to_owned(),
        };
        say(out, Level::Error, format!("{what}: {why}"));
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
            Step::Switch { .. } if self.step_failures >= STEP_TRIES => {
                self.step_failures = 0;
                self.start_step(Step::TurnBack { outcome: Outcome::Failed, reason: why }, out);
            }
            Step::TurnBack { .. } | Step::Back if self.step_failures >= STEP_TRIES && self.consistent() => {
                // The link is where the journal has it: the node comes first, what is left is only to be written down.
                self.parked = true;
                self.step_failures = 0;
                if self.journal.as_ref().is_some_and(|j| self.current.as_ref() == Some(&j.from)) {
                    self.step_retry = Some((self.now + Duration::from_secs(30), step));
                }
                if let State::Working { then: Then::Go } = self.state {
                    let release = self.current.as_ref().map_or_else(String::new, Release::to_string);
                    say(out, Level::Error, format!("release {release} is started all the same"));
                    self.go(out);
                }
            }
            Step::Switch { .. } | Step::TurnBack { .. } | Step::Back => {
                let pause = if self.step_failures < STEP_TRIES { 1 } else { 10 };
                self.step_retry = Some((self.now + Duration::from_secs(pause), step));
            }
            Step::Prove { .. } | Step::Commit => {
                self.step_retry = Some((self.now + Duration::from_secs(10), step));
                self.decide(out);
            }
        }
    }

    /// Whether the node may be started although an upgrade cannot be moved on: the link is back, or its trial goes on.
    fn consistent(&self) -> bool {
        self.journal.as_ref().is_some_and(|j| {
            let at = |release| self.current.as_ref() == Some(release);
            at(&j.from) || (j.stage == Stage::Trial && at(&j.to))
        })
    }
}
