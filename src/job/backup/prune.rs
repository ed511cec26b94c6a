//! Which backups are not to be kept any longer, and their removal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::error::Result;
use crate::home::Home;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// How many, the newest first.
    pub keep: Option<u64>,
    /// How long.
    pub max_age: Option<Duration>,
    /// The oldest are given up while less than this is free, in bytes.
    pub min_free: Option<u64>,
    /// Also those that no upgrade made.
    pub all: bool,
}

/// Removes what the limits say, but never the one that is protected. Returns the names of those removed.
pub fn prune(_home: &Home, _spec: &Spec, _limits: &Limits, _protect: Option<&str>) -> Result<Vec<String>> {
    Ok(Vec::new())
}
