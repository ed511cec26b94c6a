//! Upgrades: which plan is due, whether its release is fit to run, the steps that carry it out, and what the operator
//! may say about it.

use std::time::Duration;

use log::Level;

use super::{Effect, Looking, Machine, Now, Reply, Role, State, Then, Wish, say};
use crate::config::Trigger;
use crate::error::Code;
use crate::home::{Name, Release};
use crate::job::look::Survey;
use crate::job::stage::Spec as StageSpec;
use crate::job::step::{Begin, Step};
use crate::job::{Job, Report};
use crate::journal::{Journal, Outcome, Passed, Stage};
use crate::schedule::{Found, Known, Schedule, Standing};

/// The first pause before a release that is not fit to run is looked at again, and the longest.
const STAGE_PAUSE: Duration = Duration::from_secs(5);
const STAGE_PAUSE_MAX: Duration = Duration::from_mins(10);

/// How often a step is tried at once before the node is preferred to the upgrade.
const STEP_TRIES: u32 = 3;

/// What an upgrade that may be due has to do with a node that just ended.
pub(super) enum AfterDeath {
    /// It has begun.
    Begun,
    /// A check is under way.
    Wait,
    /// Nothing.
    None,
}

/// Whether a release is fit to run.
enum Fit {
    Yes,
    No(String),
    Unknown,
}

impl Machine {
    pub(super) fn lead(&self) -> u64 {
        self.config.upgrade_lead
    }

    // ---- what the files say -----------------------------------------------------------------------------------

    pub(super) fn take_plans(&mut self, survey: Survey, out: &mut Vec<Effect>) {
        let first = self.survey.is_none();
        if first && self.known.head.is_none() {
            self.initial = survey.plans.iter().map(|plan| plan.digest.clone()).collect();
        }
        if self.config.upgrade_trigger == Trigger::File && self.state == State::Up {
            let old = self.survey.iter().flat_map(|s| &s.plans).map(|plan| &plan.digest).collect::<Vec<_>>();
            let new: Vec<String> =
                survey.plans.iter().filter(|p| !old.contains(&&p.digest)).map(|p| p.digest.clone()).collect();
            self.appeared.extend(new);
        }
        for error in &survey.errors {
            self.tell_once(
                &error.file,
                &format!("{} is no plan and changes nothing: {}", error.file, error.error),
                out,
            );
        }
        self.told_errors.retain(|about, _| about == "current" || survey.errors.iter().any(|e| e.file == *about));
        // A release whose binary changed is looked at anew, at once.
        self.staged
            .retain(|release, staged| survey.plans.iter().all(|p| p.release != *release || p.print == staged.print));
        self.stage_tries.retain(|release, _| self.staged.contains_key(release));
        self.survey = Some(survey);
        self.judge_plans(out);
        self.plan_alarm();
        self.stage_next(out);
    }

    fn judge_plans(&mut self, out: &mut Vec<Effect>) {
        let Some(survey) = &self.survey else { return };
        let known = Known {
            current: self.current.clone(),
            brought: survey.brought,
            initial: self.initial.clone(),
            head: self.life.head.or(self.known.head.as_ref().map(|head| head.number)),
        };
        let before = std::mem::replace(&mut self.schedule, Schedule::new(&survey.plans, &known));
        for entry in &self.schedule.entries {
            if before.entries.iter().any(|e| e == entry) {
                continue;
            }
            let (name, height) = (&entry.plan.name, entry.plan.height);
            match &entry.standing {
                Standing::Pending => say(out, Level::Info, format!("upgrade {name} is planned for block {height}")),
                Standing::Conflict(why) => say(out, Level::Error, format!("upgrade {name} will not run: {why}")),
                Standing::Failed(why) => {
                    say(
                        out,
                        Level::Warn,
                        format!(
                            "upgrade {name} failed earlier and is not tried again: {why} (`wemixvisor upgrade retry {name}`)"
                        ),
                    );
                }
                Standing::Past(why) => {
                    say(out, Level::Info, format!("the plan for {name} at block {height} is past: {why}"))
                }
                Standing::Done => {}
            }
        }
        self.probe_soon(&before);
        for entry in before.entries.iter().filter(|e| e.standing == Standing::Pending) {
            if !self
                .schedule
                .entries
                .iter()
                .any(|e| e.plan.name == entry.plan.name && e.plan.height == entry.plan.height)
            {
                say(
                    out,
                    Level::Info,
                    format!("the plan for {} at block {} was withdrawn", entry.plan.name, entry.plan.height),
                );
            }
        }
    }

    /// A plan that is new may be nearer than the next probe.
    fn probe_soon(&mut self, before: &Schedule) {
        let new = self.schedule.pending().any(|plan| !before.pending().any(|p| p.digest == plan.digest));
        if new && self.probe_at.is_some() {
            self.probe_at = Some(self.now);
        }
    }

    /// The first head of a home judges the plans that were there before it.
    pub(super) fn head_known(&mut self, out: &mut Vec<Effect>) {
        if self.initial.is_empty() || self.step.is_some() {
            return;
        }
        let initial = std::mem::take(&mut self.initial);
        let Some(head) = self.life.head else { return };
        let passed: Vec<Passed> = self
            .schedule
            .pending()
            .filter(|plan| initial.contains(&plan.digest) && head >= plan.height)
            .map(|plan| Passed { name: plan.name.clone(), height: plan.height, digest: plan.digest.clone() })
            .collect();
        if !passed.is_empty() {
            self.start_step(Step::Pass(passed), out);
        }
    }

    // ---- staging ----------------------------------------------------------------------------------------------

    /// When a release that was not fit to run is looked at again.
    pub(super) fn next_stage_try(&self) -> Option<Now> {
        if self.staging.is_some() {
            return None;
        }
        let waiting = |release: &Release| self.schedule.pending().any(|plan| plan.release == *release);
        self.stage_tries.iter().filter(|(release, _)| waiting(release)).map(|(_, (_, at))| *at).min()
    }

    /// Looks at the nearest release that was not looked at yet, or whose time has come again.
    pub(super) fn stage_next(&mut self, out: &mut Vec<Effect>) {
        if self.staging.is_some() {
            return;
        }
        let wanted = self
            .wishes
            .iter()
            .filter_map(|(_, wish)| if let Wish::Begun(_, release) = wish { Some(release.clone()) } else { None });
        let planned = self.schedule.pending().map(|plan| plan.release.clone());
        let next = wanted.chain(planned).find(|release| {
            !self.staged.contains_key(release) || self.stage_tries.get(release).is_some_and(|(_, at)| self.now >= *at)
        });
        if let Some(release) = next {
            self.staging = Some(release.clone());
            out.push(Effect::Start(Role::Stage, Job::Stage(StageSpec { release })));
        }
    }

    pub(super) fn stage_done(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let Some(release) = self.staging.take() else { return };
        let staged = match result {
            Ok(Report::Staged(staged)) => staged,
            Ok(_) => return,
            Err(why) => {
                say(out, Level::Warn, format!("cannot check release {release}: {why}"));
                self.stage_tries.insert(release, (1, self.now + STAGE_PAUSE));
                return self.decide(out);
            }
        };
        match staged.problem() {
            None => {
                if self.staged.get(&release).is_none_or(|before| before.problem().is_some()) {
                    let version = staged.version.clone().unwrap_or_default();
                    say(out, Level::Info, format!("release {release} is ready version={version:?}"));
                    for remark in staged
                        .checks
                        .iter()
                        .filter(|c| c.what.starts_with("the death signal"))
                        .filter_map(|c| c.remark.as_ref())
                    {
                        say(out, Level::Warn, format!("release {release}: {remark}"));
                    }
                }
                self.stage_tries.remove(&release);
            }
            Some(problem) => {
                let tries = self.stage_tries.get(&release).map_or(0, |(tries, _)| *tries);
                let pause = STAGE_PAUSE.saturating_mul(1 << tries.min(10)).min(STAGE_PAUSE_MAX);
                if self.staged.get(&release).is_none_or(|before| before.problem() != Some(problem)) {
                    say(out, Level::Warn, format!("release {release} is not ready: {problem}"));
                }
                self.stage_tries.insert(release.clone(), (tries + 1, self.now + pause));
            }
        }
        self.staged.insert(release, staged);
        self.stage_next(out);
        self.begin_wished(out);
        self.decide(out);
        self.after_up(out);
    }

    fn fit(&self, release: &Release) -> Fit {
        match self.staged.get(release) {
            Some(staged) => staged.problem().map_or(Fit::Yes, |why| Fit::No(why.to_owned())),
            None => Fit::Unknown,
        }
    }

    // ---- beginning --------------------------------------------------------------------------------------------

    /// The plan that is due, if the node's own head (or, with the other trigger, its file) says so.
    fn due_plan(&self, head: Option<u64>) -> Option<Found> {
        if !self.config.upgrade_enabled {
            return None;
        }
        match self.config.upgrade_trigger {
            Trigger::Height => self.schedule.due(head, self.lead()).cloned(),
            Trigger::File => {
                self.schedule.pending().filter(|plan| self.appeared.contains(&plan.digest)).last().cloned()
            }
        }
    }

    /// Begins the due upgrade, if there is one and it may begin now.
    pub(super) fn consider(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Up || self.step.is_some() || self.step_retry.is_some() || self.looking == Looking::Stale
        {
            return;
        }
        let Some(plan) = self.due_plan(self.life.head) else { return };
        match &self.journal {
            Some(journal) if journal.stage == Stage::Trial && journal.proven => {
                return self.start_step(Step::Commit, out);
            }
            Some(_) => return,
            None => {}
        }
        if self.now < self.begin_after {
            return;
        }
        match self.fit(&plan.release) {
            Fit::Yes => self.begin(&plan, out),
            Fit::No(why) => {
                let text = format!("upgrade {} is due but waits, the old release runs on: {why}", plan.name);
                if self.told_waiting.get(&plan.release) != Some(&text) {
                    say(out, Level::Error, text.clone());
                    self.told_waiting.insert(plan.release.clone(), text);
                }
            }
            Fit::Unknown => self.stage_next(out),
        }
    }

    fn begin(&mut self, plan: &Found, out: &mut Vec<Effect>) {
        let passed = self.schedule.passed_by(plan);
        let passed = passed.into_iter().map(|p| Passed { name: p.name, height: p.height, digest: p.digest }).collect();
        let head = self.life.head.or(self.known.head.as_ref().map(|head| head.number));
        say(
            out,
            Level::Info,
            format!("upgrade {} begins: block {} is next (head {})", plan.name, plan.height, shown(head)),
        );
        self.start_step(
            Step::Begin(Begin {
                name: plan.name.clone(),
                to: plan.release.clone(),
                height: Some(plan.height),
                digest: Some(plan.digest.clone()),
                passed,
                head,
                identity: self.known.identity.clone(),
            }),
            out,
        );
    }

    /// A node that ended by itself may have ended at the height: the last head that is known counts.
    pub(super) fn begin_after_death(&mut self, out: &mut Vec<Effect>) -> AfterDeath {
        let head = self.life.head.or(self.known.head.as_ref().map(|head| head.number));
        let Some(plan) = self.due_plan(head).filter(|_| self.now >= self.begin_after) else { return AfterDeath::None };
        match self.fit(&plan.release) {
            Fit::Yes => {
                self.state = State::Working { then: Then::Go };
                self.begin(&plan, out);
                AfterDeath::Begun
            }
            Fit::Unknown => {
                self.stage_next(out);
                AfterDeath::Wait
            }
            Fit::No(why) => {
                say(out, Level::Error, format!("upgrade {} is due but cannot run: {why}", plan.name));
                AfterDeath::None
            }
        }
    }

    // ---- steps ------------------------------------------------------------------------------------------------

    pub(super) fn start_step(&mut self, step: Step, out: &mut Vec<Effect>) {
        debug_assert!(self.step.is_none(), "one step at a time");
        self.step = Some(step.clone());
        out.push(Effect::Start(Role::Step, Job::Step(Box::new(step))));
    }

    pub(super) fn step_done(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let Some(step) = self.step.take() else { return };
        self.leave_at = None;
        // What was read before this step may be older than it.
        if self.looking != Looking::No {
            self.looking = Looking::Stale;
        }
        match result {
            Ok(Report::Stepped(journal)) => {
                let before = std::mem::replace(&mut self.journal, journal.map(|j| *j));
                self.step_failures = 0;
                self.step_worked(&step, before, out);
                if matches!(self.looking, Looking::No) {
                    self.ask_look(out);
                }
            }
            Ok(_) => self.step_failed(step, "no report came".to_owned(), out),
            Err(why) => self.step_failed(step, why, out),
        }
    }

    fn step_worked(&mut self, step: &Step, before: Option<Journal>, out: &mut Vec<Effect>) {
        match step {
            Step::Begin(_) => {
                self.stop_began = Some(self.now);
                self.grant_begun(out);
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
                self.grant(Wish::Stepped, Reply::done(serde_json::json!({})), out);
            }
            Step::Undo { .. } => self.grant(Wish::Stepped, Reply::done(serde_json::json!({})), out),
            Step::Back => {
                self.restarts = 0;
                self.parked = false;
                if let Some(journal) = before {
                    say(out, Level::Info, format!("current points at {} again", journal.from));
                    self.current = Some(journal.from);
                }
            }
            Step::Pass(_) => {}
        }
        match self.state.clone() {
            State::Working { then: Then::Go } => match step {
                // The node is down already; what it left behind may still hold the data.
                Step::Begin(_) => self.clear(Then::Go, false, None, out),
                Step::Switch { .. } if !self.config.restart_after_upgrade => {
                    say(out, Level::Info, "DAEMON_RESTART_AFTER_UPGRADE is false: leaving after the switch".to_owned());
                    self.leave(0, out);
                }
                Step::Switch { .. } if !self.config.restart_delay.is_zero() => {
                    self.state = State::Backoff { until: self.now + self.config.restart_delay };
                }
                _ => self.go(out),
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

    fn step_failed(&mut self, step: Step, why: String, out: &mut Vec<Effect>) {
        self.step_failures += 1;
        let what = match &step {
            Step::Begin(begin) => format!("upgrade {} cannot begin", begin.name),
            Step::Switch { .. } => "the link cannot be moved".to_owned(),
            Step::Prove { .. } => "the proof cannot be written down".to_owned(),
            Step::Commit => "the upgrade cannot be committed".to_owned(),
            Step::TurnBack { .. } | Step::Back => "the upgrade cannot be taken back".to_owned(),
            Step::Undo { .. } => "the revert cannot begin".to_owned(),
            Step::Pass(_) => "past plans cannot be written down".to_owned(),
        };
        say(out, Level::Error, format!("{what}: {why}"));
        let leaving = matches!(self.state, State::Working { then: Then::Exit(_) });
        match step {
            Step::Begin(_) => {
                self.begin_after =
                    self.now + STAGE_PAUSE.saturating_mul(1 << self.step_failures.min(7)).min(STAGE_PAUSE_MAX);
                self.refuse_begun(&why, out);
                match self.state.clone() {
                    State::Working { then } => self.settle(then, out),
                    State::Deciding(_) => self.decide(out),
                    _ => {}
                }
            }
            Step::Undo { .. } => self.grant(Wish::Stepped, Reply::error(Code::Failed, why), out),
            _ if leaving => {
                if let State::Working { then } = self.state {
                    self.settle(then, out);
                }
            }
            Step::Switch { .. } if self.step_failures >= STEP_TRIES => {
                self.step_failures = 0;
                self.start_step(Step::TurnBack { outcome: Outcome::Failed, reason: why }, out);
            }
            Step::TurnBack { .. } | Step::Back
                if self.step_failures >= STEP_TRIES
                    && self.journal.as_ref().is_some_and(|j| self.current.as_ref() == Some(&j.from)) =>
            {
                // The link is where it must be: the node runs, and what is left is only to be written down.
                self.parked = true;
                self.step_retry = Some((self.now + Duration::from_secs(30), step));
                if let State::Working { then: Then::Go } = self.state {
                    say(out, Level::Error, "the old release is started all the same".to_owned());
                    self.go(out);
                }
            }
            Step::Switch { .. } | Step::TurnBack { .. } | Step::Back => {
                let pause = if self.step_failures < STEP_TRIES { 1 } else { 10 };
                self.step_retry = Some((self.now + Duration::from_secs(pause), step));
            }
            Step::Prove { .. } | Step::Commit | Step::Pass(_) => {
                self.step_retry = Some((self.now + Duration::from_secs(10), step));
                self.decide(out);
            }
        }
    }

    // ---- what the operator says -------------------------------------------------------------------------------

    pub(super) fn ask_cancel(&mut self, client: super::ClientId, name: &Name, out: &mut Vec<Effect>) {
        let beginning = matches!(&self.step, Some(Step::Begin(begin)) if begin.name == *name);
        let reply = match self.journal.as_ref().filter(|j| j.name == *name) {
            Some(journal) if journal.stage == Stage::Stop && !matches!(self.step, Some(Step::Switch { .. })) => None,
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
            }
        }
    }

    pub(super) fn ask_now(&mut self, client: super::ClientId, name: Name, release: Release, out: &mut Vec<Effect>) {
        let refusal = if let Some(journal) = &self.journal {
            Some(format!("upgrade {} is under way", journal.name))
        } else if self.current.as_ref() == Some(&release) {
            Some(format!("release {release} is the current one"))
        } else if !matches!(self.state, State::Up | State::Backoff { .. }) {
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
    fn begin_wished(&mut self, out: &mut Vec<Effect>) {
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
        match self.state {
            State::Up => {}
            State::Backoff { .. } => self.state = State::Working { then: Then::Go },
            _ => return self.refuse_begun("the node just ended: try again", out),
        }
        say(out, Level::Info, format!("upgrade {name} begins because the operator said so"));
        let planned = self.schedule.pending().find(|plan| plan.name == name).cloned();
        match planned {
            Some(plan) => self.begin(&plan, out),
            None => {
                let begin = Begin {
                    name,
                    to: release,
                    height: None,
                    digest: None,
                    passed: Vec::new(),
                    head: self.life.head,
                    identity: self.known.identity.clone(),
                };
                self.start_step(Step::Begin(begin), out);
            }
        }
    }

    fn grant_begun(&mut self, out: &mut Vec<Effect>) {
        self.answer_begun(&Reply::done(serde_json::json!({})), out);
    }

    fn refuse_begun(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.answer_begun(&Reply::error(Code::Refused, why), out);
    }

    fn answer_begun(&mut self, reply: &Reply, out: &mut Vec<Effect>) {
        let (begun, rest) =
            std::mem::take(&mut self.wishes).into_iter().partition(|(_, w)| matches!(w, Wish::Begun(..)));
        self.wishes = rest;
        for (client, _) in begun {
            out.push(Effect::Reply(client, reply.clone()));
        }
    }

    pub(super) fn ask_revert(&mut self, client: super::ClientId, to: Option<Release>, out: &mut Vec<Effect>) {
        let refuse = |why: String| Effect::Reply(client, Reply::error(Code::Refused, why));
        if self.step.is_some() || !matches!(self.state, State::Up | State::Backoff { .. }) {
            return out.push(refuse("a change is under way: try again when it is over".to_owned()));
        }
        let step = match (&self.journal, to) {
            (Some(journal), to)
                if journal.stage == Stage::Trial && to.as_ref().is_none_or(|to| *to == journal.from) =>
            {
                Step::TurnBack { outcome: Outcome::Reverted, reason: "the operator said so".to_owned() }
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
            (None, Some(to)) => Step::Undo { to, reason: "the operator said so".to_owned() },
            (None, None) => {
                return out.push(refuse("no upgrade is on trial: say to which release, with --to".to_owned()));
            }
        };
        say(out, Level::Info, "asked to revert".to_owned());
        self.wishes.push((client, Wish::Stepped));
        if let State::Backoff { .. } = self.state {
            self.state = State::Working { then: Then::Go };
        }
        self.start_step(step, out);
    }
}

fn shown(head: Option<u64>) -> String {
    head.map_or_else(|| "unknown".to_owned(), |head| head.to_string())
}
