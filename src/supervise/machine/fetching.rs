//! Fetching releases ahead of their upgrades, the node running: which one, when it is tried again, and what is told of it.
//! The nearest plan whose release is missing comes first; one that cannot be fetched holds up no other.

use std::time::Duration;

use log::Level;

use super::backup::PROGRESS_LINE;
use super::plans::{STAGE_PAUSE, STAGE_PAUSE_MAX};
use super::{Effect, Machine, Now, Role, State, Then, say};
use crate::config::{show_duration, show_size};
use crate::home::Release;
use crate::job::fetch::{Outcome, Spec};
use crate::job::{Job, Progress, Report};
use crate::schedule::Found;
use crate::source::Source;

/// How long one fetch may take in all; its pace is watched by the job itself.
const FETCH_TIME: Duration = Duration::from_hours(24 * 7);

/// The longest pause before another try when the plan is due.
const SOON: Duration = Duration::from_secs(30);

/// A release that is being fetched.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fetching {
    digest: String,
    release: Release,
    from: String,
    began: Now,
    progress: Option<Progress>,
    /// Why it has to be tried again, while it waits for that.
    trouble: Option<String>,
    said: Now,
    /// Whether it was ended because nobody wants it any more.
    unwanted: bool,
}

/// A plan whose release could not be fetched.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refused {
    tries: u32,
    /// When it is tried again; none: only the operator can change anything.
    pub(super) again: Option<Now>,
    why: String,
}

impl Fetching {
    /// Whether it is the release of this plan.
    pub(super) fn is_of(&self, plan: &Found) -> bool {
        self.digest == plan.digest
    }
}

impl Machine {
    /// Half of the time until this plan is due, at the chain's pace: no pause before another try is to be longer, but for half
    /// a minute.
    pub(super) fn time_left(&self, digest: &str) -> Duration {
        let plan = self.schedule.pending().find(|plan| plan.digest == *digest);
        let blocks = plan.zip(self.height()).map(|(plan, head)| self.due_at(plan).saturating_sub(head));
        let pace = self.life.block_time.unwrap_or(Duration::from_secs(1));
        let left = blocks.map(|blocks| pace.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX)) / 2);
        left.unwrap_or(STAGE_PAUSE_MAX).max(SOON)
    }

    /// Where the release of a plan is to be fetched from by us, if it is to be.
    fn wanted_source<'a>(&self, plan: &'a Found) -> Option<&'a Source> {
        let source = plan.source.as_ref().ok()?.as_ref()?;
        (plan.print.is_none() && self.config.allow_download && self.config.upgrade_enabled).then_some(source)
    }

    /// What is told of a release that is not there: that it is being fetched, or why it is not. None: it is there.
    pub(super) fn missing(&self, plan: &Found) -> Option<String> {
        if plan.print.is_some() {
            return None;
        }
        if let Some(fetching) = self.fetching.as_ref().filter(|f| f.digest == plan.digest) {
            return Some(format!("its release is being fetched{}", shown(fetching)));
        }
        match (self.wanted_source(plan), self.refused.get(&plan.digest), &plan.source) {
            (Some(_), Some(Refused { again: Some(at), why, .. }), _) => {
                let left = show_duration(super::whole(at.saturating_sub(self.now)));
                Some(format!("{why}; another try in {left}"))
            }
            (Some(_), Some(Refused { again: None, why, .. }), _) => {
                Some(format!("{why}: `wemixvisor upgrade prepare {}` tries again", plan.name))
            }
            (Some(_), None, _) => Some("its release is to be fetched".to_owned()),
            (None, _, Err(why)) => {
                Some(format!("its release is not there, and the plan does not say from where: {why}"))
            }
            (None, _, Ok(Some(_))) if let Some(why) = &plan.other => {
                Some(format!("{why}: `wemixvisor upgrade prepare {}` fetches that one", plan.name))
            }
            (None, _, Ok(Some(source))) => Some(format!(
                "its release is not there and may not be fetched: set DAEMON_ALLOW_DOWNLOAD_BINARIES=true, or `wemixvisor upgrade prepare {}` fetches it from {}",
                plan.name,
                source.link()
            )),
            (None, _, Ok(None)) => None,
        }
    }

    /// How much of the plan's release has come, while it does.
    pub(super) fn fetched_so_far(&self, plan: &Found) -> Option<String> {
        let fetching = self.fetching.as_ref().filter(|f| f.digest == plan.digest)?;
        Some(shown(fetching).trim_start_matches(": ").to_owned()).filter(|text| !text.is_empty())
    }

    /// Whether a release is not there yet and will be fetched: there is nothing to check.
    pub(super) fn to_be_fetched(&self, release: &Release) -> Option<&Found> {
        self.schedule.pending().find(|plan| plan.release == *release && self.wanted_source(plan).is_some())
    }

    /// When a release that could not be fetched is tried again.
    pub(super) fn next_fetch_try(&self) -> Option<Now> {
        if self.fetching.is_some() || self.is_leaving() {
            return None;
        }
        let at = |plan: &Found| self.wanted_source(plan).and_then(|_| self.refused.get(&plan.digest)?.again);
        self.schedule.pending().filter_map(at).min()
    }

    /// Whether this plan still waits for us to fetch its release.
    fn lacks(&self, digest: &String) -> bool {
        self.schedule.pending().any(|plan| plan.digest == *digest && self.wanted_source(plan).is_some())
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving { .. }) || matches!(self.then(), Some(Then::Exit(_)))
    }

    /// Fetches the nearest release that is missing and whose time has come.
    pub(super) fn fetch_next(&mut self, out: &mut Vec<Effect>) {
        let known = |digest: &String| self.schedule.entries.iter().any(|entry| entry.plan.digest == *digest);
        let gone: Vec<String> = self.refused.keys().filter(|digest| !known(digest)).cloned().collect();
        for digest in gone {
            self.refused.remove(&digest);
        }
        if let Some(fetching) = &self.fetching {
            // Withdrawn, or forbidden by now, or somebody put the release there. Where all of it has come, that was the job
            // itself, which is to end well.
            let comes = fetching.progress.is_none_or(|p| p.of.is_some_and(|of| p.bytes < of));
            let planned = self.schedule.pending().any(|plan| plan.digest == fetching.digest);
            if !planned || (comes && !self.lacks(&fetching.digest)) {
                out.push(Effect::Kill(Role::Fetch));
                if let Some(fetching) = &mut self.fetching {
                    fetching.unwanted = true;
                }
            }
            return;
        }
        if self.is_leaving() {
            return;
        }
        let now = self.now;
        let may = |plan: &&Found| {
            // What another plan waits for is not replaced: the two would do that in turns.
            let contested =
                plan.other.is_some() && self.schedule.pending().any(|p| p.release == plan.release && p.print.is_some());
            let refused = self.refused.get(&plan.digest);
            !contested
                && self.wanted_source(plan).is_some()
                && refused.is_none_or(|r| r.again.is_some_and(|at| now >= at))
        };
        let Some(plan) = self.schedule.pending().find(may).cloned() else { return };
        let Some(source) = self.wanted_source(&plan).cloned() else { return };
        let from = source.link().to_string();
        if !self.refused.contains_key(&plan.digest) {
            let why = plan.other.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            say(out, Level::Info, format!("fetching release {} from {from}{why}", plan.release));
        }
        self.fetching = Some(Fetching {
            digest: plan.digest,
            release: plan.release.clone(),
            from,
            began: now,
            progress: None,
            trouble: None,
            said: now,
            unwanted: false,
        });
        let (retries, skip_checksum) = (self.config.download_retries, self.config.skip_checksum);
        let spec = Spec { release: plan.release, source, retries, skip_checksum };
        self.start_job(Role::Fetch, Job::Fetch(spec), FETCH_TIME, out);
    }

    pub(super) fn fetch_progressed(&mut self, progress: Progress, out: &mut Vec<Effect>) {
        let Some(fetching) = &mut self.fetching else { return };
        // What was there already when it began was downloaded before.
        let before = fetching.progress.replace(progress).map_or(progress.bytes, |before| before.bytes);
        self.counts.downloaded += progress.bytes.saturating_sub(before);
        fetching.trouble = None;
        if self.now.saturating_sub(fetching.said) >= PROGRESS_LINE {
            fetching.said = self.now;
            say(out, Level::Info, format!("fetching release {}{}", fetching.release, shown(fetching)));
        }
    }

    /// It broke and is tried again. Told once where it goes on like that.
    pub(super) fn fetch_troubled(&mut self, why: String, out: &mut Vec<Effect>) {
        let Some(fetching) = &mut self.fetching else { return };
        if !self.refused.contains_key(&fetching.digest) {
            say(out, Level::Warn, format!("release {}: {why}", fetching.release));
        }
        fetching.trouble = Some(why);
    }

    pub(super) fn fetched(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        let Some(fetching) = self.fetching.take() else { return };
        let release = &fetching.release;
        match result {
            Ok(Report::Fetched(outcome @ (Outcome::Installed(_) | Outcome::Present))) => {
                let from = if let Outcome::Installed(bytes) = outcome {
                    let took = show_duration(super::whole(self.now.saturating_sub(fetching.began)));
                    format!("{} from {} in {took}", show_size(bytes), fetching.from)
                } else {
                    "somebody else has brought it".to_owned()
                };
                // Where it is not seen nevertheless, it is not fetched again and again.
                let again = Some(self.now + STAGE_PAUSE);
                let why = "its release was fetched and is gone".to_owned();
                self.refused.insert(fetching.digest, Refused { tries: 0, again, why });
                say(out, Level::Info, format!("release {release} is there: {from}"));
                self.staged.remove(release);
                self.stage_tries.remove(release);
                self.ask_look(out);
            }
            Ok(Report::Fetched(Outcome::WrongChecksum(why) | Outcome::Unfit(why))) => {
                say(
                    out,
                    Level::Error,
                    format!(
                        "release {release} cannot be had: {why}; see whether the plan is right and who changed the file"
                    ),
                );
                self.announce_not_staged(&fetching.release, false, why.clone(), out);
                self.refused.insert(fetching.digest, Refused { tries: 0, again: None, why });
                self.fetch_next(out);
            }
            Ok(_) => {}
            // Withdrawn meanwhile, or brought by somebody else: the next one.
            Err(_) if fetching.unwanted || self.is_leaving() || !self.lacks(&fetching.digest) => self.fetch_next(out),
            Err(why) => {
                let before = self.refused.get(&fetching.digest);
                let tries = before.map_or(0, |refused| refused.tries);
                if before.is_none_or(|refused| refused.why != why) {
                    say(out, Level::Warn, format!("release {release}: {why}; it is tried again"));
                }
                let pause = STAGE_PAUSE.saturating_mul(1 << tries.min(10)).min(STAGE_PAUSE_MAX);
                let pause = pause.min(self.time_left(&fetching.digest));
                let again = Some(self.now + pause);
                self.refused.insert(fetching.digest, Refused { tries: tries + 1, again, why });
                self.fetch_next(out);
            }
        }
    }
}

/// `: 1.2MiB of 3.4MiB`, or what is in its way.
fn shown(fetching: &Fetching) -> String {
    if let Some(why) = &fetching.trouble {
        return format!(": {why}");
    }
    match fetching.progress {
        None => String::new(),
        Some(Progress { bytes, of: Some(of), .. }) => format!(": {} of {}", show_size(bytes), show_size(of)),
        Some(Progress { bytes, of: None, .. }) => format!(": {}", show_size(bytes)),
    }
}
