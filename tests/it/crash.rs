//! An upgrade survives anything: killed at every system call of the supervisor and of its workers, forward, going back and
//! while recovering, the next start converges, seen from outside: processes, link, data, history. Which calls there are is
//! found by recording a run. A kill comes right *after* a call. That covers the instant right before the next one too:
//! between two of its calls a process changes nothing outside itself.
//!
//! The number of calls in the supervisor's loop depends on time; its points and those of looks and probes are counted in one
//! run and may not be reached in another, which is reported. Steps, the shim and the clearing are exact.
//!
//! `cargo test` tries a sample with a seed that is printed; `WEMIXVISOR_SEED` repeats it. `WEMIXVISOR_CRASH=all`
//! tries every call that may change something outside of its process (after the others all is as it was before them),
//! `WEMIXVISOR_CRASH=every` those too, `WEMIXVISOR_CRASH=SECONDS` takes so long for each kind of sample.

mod faults;
mod full_disk;
mod strace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::death::{doubles_in, silent_in};
use crate::support::{Home, Visor, kill, until};
use strace::{Event, Traced};

/// How long one run may take until it has converged: a step that failed is tried again after ten seconds.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long the sample is tried.
const SAMPLE_TIME: Duration = Duration::from_secs(100);
/// How many runs there are at a time: most of their time is waiting.
const SIDE_BY_SIDE: usize = 4;

// ---- the courses --------------------------------------------------------------------------------

/// One way that an upgrade can go.
#[derive(Clone, Debug)]
struct Course {
    name: String,
    /// What happens in the home before it.
    before: Before,
    /// The habits of the release that ran before, v1 (genesis must never come back), and of the new one, v2.
    releases: [Release; 2],
    /// What else is put into the home.
    hook: Option<&'static str>,
    /// What is killed.
    under_test: Program,
    /// What the operator types once the node runs.
    operator: &'static [&'static str],
    /// How it ends: the results in history, the release that runs. Any but the first only where an operator's word may be lost,
    /// or the process that is killed is a hook.
    ends: &'static [(&'static [&'static str], &'static str)],
    /// How long one run may take until it has converged.
    patience: Duration,
}

#[derive(Clone, Debug)]
enum Before {
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
enum Release {
    /// The mock node with these flags.
    Mock(&'static str),
    /// A script that becomes the mock, `$mock`, or not; the data are in `$data`.
    Script(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Program {
    Supervisor,
    /// The same, told to make backups by copying, into the home.
    Copying,
    /// `backup restore` of the only backup, with no supervisor.
    Restore,
    /// A script instead of us.
    Script(&'static str),
}

fn forward() -> Course {
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
fn reverting() -> Course {
    Course {
        name: "reverting".to_owned(),
        releases: [Release::Mock("--halt-at 104"), Release::Mock("--die-at-start")],
        ends: &[(&["reverted"], "v1")],
        ..forward()
    }
}

/// The new release fails, and the old one cannot run on what it left: the data goes back too.
fn restoring() -> Course {
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
fn hooked() -> Course {
    Course {
        name: "with a hook".to_owned(),
        hook: Some("grep -q . $DAEMON_HOME/../d/geth/chaindata/head && echo ran >>$DAEMON_HOME/../hook"),
        ends: &[(&["committed"], "v2"), (&["failed"], "v1")],
        ..forward()
    }
}

/// The operator takes back what was committed. Killed before it is on disk, the wish is lost and was not acknowledged.
fn undoing() -> Course {
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
fn restoring_by_hand() -> Course {
    Course { name: "restoring by hand".to_owned(), before: Before::WentOn, under_test: Program::Restore, ..forward() }
}

/// Goes on from where another course was killed.
fn recovering(of: &Course, from: &Point) -> Course {
    Course {
        name: format!("{}, recovering after {} {} {}", of.name, from.who, from.call, from.k),
        before: Before::Killed(Box::new(of.clone()), from.clone()),
        ..of.clone()
    }
}

/// What people write before they have lost a node by it: the link removed and made again, nobody holds a lock.
fn naive() -> Course {
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
const DATA: &[(&str, &str)] = &[
    ("geth/chaindata/000001.ldb", "never changes again"),
    ("geth/chaindata/CURRENT", "MANIFEST-000001"),
    ("geth/chaindata/ancient/chain/headers.meta", "1"),
    ("geth/only-then", "gone since"),
    ("keystore/key", "secret"),
];
/// What else there is once the node has gone on.
const SINCE: &[(&str, &str)] = &[
    ("geth/chaindata/000001.ldb", "never changes again"),
    ("geth/chaindata/CURRENT", "MANIFEST-000002"),
    ("geth/chaindata/ancient/chain/headers.meta", "2"),
    ("geth/only-now", "new"),
    ("keystore/key", "secret"),
];

/// Writes the data as these files say, each a new one: a backup may have a link to the one before.
fn write_data(home: &Home, files: &[(&str, &str)]) {
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
fn data_is(home: &Home, files: &[(&str, &str)]) -> bool {
    let holds = |path: &str| fs::read_to_string(home.datadir().join(path)).ok();
    let wanted = |path: &str| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned());
    DATA.iter().chain(SINCE).all(|(path, _)| holds(path) == wanted(path))
}

impl Course {
    /// A home where all that comes before has happened; none when it went another way.
    fn home(&self) -> Option<Home> {
        let home = match &self.before {
            Before::Killed(course, point) => return halted(course, point),
            Before::Planned | Before::Committed | Before::WentOn => Home::new(),
        };
        self.lay_out(&home);
        Some(home)
    }

    /// Puts all into a new home that this course wants there, and lets happen what comes before it.
    fn lay_out(&self, home: &Home) {
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
    fn command(&self, home: &Home) -> Command {
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
    fn next(&self, home: &Home) -> Command {
        match self.under_test {
            Program::Supervisor | Program::Restore => supervisor(home, &[]),
            Program::Copying | Program::Script(_) => self.command(home),
        }
    }

    /// Whether the upgrade is at an end: nothing under way, one node, this supervisor's, of the release that `current` points
    /// at.
    fn ended(&self, home: &Home, supervisor: u32) -> Option<(Vec<String>, String)> {
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
fn supervisor(home: &Home, more: &[&str]) -> Command {
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

fn node_args(home: &Home) -> Vec<String> {
    [&home.node_args()[..], &["--start-head".to_owned(), "100".to_owned()]].concat()
}

/// The nodes that live, also those that a script became.
fn nodes(home: &Home) -> Vec<u32> {
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
fn backups(home: &Home) -> Vec<PathBuf> {
    let places = [home.root().join("backups"), home.datadir().join(".wemixvisor-backups")];
    let mut found: Vec<PathBuf> =
        places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten()).map(|e| e.path()).collect();
    found.retain(|path| !name(path).starts_with('.'));
    found.sort();
    found
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|pid| pid.trim().parse().ok()).unwrap_or(0)
}

/// What has ended, in the order of history; a line that is being written is none yet.
fn results(home: &Home) -> Vec<String> {
    let text = fs::read_to_string(home.own("history.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.map(|line| line["result"].as_str().unwrap_or_default().to_owned()).collect()
}

// ---- the points ---------------------------------------------------------------------------------

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    /// The process that made the call; the supervisor goes on.
    Itself,
    /// The supervisor; its children go on unless their death signal ends them.
    Supervisor,
    /// Both. The node is left to its death signal.
    Both,
}

/// One instant: right after the k-th call of this name by the n-th such process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    who: String,
    nth: usize,
    call: String,
    k: usize,
    victim: Victim,
}

/// Whether something outside of the process may be other after this call than before it. What only reads, and what failed,
/// leaves all as it was after the call before: to be killed there is the same.
fn changes(call: &str, line: &str) -> bool {
    let failed = line.contains(" = -1 ");
    match call {
        "openat" => !failed && ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| line.contains(flag)),
        "write" | "pwrite64" | "fsync" | "fdatasync" | "syncfs" | "rename" | "renameat" | "renameat2" | "symlink"
        | "symlinkat" | "unlink" | "unlinkat" | "rmdir" | "mkdir" | "mkdirat" | "link" | "linkat" | "flock"
        | "lchown" | "fchown" | "fchownat" | "chmod" | "fchmod" | "fchmodat" | "ftruncate" | "fallocate"
        | "utimensat" | "copy_file_range" | "ioctl" | "fsetxattr" | "lsetxattr" | "execve" | "prctl" | "setsid"
        | "kill" | "pidfd_send_signal" | "clone" | "clone3" | "vfork" | "sendto" | "sendmsg" => !failed,
        _ => false,
    }
}

/// The calls of one process, in order; whether each changed something.
type Calls = Vec<(String, bool)>;

/// What a run of this course does: the calls of each process, with who it is.
fn record(course: &Course) -> Vec<(String, Calls)> {
    let home = course.home().expect("what comes before it happens");
    let mut traced = Traced::start(&home, &course.command(&home), "all", ("prctl", 1, Duration::from_millis(50)));
    let mut calls: BTreeMap<u32, Calls> = BTreeMap::new();
    let mut executed: BTreeMap<u32, usize> = BTreeMap::new();
    let mut who: BTreeMap<u32, String> = BTreeMap::new();
    let mut watch = Watch::new(&home, course);
    let began = Instant::now();
    loop {
        match traced.next(Duration::from_millis(3)) {
            Some(Event::Called(pid, name, line)) => {
                let executed = executed.entry(pid).or_default();
                *executed += usize::from(name == "execve");
                // What follows the shim's own execve is the node's.
                if *executed < 2 || name == "execve" {
                    let changes = changes(&name, &line);
                    calls.entry(pid).or_default().push((name, changes));
                }
            }
            Some(Event::Pauses(pid, is, _)) => _ = who.entry(pid).or_insert(is),
            None if watch.ended(&mut traced.visor, true) => break,
            None => assert!(began.elapsed() < PATIENCE, "the recorded run never ended\n{}", home.report()),
        }
    }
    who.insert(traced.visor.pid(), "supervisor".to_owned());
    calls.into_iter().filter_map(|(pid, calls)| Some((who.get(&pid)?.clone(), calls))).collect()
}

/// All points of a recorded run. Recoveries are many: there it is the supervisor that is killed, at what it and its steps do.
fn points(course: &Course, recorded: &[(String, Calls)]) -> BTreeMap<Point, bool> {
    let again = matches!(course.before, Before::Killed(..));
    let mut points = BTreeMap::new();
    let mut seen: BTreeMap<(String, String, usize), usize> = BTreeMap::new();
    for (who, calls) in recorded {
        let supervisor = who == "supervisor";
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut executed, mut own) = (false, false);
        for (call, changes) in calls {
            let k = counts.entry(call).or_default();
            *k += 1;
            executed |= call == "execve";
            own |= call == "prctl";
            let who = if executed || supervisor { who } else { "spawn" };
            let nth = seen.entry((who.to_owned(), call.clone(), *k)).or_default();
            *nth += 1;
            // A child that is not executed yet resets its handlers one by one: nobody sees that.
            let boring = who == "spawn" && call == "rt_sigaction";
            // Those that only look are many, and alike; a probe reads all of /proc.
            let alike = *nth > 1 && ["look", "probe", "spawn"].contains(&who);
            let alike = alike || (who == "probe" && !changes);
            let alike = alike || (again && ["look", "probe", "spawn", "stage"].contains(&who));
            if boring || alike || matches!(call.as_str(), "exit_group" | "exit") {
                continue;
            }
            let victims: &[Victim] = match who {
                "supervisor" => &[Victim::Supervisor],
                _ if again => &[Victim::Supervisor],
                // Once its death signal is set, a worker dies with its supervisor: both die by the death of one.
                "look" | "probe" | "stage" | "spawn" => &[Victim::Supervisor],
                "shim" => &[Victim::Itself, Victim::Supervisor, Victim::Both],
                _ if own => &[Victim::Itself, Victim::Supervisor],
                _ => &[Victim::Itself, Victim::Supervisor, Victim::Both],
            };
            points.extend(victims.iter().map(|victim| {
                let point = Point { who: who.to_owned(), nth: *nth, call: call.clone(), k: *k, victim: *victim };
                (point, *changes)
            }));
        }
    }
    points
}

// ---- the detector -------------------------------------------------------------------------------

/// What is seen of a home from outside, all the time.
struct Watch<'a> {
    home: &'a Home,
    course: &'a Course,
    operator: Option<Child>,
    acknowledged: bool,
    seen: BTreeSet<String>,
}

impl<'a> Watch<'a> {
    fn new(home: &'a Home, course: &'a Course) -> Watch<'a> {
        Watch { home, course, operator: None, acknowledged: false, seen: BTreeSet::new() }
    }

    /// What must hold at every instant: `current` leads to a release of this upgrade.
    fn look(&mut self) {
        match fs::read_link(self.home.own("current")) {
            Err(e) => _ = self.seen.insert(format!("current cannot be read: {e}")),
            Ok(target) if target != Path::new("upgrades/v1") && target != Path::new("upgrades/v2") => {
                self.seen.insert(format!("current points at {}", target.display()));
            }
            Ok(_) if !self.home.own("current/bin/node").is_file() => {
                self.seen.insert("current dangles".to_owned());
            }
            Ok(_) => {}
        }
    }

    /// The same, and whether the run of this program is at its end. `type_it`: the operator is at the keyboard.
    fn ended(&mut self, visor: &mut Visor, type_it: bool) -> bool {
        self.look();
        if type_it && matches!(self.course.under_test, Program::Restore) {
            let over = !visor.lives();
            self.acknowledged = over && visor.end() == 0;
            return over;
        }
        if let Some(operator) = &mut self.operator {
            let Some(status) = operator.try_wait().unwrap() else { return false };
            self.acknowledged |= status.success();
            self.operator = None;
        }
        if type_it && !self.course.operator.is_empty() && !self.acknowledged {
            // Asked again until it is taken: a supervisor that has just begun does not know its node yet.
            if !nodes(self.home).is_empty() {
                let mut command = self.home.command(self.course.operator);
                self.operator = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            }
            return false;
        }
        self.course.ended(self.home, visor.pid()).is_some()
    }

    /// What must hold at the end. `forced`: only the process at the point was killed, not its supervisor.
    fn finish(mut self, visor: &mut Visor, forced: bool) -> Vec<String> {
        if let Some(mut operator) = self.operator.take() {
            let _ = operator.kill();
            let _ = operator.wait();
        }
        let (home, course) = (self.home, self.course);
        let mut wrong = |what: String| _ = self.seen.insert(what);
        let results = results(home);
        match course.ended(home, visor.pid()) {
            None => wrong(format!("it never ended: {results:?}, nodes {:?}", nodes(home))),
            Some((_, release)) => {
                let end = course.ends.iter().position(|(ends, at)| results == **ends && release == *at);
                let wish = !course.operator.is_empty() && !self.acknowledged;
                if end.is_none() || (end != Some(0) && !wish && !forced) {
                    wrong(format!("it ended {results:?} with {release}"));
                }
            }
        }
        if home.holders().is_empty() {
            wrong("a node runs without the lock".to_owned());
        }
        visor.signal(Signal::TERM);
        let began = Instant::now();
        while visor.lives() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        if visor.lives() || visor.end() != 0 {
            wrong("the supervisor does not end well".to_owned());
        }
        if !nodes(home).is_empty() || !home.holders().is_empty() {
            wrong(format!("left behind: {:?} {:?}", nodes(home), home.holders()));
        }
        // What was replaced has a journal of its own.
        let aside = backups(home).into_iter().filter(|path| name(path).starts_with("before-restore"));
        let aside: Vec<PathBuf> = aside.map(|path| path.join("data")).collect();
        for data in aside.iter().chain([&home.datadir()]) {
            let text = fs::read_to_string(data.join("mock.journal")).unwrap_or_default();
            let journal: Vec<Vec<String>> =
                text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect();
            doubles_in(&journal, &silent_in(&journal)).into_iter().for_each(&mut wrong);
        }
        let by_hand = matches!(course.under_test, Program::Restore);
        let old = data_is(home, DATA) && !home.datadir().join("migrated").exists();
        if !old && (!by_hand || self.acknowledged || !data_is(home, SINCE)) {
            wrong("the data is not what it should be".to_owned());
        }
        if !matches!(course.under_test, Program::Script(_)) {
            let made = backups(home).iter().filter(|path| name(path).starts_with("v2-")).count();
            let replaced = usize::from(course.name.starts_with("restoring") && old);
            // One that failed may have done so before it made its backup, and the next try makes its own.
            let made = if results.iter().any(|result| result == "failed") { 1 } else { made };
            if (made, aside.len()) != (1, replaced) {
                wrong(format!("backups: {:?}", backups(home)));
            }
            for path in backups(home) {
                let said = home.run(&["backup", "verify", name(&path)]);
                if said.code != 0 {
                    wrong(format!("backup {}: {}", path.display(), said.err));
                }
            }
        }
        if course.hook.is_some() && results == ["committed"] && !home.dir.join("hook").exists() {
            wrong("the hook did not run".to_owned());
        }
        if home.history().iter().any(|line| line["result"] != "committed" && line["reason"] == "") {
            wrong("no reason was recorded".to_owned());
        }
        self.look();
        self.seen.into_iter().collect()
    }
}

// ---- one run ------------------------------------------------------------------------------------

/// How a run went.
struct Run {
    end: End,
    violations: Vec<String>,
    report: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was killed at the point.
    Reached,
    /// The run went another way.
    Missed,
    /// The pause was over before the kill: it may have come somewhat later.
    Late,
}

/// Runs the course until it is killed at the point, or to its end.
fn until_killed<'a>(
    watch: &mut Watch<'a>,
    course: &Course,
    home: &'a Home,
    point: &Point,
    pause: Duration,
) -> (Traced<'a>, End) {
    let mut traced = Traced::start(home, &course.command(home), &point.call, (&point.call, point.k, pause));
    let mut met = 0;
    let began = Instant::now();
    while began.elapsed() < course.patience {
        match traced.next(Duration::from_millis(3)) {
            Some(Event::Pauses(pid, who, until)) => {
                met += usize::from(who == point.who);
                if met == point.nth && who == point.who {
                    if point.victim != Victim::Itself {
                        kill(traced.visor.pid(), Signal::KILL);
                    }
                    if point.victim != Victim::Supervisor {
                        kill(pid, Signal::KILL);
                    }
                    let end = if SystemTime::now() < until { End::Reached } else { End::Late };
                    watch.look();
                    return (traced, end);
                }
                watch.look();
            }
            Some(Event::Called(..)) => {}
            None if watch.ended(&mut traced.visor, true) => break,
            None => {}
        }
    }
    (traced, End::Missed)
}

/// Runs the course, kills at the point, starts again, and judges.
fn run(course: &Course, point: &Point, pause: Duration) -> Run {
    let Some(home) = course.home() else {
        return Run { end: End::Missed, violations: Vec::new(), report: String::new() };
    };
    let mut watch = Watch::new(&home, course);
    let (mut traced, end) = until_killed(&mut watch, course, &home, point, pause);
    let forced = end != End::Missed && point.victim == Victim::Itself;
    let goes_on = (end == End::Missed && !matches!(course.under_test, Program::Restore)) || forced;
    let mut visor = if goes_on {
        traced.visor
    } else {
        // Who starts it again, systemd or a person, has seen its end.
        traced.visor.end();
        home.spawn(course.next(&home))
    };
    let began = Instant::now();
    while began.elapsed() < course.patience && !watch.ended(&mut visor, goes_on) {
        std::thread::sleep(Duration::from_millis(3));
    }
    let mut violations = watch.finish(&mut visor, forced);
    violations.iter_mut().for_each(|violation| *violation = format!("{} {point:?}: {violation}", course.name));
    let report = if violations.is_empty() { String::new() } else { home.report() };
    Run { end, violations, report }
}

/// The same, again with a longer pause when the kill came too late to say where.
fn run_exactly(course: &Course, point: &Point) -> Run {
    let mut pause = Duration::from_millis(10);
    loop {
        let run = run(course, point, pause);
        if run.end != End::Late || pause > Duration::from_millis(200) || !run.violations.is_empty() {
            return run;
        }
        pause *= 3;
    }
}

/// A home where this course was killed at this point; the node had the time to end.
fn halted(course: &Course, point: &Point) -> Option<Home> {
    let home = course.home()?;
    let mut watch = Watch::new(&home, course);
    let (mut traced, end) = until_killed(&mut watch, course, &home, point, Duration::from_millis(100));
    traced.visor.kill();
    until("nobody is left", || home.holders().is_empty().then_some(()));
    drop((traced, watch));
    (end == End::Reached).then_some(home)
}

// ---- the sweep ----------------------------------------------------------------------------------

/// Numbers that a seed repeats (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = std::env::var("WEMIXVISOR_SEED").ok().and_then(|seed| seed.parse().ok());
        given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs())
    })
}

/// All points rather than a sample: also those after calls that change nothing.
fn every() -> bool {
    std::env::var("WEMIXVISOR_CRASH").is_ok_and(|value| value == "every")
}

fn all() -> bool {
    every() || std::env::var("WEMIXVISOR_CRASH").is_ok_and(|value| value == "all")
}

/// How long a sample is tried: `sample`, or the seconds that were asked for.
fn time(sample: Duration) -> Duration {
    let given = std::env::var("WEMIXVISOR_CRASH").ok().and_then(|value| value.parse().ok());
    given.map_or(sample, Duration::from_secs)
}

/// Tries the points of these courses, in an order that the seed gives, all or for a time; panics when one is violated.
fn sweep(courses: &[Course]) {
    let mut dice = Dice(seed());
    let mut order: Vec<(u64, usize, Point)> = Vec::new();
    let mut count = 0;
    for (i, course) in courses.iter().enumerate() {
        for (point, changes) in points(course, &record(course)) {
            count += 1;
            if changes || every() {
                order.push((dice.roll(), i, point));
            }
        }
    }
    order.sort();
    eprintln!(
        "crash: kills: {} of {count} system calls change something outside or are tried all the same",
        order.len()
    );
    let tally: Mutex<Vec<[usize; 3]>> = Mutex::new(vec![[0; 3]; courses.len()]);
    try_all("kills", &order, SAMPLE_TIME, |(_, i, point)| {
        let run = run_exactly(&courses[*i], point);
        tally.lock().unwrap()[*i][run.end as usize] += 1;
        run
    });
    for (i, (course, [reached, missed, late])) in courses.iter().zip(tally.into_inner().unwrap()).enumerate() {
        let of = order.iter().filter(|(_, course, _)| *course == i).count();
        let tried = reached + missed + late;
        eprintln!("crash:   {}: {tried} of {of}, {missed} not reached, {late} late", course.name);
    }
}

/// Tries these in their order, several at a time, all or for so long; says how many and panics when one is violated.
fn try_all<T: Sync>(what: &str, order: &[T], time: Duration, run: impl Fn(&T) -> Run + Sync) {
    let (at, missed, violations) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    let work = || {
        while all() || began.elapsed() < self::time(time) {
            let Some(item) = order.get(at.fetch_add(1, Ordering::Relaxed)) else { break };
            let run = run(item);
            missed.fetch_add(usize::from(run.end == End::Missed), Ordering::Relaxed);
            if !run.violations.is_empty() {
                eprintln!("crash: VIOLATED {}\n{}", run.violations.join("\n"), run.report);
                violations.lock().unwrap().extend(run.violations);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(work);
        }
    });
    let violations = violations.into_inner().unwrap();
    eprintln!(
        "crash: {what}: {} points of {} tried ({} not reached), seed {}, {} violations, {} s",
        at.into_inner().min(order.len()),
        order.len(),
        missed.into_inner(),
        seed(),
        violations.len(),
        began.elapsed().as_secs()
    );
    assert!(violations.is_empty(), "seed {}\n{}", seed(), violations.join("\n"));
}

fn strace_is_missing() -> bool {
    let missing = !strace::available();
    if missing {
        eprintln!("SKIPPED: strace is not there or may not trace");
    }
    missing
}

/// The courses that begin where these were killed: after each call that moves a name, or after some of them.
fn recoveries(of: &[Course]) -> Vec<Course> {
    let mut found = Vec::new();
    let mut dice = Dice(seed());
    for course in of {
        for (point, _) in points(course, &record(course)) {
            let moves = ["rename", "renameat", "renameat2", "symlink", "symlinkat"].contains(&point.call.as_str());
            let last = point.call.starts_with("unlink") && ["step Commit", "step Back"].contains(&point.who.as_str());
            let writes = point.who.starts_with("step") || point.who == "shim";
            if (moves || last) && writes && point.victim == Victim::Supervisor {
                found.push((dice.roll(), recovering(course, &point)));
            }
        }
    }
    found.sort_by_key(|(order, _)| *order);
    found.truncate(if all() { usize::MAX } else { 2 });
    found.into_iter().map(|(_, course)| course).collect()
}

#[test]
fn an_upgrade_that_is_killed_at_any_system_call_ends_once() {
    if strace_is_missing() {
        return;
    }
    let courses = [forward(), reverting(), restoring(), hooked(), undoing(), restoring_by_hand()];
    let again = recoveries(&[forward(), restoring()]);
    sweep(&[&courses[..], &again].concat());
}

#[test]
fn a_naive_switch_is_seen_to_fail() {
    if strace_is_missing() {
        return;
    }
    let point =
        |who: &str, call: &str, victim| Point { who: who.to_owned(), nth: 1, call: call.to_owned(), k: 1, victim };
    let seen = |point: Point, sign: &str| {
        let run = run_exactly(&naive(), &point);
        assert_eq!(run.end, End::Reached);
        assert!(run.violations.iter().any(|violation| violation.contains(sign)), "{:?}", run.violations);
    };
    seen(point("rm", "unlinkat", Victim::Both), "current cannot be read");
    seen(point("sleep", "execve", Victim::Supervisor), "found the data in use");
}
