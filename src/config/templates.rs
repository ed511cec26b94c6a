//! The templates of a config.toml: what kinds of node there are, and what each sets. Ports and network ids are those of the
//! WEMIX networks; graces are what geth-based nodes need to write their state to a slow disk.

/// A kind of node.
pub struct Template {
    /// Its name.
    pub name: &'static str,
    /// What it is for, in one line.
    pub summary: &'static str,
    /// What its user should know, one line each.
    pub notes: &'static [&'static str],
    /// The node's arguments behind `--datadir DIR`.
    pub node_args: &'static [&'static str],
    /// Keys and values of settings.
    pub settings: &'static [(&'static str, &'static str)],
}

/// All of them.
#[rustfmt::skip]
pub static TEMPLATES: &[Template] = &[
    Template {
        name: "mainnet",
        summary: "a full node of the WEMIX mainnet, its RPC for this machine alone",
        notes: &[],
        node_args: &[
            "--networkid", "1111", "--syncmode", "full", "--port", "8589",
            "--http", "--http.addr", "127.0.0.1", "--http.port", "8588",
            "--ws", "--ws.addr", "127.0.0.1", "--ws.port", "8598",
        ],
        settings: &[
            ("daemon_network", "mainnet"), ("daemon_shutdown_grace", "5m"), ("daemon_shutdown_limit", "30m"),
        ],
    },
    Template {
        name: "testnet",
        summary: "a full node of the WEMIX testnet, its RPC for this machine alone",
        notes: &["For a WEMIX 3.0 release, --testnet is --wemix-testnet."],
        node_args: &[
            "--testnet", "--networkid", "1112", "--syncmode", "full", "--port", "8589",
            "--http", "--http.addr", "127.0.0.1", "--http.port", "8588",
            "--ws", "--ws.addr", "127.0.0.1", "--ws.port", "8598",
        ],
        settings: &[
            ("daemon_network", "testnet"), ("daemon_shutdown_grace", "5m"), ("daemon_shutdown_limit", "30m"),
        ],
    },
    Template {
        name: "devnet",
        summary: "a node that signs on a private network of one's own, with short times",
        notes: &[
            "The chain is that of your genesis.json: `BINARY --datadir DIR init genesis.json` before the first start.",
            "With --nodiscover a node finds the others only where its own config file names them.",
        ],
        node_args: &[
            "--syncmode", "full", "--port", "30303", "--nodiscover", "--mine",
            "--http", "--http.addr", "127.0.0.1", "--http.port", "8545",
            "--http.api", "eth,net,web3,istanbul,txpool,debug",
        ],
        settings: &[
            ("daemon_network", "devnet"), ("daemon_height_poll_interval", "1s"), ("daemon_restart_backoff", "1s"),
            ("daemon_min_peers", "0"), ("daemon_min_disk", "1GiB"), ("daemon_trial_time", "10s"), ("daemon_trial_blocks", "5"),
        ],
    },
    Template {
        name: "validator",
        summary: "a validator of the WEMIX mainnet, its RPC for this machine alone",
        notes: &[
            "Set daemon_reference_rpc to another node of the chain: its head shortens the hold before a start.",
            "The node's key must be in the data directory, and in no other node's.",
        ],
        node_args: &[
            "--networkid", "1111", "--syncmode", "full", "--port", "8589", "--mine",
            "--http", "--http.addr", "127.0.0.1", "--http.port", "8588", "--http.api", "eth,net,web3",
        ],
        settings: &[
            ("daemon_network", "mainnet"), ("validator_mode", "true"), ("daemon_shutdown_grace", "10m"),
            ("daemon_shutdown_limit", "30m"), ("daemon_min_disk", "50GiB"),
        ],
    },
    Template {
        name: "archive",
        summary: "an archive node of the WEMIX mainnet: every state of every block",
        notes: &["Its data are large: backups are snapshots, which need a file system with links."],
        node_args: &[
            "--networkid", "1111", "--syncmode", "full", "--gcmode", "archive", "--port", "8589",
            "--http", "--http.addr", "127.0.0.1", "--http.port", "8588", "--http.api", "eth,net,web3,debug",
            "--ws", "--ws.addr", "127.0.0.1", "--ws.port", "8598",
        ],
        settings: &[
            ("daemon_network", "mainnet"), ("daemon_shutdown_grace", "15m"), ("daemon_shutdown_limit", "1h"),
            ("daemon_backup_mode", "snapshot"), ("daemon_hang_timeout", "30m"), ("daemon_min_disk", "100GiB"),
            ("daemon_trial_timeout", "30m"),
        ],
    },
    Template {
        name: "rpc",
        summary: "a node of the WEMIX mainnet that answers everybody: HTTP and WebSocket on all addresses",
        notes: &[
            "Everybody who reaches the ports may ask; keep TLS, limits and names to a proxy in front.",
            "The node signs nothing and must hold no keys.",
        ],
        node_args: &[
            "--networkid", "1111", "--syncmode", "full", "--port", "8589", "--maxpeers", "100",
            "--http", "--http.addr", "0.0.0.0", "--http.port", "8588", "--http.api", "eth,net,web3", "--http.vhosts", "*",
            "--ws", "--ws.addr", "0.0.0.0", "--ws.port", "8598", "--ws.api", "eth,net,web3",
        ],
        settings: &[
            ("daemon_network", "mainnet"), ("daemon_shutdown_grace", "5m"), ("daemon_shutdown_limit", "30m"),
            ("daemon_min_peers", "3"),
        ],
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::SETTINGS;
    use crate::geth;

    #[test]
    fn every_flag_of_every_template_is_known_and_none_was_dropped() {
        for template in TEMPLATES {
            let args: Vec<String> = template.node_args.iter().map(|word| (*word).to_owned()).collect();
            let flags = geth::flags(&args);
            // Each word is a flag or the value of the flag before it: what is left over, geth takes for a command.
            let words: usize = flags.iter().map(|(_, value)| 1 + usize::from(value.is_some())).sum();
            assert_eq!(words, args.len(), "{}", template.name);
            for (flag, value) in flags {
                assert_eq!(geth::takes_value(flag), Some(value.is_some()), "{}: --{flag}", template.name);
            }
            assert_eq!(geth::dropped(&args, "1.13.15-stable"), Vec::<String>::new(), "{}", template.name);
        }
    }

    #[test]
    fn every_key_of_every_template_is_a_setting_and_differs_from_the_default_or_tells_the_network() {
        for template in TEMPLATES {
            for (key, value) in template.settings {
                let setting = SETTINGS.iter().find(|setting| setting.key() == *key);
                let setting = setting.unwrap_or_else(|| panic!("{}: {key}", template.name));
                assert!(*key == "daemon_network" || setting.default != *value, "{}: {key}", template.name);
            }
        }
    }

    #[test]
    fn ports_network_ids_and_addresses_are_those_of_the_networks() {
        let value = |name: &str, flag: &str| {
            let template = TEMPLATES.iter().find(|template| template.name == name).unwrap();
            let args: Vec<String> = template.node_args.iter().map(|word| (*word).to_owned()).collect();
            crate::node_args::value(&args, flag).map(str::to_owned)
        };
        let ports = |name: &str| ["http.port", "ws.port", "port", "networkid"].map(|flag| value(name, flag));
        let said = |all: [&str; 4]| all.map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()));
        assert_eq!(ports("mainnet"), said(["8588", "8598", "8589", "1111"]));
        assert_eq!(ports("testnet"), said(["8588", "8598", "8589", "1112"]));
        assert_eq!(ports("validator"), said(["8588", "", "8589", "1111"]));
        assert_eq!(ports("archive"), said(["8588", "8598", "8589", "1111"]));
        assert_eq!(ports("rpc"), said(["8588", "8598", "8589", "1111"]));
        assert_eq!(ports("devnet"), said(["8545", "", "30303", ""]));
        assert_eq!(value("archive", "gcmode").as_deref(), Some("archive"));
        // Only the one that is for everybody listens for others than this machine.
        for template in TEMPLATES {
            let open = template.node_args.contains(&"0.0.0.0");
            assert_eq!(open, template.name == "rpc", "{}", template.name);
        }
    }
}
