//! The table of commands, options and exit codes, and the help that is made of it. It only describes; `cli` reads the words.

/// An option of ours.
pub struct Opt {
    /// The flag, with its dashes.
    pub flag: &'static str,
    /// Its short form, with its dash; empty: it has none.
    pub short: &'static str,
    /// What follows it: empty for a switch, `N` for a value, `[=BOOL]` for one that may be left out.
    pub value: &'static str,
    /// What it means.
    pub help: &'static str,
}

/// A command.
pub struct Item {
    /// Its words, such as `upgrade schedule`.
    pub path: &'static str,
    /// The words that follow it; those in brackets may be left out, one with `…` stands for any number of them.
    pub words: &'static [&'static str],
    /// What it does, in one line.
    pub summary: &'static str,
    /// The options that only it has.
    pub options: &'static [Opt],
    /// More about it.
    pub details: &'static str,
}

impl Item {
    /// `wemixvisor upgrade schedule [OPTIONS] NAME HEIGHT`.
    pub fn usage(&self) -> String {
        let options = if self.options.is_empty() { "" } else { " [OPTIONS]" };
        let words: String = self.words.iter().map(|word| format!(" {word}")).collect();
        format!("wemixvisor {}{options}{words}", self.path)
    }

    /// Whether it only holds other commands.
    pub fn is_group(&self) -> bool {
        self.words == ["COMMAND"]
    }

    /// Whether its last word may be many.
    pub fn takes_many(&self) -> bool {
        self.words.last().is_some_and(|word| word.contains('…'))
    }
}

/// The options of every command.
pub static OPTIONS: &[Opt] = &[
    opt("--home", "DIR", "the home: an absolute path (DAEMON_HOME)"),
    opt("--name", "NAME", "the file name of the node's binary (DAEMON_NAME)"),
    opt("--network", "NAME", "a label in status (DAEMON_NETWORK)"),
    opt("--config", "FILE", "read this in place of the home's config.toml (DAEMON_CONFIG)"),
    opt("--auto-restart", "[=BOOL]", "start a node again that ended by itself (DAEMON_RESTART_ON_FAILURE)"),
    opt("--max-restarts", "N", "how often in a row (DAEMON_MAX_RESTARTS)"),
    opt("--health-check-interval", "TIME", "how often to look at its health (DAEMON_HEALTH_CHECK_INTERVAL)"),
    opt("--set", "KEY=VALUE", "any setting, such as --set poll_interval=1s"),
    opt("--json", "", "answer in JSON"),
    opt("--quiet", "", "no progress and no notes, only answers and errors"),
    opt("--help", "", "this help; -h too"),
    opt("--version", "", "the version of wemixvisor; -V too"),
];

/// Every command that may be typed.
pub static COMMANDS: &[Item] = &[
    Item {
        path: "init",
        words: &["[BINARY]"],
        summary: "lay out the home, and install BINARY as its genesis release",
        options: &[],
        details: "Also writes a commented config.toml. The file name of BINARY becomes daemon_name when nothing else sets one;\n\
                  a --name is recorded there too.\n\
                  It never overwrites a release and never moves an existing `current`.",
    },
    Item {
        path: "run",
        words: &["[NODE-ARGS…]"],
        summary: "supervise the node in the foreground (systemd, containers)",
        options: &[],
        details: "Everything after `run` is the node's, untouched; one `--` directly after `run` is dropped.\n\
                  Our own options stand before it: wemixvisor --home /srv/node run --datadir /data",
    },
    Item {
        path: "start",
        words: &["[OURS]", "[--]", "[NODE-ARGS…]"],
        summary: "supervise the node in the background; return when it is up",
        options: &[],
        details: "Our options may stand behind `start`, up to `--` or up to the first word that is not one of ours.\n\
                  Where the line holds `--`, all before it must be ours.\n\
                  Without NODE-ARGS: those of config.toml (node_args), else those of the last run.",
    },
    Item {
        path: "stop",
        words: &[],
        summary: "end the node and its supervisor, and wait for that",
        options: &[opt("--now", "", "kill the node at once; it may need long to repair its data")],
        details: "Nothing running is success.",
    },
    Item {
        path: "restart",
        words: &["[OURS]", "[--]", "[NODE-ARGS…]"],
        summary: "stop gently, then start, with new arguments if some are given",
        options: &[],
        details: "Options and arguments as for `start`. Nothing running: the same as `start`.",
    },
    Item {
        path: "status",
        words: &[],
        summary: "tell how the node and its upgrades are",
        options: &[opt("--check", "", "exit 1 when it runs but is not healthy")],
        details: "Exit 0 while starting, running, stopping or upgrading; 3 when stopped, crashed or in error.",
    },
    Item {
        path: "logs",
        words: &[],
        summary: "show the node's output",
        options: &[
            short("-f", "--follow", "", "go on with what is written from now on; -f too"),
            short("-n", "--lines", "N", "the last N lines, or all; -n too (default 100)"),
            opt(
                "--since",
                "TIME",
                "not what was written before: 2026-11-26T04:15:00Z, 2026-11-26 (local), or 10m (ago)",
            ),
            opt("--until", "TIME", "not what was written after"),
            opt("--grep", "REGEX", "only lines in which this is found"),
        ],
        details: "Times are read from the stamps that geth writes; a line without one belongs to the line before.\n\
                  Colours are left out, and what a terminal would obey. Of a line 64 KiB are looked at and shown.\n\
                  Where systemd's journal has the output, the command that shows it is told. Exit 1 when there is no log.",
    },
    Item {
        path: "version",
        words: &[],
        summary: "tell our version and the one of the current release",
        options: &[],
        details: "The release's own binary is asked.",
    },
    Item {
        path: "upgrade",
        words: &["COMMAND"],
        summary: "plan, look at and run upgrades",
        options: &[],
        details: "A plan says at which block a release takes over; it runs by itself when that block is due.",
    },
    Item {
        path: "upgrade schedule",
        words: &["NAME", "HEIGHT"],
        summary: "plan an upgrade",
        options: &[
            opt("--url", "URL", "where the release can be fetched"),
            opt("--checksum", "SUM", "its checksum: sha256:… or sha512:…"),
            opt("--info", "TEXT", "a description, or the plan's info as JSON"),
            opt("--force", "", "move a name that is planned already"),
        ],
        details: "HEIGHT is the first block that the new release must execute.",
    },
    Item {
        path: "upgrade add",
        words: &["NAME", "FILE"],
        summary: "install FILE as the release NAME",
        options: &[opt("--height", "N", "plan its upgrade too"), opt("--force", "", "replace a release of this name")],
        details: "",
    },
    Item {
        path: "upgrade prepare",
        words: &["[NAME]"],
        summary: "fetch the release of an upgrade now, and check it",
        options: &[
            opt("--url", "URL", "fetch it from there, whatever its plan says"),
            opt("--checksum", "SUM", "the checksum of what is there: sha256:… or sha512:…"),
        ],
        details: "Without NAME: the next upgrade. A release that is there is only checked. Exit 1 when something is missing.\n\
                  It works without a supervisor and beside one, and needs no DAEMON_ALLOW_DOWNLOAD_BINARIES.",
    },
    Item {
        path: "upgrade check",
        words: &["[NAME]"],
        summary: "check whether an upgrade could run, and tell what will happen",
        options: &[],
        details: "Without NAME: the next one. Exit 1 when something is missing.",
    },
    Item {
        path: "upgrade list",
        words: &[],
        summary: "list the plans",
        options: &[opt("--all", "", "finished upgrades too")],
        details: "",
    },
    Item { path: "upgrade show", words: &["NAME"], summary: "tell all about one plan", options: &[], details: "" },
    Item {
        path: "upgrade cancel",
        words: &["NAME"],
        summary: "withdraw a plan, or undo an upgrade that has not switched yet",
        options: &[],
        details: "After the switch it is refused (exit 4): that is for `upgrade revert`.",
    },
    Item {
        path: "upgrade retry",
        words: &["NAME"],
        summary: "let a plan that failed be tried again",
        options: &[],
        details: "",
    },
    Item {
        path: "upgrade now",
        words: &["NAME"],
        summary: "switch to a release at once, without a plan",
        options: &[],
        details: "The release must pass the same checks as a planned one. Needs a supervisor that runs.",
    },
    Item {
        path: "upgrade revert",
        words: &[],
        summary: "go back to the release before",
        options: &[opt("--to", "RELEASE", "to this one: genesis, or the name of an upgrade")],
        details: "Needs a supervisor that runs. Past an upgrade's height the old release may not be able to follow the chain.",
    },
    Item {
        path: "plan",
        words: &["COMMAND"],
        summary: "make, look at and apply batch plans: several upgrades under one name",
        options: &[],
        details: "The upgrades of a batch plan are planned all or none, and run one after the other: one that fails holds\n\
                  those behind it. It is kept in wemixvisor/plans/ in the home.",
    },
    Item {
        path: "plan create",
        words: &["NAME", "[UPGRADE…]"],
        summary: "make a batch plan of these upgrades; nothing is planned yet",
        options: &[
            opt("--description", "TEXT", "what it is about"),
            opt("--file", "FILE", "take the upgrades from this .json or .csv file"),
        ],
        details: "An UPGRADE is NAME:HEIGHT, NAME:HEIGHT:FILE or NAME:HEIGHT:URL#CHECKSUM; heights rise from one to the next.\n\
                  A FILE is hashed now, and fetched like a URL. A .csv file has a line name,file-or-url,height for each;\n\
                  a .json file is an array of plans, or a batch plan.",
    },
    Item {
        path: "plan validate",
        words: &["NAME|FILE"],
        summary: "check whether a batch plan, or a file that is to become one, could be applied",
        options: &[],
        details: "A word with a / in it, or that ends in .json or .csv, is a FILE. Exit 1 when something speaks against it.",
    },
    Item {
        path: "plan prepare",
        words: &["NAME"],
        summary: "fetch the releases of a batch plan now, and check them",
        options: &[],
        details: "A release that is there is only checked. Exit 1 when something is missing.\n\
                  It works without a supervisor and beside one, and needs no DAEMON_ALLOW_DOWNLOAD_BINARIES.",
    },
    Item {
        path: "plan apply",
        words: &["NAME"],
        summary: "plan the upgrades of a batch plan, all or none",
        options: &[],
        details: "Refused (4), with every reason, when one of them could not be planned. Applied already: says so.",
    },
    Item {
        path: "plan list",
        words: &[],
        summary: "list the batch plans and how far they are",
        options: &[],
        details: "",
    },
    Item {
        path: "plan show",
        words: &["NAME"],
        summary: "tell how far a batch plan is, and what is next",
        options: &[],
        details: "",
    },
    Item {
        path: "plan remove",
        words: &["NAME"],
        summary: "withdraw what is left of a batch plan, and forget it",
        options: &[],
        details: "Releases stay. Refused (4) while one of its upgrades is under way.",
    },
    Item {
        path: "backup",
        words: &["COMMAND"],
        summary: "make, look at, put back and remove backups of the node's data",
        options: &[],
        details: "A backup lies in DAEMON_DATA_BACKUP_DIR, or in .wemixvisor-backups in the data directory.",
    },
    Item {
        path: "backup create",
        words: &["[NAME]"],
        summary: "back up the node's data, the node being stopped",
        options: &[],
        details: "NAME begins the name of the backup; without it: manual. The time follows, and the whole name is told.\n\
                  Refused (4) while a supervisor or the node runs.",
    },
    Item {
        path: "backup list",
        words: &[],
        summary: "list the backups, their size and what removing each would free",
        options: &[],
        details: "",
    },
    Item {
        path: "backup verify",
        words: &["NAME"],
        summary: "compare a backup with its manifest",
        options: &[opt("--full", "", "read every byte too, to find errors of the disk")],
        details: "Exit 1 when a file is missing, changed or too many; the first ten are named.",
    },
    Item {
        path: "backup restore",
        words: &["NAME"],
        summary: "put a backup in the place of the node's data, the node being stopped",
        options: &[],
        details: "It replaces all in the data directory but plan files, backups and other folders of ours in it,\n\
                  and a live etcd/, and asks nothing.\n\
                  What it replaces is kept as the backup before-restore-<time>. The release stays as it is.\n\
                  Refused (4) while a supervisor or the node runs, and while an upgrade is under way\n\
                  (but for one whose link is back already).",
    },
    Item {
        path: "backup export",
        words: &["NAME", "FILE.tar.gz"],
        summary: "write a backup as one archive; FILE - is standard output",
        options: &[],
        details: "The archive holds NAME/manifest.json and NAME/data/. A FILE that is there is kept (4).",
    },
    Item {
        path: "backup prune",
        words: &[],
        summary: "remove backups that are no longer wanted, and what half-made ones left",
        options: &[
            opt("--keep", "N", "keep the N newest of all backups"),
            opt("--max-age", "TIME", "remove all backups that are older, such as 7d"),
        ],
        details: "Without options: what DAEMON_BACKUP_KEEP and DAEMON_BACKUP_MAX_AGE say, of those that upgrades made.\n\
                  With one of them it alone counts, for all backups, those made by hand and by restores too.",
    },
    Item {
        path: "config",
        words: &["COMMAND"],
        summary: "look at, check and change the settings",
        options: &[],
        details: "Flag beats variable beats $DAEMON_HOME/wemixvisor/config.toml beats /etc/wemixvisor/config.toml beats default.",
    },
    Item {
        path: "config show",
        words: &[],
        summary: "tell every setting, its value and who said it",
        options: &[],
        details: "",
    },
    Item {
        path: "config validate",
        words: &["[FILE]"],
        summary: "check the settings, or FILE in place of the home's config.toml",
        options: &[],
        details: "Tells every error at once (exit 2). Works while the node runs.",
    },
    Item {
        path: "config set",
        words: &["KEY", "VALUE"],
        summary: "change one value in the home's config.toml, and keep all else in it",
        options: &[],
        details: "KEY is a variable, in lower case as in the file or as it is. node_args takes a list:\n\
                  wemixvisor config set node_args '[\"--datadir\", \"/data\"]'\n\
                  With --config, FILE is changed. The whole configuration must be valid with it, else nothing is changed (2).\n\
                  It tells what wins over the file, and when a supervisor that runs takes it.",
    },
    Item {
        path: "config unset",
        words: &["KEY"],
        summary: "let one value be the default again: its line goes behind a #",
        options: &[],
        details: "",
    },
    Item {
        path: "config template",
        words: &["[NAME]"],
        summary: "print a config.toml for a kind of node, with its arguments",
        options: &[opt("--list", "", "tell which kinds there are")],
        details: "Without NAME: the file as `init` writes it, all defaults. Nothing is written but to standard output:\n\
                  wemixvisor config template validator > /srv/node/wemixvisor/config.toml",
    },
    Item {
        path: "config migrate",
        words: &[],
        summary: "take over cosmovisor's settings: its config.toml in the home, and its variables",
        options: &[],
        details: "Tells of each what becomes of it, and which commands bring the binaries over. What config.toml says already\n\
                  stays; a copy of it as it was is kept beside it.",
    },
    Item {
        path: "metrics",
        words: &["COMMAND"],
        summary: "what is measured of node, upgrades and supervisor",
        options: &[],
        details: "With DAEMON_METRICS_TEXTFILE they are also written to a file, for the textfile collector of node_exporter.",
    },
    Item {
        path: "metrics show",
        words: &[],
        summary: "tell every metric, for people, as JSON or for Prometheus",
        options: &[opt("--prometheus", "", "in Prometheus' text format")],
        details: "Without a supervisor: what is on disk.",
    },
    Item {
        path: "metrics dashboard",
        words: &[],
        summary: "print a Grafana dashboard of the metrics, to be imported",
        options: &[],
        details: "",
    },
    Item {
        path: "systemd",
        words: &[],
        summary: "print a systemd unit for the present settings",
        options: &[],
        details: "It runs this program as the home's owner, with the node's arguments of config.toml (node_args), else those of\n\
                  the last run, and with the settings that variables and flags say here.",
    },
    Item {
        path: "completions",
        words: &["SHELL"],
        summary: "print what makes bash, zsh or fish complete our command lines",
        options: &[],
        details: "bash: wemixvisor completions bash > /etc/bash_completion.d/wemixvisor\n\
                  zsh:  wemixvisor completions zsh > /usr/local/share/zsh/site-functions/_wemixvisor\n\
                  fish: wemixvisor completions fish > /etc/fish/completions/wemixvisor.fish",
    },
    Item { path: "help", words: &["[COMMAND…]"], summary: "tell about a command", options: &[], details: "" },
];

/// What an exit status means.
pub static EXIT_CODES: &[(u8, &str)] = &[
    (0, "done"),
    (1, "failed"),
    (2, "wrong usage or configuration; nothing was changed"),
    (3, "not running"),
    (4, "refused in the present state; nothing was changed"),
    (5, "the node failed for good"),
];

const fn opt(flag: &'static str, value: &'static str, help: &'static str) -> Opt {
    short("", flag, value, help)
}

const fn short(short: &'static str, flag: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt { flag, short, value, help }
}

/// The command of this path.
pub fn item(path: &str) -> Option<&'static Item> {
    COMMANDS.iter().find(|item| item.path == path)
}

/// The names of the commands in a group; the group `""` is the outermost.
pub fn names(group: &str) -> Vec<&'static str> {
    let inside = |path: &'static str| match path.split_once(' ') {
        Some((first, rest)) => (first == group).then_some(rest),
        None => group.is_empty().then_some(path),
    };
    COMMANDS.iter().filter_map(|item| inside(item.path)).collect()
}

/// The help of a command, or of all.
pub fn help(topic: Option<&str>) -> String {
    let Some(item) = topic.and_then(item) else { return general() };
    let mut text = format!("{}: {}\n\nusage: {}\n", item.path, item.summary, item.usage());
    if !item.details.is_empty() {
        text += &format!("\n{}\n", item.details);
    }
    if item.is_group() {
        text += &format!("\nCommands:\n{}", commands(item.path));
    }
    if !item.options.is_empty() {
        text += &format!("\nOptions:\n{}", options(item.options));
    }
    text + "\nThe options of every command: wemixvisor --help\n"
}

fn general() -> String {
    let codes: Vec<(String, &str)> = EXIT_CODES.iter().map(|(code, meaning)| (code.to_string(), *meaning)).collect();
    format!(
        "wemixvisor runs a blockchain node and upgrades its binary at a block height, unattended.\n\n\
         usage: wemixvisor [OPTIONS] COMMAND …\n\n\
         Commands:\n{}\nOptions, before the command or behind it (before `run`):\n{}\nExit status:\n{}\n\
         One command in detail: wemixvisor COMMAND --help. All settings: wemixvisor config show\n",
        commands(""),
        options(OPTIONS),
        columns(&codes),
    )
}

fn commands(group: &str) -> String {
    let within = |name: &str| if group.is_empty() { name.to_owned() } else { format!("{group} {name}") };
    let rows: Vec<(String, &str)> =
        names(group).into_iter().map(within).filter_map(|path| item(&path).map(|item| (path, item.summary))).collect();
    columns(&rows)
}

fn options(options: &'static [Opt]) -> String {
    let gap = |option: &Opt| if option.value.is_empty() || option.value.starts_with('[') { "" } else { " " };
    let rows: Vec<(String, &str)> =
        options.iter().map(|option| (format!("{}{}{}", option.flag, gap(option), option.value), option.help)).collect();
    columns(&rows)
}

fn columns(rows: &[(String, &str)]) -> String {
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    rows.iter().map(|(left, right)| format!("  {left:width$}  {right}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;

    #[test]
    fn every_flag_of_a_setting_is_an_option_that_names_its_variable() {
        for setting in SETTINGS {
            if let Some(flag) = setting.flag {
                let named = OPTIONS
                    .iter()
                    .any(|option| option.flag == flag && option.help.contains(&format!("({})", setting.variable)));
                assert!(named, "{flag}");
            }
        }
    }

    #[test]
    fn general_help_tells_every_command_option_and_exit_code() {
        let text = help(None);
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        for name in names("") {
            assert!(text.contains(&format!("\n  {name} ")), "{name}");
        }
        for option in OPTIONS {
            assert!(text.contains(&format!("\n  {}", option.flag)), "{}", option.flag);
        }
        for (code, meaning) in EXIT_CODES {
            assert!(text.contains(&format!("\n  {code}  {meaning}\n")), "{code}");
        }
    }

    #[test]
    fn each_command_has_help_with_its_usage_and_options() {
        for item in COMMANDS {
            let text = help(Some(item.path));
            assert!(text.contains(&item.usage()) && text.contains(item.summary), "{}", item.path);
            assert!(item.options.iter().all(|option| text.contains(option.flag)), "{}", item.path);
            assert!(
                OPTIONS.iter().all(|global| item.options.iter().all(|own| own.flag != global.flag)),
                "{}",
                item.path
            );
        }
        assert!(help(Some("upgrade")).contains("\n  upgrade schedule "));
    }
}
