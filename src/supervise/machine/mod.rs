//! Every decision of the supervisor, and nothing else: `step(now, event) -> effects`. No I/O, no clock, no logging here.
//!
//! A life of the node goes `Boot → Starting → Up`, and from `Up` either `Stopping → Clearing` (it was asked to end) or
//! `Deciding → …` (it ended by itself). With no node alive, `go` asks the journal what is next: start the node, or do a
//! step of an upgrade (`Working`) and ask again. Steps that need no node down (begin, prove, commit) run beside `Up`.
//! Every wait has its deadline in a field that `wake_at` reads and `tick` serves; each deadline is served once.

mod asking;
mod backup;
mod ending;
mod events;
mod fetching;
mod grace;
mod health;
mod hold;
mod hook;
mod life;
mod metrics;
mod plans;
mod proposal;
mod requests;
mod rolling;
mod status;
mod steps;
mod trial;
mod trim;

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
use crate::job::clear::{self, list};
use crate::job::look::Survey;
use crate::job::probe::{Probed, Spec as ProbeSpec};
use crate::job::stage::Staged;
use crate::job::step::Step;
use crate::job::validators::{Kind, Validators};
use crate::job::{Flags, Job, Note, Progress, Recorded, Report};
use crate::journal::{Head, Identity, Journal, Known, Next, Outcome, Passed, Phases, Stage, next};
use crate::node_args;
use crate::proc::{Counters, Holder};
use crate::schedule::Schedule;

/// Time since the supervisor started, on the monotonic clock.
pub type Now = Duration;

/// A client of the control socket.
pub type ClientId = u64;

/// What a service manager is to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The settings are being read again.
    pub reloading: bool,
    /// The program is on its way out.
    pub stopping: bool,
    /// It may take long until the node runs, or until the program is gone.
    pub busy: bool,
    /// Where it stands, in a line for people.
    pub status: String,
}

/// Who a child is. There is at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The node (first the exec shim, then the node itself).
    Node,
    /// The job that looks at plans, link and journal.
    Look,
    /// The job that asks the node.
    Probe,
    /// The job that asks another node of the chain.
    Reference,
    /// The job that waits until a validator is about to propose no block.
    Proposal,
    /// The job that checks a release.
    Stage,
    /// The job that fetches a release.
    Fetch,
    /// The job that does a durable step.
    Step,
    /// A hook (first the exec shim, then the hook itself).
    Hook,
    /// The job that copies beforehand what a backup will need.
    Ahead,
    /// The job that looks at memory and disk.
    Measure,
    /// The job that removes old backups.
    Prune,
    /// The job that waits until nobody holds the data.
    Clear,
    /// The job that keeps the logs bounded.
    Trim,
    /// The job that reads the settings again.
    Reload,
    /// The operator's command that is told an event.
    Event,
    /// The job that writes metrics.
    Metrics,
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
    /// The hook's process, or its shim, ended; with the last line that it wrote.
    HookEnded(Exit, Option<String>),
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
    /// Run the first of the journal's remaining hooks.
    RunHook,
    /// Start a job.
    Start(Role, Job),
    /// Ask a child to end; a hook with all of its process group.
    Terminate(Role),
    /// End a child; a hook with all of its process group.
    Kill(Role),
    /// Look at what these processes and their descendants have used; their numbers, or the node's or hook's when empty.
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

/// Why no node is started for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A validator that started now could sign twice.
    Signed,
    /// There is no room for its data.
    Room(Room),
}

/// How much room is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// DAEMON_MIN_DISK: the node ended itself below it.
    Least,
    /// Any worth speaking of: there was nothing at all, and the node may have run with less than the least before.
    Any,
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
    /// No node lives until then.
    Held {
        /// When it is started, or looked at again.
        until: Now,
        /// What for.
        why: Hold,
    },
    /// A hook runs.
    Hooking {
        /// What follows.
        then: Then,
        /// Why it was told to end, if it was.
        told: Option<String>,
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
    /// How it ended.
    exit: Option<Exit>,
    ready: bool,
    release: Option<Release>,
    args: Vec<String>,
    /// Where its output goes, where that is a file.
    log: Option<std::path::PathBuf>,
    /// What the shim said instead of becoming the node.
    refusal: Option<Refusal>,
    head: Option<u64>,
    first_head: Option<u64>,
    head_time: Option<u64>,
    peers: Option<u64>,
    syncing: Option<u64>,
    latency: Duration,
    answered: Option<Now>,
    silent_since: Option<Now>,
    rpc_error: Option<String>,
    foreign: Option<String>,
    identity: Option<Identity>,
    block_time: Option<Duration>,
    /// The validator set, as the node told it last.
    validators: Option<Validators>,
    /// When it was asked last what the proposers run.
    clients_asked: Option<Now>,
    progress: Now,
    unanswered: u32,
    said_open: bool,
    /// What a probe warned of last.
    warned: Option<String>,
}

/// Why a shim did not become the node.
#[derive(Clone, Debug, PartialEq)]
enum Refusal {
    Busy(Vec<Holder>),
    Refused(String),
    NotExecuted(String),
}

/// A step that failed and is tried again.
#[derive(Clone, Debug, PartialEq)]
struct Retry {
    step: Step,
    at: Now,
    /// What went wrong.
    fault: String,
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
    /// The node was asked for its head.
    Head,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Config,
    home: Home,
    flags: Flags,
    /// What the flags were before new ones came that are not accepted yet.
    flags_before: Option<Flags>,
    /// Started by `start`: who started us waits for the first life, which must come up.
    background: bool,
    /// A node has been up.
    up: bool,
    args: Vec<String>,
    state: State,
    life: Life,
    survey: Option<Survey>,
    schedule: Schedule,
    /// Plans that were there at the first start of this home; judged by the first head.
    initial: Vec<Passed>,
    current: Option<Release>,
    journal: Option<Journal>,
    known: Known,
    restarts: u32,
    watching: bool,
    /// When a job that still runs is ended.
    late: BTreeMap<Role, Now>,
    reloading: Looking,
    looking: Looking,
    look_wanted: bool,
    looked_last: Option<Now>,
    /// How many looks were made since when.
    looks: Option<(Now, u32)>,
    /// The life whose node is being asked (its launch).
    probing: Option<Now>,
    staging: Option<Release>,
    staged: BTreeMap<Release, Staged>,
    stage_tries: BTreeMap<Release, (u32, Now)>,
    fetching: Option<fetching::Fetching>,
    /// Plans whose release could not be fetched, by digest.
    refused: BTreeMap<String, fetching::Refused>,
    step: Option<Step>,
    step_retry: Option<Retry>,
    step_failures: u32,
    begin_after: Now,
    /// Why the due upgrade could not begin.
    begin_error: Option<String>,
    /// The arguments before a restart with new ones that has not come up yet.
    args_before: Option<Vec<String>>,
    /// The upgrade cannot go on for want of a disk to write to: the node runs, the step is tried again beside it.
    parked: bool,
    cancel: bool,
    /// The operator wants no grace for anybody.
    hurry: bool,
    appeared: BTreeSet<String>,
    grace: Grace,
    holders: Vec<Holder>,
    stop_began: Option<Now>,
    clean_stop: Option<bool>,
    switched: Option<Now>,
    /// When the step or the hooks under way began.
    part_began: Option<Now>,
    /// How long each part of the upgrade under way took, as seen from here.
    phases: Phases,
    /// How far the backup or restore under way is.
    progress: Option<Progress>,
    progress_said: Option<Now>,
    /// The plan that was put off last because a step of it could not be done, and how often in a row.
    put_off: (Option<String>, u32),
    /// An exchange of data and backup was interrupted: nobody may start before it is ended.
    restoring: bool,
    /// What a step left on disk is not known here: journal and last known head are taken from the next look.
    reread: bool,
    hook_refusal: Option<Refusal>,
    hook_until: Option<Now>,
    /// Before that the hook is not tried again.
    hook_after: Option<Now>,
    ahead: backup::Ahead,
    health: health::Health,
    events: events::Events,
    counts: metrics::Counts,
    /// When the program leaves although not all is told.
    leave_at: Option<Now>,
    trim: trim::Trim,
    prune_at: Option<Now>,
    /// When another node of the chain is asked whether a start must be held any longer.
    reference_at: Option<Now>,
    /// The highest head that was ever told.
    highest: Option<hold::Highest>,
    /// The block that this node may have had when it ended, once the other one was heard in this hold.
    reached: Option<u64>,
    /// The node is to end when it is about to propose no block.
    awaits_proposal: bool,
    /// When the last node ended and whether it did so cleanly, or what changed since makes that worthless.
    last_end: Option<(Now, bool)>,
    wishes: Vec<(ClientId, Wish)>,
    error: Option<String>,
    told_errors: BTreeMap<String, String>,
    told_waiting: BTreeMap<Release, String>,
    /// The turns that were told of, and the blocks at which slots have begun, by the plan's digest.
    told_slots: BTreeMap<String, String>,
    slots_begun: BTreeMap<String, u64>,
    said_validator: bool,
    no_head_since: Option<Now>,
    sample_at: Option<Now>,
    probe_at: Option<Now>,
    /// When the node was asked last.
    probe_began: Now,
    look_at: Option<Now>,
    ready_at: Option<Now>,
    alarm_at: Option<Now>,
    clear_at: Option<Now>,
    /// How often in a row it could not be told whether the data is free.
    clear_failures: u32,
    judge_at: Option<Now>,
    decide_at: Option<Now>,
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
/// How long a look may take: longer only where a disk hangs.
const LOOK_TIME: Duration = Duration::from_secs(30);
/// How long a look is waited for when the node ended: what it wrote just before is to be seen first.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Where inotify tells of changes, a look is only a safeguard.
const SAFEGUARD_LOOK: Duration = Duration::from_secs(30);
/// The shortest pause between two looks that changed files ask for.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How many are made without it within this time.
const QUICK_LOOKS: u32 = 40;
const LOOKS_WINDOW: Duration = Duration::from_secs(1);
/// A measuring that brings nothing is made again after so long.
const MEASURE_AGAIN: Duration = Duration::from_secs(15);
/// How long a step that is under way may hold up the end of the program.
const STEP_TIME: Duration = Duration::from_secs(10);

impl Machine {
    /// A machine that has done nothing yet.
    pub fn new(config: Config, home: Home, flags: Flags, background: bool, args: Vec<String>) -> Machine {
        Machine {
            config,
            home,
            flags,
            flags_before: None,
            background,
            up: false,
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
            late: BTreeMap::new(),
            reloading: Looking::No,
            looking: Looking::No,
            look_wanted: false,
            looked_last: None,
            looks: None,
            probing: None,
            staging: None,
            staged: BTreeMap::new(),
            stage_tries: BTreeMap::new(),
            fetching: None,
            refused: BTreeMap::new(),
            step: None,
            step_retry: None,
            step_failures: 0,
            begin_after: Now::ZERO,
            begin_error: None,
            args_before: None,
            parked: false,
            cancel: false,
            hurry: false,
            appeared: BTreeSet::new(),
            grace: Grace::default(),
            holders: Vec::new(),
            stop_began: None,
            clean_stop: None,
            switched: None,
            part_began: None,
            phases: Phases::default(),
            progress: None,
            progress_said: None,
            put_off: (None, 0),
            restoring: false,
            reread: false,
            hook_refusal: None,
            hook_until: None,
            hook_after: None,
            ahead: backup::Ahead::default(),
            health: health::Health::default(),
            events: events::Events::default(),
            counts: metrics::Counts::default(),
            leave_at: None,
            trim: trim::Trim::default(),
            prune_at: None,
            reference_at: None,
            highest: None,
            reached: None,
            awaits_proposal: false,
            last_end: None,
            wishes: Vec::new(),
            error: None,
            told_errors: BTreeMap::new(),
            told_waiting: BTreeMap::new(),
            told_slots: BTreeMap::new(),
            slots_begun: BTreeMap::new(),
            said_validator: false,
            no_head_since: None,
            sample_at: None,
            probe_at: None,
            probe_began: Now::ZERO,
            look_at: None,
            ready_at: None,
            alarm_at: None,
            clear_at: None,
            clear_failures: 0,
            judge_at: None,
            decide_at: None,
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
        if let Event::Done(role, _) = &event {
            self.late.remove(role);
        }
        match event {
            Event::Booted => {
                self.plan_metrics();
                self.ask_look(out);
            }
            Event::Done(Role::Look, result) => self.looked(result, out),
            Event::Done(Role::Probe, result) => self.probed(result, out),
            Event::Done(Role::Reference, result) => self.reference_told(result, out),
            Event::Done(Role::Proposal, result) => self.proposal_passed(result, out),
            Event::Done(Role::Measure, result) => self.measured(result, out),
            Event::Done(Role::Stage, result) => self.stage_done(result, out),
            Event::Done(Role::Fetch, result) => self.fetched(result, out),
            Event::Done(Role::Step, result) => self.step_done(result, out),
            Event::Done(Role::Clear, result) => self.cleared(result, out),
            Event::Done(Role::Reload, result) => self.reloaded(result, out),
            Event::Done(Role::Ahead, result) => self.copied_ahead(result, out),
            Event::Done(Role::Prune, result) => self.pruned(result, out),
            Event::Done(Role::Metrics, result) => self.metrics_written(result, out),
            Event::Done(Role::Event, result) => self.event_told(result.map(drop), out),
            Event::Done(Role::Trim, result) => self.trimmed(result, out),
            // Node and hook report their ends by events of their own.
            Event::Done(Role::Node | Role::Hook, _) => {}
            Event::Note(Role::Clear, Note::Holders(holders)) => self.still_held(holders, out),
            Event::Note(Role::Probe, Note::Warning(text)) => {
                if self.life.warned.as_ref() != Some(&text) {
                    say(out, Level::Warn, text.clone());
                }
                self.life.warned = Some(text);
            }
            Event::Note(Role::Step, Note::Progress(progress)) => self.progressed(progress, out),
            Event::Note(Role::Fetch, Note::Progress(progress)) => self.fetch_progressed(progress, out),
            Event::Note(Role::Fetch, Note::Warning(why)) => self.fetch_troubled(why, out),
            Event::Note(Role::Hook, note) => self.hook_noted(note, out),
            Event::Note(_, note) => self.noted(note, out),
            Event::Executed => self.executed(out),
            Event::Ended(exit) => self.ended(exit, out),
            Event::HookEnded(exit, words) => self.hook_ended(exit, words, out),
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
            Event::Signal(Sig::Reload) => self.reload(out),
            Event::Asked(client, request) => self.asked(client, request, out),
            Event::Left(client) => self.wishes.retain(|(c, _)| *c != client),
            Event::Tick => {}
        }
        self.tick(out);
    }

    /// When something is to happen without any event.
    pub fn wake_at(&self) -> Option<Now> {
        let pause =
            if let State::Backoff { until } | State::Held { until, .. } = self.state { Some(until) } else { None };
        let stage = self.next_stage_try();
        let retry = self.step_retry.as_ref().filter(|_| self.may_retry()).map(|retry| retry.at);
        [
            pause,
            stage,
            self.next_fetch_try(),
            retry,
            self.sample_at,
            self.probe_at,
            self.late.values().min().copied(),
            self.look_at,
            self.ready_at,
            self.alarm_at,
            self.clear_at,
            self.judge_at,
            self.decide_at,
            self.hook_until,
            self.prune_at,
            self.leave_at,
            self.counts.write_at,
            self.reference_at,
            self.next_trim(),
            self.health.measure_at.filter(|_| self.state == State::Up),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether a step that failed may be tried again now: beside a node that runs, or with none. In between others write
    /// the journal.
    fn may_retry(&self) -> bool {
        self.step.is_none() && matches!(self.state, State::Up | State::Working { .. })
    }

    fn due(&self, at: Option<Now>) -> bool {
        at.is_some_and(|at| self.now >= at)
    }

    fn tick(&mut self, out: &mut Vec<Effect>) {
        match self.state {
            State::Backoff { until } | State::Held { until, why: Hold::Signed } if self.now >= until => self.go(out),
            State::Held { until, why: Hold::Room(room) } if self.now >= until => {
                // What comes of it ends the hold, or prolongs it.
                self.state = State::Held { until: self.now + MEASURE_AGAIN, why: Hold::Room(room) };
                self.measure(out);
            }
            State::Boot
            | State::Starting
            | State::Up
            | State::Deciding(_)
            | State::Backoff { .. }
            | State::Held { .. }
            | State::Hooking { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Clearing { .. }
            | State::Working { .. }
            | State::Leaving { .. } => {}
        }
        if self.due(self.hook_until) {
            self.hook_late(out);
        }
        if self.due(self.sample_at) {
            self.sample_at = Some(self.now + Duration::from_secs(1));
            out.push(Effect::Sample(self.holders.iter().map(|h| h.pid).collect()));
        }
        if self.due(self.ready_at) {
            self.ready_at = None;
            self.ready(out);
        }
        let late: Vec<Role> = self.late.iter().filter(|(_, at)| self.now >= **at).map(|(role, _)| *role).collect();
        for role in late {
            // Its end comes as an event; it is ended once.
            self.late.remove(&role);
            let what =
                if role == Role::Event { "DAEMON_EVENT_COMMAND".to_owned() } else { format!("the job {role:?}") };
            say(out, Level::Warn, format!("{what} takes too long: it is ended"));
            out.push(Effect::Kill(role));
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
        if self.due(self.next_fetch_try()) {
            self.fetch_next(out);
        }
        if self.may_retry()
            && let Some(retry) = self.step_retry.take_if(|retry| self.now >= retry.at)
        {
            self.start_step(retry.step, out);
        }
        if self.due(self.alarm_at) {
            self.alarm(out);
        }
        if self.due(self.clear_at) {
            self.clear_at = None;
            self.start_clearing(out);
        }
        if self.due(self.decide_at) {
            self.decide(out);
            self.decide_at = None;
        }
        if self.due(self.judge_at) {
            self.judge_at = None;
            self.judge(out);
        }
        if self.due(self.prune_at) {
            self.prune(out);
        }
        if self.state == State::Up && self.due(self.health.measure_at) {
            self.measure(out);
        }
        if self.due(self.next_trim()) {
            self.look_at_logs(out);
        }
        if self.due(self.reference_at) {
            self.ask_reference(out);
        }
        if self.due(self.counts.write_at) {
            self.write_metrics(out);
        }
        if self.leave_at.is_some() && (self.told_all() || self.due(self.leave_at)) {
            self.leave_at = None;
            self.exit(out);
        }
        if self.restarts > 0 && self.state == State::Up && self.healthy() && self.age() >= CALM_AFTER {
            self.restarts = 0;
        }
    }

    /// Starts a job that is ended when it takes longer.
    fn start_job(&mut self, role: Role, job: Job, time: Duration, out: &mut Vec<Effect>) {
        self.late.insert(role, self.now + time);
        out.push(Effect::Start(role, job));
    }

    /// How long the node has run.
    fn age(&self) -> Duration {
        self.life.executed.map_or(Duration::ZERO, |at| self.now.saturating_sub(at))
    }
}

fn say(out: &mut Vec<Effect>, level: Level, text: String) {
    out.push(Effect::Log(level, text));
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
