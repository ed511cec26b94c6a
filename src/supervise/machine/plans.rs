//! Upgrades: which plan is due, whether its release is fit to run, the steps that carry it out, and what the operator
//! may say about it.

use std::time::Duration;

use log::Level;

use super::{Effect, Looking, Machine, Now, Role, State, Then, Wish, say};
use crate::config::Trigger;
use crate::home::Release;
use crate::job::look::Survey;
use crate::job::stage::{Spec as StageSpec, Staged};
use crate::job::step::{Begin, Step};
use crate::job::{Job, Report};
use crate::journal::{Passed, Stage};
use crate::schedule::{Entry, Found, Known, Schedule, Standing};

/// How long a check of a release may take: its binary has 5 s to tell its version, but all of the data is looked through for
/// the room that a backup needs.
const STAGE_TIME: Duration = Duration::from_hours(1);

/// The first pause before a release that is not fit to run is looked at again, and the longest.
pub(super) const STAGE_PAUSE: Duration = Duration::from_secs(5);
pub(super) const STAGE_PAUSE_MAX: Duration = Duration::from_mins(10);

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
pub(super) enum Fit {
    Yes,
    No(String),
    Unknown,
}

impl Machine {
    /// The nearest plan that is not due yet.
    pub(super) fn next_plan(&self) -> Option<&Found> {
        let head = self.life.head;
        self.schedule.next(|plan| head.is_some_and(|head| head >= self.due_at(plan)))
    }

    pub(super) fn take_plans(&mut self, survey: Survey, out: &mut Vec<Effect>) {
        let first = self.survey.is_none();
        if first && self.known.head.is_none() && survey.known_error.is_none() {
            let short =
                |plan: &Found| Passed { name: plan.name.clone(), height: plan.height, digest: plan.digest.clone() };
            self.initial = survey.plans.iter().map(short).collect();
        }
        // Also what it wrote just before its end appeared while it ran.
        let ran = matches!(self.state, State::Up | State::Deciding(_));
        if self.config.upgrade_trigger == Trigger::File && ran {
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
        self.survey = Some(survey);
        self.judge_plans(out);
        // A release whose binary changed is looked at anew, at once.
        let anew: Vec<Release> =
            self.staged.values().filter(|staged| self.is_old(staged)).map(|s| s.release.clone()).collect();
        for release in anew {
            self.staged.remove(&release);
            self.stage_tries.remove(&release);
        }
        self.plan_alarm();
        self.fetch_next(out);
        self.stage_next(out);
    }

    pub(super) fn judge_plans(&mut self, out: &mut Vec<Effect>) {
        let Some(survey) = &self.survey else { return };
        let known = Known { current: self.current.clone(), brought: survey.brought };
        let before = std::mem::replace(&mut self.schedule, Schedule::new(&survey.plans, &known));
        for entry in &self.schedule.entries {
            let same = |e: &&Entry| e.plan.digest == entry.plan.digest && e.standing == entry.standing;
            let under_way = self.journal.as_ref().is_some_and(|j| j.digest.as_ref() == Some(&entry.plan.digest));
            if before.entries.iter().any(|e| same(&e)) || (under_way && entry.standing == Standing::Pending) {
                continue;
            }
            let (name, height) = (&entry.plan.name, entry.plan.height);
            match &entry.standing {
                Standing::Pending => say(out, Level::Info, format!("upgrade {name} is planned for block {height}")),
                Standing::Conflict(why) => say(out, Level::Error, format!("upgrade {name} will not run: {why}")),
                Standing::Held(why) => say(out, Level::Error, format!("upgrade {name} waits: {why}")),
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
        for entry in before.entries.iter().filter(|e| matches!(e.standing, Standing::Pending | Standing::Held(_))) {
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
    pub(super) fn probe_soon(&mut self, before: &Schedule) {
        let new = self.schedule.pending().any(|plan| !before.pending().any(|p| p.digest == plan.digest));
        if new && self.probe_at.is_some() {
            self.probe_at = Some(self.now);
        }
    }

    /// When a release that was not fit to run is looked at again.
    pub(super) fn next_stage_try(&self) -> Option<Now> {
        if self.staging.is_some() {
            return None;
        }
        let planned = |release: &Release| self.schedule.pending().any(|plan| plan.release == *release);
        let waiting = |release: &Release| planned(release) && self.to_be_fetched(release).is_none();
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
        // What is still to be fetched has nothing to look at.
        let planned = planned.filter(|release| self.to_be_fetched(release).is_none());
        let next = wanted.chain(planned).find(|release| {
            self.stage_tries.get(release).map_or(!self.staged.contains_key(release), |(_, at)| self.now >= *at)
        });
        if let Some(release) = next {
            self.staging = Some(release.clone());
            let plan = self.schedule.pending().find(|plan| plan.release == release);
            let spec = StageSpec {
                source: plan.and_then(|plan| plan.source.clone().ok().flatten()),
                release,
                backup: self.backup_spec(),
                hook: self.config.custom_preupgrade.clone(),
                args: self.args.clone(),
                log: self.node_log(),
            };
            self.start_job(Role::Stage, Job::Stage(Box::new(spec)), STAGE_TIME, out);
        }
    }

    pub(super) fn stage_done(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let Some(release) = self.staging.take() else { return };
        let staged = match result {
            Ok(Report::Staged(staged)) => staged,
            Ok(_) => return,
            Err(why) => {
                say(out, Level::Warn, format!("cannot check release {release}: {why}"));
                self.stage_again(release);
                return self.decide(out);
            }
        };
        if self.is_old(&staged) {
            // Either of the two looks may be the older one.
            self.ask_look(out);
            self.stage_again(release);
            self.stage_next(out);
            return self.decide(out);
        }
        match staged.problem() {
            None => {
                if self.staged.get(&release).is_none_or(|before| before.problem().is_some()) {
                    let version = staged.version.clone().unwrap_or_default();
                    say(out, Level::Info, format!("release {release} is ready version={version:?}"));
                    for warning in staged.checks.iter().filter_map(|check| check.warning.as_ref()) {
                        say(out, Level::Warn, format!("release {release}: {warning}"));
                    }
                }
                self.stage_tries.remove(&release);
            }
            Some(problem) => {
                if self.staged.get(&release).is_none_or(|before| before.problem() != Some(problem)) {
                    let text = format!("release {release} is not ready: {problem}");
                    say(out, Level::Warn, text.clone());
                    self.announce_not_staged(&release, false, text, out);
                }
                self.stage_again(release.clone());
            }
        }
        self.staged.insert(release, staged);
        self.stage_next(out);
        self.begin_wished(out);
        self.consider_ahead(out);
        self.decide(out);
        self.after_up(out);
    }

    /// Whether the release, or what its plan wants, is another one by now.
    fn is_old(&self, staged: &Staged) -> bool {
        let plan = self.schedule.pending().find(|plan| plan.release == staged.release);
        plan.is_some_and(|plan| plan.print != staged.print)
    }

    /// Looks at a release again after a pause that grows.
    fn stage_again(&mut self, release: Release) {
        let tries = self.stage_tries.get(&release).map_or(0, |(tries, _)| *tries);
        let left =
            self.schedule.pending().find(|plan| plan.release == release).map(|plan| self.time_left(&plan.digest));
        let pause = STAGE_PAUSE.saturating_mul(1 << tries.min(10)).min(left.unwrap_or(STAGE_PAUSE_MAX));
        self.stage_tries.insert(release, (tries + 1, self.now + pause));
    }

    pub(super) fn fit(&self, release: &Release) -> Fit {
        match self.staged.get(release) {
            Some(staged) => staged.problem().map_or(Fit::Yes, |why| Fit::No(why.to_owned())),
            None if self.stage_tries.contains_key(release) => Fit::No("it could not be checked".to_owned()),
            None if self.to_be_fetched(release).is_some() => {
                Fit::No(self.to_be_fetched(release).and_then(|plan| self.missing(plan)).unwrap_or_default())
            }
            None => Fit::Unknown,
        }
    }

    /// The plan that is due, if the node's own head (or, with the other trigger, its file) says so.
    pub(super) fn due_plan(&self, head: Option<u64>) -> Option<Found> {
        if !self.config.upgrade_enabled {
            return None;
        }
        match self.config.upgrade_trigger {
            // An unknown head reaches nothing.
            Trigger::Height => self.schedule.chosen(|plan| head.is_some_and(|head| head >= self.due_at(plan))).cloned(),
            // One that appeared just before all was killed is known by its height.
            Trigger::File => {
                let reached = |plan: &Found| head.is_some_and(|head| head >= crate::schedule::due_at(plan.height, 0));
                let due = |plan: &Found| self.appeared.contains(&plan.digest) || reached(plan);
                self.schedule.chosen(due).cloned()
            }
        }
    }

    /// Begins the due upgrade, if there is one and it may begin now.
    pub(super) fn consider(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Up || self.step.is_some() || self.step_retry.is_some() || self.looking != Looking::No {
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
            Fit::Yes => match self.gate(&plan) {
                None => self.begin(&plan, out),
                Some(why) => {
                    let text = format!("upgrade {} is due and waits for {why}", plan.name);
                    if self.told_waiting.get(&plan.release) != Some(&text) {
                        say(out, Level::Warn, text.clone());
                        self.told_waiting.insert(plan.release.clone(), text);
                    }
                }
            },
            Fit::No(why) => {
                let text = format!("upgrade {} is due but waits, the old release runs on: {why}", plan.name);
                // How far a download is, and when it is tried again, is no news.
                let fetching = self.fetching.as_ref().is_some_and(|fetching| fetching.is_of(&plan));
                let told = self.told_waiting.get(&plan.release);
                let lasting = text.split("; another try in ").next().unwrap_or_default().to_owned();
                if told != Some(&lasting) && !(fetching && told.is_some()) {
                    say(out, Level::Error, text.clone());
                    self.announce_not_staged(&plan.release, true, text, out);
                    self.told_waiting.insert(plan.release.clone(), lasting);
                }
            }
            Fit::Unknown => self.stage_next(out),
        }
    }

    pub(super) fn begin(&mut self, plan: &Found, out: &mut Vec<Effect>) {
        let passed = self.schedule.passed_by(plan);
        let passed = passed.into_iter().map(|p| Passed { name: p.name, height: p.height, digest: p.digest }).collect();
        let head = self.life.head.or(self.known.head.as_ref().map(|head| head.number));
        say(
            out,
            Level::Info,
            format!("upgrade {} begins: block {} is next (head {})", plan.name, plan.height, shown(head)),
        );
        self.start_step(
            Step::Begin(Box::new(Begin {
                name: plan.name.clone(),
                from: self.life.release.clone(),
                to: plan.release.clone(),
                height: Some(plan.height),
                digest: Some(plan.digest.clone()),
                passed,
                head,
                identity: self.known.identity.clone(),
                data: self.backup_spec(),
            })),
            out,
        );
    }

    /// The plan that is due when the node has ended: it may have ended at the height, so the last head that is known counts.
    fn due_after_death(&self) -> Option<Found> {
        let head = self.life.head.or(self.known.head.as_ref().map(|head| head.number));
        self.due_plan(head).filter(|_| self.now >= self.begin_after)
    }

    /// Whether the node, on trial, has come to the height of the next plan: its release has done its part.
    pub(super) fn next_is_due(&self) -> bool {
        let under_way = self.journal.as_ref().and_then(|journal| journal.digest.clone());
        self.due_after_death().is_some_and(|plan| Some(plan.digest) != under_way)
    }

    /// Ends the trial of a release that ended at the height of the next plan, so that this one can begin.
    pub(super) fn next_after_death(&mut self, out: &mut Vec<Effect>) -> AfterDeath {
        match self.due_after_death().map(|plan| self.fit(&plan.release)) {
            Some(Fit::Yes) => {
                self.start_step(Step::Commit, out);
                AfterDeath::Begun
            }
            Some(Fit::Unknown) => {
                self.stage_next(out);
                AfterDeath::Wait
            }
            Some(Fit::No(_)) | None => AfterDeath::None,
        }
    }

    /// Begins the plan that is due, if there is one.
    pub(super) fn begin_after_death(&mut self, out: &mut Vec<Effect>) -> AfterDeath {
        let Some(plan) = self.due_after_death() else { return AfterDeath::None };
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
}

pub(super) fn shown(head: Option<u64>) -> String {
    head.map_or_else(|| "unknown".to_owned(), |head| head.to_string())
}
