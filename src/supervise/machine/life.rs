//! The life of the node: its start, what its end means, and what follows when none lives.

use super::*;
use crate::job::step::Backup;

impl Machine {
    /// No node lives and nobody holds the data: whatever is next. The journal alone says what that is.
    pub(super) fn go(&mut self, out: &mut Vec<Effect>) {
        if self.step.is_some() {
            self.state = State::Working { then: Then::Go };
            return;
        }
        if matches!(self.step_retry, Some(Retry { step: Step::Prove { .. } | Step::Commit, .. })) {
            // Bookkeeping of a release that runs: asked for anew by `judge` when it does.
            self.step_retry = None;
        }
        if self.step_retry.is_some() && !self.parked {
            self.state = State::Working { then: Then::Go };
            return;
        }
        if let Some((outcome, reason)) = self.reason_to_turn_back().filter(|_| !self.parked) {
            self.state = State::Working { then: Then::Go };
            let step = self.turn_back(outcome, reason, false);
            self.start_step(step, out);
            return;
        }
        let step = match next(self.journal.as_ref()) {
            _ if self.restoring => Step::Restore,
            _ if self.parked => return self.launch(out),
            Next::Start => return self.launch(out),
            Next::Hook => return self.run_hook(out),
            Next::Backup => {
                let stop_ms = self.stop_began.map(|at| ms(self.now.saturating_sub(at)));
                self.phases = Phases { stop: stop_ms, ..Phases::default() };
                let hook = self.config.custom_preupgrade.clone();
                Step::Backup(Backup { hook, stop_ms, clean_stop: self.clean_stop })
            }
            Next::Switch => Step::Switch,
            Next::Restore => Step::Restore,
            Next::Back => Step::Back { stage: Stage::Back },
        };
        self.part_began = Some(self.now);
        self.state = State::Working { then: Then::Go };
        self.start_step(step, out);
    }

    /// Why these words are not run now: they are a command of the binary's (`version`), and its end would be taken for the end
    /// of the node in an upgrade.
    pub(super) fn command_in_the_way(&self, args: &[String]) -> Option<String> {
        let command = crate::geth::command(args)?;
        let head = self.known.head.as_ref().map(|head| head.number);
        let (name, stands) = match (&self.journal, self.due_plan(head)) {
            (Some(journal), _) => (journal.name.clone(), "under way"),
            (None, Some(plan)) => (plan.name, "due"),
            (None, None) => return None,
        };
        let binary = self.home.current_binary();
        Some(format!(
            "upgrade {name} is {stands}, and `{command}` runs no node: where it cannot wait, stop the supervisor and call {} itself",
            binary.display()
        ))
    }

    /// Starts the node, unless that is held.
    pub(super) fn launch(&mut self, out: &mut Vec<Effect>) {
        if self.hold(out) {
            return;
        }
        self.state = State::Starting;
        self.life = Life { launched: self.now, progress: self.now, log: self.node_log(), ..Life::default() };
        self.holders.clear();
        out.push(Effect::Launch(self.args.clone()));
    }

    pub(super) fn noted(&mut self, note: Note, out: &mut Vec<Effect>) {
        match note {
            Note::Busy(holders) => self.life.refusal = Some(Refusal::Busy(holders)),
            Note::Refused(why) => self.life.refusal = Some(Refusal::Refused(why)),
            Note::NotExecuted(why) => self.life.refusal = Some(Refusal::NotExecuted(why)),
            Note::Recorded(Recorded { release, args, starts }) => {
                if let Some(journal) = self.journal.as_mut().filter(|j| j.on_probation() == Some(&release)) {
                    // One that could not be counted on disk counts here all the same.
                    journal.starts = if starts == 0 { journal.starts.saturating_add(1) } else { starts };
                }
                self.current = Some(release.clone());
                self.life.release = Some(release);
                self.life.args = args;
            }
            Note::Warning(text) => say(out, Level::Warn, text),
            Note::Holders(_) | Note::HookStarted { .. } | Note::Progress(_) => {}
        }
    }

    pub(super) fn executed(&mut self, out: &mut Vec<Effect>) {
        if self.life.refusal.is_some() {
            return;
        }
        self.life.executed = Some(self.now);
        self.count_start();
        self.life.progress = self.now;
        if let Some(at) = self.switched.take() {
            self.phases.start = Some(ms(self.now.saturating_sub(at)));
        }
        let release = self.life.release.as_ref().map_or_else(String::new, Release::to_string);
        say(out, Level::Info, format!("the node runs release={release} pid={}", self.life.pid));
        if self.state != State::Starting {
            return;
        }
        self.state = State::Up;
        self.ready_at = Some(self.now + READY_AFTER);
        self.probe_at = Some(self.now + Duration::from_millis(100));
        self.no_head_since.get_or_insert(self.now);
        self.prune_at.get_or_insert(self.now + backup::PRUNE_FIRST);
        self.health.measure_at = Some(self.now);
        self.plan_trim();
        self.plan_alarm();
        if self.on_trial() {
            self.grace = Grace::default();
            self.sample_at = Some(self.now);
        }
        self.after_up(out);
    }

    /// What may be done beside a running node: end an upgrade that went back, begin one that is due.
    pub(super) fn after_up(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Up || self.step.is_some() || self.step_retry.is_some() {
            return;
        }
        if let Some((outcome, reason)) = self.withdrawn() {
            let step = self.turn_back(outcome, reason, false);
            return self.start_step(step, out);
        }
        match self.journal.as_ref().map(|j| (j.stage, j.from.clone())) {
            Some((Stage::Back, from)) if self.current.as_ref() == Some(&from) => {
                self.start_step(Step::Back { stage: Stage::Back }, out)
            }
            Some((Stage::Stop | Stage::Hook | Stage::Switch | Stage::Restore | Stage::Back, _)) => {
                self.stop(Then::Go, out);
            }
            Some((Stage::Trial | Stage::Return, _)) => self.judge(out),
            None => self.consider(out),
        }
    }

    pub(super) fn ready(&mut self, out: &mut Vec<Effect>) {
        self.life.ready = true;
        self.args_before = None;
        if !std::mem::replace(&mut self.up, true) {
            out.push(Effect::Ready);
        }
        let pid = self.life.pid;
        self.grant(Wish::Restarted, Reply::done(serde_json::json!({"pid": pid})), out);
    }

    /// Whether `start` waits for the first life to come up.
    fn is_waited_for(&self) -> bool {
        self.background && !self.up
    }

    pub(super) fn ended(&mut self, exit: Exit, out: &mut Vec<Effect>) {
        self.sample_at = None;
        self.probe_at = None;
        self.ready_at = None;
        self.alarm_at = None;
        self.judge_at = None;
        if std::mem::take(&mut self.awaits_proposal) {
            self.stop_began = Some(self.now);
            out.push(Effect::Kill(Role::Proposal));
        }
        self.life.exit = Some(exit);
        if self.life.executed.is_some() {
            let asked = matches!(self.state, State::Stopping { .. });
            self.last_end = Some((self.now, asked && exit == Exit::Code(0)));
        }
        match self.state.clone() {
            State::Stopping { then } => {
                let clean = exit == Exit::Code(0);
                self.clean_stop = Some(clean);
                self.uncount();
                let level = if clean { Level::Info } else { Level::Warn };
                say(out, level, format!("the node ended: {exit}"));
                self.clear(then, false, Some(exit.to_string()), out);
            }
            State::Killing { then } => {
                self.clean_stop = Some(false);
                self.uncount();
                self.clear(then, self.hurry, Some(exit.to_string()), out);
            }
            State::Starting => match self.life.refusal.clone() {
                Some(Refusal::Busy(holders)) => {
                    say(out, Level::Warn, format!("the data is still held by {}: waiting for its end", list(&holders)));
                    self.clear(Then::Go, false, None, out);
                }
                Some(Refusal::Refused(why)) => self.fail(Code::Refused, why, out),
                Some(Refusal::NotExecuted(why)) => {
                    say(out, Level::Error, why);
                    self.state = State::Deciding(exit);
                    self.decide(out);
                }
                None => {
                    say(out, Level::Warn, format!("the node ended before it ran: {exit}"));
                    self.state = State::Deciding(exit);
                    self.decide(out);
                }
            },
            State::Up => {
                say(
                    out,
                    Level::Warn,
                    format!(
                        "the node ended by itself: {exit} after {}",
                        crate::config::show_duration(whole(self.age()))
                    ),
                );
                self.state = State::Deciding(exit);
                if self.may_want_room(exit) {
                    self.measure(out);
                }
                // What the node wrote just before its end must be seen before it is decided upon.
                if !self.watching || self.look_wanted {
                    self.ask_look(out);
                }
                self.decide(out);
            }
            State::Boot
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Hooking { .. }
            | State::Clearing { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    /// It was asked to end, or had no room: that start says nothing against a release on probation.
    pub(super) fn uncount(&mut self) {
        let recorded = self.life.release.is_some();
        if let Some(journal) = self.journal.as_mut().filter(|j| recorded && j.on_probation().is_some()) {
            journal.starts = journal.starts.saturating_sub(1);
        }
    }

    /// The node ended unasked. An upgrade that is under way or due comes before the rules for crashes.
    pub(super) fn decide(&mut self, out: &mut Vec<Effect>) {
        let State::Deciding(exit) = self.state.clone() else { return };
        if self.step.is_some() {
            return;
        }
        if (self.looking != Looking::No || self.asks_for_room(exit)) && !self.due(self.decide_at) {
            // A disk that hangs must not keep the node down: after a while it is decided upon what is known.
            self.decide_at.get_or_insert(self.now + LOOK_PATIENCE);
            return;
        }
        let room = self.wants_room(exit);
        self.decide_at = None;
        // Also in a trial: no release is to pay for arguments that were mistyped.
        let what =
            if exit == Exit::Code(0) { "ended itself (exit status 0)".to_owned() } else { format!("failed: {exit}") };
        if !self.life.ready {
            let kept = match self.args_before.take() {
                Some(before) => {
                    self.args = before;
                    "; it is started with its earlier arguments again"
                }
                None => "; it is tried again",
            };
            let why = match &self.life.refusal {
                Some(Refusal::NotExecuted(why)) => format!("the node was not started: {why}"),
                _ => format!("the node {what} before it was up"),
            };
            self.grant(Wish::Restarted, Reply::error(Code::Node, format!("{why}{kept}")), out);
        }
        let ended = Some(format!("by itself: {exit}"));
        if let Some(room) = room.filter(|_| self.on_probation()) {
            if self.is_waited_for() {
                self.uncount();
                self.error = Some(format!("the node {what} before it was up, and {}", self.room(room)));
                return self.clear(Then::Exit(Code::Node as u8), false, ended, out);
            }
            return self.wait_for_room(exit, room, out);
        }
        match self.journal.as_ref().map(|j| (j.stage, j.proven)) {
            Some((Stage::Stop | Stage::Hook | Stage::Switch | Stage::Restore | Stage::Back, _)) if !self.parked => {
                return self.clear(Then::Go, false, ended, out);
            }
            Some((Stage::Trial, false)) if self.may_go_back() => {
                if self.reason_to_turn_back().is_some() {
                    self.parked = false;
                    return self.clear(Then::Go, false, ended, out);
                }
                if let Some(why) = self.no_way_back() {
                    self.error = Some(why);
                    return self.clear(Then::Exit(Code::Node as u8), false, ended, out);
                }
                self.restarts += 1;
                self.announce_crash(
                    Some(exit),
                    format!("the new release ended by itself: {exit}; it is tried again"),
                    out,
                );
                return self.back_off("the new release is tried again", out);
            }
            Some((Stage::Return, _)) if self.data_may_go_back() => {
                if self.reason_to_turn_back().is_some() {
                    self.parked = false;
                    return self.clear(Then::Go, false, ended, out);
                }
                self.restarts += 1;
                self.announce_crash(
                    Some(exit),
                    format!("the old release ended by itself: {exit}; it is tried again"),
                    out,
                );
                return self.back_off("the old release is tried again", out);
            }
            // What could not be written down is tried again with the node running.
            Some((Stage::Trial, _)) if self.step_retry.is_none() && self.next_is_due() => {
                match self.next_after_death(out) {
                    plans::AfterDeath::Begun | plans::AfterDeath::Wait => return,
                    plans::AfterDeath::None => {}
                }
            }
            Some(_) => {}
            None => match self.begin_after_death(out) {
                plans::AfterDeath::Begun | plans::AfterDeath::Wait => return,
                plans::AfterDeath::None => {}
            },
        }
        if let Some(room) = room.filter(|_| !self.is_waited_for()) {
            return self.wait_for_room(exit, room, out);
        }
        let life = &self.life;
        if exit == Exit::Code(0)
            && life.executed.is_some()
            && life.answered.is_none()
            && self.age() < COMMAND_TIME
            && self.journal.is_none()
            && !self.is_waited_for()
        {
            say(out, Level::Info, "the command is done".to_owned());
            return self.clear(Then::Exit(0), false, ended, out);
        }
        let life = &self.life;
        let why = match (&life.refusal, self.is_waited_for()) {
            (Some(Refusal::NotExecuted(why)), true) => Some(why.clone()),
            (_, true) => {
                let room = room.map_or_else(String::new, |room| format!(", and {}", self.room(room)));
                Some(format!("the node {what} before it was up{room}"))
            }
            _ if !self.config.restart_on_failure => {
                Some(format!("the node {what}; DAEMON_RESTART_ON_FAILURE is false"))
            }
            _ if self.restarts >= self.config.max_restarts => {
                Some(format!("the node {what}; {} restarts in a row did not help (DAEMON_MAX_RESTARTS)", self.restarts))
            }
            _ => None,
        };
        let waited_for = self.is_waited_for();
        if let Some(why) = &why
            && self.parked
            && let Some(retry) = &mut self.step_retry
            && self.config.restart_on_failure
            && !waited_for
        {
            // It may need the very step that the disk refused, as where its data is still to be brought back.
            say(out, Level::Error, format!("{why}; it waits, and is started when this works: {}", retry.fault));
            self.parked = false;
            // That the data stays was never written down, and did not help.
            if matches!(retry.step, Step::Forgo { .. }) {
                retry.step = Step::Restore;
            }
            return self.clear(Then::Go, false, ended, out);
        }
        if let Some(why) = why {
            self.error = Some(why + &self.way_back_by_hand());
            return self.clear(Then::Exit(Code::Node as u8), false, ended, out);
        }
        self.restarts += 1;
        let restart = format!("restart {} of {}", self.restarts, self.config.max_restarts);
        self.announce_crash(Some(exit), format!("the node {what}: {restart}"), out);
        self.back_off(&restart, out);
    }

    pub(super) fn back_off(&mut self, what: &str, out: &mut Vec<Effect>) {
        let pause = backoff(self.config.restart_backoff, self.restarts);
        if pause.is_zero() {
            return self.go(out);
        }
        say(out, Level::Info, format!("{what} in {}", crate::config::show_duration(pause)));
        self.state = State::Backoff { until: self.now + pause };
    }

    /// The node cannot be started and trying again would not help.
    pub(super) fn fail(&mut self, code: Code, why: String, out: &mut Vec<Effect>) {
        self.error = Some(why);
        self.leave(code as u8, out);
    }
}
