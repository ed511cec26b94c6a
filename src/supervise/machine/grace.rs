//! How long a node that was asked to end may take, and how often to look at a chain. Pure arithmetic.

use std::collections::VecDeque;
use std::time::Duration;

use crate::proc::Counters;

/// How many looks, one a second, the rule of progress covers.
const WINDOW: usize = 10;

/// Clock ticks a second that count as progress: 3 % of a core (the kernel shows 100 ticks a second, proc(5)).
const TICKS_A_SECOND: u64 = 3;

/// Bytes to or from storage within the window that count as progress.
const BYTES: u64 = 256 << 10;

/// The grace of one stop. It counts looks, not time: a machine that was suspended charges nobody.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grace {
    seen: VecDeque<Counters>,
    looks: u64,
    quiet: u64,
}

/// What a look says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Wait,
    /// Its time is over, for this reason.
    Over(String),
}

impl Grace {
    /// One look, about a second after the one before; the first is the base of all others.
    pub fn look(&mut self, counters: Counters) {
        if !self.seen.is_empty() {
            self.looks += 1;
        }
        self.seen.push_back(counters);
        if self.seen.len() > WINDOW + 1 {
            self.seen.pop_front();
        }
        if self.progress() {
            self.quiet = 0;
        } else if self.looks > 0 {
            self.quiet += 1;
        }
    }

    /// Whether the last looks show progress.
    pub fn progress(&self) -> bool {
        let (Some(first), Some(last)) = (self.seen.front(), self.seen.back()) else { return false };
        let seconds = u64::try_from(self.seen.len()).unwrap_or(1).saturating_sub(1).max(1);
        let (ticks, bytes) = last.since(first);
        ticks >= TICKS_A_SECOND * seconds || bytes >= BYTES || self.seen.iter().skip(1).any(|c| c.blocked)
    }

    /// For how many seconds it has been looked at.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// Whether its time is over: so long without progress (zero: no such rule), or so long in all.
    pub fn verdict(&self, grace: Duration, limit: Duration) -> Verdict {
        if self.looks >= limit.as_secs().max(1) {
            return Verdict::Over(format!("it did not end within {} s", self.looks));
        }
        if !grace.is_zero() && self.quiet >= grace.as_secs().max(1) {
            return Verdict::Over(format!("it made no progress for {} s", self.quiet));
        }
        Verdict::Wait
    }
}

/// The pause before the n-th restart in a row (from 1): doubled each time, up to 60 s.
pub fn backoff(base: Duration, restarts: u32) -> Duration {
    let cap = Duration::from_secs(60).max(base);
    base.saturating_mul(1u32.checked_shl(restarts.saturating_sub(1)).unwrap_or(u32::MAX)).min(cap)
}

/// The shortest pause between two looks at the head.
const NEAR: Duration = Duration::from_millis(250);

/// The pause while the chain's pace is not known yet.
const PACE_UNKNOWN: Duration = Duration::from_secs(1);

/// When to look at the head next: half of the time that the missing blocks will take, never later than `far`.
pub fn look_at_head_after(missing: Option<u64>, block_time: Option<Duration>, far: Duration) -> Duration {
    let Some(missing) = missing else { return far };
    let Some(block_time) = block_time else { return PACE_UNKNOWN.min(far) };
    let eta = block_time.saturating_mul(u32::try_from(missing).unwrap_or(u32::MAX));
    (eta / 2).clamp(NEAR.min(far), far)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ticks: u64, bytes: u64) -> Counters {
        Counters { used: [(1, (ticks, bytes))].into(), blocked: false }
    }

    fn after(looks: impl IntoIterator<Item = Counters>) -> Grace {
        let mut grace = Grace::default();
        looks.into_iter().for_each(|c| grace.look(c));
        grace
    }

    const LIMIT: Duration = Duration::from_secs(600);

    #[test]
    fn a_node_without_progress_has_its_grace_and_no_more() {
        let quiet = |n: usize| after(std::iter::repeat_n(at(5, 5), n + 1)).verdict(Duration::from_secs(3), LIMIT);
        assert_eq!(quiet(2), Verdict::Wait);
        assert!(matches!(quiet(3), Verdict::Over(why) if why.contains("no progress for 3 s")));
        let forever = after(std::iter::repeat_n(at(5, 5), 100));
        assert_eq!(forever.verdict(Duration::ZERO, LIMIT), Verdict::Wait, "0 switches the rule off");
    }

    #[test]
    fn a_node_that_works_or_writes_or_waits_for_the_disk_is_waited_for_until_the_limit() {
        let grace = Duration::from_secs(3);
        for busy in [after((0..60).map(|n| at(n * 3, 0))), after((0..60).map(|n| at(0, n * 26_300)))] {
            assert_eq!(busy.verdict(grace, LIMIT), Verdict::Wait);
            assert!(matches!(busy.verdict(grace, Duration::from_secs(59)), Verdict::Over(_)));
        }
        assert!(
            matches!(after((0..60).map(|n| at(n * 2, n * 20_000))).verdict(grace, LIMIT), Verdict::Over(_)),
            "2 % and 200 KB are none"
        );
        let blocked = after(std::iter::repeat_n(Counters { blocked: true, ..at(5, 5) }, 60));
        assert_eq!(blocked.verdict(grace, LIMIT), Verdict::Wait);
    }

    #[test]
    fn the_backoff_doubles_up_to_a_minute() {
        let list: Vec<u64> = (1..=6).map(|n| backoff(Duration::from_secs(5), n).as_secs()).collect();
        assert_eq!(list, [5, 10, 20, 40, 60, 60]);
        assert_eq!(backoff(Duration::ZERO, 9), Duration::ZERO);
        assert_eq!(backoff(Duration::from_secs(90), 40).as_secs(), 90);
    }

    #[test]
    fn the_head_is_looked_at_the_closer_the_nearer() {
        let far = Duration::from_secs(5);
        let second = Some(Duration::from_secs(1));
        let ms = |missing| look_at_head_after(Some(missing), second, far).as_millis();
        assert_eq!((ms(1000), ms(10), ms(4), ms(1), ms(0)), (5000, 5000, 2000, 500, 250));
        assert_eq!(look_at_head_after(None, second, far), far);
        assert_eq!(look_at_head_after(Some(u64::MAX), second, far), far);
        assert_eq!(
            look_at_head_after(Some(u64::MAX), None, far),
            Duration::from_secs(1),
            "its pace is to be learnt first"
        );
    }
}
