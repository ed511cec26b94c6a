//! The flags of the clients that we know, by the release they belong to: which take a value, and which one dropped. An unknown
//! flag is never an error: the binary itself is the judge. Sources: the clients' own flag tables, go-wemix 0.10.9 (built on
//! geth 1.10.16), go-wbft and go-stablenet (1.13.15).

/// Flags that take no value of their own: `--x`, or `--x=false`.
const BOOLEANS: &[&str] = &[
    "allow-insecure-unlock",
    "cache.noprefetch",
    "cache.preimages",
    "dev",
    "discovery.v4",
    "discovery.v5",
    "discv4",
    "discv5",
    "exitwhensynced",
    "fakepow",
    "goerli",
    "graphql",
    "help",
    "h",
    "holesky",
    "http",
    "ipcdisable",
    "kiln",
    "lightkdf",
    "light.nopruning",
    "light.nosyncserve",
    "log.compress",
    "log.debug",
    "log.json",
    "log.rotate",
    "mainnet",
    "metrics",
    "metrics.expensive",
    "metrics.influxdb",
    "metrics.influxdbv2",
    "mine",
    "miner.noverify",
    "nocompaction",
    "nodiscover",
    "nousb",
    "pcscdpath.disable",
    "pprof",
    "rinkeby",
    "ropsten",
    "rpc.allow-unprotected-txs",
    "rpc.enabledeprecatedpersonal",
    "sepolia",
    "snapshot",
    "testnet",
    "txpool.nolocals",
    "usb",
    "v5disc",
    "version",
    "v",
    "vmdebug",
    "wemix-testnet",
    "ws",
];

/// Flags that take a value: `--x v` or `--x=v`, where the value may itself begin with a dash.
const VALUES: &[&str] = &[
    "authrpc.addr",
    "authrpc.jwtsecret",
    "authrpc.port",
    "authrpc.vhosts",
    "blobpool.datacap",
    "blobpool.datadir",
    "blobpool.pricebump",
    "bloomfilter.size",
    "bootnodes",
    "cache",
    "cache.blocklogs",
    "cache.database",
    "cache.gc",
    "cache.snapshot",
    "cache.trie",
    "cache.trie.journal",
    "cache.trie.rejournal",
    "config",
    "crypto.kzg",
    "datadir",
    "datadir.ancient",
    "datadir.minfreedisk",
    "db.engine",
    "dev.gaslimit",
    "dev.period",
    "discovery.dns",
    "discovery.port",
    "eth.requiredblocks",
    "ethstats",
    "exec",
    "fdlimit",
    "gcmode",
    "gpo.blocks",
    "gpo.ignoreprice",
    "gpo.maxprice",
    "gpo.percentile",
    "graphql.corsdomain",
    "graphql.vhosts",
    "history.state",
    "history.transactions",
    "http.addr",
    "http.api",
    "http.corsdomain",
    "http.port",
    "http.rpcprefix",
    "http.vhosts",
    "identity",
    "ipcpath",
    "jspath",
    "keystore",
    "light.egress",
    "light.ingress",
    "light.maxpeers",
    "light.serve",
    "log.backtrace",
    "log.file",
    "log.format",
    "log.maxage",
    "log.maxbackups",
    "log.maxsize",
    "log.vmodule",
    "maxpeers",
    "maxpendpeers",
    "metrics.addr",
    "metrics.influxdb.bucket",
    "metrics.influxdb.database",
    "metrics.influxdb.endpoint",
    "metrics.influxdb.organization",
    "metrics.influxdb.password",
    "metrics.influxdb.tags",
    "metrics.influxdb.token",
    "metrics.influxdb.username",
    "metrics.port",
    "miner.etherbase",
    "miner.extradata",
    "miner.gaslimit",
    "miner.gasprice",
    "miner.newpayload-timeout",
    "miner.recommit",
    "nat",
    "netrestrict",
    "networkid",
    "nodekey",
    "nodekeyhex",
    "override.cancun",
    "override.verkle",
    "password",
    "pcscdpath",
    "port",
    "pprof.addr",
    "pprof.blockprofilerate",
    "pprof.cpuprofile",
    "pprof.memprofilerate",
    "pprof.port",
    "preload",
    "remotedb",
    "rpc.batch-request-limit",
    "rpc.batch-response-max-size",
    "rpc.evmtimeout",
    "rpc.gascap",
    "rpc.txfeecap",
    "signer",
    "state.scheme",
    "sync.forcecycle",
    "sync.tdinterval",
    "syncmode",
    "synctarget",
    "trace",
    "txlookuplimit",
    "txpool.accountqueue",
    "txpool.accountslots",
    "txpool.globalqueue",
    "txpool.globalslots",
    "txpool.journal",
    "txpool.lifetime",
    "txpool.locals",
    "txpool.pricebump",
    "txpool.pricelimit",
    "txpool.rejournal",
    "unlock",
    "verbosity",
    "vmodule",
    "whitelist",
    "ws.addr",
    "ws.api",
    "ws.origins",
    "ws.port",
    "ws.rpcprefix",
];

/// Flags of go-wemix (WEMIX 3.0) that go-wbft (4.0) ends at, and what stands in their place there, if anything does.
const DROPPED_BY_WBFT: &[(&str, &str)] = &[
    ("blocksperturn", ""),
    ("cache.triesinmemory", ""),
    ("consensusmethod", ""),
    ("fakepow", ""),
    ("fixeddifficulty", ""),
    ("fixedgaslimit", ""),
    ("hub", ""),
    ("kiln", ""),
    ("log", "--log.file"),
    ("maxidleblockinterval", ""),
    ("maxtxsperblock", ""),
    ("miner.gastarget", "--miner.gaslimit"),
    ("miner.notify", ""),
    ("miner.noverify", ""),
    ("miner.threads", ""),
    ("noncelimit", ""),
    ("prefetchcount", ""),
    ("rinkeby", ""),
    ("ropsten", ""),
    ("userocksdb", "--db.engine"),
    ("wemix-testnet", "--testnet"),
    ("wemix.block.interval", ""),
    ("wemix.block.minbuildtime", ""),
    ("wemix.block.minbuildtxs", ""),
    ("wemix.block.timeadjblocks", ""),
    ("wemix.block.trailtime", ""),
    ("wemix.bootnodecount", ""),
    ("wemix.publicrequests.cache", ""),
    ("wemix.publicrequests.max", ""),
];

/// Words that make the binary do something else than run a node (`geth --help`, 1.10 and 1.13; `console` and `js` run one).
const COMMANDS: &[&str] = &[
    "account",
    "attach",
    "db",
    "dump",
    "dumpconfig",
    "dumpgenesis",
    "export",
    "export-history",
    "export-preimages",
    "h",
    "help",
    "import",
    "import-history",
    "import-preimages",
    "init",
    "license",
    "makecache",
    "makedag",
    "removedb",
    "show-deprecated-flags",
    "snapshot",
    "verkle",
    "version",
    "version-check",
    "wallet",
];

/// Flags that do the same.
const ANSWERS: &[&str] = &["h", "help", "version"];

/// Whether a flag takes the next word as its value; none: nobody here knows it.
pub fn takes_value(flag: &str) -> Option<bool> {
    if VALUES.contains(&flag) {
        return Some(true);
    }
    BOOLEANS.contains(&flag).then_some(false)
}

/// The name of a flag as the word spells it, and the value in the word, if it has one.
pub fn flag(word: &str) -> Option<(&str, Option<&str>)> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|name| !name.is_empty())?;
    Some(name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value))))
}

/// Each flag of a command line with its value, as Go's flag package reads them; `--` ends them. A flag that nobody here knows
/// has the next word as its value, if that is no flag.
pub fn flags(args: &[String]) -> Vec<(&str, Option<&str>)> {
    read(args).0
}

/// What the binary is asked to do instead of running a node, if it is.
pub fn command(args: &[String]) -> Option<&str> {
    let (flags, word) = read(args);
    let answer = flags.iter().find(|(name, value)| ANSWERS.contains(name) && *value != Some("false"));
    word.filter(|word| COMMANDS.contains(word)).or(answer.map(|(name, _)| *name))
}

/// The flags, and the first word that is none.
fn read(args: &[String]) -> (Vec<(&str, Option<&str>)>, Option<&str>) {
    let mut found = Vec::new();
    let mut first = None;
    let mut words = args.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let Some((name, inside)) = flag(word) else {
            first.get_or_insert(word);
            continue;
        };
        let value = match (inside, takes_value(name)) {
            (Some(value), _) => Some(value),
            (None, Some(false)) => None,
            (None, Some(true)) => words.next(),
            (None, None) => words.next_if(|next| !next.starts_with('-')),
        };
        found.push((name, value));
    }
    (found, first)
}

/// What is wrong with these arguments for a release that tells this version, in words: flags that it does not know any more.
pub fn dropped(args: &[String], version: &str) -> Vec<String> {
    // go-wemix counts 0.9 and 0.10; what was built on a later geth counts otherwise.
    if version.starts_with("0.") || version.starts_with("1.10.") || !version.starts_with(|c: char| c.is_ascii_digit()) {
        return Vec::new();
    }
    let gone = |name: &str| {
        let (_, instead) = DROPPED_BY_WBFT.iter().find(|(flag, _)| *flag == name)?;
        let remedy = if instead.is_empty() { String::new() } else { format!(" ({instead} there)") };
        Some(format!("--{name}{remedy}"))
    };
    flags(args).into_iter().filter_map(|(name, _)| gone(name)).collect()
}

/// Variables that the node itself takes for flags (geth 1.11 and later): `GETH_HTTP_PORT` is `--http.port`.
pub fn is_flag_variable(name: &str) -> bool {
    name.starts_with("GETH_") || name.starts_with("GWEMIX_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn values_and_switches_are_told_apart_as_the_node_does() {
        let line =
            words("--datadir D --http --http.port=7 -mine --identity --port --port 9 --other x --bogus -- --datadir E");
        assert_eq!(
            flags(&line),
            [
                ("datadir", Some("D")),
                ("http", None),
                ("http.port", Some("7")),
                ("mine", None),
                ("identity", Some("--port")),
                ("port", Some("9")),
                ("other", Some("x")),
                ("bogus", None),
            ]
        );
        // A switch does not take the word behind it, which geth then takes for a command.
        assert_eq!(flags(&words("--http false")), [("http", None)]);
        assert_eq!(flags(&words("console - -- x")), []);
    }

    #[test]
    fn a_command_is_told_from_a_node() {
        for (line, command_is) in [
            ("version", Some("version")),
            ("--datadir D init genesis.json", Some("init")),
            ("--datadir version --mine", None),
            ("--http version", Some("version")),
            ("--version", Some("version")),
            ("--help=false --mine", None),
            ("--datadir D console", None),
            ("start --home H", None),
            ("", None),
        ] {
            assert_eq!(command(&words(line)), command_is, "{line}");
        }
        assert!(COMMANDS.is_sorted());
    }

    #[test]
    fn the_tables_have_each_flag_once_and_in_one_of_them() {
        let mut all: Vec<&str> = BOOLEANS.iter().chain(VALUES).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(DROPPED_BY_WBFT.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn a_flag_that_the_new_release_dropped_is_named_with_its_remedy() {
        let old = words("--datadir D --wemix-testnet --userocksdb 1 --hub x --verbosity 3 --unheard-of");
        assert_eq!(
            dropped(&old, "1.13.15-stable"),
            ["--wemix-testnet (--testnet there)", "--userocksdb (--db.engine there)", "--hub"]
        );
        assert_eq!(dropped(&old, "1.0.0-alpha").len(), 3, "go-wbft under its own name");
        for same in ["0.10.9-stable", "1.10.16-stable", "", "unknown"] {
            assert!(dropped(&old, same).is_empty(), "{same}");
        }
        assert!(dropped(&words("--mine --http --datadir x"), "1.13.15").is_empty());
        assert!(is_flag_variable("GETH_HTTP") && is_flag_variable("GWEMIX_HOME") && !is_flag_variable("GETHX"));
    }
}
