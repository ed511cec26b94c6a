//! What may block: each job runs in a short-lived process of its own (this same binary), can be killed at any instant and
//! run again. The job's spec comes as JSON on stdin, its reports go as JSON lines to stdout, its log to stderr.
#![allow(clippy::disallowed_methods, reason = "blocking is allowed from here down: a job is a process of its own")]

pub mod backup;
pub mod batches;
pub mod check;
pub mod clear;
pub mod durable;
pub mod event;
pub mod fetch;
pub mod look;
pub mod measure;
pub mod metrics;
pub mod probe;
pub mod proposal;
pub mod rpc;
pub mod shim;
pub mod stage;
pub mod step;
pub mod tls;
pub mod trim;
pub mod validators;

use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::config::{Address, Settings, Sources};
use crate::error::Result;
use crate::home::Home;
use crate::journal::Journal;
use crate::proc::Holder;

/// A piece of work for a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// Read link, journal, plans, history and what else is known.
    Look,
    /// Ask the node where it is and who it is.
    Probe(probe::Spec),
    /// Look at the node's memory and disk.
    Measure(measure::Spec),
    /// Wait until a validator is about to propose no block.
    Proposal(proposal::Spec),
    /// Ask another node of the chain for its head.
    Reference(Vec<Address>),
    /// Check that a release can be run.
    Stage(Box<stage::Spec>),
    /// Fetch a release.
    Fetch(fetch::Spec),
    /// Move an upgrade on by one durable step.
    Step(Box<step::Step>),
    /// Copy what a backup will need and will not change any more, while the node runs.
    CopyAhead(backup::Spec),
    /// Remove the backups that are not to be kept any longer.
    Prune(backup::Spec, backup::prune::Limits),
    /// Wait until nobody holds the data any more, ending who was left behind.
    Clear(clear::Spec),
    /// Keep logs bounded.
    Trim(Vec<trim::Log>),
    /// Read the settings again.
    Reload(Flags),
    /// Write the metrics.
    Metrics(Box<metrics::Spec>),
    /// Become the operator's command, and tell it this event.
    Event(std::path::PathBuf, Box<crate::event::Event>),
}

/// What was typed when the supervisor was started; the settings are read again with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flags {
    /// Flags and `--set`, in order.
    pub settings: Vec<(String, String)>,
    /// The file of `--config`.
    pub config_file: Option<std::path::PathBuf>,
}

impl Flags {
    /// The settings as they are said now.
    pub fn resolve(&self) -> Result<Settings> {
        self.with_sources(crate::config::resolve)
    }

    /// Gives all sources of settings to `read`.
    pub fn with_sources<T>(&self, read: impl FnOnce(&Sources) -> Result<T>) -> Result<T> {
        let env = crate::config::environment(std::env::vars_os())?;
        let etc = std::path::Path::new("/etc/wemixvisor/config.toml");
        read(&Sources { flags: &self.settings, config_file: self.config_file.clone(), env: &env, etc })
    }
}

/// What a worker is told on stdin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The supervisor's process id: who else is our parent means that it died.
    pub supervisor: u32,
    /// The home it works on.
    pub home: Home,
    /// The work.
    pub job: Job,
}

/// A line of a worker's stdout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Line {
    /// It goes on; this is what it sees.
    Note(Note),
    /// It is done.
    Done(Report),
    /// It failed, for this reason.
    Failed(String),
}

/// What a worker or the shim tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Note {
    /// These still hold the data.
    Holders(Vec<Holder>),
    /// The shim: the data is held by another; nothing was started.
    Busy(Vec<Holder>),
    /// The shim: this start is refused, and why.
    Refused(String),
    /// The shim: on record; exec is next. The end of its pipe says that it worked.
    Recorded(Recorded),
    /// The shim: this start of the hook is on record; exec is next.
    HookStarted {
        /// How often it was started by now.
        attempt: u32,
    },
    /// How far a backup, a restore or a download is.
    Progress(Progress),
    /// The shim: the program could not be executed.
    NotExecuted(String),
    /// Something that the operator should know.
    Warning(String),
}

/// How far something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Files done; 0 where they are not counted.
    pub files: u64,
    /// Bytes done (sizes, whatever the means).
    pub bytes: u64,
    /// Bytes in all, when that is known.
    pub of: Option<u64>,
}

/// What the shim recorded just before it became the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The release that it becomes.
    pub release: crate::home::Release,
    /// The arguments as the node gets them (node-args applied).
    pub args: Vec<String>,
    /// How often the new release of a trial was started by now.
    pub starts: u32,
}

/// What a job found or did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Of `Look`.
    Surveyed(Box<look::Survey>),
    /// Of `Probe`.
    Probed(Box<probe::Probed>),
    /// Of `Measure`.
    Measured(measure::Measured),
    /// Of `Proposal`: whether it came to that in time.
    ProposesNothing(bool),
    /// Of `Reference`.
    ReferenceHead(u64),
    /// Of `Stage`.
    Staged(stage::Staged),
    /// Of `Fetch`.
    Fetched(fetch::Outcome),
    /// Of `Step`: the journal as it is now.
    Stepped(Option<Box<Journal>>),
    /// Of `CopyAhead`: so many bytes were copied.
    CopiedAhead(u64),
    /// Of `Prune`: the backups that were removed.
    Pruned(Vec<String>),
    /// Of `Clear`: nobody holds the data.
    Cleared,
    /// Of `Trim`.
    Trimmed(trim::Trimmed),
    /// Of `Reload`.
    Settings(Box<Settings>),
    /// Of `Metrics`.
    Written,
    /// Of `Event`: the command ended with success.
    Told,
}

/// Writes one report line. A supervisor that is gone needs none.
pub fn say(line: &Line) {
    if let Ok(mut text) = serde_json::to_string(line) {
        text.push('\n');
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }
}

/// The worker's entry: dies with its supervisor, then does what stdin says.
pub fn worker() -> ExitCode {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut text = Vec::new();
    let read = std::io::stdin().read_to_end(&mut text).map_err(serde_json::Error::io);
    let spec: Spec = match read.and_then(|_| serde_json::from_slice(&text)) {
        Ok(spec) => spec,
        Err(e) => {
            say(&Line::Failed(format!("the job's spec cannot be read: {e}")));
            return ExitCode::FAILURE;
        }
    };
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if u32::try_from(parent).ok() != Some(spec.supervisor) {
        return ExitCode::FAILURE;
    }
    match run(&spec.home, spec.job) {
        Ok(report) => {
            say(&Line::Done(report));
            ExitCode::SUCCESS
        }
        Err(e) => {
            say(&Line::Failed(e.message));
            ExitCode::FAILURE
        }
    }
}

fn run(home: &Home, job: Job) -> Result<Report> {
    match job {
        Job::Look => Ok(Report::Surveyed(Box::new(look::look(home)))),
        Job::Probe(spec) => probe::probe(home, &spec).map(|probed| Report::Probed(Box::new(probed))),
        Job::Measure(spec) => Ok(Report::Measured(measure::measure(home, &spec))),
        Job::Proposal(spec) => proposal::wait(home, &spec).map(Report::ProposesNothing),
        Job::Reference(addresses) => validators::reference_head(&addresses).map(Report::ReferenceHead),
        Job::Stage(spec) => Ok(Report::Staged(stage::stage(home, &spec))),
        Job::Fetch(spec) => {
            let tell = &mut |sign| {
                say(&Line::Note(match sign {
                    fetch::Sign::Progress(progress) => Note::Progress(progress),
                    fetch::Sign::Retry(why) => Note::Warning(why),
                }));
            };
            fetch::fetch(home, &spec, tell).map(Report::Fetched)
        }
        Job::Step(step) => step::carry_out(home, *step).map(|journal| Report::Stepped(journal.map(Box::new))),
        Job::CopyAhead(spec) => {
            backup::copy_ahead(home, &spec, &mut |progress| say(&Line::Note(Note::Progress(progress))))
                .map(Report::CopiedAhead)
        }
        Job::Prune(spec, limits) => {
            let under_way = look::read_journal(home)?.and_then(|journal| journal.backup);
            let removed = backup::prune::prune(home, &spec, &limits, under_way.as_deref())?;
            Ok(Report::Pruned(removed.iter().map(ToString::to_string).collect()))
        }
        Job::Clear(spec) => clear::clear(home, &spec).map(|()| Report::Cleared),
        Job::Metrics(spec) => metrics::write(home, &spec).map(|()| Report::Written),
        Job::Event(command, event) => event::become_command(home, &command, &event),
        Job::Trim(logs) => Ok(Report::Trimmed(trim::trim(&logs))),
        Job::Reload(flags) => flags.resolve().map(|settings| Report::Settings(Box::new(settings))),
    }
}
