//! The durable steps of an upgrade. Each can be killed at any instant and run again: what it finds done it leaves alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::shim::{self, open_lock};
use super::{Line, Note, backup, check, durable, look, say};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Name, Release};
use crate::journal::{History, Identity, Journal, Outcome, Passed, Phases, Stage, rfc3339, unix_now};

/// How long a step waits for the data lock, which is free unless something unforeseen holds it.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// One durable step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Write the journal: from here on the upgrade is under way. The node may still live.
    Begin(Box<Begin>),
    /// Make sure that the data can come back. No node lives.
    Backup(Backup),
    /// A hook is done.
    Hooked {
        /// The first of those that remained; done twice, this must not skip the next.
        hook: PathBuf,
        /// How long the hooks took so far, in milliseconds.
        hook_ms: Option<u64>,
    },
    /// Move the link to the new release. No node lives.
    Switch,
    /// The new release has proved itself: deaths no longer bring the old one back.
    Prove {
        /// How long each part took, as the supervisor saw it: a job cannot tell, for its journal is on disk before its end.
        phases: Phases,
    },
    /// The upgrade is finished.
    Commit,
    /// The upgrade is to be taken back.
    TurnBack {
        /// How it then ends.
        outcome: Outcome,
        /// Why.
        reason: String,
        /// Whether its plan stays pending: it was no fault of the release or of a hook.
        put_off: bool,
    },
    /// Put the backup in the data's place, or end such an exchange that was interrupted. No node lives.
    Restore,
    /// Leave the data as it is: it cannot be brought back.
    Forgo {
        /// Why.
        reason: String,
    },
    /// Move the link back, if it is not, and write down why. No node lives, unless the link is back already.
    Back {
        /// The stage that this ends; done twice, it must not end the next one too.
        stage: Stage,
    },
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
    /// Which data is backed up and where to; none: the operator wants no backup.
    pub data: Option<backup::Spec>,
}

/// What the backup of an upgrade needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// The operator's own hook.
    pub hook: Option<PathBuf>,
    /// How long the stop took, in milliseconds.
    pub stop_ms: Option<u64>,
    /// Whether the old release ended by itself after TERM.
    pub clean_stop: Option<bool>,
}

/// Does one step and returns the journal as it is then.
pub fn carry_out(home: &Home, step: Step) -> Result<Option<Journal>> {
    let journal = look::read_journal(home)?;
    match step {
        Step::Begin(begin) => self::begin(home, journal, *begin).map(Some),
        Step::Backup(backup) => back_up(home, under_way(journal)?, backup).map(Some),
        Step::Hooked { hook, hook_ms } => {
            let mut journal = under_way(journal)?;
            if journal.stage == Stage::Hook && journal.hooks.first() == Some(&hook) {
                journal.hooks = journal.hooks.split_off(1);
                journal.attempt = 0;
                journal.phases.hook = hook_ms.or(journal.phases.hook);
                journal.stage = if journal.hooks.is_empty() { Stage::Switch } else { Stage::Hook };
                write_journal(home, &journal)?;
            }
            Ok(Some(journal))
        }
        Step::Switch => switch(home, under_way(journal)?).map(Some),
        Step::Prove { phases } => {
            let mut journal = under_way(journal)?;
            journal.proven = true;
            journal.phases = phases.or(journal.phases);
            write_journal(home, &journal)?;
            Ok(Some(journal))
        }
        Step::Commit => journal.map_or(Ok(()), |journal| finish(home, &journal, Outcome::Committed, "")).map(|()| None),
        Step::TurnBack { outcome, reason, put_off } => {
            let mut journal = under_way(journal)?;
            if !is_runnable(home, &journal.from) {
                return Err(Error::failed(format!("{} is gone: put it back", home.binary(&journal.from).display())));
            }
            match journal.stage {
                // The old release cannot run on what was left behind: the data goes back, nothing else changes.
                Stage::Return => {
                    let (outcome, before) = journal.back.unwrap_or((outcome, String::new()));
                    journal.stage = Stage::Restore;
                    journal.back = Some((outcome, format!("{before}; {reason}")));
                }
                Stage::Restore | Stage::Back => return Ok(Some(journal)),
                Stage::Stop | Stage::Hook | Stage::Switch | Stage::Trial => {
                    // A hook may have changed what the old release is to run on; the new one shows it by the old one's end.
                    let head = look::read_known(home).head.map(|head| head.number);
                    let newer = head.is_some() && head > journal.head;
                    let at_once = journal.before_switch() && journal.way_back().is_some() && !newer;
                    journal.stage = if at_once { Stage::Restore } else { Stage::Back };
                    journal.back = Some((outcome, reason));
                    // The history line without a digest holds nothing against the plan.
                    journal.digest = journal.digest.filter(|_| !put_off);
                }
            }
            write_journal(home, &journal)?;
            Ok(Some(journal))
        }
        Step::Restore => restore(home, journal),
        Step::Forgo { reason } => {
            let mut journal = under_way(journal)?;
            if backup::restore_pending(home) {
                return Err(Error::refused("the exchange of the data has begun and must be ended"));
            }
            if journal.stage == Stage::Restore {
                journal.stage = Stage::Back;
                journal.touched = false;
                let (outcome, before) = journal.back.unwrap_or((Outcome::Failed, String::new()));
                journal.back = Some((outcome, format!("{before}; the data stays as it is: {reason}")));
                write_journal(home, &journal)?;
            }
            Ok(Some(journal))
        }
        Step::Back { stage } => match journal {
            Some(journal) if journal.stage == stage => back(home, journal),
            done => Ok(done),
        },
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
    let id = format!("{}-{begun}-{}", begin.name, std::process::id());
    // Relative to where this supervisor was started; the next one may stand elsewhere.
    let from = begin.from.map_or_else(|| home.current_release().map_err(Error::failed), Ok)?;
    let journal = Journal {
        height: begin.height,
        digest: begin.digest,
        plan,
        passed: begin.passed,
        head: begin.head,
        identity: begin.identity,
        data: begin.data.map(|spec| spec.relative(home)),
        ..Journal::new(id, begin.name, Stage::Stop, from, begin.to, begun)
    };
    write_journal(home, &journal)?;
    Ok(journal)
}

/// The hooks of a release that exist, in the order in which they run: the operator's own, then the one that came with it.
pub fn hooks(home: &Home, own: Option<&Path>, release: &Release) -> Vec<PathBuf> {
    let with_it = home.release(release).join("pre-upgrade");
    let with_it = with_it.symlink_metadata().is_ok().then_some(with_it);
    own.map(|hook| home.dir().join(hook)).into_iter().chain(with_it).collect()
}

fn back_up(home: &Home, mut journal: Journal, backup: Backup) -> Result<Journal> {
    if journal.stage != Stage::Stop {
        return Ok(journal);
    }
    let _held = hold_data(home)?;
    let owner = home.owner().on("read", home.root())?;
    if let Some(head) = look::read_known(home).head {
        journal.head = journal.head.max(Some(head.number));
    }
    if let (Some(plan), Release::Upgrade(_)) = (&journal.plan, &journal.to) {
        // The plan that brought the release stays with it: hooks read it, and it says up to which height plans are past.
        let path = home.release(&journal.to).join("upgrade-info.json");
        let text = serde_json::to_vec(plan).on("write", &path)?;
        durable::replace_file(&path, &text, 0o644, owner)?;
    }
    if let Some(spec) = journal.data.as_ref().map(|spec| spec.in_home(home)) {
        let began = Instant::now();
        let about = backup::About {
            id: Some(journal.id.clone()),
            upgrade: journal.name.to_string(),
            head: journal.head,
            release: Some(journal.from.clone()),
        };
        let name = backup::create(home, &spec, &about, &mut |progress| say(&Line::Note(Note::Progress(progress))))?;
        journal.backup = Some(name);
        journal.phases.backup = u64::try_from(began.elapsed().as_millis()).ok();
    }
    journal.phases.stop = backup.stop_ms;
    journal.clean_stop = backup.clean_stop;
    let named = |hook: PathBuf| hook.strip_prefix(home.dir()).map(Path::to_owned).unwrap_or(hook);
    journal.hooks = hooks(home, backup.hook.as_deref(), &journal.to).into_iter().map(named).collect();
    journal.stage = if journal.hooks.is_empty() { Stage::Switch } else { Stage::Hook };
    write_journal(home, &journal)?;
    Ok(journal)
}

fn switch(home: &Home, mut journal: Journal) -> Result<Journal> {
    if journal.stage != Stage::Switch {
        return Ok(journal);
    }
    let _held = hold_data(home)?;
    check::executable(&home.binary(&journal.to)).map_err(Error::failed)?;
    let owner = home.owner().on("read", home.root())?;
    let from = home.current_release().map_err(Error::failed)?;
    journal.stage = Stage::Trial;
    journal.starts = 0;
    journal.touched = true;
    // All that needs room is on disk before the link moves; what follows are two renames.
    let text = serde_json::to_vec(&journal).on("write", &home.journal())?;
    let prepared = durable::Prepared::new(&home.journal(), &text, 0o600, owner)?;
    durable::replace_link(&home.current(), &journal.to.target(), owner)?;
    if let Err(e) = prepared.commit() {
        // Not on record: the link must not stay ahead of the journal. Where no more than its sync failed it is on record.
        if look::read_journal(home)?.is_none_or(|on_disk| on_disk.stage != Stage::Trial) {
            durable::replace_link(&home.current(), &from.target(), owner)?;
        }
        return Err(e);
    }
    Ok(journal)
}

/// Brings the data back, or ends what an interrupted `backup restore` began.
fn restore(home: &Home, journal: Option<Journal>) -> Result<Option<Journal>> {
    let _held = hold_data(home)?;
    let Some(mut journal) = journal.filter(|j| j.stage == Stage::Restore) else {
        return backup::finish_restore(home).and_then(|()| look::read_journal(home));
    };
    if let (Some(spec), Some(name)) = (journal.data.as_ref().map(|spec| spec.in_home(home)), &journal.backup) {
        let tell = &mut |progress| say(&Line::Note(Note::Progress(progress)));
        let replaced = backup::restore(home, &spec, name, &journal.id, tell)?;
        if let Some((_, reason)) = &mut journal.back {
            reason.push_str(&format!("; the data went back to backup {name}, what it replaced is {replaced}"));
        }
        journal.replaced = Some(replaced);
    }
    journal.stage = Stage::Back;
    write_journal(home, &journal)?;
    Ok(Some(journal))
}

fn back(home: &Home, mut journal: Journal) -> Result<Option<Journal>> {
    if home.current_release().as_ref() != Ok(&journal.from) {
        if !is_runnable(home, &journal.from) {
            return Err(Error::failed(format!("{} is gone: put it back", home.binary(&journal.from).display())));
        }
        let held = hold_data(home)?;
        shim::mark_record(home, &held, "its release went back");
        durable::replace_link(&home.current(), &journal.from.target(), home.owner().on("read", home.root())?)?;
    }
    if journal.stage == Stage::Back && journal.way_back().is_some() {
        // The way back stays open until the old release has shown that it can run on this data.
        journal.stage = Stage::Return;
        journal.starts = 0;
        write_journal(home, &journal)?;
        return Ok(Some(journal));
    }
    let (outcome, reason) = journal.back.clone().unwrap_or((Outcome::Failed, "no reason was recorded".to_owned()));
    finish(home, &journal, outcome, &reason).map(|()| None)
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
                backup: journal.backup.clone(),
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
    let id = last.as_ref().map_or_else(|| format!("{name}-{begun}-{}", std::process::id()), |h| h.id.clone());
    let name = last.as_ref().map_or_else(|| name.clone(), |h| h.name.clone());
    let journal = Journal {
        height: last.as_ref().and_then(|h| h.height),
        // Also one that came without a plan's digest must not be due again by its plan.
        digest: last.and_then(|h| h.digest).or_else(|| {
            let plans = look::plan_files(home).into_iter().filter_map(|(_, plans)| plans.ok()).flatten();
            plans.into_iter().find(|plan| home.find(&plan.name) == current).map(|plan| plan.digest())
        }),
        back: Some((Outcome::Reverted, reason)),
        ..Journal::new(id, name, Stage::Back, to, current.clone(), begun)
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
