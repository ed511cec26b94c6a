//! What clients ask for, and the settings that may change while it runs.

use super::metrics::Why;
use super::plans::Fit;
use super::steps::SAID_SO;
use super::*;
use crate::home::Name;
use crate::job::step::Begin;

/// How long reading the settings may take.
const RELOAD_TIME: Duration = Duration::from_secs(10);

impl Machine {
    /// Reads the settings again; asked while that is under way, once more after it.
    pub(super) fn reload(&mut self, out: &mut Vec<Effect>) {
        if self.reloading == Looking::No {
            self.reloading = Looking::Yes;
            self.start_job(Role::Reload, Job::Reload(self.flags.clone()), RELOAD_TIME, out);
        } else {
            self.reloading = Looking::Stale;
        }
    }

    pub(super) fn reloaded(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.reloading, Looking::No) == Looking::Stale {
            return self.reload(out);
        }
        let outcome = match result {
            Ok(Report::Settings(settings)) => self.take_settings(&settings, out),
            Ok(_) => Err("the settings could not be read".to_owned()),
            Err(why) => Err(why),
        };
        match outcome {
            Ok(()) => {
                self.flags_before = None;
                say(out, Level::Info, "the settings were read again".to_owned());
                self.grant(Wish::Reloaded, Reply::done(serde_json::json!({})), out);
            }
            Err(why) => {
                self.flags = self.flags_before.take().unwrap_or_else(|| self.flags.clone());
                say(out, Level::Error, format!("the settings stay as they were: {}", why.replace('\n', "; ")));
                self.grant(Wish::Reloaded, Reply::error(Code::Usage, why), out);
            }
        }
    }

    pub(super) fn take_settings(&mut self, settings: &Settings, out: &mut Vec<Effect>) -> Result<(), String> {
        let config = settings.config().map_err(|e| e.message)?;
        if config.home != self.config.home || config.name != self.config.name {
            return Err("DAEMON_HOME and DAEMON_NAME cannot change while a supervisor runs: stop it first".to_owned());
        }
        for warning in &settings.warnings {
            say(out, Level::Warn, warning.clone());
        }
        if config.node_args != self.config.node_args {
            say(
                out,
                Level::Warn,
                "node_args has changed: it counts when a supervisor begins, or give the words to `restart`".to_owned(),
            );
        }
        if config.metrics_textfile != self.config.metrics_textfile {
            self.counts.retired.clone_from(&self.config.metrics_textfile);
        }
        // What stood in the way of one may be mended.
        let looked_at = self.staged.len() + self.stage_tries.len();
        self.stage_tries.clear();
        self.staged.retain(|_, staged| staged.problem().is_none());
        if config.custom_preupgrade != self.config.custom_preupgrade {
            // Whether a release is ready depends on it.
            self.staged.clear();
        }
        let again = self.staged.len() < looked_at;
        self.config = config;
        self.plan_metrics();
        self.plan_look();
        self.fetch_next(out);
        if again {
            self.stage_next(out);
        }
        if self.state == State::Up && self.probing.is_none() {
            self.plan_probe();
        }
        Ok(())
    }

    pub(super) fn grant(&mut self, wish: Wish, reply: Reply, out: &mut Vec<Effect>) {
        let (granted, rest) = std::mem::take(&mut self.wishes).into_iter().partition(|(_, w)| *w == wish);
        self.wishes = rest;
        for (client, _) in granted {
            out.push(Effect::Reply(client, reply.clone()));
        }
    }

    pub(super) fn asked(&mut self, client: ClientId, request: Request, out: &mut Vec<Effect>) {
        match request {
            Request::Status => {
                let status = self.status();
                out.push(Effect::Reply(client, Reply::done(status)));
            }
            Request::Metrics => out.push(Effect::Reply(client, Reply::done(serde_json::json!(self.live())))),
            Request::Head => self.ask_head(client, out),
            Request::Stop { now } => {
                say(
                    out,
                    Level::Info,
                    format!(
                        "asked to stop{} by `wemixvisor stop`{}",
                        if now { " at once" } else { "" },
                        self.what_is_waited_for()
                    ),
                );
                self.stop(Then::Exit(0), out);
                if now {
                    self.hurry = true;
                    if matches!(self.state, State::Stopping { .. } | State::Clearing { kill: false, .. }) {
                        say(out, Level::Error, "ended by KILL, as asked: this stop is UNCLEAN".to_owned());
                    }
                    self.kill(out);
                }
                out.push(Effect::Reply(client, Reply::done(serde_json::json!({}))));
            }
            Request::Restart { args } => self.restart(client, args, out),
            Request::Reload { flags } => {
                self.flags_before.get_or_insert_with(|| self.flags.clone());
                self.flags.settings.extend(flags);
                self.wishes.push((client, Wish::Reloaded));
                self.reload(out);
            }
            Request::Cancel { name } => self.ask_cancel(client, &name, out),
            Request::Now { name, release } => self.ask_now(client, name, release, out),
            Request::Revert { to } => self.ask_revert(client, to, out),
        }
    }

    /// What was heard last may be some blocks old: a client that judges by the head has the node asked now.
    fn ask_head(&mut self, client: ClientId, out: &mut Vec<Effect>) {
        self.wishes.push((client, Wish::Head));
        self.probe(out);
        if self.probing.is_none() {
            self.tell_head(out);
        }
    }

    /// Tells the head to those who wait for it: what is known now, whatever came of asking.
    pub(super) fn tell_head(&mut self, out: &mut Vec<Effect>) {
        let current = self.state == State::Up && self.life.head.is_some() && self.life.silent_since.is_none();
        self.grant(Wish::Head, Reply::done(serde_json::json!({"height": self.height(), "current": current})), out);
    }

    pub(super) fn restart(&mut self, client: ClientId, args: Option<Vec<String>>, out: &mut Vec<Effect>) {
        let upgrading = self.journal.as_ref().is_some_and(|j| j.on_probation().is_none()) && !self.parked;
        let leaving = matches!(self.later(Then::Go), Then::Exit(_)) || matches!(self.state, State::Leaving { .. });
        if upgrading || leaving {
            let why = if leaving { "the supervisor is being stopped" } else { "an upgrade is under way" };
            out.push(Effect::Reply(client, Reply::error(Code::Refused, format!("{why}: try again when it is over"))));
            return;
        }
        if let Some(why) = args.as_ref().and_then(|args| self.command_in_the_way(args)) {
            out.push(Effect::Reply(client, Reply::error(Code::Refused, why)));
            return;
        }
        if let Some(args) = args {
            let before = std::mem::replace(&mut self.args, args);
            self.args_before.get_or_insert(before);
        }
        say(out, Level::Info, "asked to restart the node".to_owned());
        self.counts.next_start = Some(Why::Operator);
        self.restarts = 0;
        self.wishes.push((client, Wish::Restarted));
        self.stop(Then::Go, out);
    }

    pub(super) fn what_is_waited_for(&self) -> String {
        match &self.state {
            State::Stopping { .. } if self.awaits_proposal => {
                format!("; waiting for {}", proposal::QUIET)
            }
            State::Stopping { .. } => {
                format!("; waiting for the node (pid {}) to end for {} s already", self.life.pid, self.grace.looks())
            }
            State::Killing { .. } => format!("; waiting for the node (pid {}), which was sent KILL", self.life.pid),
            State::Clearing { .. } if !self.holders.is_empty() => {
                format!("; waiting for {} to end", list(&self.holders))
            }
            State::Working { .. } => "; waiting for a step of the upgrade to end".to_owned(),
            State::Hooking { .. } => format!("; waiting for {} to end", self.hook_name()),
            State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Clearing { .. }
            | State::Leaving { .. } => String::new(),
        }
    }

    pub(super) fn ask_cancel(&mut self, client: ClientId, name: &Name, out: &mut Vec<Effect>) {
        let beginning = matches!(&self.step, Some(Step::Begin(begin)) if begin.name == *name);
        let reply = match self.journal.as_ref().filter(|j| j.name == *name) {
            Some(journal) if journal.before_switch() && !matches!(self.step, Some(Step::Switch)) => None,
            Some(journal) if journal.back.is_some() => {
                Some(Reply::error(Code::Refused, format!("upgrade {name} is being taken back already")))
            }
            Some(_) => Some(Reply::error(
                Code::Refused,
                format!("upgrade {name} runs already: `wemixvisor upgrade revert` takes it back"),
            )),
            None if beginning => None,
            None => Some(Reply::done(serde_json::json!({"under_way": false}))),
        };
        match reply {
            Some(reply) => out.push(Effect::Reply(client, reply)),
            None => {
                say(out, Level::Info, format!("asked to cancel upgrade {name}"));
                self.cancel = true;
                self.wishes.push((client, Wish::Stepped));
                self.interrupt(out);
                self.end_hook("the upgrade was withdrawn", out);
                let pausing = matches!(self.state, State::Backoff { .. } | State::Working { then: Then::Go });
                if pausing && self.step.is_none() && self.journal.is_some() {
                    self.step_retry = None;
                    self.hook_after = None;
                    self.go(out);
                }
            }
        }
    }

    pub(super) fn ask_now(&mut self, client: ClientId, name: Name, release: Release, out: &mut Vec<Effect>) {
        let refusal = if let Some(journal) = &self.journal {
            Some(format!("upgrade {} is under way", journal.name))
        } else if self.current.as_ref() == Some(&release) {
            Some(format!("release {release} is the current one"))
        } else if !matches!(self.state, State::Up | State::Backoff { .. } | State::Held { .. }) {
            Some("the node is neither running nor waiting for its restart".to_owned())
        } else {
            None
        };
        if let Some(why) = refusal {
            return out.push(Effect::Reply(client, Reply::error(Code::Refused, why)));
        }
        self.staged.remove(&release);
        self.stage_tries.remove(&release);
        self.wishes.push((client, Wish::Begun(name, release)));
        self.stage_next(out);
    }

    /// Begins the upgrade that the operator asked for, once its release was looked at.
    pub(super) fn begin_wished(&mut self, out: &mut Vec<Effect>) {
        let wished = self.wishes.iter().find_map(|(_, w)| {
            if let Wish::Begun(name, release) = w { Some((name.clone(), release.clone())) } else { None }
        });
        let Some((name, release)) = wished else { return };
        if self.step.is_some() || !self.staged.contains_key(&release) {
            return;
        }
        if let Fit::No(why) = self.fit(&release) {
            return self.refuse_begun(&why, out);
        }
        if let State::Backoff { .. } | State::Held { .. } = self.state {
            self.state = State::Working { then: Then::Go };
        } else if self.state != State::Up {
            return self.refuse_begun("the node just ended: try again", out);
        }
        say(out, Level::Info, format!("upgrade {name} begins because the operator said so"));
        let planned = self.schedule.pending().find(|plan| plan.name == name).cloned();
        match planned {
            Some(plan) => self.begin(&plan, out),
            None => {
                let begin = Begin {
                    name,
                    from: self.life.release.clone(),
                    to: release,
                    height: None,
                    digest: None,
                    passed: Vec::new(),
                    head: self.life.head,
                    identity: self.known.identity.clone(),
                    data: self.backup_spec(),
                };
                self.start_step(Step::Begin(Box::new(begin)), out);
            }
        }
    }

    pub(super) fn refuse_begun(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.answer_begun(&Reply::error(Code::Refused, why), out);
    }

    pub(super) fn answer_begun(&mut self, reply: &Reply, out: &mut Vec<Effect>) {
        let (begun, rest) =
            std::mem::take(&mut self.wishes).into_iter().partition(|(_, w)| matches!(w, Wish::Begun(..)));
        self.wishes = rest;
        for (client, _) in begun {
            out.push(Effect::Reply(client, reply.clone()));
        }
    }

    pub(super) fn ask_revert(&mut self, client: ClientId, to: Option<Release>, out: &mut Vec<Effect>) {
        let refuse = |why: String| Effect::Reply(client, Reply::error(Code::Refused, why));
        if self.step.is_some() || !matches!(self.state, State::Up | State::Backoff { .. } | State::Held { .. }) {
            return out.push(refuse("a change is under way: try again when it is over".to_owned()));
        }
        let step = match (&self.journal, to) {
            (Some(journal), to)
                if journal.stage == Stage::Trial && to.as_ref().is_none_or(|to| *to == journal.from) =>
            {
                let reason = SAID_SO.to_owned();
                Step::TurnBack { outcome: Outcome::Reverted, reason, put_off: false }
            }
            (Some(journal), _) if journal.back.is_some() => {
                return out.push(refuse(format!("upgrade {} is being taken back already", journal.name)));
            }
            (Some(journal), _) => {
                return out.push(refuse(format!(
                    "upgrade {} from {} is under way: only {} can be gone back to",
                    journal.name, journal.from, journal.from
                )));
            }
            (None, Some(to)) if self.current.as_ref() == Some(&to) => {
                return out.push(refuse(format!("release {to} is the current one")));
            }
            (None, Some(to)) => Step::Undo { to, reason: SAID_SO.to_owned() },
            (None, None) => {
                return out.push(refuse("no upgrade is on trial: say to which release, with --to".to_owned()));
            }
        };
        say(out, Level::Info, "asked to revert".to_owned());
        self.wishes.push((client, Wish::Stepped));
        if let State::Backoff { .. } | State::Held { .. } = self.state {
            self.state = State::Working { then: Then::Go };
        }
        self.start_step(step, out);
    }
}
