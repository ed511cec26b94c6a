//! The courses that an upgrade can take, each in a home that is laid out for it, and what is seen of such a home from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::points::Point;
use super::{PATIENCE, halted};
use crate::support::{Home, until};

/// One way that an upgrade can go.
#[derive(Clone, Debug)]
pub struct Course {
    pub name: String,
    /// What happens in the home before it.
    pub before: Before,
    /// The habits of the release that ran before, v1 (genesis must never come back), and of the new one, v2.
    pub releases: [Release; 2],
    /// What else is put into the home.
    pub hook: Option<&'static str>,
    /// What is killed.
    pub under_test: Program,
    /// What the operator types once the node runs.
    pub operator: &'static [&'static str],
    /// How it ends: the results in history, the release that runs. Any but the first only where an operator's word may be lost,
    /// or the process that is killed is a hook.
    pub ends: &'static [(&'static [&'static str], &'static str)],
    /// How long one run may take until it has converged.
    pub patience: Duration,
}

#[derive(Clone, Debug)]
pub enum Before {
    /// A plan for v2 is there.
    Planned,
    /// v2 was committed.
    Committed,
    /// The same, and the node has gone on: its data is not that of the backup any more.
    WentOn,
    /// The supervisor was killed here, and the point's process with it.
    Killed(Box<Course>, Point),
}

#[derive(Clone, Copy, Debug)]
pub enum Release {
    /// The mock node with these flags.
    Mock(&'static str),
    /// A script that becomes the mock, `$mock`, or not; the data are in `$data`.
    Script(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub enum Program {
    Supervisor,
    /// The same, told to make backups by copying, into the home.
    Copying,
    /// `backup restore` of the only backup, with no supervisor.
    Restore,
    /// A script instead of us.
    Script(&'static str),
}

pub fn forward() -> Course {
    Course {
        name: "forward".to_owned(),
        before: Before::Planned,
        // As an old WBFT release does: no block at the height of the new rules.
        releases: [Release::Mock("--halt-at 104"), Release::Mock("")],
        hook: None,
        under_test: Program::Supervisor,
        operator: &[],
        ends: &[(&["committed"], "v2")],
        patience: PATIENCE,
    }
}

/// The new release fails three times; the old one can run on what it left.
pub fn reverting() -> Course {
    Course {
        name: "reverting".to_owned(),
        releases: [Release::Mock("--halt-at 104"), Release::Mock("--die-at-start")],
        ends: &[(&["reverted"], "v1")],
        ..forward()
    }
}

/// The new release fails, and the old one cannot run on what it left: the data goes back too.
pub fn restoring() -> Course {
    Course {
        name: "restoring".to_owned(),
        releases: [
            Release::Script("[ -e $data/migrated ] && exit 1\nexec $mock \"$@\" --halt-at 104"),
            Release::Script("[ \"$1\" = --datadir ] || exec $mock \"$@\"\necho >$data/migrated\nexit 3"),
        ],
        ..reverting()
    }
}

/// A hook that may run twice, and notices whether a node lives.
pub fn hooked() -> Course {
    Course {
        name: "with a hook".to_owned(),
        hook: Some("grep -q . $DAEMON_HOME/../d/geth/chaindata/head && echo ran >>$DAEMON_HOME/../hook"),
        ends: &[(&["committed"], "v2"), (&["failed"], "v1")],
        ..forward()
    }
}

/// The operator takes back what was committed. Killed before it is on disk, the wish is lost and was not acknowledged.
pub fn undoing() -> Course {
    Course {
        name: "undoing".to_owned(),
        before: Before::Committed,
        releases: [Release::Mock(""), Release::Mock("")],
        operator: &["upgrade", "revert"],
        ends: &[(&["committed", "reverted"], "v1"), (&["committed"], "v2")],
        ..forward()
    }
}

/// The operator puts the backup back by hand.
pub fn restoring_by_hand() -> Course {
    Course { name: "restoring by hand".to_owned(), before: Before::WentOn, under_test: Program::Restore, ..forward() }
}

/// Goes on from where another course was killed.
pub fn recovering(of: &Course, from: &Point) -> Course {
    Course {
        name: format!("{}, recovering after {} {} {}", of.name, from.who, from.call, from.k),
        before: Before::Killed(Box::new(of.clone()), from.clone()),
        ..of.clone()
    }
}

/// What people write before they have lost a node by it: the link removed and made again, nobody holds a lock.
pub fn naive() -> Course {
    Course {
        name: "naive".to_owned(),
        patience: Duration::from_secs(3),
        under_test: Program::Script(
            r#"cd "$1"; shift
            if ! [ -e history.jsonl ]; then
                current/bin/node "$@" & node=$!
                until [ "$(cat ../../d/geth/chaindata/head 2>/dev/null)" = 104 ]; do sleep 0.02; done
                kill $node; wait $node
                rm current
                ln -s upgrades/v2 current
                echo '{"result": "committed"}' > history.jsonl
            fi
            trap 'kill $node; wait $node; exit 0' TERM
            current/bin/node "$@" & node=$!
            wait $node"#,
        ),
        ..forward()
    }
}

/// Files of the data: what they hold when the old release stops.
pub const DATA: &[(&str, &str)] = &[
    ("geth/chaindata/000001.ldb", "never changes again"),
    ("geth/chaindata/CURRENT", "MANIFEST-000001"),
    ("geth/chaindata/ancient/chain/headers.meta", "1"),
    ("geth/only-then", "gone since"),
    ("keystore/key", "secret"),
];
/// What else there is once the node has gone on.
pub const SINCE: &[(&str, &str)] = &[
    ("geth/chaindata/000001.ldb", "never changes again"),
    ("geth/chaindata/CURRENT", "MANIFEST-000002"),
    ("geth/chaindata/ancient/chain/headers.meta", "2"),
    ("geth/only-now", "new"),
    ("keystore/key", "secret"),
];

/// Writes the data as these files say, each a new one: a backup may have a link to the one before.
pub fn write_data(home: &Home, files: &[(&str, &str)]) {
    for (path, _) in DATA.iter().chain(SINCE) {
        let _ = fs::remove_file(home.datadir().join(path));
    }
    for (path, text) in files {
        let path = home.datadir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// Whether the data are these files, and none of the other state.
pub fn data_is(home: &Home, files: &[(&str, &str)]) -> bool {
    let holds = |path: &str| fs::read_to_string(home.datadir().join(path)).ok();
    let wanted = |path: &str| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned());
    DATA.iter().chain(SINCE).all(|(path, _)| holds(path) == wanted(path))
}

impl Course {
    /// A home where all that comes before has happened; none when it went another way.
    pub fn home(&self) -> Option<Home> {
        let home = match &self.before {
            Before::Killed(course, point) => return halted(course, point),
            Before::Planned | Before::Committed | Before::WentOn => Home::new(),
        };
        self.lay_out(&home);
        Some(home)
    }

    /// Puts all into a new home that this course wants there, and lets happen what comes before it.
    pub fn lay_out(&self, home: &Home) {
        for (name, release) in ["v1", "v2"].iter().zip(self.releases) {
            match release {
                Release::Mock(flags) => _ = home.release(name, flags),
                Release::Script(text) => {
                    let node = home.release(name, "");
                    let mock = node.with_file_name("mock");
                    fs::rename(node, &mock).unwrap();
                    home.script(name, &format!("mock={}; data={}\n{text}", mock.display(), home.datadir().display()));
                }
            }
        }
        if let Some(text) = self.hook {
            home.script("hook", text);
            fs::rename(home.own("upgrades/hook/bin/node"), home.own("upgrades/v2/pre-upgrade")).unwrap();
            fs::remove_dir_all(home.own("upgrades/hook")).unwrap();
        }
        fs::remove_file(home.own("current")).unwrap();
        std::os::unix::fs::symlink("upgrades/v1", home.own("current")).unwrap();
        home.plan("v2", 105);
        write_data(home, DATA);
        if !matches!(self.before, Before::Planned) {
            let frozen = home.own("upgrades/v1/mock-flags");
            let flags = fs::read_to_string(&frozen).unwrap();
            fs::write(&frozen, "--halt-at 104").unwrap();
            let course = forward();
            let mut visor = home.spawn(supervisor(home, &[]));
            until("it is committed", || course.ended(home, visor.pid()));
            visor.stop();
            drop(visor);
            fs::write(&frozen, flags).unwrap();
        }
        if matches!(self.before, Before::WentOn) {
            write_data(home, SINCE);
        }
    }

    /// The program that is killed.
    pub fn command(&self, home: &Home) -> Command {
        match self.under_test {
            Program::Supervisor => supervisor(home, &[]),
            Program::Copying => supervisor(home, &["backup_mode=copy"]),
            Program::Restore => home.command(&["backup", "restore", name(&backups(home)[0])]),
            Program::Script(text) => {
                let mut command = Command::new("/bin/sh");
                command
                    .args(["-c", text, "naive"])
                    .arg(home.own(""))
                    .args(node_args(home))
                    .env("PATH", "/usr/bin:/bin");
                command
            }
        }
    }

    /// What is started after it was killed.
    pub fn next(&self, home: &Home) -> Command {
        match self.under_test {
            Program::Supervisor | Program::Restore => supervisor(home, &[]),
            Program::Copying | Program::Script(_) => self.command(home),
        }
    }

    /// Whether the upgrade is at an end: nothing under way, one node, this supervisor's, of the release that `current` points
    /// at.
    pub fn ended(&self, home: &Home, supervisor: u32) -> Option<(Vec<String>, String)> {
        if home.own("journal.json").exists() || home.own("restore.json").exists() {
            return None;
        }
        let results = results(home);
        let release = fs::read_link(home.own("current")).ok()?.file_name()?.to_str()?.to_owned();
        let end = self.ends.iter().find(|(ends, at)| results == **ends && release == *at);
        if end.is_none() && !self.ends.iter().any(|(ends, _)| ends.len() <= results.len()) {
            return None;
        }
        let nodes = nodes(home);
        let last = home.events("start").pop()?;
        let one = nodes.len() == 1 && parent(nodes[0]) == supervisor;
        (one && last[1] == nodes[0].to_string() && last[2] == release).then_some((results, release))
    }
}

/// Our supervisor with all its waits short.
pub fn supervisor(home: &Home, more: &[&str]) -> Command {
    let quick = [
        "trial_time=1ms",
        "trial_blocks=1",
        "restart_backoff=0",
        "height_poll_interval=100ms",
        "health_check_interval=100ms",
        "min_disk=0",
    ];
    let node = node_args(home);
    let settings = quick.iter().chain(more).flat_map(|setting| ["--set", *setting]);
    let args: Vec<&str> = settings.chain(["run"]).chain(node.iter().map(String::as_str)).collect();
    home.command(&args)
}

pub fn node_args(home: &Home) -> Vec<String> {
    [&home.node_args()[..], &["--start-head".to_owned(), "100".to_owned()]].concat()
}

/// The nodes that live, also those that a script became.
pub fn nodes(home: &Home) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let datadir = home.datadir().to_str().unwrap().to_owned();
    let is_node = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let program = ["/bin/node", "/bin/mock"].iter().any(|name| words[0].ends_with(name));
        program && words.contains(&datadir)
    };
    pids.filter(is_node).collect()
}

/// The backups that count: those beside the home's other things, and those that had to be made within the data.
pub fn backups(home: &Home) -> Vec<PathBuf> {
    let places = [home.root().join("backups"), home.datadir().join(".wemixvisor-backups")];
    let mut found: Vec<PathBuf> =
        places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten()).map(|e| e.path()).collect();
    found.retain(|path| !name(path).starts_with('.'));
    found.sort();
    found
}

pub fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

pub fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|pid| pid.trim().parse().ok()).unwrap_or(0)
}

/// What has ended, in the order of history. A line that is being written is none yet, and what was put off, which a line
/// without a digest says, is tried again.
pub fn results(home: &Home) -> Vec<String> {
    let text = fs::read_to_string(home.own("history.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines = lines.filter(|line| line["result"] != "failed" || !line["digest"].is_null());
    lines.map(|line| line["result"].as_str().unwrap_or_default().to_owned()).collect()
}
