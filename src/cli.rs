//! What may be typed: one [`Command`] per verb, each with its own fields. Which commands and options there are says the table in
//! [`mod@help`]; [`parse()`] understands a line by it.

pub mod complete;
pub mod help;
mod parse;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use help::help;
pub use parse::parse;

/// A command line, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// Flags as (variable, value) and `--set` as (key, value), in the order of typing.
    pub settings: Vec<(String, String)>,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// `--json`.
    pub json: bool,
    /// `--quiet`.
    pub quiet: bool,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `--help`, `help`, or nothing typed at all: about one command, or about all.
    Help(Option<&'static str>),
    /// `--version`.
    OurVersion,
    /// `init [BINARY]`.
    Init {
        /// What becomes the genesis release.
        binary: Option<PathBuf>,
    },
    /// `run [NODE-ARGS…]`.
    Run {
        /// The node's arguments.
        args: Vec<String>,
    },
    /// `start [OURS] [--] [NODE-ARGS…]`.
    Start {
        /// The node's arguments.
        args: Vec<String>,
    },
    /// `stop`.
    Stop {
        /// Without the grace.
        now: bool,
    },
    /// `restart [OURS] [--] [NODE-ARGS…]`.
    Restart {
        /// The node's arguments; none: as before. A bare `--` says that there are to be no arguments.
        args: Option<Vec<String>>,
    },
    /// `status`.
    Status {
        /// Exit 1 when running but unhealthy.
        check: bool,
    },
    /// `logs`.
    Logs(Logs),
    /// `version`.
    Version,
    /// `upgrade …`.
    Upgrade(Upgrade),
    /// `plan …`.
    Plan(Plan),
    /// `backup …`.
    Backup(Backup),
    /// `config …`.
    Config(ConfigCommand),
    /// `metrics …`.
    Metrics(Metrics),
    /// `systemd`.
    Systemd,
    /// `completions SHELL`.
    Completions {
        /// Of which shell.
        shell: String,
    },
    /// `complete …`, which the completions call: tell how the last word may go on.
    Complete(Vec<String>),
    /// `worker`, which we call ourselves: do a job.
    Worker,
    /// `supervise …`, which `start` calls: supervise in the background.
    Supervise(Vec<String>),
    /// `exec …`, which we call ourselves: become the node or a hook.
    Exec(Vec<String>),
}

/// `logs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logs {
    /// Go on with what is written from now on.
    pub follow: bool,
    /// How many lines at most; `u64::MAX`: all.
    pub lines: Option<u64>,
    /// Not those before this time.
    pub since: Option<String>,
    /// Not those after this time.
    pub until: Option<String>,
    /// Those alone in which this regular expression is found.
    pub grep: Option<String>,
}

/// `upgrade …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Upgrade {
    /// Plan an upgrade.
    Schedule {
        /// Its name.
        name: String,
        /// The first block that the new release must execute.
        height: u64,
        /// Where the release can be fetched.
        url: Option<String>,
        /// The checksum of what is fetched.
        checksum: Option<String>,
        /// A description, or JSON.
        info: Option<String>,
        /// Move a name that is planned already.
        force: bool,
    },
    /// Install a release.
    Add {
        /// Its name.
        name: String,
        /// Its binary.
        file: PathBuf,
        /// Plan it too.
        height: Option<u64>,
        /// Replace a release.
        force: bool,
    },
    /// Fetch a release now, and check it.
    Prepare {
        /// Of which upgrade; none: the next.
        name: Option<String>,
        /// From there, whatever its plan says.
        url: Option<String>,
        /// The checksum of what is fetched.
        checksum: Option<String>,
    },
    /// Check whether an upgrade could run.
    Check {
        /// Which; none: the next.
        name: Option<String>,
    },
    /// List the plans.
    List {
        /// Finished upgrades too.
        all: bool,
    },
    /// All about one plan.
    Show {
        /// Its name.
        name: String,
    },
    /// Withdraw a plan.
    Cancel {
        /// Its name.
        name: String,
    },
    /// Try a failed plan again.
    Retry {
        /// Its name.
        name: String,
    },
    /// Switch at once.
    Now {
        /// To this release.
        name: String,
    },
    /// Go back.
    Revert {
        /// To this release; none: the one before.
        to: Option<String>,
    },
}

/// `plan …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Make a batch plan.
    Create {
        /// Its name.
        name: String,
        /// What a person says about it.
        description: Option<String>,
        /// Its upgrades: `NAME:HEIGHT`, with a file or a URL behind it.
        upgrades: Vec<String>,
        /// A file that lists them.
        file: Option<PathBuf>,
    },
    /// Check whether one could be applied.
    Validate {
        /// Its name, or a file.
        what: String,
    },
    /// Fetch its releases now, and check them.
    Prepare {
        /// Which.
        name: String,
    },
    /// Plan all its upgrades.
    Apply {
        /// Which.
        name: String,
    },
    /// Tell which there are.
    List,
    /// How far one is.
    Show {
        /// Which.
        name: String,
    },
    /// Withdraw what is left of one, and forget it.
    Remove {
        /// Which.
        name: String,
    },
}

/// `backup …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Backup {
    /// Make one.
    Create {
        /// What its name begins with; none: `manual`.
        name: Option<String>,
    },
    /// Tell which there are.
    List,
    /// Compare one with its manifest.
    Verify {
        /// Which.
        name: String,
        /// Read every byte too.
        full: bool,
    },
    /// Put one in the data's place.
    Restore {
        /// Which.
        name: String,
    },
    /// Write one as an archive.
    Export {
        /// Which.
        name: String,
        /// Where to; `-`: to stdout.
        file: PathBuf,
    },
    /// Remove what is no longer wanted.
    Prune {
        /// Keep so many, of all.
        keep: Option<u64>,
        /// Keep those that are not older, of all.
        max_age: Option<Duration>,
    },
}

/// `metrics …`.
#[derive(Clone, Debug, PartialEq)]
pub enum Metrics {
    /// Tell them.
    Show {
        /// In Prometheus' text format.
        prometheus: bool,
    },
    /// A dashboard of them.
    Dashboard,
}

/// `config …`.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigCommand {
    /// Tell every setting.
    Show,
    /// Check the settings.
    Validate {
        /// This file in place of the home's.
        file: Option<PathBuf>,
    },
    /// Change one value.
    Set {
        /// Of this setting.
        key: String,
        /// To this.
        value: String,
    },
    /// Let one value be the default.
    Unset {
        /// Of this setting.
        key: String,
    },
    /// Print a config.toml.
    Template {
        /// For this kind of node; none: all defaults.
        name: Option<String>,
        /// Tell which there are.
        list: bool,
    },
    /// Take over cosmovisor's settings.
    Migrate,
}
