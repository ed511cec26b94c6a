//! Hooks: run one at a time while no node lives, and what their ends mean. A hook that ends because the supervisor was told
//! to was interrupted, it did not fail.

use std::time::Duration;

use log::Level;

use super::grace::Grace;
use super::{Effect, Exit, Machine, Refusal, Role, State, Then, ms, say};
use crate::config::show_duration;
use crate::job::Note;
use crate::job::clear::list;
use crate::job::step::Step;
use crate::journal::Outcome;

/// The status by which a hook asks to be run again.
const AGAIN: i32 = 31;

/// The longest pause before it is.
const PAUSE_MAX: Duration = Duration::from_mins(10);

impl Machine {
    pub(super) fn run_hook(&mut self, out: &mut Vec<Effect>) {
        if let Some(until) = self.hook_after.take_if(|after| self.now < *after) {
            self.state = State::Backoff { until };
            return;
        }
        self.hook_after = None;
        self.hook_refusal = None;
        self.part_began.get_or_insert(self.now);
        let timeout = self.config.preupgrade_timeout;
        self.hook_until = (!timeout.is_zero()).then(|| self.now + timeout);
        self.state = State::Hooking { then: Then::Go, told: None };
        out.push(Effect::RunHook);
    }

    /// The hook that runs or is next, for a line.
    pub(super) fn hook_name(&self) -> String {
        let hook = self.journal.as_ref().and_then(|j| j.hooks.first());
        hook.map_or_else(|| "the hook".to_owned(), |hook| format!("hook {}", hook.display()))
    }

    pub(super) fn hook_noted(&mut self, note: Note, out: &mut Vec<Effect>) {
        match note {
            Note::HookStarted { attempt } => {
                if let Some(journal) = &mut self.journal {
                    journal.attempt = attempt;
                    journal.touched = true;
                }
                say(out, Level::Info, format!("{} runs attempt={attempt}", self.hook_name()));
            }
            Note::Busy(holders) => self.hook_refusal = Some(Refusal::Busy(holders)),
            Note::Refused(why) => self.hook_refusal = Some(Refusal::Refused(why)),
            Note::NotExecuted(why) => self.hook_refusal = Some(Refusal::NotExecuted(why)),
            Note::Warning(text) => say(out, Level::Warn, text),
            Note::Holders(_) | Note::Recorded(_) | Note::Progress(_) => {}
        }
    }

    /// Tells the hook that runs to end.
    pub(super) fn end_hook(&mut self, why: &str, out: &mut Vec<Effect>) {
        if let State::Hooking { then, told: None } = self.state {
            self.state = State::Hooking { then, told: Some(why.to_owned()) };
            self.hook_until = None;
            self.grace = Grace::default();
            self.holders.clear();
            self.sample_at = Some(self.now);
            out.push(Effect::Terminate(Role::Hook));
        }
    }

    pub(super) fn hook_late(&mut self, out: &mut Vec<Effect>) {
        self.hook_until = None;
        let limit = show_duration(self.config.preupgrade_timeout);
        say(out, Level::Warn, format!("{} runs longer than {limit}: it is ended", self.hook_name()));
        self.end_hook(&format!("it ran longer than {limit} (DAEMON_PREUPGRADE_TIMEOUT)"), out);
    }

    pub(super) fn hook_ended(&mut self, exit: Exit, words: Option<String>, out: &mut Vec<Effect>) {
        let State::Hooking { then, told } = self.state.clone() else { return };
        self.hook_until = None;
        self.sample_at = None;
        let name = self.hook_name();
        if then != Then::Go {
            say(out, Level::Info, format!("{name} was interrupted ({exit}): it runs again at the next start"));
            return self.clear(then, false, None, out);
        }
        if self.cancel {
            return self.clear(Then::Go, false, None, out);
        }
        let attempt = self.journal.as_ref().map_or(0, |j| j.attempt);
        let said = words.map_or_else(String::new, |words| format!("; its last line: {words}"));
        match (self.hook_refusal.take(), told, exit) {
            (Some(Refusal::Busy(holders)), ..) => {
                say(out, Level::Warn, format!("the data is still held by {}: waiting for its end", list(&holders)));
                self.clear(Then::Go, false, None, out);
            }
            // What keeps it from being put on record is not its own fault.
            (Some(Refusal::Refused(why)), ..) => self.give_up(format!("{name} cannot be run: {why}"), true, out),
            (Some(Refusal::NotExecuted(why)), ..) => self.give_up(format!("{name} failed: {why}"), false, out),
            (None, Some(why), _) => self.give_up(format!("{name} failed: {why}{said}"), false, out),
            (None, None, Exit::Code(0)) => {
                say(out, Level::Info, format!("{name} is done"));
                self.state = State::Working { then: Then::Go };
                let hook_ms = self.part_began.map(|at| ms(self.now.saturating_sub(at)));
                let hook = self.journal.as_ref().and_then(|j| j.hooks.first().cloned()).unwrap_or_default();
                self.start_step(Step::Hooked { hook, hook_ms }, out);
            }
            (None, None, Exit::Code(AGAIN)) if attempt <= self.config.preupgrade_max_retries => {
                let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
                let pause = Duration::from_secs(1).saturating_mul(doubled).min(PAUSE_MAX);
                let most = self.config.preupgrade_max_retries;
                let text =
                    format!("{name} asks to be run again: retry {attempt} of {most} in {}", show_duration(pause));
                say(out, Level::Warn, text);
                self.hook_after = Some(self.now + pause);
                self.clear(Then::Go, false, None, out);
            }
            (None, None, Exit::Code(AGAIN)) => {
                let text = format!("{name} failed: it asked to be run again {attempt} times{said}");
                self.give_up(text, false, out);
            }
            (None, None, exit @ (Exit::Code(_) | Exit::Signal(_) | Exit::NotStarted(_))) => {
                self.give_up(format!("{name} failed: {exit}{said}"), false, out);
            }
        }
    }

    /// Takes the upgrade back before its switch.
    pub(super) fn give_up(&mut self, reason: String, put_off: bool, out: &mut Vec<Effect>) {
        self.state = State::Working { then: Then::Go };
        let step = self.turn_back(Outcome::Failed, reason, put_off);
        self.start_step(step, out);
    }
}
