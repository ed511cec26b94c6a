//! What the operator's own command (DAEMON_EVENT_COMMAND) is told: one JSON object on its stdin for each event.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::home::{Name, Release};
use crate::journal::Phases;

/// One event. Fields may be added in later versions; who reads it passes over those that it does not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened, told by the field `event`, with what only that kind of event has.
    #[serde(flatten)]
    pub what: What,
    /// When, RFC 3339.
    pub time: String,
    /// The home.
    pub home: PathBuf,
    /// DAEMON_NETWORK.
    pub network: String,
    /// The release that `current` points at, when that is known.
    pub release: Option<Release>,
    /// The upgrade that it is about, if it is about one.
    pub name: Option<Name>,
    /// The height of its plan, if a plan brought it.
    pub height: Option<u64>,
    /// The same for people, in a line.
    pub message: String,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The node is about to be stopped for an upgrade.
    UpgradeBegun {
        /// The release that runs.
        from: Release,
        /// The release that is to run.
        to: Release,
    },
    /// The new release has proved itself, and the chain has gone on under it.
    UpgradeCommitted {
        /// The release that ran before.
        from: Release,
        /// The release that runs now.
        to: Release,
        /// The time without a node, in milliseconds.
        downtime_ms: u64,
        /// The same by part.
        phases: Phases,
        /// The backup that was made.
        backup: Option<String>,
    },
    /// The release before runs again, or is about to.
    UpgradeReverted {
        /// The release that runs again.
        from: Release,
        /// The release that was given up.
        to: Release,
        /// The backup that was made.
        backup: Option<String>,
    },
    /// The upgrade was given up before the new release ran.
    UpgradeFailed {
        /// The release that runs on.
        from: Release,
        /// The release that was to run.
        to: Release,
        /// Whether it is tried again by itself.
        put_off: bool,
    },
    /// The operator withdrew an upgrade that had begun.
    UpgradeCancelled {
        /// The release that runs on.
        from: Release,
        /// The release that was to run.
        to: Release,
    },
    /// The node is not started for a while.
    Hold {
        /// Until when at most, RFC 3339; none: nobody can tell.
        until: Option<String>,
    },
    /// A planned release cannot run yet.
    NotStaged {
        /// The release.
        to: Release,
        /// Whether the node waits for it by now.
        due: bool,
    },
    /// The node ended by itself, or hangs, and is started again.
    NodeCrashed {
        /// How it ended; none: it hangs and is being ended.
        exit: Option<String>,
        /// How many restarts in a row that makes.
        restarts: u32,
    },
    /// The supervisor gives up and leaves.
    Error {
        /// Its exit status.
        exit_status: u8,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_commands_read_are_frozen() {
        let fixtures = [
            ("upgrade_begun", include_str!("../fixtures/events/upgrade_begun.json")),
            ("upgrade_committed", include_str!("../fixtures/events/upgrade_committed.json")),
            ("upgrade_reverted", include_str!("../fixtures/events/upgrade_reverted.json")),
            ("upgrade_failed", include_str!("../fixtures/events/upgrade_failed.json")),
            ("upgrade_cancelled", include_str!("../fixtures/events/upgrade_cancelled.json")),
            ("hold", include_str!("../fixtures/events/hold.json")),
            ("not_staged", include_str!("../fixtures/events/not_staged.json")),
            ("node_crashed", include_str!("../fixtures/events/node_crashed.json")),
            ("error", include_str!("../fixtures/events/error.json")),
        ];
        for (name, text) in fixtures {
            let event: Event = serde_json::from_str(text).unwrap();
            let again = serde_json::to_value(&event).unwrap();
            assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
            assert_eq!(again["event"], name);
            // Each kind is here: a new one does not compile until it is.
            let known = match event.what {
                What::UpgradeBegun { .. } => 0,
                What::UpgradeCommitted { .. } => 1,
                What::UpgradeReverted { .. } => 2,
                What::UpgradeFailed { .. } => 3,
                What::UpgradeCancelled { .. } => 4,
                What::Hold { .. } => 5,
                What::NotStaged { .. } => 6,
                What::NodeCrashed { .. } => 7,
                What::Error { .. } => 8,
            };
            assert_eq!(fixtures[known].0, name);
        }
    }
}
