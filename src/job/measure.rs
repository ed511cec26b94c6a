//! What the node takes of the machine: memory of all that holds its data, and room where its data is.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clear::holders;
use crate::home::Home;
use crate::proc;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The node's data directory.
    pub data_dir: PathBuf,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Resident memory of the node and all that it started, in bytes; none while nobody runs.
    pub memory: Option<u64>,
    /// Processor time that the same have used; none while nobody runs.
    pub cpu: Option<Duration>,
    /// Free and all bytes of the file system that the data lies on.
    pub disk: Option<(u64, u64)>,
}

/// Looks. What cannot be told is left out.
pub fn measure(home: &Home, spec: &Spec) -> Measured {
    let holders = holders(home);
    let all: Vec<u64> = holders.iter().filter_map(|holder| proc::resident(holder.pid)).collect();
    let memory = (!all.is_empty()).then(|| all.iter().sum());
    let cpu = memory.map(|_| holders.iter().filter_map(|holder| proc::processor_time(holder.pid)).sum());
    // Where it is not there yet, it will be on the file system of the directory above.
    let there = spec.data_dir.ancestors().find(|dir| dir.is_dir());
    let disk = there.and_then(|dir| rustix::fs::statvfs(dir).ok());
    let disk = disk.map(|fs| (fs.f_bavail.saturating_mul(fs.f_frsize), fs.f_blocks.saturating_mul(fs.f_frsize)));
    Measured { memory, cpu, disk }
}
