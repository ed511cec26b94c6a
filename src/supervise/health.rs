//! What the node's answers say of its chain: whether it follows it, and if not, why. Pure.

use std::time::Duration;

use crate::config::show_duration;

/// A chain is not said to stand still before so long, however short its block period.
const STILL_LEAST: Duration = Duration::from_mins(1);

/// Nor before so many block periods.
const STILL_PERIODS: u32 = 10;

/// A sync whose head has not moved for so long is stuck: the state that is fetched in between takes its time.
const STUCK: Duration = Duration::from_mins(5);

/// A sync that takes longer is worth a look.
const PROLONGED: Duration = Duration::from_hours(1);

/// What is known of how the node follows its chain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Following {
    /// Its head.
    pub head: u64,
    /// The block that it says it syncs up to, if it says so. `eth_syncing` is silent about this also without any peers.
    pub highest: Option<u64>,
    /// For how long it has said so.
    pub syncing: Duration,
    /// Connected peers, if it told.
    pub peers: Option<u64>,
    /// For how long its head has not moved.
    pub still: Duration,
    /// How old its head is by the time in the block, if it told.
    pub age: Option<Duration>,
    /// The chain's block period, where it is known.
    pub period: Option<Duration>,
}

impl Following {
    /// What is wrong, in words; none: it follows the chain, or comes closer.
    pub fn problem(&self) -> Option<String> {
        let limit = (self.period.unwrap_or_default() * STILL_PERIODS).max(STILL_LEAST);
        let shown = |time: Duration| show_duration(Duration::from_secs(time.as_secs()));
        if let Some(highest) = self.highest {
            let where_ = format!("at block {} of {highest}", self.head);
            if self.still >= limit.max(STUCK) {
                return Some(format!("the sync is stuck {where_} for {}", shown(self.still)));
            }
            return (self.syncing >= PROLONGED)
                .then(|| format!("it syncs for {} by now, {where_}", shown(self.syncing)));
        }
        if self.still >= limit {
            return Some(match self.peers {
                Some(0) => format!("no peers, and no new block for {}", shown(self.still)),
                Some(peers) => format!("no new block for {} with {peers} peers", shown(self.still)),
                None => format!("no new block for {}", shown(self.still)),
            });
        }
        // It moves, so it has not lost the chain; it is only far behind.
        self.age.filter(|age| *age >= limit.max(STUCK)).map(|age| format!("its latest block is {} old", shown(age)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_chain_that_stands_still_a_sync_that_is_stuck_and_no_peers_are_told_apart() {
        let well = Following { head: 100, peers: Some(3), period: Some(secs(1)), ..Following::default() };
        for (following, problem) in [
            (well, None),
            (Following { still: secs(59), ..well }, None),
            (Following { still: secs(60), ..well }, Some("no new block for 1m with 3 peers")),
            (Following { still: secs(60), peers: Some(0), ..well }, Some("no peers, and no new block for 1m")),
            (Following { still: secs(60), peers: None, ..well }, Some("no new block for 1m")),
            // Ten periods of a slow chain.
            (Following { still: secs(140), period: Some(secs(15)), ..well }, None),
            (
                Following { still: secs(150), period: Some(secs(15)), ..well },
                Some("no new block for 2m30s with 3 peers"),
            ),
            (Following { still: secs(299), highest: Some(900), ..well }, None),
            (
                Following { still: secs(300), highest: Some(900), ..well },
                Some("the sync is stuck at block 100 of 900 for 5m"),
            ),
            (Following { syncing: secs(3599), highest: Some(900), ..well }, None),
            (
                Following { syncing: secs(3600), highest: Some(900), ..well },
                Some("it syncs for 1h by now, at block 100 of 900"),
            ),
            (Following { age: Some(secs(299)), ..well }, None),
            (Following { age: Some(secs(301)), ..well }, Some("its latest block is 5m1s old")),
        ] {
            assert_eq!(following.problem().as_deref(), problem, "{following:?}");
        }
    }
}
