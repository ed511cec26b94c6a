//! Supervising a home: the lock that makes us the only one, then the loop until the node's end.

pub mod child;
pub mod control;
pub mod health;
pub mod log;
pub mod machine;
pub mod notify;
pub mod output;
pub mod reactor;
mod signals;
pub mod validator;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::Instant;

use self::control::Control;
use self::machine::Machine;
use self::notify::Notify;
use self::reactor::{Leave, Reactor};
use self::signals::Signals;
use crate::config::Config;
use crate::error::Result;
use crate::home::Home;
use crate::job::Flags;

/// What a supervisor is started with.
pub struct Setup {
    /// The settings.
    pub config: Config,
    /// What was typed, to read the settings again.
    pub flags: Flags,
    /// The home.
    pub home: Home,
    /// `lock`, held.
    pub lock: File,
    /// Whether `start` started us.
    pub background: bool,
    /// The node's arguments.
    pub args: Vec<String>,
}

/// Runs the loop until the node is gone for good.
pub fn supervise(setup: Setup) -> Result<Leave> {
    let signals = Signals::install()?;
    let control = Control::bind(&setup.home)?;
    let machine = Machine::new(setup.config, setup.home.clone(), setup.flags, setup.background, setup.args);
    let reactor = Reactor {
        machine,
        home: setup.home,
        background: setup.background,
        lock: setup.lock,
        control,
        signals,
        notify: Notify::from_environment(),
        children: BTreeMap::new(),
        inotify: None,
        watches: BTreeSet::new(),
        began: Instant::now(),
    };
    Ok(reactor.run())
}
