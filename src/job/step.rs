//! The durable steps of an upgrade. Each can be killed at any instant and run again: what it finds done it leaves alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::shim::open_lock;
use super::{check, durable, look};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Name, Release};
use crate::journal::{History, Identity, Journal, Outcome, Passed, Phases, Stage, rfc3339, unix_now};

/// How long a step waits for the data lock, which is free unless something unforeseen holds it.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// One durable step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Write the journal: from here on the upgrade is under way. The node may still live.
    Begin(Begin),
    /// Move the link to the new release. No node lives.
    Switch {
        /// How long the stop took, in milliseconds.
        stop_ms: Option<u64>,
        /// Whether the old release ended by itself after TERM.
        clean_stop: Option<bool>,
    },
    /// The new release has proved itself: deaths no longer bring the old one back.
    Prove {
        /// How long the move of the link took, in milliseconds: the job that does it cannot tell, for its journal is on disk
        /// before the link moves.
        switch_ms: Option<u64>,
        /// From the link's move until it was executed, in milliseconds.
        start_ms: Option<u64>,
    },
    /// The upgrade is finished.
    Commit,
    /// The upgrade is to be taken back.
    TurnBack {
        /// How it then ends.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
    /// Move the link back and write down why. No node lives, unless the link is back already.
    Back,
    /// Take back the last finished upgrade: its journal again, at the point where it goes back.
    Undo {
        /// The release to go back to.
        to: Release,
        /// Why.
        reason: String,
    },
}

/// What an upgrade begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Its name.
    pub name: Name,
    /// The release that runs, to which a revert goes back; none runs: the one that `current` points at.
    pub from: Option<Release>,
    /// The release that it brings.
    pub to: Release,
    /// The plan's height; none without a plan.
    pub height: Option<u64>,
    /// The plan's digest; none without a plan.
    pub digest: Option<String>,
    /// Lower plans that it passes over.
    pub passed: Vec<Passed>,
    /// The head as it begins.
    pub head: Option<u64>,
    /// Who the node is.
    pub identity: Identity,
}

/// Does one step and returns the journal as it is then.
pub fn carry_out(home: &Home, step: Step) -> Result<Option<Journal>> {
    let journal = look::read_journal(home)?;
    match step {
        Step::Begin(begin) => self::begin(home, journal, begin).map(Some),
        Step::Switch { stop_ms, clean_stop } => switch(home, under_way(journal)?, stop_ms, clean_stop).map(Some),
        Step::Prove { switch_ms, start_ms } => {
            let mut journal = under_way(journal)?;
            journal.proven = true;
            journal.phases.switch = journal.phases.switch.or(switch_ms);
            journal.phases.start = journal.phases.start.or(start_ms);
            write_journal(home, &journal)?;
            Ok(Some(journal))
        }
        Step::Commit => journal.map_or(Ok(()), |journal| finish(home, &journal, Outcome::Committed, "")).map(|()| None),
        Step::TurnBack { outcome, reason } => {
            let mut journal = under_way(journal)?;
            if !is_runnable(home, &journal.from) {
                return Err(Error::failed(format!("{} is gone: put it back", home.binary(&journal.from).display())));
            }
            journal.stage = Stage::Back;
            journal.back = Some((outcome, reason));
            write_journal(home, &journal)?;
            Ok(Some(journal))
        }
        Step::Back => journal.map_or(Ok(()), |journal| back(home, &journal)).map(|()| None),
        Step::Undo { to, reason } => undo(home, journal, to, reason).map(Some),
    }
}

fn under_way(journal: Option<Journal>) -> Result<Journal> {
    journal.ok_or_else(|| Error::refused("no upgrade is under way"))
}

/// Writes the journal, synced.
pub fn write_journal(home: &Home, journal: &Journal) -> Result<()> {
    let path = home.journal();
    let text = serde_json::to_vec(journal).on("write", &path)?;
    durable::replace_file(&path, &text, 0o600, home.owner().on("read", home.root())?)
}

fn begin(home: &Home, journal: Option<Journal>, begin: Begin) -> Result<Journal> {
    if let Some(journal) = journal {
        // A begin that was killed after its write: the same upgrade, or one that must end first.
        return if journal.to == begin.to && journal.stage == Stage::Stop {
            Ok(journal)
        } else {
            Err(Error::refused(format!("upgrade {} is under way", journal.name)))
        };
    }
    let plan = begin.digest.as_ref().map(|digest| look::find_plan(home, digest)).transpose()?;
    let begun = unix_now();
    let journal = Journal {
        version: 1,
        id: format!("{}-{begun}-{}", begin.name, std::process::id()),
        name: begin.name,
        stage: Stage::Stop,
        from: begin.from.map_or_else(|| home.current_release().map_err(Error::failed), Ok)?,
        to: begin.to,
        height: begin.height,
        digest: begin.digest,
        plan,
        passed: begin.passed,
        head: begin.head,
        identity: begin.identity,
        starts: 0,
        proven: false,
        back: None,
        begun,
        phases: Phases::default(),
        clean_stop: None,
    };
    write_journal(home, &journal)?;
    Ok(journal)
}

fn switch(home: &Home, mut journal: Journal, stop_ms: Option<u64>, clean_stop: Option<bool>) -> Result<Journal> {
    let _held = hold_data(home)?;
    check::executable(&home.binary(&journal.to)).map_err(Error::failed)?;
    let owner = home.owner().on("read", home.root())?;
    if let (Some(plan), Release::Upgrade(_)) = (&journal.plan, &journal.to) {
        // The plan that brought the release stays with it: it says up to which height plans are past.
        let path = home.release(&journal.to).join("upgrade-info.json");
        let text = serde_json::to_vec(plan).on("write", &path)?;
        durable::replace_file(&path, &text, 0o644, owner)?;
    }
    if let Some(head) = look::read_known(home).head {
        journal.head = journal.head.max(Some(head.number));
    }
    let from = home.current_release().map_err(Error::failed)?;
    journal.stage = Stage::Trial;
    journal.starts = 0;
    journal.clean_stop = clean_stop;
    journal.phases.stop = stop_ms;
    // All that needs room is on disk before the link moves; what follows are two renames.
    let text = serde_json::to_vec(&journal).on("write", &home.journal())?;
    let prepared = durable::Prepared::new(&home.journal(), &text, 0o600, owner)?;
    durable::replace_link(&home.current(), &journal.to.target(), owner)?;
    if let Err(e) = prepared.commit() {
        // Not on record: the link must not stay ahead of the journal.
        durable::replace_link(&home.current(), &from.target(), owner)?;
        return Err(e);
    }
    Ok(journal)
}

fn back(home: &Home, journal: &Journal) -> Result<()> {
    if home.current_release().as_ref() != Ok(&journal.from) {
        if !is_runnable(home, &journal.from) {
            return Err(Error::failed(format!("{} is gone: put it back", home.binary(&journal.from).display())));
        }
        let _held = hold_data(home)?;
        durable::replace_link(&home.current(), &journal.from.target(), home.owner().on("read", home.root())?)?;
    }
    let (outcome, reason) = journal.back.clone().unwrap_or((Outcome::Failed, "no reason was recorded".to_owned()));
    finish(home, journal, outcome, &reason)
}

/// The history line (once per upgrade), then the journal goes.
fn finish(home: &Home, journal: &Journal, outcome: Outcome, reason: &str) -> Result<()> {
    if outcome == Outcome::Committed {
        pass(home, &journal.passed, &format!("{} came instead", journal.name))?;
    }
    let history = look::read_history(home);
    // `Undo` gives the id of a committed upgrade a second line, with another result.
    if !history.iter().rev().any(|h| h.id == journal.id && h.result == outcome) {
        append(
            home,
            &History {
                id: journal.id.clone(),
                name: journal.name.clone(),
                height: journal.height,
                from: journal.from.clone(),
                to: journal.to.clone(),
                result: outcome,
                reason: reason.to_owned(),
                started: rfc3339(journal.begun),
                finished: rfc3339(unix_now()),
                downtime_ms: journal.phases.total(),
                phases: journal.phases,
                backup: None,
                clean_stop: journal.clean_stop,
                digest: journal.digest.clone(),
            },
        )?;
    }
    durable::remove_file(&home.journal())
}

/// Writes down plans that will never run, each once.
pub fn pass(home: &Home, plans: &[Passed], reason: &str) -> Result<()> {
    let history = look::read_history(home);
    let current = home.current_release().map_err(Error::failed)?;
    for plan in plans {
        if history.iter().any(|h| h.digest.as_ref() == Some(&plan.digest) && h.result == Outcome::Passed) {
            continue;
        }
        let now = rfc3339(unix_now());
        append(
            home,
            &History {
                id: format!("{}-{}-passed", plan.name, plan.height),
                name: plan.name.clone(),
                height: Some(plan.height),
                from: current.clone(),
                to: home.find(&plan.name),
                result: Outcome::Passed,
                reason: reason.to_owned(),
                started: now.clone(),
                finished: now,
                downtime_ms: 0,
                phases: Phases::default(),
                backup: None,
                clean_stop: None,
                digest: Some(plan.digest.clone()),
            },
        )?;
    }
    Ok(())
}

fn append(home: &Home, line: &History) -> Result<()> {
    let path = home.history();
    let text = serde_json::to_string(line).on("write", &path)?;
    durable::append_line(&path, &text, home.owner().on("read", home.root())?)
}

fn undo(home: &Home, journal: Option<Journal>, to: Release, reason: String) -> Result<Journal> {
    if let Some(journal) = journal {
        return Err(Error::refused(format!("upgrade {} is under way", journal.name)));
    }
    if !home.binary(&to).is_file() {
        return Err(Error::refused(format!("{} is not there", home.binary(&to).display())));
    }
    let current = home.current_release().map_err(Error::failed)?;
    let Release::Upgrade(name) = &current else {
        return Err(Error::refused("genesis runs: there is no upgrade to take back"));
    };
    let last = look::read_history(home).into_iter().rev().find(|h| h.to == current && h.result == Outcome::Committed);
    let begun = unix_now();
    let journal = Journal {
        version: 1,
        id: last.as_ref().map_or_else(|| format!("{name}-{begun}-{}", std::process::id()), |h| h.id.clone()),
        name: last.as_ref().map_or_else(|| name.clone(), |h| h.name.clone()),
        stage: Stage::Back,
        from: to,
        to: current.clone(),
        height: last.as_ref().and_then(|h| h.height),
        // Also one that came without a plan's digest must not be due again by its plan.
        digest: last.and_then(|h| h.digest).or_else(|| {
            let plans = look::plan_files(home).into_iter().filter_map(|(_, plans)| plans.ok()).flatten();
            plans.into_iter().find(|plan| home.find(&plan.name) == current).map(|plan| plan.digest())
        }),
        plan: None,
        passed: Vec::new(),
        head: None,
        identity: Identity::default(),
        starts: 0,
        proven: false,
        back: Some((Outcome::Reverted, reason)),
        begun,
        phases: Phases::default(),
        clean_stop: None,
    };
    write_journal(home, &journal)?;
    Ok(journal)
}

/// The data lock, on this process's own description: nobody's node can start while the link moves.
fn hold_data(home: &Home) -> Result<fs::File> {
    let lock = open_lock(home)?;
    let until = Instant::now() + LOCK_WAIT;
    while lock.try_lock().is_err() {
        if Instant::now() > until {
            return Err(Error::failed(format!(
                "{} is still held after {} s",
                home.data_lock().display(),
                LOCK_WAIT.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(lock)
}

/// The release before the current one: what `upgrade revert` goes back to by default.
pub fn release_before(home: &Home, current: &Release) -> Option<Release> {
    let line =
        look::read_history(home).into_iter().rev().find(|h| h.to == *current && h.result == Outcome::Committed)?;
    Some(line.from).filter(|from| is_runnable(home, from))
}

fn is_runnable(home: &Home, release: &Release) -> bool {
    Path::new(&home.binary(release)).is_file()
}
