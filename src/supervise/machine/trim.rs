//! When the logs are looked at, to be trimmed where they outgrew their maximum: the sooner the faster the node writes.

use std::collections::BTreeSet;
use std::time::Duration;

use log::Level;

use super::{Effect, Machine, Now, Role, State, say};
use crate::job::trim::Log;
use crate::job::{Job, Report};

/// How long it may take: what was not written to the disk yet is written first.
const TRIM_TIME: Duration = Duration::from_mins(10);

/// The first look, and the longest and the shortest pause between two. A node that suddenly writes 100 MB/s has written 1 GB
/// until it is seen.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(250);

/// Above which size our own log is trimmed.
const OWN_MAX: u64 = 16 << 20;

/// What is remembered of the logs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trim {
    /// When the next look is.
    pub(super) at: Option<Now>,
    under_way: bool,
    /// When the last look was, and what it left of each log.
    last: Option<(Now, Vec<u64>)>,
    /// What was said to be wrong.
    told: BTreeSet<String>,
}

impl Machine {
    /// Where the node's output goes; none: to where ours goes.
    pub fn node_log(&self) -> Option<std::path::PathBuf> {
        self.config.log_file.clone().or_else(|| self.background.then(|| self.home.node_log()))
    }

    /// Where the output of the node goes that was launched last.
    pub fn written_log(&self) -> Option<std::path::PathBuf> {
        self.life.log.clone()
    }

    /// Whether the node that was launched last came to run.
    pub fn has_run(&self) -> bool {
        self.life.executed.is_some()
    }

    /// The logs that are ours to keep bounded.
    fn logs(&self) -> Vec<Log> {
        let max = self.config.log_max_size;
        // The one that is written: another setting counts from the node's next start on.
        let writer = Some(self.life.pid).filter(|_| self.has_run());
        let node = self.written_log().filter(|_| max > 0).map(|path| Log { path, max, writer });
        let own = self.background.then(|| Log { path: self.home.own_log(), max: OWN_MAX, writer: None });
        node.into_iter().chain(own).collect()
    }

    /// A node runs: its log will be looked at.
    pub(super) fn plan_trim(&mut self) {
        if !self.trim.under_way {
            self.trim.at.get_or_insert(self.now + FIRST);
        }
    }

    /// When the next look is, while there is a node that writes.
    pub(super) fn next_trim(&self) -> Option<Now> {
        self.trim.at.filter(|_| matches!(self.state, State::Up | State::Stopping { .. }))
    }

    pub(super) fn look_at_logs(&mut self, out: &mut Vec<Effect>) {
        let logs = self.logs();
        if logs.is_empty() {
            // A reload may name one.
            self.trim.at = Some(self.now + LONGEST);
            return;
        }
        self.trim.at = None;
        self.trim.under_way = true;
        self.start_job(Role::Trim, Job::Trim(logs), TRIM_TIME, out);
    }

    pub(super) fn trimmed(&mut self, result: Result<Report, String>, out: &mut Vec<Effect>) {
        self.trim.under_way = false;
        let mut pause = LONGEST;
        let problems = match result {
            Ok(Report::Trimmed(trimmed)) => {
                if let Some((at, left)) = &self.trim.last {
                    let passed = self.now.saturating_sub(*at);
                    let each = self.logs();
                    let each = each.iter().zip(&trimmed.sizes).zip(left);
                    pause =
                        each.map(|((log, size), left)| pause_for(log.max, *size, *left, passed)).min().unwrap_or(pause);
                }
                self.trim.last = Some((self.now, trimmed.sizes.iter().map(|(_, after)| *after).collect()));
                trimmed.problems
            }
            Ok(_) => Vec::new(),
            Err(why) => vec![format!("the logs cannot be trimmed: {why}")],
        };
        self.trim.at = Some(self.now + pause);
        for problem in problems {
            if self.trim.told.insert(problem.clone()) {
                say(out, Level::Warn, problem);
            }
        }
    }
}

/// When a log that grew like this is full again: `left` bytes were left of it before `passed`, now it had `before` and has
/// `after`.
fn pause_for(max: u64, (before, after): (u64, u64), left: u64, passed: Duration) -> Duration {
    let grown = u128::from(before.saturating_sub(left));
    let room = u128::from(max.saturating_sub(after));
    let millis = (passed.as_millis() * room).checked_div(grown).and_then(|millis| u64::try_from(millis).ok());
    millis.map_or(LONGEST, Duration::from_millis).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_a_log_grows_the_sooner_it_is_looked_at_again() {
        const MIB: u64 = 1 << 20;
        let pause = |grown, after| pause_for(512 * MIB, (256 * MIB + grown, after), 256 * MIB, LONGEST);
        assert_eq!(pause(0, 256 * MIB), LONGEST);
        assert_eq!(pause(MIB, 257 * MIB), LONGEST);
        // 100 MiB/s for ten seconds, cut to 256 MiB: full again in 2.56 s.
        assert_eq!(pause(1000 * MIB, 256 * MIB), Duration::from_millis(2560));
        assert_eq!(pause(100_000 * MIB, 256 * MIB), SHORTEST);
        // Cut by another, or at the second look already: no sum goes wrong.
        assert_eq!(pause_for(MIB, (5, 5), MIB, Duration::ZERO), LONGEST);
        assert_eq!(pause_for(0, (u64::MAX, u64::MAX), 0, LONGEST), SHORTEST);
    }
}
