//! Every decision of the supervisor, and nothing else: `step(now, event) -> effects`. No I/O, no clock, no logging here.
//!
//! A life of the node goes `Boot → Starting → Up`, and from `Up` either `Stopping → Clearing` (it was asked to end) or
//! `Deciding → …` (it ended by itself). With no node alive, `go` asks the journal what is next: start the node, or do a
//! step of an upgrade (`Working`) and ask again. Steps that need no node down (begin, prove, commit) run beside `Up`.
//! Every wait has its deadline in a field that `wake_at` reads and `tick` serves; each deadline is served once.

mod grace;
mod plans;
mod status;
mod trial;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use log::Level;

use self::grace::{Grace, Verdict, backoff, look_at_head_after};
use super::control::{Reply, Request};
use crate::config::{Config, Settings};
use crate::error::Code;
use crate::home::{Home, Release};
use crate::job::look::Survey;
use crate::job::probe::{Probed, Spec as ProbeSpec};
use crate::job::stage::Staged;
use crate::job::step::Step;
use crate::job::{Flags, Job, Note, Recorded, Report, clear};
use crate::journal::{Head, Identity, Journal, Known, Next, Outcome, Stage, next};
use crate::node_args;
use crate::proc::{Counters, Holder};
use crate::schedule::Schedule;

/// Time since the supervisor started, on the monotonic clock.
pub type Now = Duration;

/// A client of the control socket.
pub type ClientId = u64;

/// Who a child is. There is at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The node (first the exec shim, then the node itself).
    Node,
    /// The job that looks at plans, link and journal.
    Look,
    /// The job that asks the node.
    Probe,
    /// The job that checks a release.
    Stage,
    /// The job that does a durable step.
    Step,
    /// The job that waits until nobody holds the data.
    Clear,
    /// The job that reads the settings again.
    Reload,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It could not be started at all (errno).
    NotStarted(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}{}", name_of(*signal)),
            Exit::NotStarted(errno) => {
                write!(f, "no process could be made: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

fn name_of(signal: i32) -> &'static str {
    match signal {
        1 => " (HUP)",
        6 => " (ABRT)",
        9 => " (KILL)",
        11 => " (SEGV)",
        13 => " (PIPE)",
        15 => " (TERM)",
        _ => "",
    }
}

/// What a signal to the supervisor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sig {
    /// TERM, INT, QUIT: a gentle stop.
    Stop,
    /// HUP: read the settings again.
    Reload,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The loop begins.
    Booted,
    /// A job ended with its report, or failed.
    Done(Role, Result<Report, String>),
    /// The shim or a job told something on its way.
    Note(Role, Note),
    /// The shim became the node.
    Executed,
    /// The node's process, or the shim, ended.
    Ended(Exit),
    /// What the processes that were asked about have used.
    Sample(Counters),
    /// Something changed where plans and releases lie.
    FilesChanged,
    /// inotify cannot tell of all changes (or can again).
    Watching(bool),
    /// A signal came.
    Signal(Sig),
    /// A client asks.
    Asked(ClientId, Request),
    /// A client is gone.
    Left(ClientId),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start the node with these arguments.
    Launch(Vec<String>),
    /// Start a job.
    Start(Role, Job),
    /// Ask a child to end.
    Terminate(Role),
    /// End a child.
    Kill(Role),
    /// Look at what these processes and their descendants have used; their numbers, or the node's when empty.
    Sample(BTreeSet<u32>),
    /// Watch these directories.
    Watch(Vec<std::path::PathBuf>),
    /// Answer a client.
    Reply(ClientId, Reply),
    /// The node is up for the first time: tell who started us.
    Ready,
    /// Say this to the operator.
    Log(Level, String),
    /// Leave with this status; the public state and the reason are remembered.
    Exit(u8, &'static str, String),
}

/// What is to happen when no node lives any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Go on: the journal says with what.
    Go,
    /// Leave with this status.
    Exit(u8),
}

/// Where the supervisor stands.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Nothing was looked at yet.
    Boot,
    /// The exec shim runs.
    Starting,
    /// The node runs.
    Up,
    /// The node ended by itself; what follows depends on a look or a check under way.
    Deciding(Exit),
    /// No node lives until then.
    Backoff {
        /// When it is started.
        until: Now,
    },
    /// The node was asked to end.
    Stopping {
        /// What follows.
        then: Then,
    },
    /// The node was ended.
    Killing {
        /// What follows.
        then: Then,
    },
    /// The main process is gone; the data may still be held by what it started.
    Clearing {
        /// What follows.
        then: Then,
        /// Whether who holds it is ended at once.
        kill: bool,
        /// How the node ended.
        ended: Option<String>,
    },
    /// No node lives; a step runs, or waits to be tried again.
    Working {
        /// What follows.
        then: Then,
    },
    /// Jobs are waited for, then the program ends.
    Leaving {
        /// The exit status.
        code: u8,
    },
}

/// One life of the node, from exec to end.
#[derive(Clone, Debug, Default, PartialEq)]
struct Life {
    pid: u32,
    launched: Now,
    executed: Option<Now>,
    ready: bool,
    release: Option<Release>,
    args: Vec<String>,
    /// What the shim said instead of becoming the node.
    refusal: Option<Refusal>,
    head: Option<u64>,
    first_head: Option<u64>,
    head_time: Option<u64>,
    peers: Option<u64>,
    syncing: Option<u64>,
    latency_ms: u64,
    answered: Option<Now>,
    silent_since: Option<Now>,
    rpc_error: Option<String>,
    foreign: Option<String>,
    identity: Option<Identity>,
    block_time: Option<Duration>,
    progress: Now,
    unanswered: u32,
    said_open: bool,
}

/// Why a shim did not become the node.
#[derive(Clone, Debug, PartialEq)]
enum Refusal {
    Busy(Vec<Holder>),
    Refused(String),
    NotExecuted(String),
}

/// A look under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looking {
    No,
    Yes,
    /// What it reads may be older than what happened since: it is repeated.
    Stale,
}

/// A client that waits for something to happen.
#[derive(Clone, Debug, PartialEq)]
enum Wish {
    /// The node is up again.
    Restarted,
    /// The upgrade to this release has begun; `None` once it may.
    Begun(crate::home::Name, Release),
    /// The step that was asked for is done.
    Stepped,
    /// The settings were read.
    Reloaded,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Config,
    home: Home,
    flags: Flags,
    /// Started by `start`: who started us waits for the first life, which must come up.
    background: bool,
    args: Vec<String>,
    state: State,
    life: Life,
    survey: Option<Survey>,
    schedule: Schedule,
    initial: Vec<String>,
    current: Option<Release>,
    journal: Option<Journal>,
    known: Known,
    restarts: u32,
    watching: bool,
    looking: Looking,
    look_wanted: bool,
    looked_last: Option<Now>,
    probing: bool,
    staging: Option<Release>,
    staged: BTreeMap<Release, Staged>,
    stage_tries: BTreeMap<Release, (u32, Now)>,
    step: Option<Step>,
    step_retry: Option<(Now, Step)>,
    step_failures: u32,
    begin_after: Now,
    /// The upgrade cannot go on for want of a disk to write to: the node runs, the step is tried again beside it.
    parked: bool,
    cancel: bool,
    appeared: BTreeSet<String>,
    grace: Grace,
    holders: Vec<Holder>,
    stop_began: Option<Now>,
    clean_stop: Option<bool>,
    switched: Option<Now>,
    start_ms: Option<u64>,
    wishes: Vec<(ClientId, Wish)>,
    error: Option<String>,
    told_errors: BTreeMap<String, String>,
    told_waiting: BTreeMap<Release, String>,
    no_head_since: Option<Now>,
    sample_at: Option<Now>,
    probe_at: Option<Now>,
    probe_late: Option<Now>,
    look_at: Option<Now>,
    ready_at: Option<Now>,
    alarm_at: Option<Now>,
    leave_at: Option<Now>,
    now: Now,
}

/// A node that lives this long is up.
const READY_AFTER: Duration = Duration::from_secs(1);
/// After this long in health the count of restarts begins anew.
const CALM_AFTER: Duration = Duration::from_mins(10);
/// A node that ended by itself with status 0 before this, without ever having answered, was a command.
const COMMAND_TIME: Duration = Duration::from_mins(1);
/// How long a pending plan may be without a head until it is an alarm, and how often that is repeated.
const NO_HEAD_ALARM: Duration = Duration::from_mins(5);
const NO_HEAD_REPEAT: Duration = Duration::from_mins(10);
/// How long a probe may take before it is ended: a call's time and a half per address at most.
const PROBE_TIME: Duration = Duration::from_secs(8);
/// Where inotify tells of changes, a look is only a safeguard.
const SAFEGUARD_LOOK: Duration = Duration::from_secs(30);
/// The shortest pause between two looks that changed files ask for.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How long a step that is under way may hold up the end of the program.
const STEP_TIME: Duration = Duration::from_secs(10);

impl Machine {
    /// A machine that has done nothing yet.
    pub fn new(config: Config, home: Home, flags: Flags, background: bool, args: Vec<String>) -> Machine {
        Machine {
            config,
            home,
            flags,
            background,
            args,
            state: State::Boot,
            life: Life::default(),
            survey: None,
            schedule: Schedule::default(),
            initial: Vec::new(),
            current: None,
            journal: None,
            known: Known::default(),
            restarts: 0,
            watching: false,
            looking: Looking::No,
            look_wanted: false,
            looked_last: None,
            probing: false,
            staging: None,
            staged: BTreeMap::new(),
            stage_tries: BTreeMap::new(),
            step: None,
            step_retry: None,
            step_failures: 0,
            begin_after: Now::ZERO,
            parked: false,
            cancel: false,
            appeared: BTreeSet::new(),
            grace: Grace::default(),
            holders: Vec::new(),
            stop_began: None,
            clean_stop: None,
            switched: None,
            start_ms: None,
            wishes: Vec::new(),
            error: None,
            told_errors: BTreeMap::new(),
            told_waiting: BTreeMap::new(),
            no_head_since: None,
            sample_at: None,
            probe_at: None,
            probe_late: None,
            look_at: None,
            ready_at: None,
            alarm_at: None,
            leave_at: None,
            now: Now::ZERO,
        }
    }

    /// The settings in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tells the node's process id, which the reactor alone knows.
    pub fn launched(&mut self, pid: u32) {
        self.life.pid = pid;
    }

    /// Takes in what happened and says what is to be done.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        self.now = now;
        match event {
            Event::Booted => self.ask_look(out),
            Event::Done(Role::Look, result) => self.looked(result, out),
            Event::Done(Role::Probe, result) => self.probed(result, out),
            Event::Done(Role::Stage, result) => self.stage_done(result, out),
            Event::Done(Role::Step, result) => self.step_done(result, out),
            Event::Done(Role::Clear, result) => self.cleared(result, out),
            Event::Done(Role::Reload, result) => self.reloaded(result, out),
            // The node reports its end by `Ended`.
            Event::Done(Role::Node, _) => {}
            Event::Note(Role::Clear, Note::Holders(holders)) => self.still_held(holders, out),
            Event::Note(_, note) => self.noted(note, out),
            Event::Executed => self.executed(out),
            Event::Ended(exit) => self.ended(exit, out),
            Event::Sample(counters) => self.sampled(counters, out),
            Event::FilesChanged => self.want_look(),
            Event::Watching(watching) => {
                self.watching = watching;
                self.plan_look();
            }
            Event::Signal(Sig::Stop) => {
                say(out, Level::Info, format!("asked to stop{}", self.what_is_waited_for()));
                self.stop(Then::Exit(0), out);
            }
            Event::Signal(Sig::Reload) => out.push(Effect::Start(Role::Reload, Job::Reload(self.flags.clone()))),
            Event::Asked(client, request) => self.asked(client, request, out),
            Event::Left(client) => self.wishes.retain(|(c, _)| *c != client),
            Event::Tick => {}
        }
        self.tick(out);
    }

    // ---- time -------------------------------------------------------------------------------------------------

    /// When something is to happen without any event.
    pub fn wake_at(&self) -> Option<Now> {
        let backoff = if let State::Backoff { until } = self.state { Some(until) } else { None };
        let stage = self.next_stage_try();
        let retry = self.step_retry.as_ref().map(|(at, _)| *at);
        [
            backoff,
            stage,
            retry,
            self.sample_at,
            self.probe_at,
            self.probe_late,
            self.look_at,
            self.ready_at,
            self.alarm_at,
            self.leave_at,
            self.trial_mark(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn due(&self, at: Option<Now>) -> bool {
        at.is_some_and(|at| self.now >= at)
    }

    fn tick(&mut self, out: &mut Vec<Effect>) {
        if let State::Backoff { until } = self.state
            && self.now >= until
        {
            self.go(out);
        }
        if self.due(self.sample_at) {
            self.sample_at = Some(self.now + Duration::from_secs(1));
            out.push(Effect::Sample(self.holders.iter().map(|h| h.pid).collect()));
        }
        if self.due(self.ready_at) {
            self.ready_at = None;
            self.ready(out);
        }
        if self.due(self.probe_late) {
            self.probe_late = None;
            out.push(Effect::Kill(Role::Probe));
        }
        if self.due(self.probe_at) {
            self.probe_at = None;
            self.probe(out);
        }
        if self.due(self.look_at) {
            self.look_at = None;
            self.ask_look(out);
        }
        if self.due(self.next_stage_try()) {
            self.stage_next(out);
        }
        if let Some((at, step)) = self.step_retry.clone()
            && self.now >= at
            && self.step.is_none()
        {
            self.step_retry = None;
            self.start_step(step, out);
        }
        if self.due(self.alarm_at) {
            self.alarm(out);
        }
        if self.due(self.leave_at) {
            self.leave_at = None;
            out.push(Effect::Kill(Role::Step));
        }
        if self.due(self.trial_mark()) {
            self.judge(out);
        }
        if self.restarts > 0 && self.state == State::Up && self.healthy() && self.age() >= CALM_AFTER {
            self.restarts = 0;
        }
    }

    /// How long the node has run.
    fn age(&self) -> Duration {
        self.life.executed.map_or(Duration::ZERO, |at| self.now.saturating_sub(at))
    }

    // ---- the life of the node ---------------------------------------------------------------------------------

    /// No node lives and nobody holds the data: whatever is next. The journal alone says what that is.
    fn go(&mut self, out: &mut Vec<Effect>) {
        if self.step.is_some() {
            self.state = State::Working { then: Then::Go };
            return;
        }
        if self.step_retry.is_some() && !self.parked {
            self.state = State::Working { then: Then::Go };
            return;
        }
        if let Some((outcome, reason)) = self.reason_to_turn_back() {
            self.state = State::Working { then: Then::Go };
            self.start_step(Step::TurnBack { outcome, reason }, out);
            return;
        }
        match next(self.journal.as_ref()) {
            _ if self.parked => self.launch(out),
            Next::Start => self.launch(out),
            Next::Switch => {
                self.state = State::Working { then: Then::Go };
                let stop_ms = self.stop_began.map(|at| ms(self.now.saturating_sub(at)));
                self.start_step(Step::Switch { stop_ms, clean_stop: self.clean_stop }, out);
            }
            Next::Back => {
                self.state = State::Working { then: Then::Go };
                self.start_step(Step::Back, out);
            }
        }
    }

    fn launch(&mut self, out: &mut Vec<Effect>) {
        self.state = State::Starting;
        self.life = Life { launched: self.now, progress: self.now, ..Life::default() };
        self.holders.clear();
        out.push(Effect::Launch(self.args.clone()));
    }

    fn noted(&mut self, note: Note, out: &mut Vec<Effect>) {
        match note {
            Note::Busy(holders) => self.life.refusal = Some(Refusal::Busy(holders)),
            Note::Refused(why) => self.life.refusal = Some(Refusal::Refused(why)),
            Note::NotExecuted(why) => self.life.refusal = Some(Refusal::NotExecuted(why)),
            Note::Recorded(Recorded { release, args, starts }) => {
                if let Some(journal) = self.journal.as_mut().filter(|j| j.stage == Stage::Trial && j.to == release) {
                    journal.starts = starts.max(journal.starts);
                }
                self.current = Some(release.clone());
                self.life.release = Some(release);
                self.life.args = args;
            }
            Note::Warning(text) => say(out, Level::Warn, text),
            Note::Holders(_) => {}
        }
    }

    fn executed(&mut self, out: &mut Vec<Effect>) {
        if self.life.refusal.is_some() {
            return;
        }
        self.life.executed = Some(self.now);
        self.life.progress = self.now;
        if let Some(at) = self.switched.take() {
            self.start_ms = Some(ms(self.now.saturating_sub(at)));
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
        self.plan_alarm();
        if self.on_trial() {
            self.grace = Grace::default();
            self.sample_at = Some(self.now);
        }
        self.after_up(out);
    }

    /// What may be done beside a running node: end an upgrade that went back, begin one that is due.
    fn after_up(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Up || self.step.is_some() || self.step_retry.is_some() {
            return;
        }
        if let Some((outcome, reason)) = self.reason_to_turn_back() {
            return self.start_step(Step::TurnBack { outcome, reason }, out);
        }
        match self.journal.as_ref().map(|j| (j.stage, j.from.clone())) {
            Some((Stage::Back, from)) if self.current.as_ref() == Some(&from) => self.start_step(Step::Back, out),
            Some((Stage::Stop | Stage::Back, _)) => self.stop(Then::Go, out),
            Some((Stage::Trial, _)) => self.judge(out),
            None => self.consider(out),
        }
    }

    fn ready(&mut self, out: &mut Vec<Effect>) {
        self.life.ready = true;
        if self.background {
            self.background = false;
            out.push(Effect::Ready);
        }
        let pid = self.life.pid;
        self.grant(Wish::Restarted, Reply::done(serde_json::json!({"pid": pid})), out);
    }

    fn ended(&mut self, exit: Exit, out: &mut Vec<Effect>) {
        self.sample_at = None;
        self.probe_at = None;
        self.ready_at = None;
        self.alarm_at = None;
        match self.state.clone() {
            State::Stopping { then } => {
                let clean = exit == Exit::Code(0);
                self.clean_stop = Some(clean);
                let level = if clean { Level::Info } else { Level::Warn };
                say(out, level, format!("the node ended: {exit}"));
                self.clear(then, false, Some(exit.to_string()), out);
            }
            State::Killing { then } => {
                self.clean_stop = Some(false);
                self.clear(then, matches!(then, Then::Exit(_)), Some(exit.to_string()), out);
            }
            State::Starting => match self.life.refusal.clone() {
                Some(Refusal::Busy(holders)) => {
                    say(out, Level::Warn, format!("the data is still held by {}: waiting for its end", list(&holders)));
                    self.clear(Then::Go, false, None, out);
                }
                Some(Refusal::Refused(why)) if self.on_trial() => self.turn_back_or_fail(Code::Refused, why, out),
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
                // What the node wrote just before its end must be seen before it is decided upon.
                if !self.watching || self.look_wanted {
                    self.ask_look(out);
                }
                self.decide(out);
            }
            State::Boot
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Clearing { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    /// The node ended unasked. An upgrade that is under way or due comes before the rules for crashes.
    fn decide(&mut self, out: &mut Vec<Effect>) {
        let State::Deciding(exit) = self.state.clone() else { return };
        if self.looking != Looking::No || self.step.is_some() {
            return;
        }
        let ended = Some(exit.to_string());
        match self.journal.as_ref().map(|j| (j.stage, j.proven)) {
            Some((Stage::Stop | Stage::Back, _)) if !self.parked => return self.clear(Then::Go, false, ended, out),
            Some((Stage::Trial, false)) if self.may_go_back() => {
                if self.reason_to_turn_back().is_some() {
                    return self.clear(Then::Go, false, ended, out);
                }
                self.restarts += 1;
                return self.back_off("the new release is tried again", out);
            }
            Some((Stage::Stop | Stage::Back | Stage::Trial, _)) => {}
            None => match self.begin_after_death(out) {
                plans::AfterDeath::Begun | plans::AfterDeath::Wait => return,
                plans::AfterDeath::None => {}
            },
        }
        let life = &self.life;
        if exit == Exit::Code(0)
            && life.executed.is_some()
            && life.answered.is_none()
            && self.age() < COMMAND_TIME
            && self.journal.is_none()
        {
            say(out, Level::Info, "the command is done".to_owned());
            return self.clear(Then::Exit(0), false, ended, out);
        }
        let what =
            if exit == Exit::Code(0) { "ended itself (exit status 0)".to_owned() } else { format!("failed: {exit}") };
        let why = match (&life.refusal, self.background && !life.ready) {
            (Some(Refusal::NotExecuted(why)), true) => Some(why.clone()),
            (_, true) => Some(format!("the node {what} before it was up")),
            _ if !self.config.restart_on_failure => {
                Some(format!("the node {what}; DAEMON_RESTART_ON_FAILURE is false"))
            }
            _ if self.restarts >= self.config.max_restarts => {
                Some(format!("the node {what}; {} restarts in a row did not help (DAEMON_MAX_RESTARTS)", self.restarts))
            }
            _ => None,
        };
        if let Some(why) = why {
            self.error = Some(why);
            return self.clear(Then::Exit(Code::Node as u8), false, ended, out);
        }
        self.restarts += 1;
        self.back_off(&format!("restart {} of {}", self.restarts, self.config.max_restarts), out);
    }

    fn back_off(&mut self, what: &str, out: &mut Vec<Effect>) {
        let pause = backoff(self.config.restart_backoff, self.restarts);
        if pause.is_zero() {
            return self.go(out);
        }
        say(out, Level::Info, format!("{what} in {}", crate::config::show_duration(pause)));
        self.state = State::Backoff { until: self.now + pause };
    }

    /// The node cannot be started and trying again would not help.
    fn fail(&mut self, code: Code, why: String, out: &mut Vec<Effect>) {
        self.error = Some(why);
        self.leave(code as u8, out);
    }

    fn turn_back_or_fail(&mut self, code: Code, why: String, out: &mut Vec<Effect>) {
        if self.may_go_back() {
            self.state = State::Working { then: Then::Go };
            self.start_step(Step::TurnBack { outcome: Outcome::Reverted, reason: why }, out);
        } else {
            self.fail(code, why, out);
        }
    }

    // ---- stopping ---------------------------------------------------------------------------------------------

    /// Ends the node gently, whatever is under way, and says what follows.
    fn stop(&mut self, then: Then, out: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Starting | State::Up => {
                self.stop_began = Some(self.now);
                self.clean_stop = None;
                self.state = State::Stopping { then };
                self.grace = Grace::default();
                self.holders.clear();
                self.sample_at = Some(self.now);
                self.probe_at = None;
                self.ready_at = None;
                out.push(Effect::Terminate(Role::Node));
            }
            State::Stopping { .. } => self.state = State::Stopping { then: self.later(then) },
            State::Killing { .. } => self.state = State::Killing { then: self.later(then) },
            State::Clearing { kill, ended, .. } => self.state = State::Clearing { then: self.later(then), kill, ended },
            State::Working { .. } => {
                self.state = State::Working { then: self.later(then) };
                if let Then::Exit(_) = then {
                    self.step_retry = None;
                    self.leave_at = Some(self.now + STEP_TIME);
                    if self.step.is_none() {
                        self.settle(then, out);
                    }
                }
            }
            State::Backoff { .. } if then == Then::Go => self.go(out),
            // What the node left behind may still hold the data.
            State::Deciding(exit) if then != Then::Go => self.clear(then, false, Some(exit.to_string()), out),
            State::Backoff { .. } => self.clear(then, false, None, out),
            State::Boot if then != Then::Go => self.settle(then, out),
            State::Boot | State::Deciding(_) | State::Leaving { .. } => {}
        }
    }

    /// A wish to leave is never taken back by a wish to go on.
    fn later(&self, then: Then) -> Then {
        self.then().filter(|already| *already != Then::Go).unwrap_or(then)
    }

    /// What is to follow when no node lives any more.
    fn then(&self) -> Option<Then> {
        match &self.state {
            State::Stopping { then }
            | State::Killing { then }
            | State::Clearing { then, .. }
            | State::Working { then } => Some(*then),
            State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Leaving { .. } => None,
        }
    }

    fn kill(&mut self, out: &mut Vec<Effect>) {
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
            State::Clearing { kill: true, .. }
            | State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    fn sampled(&mut self, counters: Counters, out: &mut Vec<Effect>) {
        self.grace.look(counters);
        match self.state {
            State::Stopping { .. } | State::Clearing { .. } => {
                if let Verdict::Over(why) = self.grace.verdict(self.config.shutdown_grace, self.config.shutdown_limit) {
                    say(out, Level::Error, format!("{why}: ended by KILL, this stop is UNCLEAN"));
                    self.kill(out);
                }
            }
            State::Up => {
                if self.grace.progress() {
                    self.life.progress = self.now;
                }
                if !self.on_trial() || self.life.answered.is_some() {
                    self.sample_at = None;
                }
                self.judge(out);
            }
            State::Boot
            | State::Starting
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Killing { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
    }

    // ---- nobody may be left -----------------------------------------------------------------------------------

    fn clear(&mut self, then: Then, kill: bool, ended: Option<String>, out: &mut Vec<Effect>) {
        self.grace = Grace::default();
        self.holders.clear();
        self.state = State::Clearing { then, kill, ended: ended.clone() };
        out.push(Effect::Start(Role::Clear, Job::Clear(clear::Spec { kill, ended })));
    }

    fn still_held(&mut self, holders: Vec<Holder>, out: &mut Vec<Effect>) {
        if let State::Clearing { kill: false, .. } = self.state {
            say(out, Level::Warn, format!("the data is still held by {}: waiting for its end", list(&holders)));
            self.holders = holders;
            self.sample_at.get_or_insert(self.now);
        }
    }

    fn cleared(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let State::Clearing { then, kill, ended } = self.state.clone() else { return };
        self.sample_at = None;
        if let Err(why) = result {
            // The job was ended to be started again with KILL, or could not do its work: without it nobody starts.
            if !kill {
                say(out, Level::Error, format!("cannot tell whether the data is free: {why}"));
            }
            out.push(Effect::Start(Role::Clear, Job::Clear(clear::Spec { kill, ended })));
            return;
        }
        self.settle(then, out);
    }

    fn settle(&mut self, then: Then, out: &mut Vec<Effect>) {
        match then {
            Then::Go => self.go(out),
            Then::Exit(_) if self.step.is_some() => {
                self.leave_at = Some(self.now + STEP_TIME);
                self.state = State::Working { then };
            }
            Then::Exit(code) => self.leave(code, out),
        }
    }

    fn leave(&mut self, code: u8, out: &mut Vec<Effect>) {
        self.state = State::Leaving { code };
        for (client, wish) in std::mem::take(&mut self.wishes) {
            let why = self.error.clone().unwrap_or_else(|| "the supervisor was asked to stop".to_owned());
            let code = if wish == Wish::Restarted && code == Code::Node as u8 { Code::Node } else { Code::Failed };
            out.push(Effect::Reply(client, Reply::error(code, why)));
        }
        let (state, reason) = match &self.error {
            Some(why) => ("error", why.clone()),
            None if code == 0 => ("stopped", "it was asked to".to_owned()),
            None => ("error", format!("it left with status {code}")),
        };
        if state == "error" {
            say(out, Level::Error, reason.clone());
        }
        out.push(Effect::Exit(code, state, reason));
    }

    // ---- looking ----------------------------------------------------------------------------------------------

    fn ask_look(&mut self, out: &mut Vec<Effect>) {
        match self.looking {
            Looking::No => {
                self.looking = Looking::Yes;
                self.look_at = None;
                self.look_wanted = false;
                self.looked_last = Some(self.now);
                out.push(Effect::Start(Role::Look, Job::Look));
            }
            Looking::Yes | Looking::Stale => self.looking = Looking::Stale,
        }
    }

    /// Something changed: look now, but not all the time where things change all the time.
    fn want_look(&mut self) {
        self.look_wanted = true;
        let pause = LOOK_PAUSE.min(self.config.poll_interval);
        let soon = self.looked_last.map_or(self.now, |last| self.now.max(last + pause));
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
    }

    fn plan_look(&mut self) {
        let pause =
            if self.watching { SAFEGUARD_LOOK.max(self.config.poll_interval) } else { self.config.poll_interval };
        self.look_at = Some(self.now + pause);
    }

    fn looked(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let stale = self.looking == Looking::Stale;
        self.looking = Looking::No;
        match result {
            Ok(Report::Surveyed(survey)) if !stale || self.state == State::Boot => self.surveyed(*survey, out),
            Ok(_) => {}
            Err(why) => say(out, Level::Warn, format!("cannot look for plans: {why}")),
        }
        if stale {
            self.ask_look(out);
        } else if !self.look_wanted {
            self.plan_look();
        }
        self.decide(out);
    }

    fn surveyed(&mut self, survey: Survey, out: &mut Vec<Effect>) {
        out.push(Effect::Watch(if survey.watchable { survey.watch.clone() } else { Vec::new() }));
        if self.state == State::Boot {
            self.known = survey.known.clone();
            match &survey.journal {
                Ok(journal) => self.journal.clone_from(journal),
                Err(why) => return self.fail(Code::Refused, why.clone(), out),
            }
        }
        match &survey.current {
            Ok(release) => self.current = Some(release.clone()),
            Err(why) if self.state == State::Boot => return self.fail(Code::Refused, why.clone(), out),
            Err(why) => self.tell_once("current", why, out),
        }
        self.take_plans(survey, out);
        if self.state == State::Boot {
            if let Some(journal) = &self.journal {
                say(out, Level::Info, format!("upgrade {} was under way: it is resumed", journal.name));
            }
            self.go(out);
        } else {
            self.after_up(out);
        }
    }

    fn tell_once(&mut self, about: &str, text: &str, out: &mut Vec<Effect>) {
        if self.told_errors.get(about).is_none_or(|told| told != text) {
            self.told_errors.insert(about.to_owned(), text.to_owned());
            say(out, Level::Error, text.to_owned());
        }
    }

    // ---- asking the node --------------------------------------------------------------------------------------

    fn probe(&mut self, out: &mut Vec<Effect>) {
        let Some(release) = self.life.release.clone().filter(|_| self.state == State::Up && !self.probing) else {
            return;
        };
        self.probing = true;
        let addresses = node_args::addresses(
            &self.life.args,
            self.home.binary_name(),
            &self.config.rpc_address,
            self.config.rpc_address_given,
        );
        let count = u32::try_from(addresses.len()).unwrap_or(1).max(1);
        self.probe_late = Some(self.now + PROBE_TIME * count);
        let spec = ProbeSpec {
            addresses,
            release,
            identity: self.life.identity.is_none(),
            remember_identity: !self.on_trial() || self.journal.as_ref().is_some_and(|j| j.proven),
        };
        out.push(Effect::Start(Role::Probe, Job::Probe(spec)));
    }

    fn probed(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        self.probing = false;
        self.probe_late = None;
        if self.state != State::Up {
            return;
        }
        match result {
            Ok(Report::Probed(probed)) if probed.foreign => {
                let text = format!("{} answers, but it is not this node (head {})", probed.address, probed.head);
                if self.life.foreign.as_ref() != Some(&text) {
                    say(out, Level::Warn, text.clone());
                }
                self.life.foreign = Some(text);
                self.silent("another node answers there".to_owned());
            }
            Ok(Report::Probed(probed)) => self.heard(*probed, out),
            Ok(_) => self.silent("the probe gave no answer".to_owned()),
            Err(why) => self.silent(why),
        }
        self.plan_probe();
        self.plan_alarm();
        self.after_up(out);
    }

    fn silent(&mut self, why: String) {
        self.life.rpc_error = Some(why);
        self.life.silent_since.get_or_insert(self.now);
        self.life.unanswered = self.life.unanswered.saturating_add(1);
    }

    fn heard(&mut self, probed: Probed, out: &mut Vec<Effect>) {
        let life = &mut self.life;
        if let (Some(at), Some(before)) = (life.answered, life.head)
            && probed.head > before
            && let Ok(blocks) = u32::try_from(probed.head - before)
        {
            // The mean of the last stretch and of what was thought before: one late block is no new pace.
            let stretch = self.now.saturating_sub(at) / blocks;
            life.block_time = Some(life.block_time.map_or(stretch, |mean| (mean + stretch) / 2));
        }
        if life.head.is_none() {
            say(out, Level::Info, format!("the node answers at {} head={}", probed.address, probed.head));
        }
        life.answered = if life.head == Some(probed.head) { life.answered.or(Some(self.now)) } else { Some(self.now) };
        life.head = Some(probed.head);
        life.first_head.get_or_insert(probed.head);
        life.head_time = probed.head_time;
        life.peers = probed.peers;
        life.syncing = probed.syncing;
        life.latency_ms = probed.latency_ms;
        life.rpc_error = None;
        life.silent_since = None;
        life.foreign = None;
        life.progress = self.now;
        life.unanswered = 0;
        if let Some(identity) = probed.identity {
            if !self.on_trial() {
                if let Some(what) = identity.contradiction(&self.known.identity) {
                    say(out, Level::Warn, format!("the node is not the one that ran here before: {what}"));
                }
                self.known.identity = identity.clone().or(&self.known.identity);
            }
            self.life.identity = Some(identity);
        }
        if probed.version.is_some() {
            self.known.client_version = probed.version;
        }
        if let Some(release) = self.life.release.clone() {
            self.known.head = Some(Head { number: probed.head, seen: 0, release });
        }
        self.head_known(out);
    }

    fn plan_probe(&mut self) {
        let far = self.config.height_poll_interval;
        let pause = if self.life.unanswered > 0 {
            // A node that comes up is looked at closely at first, a silent one less and less.
            Duration::from_millis(200).saturating_mul(1 << self.life.unanswered.min(10).saturating_sub(1)).min(far)
        } else if self.journal.is_some() {
            far.min(Duration::from_secs(1))
        } else if self.schedule.pending().next().is_none() {
            // Nobody waits for a height: this is about health alone.
            self.config.health_check_interval
        } else {
            let next = self.schedule.next(self.life.head, self.lead());
            let missing = next.and_then(|plan| {
                Some(crate::schedule::due_at(plan.height, self.lead()).saturating_sub(self.life.head?))
            });
            look_at_head_after(missing, self.life.block_time, far)
        };
        self.probe_at = Some(self.now + pause);
    }

    fn plan_alarm(&mut self) {
        let needed = self.state == State::Up && self.life.head.is_none() && self.schedule.pending().next().is_some();
        if !needed {
            self.alarm_at = None;
            if self.life.head.is_some() {
                self.no_head_since = None;
            }
        } else if self.alarm_at.is_none() {
            let since = *self.no_head_since.get_or_insert(self.now);
            self.alarm_at = Some((since + NO_HEAD_ALARM).max(self.now));
        }
    }

    fn alarm(&mut self, out: &mut Vec<Effect>) {
        self.alarm_at = Some(self.now + NO_HEAD_REPEAT);
        if let Some(plan) = self.schedule.pending().next() {
            let why = self.life.rpc_error.clone().unwrap_or_else(|| "the node was not asked yet".to_owned());
            say(
                out,
                Level::Error,
                format!(
                    "upgrade {} waits for block {}, but no head is known: {why}; set DAEMON_RPC_ADDRESS or enable the node's RPC",
                    plan.name, plan.height
                ),
            );
        }
    }

    /// Whether the node is well: it lives, and it answers once it has answered.
    fn healthy(&self) -> bool {
        self.state == State::Up
            && self.life.silent_since.is_none_or(|_| self.life.answered.is_none())
            && !self.headless()
    }

    /// Whether a plan has been waiting for too long for a head to be known.
    fn headless(&self) -> bool {
        self.life.head.is_none()
            && self.schedule.pending().next().is_some()
            && self.no_head_since.is_some_and(|since| self.now.saturating_sub(since) >= NO_HEAD_ALARM)
    }

    // ---- settings ---------------------------------------------------------------------------------------------

    fn reloaded(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let outcome = match result {
            Ok(Report::Settings(settings)) => self.take_settings(&settings, out),
            Ok(_) => Err("the settings could not be read".to_owned()),
            Err(why) => Err(why),
        };
        match outcome {
            Ok(()) => {
                say(out, Level::Info, "the settings were read again".to_owned());
                self.grant(Wish::Reloaded, Reply::done(serde_json::json!({})), out);
            }
            Err(why) => {
                say(out, Level::Error, format!("the settings stay as they were: {}", why.replace('\n', "; ")));
                self.grant(Wish::Reloaded, Reply::error(Code::Usage, why), out);
            }
        }
    }

    fn take_settings(&mut self, settings: &Settings, out: &mut Vec<Effect>) -> Result<(), String> {
        let config = settings.config().map_err(|e| e.message)?;
        if config.home != self.config.home || config.name != self.config.name {
            return Err("DAEMON_HOME and DAEMON_NAME cannot change while a supervisor runs: stop it first".to_owned());
        }
        for warning in &settings.warnings {
            say(out, Level::Warn, warning.clone());
        }
        self.config = config;
        self.plan_look();
        if self.state == State::Up && !self.probing {
            self.plan_probe();
        }
        Ok(())
    }

    fn grant(&mut self, wish: Wish, reply: Reply, out: &mut Vec<Effect>) {
        let (granted, rest) = std::mem::take(&mut self.wishes).into_iter().partition(|(_, w)| *w == wish);
        self.wishes = rest;
        for (client, _) in granted {
            out.push(Effect::Reply(client, reply.clone()));
        }
    }

    fn asked(&mut self, client: ClientId, request: Request, out: &mut Vec<Effect>) {
        match request {
            Request::Status => {
                let status = self.status();
                out.push(Effect::Reply(client, Reply::done(status)));
            }
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
                    self.kill(out);
                }
                out.push(Effect::Reply(client, Reply::done(serde_json::json!({}))));
            }
            Request::Restart { args } => self.restart(client, args, out),
            Request::Reload { flags } => {
                self.flags.settings.extend(flags);
                self.wishes.push((client, Wish::Reloaded));
                out.push(Effect::Start(Role::Reload, Job::Reload(self.flags.clone())));
            }
            Request::Cancel { name } => self.ask_cancel(client, &name, out),
            Request::Now { name, release } => self.ask_now(client, name, release, out),
            Request::Revert { to } => self.ask_revert(client, to, out),
        }
    }

    fn restart(&mut self, client: ClientId, args: Option<Vec<String>>, out: &mut Vec<Effect>) {
        let upgrading = self.journal.as_ref().is_some_and(|j| j.stage != Stage::Trial) && !self.parked;
        let leaving = matches!(self.later(Then::Go), Then::Exit(_)) || matches!(self.state, State::Leaving { .. });
        if upgrading || leaving {
            let why = if leaving { "the supervisor is being stopped" } else { "an upgrade is under way" };
            out.push(Effect::Reply(client, Reply::error(Code::Refused, format!("{why}: try again when it is over"))));
            return;
        }
        if let Some(args) = args {
            self.args = args;
        }
        say(out, Level::Info, "asked to restart the node".to_owned());
        self.restarts = 0;
        self.wishes.push((client, Wish::Restarted));
        self.stop(Then::Go, out);
    }

    fn what_is_waited_for(&self) -> String {
        match &self.state {
            State::Stopping { .. } => {
                format!("; waiting for the node (pid {}) to end for {} s already", self.life.pid, self.grace.looks())
            }
            State::Killing { .. } => format!("; waiting for the node (pid {}), which was sent KILL", self.life.pid),
            State::Clearing { .. } if !self.holders.is_empty() => {
                format!("; waiting for {} to end", list(&self.holders))
            }
            State::Working { .. } => "; waiting for a step of the upgrade to end".to_owned(),
            State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Clearing { .. }
            | State::Leaving { .. } => String::new(),
        }
    }
}

fn say(out: &mut Vec<Effect>, level: Level, text: String) {
    out.push(Effect::Log(level, text));
}

fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "a process that cannot be seen from here".to_owned();
    }
    holders.iter().map(|h| format!("{} (pid {})", h.command, h.pid)).collect::<Vec<_>>().join(", ")
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Without the part that nobody reads: whole seconds, or milliseconds below one.
fn whole(time: Duration) -> Duration {
    if time.as_secs() > 0 {
        Duration::from_secs(time.as_secs())
    } else {
        Duration::from_millis(u64::from(time.subsec_millis()))
    }
}
