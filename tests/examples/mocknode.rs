//! The mock node: a WBFT node in miniature that behaves like geth, with every bad habit on request.
//!
//! With `--network FILE` it is one of several validators that decide their blocks together: `mocknode/consensus.rs` does
//! that, over what `mocknode/ledger.rs` says of sets, blocks and their files. All the rest is here.
//!
//! It owns the facts of the node that wemixvisor's process tests rely on: the data directory with
//! its lock, identity and head; one block after another; JSON-RPC over HTTP and IPC; geth's way of
//! logging, stopping and dying. It knows nothing of wemixvisor but where a release is laid out.
//!
//! Flags come from the command line, then `MOCK_FLAGS`, then the file `mock-flags` of the release
//! it runs from; the later wins. `mocknode --help` lists them. What happened is appended to
//! `<datadir>/mock.journal`, see [`Journal`].

#![allow(clippy::disallowed_methods, reason = "a test program: it may block, and has threads to block in")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::net::Shutdown;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use signal_hook::low_level::{emulate_default_handler, pipe, signal_name};

#[path = "mocknode/consensus.rs"]
mod consensus;
#[path = "mocknode/ledger.rs"]
#[allow(dead_code, reason = "tests and the rolling example use the rest of it")]
mod ledger;

use consensus::Chain;
use ledger::{Block, address_of, hex, sha};

fn main() {
    let started = Instant::now();
    let words: Vec<String> = std::env::args_os().map(|w| w.to_string_lossy().into_owned()).collect();
    if words.get(1).is_some_and(|word| word == GRANDCHILD) {
        grandchild(&words[2..]);
    }
    let release = Release::find(words.first().map_or("", String::as_str));
    let argv = words.get(1..).unwrap_or_default();
    let flags = Flags::collect(argv, &release).unwrap_or_else(|e| misuse(&e));
    let config = Config::new(&flags, &release).unwrap_or_else(|e| misuse(&e));
    match flags.command.as_deref() {
        None if flags.on("help") => print!("{}", help()),
        None if flags.on("version") => print_version(&config),
        None => run(config, argv, started),
        Some("version") => print_version(&config),
        Some("help") => print!("{}", help()),
        Some("command-ok") => {}
        Some("command-fail") => exit(3),
        Some(other) => {
            eprintln!("invalid command: {other:?}");
            exit(1);
        }
    }
}

/// Go's flag package tells misuse on both streams.
fn misuse(what: &str) -> ! {
    // The streams may be closed; the status tells enough then.
    let _ = writeln!(io::stdout(), "Incorrect Usage: {what}\n");
    let _ = writeln!(io::stderr(), "{what}");
    exit(1);
}

fn print_version(config: &Config) {
    thread::sleep(config.version_delay);
    if let Some(code) = config.version_exit {
        eprintln!("cannot tell the version");
        exit(code);
    }
    println!(
        "Geth\nVersion: {}-stable\nArchitecture: amd64\nRelease: {}\nOperating System: linux",
        config.version, config.release
    );
}

// ---- Where it was installed ---------------------------------------------------------------------

/// The release that this binary was started from, so that one binary, linked into several
/// releases, can tell them apart and have different habits in each.
#[derive(Default)]
struct Release {
    name: Option<String>,
    dir: Option<PathBuf>,
}

impl Release {
    /// argv[0] goes first: the kernel's idea of the executable has symbolic links resolved.
    fn find(argv0: &str) -> Release {
        let given = std::path::absolute(argv0).ok().filter(|p| argv0.contains('/') && p.exists());
        let Some(binary) = given.or_else(|| std::env::current_exe().ok()) else {
            return Release::default();
        };
        let Some(bin) = binary.parent().filter(|dir| dir.ends_with("bin")) else {
            return Release::default();
        };
        let dir = bin.parent().map(follow_current).unwrap_or_default();
        let own = dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let upgrade = dir.parent().is_some_and(|up| up.ends_with("upgrades"));
        match own.filter(|name| upgrade || name == "genesis") {
            Some(name) => Release { name: Some(name), dir: Some(dir) },
            None => Release::default(),
        }
    }

    /// The habits of this release alone; `#` begins a comment.
    fn flags(&self) -> Vec<String> {
        let text = self.dir.as_ref().and_then(|dir| fs::read_to_string(dir.join("mock-flags")).ok());
        let text = text.unwrap_or_default();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    }
}

fn follow_current(dir: &Path) -> PathBuf {
    match (dir.ends_with("current"), fs::read_link(dir), dir.parent()) {
        (true, Ok(target), Some(home)) => home.join(target),
        _ => dir.to_owned(),
    }
}

// ---- Flags: the table ---------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `--x` or `--x=true|false`, never `--x true`.
    Bool,
    /// `--x=v` or `--x v`.
    Value,
    /// `--x`, `--x=5`, and, unlike Go, `--x 5` for a number.
    Number,
}
use Kind::{Bool, Number, Value as Val};

const FLAGS: &[(&str, Kind, &str)] = &[
    ("help", Bool, "print this"),
    ("version", Bool, "print the version, as `version` does"),
    ("datadir", Val, "DIR: where all state is kept; node mode needs it"),
    ("instance", Val, "NAME: directory of identity and chain in the datadir (geth)"),
    ("http", Bool, "serve JSON-RPC over HTTP"),
    ("http.addr", Val, "IP to listen on (127.0.0.1)"),
    ("http.port", Val, "port (8545); 0 picks one; the actual one is written to DIR/http.port"),
    ("http.api", Val, "modules on HTTP (eth,net,web3)"),
    ("http.vhosts", Val, "Host names accepted (localhost); * is any"),
    ("ipcdisable", Bool, "no IPC"),
    ("ipcpath", Val, "socket (geth.ipc); a bare name is in the datadir"),
    ("networkid", Val, "N: what net_version tells (the chain id)"),
    ("port", Val, "N: p2p port told by admin_nodeInfo (30303); nothing listens there"),
    ("mine", Bool, "what eth_mining tells; in a network, whether it signs"),
    ("period", Val, "D: time between blocks (1s)"),
    ("network", Val, "FILE: be one of the nodes that it lists; it tells period, timeouts and validators"),
    ("start-head", Val, "N: head of a fresh data directory (0)"),
    ("rewind", Val, "N: go back so many blocks at each start"),
    ("no-blocks", Bool, "make no block"),
    ("halt-at", Val, "N: make, sign and take no block above N, else live on (an old release at a fork)"),
    ("die-at", Val, "N[:CODE]: exit uncleanly (1) when the head is N or, at a later start, above"),
    ("chain-id", Val, "N: instead of the remembered one (1111)"),
    ("genesis", Val, "TEXT: seed of the genesis hash, instead of the remembered hash"),
    ("new-identity", Bool, "show another node key than the stored one"),
    ("validators", Val, "N: validators, this node first (1); or 0xADDR,0xADDR,..."),
    ("absent", Val, "N[:UNTIL]: the last N validators sign nothing, below block UNTIL"),
    ("others-version", Val, "V: version of the other validators and peers (1.0.0)"),
    ("peers", Val, "N: peers (4)"),
    ("syncing", Number, "[=N]: eth_syncing tells an object, N blocks behind (1000)"),
    ("stop-time", Val, "D: how long a clean stop takes (0)"),
    ("stop-busy", Bool, "burn a core meanwhile"),
    ("stop-write", Bool, "write 1 MiB/s with fsync meanwhile"),
    ("deaf", Bool, "ignore TERM and INT, but for the journal"),
    ("child", Bool, "start a child that dies on TERM"),
    ("deaf-child", Bool, "start a child that ignores TERM and INT"),
    ("child-session", Bool, "the child is in a session of its own"),
    ("child-time", Val, "D: the child ends by itself (never)"),
    ("exit-early", Bool, "exit 0 after 50 ms, before RPC"),
    ("die-at-start", Number, "[=CODE]: exit at once (1), before RPC"),
    ("die-after", Val, "D[:CODE]: exit uncleanly (1) so long after the start"),
    ("die-by-signal", Val, "SIG: all the ways to die above are by this signal"),
    ("end-after", Val, "D: stop cleanly, unasked, as geth does when the disk is full"),
    ("hang-after", Val, "D: no more blocks, no more RPC replies"),
    ("slow-start", Val, "D: open the database so long: no RPC, no blocks, and TERM kills"),
    ("slow-start-busy", Bool, "burn a core meanwhile"),
    ("no-lock", Bool, "do not take LOCK"),
    ("no-rpc", Bool, "neither HTTP nor IPC"),
    ("rpc-delay", Val, "D: open RPC so long after the blocks begin"),
    ("rpc-bad", Val, "KIND[:METHOD,..]: html error wrong-id huge slow garbage null not-offered close"),
    ("log-flood", Number, "[=N]: N MB/s of numbered log lines (10)"),
    ("mock-version", Val, "V: instead of $MOCK_VERSION or the name of the release"),
    ("version-exit", Val, "CODE: `version` fails"),
    ("version-delay", Val, "D: `version` takes so long"),
];

/// geth's own flags without a meaning here: known, so that real command lines pass.
const GETH_VALUES: &str = "datadir.ancient datadir.minfreedisk keystore db.engine config syncmode gcmode state.scheme \
    history.state history.transactions bloomfilter.size eth.requiredblocks override.cancun override.verkle remotedb \
    synctarget bootnodes maxpeers maxpendpeers nat netrestrict nodekey nodekeyhex identity discovery.port discovery.dns \
    sync.forcecycle sync.tdinterval http.corsdomain http.rpcprefix ws.addr ws.port ws.api ws.origins ws.rpcprefix \
    authrpc.addr authrpc.port authrpc.vhosts authrpc.jwtsecret graphql.corsdomain graphql.vhosts rpc.gascap \
    rpc.evmtimeout rpc.txfeecap rpc.batch-request-limit rpc.batch-response-max-size jspath exec preload miner.etherbase \
    miner.gasprice miner.gaslimit miner.extradata miner.recommit miner.newpayload-timeout cache cache.database \
    cache.trie cache.gc cache.snapshot cache.blocklogs fdlimit crypto.kzg unlock password signer pcscdpath txpool.locals \
    txpool.journal txpool.rejournal txpool.pricelimit txpool.pricebump txpool.accountslots txpool.globalslots \
    txpool.accountqueue txpool.globalqueue txpool.lifetime gpo.blocks gpo.percentile gpo.maxprice gpo.ignoreprice \
    verbosity log.vmodule vmodule log.format log.file log.maxsize log.maxbackups log.maxage pprof.addr pprof.port \
    ethstats metrics.addr metrics.port dev.period dev.gaslimit whitelist txlookuplimit pprof.memprofilerate \
    pprof.blockprofilerate pprof.cpuprofile trace log.backtrace blobpool.datadir blobpool.datacap blobpool.pricebump \
    metrics.influxdb.endpoint metrics.influxdb.database metrics.influxdb.username metrics.influxdb.password \
    metrics.influxdb.tags metrics.influxdb.token metrics.influxdb.bucket metrics.influxdb.organization \
    cache.trie.journal cache.trie.rejournal light.serve light.ingress light.egress light.maxpeers";
const GETH_BOOLS: &str = "mainnet testnet sepolia holesky exitwhensynced snapshot nocompaction nodiscover discovery.v4 \
    discovery.v5 ws graphql rpc.allow-unprotected-txs rpc.enabledeprecatedpersonal cache.noprefetch cache.preimages \
    allow-insecure-unlock lightkdf usb txpool.nolocals log.json log.rotate log.compress pprof metrics \
    metrics.expensive metrics.influxdb metrics.influxdbv2 dev vmdebug nousb v5disc log.debug goerli discv4 discv5 \
    light.nopruning light.nosyncserve";

fn kind(name: &str) -> Option<Kind> {
    let own = FLAGS.iter().find(|(known, ..)| *known == name).map(|(_, kind, _)| *kind);
    let geth = |names: &str, kind| names.split_whitespace().any(|n| n == name).then_some(kind);
    own.or_else(|| geth(GETH_VALUES, Val)).or_else(|| geth(GETH_BOOLS, Bool))
}

fn help() -> String {
    let mut text = String::from("mocknode [flags] | version | command-ok | command-fail\n");
    for (name, _, meaning) in FLAGS {
        text += &format!("  --{name:<16} {meaning}\n");
    }
    text + "geth's own flags are accepted and ignored\n"
}

// ---- Flags: parsing, Go style -------------------------------------------------------------------

#[derive(Default)]
struct Flags {
    values: BTreeMap<String, String>,
    command: Option<String>,
}

impl Flags {
    fn collect(argv: &[String], release: &Release) -> Result<Flags, String> {
        let env = std::env::var("MOCK_FLAGS").unwrap_or_default();
        let env: Vec<String> = env.split_whitespace().map(str::to_owned).collect();
        let mut flags = Flags::default();
        for words in [argv, &env, &release.flags()] {
            flags.parse(words)?;
        }
        Ok(flags)
    }

    /// The first word that is no flag ends the flags: it is a command, the rest are its own words.
    fn parse(&mut self, words: &[String]) -> Result<(), String> {
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-').filter(|f| !f.is_empty() && *f != "-") else {
                let command = if word == "--" { words.next() } else { Some(word) };
                self.command = command.cloned().or(self.command.take());
                return Ok(());
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let name = match name {
                "h" => "help",
                "v" => "version",
                long => long,
            };
            let kind = kind(name).ok_or(format!("flag provided but not defined: -{name}"))?;
            let value = match (kind, given) {
                (Bool, None) => "true".to_owned(),
                (Bool, Some(v)) if !["true", "false", "1", "0"].contains(&v.as_str()) => {
                    return Err(format!("invalid boolean value {v:?} for -{name}: parse error"));
                }
                (_, Some(value)) => value,
                (Val, None) => words.next().ok_or(format!("flag needs an argument: -{name}"))?.clone(),
                (Number, None) => {
                    let next = words.next_if(|next| next.parse::<u64>().is_ok());
                    next.cloned().unwrap_or_default()
                }
            };
            self.values.insert(name.to_owned(), value);
        }
        Ok(())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn on(&self, name: &str) -> bool {
        self.text(name).is_some_and(|v| v == "true" || v == "1")
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        self.text(name).map(|v| parsed(name, v)).transpose()
    }

    fn time(&self, name: &str) -> Result<Option<Duration>, String> {
        self.text(name).map(|v| duration(v).ok_or_else(|| invalid(name, v))).transpose()
    }

    /// `V` or `V:MORE`.
    fn pair(&self, name: &str) -> Option<(&str, Option<&str>)> {
        let text = self.text(name)?;
        Some(text.split_once(':').map_or((text, None), |(v, more)| (v, Some(more))))
    }
}

fn invalid(name: &str, value: &str) -> String {
    format!("invalid value {value:?} for flag -{name}: parse error")
}

fn parsed<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| invalid(name, value))
}

/// A duration as Go writes it: `300ms`, `1.5s`, `2m30s`, `0`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(sum).ok()).flatten()
}

/// `SEGV`, `SIGSEGV`, `11`.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim_start_matches("SIG");
    let known =
        |raw: &i32| signal_name(*raw).is_some_and(|n| n.trim_start_matches("SIG") == name) || raw.to_string() == name;
    (1..=31).find(known)
}

// ---- What it was told to be ---------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq)]
enum Bad {
    Html,
    Error,
    WrongId,
    Huge,
    Slow,
    Garbage,
    Null,
    NotOffered,
    Close,
}

const BAD: &[(&str, Bad)] = &[
    ("html", Bad::Html),
    ("error", Bad::Error),
    ("wrong-id", Bad::WrongId),
    ("huge", Bad::Huge),
    ("slow", Bad::Slow),
    ("garbage", Bad::Garbage),
    ("null", Bad::Null),
    ("not-offered", Bad::NotOffered),
    ("close", Bad::Close),
];

#[derive(Clone, Copy, PartialEq)]
enum Effort {
    None,
    Cpu,
    Disk,
}

struct Config {
    release: String,
    version: String,
    version_exit: Option<i32>,
    version_delay: Duration,
    datadir: PathBuf,
    instance: PathBuf,
    http: Option<(String, u16)>,
    http_api: Vec<String>,
    http_vhosts: Vec<String>,
    ipc: Option<PathBuf>,
    rpc_delay: Duration,
    rpc_bad: Option<(Bad, Vec<String>)>,
    network_id: Option<u64>,
    network: Option<PathBuf>,
    p2p_port: u16,
    mine: bool,
    period: Duration,
    start_head: u64,
    rewind: u64,
    halt_at: u64,
    die_at: Option<(u64, i32)>,
    die_after: Option<(Duration, i32)>,
    die_at_start: Option<i32>,
    die_by: Option<i32>,
    exit_early: bool,
    end_after: Option<Duration>,
    hang_after: Option<Duration>,
    slow_start: (Duration, Effort),
    stop: (Duration, Effort),
    deaf: bool,
    child: Option<Vec<String>>,
    chain_id: Option<u64>,
    genesis: Option<String>,
    new_identity: bool,
    validators: String,
    absent: (usize, u64),
    others_version: String,
    peers: u64,
    syncing: Option<u64>,
    lock: bool,
    log_flood: Option<u64>,
}

impl Config {
    fn new(flags: &Flags, release: &Release) -> Result<Config, String> {
        let given = |name| flags.text(name).map(str::to_owned);
        let list = |name, default: &str| -> Vec<String> {
            flags.text(name).unwrap_or(default).split(',').map(|w| w.trim().to_owned()).collect()
        };
        // An optional number: the flag alone means the default.
        let optional = |name: &str, default: &str| match flags.text(name) {
            Some("") => parsed(name, default).map(Some),
            _ => flags.number(name),
        };
        let code = |name: &str, text: Option<&str>| parsed::<i32>(name, text.unwrap_or("1"));

        let version = given("mock-version").or_else(|| std::env::var("MOCK_VERSION").ok());
        let version = version.or(release.name.clone()).unwrap_or("1.0.0".to_owned());
        // geth tells its version without the `v` of the tag.
        let bare = version.strip_prefix('v').filter(|v| v.starts_with(|c: char| c.is_ascii_digit()));

        let datadir = PathBuf::from(flags.text("datadir").unwrap_or_default());
        let datadir = std::path::absolute(&datadir).unwrap_or(datadir);
        let ipc = datadir.join(flags.text("ipcpath").unwrap_or("geth.ipc"));
        let rpc = !flags.on("no-rpc");
        let child = (flags.on("child") || flags.on("deaf-child")).then(|| {
            let which = |name: &str| if flags.on(name) { name } else { "-" }.to_owned();
            vec![which("deaf-child"), which("child-session"), given("child-time").unwrap_or_default()]
        });
        flags.time("child-time")?;

        Ok(Config {
            release: release.name.clone().unwrap_or("-".to_owned()),
            version: bare.unwrap_or(&version).to_owned(),
            version_exit: flags.number("version-exit")?,
            version_delay: flags.time("version-delay")?.unwrap_or_default(),
            instance: datadir.join(flags.text("instance").unwrap_or("geth")),
            http: match (flags.text("http.addr"), flags.number("http.port")?) {
                (addr, port) if rpc && flags.on("http") => {
                    Some((addr.unwrap_or("127.0.0.1").to_owned(), port.unwrap_or(8545)))
                }
                _ => None,
            },
            http_api: list("http.api", "eth,net,web3"),
            http_vhosts: list("http.vhosts", "localhost"),
            ipc: (rpc && !flags.on("ipcdisable")).then_some(ipc),
            rpc_delay: flags.time("rpc-delay")?.unwrap_or_default(),
            rpc_bad: match flags.pair("rpc-bad") {
                None => None,
                Some((name, methods)) => {
                    let known = BAD.iter().find(|(n, _)| *n == name).ok_or_else(|| invalid("rpc-bad", name))?;
                    let methods = methods.map(|m| m.split(',').map(str::to_owned).collect());
                    Some((known.1, methods.unwrap_or_default()))
                }
            },
            network_id: flags.number("networkid")?,
            network: flags.text("network").map(PathBuf::from),
            p2p_port: flags.number("port")?.unwrap_or(30303),
            mine: flags.on("mine"),
            period: flags.time("period")?.unwrap_or(Duration::from_secs(1)).max(Duration::from_millis(1)),
            start_head: flags.number("start-head")?.unwrap_or(0),
            rewind: flags.number("rewind")?.unwrap_or(0),
            halt_at: if flags.on("no-blocks") { 0 } else { flags.number("halt-at")?.unwrap_or(u64::MAX) },
            die_at: match flags.pair("die-at") {
                Some((at, status)) => Some((parsed("die-at", at)?, code("die-at", status)?)),
                None => None,
            },
            die_after: match flags.pair("die-after") {
                Some((time, status)) => {
                    let time = duration(time).ok_or_else(|| invalid("die-after", time))?;
                    Some((time, code("die-after", status)?))
                }
                None => None,
            },
            die_at_start: optional("die-at-start", "1")?.map(|n: u64| i32::try_from(n).unwrap_or(1)),
            die_by: match flags.text("die-by-signal") {
                Some(name) => Some(signal_number(name).ok_or_else(|| invalid("die-by-signal", name))?),
                None => None,
            },
            exit_early: flags.on("exit-early"),
            end_after: flags.time("end-after")?,
            hang_after: flags.time("hang-after")?,
            slow_start: (
                flags.time("slow-start")?.unwrap_or_default(),
                if flags.on("slow-start-busy") { Effort::Cpu } else { Effort::None },
            ),
            stop: (
                flags.time("stop-time")?.unwrap_or_default(),
                match (flags.on("stop-busy"), flags.on("stop-write")) {
                    (true, _) => Effort::Cpu,
                    (_, true) => Effort::Disk,
                    _ => Effort::None,
                },
            ),
            deaf: flags.on("deaf"),
            child,
            chain_id: flags.number("chain-id")?,
            genesis: given("genesis"),
            new_identity: flags.on("new-identity"),
            validators: given("validators").unwrap_or("1".to_owned()),
            absent: match flags.pair("absent") {
                Some((count, until)) => {
                    (parsed("absent", count)?, until.map_or(Ok(u64::MAX), |until| parsed("absent", until))?)
                }
                None => (0, 0),
            },
            others_version: given("others-version").unwrap_or("1.0.0".to_owned()),
            peers: flags.number("peers")?.unwrap_or(4),
            syncing: optional("syncing", "1000")?,
            lock: !flags.on("no-lock"),
            log_flood: optional("log-flood", "10")?,
            datadir,
        })
    }
}

// ---- Log and journal ----------------------------------------------------------------------------

/// One line in geth's terminal format: UTC, no year, the message padded when something follows it.
fn log(level: &str, message: &str, context: &dyn Display) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (_, month, day) = civil(now.as_secs() / 86400);
    let (second, milli) = (now.as_secs() % 86400, now.subsec_millis());
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let context = context.to_string();
    let stamp = format!("{month:02}-{day:02}|{hour:02}:{minute:02}:{second:02}.{milli:03}");
    let line = if context.is_empty() {
        format!("{level:<5}[{stamp}] {message}\n")
    } else {
        format!("{level:<5}[{stamp}] {message:<40} {context}\n")
    };
    write_stderr(line.as_bytes());
}

fn info(message: &str, context: impl Display) {
    log("INFO", message, &context);
}

fn warn(message: &str, context: impl Display) {
    log("WARN", message, &context);
}

/// A Go program whose stderr has no reader left is killed by SIGPIPE; other errors pass unseen.
fn write_stderr(bytes: &[u8]) {
    if io::stderr().write_all(bytes).is_err_and(|e| e.kind() == ErrorKind::BrokenPipe) {
        let _ = emulate_default_handler(Signal::PIPE.as_raw());
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant's days_from_civil, reversed).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// utils.Fatalf: on stdout and stderr, once if they are the same file.
fn fatal(what: &dyn Display) -> ! {
    let same = match (rustix::fs::fstat(io::stdout()), rustix::fs::fstat(io::stderr())) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    };
    if !same {
        let _ = writeln!(io::stdout(), "Fatal: {what}");
    }
    write_stderr(format!("Fatal: {what}\n").as_bytes());
    exit(1);
}

/// `<datadir>/mock.journal`: what happened, for tests to count. One line a happening, written at
/// once and whole: `WHAT PID RELEASE UNIX_MS MORE`; RELEASE is `-` outside of a release.
///
/// `start` HEAD (LOCK is held) · `busy` (LOCK was held by another) · `term` (a SIGTERM came) ·
/// `sig NAME` (another signal came; NAME stands before the PID) · `stop` HEAD (clean stop done) ·
/// `die` HEAD HOW (a bad habit; HOW is a status or SIGNAME) · `child` (by the child itself, once
/// it is deaf or in its session) · in a network `vote` KIND HEIGHT ROUND HASH (before it is sent) · `round` HEIGHT ROUND MS
/// (it went to that round, which lasts so long) · `reorg` HEAD (a decided block was given up).
struct Journal {
    file: File,
    release: String,
}

impl Journal {
    fn open(path: &Path, release: &str) -> io::Result<Journal> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Journal { file, release: release.to_owned() })
    }

    fn write(&self, what: &str, more: impl Display) {
        let line = format!("{what} {} {} {} {more}", std::process::id(), self.release, unix_ms(SystemTime::now()));
        let line = format!("{}\n", line.trim_end());
        if let Err(e) = (&self.file).write_all(line.as_bytes()) {
            warn("Mock journal lost a line", format_args!("line={:?} err={e}", line.trim_end()));
        }
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

// ---- Identity and chain on disk -----------------------------------------------------------------

/// Follows from the node key alone, as with geth; the curve is replaced by a hash.
struct Identity {
    id: String,
    public: String,
    address: String,
}

impl Identity {
    fn of(key: &str) -> Identity {
        Identity { id: sha(&["id", key]), public: sha(&["x", key]) + &sha(&["y", key]), address: address_of(key) }
    }

    fn enode(&self, port: u16) -> String {
        format!("enode://{}@127.0.0.1:{port}", self.public)
    }
}

/// geth makes a new key when there is none: the silent loss of identity.
fn node_key(config: &Config) -> io::Result<String> {
    let path = config.instance.join("nodekey");
    let key = match fs::read_to_string(&path) {
        Ok(key) => key,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let mut random = [0; 32];
            File::open("/dev/urandom")?.read_exact(&mut random)?;
            let key = hex(&random);
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(key.as_bytes())?;
            key
        }
        Err(e) => return Err(e),
    };
    let key = key.trim().to_owned();
    Ok(if config.new_identity { sha(&["another", &key]) } else { key })
}

/// Genesis hash and chain id. Flags lie for the run they are given in; only a fresh chain keeps them.
fn genesis(config: &Config) -> io::Result<(String, u64)> {
    let seed = config.genesis.as_deref();
    let hash = |seed: &str| format!("0x{}", sha(&["genesis", seed]));
    let path = config.instance.join("chaindata/genesis");
    let stored = fs::read_to_string(&path).unwrap_or_default();
    let stored = stored.split_once(' ').and_then(|(hash, id)| Some((hash.to_owned(), id.trim().parse().ok()?)));
    let Some((old_hash, old_id)) = stored else {
        let fresh = (hash(seed.unwrap_or_default()), config.chain_id.unwrap_or(1111));
        replace(&path, &format!("{} {}\n", fresh.0, fresh.1), SystemTime::now())?;
        return Ok(fresh);
    };
    Ok((seed.map_or(old_hash, hash), config.chain_id.unwrap_or(old_id)))
}

/// Whole or not at all, and with the given time stamp: that of the head is its block's.
fn replace(path: &Path, text: &str, time: SystemTime) -> io::Result<()> {
    let new = path.with_extension("tmp");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.set_modified(time)?;
    fs::rename(new, path)
}

fn take_lock(config: &Config, journal: &Journal) -> io::Result<File> {
    let path = config.instance.join("LOCK");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    if config.lock && flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        journal.write("busy", "");
        fatal(&"Failed to create the protocol stack: datadir already used by another process");
    }
    Ok(file)
}

// ---- The node -----------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// Only with a slow start: geth asks for TERM and INT once its database is open; before, they kill.
    Starting,
    Running,
    Hung,
    Stopping,
}

struct State {
    phase: Phase,
    head: u64,
    head_time: SystemTime,
}

struct Node {
    config: Config,
    started: Instant,
    journal: Journal,
    identity: Identity,
    genesis: String,
    chain_id: u64,
    validators: Vec<String>,
    /// In a network: what was decided there.
    chain: Option<Arc<Chain>>,
    state: Mutex<State>,
    /// Told at each change of phase.
    changed: Condvar,
    /// All sockets of RPC, so that a stop can end what blocks in them.
    sockets: Mutex<BTreeMap<u64, OwnedFd>>,
    next_socket: AtomicU64,
    /// Held until the process ends.
    _lock: File,
}

/// A thread that panicked while holding it is no reason to die twice.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    fn open(config: Config, started: Instant) -> io::Result<Node> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(config.instance.join("chaindata"))?;
        let journal = Journal::open(&config.datadir.join("mock.journal"), &config.release)?;
        let lock = take_lock(&config, &journal)?;
        let (genesis, chain_id) = genesis(&config)?;
        let identity = Identity::of(&node_key(&config)?);
        let validators = match config.validators.parse::<u64>() {
            Ok(count) => {
                let others = (1..count).map(|i| Identity::of(&format!("validator {i}")).address);
                std::iter::once(identity.address.clone()).take(count.min(1) as usize).chain(others).collect()
            }
            Err(_) => config.validators.split(',').map(|a| a.trim().to_lowercase()).collect(),
        };
        let chain = match &config.network {
            Some(path) => {
                let network = ledger::Network::read(path)?;
                Some(Arc::new(Chain::open(&config, network, &identity.address, &genesis)?))
            }
            None => None,
        };
        let path = config.instance.join("chaindata/head");
        let stored = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let made = fs::metadata(&path).and_then(|m| m.modified()).ok().filter(|_| stored.is_some());
        let (head, head_time) = match chain.as_ref().map(|chain| chain.head()) {
            Some(block) => (block.number, UNIX_EPOCH + Duration::from_millis(block.time_ms)),
            None => (
                stored.map_or(config.start_head, |head| head.saturating_sub(config.rewind)),
                made.unwrap_or_else(SystemTime::now),
            ),
        };
        let phase = if config.slow_start.0.is_zero() { Phase::Running } else { Phase::Starting };
        let node = Node {
            state: Mutex::new(State { phase, head, head_time }),
            config,
            started,
            journal,
            identity,
            genesis,
            chain_id,
            validators,
            chain,
            changed: Condvar::new(),
            sockets: Mutex::default(),
            next_socket: AtomicU64::new(0),
            _lock: lock,
        };
        node.save(&locked(&node.state))?;
        Ok(node)
    }

    fn phase(&self) -> Phase {
        locked(&self.state).phase
    }

    fn head(&self) -> u64 {
        locked(&self.state).head
    }

    fn save(&self, state: &State) -> io::Result<()> {
        replace(&self.config.instance.join("chaindata/head"), &format!("{}\n", state.head), state.head_time)
    }

    fn client_version(&self) -> String {
        format!("Geth/v{}-stable-00000000/linux-amd64/rust", self.config.version)
    }

    /// Nothing takes a stop back, and only a stop ends a hang. False if nothing changed.
    fn enter(&self, phase: Phase) -> bool {
        let mut state = locked(&self.state);
        let allowed = match state.phase {
            Phase::Starting | Phase::Running => true,
            Phase::Hung => phase == Phase::Stopping,
            Phase::Stopping => false,
        };
        if allowed {
            state.phase = phase;
            self.changed.notify_all();
        }
        allowed
    }

    /// Waits for a deadline; false if a stop began before.
    fn wait_until(&self, deadline: Instant) -> bool {
        let time = deadline.saturating_duration_since(Instant::now());
        let calm = |state: &mut State| state.phase != Phase::Stopping;
        let waited = self.changed.wait_timeout_while(locked(&self.state), time, calm);
        waited.unwrap_or_else(PoisonError::into_inner).0.phase != Phase::Stopping
    }

    /// A bad habit's end: nothing is stopped, the unclean marker stays.
    fn die(&self, code: i32) -> ! {
        let how = self.config.die_by.and_then(signal_name).map_or(code.to_string(), str::to_owned);
        self.journal.write("die", format_args!("{} {how}", self.head()));
        if let Some(signal) = self.config.die_by {
            die_by(signal);
        }
        exit(code);
    }
}

fn die_by(signal: i32) -> ! {
    // No core files all over the place.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = emulate_default_handler(signal);
    exit(128 + signal);
}

/// The life of a node. Threads do the rest; each one's end, save an exit, leaves the others alone.
fn run(config: Config, argv: &[String], started: Instant) {
    if config.datadir.as_os_str().is_empty() {
        fatal(&"the mock node needs --datadir");
    }
    let signals = Signals::catch().unwrap_or_else(|e| fatal(&format!("signals: {e}")));
    let node = Node::open(config, started).unwrap_or_else(|e| fatal(&format!("Failed to open the datadir: {e}")));
    let node = Arc::new(node);
    let (release, head) = (&node.config.release, node.head());
    node.journal.write("start", head);
    let pid = std::process::id();
    write_stderr(format!("MOCK start pid={pid} release={release} head={head} args={}\n", argv.join(" ")).as_bytes());

    spawn(&node, move |node| signals.obey(node));
    start_child(&node);
    schedule(&node);
    if let Some(code) = node.config.die_at_start {
        node.die(code);
    }
    if node.config.exit_early {
        thread::sleep(Duration::from_millis(50));
        node.die(0);
    }
    spend(&node, node.config.slow_start);
    node.enter(Phase::Running);
    mark_unclean(&node);
    if !node.config.rpc_delay.is_zero() {
        spawn(&node, |node| {
            if node.wait_until(Instant::now() + node.config.rpc_delay) {
                open_rpc(node);
            }
        });
    } else {
        open_rpc(&node);
    }
    info("Starting peer-to-peer node", format_args!("instance={}", node.client_version()));
    if let Some(pace) = node.config.log_flood {
        spawn(&node, move |node| flood(node, pace));
    }
    spawn(&node, |node| match &node.chain {
        Some(chain) => consensus::take_part(node, chain),
        None => make_blocks(node),
    });
    loop {
        thread::park();
    }
}

fn spawn(node: &Arc<Node>, work: impl FnOnce(&Arc<Node>) + Send + 'static) {
    let node = Arc::clone(node);
    thread::spawn(move || work(&node));
}

/// Whatever happens at a given time after the start.
fn schedule(node: &Arc<Node>) {
    let at = |time: Option<Duration>, act: fn(&Arc<Node>)| {
        if let Some(time) = time {
            let deadline = node.started + time;
            spawn(node, move |node| {
                if node.wait_until(deadline) {
                    act(node);
                }
            });
        }
    };
    let config = &node.config;
    at(config.die_after.map(|(time, _)| time), |node| node.die(node.config.die_after.map_or(1, |(_, code)| code)));
    at(config.end_after, |node| {
        log("ERROR", "Low disk space. Gracefully shutting down Geth to prevent database corruption.", &"");
        stop(node);
    });
    at(config.hang_after, |node| {
        node.enter(Phase::Hung);
    });
}

/// Not after a stop, which may have come at once: its last act is to take the mark away.
fn mark_unclean(node: &Node) {
    let state = locked(&node.state);
    if state.phase == Phase::Stopping {
        return;
    }
    let path = node.config.instance.join("unclean");
    if let Ok(booted) = fs::read_to_string(&path) {
        warn("Unclean shutdown detected", format_args!("booted={}", booted.trim()));
    }
    let now = unix_ms(SystemTime::now()) / 1000;
    let (year, month, day) = civil(now / 86400);
    let (hour, minute, second) = (now / 3600 % 24, now / 60 % 60, now % 60);
    let booted = format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+0000\n");
    if let Err(e) = fs::write(&path, booted) {
        fatal(&format!("{}: {e}", path.display()));
    }
}

fn make_blocks(node: &Arc<Node>) {
    let config = &node.config;
    let die_at = config.die_at.map_or(u64::MAX, |(at, _)| at);
    let mut due = Instant::now();
    loop {
        // After a pause of the whole process no blocks are made up for.
        due = (due + config.period).max(Instant::now());
        if !node.wait_until(due) {
            return;
        }
        let mut state = locked(&node.state);
        let made = state.head < die_at;
        if state.phase != Phase::Running || made && state.head >= config.halt_at {
            return;
        }
        if made {
            state.head += 1;
            state.head_time = SystemTime::now();
            if let Err(e) = node.save(&state) {
                fatal(&format!("Failed to write the head: {e}"));
            }
        }
        let head = state.head;
        drop(state);
        if made {
            info("Imported new chain segment", format_args!("number={head} hash={}", node.at(head).hash));
        }
        if head >= die_at {
            node.die(config.die_at.map_or(1, |(_, code)| code));
        }
    }
}

/// By time and not by what was written: a slow reader gets less, not later.
fn flood(node: &Arc<Node>, pace: u64) {
    let head = format!("DEBUG[01-01|00:00:00.000] {:<300} number=", "Flooding the log");
    let mut number = 0u64;
    let mut due = Instant::now();
    while node.wait_until(due) {
        let mut chunk = String::new();
        while (chunk.len() as u64) < pace * 10_000 {
            chunk += &head;
            chunk += &format!("{number:012}\n");
            number += 1;
        }
        write_stderr(chunk.as_bytes());
        due = (due + Duration::from_millis(10)).max(Instant::now());
    }
}

/// Time that passes with or without progress that others can see.
fn spend(node: &Node, (time, effort): (Duration, Effort)) {
    let deadline = Instant::now() + time;
    match effort {
        Effort::None => thread::sleep(time),
        Effort::Cpu => {
            let mut digest = Sha256::digest([]);
            while Instant::now() < deadline {
                for _ in 0..1000 {
                    digest = Sha256::digest(digest);
                }
            }
        }
        Effort::Disk => {
            if let Err(e) = write_steadily(&node.config.instance.join("stop-write"), deadline) {
                warn("Mock write failed", format_args!("err={e}"));
            }
        }
    }
}

fn write_steadily(path: &Path, deadline: Instant) -> io::Result<()> {
    let mut file = File::create(path)?;
    while Instant::now() < deadline {
        file.write_all(&[7; 256 * 1024])?;
        file.sync_all()?;
        let left = deadline.saturating_duration_since(Instant::now());
        thread::sleep(left.min(Duration::from_millis(250)));
    }
    fs::remove_file(path)
}

/// The clean stop, in geth's order: RPC is dead long before the process. It never returns, unless
/// a stop is under way.
fn stop(node: &Arc<Node>) {
    if !node.enter(Phase::Stopping) {
        return;
    }
    close_rpc(node);
    spend(node, node.config.stop);
    for _ in 0..3 {
        info("Writing cached state to disk", "");
    }
    let state = locked(&node.state);
    if let Err(e) = node.save(&state) {
        fatal(&format!("Failed to write the head: {e}"));
    }
    let _ = fs::remove_file(node.config.instance.join("unclean"));
    // Again, if the stop overtook the start.
    node.config.ipc.as_ref().map(fs::remove_file);
    info("Blockchain stopped", "");
    node.journal.write("stop", state.head);
    exit(0);
}

// ---- Signals ------------------------------------------------------------------------------------

/// What a Go program does something about; every delivery is a byte in its socket.
struct Signals(Vec<(Signal, UnixStream)>);

impl Signals {
    fn catch() -> io::Result<Signals> {
        let mut signals = vec![Signal::TERM, Signal::INT, Signal::QUIT, Signal::ABORT];
        if !hup_is_ignored() {
            signals.push(Signal::HUP);
        }
        // Ignored by a Go program, deadly by default.
        for ignored in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::PIPE] {
            signal_hook::flag::register(ignored.as_raw(), Arc::new(AtomicBool::new(false)))?;
        }
        let catch = |signal: Signal| {
            let (read, write) = UnixStream::pair()?;
            pipe::register(signal.as_raw(), write)?;
            Ok((signal, read))
        };
        signals.into_iter().map(catch).collect::<io::Result<_>>().map(Signals)
    }

    fn obey(&self, node: &Arc<Node>) {
        let mut asked = 0;
        loop {
            let mut fds: Vec<PollFd<'_>> = self.0.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
            // A signal interrupts the call as well; its byte is there at the next turn.
            let _ = poll(&mut fds, None);
            let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
            for ((signal, stream), _) in self.0.iter().zip(ready).filter(|(_, ready)| *ready) {
                let (mut stream, mut bytes) = (stream, [0; 64]);
                for _ in 0..stream.read(&mut bytes).unwrap_or(0) {
                    arrived(node, *signal, &mut asked);
                }
            }
        }
    }
}

/// Go leaves a HUP alone that its parent ignored (nohup).
fn hup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn arrived(node: &Arc<Node>, signal: Signal, asked: &mut u32) {
    let name = signal_name(signal.as_raw()).unwrap_or("?").trim_start_matches("SIG");
    match signal {
        Signal::TERM => node.journal.write("term", ""),
        _ => node.journal.write(&format!("sig {name}"), ""),
    }
    match signal {
        Signal::TERM | Signal::INT if node.config.deaf => {}
        Signal::TERM | Signal::INT if node.phase() == Phase::Starting => die_by(signal.as_raw()),
        Signal::TERM | Signal::INT => {
            *asked += 1;
            match *asked {
                1 => {
                    info("Got interrupt, shutting down...", "");
                    spawn(node, stop);
                }
                2..=10 => {
                    warn("Already shutting down, interrupt more to panic.", format_args!("times={}", 11 - *asked));
                }
                _ => {
                    write_stderr(b"panic: boom\n\ngoroutine 1 [running]:\nmain.main()\n");
                    exit(2);
                }
            }
        }
        Signal::HUP => die_by(signal.as_raw()),
        _ => {
            write_stderr(format!("SIG{name}: quit\nPC=0x0 m=0 sigcode=0\n\ngoroutine 1 [running]:\n").as_bytes());
            exit(2);
        }
    }
}

// ---- The child ----------------------------------------------------------------------------------

const GRANDCHILD: &str = "mock-grandchild";

/// It gets every descriptor that this process inherited itself, as a child of geth's would.
fn start_child(node: &Arc<Node>) {
    let Some(words) = node.config.child.as_ref() else { return };
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_default()).arg(GRANDCHILD).args(words);
    command.arg(&node.config.release).arg(node.config.datadir.join("mock.journal"));
    match command.spawn() {
        Ok(mut child) => spawn(node, move |_| {
            let _ = child.wait();
        }),
        Err(e) => fatal(&format!("child: {e}")),
    }
}

fn grandchild(words: &[String]) -> ! {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    if word(0) == "deaf-child" {
        for signal in [Signal::TERM, Signal::INT] {
            let _ = signal_hook::flag::register(signal.as_raw(), Arc::new(AtomicBool::new(false)));
        }
    }
    if word(1) == "child-session" {
        let _ = rustix::process::setsid();
    }
    if let Ok(journal) = Journal::open(Path::new(word(4)), word(3)) {
        journal.write("child", "");
    }
    match duration(word(2)) {
        Some(time) => thread::sleep(time),
        None => loop {
            thread::park();
        },
    }
    exit(0);
}

// ---- RPC: sockets -------------------------------------------------------------------------------

/// IPC first, as geth does; a port in use is fatal.
fn open_rpc(node: &Arc<Node>) {
    if let Some(path) = &node.config.ipc {
        match bind_ipc(path) {
            Ok(listener) => {
                info("IPC endpoint opened", format_args!("url={}", path.display()));
                serve(node, listener, |l| Ok(l.accept()?.0), serve_ipc);
            }
            Err(e) => fatal(&format!("Error starting protocol stack: listen unix {}: {e}", path.display())),
        }
    }
    if let Some((addr, port)) = &node.config.http {
        let opened = TcpListener::bind((addr.as_str(), *port)).and_then(|l| Ok((l.local_addr()?, l)));
        let (at, listener) = opened.unwrap_or_else(|e| {
            let why =
                if e.kind() == ErrorKind::AddrInUse { "address already in use".to_owned() } else { e.to_string() };
            fatal(&format!("Error starting protocol stack: listen tcp {addr}:{port}: bind: {why}"));
        });
        let port = format!("{}\n", at.port());
        if let Err(e) = replace(&node.config.datadir.join("http.port"), &port, SystemTime::now()) {
            fatal(&format!("http.port: {e}"));
        }
        info("HTTP server started", format_args!("endpoint={at} auth=false prefix= cors= vhosts=localhost"));
        serve(node, listener, |l| Ok(l.accept()?.0), serve_http);
    }
}

/// The longest path that fits into a socket address.
const LONGEST_SOCKET_PATH: usize = 107;

/// geth fails on a long path; tests have long paths, so here it is bound through its directory.
fn bind_ipc(path: &Path) -> io::Result<UnixListener> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let _ = fs::remove_file(path);
    let listener = if path.as_os_str().len() > LONGEST_SOCKET_PATH {
        warn("The ipc endpoint is longer than 107 characters. ", format_args!("endpoint={}", path.display()));
        let dir = File::open(dir)?;
        let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
        UnixListener::bind(short.join(path.file_name().unwrap_or_default()))?
    } else {
        UnixListener::bind(path)?
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One thread for the listener, one for each connection.
fn serve<L, S>(node: &Arc<Node>, listener: L, accept: fn(&L) -> io::Result<S>, talk: fn(&Node, S) -> io::Result<()>)
where
    L: AsFd + Send + 'static,
    S: AsFd + Send + 'static,
{
    let Some(own) = keep(node, &listener) else { return };
    spawn(node, move |node| {
        while node.phase() != Phase::Stopping {
            match accept(&listener) {
                Ok(stream) => {
                    let Some(key) = keep(node, &stream) else { return };
                    spawn(node, move |node| {
                        // The client went away, or we stop: nobody is left to be told.
                        let _ = talk(node, stream);
                        locked(&node.sockets).remove(&key);
                    });
                }
                // Out of descriptors, most likely; or woken by a stop.
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
        locked(&node.sockets).remove(&own);
    });
}

/// None when a stop has begun.
fn keep(node: &Node, socket: &impl AsFd) -> Option<u64> {
    let mut sockets = locked(&node.sockets);
    let clone = socket.as_fd().try_clone_to_owned().ok().filter(|_| node.phase() != Phase::Stopping)?;
    let key = node.next_socket.fetch_add(1, Ordering::Relaxed);
    sockets.insert(key, clone);
    Some(key)
}

/// Ends every accept and read of RPC. The address is free at once, not when the threads have seen it.
fn close_rpc(node: &Node) {
    for (_, socket) in std::mem::take(&mut *locked(&node.sockets)) {
        let _ = rustix::net::shutdown(&socket, Shutdown::Both);
    }
    if let Some((addr, _)) = &node.config.http {
        info("HTTP server stopped", format_args!("endpoint={addr}"));
    }
    if let Some(path) = &node.config.ipc {
        let _ = fs::remove_file(path);
        info("IPC endpoint closed", format_args!("url={}", path.display()));
    }
}

/// JSON values one after the other, with or without anything between them.
fn serve_ipc(node: &Node, stream: UnixStream) -> io::Result<()> {
    let mut output = stream.try_clone()?;
    for call in serde_json::Deserializer::from_reader(BufReader::new(stream)).into_iter::<Value>() {
        let (call, broken) = match call {
            Ok(call) => (call, false),
            Err(e) if e.is_eof() || e.is_io() => return Ok(()),
            Err(_) => (Value::Null, true),
        };
        if node.phase() == Phase::Hung {
            continue;
        }
        let reply = if broken { Some(parse_error()) } else { answer(node, &call, true) };
        if let Some(reply) = reply {
            let text = format!("{reply}\n").into_bytes();
            deliver(node, &mut output, &call, b"", text)?;
        }
        if broken {
            return Ok(());
        }
    }
    Ok(())
}

struct Request {
    method: String,
    host: String,
    content_type: String,
    keep_alive: bool,
    body: Vec<u8>,
}

const LARGEST_BODY: usize = 5 << 20;

/// None at the end of the connection.
fn read_request(input: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = input.by_ref().take(64 * 1024);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), _, Some(version)) = (words.next(), words.next(), words.next()) else { return Ok(None) };
    let mut request = Request {
        method: method.to_owned(),
        host: String::new(),
        content_type: String::new(),
        keep_alive: version != "HTTP/1.0",
        body: Vec::new(),
    };
    let mut length = 0;
    loop {
        let mut line = String::new();
        head.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => request.host = value.to_owned(),
            "content-type" => request.content_type = value.to_owned(),
            "content-length" => length = value.parse().unwrap_or(usize::MAX),
            "connection" => request.keep_alive &= !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    if length > LARGEST_BODY {
        return Err(ErrorKind::InvalidData.into());
    }
    request.body.resize(length, 0);
    input.read_exact(&mut request.body)?;
    Ok(Some(request))
}

fn serve_http(node: &Node, stream: TcpStream) -> io::Result<()> {
    let mut output = stream.try_clone()?;
    // As geth does with a connection that is kept but not used.
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut input = BufReader::new(stream);
    while let Some(request) = read_request(&mut input)? {
        if node.phase() == Phase::Hung {
            input.get_ref().set_read_timeout(None)?;
            continue;
        }
        let call: Option<Value> = serde_json::from_slice(&request.body).ok();
        let (status, text) = if !host_is_known(node, &request.host) {
            ("403 Forbidden", "invalid host specified\n".to_owned())
        } else if request.method == "GET" && request.body.is_empty() {
            ("200 OK", String::new())
        } else if request.method != "POST" {
            ("405 Method Not Allowed", "method not allowed\n".to_owned())
        } else if !request.content_type.starts_with("application/json") {
            let what = "invalid content type, only application/json is supported\n";
            ("415 Unsupported Media Type", what.to_owned())
        } else {
            let reply = call.as_ref().map_or_else(|| Some(parse_error()), |call| answer(node, call, false));
            ("200 OK", reply.map_or(String::new(), |reply| format!("{reply}\n")))
        };
        let kind = if status.starts_with("200") { "application/json" } else { "text/plain; charset=utf-8" };
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        deliver(node, &mut output, &call.unwrap_or_default(), head.as_bytes(), text.into_bytes())?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

/// Names could be another site's (DNS rebinding), addresses not.
fn host_is_known(node: &Node, host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    address || name.is_empty() || node.config.http_vhosts.iter().any(|known| known == "*" || known == name)
}

/// The habits that spoil a whole reply; those that spoil a result are in [`respond`].
fn deliver(node: &Node, output: &mut impl Write, call: &Value, head: &[u8], body: Vec<u8>) -> io::Result<()> {
    let calls = call.as_array().map_or(std::slice::from_ref(call), Vec::as_slice);
    let bad = calls.iter().find_map(|call| bad_habit(node, call["method"].as_str().unwrap_or_default()));
    match bad {
        Some(Bad::Html) => {
            let page = "<html><head><title>Welcome</title></head><body>It works!</body></html>\n";
            if !head.is_empty() {
                write!(output, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", page.len())?;
            }
            output.write_all(page.as_bytes())
        }
        Some(Bad::Garbage) => {
            output.write_all(b"\x00\xff\xfe\x16\x03\x01 what is this {]}\r\n\r\n\x80\x81")?;
            Err(ErrorKind::Other.into())
        }
        Some(Bad::Close) => Err(ErrorKind::Other.into()),
        Some(Bad::Slow) => {
            for byte in head.iter().chain(&body) {
                output.write_all(&[*byte])?;
                if !node.wait_until(Instant::now() + Duration::from_secs(1)) {
                    break;
                }
            }
            Ok(())
        }
        Some(Bad::Error | Bad::WrongId | Bad::Huge | Bad::Null | Bad::NotOffered) | None => {
            output.write_all(&[head, &body].concat())
        }
    }
}

// ---- RPC: calls ---------------------------------------------------------------------------------

type Answer = Result<Value, (i64, String)>;

fn refusal(code: i64, message: impl Into<String>) -> Answer {
    Err((code, message.into()))
}

fn parse_error() -> Value {
    json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "parse error"}})
}

fn bad_habit(node: &Node, method: &str) -> Option<Bad> {
    let (bad, methods) = node.config.rpc_bad.as_ref()?;
    (methods.is_empty() || methods.iter().any(|m| m == method)).then_some(*bad)
}

/// One call or a batch; None if nothing in it wants a reply.
fn answer(node: &Node, call: &Value, ipc: bool) -> Option<Value> {
    match call.as_array() {
        None => respond(node, call, ipc),
        Some(calls) if calls.is_empty() => Some(envelope(&Value::Null, refusal(-32600, "empty batch"))),
        Some(calls) => {
            let replies: Vec<Value> = calls.iter().filter_map(|call| respond(node, call, ipc)).collect();
            (!replies.is_empty()).then_some(Value::Array(replies))
        }
    }
}

fn respond(node: &Node, call: &Value, ipc: bool) -> Option<Value> {
    let Some(method) = call["method"].as_str() else {
        return Some(envelope(&call["id"], refusal(-32600, "invalid request")));
    };
    let id = call.get("id")?;
    let bad = bad_habit(node, method);
    let result = match bad {
        Some(Bad::Error) => refusal(-32000, "mock error"),
        Some(Bad::Huge) => Ok(json!(format!("0x{}", "a".repeat(10 << 20)))),
        Some(Bad::Null) => Ok(Value::Null),
        Some(Bad::NotOffered) => not_offered(method),
        Some(Bad::Html | Bad::WrongId | Bad::Slow | Bad::Garbage | Bad::Close) | None => {
            let module = method.split('_').next().unwrap_or_default();
            let offered = ipc || module == "rpc" || node.config.http_api.iter().any(|api| api == module);
            if offered { result(node, method, &call["params"]) } else { not_offered(method) }
        }
    };
    let wrong = json!(format!("not-{id}"));
    Some(envelope(if bad == Some(Bad::WrongId) { &wrong } else { id }, result))
}

fn envelope(id: &Value, answer: Answer) -> Value {
    match answer {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}),
    }
}

fn not_offered(method: &str) -> Answer {
    refusal(-32601, format!("the method {method} does not exist/is not available"))
}

fn result(node: &Node, method: &str, params: &Value) -> Answer {
    let config = &node.config;
    Ok(match method {
        "eth_blockNumber" => quantity(node.head()),
        "eth_chainId" => quantity(node.chain_id),
        "eth_mining" => json!(config.mine),
        "eth_getBlockByNumber" => block_at(node, &params[0])?.map_or(Value::Null, |n| node.block(n)),
        "eth_syncing" => config.syncing.map_or(json!(false), |behind| {
            let head = node.head();
            json!({"startingBlock": "0x0", "currentBlock": quantity(head), "highestBlock": quantity(head + behind)})
        }),
        "net_version" => json!(config.network_id.unwrap_or(node.chain_id).to_string()),
        "net_peerCount" => quantity(node.peers()),
        "net_listening" => json!(true),
        "txpool_status" => json!({"pending": "0x0", "queued": "0x0"}),
        "web3_clientVersion" => json!(node.client_version()),
        "admin_nodeInfo" => node.info(),
        "admin_datadir" => json!(config.datadir.to_string_lossy()),
        "admin_peers" => (0..node.peers()).map(|i| node.peer(i)).collect(),
        "istanbul_nodeAddress" => json!(node.identity.address),
        "istanbul_getValidators" => {
            json!(node.validators(known_block(node, &params[0])?))
        }
        "istanbul_isValidator" => {
            let own = |n| node.validators(n).contains(&node.identity.address);
            json!(known_block(node, &params[0]).is_ok_and(own))
        }
        "istanbul_getCommitSignersFromBlock" => {
            let block = node.at(known_block(node, &params[0])?);
            json!({"Number": block.number, "Hash": block.hash, "Author": block.author, "Committers": block.committers})
        }
        "istanbul_status" => node.activity(params)?,
        "istanbul_getWbftExtraInfo" => {
            if params[0].as_str().and_then(hex_number).is_none() {
                return refusal(-32000, "unknown block");
            }
            node.extra(known_block(node, &params[0])?)
        }
        _ => return not_offered(method),
    })
}

fn quantity(n: u64) -> Value {
    json!(format!("{n:#x}"))
}

fn hex_number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The number that a block parameter means; None above the head.
fn block_at(node: &Node, param: &Value) -> Result<Option<u64>, (i64, String)> {
    let head = node.head();
    match param.as_str() {
        None | Some("latest" | "pending" | "safe" | "finalized") => Ok(Some(head)),
        Some("earliest") => Ok(Some(0)),
        Some(text) => match hex_number(text) {
            Some(n) => Ok(Some(n).filter(|n| *n <= head)),
            None => Err((-32602, "invalid argument 0: hex string without 0x prefix".to_owned())),
        },
    }
}

fn known_block(node: &Node, param: &Value) -> Result<u64, (i64, String)> {
    block_at(node, param)?.ok_or((-32000, "unknown block".to_owned()))
}

/// Blocks as RPC tells them.
impl Node {
    /// A block up to the head: a decided one, or, alone, what follows from genesis and number; only head and time are state.
    fn at(&self, n: u64) -> Block {
        if let Some(chain) = &self.chain {
            return chain.block(n).unwrap_or_else(|| chain.head());
        }
        let signers = self.signers(n);
        let turn = n.checked_rem(signers.len() as u64).unwrap_or(0);
        // Round robin among those that sign.
        let author = signers.get(turn as usize).cloned().unwrap_or_else(|| format!("0x{:040}", 0));
        let own = author == self.identity.address;
        Block {
            number: n,
            hash: self.hash(n),
            parent: if n == 0 { format!("0x{:064}", 0) } else { self.hash(n - 1) },
            time_ms: self.time_ms(n),
            author,
            round: 0,
            committers: signers.to_vec(),
            version: if own { &self.config.version } else { &self.config.others_version }.clone(),
            next: None,
        }
    }

    /// Who was to sign a block.
    fn validators(&self, n: u64) -> Vec<String> {
        self.chain.as_ref().map_or_else(|| self.validators.clone(), |chain| chain.network.set(n))
    }

    fn peers(&self) -> u64 {
        self.chain.as_ref().map_or(self.config.peers, |chain| chain.peers())
    }

    fn hash(&self, n: u64) -> String {
        match n {
            0 => self.genesis.clone(),
            _ => format!("0x{}", sha(&["block", &self.genesis, &n.to_string()])),
        }
    }

    /// Blocks before the head are taken to have come one period after the other.
    fn time_ms(&self, n: u64) -> u64 {
        let state = locked(&self.state);
        let period = u64::try_from(self.config.period.as_millis()).unwrap_or(u64::MAX);
        unix_ms(state.head_time).saturating_sub(state.head.saturating_sub(n).saturating_mul(period))
    }

    fn signers(&self, n: u64) -> &[String] {
        let (absent, until) = self.config.absent;
        let missing = if n == 0 {
            self.validators.len()
        } else if n < until {
            absent
        } else {
            0
        };
        &self.validators[..self.validators.len().saturating_sub(missing)]
    }

    fn block(&self, n: u64) -> Value {
        let block = self.at(n);
        json!({
            "number": quantity(n), "hash": block.hash, "parentHash": block.parent,
            "timestamp": quantity(block.time_ms / 1000), "miner": block.author,
            "extraData": vanity(&block.version), "difficulty": "0x1", "gasLimit": "0x6422c40", "gasUsed": "0x0",
            "nonce": "0x0000000000000000", "size": "0x400", "transactions": [], "uncles": [],
        })
    }

    fn extra(&self, n: u64) -> Value {
        let seal = |block: &Block| {
            if block.number == 0 {
                return Value::Null;
            }
            let signature = format!("0x{}", sha(&["seal", &block.hash]));
            json!({"sealers": block.committers, "signature": signature})
        };
        let (block, parent) = (self.at(n), self.at(n.saturating_sub(1)));
        let next = block.next.as_ref().map(|set| {
            let validator = |(index, address)| json!({"index": format!("{index:#x}"), "addr": address, "bls": "0x"});
            let candidate = |address| json!({"addr": address, "diligence": "0x1cfde0"});
            json!({
                "candidates": set.iter().map(candidate).collect::<Vec<_>>(),
                "validators": set.iter().enumerate().map(validator).collect::<Vec<_>>(),
            })
        });
        json!({
            "vanityData": decoded(&block.version), "randaoReveal": format!("0x{}", sha(&["randao", &block.hash])),
            "prevRound": quantity(parent.round), "prevPreparedSeal": seal(&parent), "prevCommittedSeal": seal(&parent),
            "round": quantity(block.round), "preparedSeal": seal(&block), "committedSeal": seal(&block), "gasTip": "27600000000000",
            "epochInfo": next,
        })
    }

    fn activity(&self, params: &Value) -> Answer {
        let head = self.head();
        let (start, end) = match (params.get(0), params.get(1)) {
            (Some(start), Some(end)) => (known_block(self, start)?, known_block(self, end)?),
            _ => (head.saturating_sub(63).max(1), head),
        };
        if start > end || end - start >= 1024 {
            return refusal(-32000, "invalid block range");
        }
        // Whoever did nothing is listed with 0.
        let mut signed: BTreeMap<String, u64> = self.validators(end).into_iter().map(|address| (address, 0)).collect();
        let (mut made, mut rounds, mut failed) = (signed.clone(), BTreeMap::new(), 0);
        for block in (start..=end).map(|n| self.at(n)) {
            *made.entry(block.author).or_insert(0) += 1;
            *rounds.entry(block.round.to_string()).or_insert(0) += 1;
            failed += block.round;
            for signer in block.committers {
                *signed.entry(signer).or_insert(0) += 1;
            }
        }
        let total = end - start + 1;
        Ok(json!({
            "sealerActivity": {
                "total": signed, "prepared": signed, "committed": signed, "prevPrepared": signed, "prevCommitted": signed,
            },
            "author": made, "blockRange": {"startBlock": start, "endBlock": end, "totalBlocks": total},
            "roundStats": {"roundDistribution": rounds, "totalRounds": failed},
        }))
    }

    fn info(&self) -> Value {
        let (head, port) = (self.head(), self.config.p2p_port);
        json!({
            "id": self.identity.id, "name": self.client_version(), "enode": self.identity.enode(port),
            "enr": "enr:-mock", "ip": "127.0.0.1", "ports": {"discovery": port, "listener": port},
            "listenAddr": format!("[::]:{port}"),
            "protocols": {"eth": {
                "network": self.config.network_id.unwrap_or(self.chain_id), "difficulty": head,
                "genesis": self.genesis, "config": {"chainId": self.chain_id}, "head": self.at(head).hash,
            }},
        })
    }

    fn peer(&self, i: u64) -> Value {
        let identity = Identity::of(&format!("validator {}", i + 1));
        let remote = format!("127.0.0.1:{}", 30304 + i);
        json!({
            "enode": format!("enode://{}@{remote}", identity.public), "id": identity.id,
            "name": format!("Geth/v{}-stable-00000000/linux-amd64/rust", self.config.others_version),
            "caps": ["eth/68", "istanbul/100"],
            "network": {"localAddress": format!("127.0.0.1:{}", self.config.p2p_port), "remoteAddress": remote,
                "inbound": false, "trusted": false, "static": true},
            "protocols": {"eth": {"version": 68}},
        })
    }
}

/// The three numbers of a version.
fn numbers(version: &str) -> [u8; 3] {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse::<u8>().ok());
    [0; 3].map(|_| numbers.next().unwrap_or(0))
}

/// What `istanbul_getWbftExtraInfo` makes of the next.
fn decoded(version: &str) -> String {
    let [major, minor, patch] = numbers(version);
    format!("[version: v{major}.{minor}.{patch}, client: geth, go: rust, os: linux]")
}

/// RLP of [version, client, language, system] of the author's node.
fn vanity(version: &str) -> String {
    let version: Vec<u8> = numbers(version).into_iter().skip_while(|byte| *byte == 0).collect();
    let item = |bytes: &[u8]| match bytes {
        [byte] if *byte < 0x80 => vec![*byte],
        // All of them are shorter than 56 bytes.
        _ => [&[0x80 + bytes.len() as u8], bytes].concat(),
    };
    let items = [item(&version), item(b"geth"), item(b"rust"), item(b"linux")].concat();
    format!("0x{:02x}{}", 0xc0 + items.len(), hex(&items))
}
