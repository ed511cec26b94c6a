//! What `status` tells, made from the machine's memory alone: asking for it starts nothing and asks the node nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Hold, Looking, Machine, Notice, Refusal, State, Then};
use crate::config::show_duration;
use crate::job::clear::list;
use crate::journal::{Journal, Stage, expected_downtime, rfc3339, unix_now};
use crate::schedule::{Found, Standing};

impl Machine {
    /// The public state: one of the seven words that users know.
    pub fn public_state(&self) -> &'static str {
        let leaving = matches!(self.then(), Some(Then::Exit(_)));
        let on_probation = |j: &Journal| j.on_probation().is_some() && self.state == State::Up;
        let upgrading = self.journal.as_ref().is_some_and(|j| !on_probation(j)) && !self.parked;
        match self.state {
            State::Leaving { code: 0 } => "stopping",
            State::Leaving { .. } => "error",
            _ if leaving && self.error.is_some() => "error",
            _ if leaving => "stopping",
            State::Up if self.step.is_none() || self.on_trial() => "running",
            State::Backoff { .. } if self.journal.as_ref().is_some_and(|j| j.stage == Stage::Hook) => "upgrading",
            // The pause before the new release starts belongs to the upgrade, the one after it ended by itself does not.
            State::Deciding(_) | State::Backoff { .. } if self.switched.is_none() => "crashed",
            _ if upgrading => "upgrading",
            State::Up => "running",
            State::Boot | State::Starting | State::Held { .. } => "starting",
            State::Hooking { .. } => "upgrading",
            State::Working { .. } if self.restoring => "starting",
            State::Stopping { .. } | State::Killing { .. } | State::Working { .. } => "stopping",
            State::Clearing { .. } => "starting",
            State::Deciding(_) | State::Backoff { .. } => "crashed",
        }
    }

    /// What a service manager is to know now.
    pub fn notice(&self) -> Notice {
        let leaving = matches!(self.then(), Some(Then::Exit(_))) || matches!(self.state, State::Leaving { .. });
        Notice {
            reloading: self.reloading != Looking::No,
            stopping: leaving,
            busy: self.state != State::Up || !self.life.ready,
            status: self.line(),
        }
    }

    /// `running, block 123; upgrade v2 at block 500: staged`. Nothing that counts down: each other line is news.
    fn line(&self) -> String {
        let head = self.life.head.map_or_else(String::new, |head| format!(", block {head}"));
        let upgrade = match (&self.journal, self.schedule.pending().next()) {
            (Some(journal), _) => format!("; upgrade {}: {}", journal.name, self.phase(journal).0),
            (None, Some(plan)) => format!("; upgrade {} at block {}: {}", plan.name, plan.height, self.waiting(plan).0),
            (None, None) => String::new(),
        };
        let held = self.held();
        let hold = held.get("reason").and_then(Value::as_str).map_or_else(String::new, |why| format!("; held: {why}"));
        let ends = matches!(self.state, State::Stopping { .. } | State::Killing { .. } | State::Clearing { .. });
        let wait = self.waits_for().filter(|_| ends).map_or_else(String::new, |what| format!("; waits for {what}"));
        let error = self.error.as_ref().map_or_else(String::new, |why| format!("; {why}"));
        format!("{}{head}{upgrade}{hold}{wait}{error}", self.public_state()).replace('\n', " ")
    }

    /// The head that this life's node told, else the last one of those before it.
    pub(super) fn height(&self) -> Option<u64> {
        self.life.head.or(self.known.head.as_ref().map(|head| head.number))
    }

    /// The whole answer to `status --json`.
    pub fn status(&self) -> Value {
        let life = &self.life;
        let lives = self.lives();
        let uptime = if lives { self.age() } else { Duration::ZERO };
        let state = self.public_state();
        json!({
            "state": state,
            "state_string": state,
            "pid": if lives { life.pid } else { 0 },
            "uptime": show_uptime(uptime),
            "restart_count": self.restarts,
            "network": self.config.network,
            "binary": self.home.current_binary(),
            "version": self.version(),
            "health": self.health_status(),
            "release": self.current.as_ref().map(ToString::to_string),
            "height": self.height(),
            "head_known": life.head.is_some(),
            "supervisor_pid": std::process::id(),
            "args": if life.args.is_empty() { &self.args } else { &life.args },
            "hold": self.held(),
            "waits_for": self.waits_for(),
            "upgrade": self.upgrade(),
            "plans": self.plans(),
            "plan_errors": self.survey.as_ref().map(|s| json!(s.errors)).unwrap_or_else(|| json!([])),
            "last_upgrade": self.last_upgrade(),
            "validator": self.validator_status(),
            "readiness": self.readiness(),
            "error": self.error,
        })
    }

    /// Whether the node lives.
    pub(super) fn lives(&self) -> bool {
        matches!(self.state, State::Up | State::Stopping { .. } | State::Killing { .. }) && self.life.executed.is_some()
    }

    pub(super) fn version(&self) -> Option<String> {
        let staged = self.current.as_ref().and_then(|release| self.staged.get(release)).and_then(|s| s.version.clone());
        self.known
            .client_version
            .clone()
            .filter(|_| self.life.answered.is_some())
            .or(staged)
            .or_else(|| self.known.client_version.clone())
    }

    fn held(&self) -> Value {
        let State::Held { until, why } = self.state else { return Value::Null };
        if let Hold::Room(room) = why {
            // Nobody can tell when there will be.
            return json!({"reason": self.room(room), "until": Value::Null});
        }
        let left = until.saturating_sub(self.now).as_secs_f64().ceil();
        json!({"reason": self.why_held(), "until": rfc3339(unix_now() + left as u64)})
    }

    fn waits_for(&self) -> Option<String> {
        match &self.state {
            State::Held { why: Hold::Room(room), .. } => Some(format!("room: {}", self.room(*room))),
            State::Held { until, why: Hold::Signed } => {
                Some(format!("the end of the hold in {}", show_duration(secs(until.saturating_sub(self.now)))))
            }
            State::Hooking { told: Some(_), .. } => Some(format!("{} to end", self.hook_name())),
            State::Hooking { told: None, .. } => Some(self.hook_name()),
            State::Backoff { until } if self.journal.as_ref().is_some_and(|j| j.stage == Stage::Hook) => {
                let left = show_duration(secs(until.saturating_sub(self.now)));
                Some(format!("{} to be run again in {left}", self.hook_name()))
            }
            State::Backoff { until } => {
                let left = show_duration(secs(until.saturating_sub(self.now)));
                let why = match &self.life.refusal {
                    Some(Refusal::NotExecuted(why)) => format!(": {why}"),
                    _ => String::new(),
                };
                Some(format!("the node's restart in {left}{why}"))
            }
            State::Leaving { .. } if !self.told_all() => Some("DAEMON_EVENT_COMMAND to end".to_owned()),
            State::Deciding(exit) => Some(format!("what follows the node's end ({exit})")),
            State::Stopping { .. } if self.awaits_proposal => Some(super::proposal::QUIET.to_owned()),
            State::Stopping { .. } => Some(format!("the node (pid {}) to end", self.life.pid)),
            State::Killing { .. } => Some(format!("the node (pid {}) to end after KILL", self.life.pid)),
            State::Clearing { .. } if !self.holders.is_empty() => Some(format!("{} to end", list(&self.holders))),
            State::Working { .. } => self.next_try().filter(|_| self.step.is_none()),
            State::Boot | State::Starting | State::Up | State::Clearing { .. } | State::Leaving { .. } => None,
        }
    }

    /// When the step that failed is tried again, and why it did.
    fn next_try(&self) -> Option<String> {
        let retry = self.step_retry.as_ref()?;
        let left = show_duration(secs(retry.at.saturating_sub(self.now)));
        Some(format!("another try in {left}: {}", retry.fault))
    }

    fn upgrade(&self) -> Value {
        match &self.journal {
            Some(journal) => {
                let (phase, waits_for) = self.phase(journal);
                let progress = if self.progress.is_some() { json!(self.shown_progress()) } else { Value::Null };
                json!({"name": journal.name, "height": journal.height, "phase": phase, "waits_for": waits_for, "eta_seconds": Value::Null, "progress": progress})
            }
            None => match self.schedule.pending().next() {
                Some(plan) => {
                    let (phase, waits_for, eta) = self.waiting(plan);
                    json!({"name": plan.name, "height": plan.height, "phase": phase, "waits_for": waits_for, "eta_seconds": eta, "progress": self.fetched_so_far(plan), "checks": self.staging_checks(plan), "downtime": self.expected_downtime(plan)})
                }
                None => Value::Null,
            },
        }
    }

    /// The phase of the upgrade under way, and what it waits for.
    fn phase(&self, journal: &Journal) -> (&'static str, Option<String>) {
        match (journal.stage, &self.state) {
            (Stage::Return, State::Up) => ("reverting", Some(format!("release {} to show that it runs", journal.from))),
            (Stage::Restore | Stage::Back | Stage::Return, _) => ("reverting", self.waits_for()),
            (Stage::Stop, State::Working { .. }) => ("backup", self.waits_for()),
            (Stage::Stop, _) => ("stopping", self.waits_for()),
            (Stage::Hook, _) => ("hook", self.waits_for()),
            (Stage::Switch, _) => ("switch", self.waits_for()),
            (Stage::Trial, State::Up) if self.step.is_none() && self.step_retry.is_some() => ("trial", self.next_try()),
            (Stage::Trial, State::Up) => {
                let base = journal.head.or(self.life.first_head);
                let missing = base
                    .zip(self.life.head)
                    .map(|(base, head)| base.saturating_add(self.config.trial_blocks).saturating_sub(head));
                let left = self.config.trial_time.saturating_sub(self.age());
                let what = match (journal.proven, missing) {
                    (true, Some(missing)) => format!("{missing} more blocks until it is committed"),
                    (true, None) => "a head until it is committed".to_owned(),
                    (false, _) if !left.is_zero() => {
                        format!("{} more until it has proved itself", show_duration(secs(left)))
                    }
                    (false, Some(_)) => "its head to reach where the old release stopped".to_owned(),
                    (false, None) => "its RPC to answer".to_owned(),
                };
                ("trial", Some(what))
            }
            (Stage::Trial, _) => ("starting", self.waits_for()),
        }
    }

    /// What was looked at of a plan's release, and what was found.
    fn staging_checks(&self, plan: &Found) -> Value {
        self.staged.get(&plan.release).map_or_else(|| json!([]), |staged| json!(staged.checks))
    }

    /// How long the chain will go on without this node.
    fn expected_downtime(&self, plan: &Found) -> Option<String> {
        let staged = self.staged.get(&plan.release).filter(|staged| staged.problem().is_none())?;
        let copying = staged.backup.as_ref().map_or(0, |forecast| forecast.down_copy);
        Some(expected_downtime(self.survey.as_ref().and_then(|s| s.committed.as_ref()), copying))
    }

    /// The phase of a plan that waits, what it waits for, and about how many seconds that takes.
    fn waiting(&self, plan: &Found) -> (&'static str, String, Option<u64>) {
        let due = self.due_at(plan);
        let eta = self.time_until(plan).map(|left| left.as_secs());
        let (phase, problem) = match self.staged.get(&plan.release) {
            Some(staged) => match staged.problem() {
                None => ("staged", None),
                Some(problem) => ("scheduled", Some(format!("its release: {problem}"))),
            },
            None if self.staging.as_ref() == Some(&plan.release) => ("staging", None),
            None => ("scheduled", None),
        };
        let (phase, problem) = match self.missing(plan) {
            Some(missing) if self.fetched_so_far(plan).is_some() => ("staging", Some(missing)),
            Some(missing) => (phase, Some(missing)),
            None => (phase, problem),
        };
        let problem = problem.or_else(|| self.begin_error.clone().map(|why| format!("another try: {why}")));
        let waits_for = match (self.life.head, problem) {
            _ if !self.config.upgrade_enabled => "DAEMON_UPGRADE_ENABLED, which is false".to_owned(),
            (Some(_), None) if self.turn(plan).is_some() => self.turn(plan).unwrap_or_default(),
            (Some(head), Some(problem)) if head >= due => problem,
            (Some(head), None) if head >= due && self.now < self.begin_after => {
                format!("another try in {}", show_duration(secs(self.begin_after.saturating_sub(self.now))))
            }
            (None, problem) => format!(
                "block {}, and no head is known{}",
                plan.height,
                problem.map_or_else(String::new, |p| format!("; {p}"))
            ),
            (Some(head), problem) => {
                format!("block {} (head {head}){}", plan.height, problem.map_or_else(String::new, |p| format!("; {p}")))
            }
        };
        (phase, waits_for, eta)
    }

    fn plans(&self) -> Vec<Value> {
        let shape = |entry: &crate::schedule::Entry| {
            let plan = &entry.plan;
            let (state, note) = match &entry.standing {
                Standing::Pending if self.journal.as_ref().is_some_and(|j| j.digest.as_ref() == Some(&plan.digest)) => {
                    ("running", String::new())
                }
                Standing::Pending => {
                    let (phase, waits_for, _) = self.waiting(plan);
                    (phase, waits_for)
                }
                Standing::Done if self.on_trial() => ("trial", String::new()),
                Standing::Done => ("done", String::new()),
                Standing::Past(why) => ("past", why.clone()),
                Standing::Failed(why) => ("failed", format!("{why} (`wemixvisor upgrade retry {}`)", plan.name)),
                Standing::Conflict(why) => ("conflict", why.clone()),
                Standing::Held(why) => ("held", why.clone()),
            };
            json!({"name": plan.name, "height": plan.height, "state": state, "note": note, "file": plan.file, "description": plan.description, "batch": plan.batch})
        };
        self.schedule.entries.iter().map(shape).collect()
    }

    fn last_upgrade(&self) -> Value {
        let Some(last) = self.survey.as_ref().and_then(|s| s.last.as_ref()) else { return Value::Null };
        json!({
            "name": last.name,
            "result": last.result,
            "reason": last.reason,
            "finished": last.finished,
            "backup": last.backup,
            "downtime_ms": last.downtime_ms,
        })
    }
}

fn secs(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

/// `2h30m45s`, `0s`.
fn show_uptime(time: Duration) -> String {
    let shown = show_duration(secs(time));
    if shown == "0" { "0s".to_owned() } else { shown }
}
