//! The end of the node: asked gently, ended by KILL when its time is over, and nobody left who holds the data.

use super::events::about;
use super::health::ENDED_FOR_ROOM;
use super::*;
use crate::event::What;

/// Who wants to leave waits for so many looks whether the data is free that fail.
const CLEAR_TRIES: u32 = 5;

impl Machine {
    /// Ends the node gently, whatever is under way, and says what follows.
    pub(super) fn stop(&mut self, then: Then, out: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Starting | State::Up => {
                self.clean_stop = None;
                self.state = State::Stopping { then };
                self.sample_at = None;
                self.probe_at = None;
                self.ready_at = None;
                if self.may_propose() {
                    self.await_proposal(out);
                } else {
                    self.terminate(out);
                }
            }
            State::Stopping { .. } => self.state = State::Stopping { then: self.later(then) },
            State::Killing { .. } => self.state = State::Killing { then: self.later(then) },
            State::Clearing { kill, ended, .. } => self.state = State::Clearing { then: self.later(then), kill, ended },
            State::Working { .. } => {
                self.state = State::Working { then: self.later(then) };
                if let Then::Exit(_) = then {
                    self.step_retry = None;
                    self.late.insert(Role::Step, self.now + STEP_TIME);
                    self.interrupt(out);
                    if self.step.is_none() {
                        self.settle(then, out);
                    }
                }
            }
            // What was not counted against a release is not on disk yet.
            State::Held { why: Hold::Room(_), .. } => self.clear(then, false, Some(ENDED_FOR_ROOM.to_owned()), out),
            State::Backoff { .. } | State::Held { .. } if then == Then::Go => self.go(out),
            // What the node left behind may still hold the data.
            State::Deciding(exit) if then != Then::Go => self.clear(then, false, Some(exit.to_string()), out),
            State::Backoff { .. } | State::Held { .. } => self.clear(then, false, None, out),
            State::Hooking { told, .. } => {
                self.state = State::Hooking { then: self.later(then), told };
                if then != Then::Go {
                    self.end_hook("the supervisor was asked to stop", out);
                }
            }
            State::Boot if then != Then::Go => self.settle(then, out),
            State::Boot | State::Deciding(_) | State::Leaving { .. } => {}
        }
    }

    /// Asks the node to end; from now on its grace counts.
    pub(super) fn terminate(&mut self, out: &mut Vec<Effect>) {
        self.stop_began = Some(self.now);
        self.grace = Grace::default();
        self.holders.clear();
        self.sample_at = Some(self.now);
        out.push(Effect::Terminate(Role::Node));
    }

    /// Ends the step under way if that may take long and can be done again.
    pub(super) fn interrupt(&self, out: &mut Vec<Effect>) {
        if let Some(Step::Backup(_)) = self.step {
            out.push(Effect::Kill(Role::Step));
        }
    }

    /// A wish to leave is never taken back by a wish to go on.
    pub(super) fn later(&self, then: Then) -> Then {
        self.then().filter(|already| *already != Then::Go).unwrap_or(then)
    }

    /// What is to follow when no node lives any more.
    pub(super) fn then(&self) -> Option<Then> {
        match &self.state {
            State::Stopping { then }
            | State::Killing { then }
            | State::Clearing { then, .. }
            | State::Hooking { then, .. }
            | State::Working { then } => Some(*then),
            State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Leaving { .. } => None,
        }
    }

    pub(super) fn kill(&mut self, out: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Stopping { then } | State::Killing { then } => {
                self.state = State::Killing { then };
                self.sample_at = None;
                out.push(Effect::Kill(Role::Node));
            }
            State::Clearing { then, kill: false, ended } => {
                self.sample_at = None;
                self.state = State::Clearing { then, kill: true, ended };
                // Its end starts the next one, which ends who holds the data.
                out.push(Effect::Kill(Role::Clear));
            }
            State::Hooking { .. } => {
                self.sample_at = None;
                out.push(Effect::Kill(Role::Hook));
            }
            State::Clearing { kill: true, .. }
            | State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    pub(super) fn sampled(&mut self, counters: Counters, out: &mut Vec<Effect>) {
        self.grace.look(counters);
        match self.state {
            State::Stopping { .. } | State::Clearing { .. } | State::Hooking { told: Some(_), .. } => {
                if let Verdict::Over(why) = self.grace.verdict(self.config.shutdown_grace, self.config.shutdown_limit) {
                    let what =
                        if matches!(self.state, State::Hooking { .. }) { "the hook" } else { "this stop is UNCLEAN" };
                    say(out, Level::Error, format!("{why}: ended by KILL, {what}"));
                    self.kill(out);
                }
            }
            State::Up => {
                if self.grace.progress() {
                    self.life.progress = self.now;
                }
                if (!self.on_trial() || self.life.answered.is_some()) && !self.may_hang() {
                    self.sample_at = None;
                }
                self.judge(out);
                self.end_hang(out);
            }
            State::Boot
            | State::Starting
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Hooking { told: None, .. }
            | State::Killing { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    pub(super) fn clear(&mut self, then: Then, kill: bool, ended: Option<String>, out: &mut Vec<Effect>) {
        self.grace = Grace::default();
        self.holders.clear();
        self.state = State::Clearing { then, kill, ended };
        self.start_clearing(out);
    }

    pub(super) fn start_clearing(&mut self, out: &mut Vec<Effect>) {
        if let State::Clearing { kill, ended, .. } = self.state.clone() {
            // A step under way writes the journal itself: never two writers.
            let free = self.step.is_none();
            let starts = self.journal.as_ref().filter(|j| free && j.on_probation().is_some()).map(|j| j.starts);
            out.push(Effect::Start(Role::Clear, Job::Clear(clear::Spec { kill, ended, starts })));
        }
    }

    pub(super) fn still_held(&mut self, holders: Vec<Holder>, out: &mut Vec<Effect>) {
        if let State::Clearing { kill: false, .. } = self.state {
            say(out, Level::Warn, format!("the data is still held by {}: waiting for its end", list(&holders)));
            self.holders = holders;
            self.sample_at.get_or_insert(self.now);
        }
    }

    pub(super) fn cleared(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let State::Clearing { then, kill, ended } = self.state.clone() else { return };
        self.sample_at = None;
        if let Err(why) = result {
            if !kill {
                // Without knowing that the data is free nobody starts.
                say(out, Level::Error, format!("cannot tell whether the data is free: {why}"));
            }
            self.clear_failures += 1;
            if let Then::Exit(_) = then
                && self.clear_failures >= CLEAR_TRIES
            {
                // Nothing is to be started, so nobody is in danger; and who wants to leave is not kept for ever.
                self.error = Some(format!("the node has ended, but it cannot be told whether its data is free: {why}"));
                return self.settle(Then::Exit(Code::Node as u8), out);
            }
            // With KILL it was ended to be started again; but never in the same turn, for starting may be what fails.
            self.clear_at = Some(self.now + Duration::from_millis(if kill { 50 } else { 1000 }));
            return;
        }
        self.clear_failures = 0;
        // A node that another supervisor had started ended only now, and nobody saw how.
        let seen = ended.is_some() || self.life.executed.is_some();
        if !seen && (!self.holders.is_empty() || matches!(self.life.refusal, Some(Refusal::Busy(_)))) {
            self.last_end = Some((self.now, false));
        }
        self.settle(then, out);
    }

    pub(super) fn settle(&mut self, then: Then, out: &mut Vec<Effect>) {
        match then {
            Then::Go => self.go(out),
            Then::Exit(_) if self.step.is_some() => {
                self.late.insert(Role::Step, self.now + STEP_TIME);
                self.state = State::Working { then };
            }
            Then::Exit(code) => self.leave(code, out),
        }
    }

    pub(super) fn leave(&mut self, code: u8, out: &mut Vec<Effect>) {
        self.state = State::Leaving { code };
        for (client, wish) in std::mem::take(&mut self.wishes) {
            let why = self.error.clone().unwrap_or_else(|| "the supervisor was asked to stop".to_owned());
            let code = if wish == Wish::Restarted && code == Code::Node as u8 { Code::Node } else { Code::Failed };
            out.push(Effect::Reply(client, Reply::error(code, why)));
        }
        let (state, reason) = self.last_state(code);
        if state == "error" {
            say(out, Level::Error, reason.clone());
            self.announce(What::Error { exit_status: code }, self.journal.as_ref().map(about), reason, out);
        }
        match self.last_words() {
            Some(until) => self.leave_at = Some(until),
            None => self.exit(out),
        }
    }

    /// The public state that is remembered, and why.
    fn last_state(&self, code: u8) -> (&'static str, String) {
        match &self.error {
            Some(why) => ("error", why.clone()),
            None if code == 0 => ("stopped", "it was asked to".to_owned()),
            None => ("error", format!("it left with status {code}")),
        }
    }

    /// The program ends.
    pub(super) fn exit(&self, out: &mut Vec<Effect>) {
        if let State::Leaving { code } = self.state {
            if self.untold() > 0 {
                let untold = self.untold();
                say(out, Level::Warn, format!("DAEMON_EVENT_COMMAND is too slow: {untold} events were not told"));
            }
            let (state, reason) = self.last_state(code);
            out.push(Effect::Exit(code, state, reason));
        }
    }
}
