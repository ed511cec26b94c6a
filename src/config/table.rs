//! The one table of settings: variable, flag, default, what is allowed, help, parser; and the configuration that it fills.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::parse::*;

/// Every setting, validated and immutable. Only [`super::Settings::config`] makes one; the `Default` is an empty form to fill in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// DAEMON_HOME, absolute and without needless slashes.
    pub home: PathBuf,
    /// DAEMON_NAME: the file name of the node's binary.
    pub name: String,
    /// DAEMON_NETWORK: a label.
    pub network: String,
    /// DAEMON_DATA_DIR; none: the node's `--datadir`, else `data` in the home.
    pub data_dir: Option<PathBuf>,
    /// DAEMON_RPC_ADDRESS: where the node's RPC may be found, in this order.
    pub rpc_address: Vec<Address>,
    /// Whether somebody said DAEMON_RPC_ADDRESS; false: it is the default.
    pub rpc_address_given: bool,
    /// DAEMON_RESTART_AFTER_UPGRADE.
    pub restart_after_upgrade: bool,
    /// DAEMON_RESTART_DELAY.
    pub restart_delay: Duration,
    /// DAEMON_POLL_INTERVAL.
    pub poll_interval: Duration,
    /// DAEMON_HEIGHT_POLL_INTERVAL.
    pub height_poll_interval: Duration,
    /// DAEMON_UPGRADE_ENABLED.
    pub upgrade_enabled: bool,
    /// DAEMON_UPGRADE_TRIGGER.
    pub upgrade_trigger: Trigger,
    /// DAEMON_UPGRADE_LEAD, in blocks.
    pub upgrade_lead: u64,
    /// DAEMON_SHUTDOWN_GRACE; zero: no such rule.
    pub shutdown_grace: Duration,
    /// DAEMON_SHUTDOWN_LIMIT.
    pub shutdown_limit: Duration,
    /// DAEMON_DATA_BACKUP_DIR.
    pub data_backup_dir: PathBuf,
    /// DAEMON_BACKUP_MODE.
    pub backup_mode: BackupMode,
    /// DAEMON_BACKUP_KEEP.
    pub backup_keep: u64,
    /// DAEMON_BACKUP_MAX_AGE.
    pub backup_max_age: Duration,
    /// UNSAFE_SKIP_BACKUP.
    pub skip_backup: bool,
    /// DAEMON_PREUPGRADE_MAX_RETRIES.
    pub preupgrade_max_retries: u32,
    /// DAEMON_PREUPGRADE_TIMEOUT; zero: none.
    pub preupgrade_timeout: Duration,
    /// COSMOVISOR_CUSTOM_PREUPGRADE: absolute, or relative to `wemixvisor/` in the home.
    pub custom_preupgrade: Option<PathBuf>,
    /// DAEMON_ALLOW_DOWNLOAD_BINARIES.
    pub allow_download: bool,
    /// DAEMON_DOWNLOAD_RETRIES.
    pub download_retries: u32,
    /// UNSAFE_SKIP_CHECKSUM.
    pub skip_checksum: bool,
    /// DAEMON_RESTART_ON_FAILURE.
    pub restart_on_failure: bool,
    /// DAEMON_MAX_RESTARTS.
    pub max_restarts: u32,
    /// DAEMON_RESTART_BACKOFF.
    pub restart_backoff: Duration,
    /// DAEMON_HEALTH_CHECK_INTERVAL.
    pub health_check_interval: Duration,
    /// DAEMON_HANG_TIMEOUT; zero: never.
    pub hang_timeout: Duration,
    /// DAEMON_MIN_PEERS.
    pub min_peers: u64,
    /// DAEMON_MIN_DISK, in bytes.
    pub min_disk: u64,
    /// DAEMON_MAX_MEMORY, in bytes.
    pub max_memory: Option<u64>,
    /// DAEMON_TRIAL_TIME.
    pub trial_time: Duration,
    /// DAEMON_TRIAL_BLOCKS.
    pub trial_blocks: u64,
    /// DAEMON_TRIAL_TIMEOUT.
    pub trial_timeout: Duration,
    /// VALIDATOR_MODE.
    pub validator_mode: bool,
    /// DAEMON_REFERENCE_RPC; empty: none.
    pub reference_rpc: Vec<Address>,
    /// DAEMON_VALIDATOR_HOLD.
    pub validator_hold: Duration,
    /// DAEMON_ROLLING_SPACING, in blocks.
    pub rolling_spacing: u64,
    /// DAEMON_MOVED: the operator says that this validator's home was moved to this machine.
    pub moved: bool,
    /// DAEMON_LOG_FILE.
    pub log_file: Option<PathBuf>,
    /// DAEMON_LOG_MAX_SIZE, in bytes.
    pub log_max_size: u64,
    /// DAEMON_EVENT_COMMAND.
    pub event_command: Option<PathBuf>,
    /// DAEMON_METRICS_INTERVAL.
    pub metrics_interval: Duration,
    /// DAEMON_METRICS_TEXTFILE.
    pub metrics_textfile: Option<PathBuf>,
    /// COSMOVISOR_DISABLE_LOGS.
    pub disable_logs: bool,
    /// COSMOVISOR_COLOR_LOGS.
    pub color_logs: bool,
    /// DAEMON_ALLOW_EMPTY_DATA: start although a head is known and the data directory is empty.
    pub allow_empty_data: bool,
    /// `node_args` of config.toml: the node's arguments when the command line gives none.
    pub node_args: Vec<String>,
}

impl Config {
    /// How many blocks before its height a plan is due; validators have turns instead.
    pub fn lead(&self) -> u64 {
        if self.validator_mode { 0 } else { self.upgrade_lead }
    }
}

/// Where JSON-RPC is spoken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Address {
    /// A full URL: `http://host:port` or `https://…`.
    Http(String),
    /// The path of an IPC socket.
    Ipc(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Address::Http(url) => f.write_str(url),
            Address::Ipc(path) => path.display().fmt(f),
        }
    }
}

/// What makes a plan due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trigger {
    /// The node's head.
    #[default]
    Height,
    /// The plan file that appears or changes while the node runs.
    File,
}

/// How backups are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupMode {
    /// A snapshot where that works, else a copy.
    #[default]
    Auto,
    /// Reflinks or hard links.
    Snapshot,
    /// A copy, also to another file system.
    Copy,
}

/// Whether a setting does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It does.
    Yes,
    /// Taken for cosmovisor's sake; it will never do anything.
    Ignored,
}

/// One row of the table.
pub struct Setting {
    /// The environment variable.
    pub variable: &'static str,
    /// The flag, for the few settings that have one of their own.
    pub flag: Option<&'static str>,
    /// The default, as one would write it; empty: not set.
    pub default: &'static str,
    /// What is allowed, for error messages.
    pub allowed: &'static str,
    /// Whether this version acts on it.
    pub used: Used,
    /// What it is for.
    pub help: &'static str,
    /// Puts a value into its place.
    set: fn(&mut Config, &str) -> Parsed<()>,
}

impl Setting {
    /// Its key in a file: the variable in lower case.
    pub fn key(&self) -> String {
        self.variable.to_ascii_lowercase()
    }

    /// Whether it may be left without a value.
    fn optional(&self) -> bool {
        self.default.is_empty()
    }

    /// Why this is no value of it; none: it is one.
    pub fn objection(&self, text: &str, origin: &str) -> Option<String> {
        self.apply(&mut Config::default(), text, origin).err()
    }

    /// Whether a value means the same as the default.
    pub fn is_default(&self, text: &str) -> bool {
        let (mut one, mut other) = (Config::default(), Config::default());
        let both = self.apply(&mut one, text, "").and_then(|()| self.apply(&mut other, self.default, ""));
        text == self.default || (both.is_ok() && one == other)
    }

    /// Puts a value into `config`, or tells the whole line of what is wrong with it.
    pub(super) fn apply(&self, config: &mut Config, text: &str, origin: &str) -> Parsed<()> {
        let tried = match text {
            "" if self.optional() => Ok(()),
            "" => Err("is empty".to_owned()),
            text => (self.set)(config, text),
        };
        tried.map_err(|why| format!("{}: {:?} ({origin}) {why}; allowed: {}", self.variable, short(text), self.allowed))
    }
}

const PATH: &str = "an absolute path, or one that begins with $DAEMON_HOME/";
const SWITCH: &str = "true or false";
const TIME: &str = "a duration such as 300ms, 5s, 2m30s, 1h, 7d";
const SIZE: &str = "a size such as 512MiB or 100GB";
const COUNT: &str = "a whole number up to 1000000000";
const RETRIES: &str = "a whole number up to 1000000";
const RPC: &str = "host:port, http(s)://…, the absolute path of an IPC socket, or several of them with commas between";

/// Every setting there is, in the order in which `config show` and the files tell them.
#[rustfmt::skip]
pub static SETTINGS: &[Setting] = &[
    row("DAEMON_HOME", Some("--home"), "$HOME/.wemixd", "an absolute path", Used::Yes,
        "The home: releases, plans, data and logs lie in it.", |c, v| put(&mut c.home, absolute(v))),
    row("DAEMON_NAME", Some("--name"), "wemixd", "a plain file name", Used::Yes,
        "The file name of the node's binary.", |c, v| put(&mut c.name, file_name(v))),
    row("DAEMON_NETWORK", Some("--network"), "mainnet", "1 to 64 printable characters", Used::Yes,
        "The network's name: a label in status, nothing more.", |c, v| put(&mut c.network, label(v))),
    row("DAEMON_DATA_DIR", None, "", PATH, Used::Yes,
        "The node's data; not set: the node's --datadir, else $DAEMON_HOME/data.", |c, v| put(&mut c.data_dir, absolute(v).map(Some))),
    row("DAEMON_RPC_ADDRESS", None, "localhost:8545", RPC, Used::Yes,
        "Where the node's JSON-RPC is; of several the first that answers. The IPC socket that the node's arguments name is tried first.",
        |c, v| put(&mut c.rpc_address, addresses(v))),
    row("DAEMON_RESTART_AFTER_UPGRADE", None, "true", SWITCH, Used::Yes,
        "Whether to start the new release after the switch; false: exit 0 instead.", |c, v| put(&mut c.restart_after_upgrade, boolean(v))),
    row("DAEMON_RESTART_DELAY", None, "0", TIME, Used::Yes,
        "How long to wait after the switch before the new release is started.", |c, v| put(&mut c.restart_delay, duration(v))),
    row("DAEMON_POLL_INTERVAL", None, "300ms", "a duration of at least 10ms, such as 300ms or 5s", Used::Yes,
        "How often to look for plan files; the kernel mostly tells sooner.", |c, v| put(&mut c.poll_interval, at_least(10, v))),
    row("DAEMON_HEIGHT_POLL_INTERVAL", None, "5s", "a duration of at least 100ms, such as 5s", Used::Yes,
        "How often to ask for the head when far from a plan; the closer, the oftener.", |c, v| put(&mut c.height_poll_interval, at_least(100, v))),
    row("DAEMON_UPGRADE_ENABLED", None, "true", SWITCH, Used::Yes,
        "Whether plans are executed; false: they are only shown.", |c, v| put(&mut c.upgrade_enabled, boolean(v))),
    row("DAEMON_UPGRADE_TRIGGER", None, "height", "height or file", Used::Yes,
        "What makes a plan due: the node's head, or the plan file that appears or changes while the node runs.",
        |c, v| put(&mut c.upgrade_trigger, one_of(v, &[("height", Trigger::Height), ("file", Trigger::File)]))),
    row("DAEMON_UPGRADE_LEAD", None, "0", COUNT, Used::Yes,
        "How many blocks before its height a plan is due.", |c, v| put(&mut c.upgrade_lead, number(v, MAX_COUNT))),
    row("DAEMON_SHUTDOWN_GRACE", None, "30s", TIME, Used::Yes,
        "A node that was told to end is killed after so long without progress; 0: never for that reason.",
        |c, v| put(&mut c.shutdown_grace, duration(v))),
    row("DAEMON_SHUTDOWN_LIMIT", None, "10m", "a duration of at least 1s, such as 10m", Used::Yes,
        "A node that was told to end is killed after so long in all.", |c, v| put(&mut c.shutdown_limit, at_least(1000, v))),
    row("DAEMON_DATA_BACKUP_DIR", None, "$DAEMON_HOME/backups", PATH, Used::Yes,
        "Where backups go.", |c, v| put(&mut c.data_backup_dir, absolute(v))),
    row("DAEMON_BACKUP_MODE", None, "auto", "auto, snapshot or copy", Used::Yes,
        "How backups are made: by links (snapshot), by copying, or by whichever works (auto).",
        |c, v| put(&mut c.backup_mode, one_of(v, &[("auto", BackupMode::Auto), ("snapshot", BackupMode::Snapshot), ("copy", BackupMode::Copy)]))),
    row("DAEMON_BACKUP_KEEP", None, "1", COUNT, Used::Yes,
        "How many backups made by upgrades are kept after a committed upgrade.", |c, v| put(&mut c.backup_keep, number(v, MAX_COUNT))),
    row("DAEMON_BACKUP_MAX_AGE", None, "7d", TIME, Used::Yes,
        "How long backups made by upgrades are kept; 0: without a limit.", |c, v| put(&mut c.backup_max_age, duration(v))),
    row("UNSAFE_SKIP_BACKUP", None, "false", SWITCH, Used::Yes,
        "Upgrade without a backup.", |c, v| put(&mut c.skip_backup, boolean(v))),
    row("DAEMON_PREUPGRADE_MAX_RETRIES", None, "0", RETRIES, Used::Yes,
        "How often a hook that exits 31 is run again.", |c, v| put(&mut c.preupgrade_max_retries, number32(v))),
    row("DAEMON_PREUPGRADE_TIMEOUT", None, "5m", TIME, Used::Yes,
        "A hook that runs longer is killed and the upgrade given up; 0: no limit.", |c, v| put(&mut c.preupgrade_timeout, duration(v))),
    row("COSMOVISOR_CUSTOM_PREUPGRADE", None, "", "an absolute path, or one inside $DAEMON_HOME/wemixvisor without `..`", Used::Yes,
        "A script that runs before every upgrade, the node being down.", |c, v| put(&mut c.custom_preupgrade, script(v).map(Some))),
    row("DAEMON_ALLOW_DOWNLOAD_BINARIES", None, "false", SWITCH, Used::Yes,
        "Whether a release that is missing may be fetched from where its plan says.", |c, v| put(&mut c.allow_download, boolean(v))),
    row("DAEMON_DOWNLOAD_RETRIES", None, "3", RETRIES, Used::Yes,
        "How often a download that broke is tried again.", |c, v| put(&mut c.download_retries, number32(v))),
    row("UNSAFE_SKIP_CHECKSUM", None, "false", SWITCH, Used::Yes,
        "Accept a URL without a checksum; a wrong checksum is never accepted.", |c, v| put(&mut c.skip_checksum, boolean(v))),
    row("DAEMON_RESTART_ON_FAILURE", Some("--auto-restart"), "true", SWITCH, Used::Yes,
        "Whether a node that ended by itself is started again.", |c, v| put(&mut c.restart_on_failure, boolean(v))),
    row("DAEMON_MAX_RESTARTS", Some("--max-restarts"), "5", RETRIES, Used::Yes,
        "How often in a row; the count starts anew after 10 minutes of health.", |c, v| put(&mut c.max_restarts, number32(v))),
    row("DAEMON_RESTART_BACKOFF", None, "5s", TIME, Used::Yes,
        "The pause before the first restart; it doubles each time, up to 60s (0: none).", |c, v| put(&mut c.restart_backoff, duration(v))),
    row("DAEMON_HEALTH_CHECK_INTERVAL", Some("--health-check-interval"), "30s", "a duration of at least 100ms, such as 30s", Used::Yes,
        "How often to look at the node's health, and to ask it while no plan waits, where that is more often than DAEMON_HEIGHT_POLL_INTERVAL.", |c, v| put(&mut c.health_check_interval, at_least(100, v))),
    row("DAEMON_HANG_TIMEOUT", None, "10m", TIME, Used::Yes,
        "A node that neither answers nor makes progress for so long is restarted; 0: never.", |c, v| put(&mut c.hang_timeout, duration(v))),
    row("DAEMON_MIN_PEERS", None, "1", COUNT, Used::Yes,
        "Warn below so many peers.", |c, v| put(&mut c.min_peers, number(v, MAX_COUNT))),
    row("DAEMON_MIN_DISK", None, "10GiB", SIZE, Used::Yes,
        "Least free space for the data: a node that ended itself below it waits for room; old backups go below twice this.", |c, v| put(&mut c.min_disk, size(v))),
    row("DAEMON_MAX_MEMORY", None, "", SIZE, Used::Yes,
        "Warn when the node uses more memory.", |c, v| put(&mut c.max_memory, size(v).map(Some))),
    row("DAEMON_TRIAL_TIME", None, "60s", TIME, Used::Yes,
        "How long a new release must live to be proven.", |c, v| put(&mut c.trial_time, duration(v))),
    row("DAEMON_TRIAL_BLOCKS", None, "20", COUNT, Used::Yes,
        "How many new blocks commit an upgrade.", |c, v| put(&mut c.trial_blocks, number(v, MAX_COUNT))),
    row("DAEMON_TRIAL_TIMEOUT", None, "10m", "a duration of at least 100ms, such as 10m", Used::Yes,
        "After so long a trial without new blocks is spoken of, and a release without answer or progress is reverted.",
        |c, v| put(&mut c.trial_timeout, at_least(100, v))),
    row("VALIDATOR_MODE", None, "false", SWITCH, Used::Yes,
        "The node is a validator: its starts are held while it could sign twice, and at its height a failed release stays.", |c, v| put(&mut c.validator_mode, boolean(v))),
    row("DAEMON_REFERENCE_RPC", None, "", RPC, Used::Yes,
        "Another node of the same chain, to compare heads with.", |c, v| put(&mut c.reference_rpc, addresses(v))),
    row("DAEMON_VALIDATOR_HOLD", None, "60s", TIME, Used::Yes,
        "The longest hold before a validator is started.", |c, v| put(&mut c.validator_hold, duration(v))),
    row("DAEMON_ROLLING_SPACING", None, "60", COUNT, Used::Yes,
        "Blocks between two validators' slots in a rolling upgrade.", |c, v| put(&mut c.rolling_spacing, number(v, MAX_COUNT))),
    row("DAEMON_MOVED", None, "false", SWITCH, Used::Yes,
        "Say once with --set moved=true that a validator's home was moved to this machine and runs nowhere else.",
        |c, v| put(&mut c.moved, boolean(v))),
    row("DAEMON_LOG_FILE", None, "", PATH, Used::Yes,
        "Where the node's output goes; not set: logs/node.log under `start`, our own output under `run`.",
        |c, v| put(&mut c.log_file, absolute(v).map(Some))),
    row("DAEMON_LOG_MAX_SIZE", None, "512MiB", SIZE, Used::Yes,
        "The node's log is trimmed from the front to half of this when it outgrows it; 0: never.", |c, v| put(&mut c.log_max_size, size(v))),
    row("DAEMON_EVENT_COMMAND", None, "", PATH, Used::Yes,
        "An executable that gets each event as JSON on its stdin.", |c, v| put(&mut c.event_command, absolute(v).map(Some))),
    row("DAEMON_METRICS_INTERVAL", None, "15s", "a duration of at least 1s, such as 15s", Used::Yes,
        "How often metrics are written.", |c, v| put(&mut c.metrics_interval, at_least(1000, v))),
    row("DAEMON_METRICS_TEXTFILE", None, "", PATH, Used::Yes,
        "The file that metrics are written to.", |c, v| put(&mut c.metrics_textfile, absolute(v).map(Some))),
    row("DAEMON_ALLOW_EMPTY_DATA", None, "false", SWITCH, Used::Yes,
        "Start even if a head is known and the data directory is empty, which mostly means that it is not mounted.",
        |c, v| put(&mut c.allow_empty_data, boolean(v))),
    row("COSMOVISOR_DISABLE_LOGS", None, "false", SWITCH, Used::Yes,
        "No log of our own.", |c, v| put(&mut c.disable_logs, boolean(v))),
    row("COSMOVISOR_COLOR_LOGS", None, "true", SWITCH, Used::Yes,
        "Colours in our own log on a terminal; NO_COLOR counts too.", |c, v| put(&mut c.color_logs, boolean(v))),
    row("COSMOVISOR_TIMEFORMAT_LOGS", None, "", "the name of a time format of Go, such as kitchen or rfc3339", Used::Ignored,
        "Time stamps are RFC 3339.", |_, v| go_format(v)),
    row("COSMOVISOR_DISABLE_RECASE", None, "false", SWITCH, Used::Ignored,
        "Names of upgrades keep their case.", |_, v| boolean(v).map(drop)),
];

/// Variables of cosmovisor that are no settings here, and what to do instead.
pub(super) const FOREIGN: &[(&str, &str)] = &[
    (
        "DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM",
        "a download needs a checksum in any case, unless UNSAFE_SKIP_CHECKSUM is true",
    ),
    ("DAEMON_GRPC_ADDRESS", "the head is asked for by JSON-RPC, see DAEMON_RPC_ADDRESS"),
];

/// A row, on as few lines as it takes.
const fn row(
    variable: &'static str,
    flag: Option<&'static str>,
    default: &'static str,
    allowed: &'static str,
    used: Used,
    help: &'static str,
    set: fn(&mut Config, &str) -> Parsed<()>,
) -> Setting {
    Setting { variable, flag, default, allowed, used, help, set }
}

pub(super) fn put<T>(place: &mut T, value: Parsed<T>) -> Parsed<()> {
    *place = value?;
    Ok(())
}
