//! `systemd`: a unit for the present settings. It is printed, not installed; nothing of systemd is needed for that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Context, answer};
use crate::config::{Config, Origin, Settings};
use crate::error::{Error, OnFile, Result};
use crate::home::Home;
use crate::job::shim::read_record;
use crate::node_args;

/// How much longer than the node's own limit a stop may take.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// Prints the unit.
pub fn systemd(context: &Context) -> Result<()> {
    context.laid_out()?;
    let settings = context.flags.resolve()?;
    let (home, config) = (&context.home, &context.config);
    let args = Arguments::of(config, home);
    let owner = home.owner().on("read", home.root())?;
    let program = fs::read_link("/proc/self/exe").on("read", Path::new("/proc/self/exe"))?;
    if !program.exists() {
        return Err(Error::failed(format!("{} is gone: this program was replaced; run it again", program.display())));
    }
    if let (Arguments::OfLastRun(words), None) = (&args, &config.data_dir)
        && let Some(dir) = node_args::data_dir(words).filter(|dir| dir.is_relative())
    {
        return Err(Error::refused(format!(
            "the node ran with --datadir {dir}, which is another directory under a unit: give it the whole path (`wemixvisor restart -- …`, or node_args in config.toml) first",
            dir = dir.display()
        )));
    }
    let places = Places::of(config, home, args.words());
    let mut unit = Vec::new();
    let mut say = |line: String| unit.push(line);
    say("# wemixvisor systemd > /etc/systemd/system/wemixvisor.service".to_owned());
    say("# systemctl daemon-reload && systemctl enable --now wemixvisor".to_owned());
    say("[Unit]".to_owned());
    say(format!("Description=wemixvisor: {} ({})", specifier(&config.name), specifier(&config.network)));
    say("Wants=network-online.target".to_owned());
    say("After=network-online.target".to_owned());
    say(format!("RequiresMountsFor={}", list(places.linked.iter().chain(&places.others))));
    say("\n[Service]".to_owned());
    say("Type=notify".to_owned());
    say("NotifyAccess=main".to_owned());
    if owner.uid == 0 {
        say("# The home belongs to root. A node needs no more than a user of its own: chown -R USER the home."
            .to_owned());
    }
    say(format!("User={}", name_of(owner.uid, "/etc/passwd")));
    say(format!("Group={}", name_of(owner.gid, "/etc/group")));
    say(format!("WorkingDirectory={}", specifier(&home.root().to_string_lossy())));
    let config_file = config_file(context)?;
    variables(context, &settings, config_file.as_deref()).into_iter().for_each(&mut say);
    match args {
        Arguments::OfConfig(_) => say("# The node's arguments: node_args of config.toml.".to_owned()),
        Arguments::OfLastRun(_) => say("# The node's arguments: those of the last run.".to_owned()),
        Arguments::Unknown => say("# No node_args and no run so far: the node's arguments go behind `run`.".to_owned()),
    }
    let typed = if let Arguments::OfLastRun(words) = &args { words.as_slice() } else { &[] };
    // The path of a program is no place for variables, its arguments are.
    let words = typed.iter().map(|word| format!(" {}", quoted(&word.replace('$', "$$")))).collect::<String>();
    say(format!("ExecStart={} run{words}", quoted(&program.to_string_lossy())));
    // Settings that are wrong fail the reload, and not only the journal tells.
    say(format!("ExecReload={} --quiet config validate", quoted(&program.to_string_lossy())));
    say("ExecReload=/bin/kill -HUP $MAINPID".to_owned());
    // Whatever ends the supervisor, the node ends by its death signal and in its own time.
    say("KillMode=process".to_owned());
    say("WatchdogSec=60".to_owned());
    // A supervisor that only was late ends the node gently. A frozen one cannot, and asks for no more time either.
    say("WatchdogSignal=SIGTERM".to_owned());
    say("TimeoutAbortSec=60".to_owned());
    say("TimeoutStartSec=infinity".to_owned());
    say(format!("TimeoutStopSec={}", (config.shutdown_limit + STOP_MARGIN).as_secs()));
    say("Restart=on-failure".to_owned());
    say("RestartSec=5".to_owned());
    say("RestartPreventExitStatus=2 4 5".to_owned());
    say("OOMPolicy=continue".to_owned());
    say("LimitNOFILE=1048576".to_owned());
    say("\nNoNewPrivileges=yes".to_owned());
    places.hardening(&program, config, config_file.as_deref()).into_iter().for_each(&mut say);
    if owner.uid != 0 {
        say("CapabilityBoundingSet=".to_owned());
    }
    if !node_args::is_set(places.args, "usb") {
        say("PrivateDevices=yes".to_owned());
    }
    HARDENING.iter().map(|line| (*line).to_owned()).for_each(&mut say);
    say("\n[Install]".to_owned());
    say("WantedBy=multi-user.target".to_owned());
    answer(&unit.join("\n"))
}

/// What geth, backups and hooks live with. Not RestrictSUIDSGID: a backup keeps the set-group-id of directories. Not
/// ProcSubset and ProtectProc: who holds the data is looked up in /proc, and geth asks there for the machine's memory.
const HARDENING: &[&str] = &[
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "PrivateMounts=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
];

/// Where the node's arguments come from.
enum Arguments {
    /// `run` reads them itself.
    OfConfig(Vec<String>),
    /// Those that were typed last.
    OfLastRun(Vec<String>),
    /// Nobody said any.
    Unknown,
}

impl Arguments {
    fn of(config: &Config, home: &Home) -> Arguments {
        match read_record(home) {
            _ if !config.node_args.is_empty() => Arguments::OfConfig(config.node_args.clone()),
            Some(record) => Arguments::OfLastRun(record.args),
            None => Arguments::Unknown,
        }
    }

    fn words(&self) -> &[String] {
        match self {
            Arguments::OfConfig(words) | Arguments::OfLastRun(words) => words,
            Arguments::Unknown => &[],
        }
    }
}

/// The settings that only who typed this had said: files are read again, variables and flags are not.
fn variables(context: &Context, settings: &Settings, config_file: Option<&Path>) -> Vec<String> {
    let line = |name: &str, value: &str| format!("Environment={}", quoted(&format!("{name}={value}")));
    let mut lines = vec![line("DAEMON_HOME", &context.home.root().to_string_lossy())];
    lines.extend(config_file.map(|file| line("DAEMON_CONFIG", &file.to_string_lossy())));
    let said = settings.values.iter().filter(|one| matches!(one.origin, Origin::Variable(_) | Origin::Flag(_)));
    for one in said.filter(|one| one.key != "daemon_home" && !one.value.is_empty()) {
        let name = one.key.to_ascii_uppercase();
        lines.push(if has_password(&one.value) {
            format!("# {name} holds a password, which everybody can read in a unit: set it in config.toml, mode 0600.")
        } else {
            line(&name, &one.value)
        });
    }
    lines
}

/// The file of settings that was named, if one was.
fn config_file(context: &Context) -> Result<Option<PathBuf>> {
    let typed = context.flags.config_file.clone();
    let file = typed.or_else(|| std::env::var_os("DAEMON_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    file.map(|file| std::path::absolute(&file).on("find", &file)).transpose()
}

/// Whether one of these addresses is a URL with `user:password@`.
fn has_password(value: &str) -> bool {
    let authority = |url: &str| url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or("").to_owned());
    value.split(',').filter_map(authority).any(|authority| authority.contains('@'))
}

/// Where something is written.
struct Places<'a> {
    args: &'a [String],
    /// What is linked and exchanged with each other: home, data and backups.
    linked: Vec<PathBuf>,
    /// The directories of what is only written to.
    others: Vec<PathBuf>,
}

impl Places<'_> {
    fn of<'a>(config: &Config, home: &Home, args: &'a [String]) -> Places<'a> {
        // As the node sees them, which runs in the home.
        let whole = |path: &Path| real(&home.root().join(path));
        let data = config.data_dir.clone().or_else(|| node_args::data_dir(args)).unwrap_or_else(|| home.data());
        let mut linked = vec![whole(home.root()), whole(&data), whole(&config.data_backup_dir)];
        let ancient = node_args::value(args, "datadir.ancient").map(Path::new).filter(|path| path.is_absolute());
        linked.extend(ancient.map(whole));
        let named = node_args::ipc_paths(args, home.binary_name());
        let node_log = node_args::value(args, "log.file").filter(|path| !path.is_empty()).map(PathBuf::from);
        let files = [config.log_file.as_ref(), config.metrics_textfile.as_ref(), named.first(), node_log.as_ref()];
        let dirs = files.into_iter().flatten().filter_map(|file| Some(whole(file.parent()?)));
        let mut others: Vec<PathBuf> = dirs.filter(|dir| !linked.iter().any(|one| dir.starts_with(one))).collect();
        linked.sort();
        linked.dedup_by(|path, before| path.starts_with(before));
        others.sort();
        others.dedup_by(|path, before| path.starts_with(before));
        Places { args, linked, others }
    }

    /// What may be written to, and where the rest is out of sight.
    fn hardening(&self, program: &Path, config: &Config, config_file: Option<&Path>) -> Vec<String> {
        let commands =
            [config.custom_preupgrade.as_deref(), config.event_command.as_deref(), Some(program), config_file];
        let used = self.linked.iter().chain(&self.others).map(PathBuf::as_path).chain(commands.into_iter().flatten());
        // What the node is told to read: its keys, its own settings.
        let words = self.args.iter().map(|word| word.split_once('=').map_or(word.as_str(), |(_, value)| value));
        let named = words.map(Path::new).filter(|word| word.is_absolute());
        let used: Vec<&Path> = used.chain(named).collect();
        let lies_below = |dirs: &[&str]| used.iter().any(|path| dirs.iter().any(|dir| path.starts_with(dir)));
        let mut lines = Vec::new();
        let writable = one_a_device(&self.linked);
        match &writable {
            Some(writable) => {
                lines.push("ProtectSystem=strict".to_owned());
                // Each entry is a mount of its own, and between two mounts there is neither link nor exchange.
                lines.push(format!("ReadWritePaths={}", list(writable)));
                let rest = self.others.iter().filter(|dir| !writable.iter().any(|one| dir.starts_with(one)));
                // That such a one is not there (`-`) is no reason not to start.
                lines.extend(rest.map(|dir| format!("ReadWritePaths={}", quoted(&format!("-{}", dir.display())))));
            }
            None => {
                lines.push(
                    "# Not strict: home, data and backups have only / in common, and each of them apart would be"
                        .to_owned(),
                );
                lines.push(
                    "# a mount of its own, between which no backup can be linked and no data exchanged.".to_owned(),
                );
                lines.push("ProtectSystem=full".to_owned());
            }
        }
        let home = match (lies_below(&["/home", "/root", "/run/user"]), writable) {
            (false, _) => "yes",
            (true, Some(_)) => "read-only",
            (true, None) => "no",
        };
        lines.push(format!("ProtectHome={home}"));
        if !lies_below(&["/tmp", "/var/tmp"]) {
            lines.push("PrivateTmp=yes".to_owned());
        }
        lines
    }
}

/// The path with its links followed, as far as it is there.
fn real(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|there| Some(fs::canonicalize(there).ok()?.join(path.strip_prefix(there).ok()?)))
        .map_or_else(|| path.to_owned(), |path| path.components().collect())
}

/// For the paths on each file system the directory that they have in common; none where that is `/`.
fn one_a_device(paths: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let device = |path: &Path| path.ancestors().find_map(|there| Some(fs::metadata(there).ok()?.dev())).unwrap_or(0);
    let mut common: Vec<(u64, PathBuf)> = Vec::new();
    for path in paths {
        let device = device(path);
        match common.iter_mut().find(|(known, _)| *known == device) {
            Some((_, shared)) => {
                *shared = shared.ancestors().find(|above| path.starts_with(above)).unwrap_or(Path::new("/")).to_owned();
            }
            None => common.push((device, path.clone())),
        }
    }
    let found: Vec<PathBuf> = common.into_iter().map(|(_, path)| path).collect();
    (!found.contains(&PathBuf::from("/"))).then_some(found)
}

/// The name of this id, or the number where there is none.
fn name_of(id: u32, file: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let named = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(id)).then(|| fields.first().map(|name| (*name).to_owned()))?
    });
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| id.to_string())
}

/// Several paths for one line.
fn list<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> String {
    paths.into_iter().map(|path| quoted(&path.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// `%` begins a specifier wherever it stands.
fn specifier(text: &str) -> String {
    text.replace('%', "%%")
}

/// One word of a line, in quotes where it needs them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%$".contains(c);
    let escaped: String = word
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            '\n' => "\\n".to_owned(),
            c if c.is_ascii_control() => format!("\\x{:02x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    let escaped = specifier(&escaped);
    if !word.is_empty() && word.chars().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_and_what_it_is() {
        for (word, expected) in [
            ("--datadir", "--datadir"),
            ("/srv/a b", "\"/srv/a b\""),
            ("", "\"\""),
            ("100%", "100%%"),
            ("say \"x\"", "\"say \\\"x\\\"\""),
            ("a\\b", "\"a\\\\b\""),
            ("it's", "\"it's\""),
            (";", "\";\""),
            ("a\nb\t", "\"a\\nb\\x09\""),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn what_is_linked_is_one_tree_on_each_file_system() {
        let paths = |list: &[&str]| -> Vec<PathBuf> { list.iter().map(PathBuf::from).collect() };
        assert_eq!(one_a_device(&paths(&["/usr/a/x", "/usr/a/y/z"])), Some(paths(&["/usr/a"])));
        assert_eq!(one_a_device(&paths(&["/usr/a", "/usr/ab"])), Some(paths(&["/usr"])));
        assert_eq!(one_a_device(&paths(&["/nowhere/a", "/elsewhere/b"])), None);
        assert_eq!(one_a_device(&paths(&["/usr/a", "/proc/b"])), Some(paths(&["/usr/a", "/proc/b"])));
    }

    #[test]
    fn a_password_in_an_address_is_seen() {
        assert!(has_password("http://127.0.0.1:8545,https://me:secret@node.example/x"));
        assert!(!has_password("https://node.example/a@b") && !has_password("localhost:8545") && !has_password("a@b"));
    }
}
