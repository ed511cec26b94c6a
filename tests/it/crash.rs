//! An upgrade survives anything: killed at every system call of the supervisor and of its workers, forward, going back and
//! while recovering, the next start converges, seen from outside: processes, link, data, history. Which calls there are is
//! found by recording a run. A kill comes right *after* a call. That covers the instant right before the next one too:
//! between two of its calls a process changes nothing outside itself.
//!
//! The number of calls in the supervisor's loop depends on time; its points and those of looks and probes are counted in one
//! run and may not be reached in another, which is reported. Steps, the shim and the clearing are exact.
//!
//! `cargo test` tries a sample with a seed that is printed; `WEMIXVISOR_SEED` repeats it, `WEMIXVISOR_CRASH=all` tries all.

pub mod strace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::death::{doubles, ended_in_silence};
use crate::support::{Home, Visor, kill};
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
    /// Habits of the release that ran before (v1; genesis must never come back) and of the new one.
    habits: [&'static str; 2],
    /// What the home holds to begin with: the state of another one, or nothing but its releases and a plan.
    base: Option<PathBuf>,
    /// What the operator types once the node runs.
    operator: &'static [&'static str],
    /// How it may end: the results in history, the release that runs.
    ends: &'static [(&'static [&'static str], &'static str)],
    /// How long one run may take until it has converged.
    patience: Duration,
    /// What is tried instead of our own supervisor.
    script: Option<&'static str>,
}

fn forward() -> Course {
    Course {
        name: "forward".to_owned(),
        // As an old WBFT release does: no block at the height of the new rules.
        habits: ["--halt-at 104", ""],
        base: None,
        operator: &[],
        ends: &[(&["committed"], "v2")],
        patience: PATIENCE,
        script: None,
    }
}

fn reverting() -> Course {
    Course {
        name: "reverting".to_owned(),
        habits: ["--halt-at 104", "--die-at-start"],
        ends: &[(&["reverted"], "v1")],
        ..forward()
    }
}

/// The operator takes back what was committed. Killed before it is on disk, the wish is lost and was not acknowledged.
fn undoing(committed: &Path) -> Course {
    Course {
        name: "undoing".to_owned(),
        habits: ["", ""],
        base: Some(committed.to_owned()),
        operator: &["upgrade", "revert"],
        ends: &[(&["committed", "reverted"], "v1"), (&["committed"], "v2")],
        ..forward()
    }
}

/// Goes on from where another course was killed.
fn recovering(of: &Course, from: &Point, halted: &Home) -> Course {
    Course {
        name: format!("{}, recovering after {} {} {}", of.name, from.who, from.call, from.k),
        base: Some(halted.dir.clone()),
        ..of.clone()
    }
}

/// What people write before they have lost a node by it: the link removed and made again, nobody holds a lock.
fn naive() -> Course {
    Course {
        name: "naive".to_owned(),
        patience: Duration::from_secs(3),
        script: Some(
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

const DATA: &str = "d/geth/chaindata/000001.ldb";

impl Course {
    fn home(&self) -> Home {
        let home = Home::new();
        home.release("v1", self.habits[0]);
        home.release("v2", self.habits[1]);
        match &self.base {
            Some(base) => copy_state(base, &home.dir),
            None => {
                fs::remove_file(home.own("current")).unwrap();
                std::os::unix::fs::symlink("upgrades/v1", home.own("current")).unwrap();
                home.plan("v2", 105);
                fs::create_dir_all(home.dir.join(DATA).parent().unwrap()).unwrap();
                fs::write(home.dir.join(DATA), "what no upgrade changes").unwrap();
            }
        }
        home
    }

    fn command(&self, home: &Home) -> Command {
        if let Some(script) = self.script {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, "naive"]).arg(home.own("")).args(self.node(home)).env("PATH", "/usr/bin:/bin");
            return command;
        }
        let quick = [
            "trial_time=1ms",
            "trial_blocks=1",
            "restart_backoff=0",
            "height_poll_interval=100ms",
            "health_check_interval=100ms",
        ];
        let mut args: Vec<&str> = quick.iter().flat_map(|setting| ["--set", *setting]).collect();
        let node = self.node(home);
        args.push("run");
        args.extend(node.iter().map(String::as_str));
        home.command(&args)
    }

    fn node(&self, home: &Home) -> Vec<String> {
        [&home.node_args()[..], &["--start-head".to_owned(), "100".to_owned()]].concat()
    }

    /// Whether the upgrade is at an end: nothing under way, one node, this supervisor's, of the release that `current` points
    /// at.
    fn ended(&self, home: &Home, supervisor: u32) -> Option<(Vec<String>, String)> {
        if home.own("journal.json").exists() {
            return None;
        }
        let results = results(home);
        let release = fs::read_link(home.own("current")).ok()?.file_name()?.to_str()?.to_owned();
        let end = self.ends.iter().find(|(ends, at)| results == **ends && release == *at);
        if end.is_none() && !self.ends.iter().any(|(ends, _)| ends.len() <= results.len()) {
            return None;
        }
        let nodes = home.nodes();
        let last = home.events("start").pop()?;
        let one = nodes.len() == 1 && parent(nodes[0]) == supervisor;
        (one && last[1] == nodes[0].to_string() && last[2] == release).then_some((results, release))
    }
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

/// Copies all that a run leaves behind but the releases' binaries, which the new home has already.
fn copy_state(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type().unwrap());
        if kind.is_dir() && entry.file_name() != "bin" {
            fs::create_dir_all(&target).unwrap();
            copy_state(&path, &target);
        } else if kind.is_symlink() {
            let _ = fs::remove_file(&target);
            std::os::unix::fs::symlink(fs::read_link(&path).unwrap(), &target).unwrap();
        } else if kind.is_file() && entry.file_name() != "node" {
            fs::copy(&path, &target).unwrap();
        }
    }
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

/// Calls after which something outside may have changed: these points are tried first.
const CHANGES: &[&str] = &[
    "openat",
    "write",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "flock",
    "lchown",
    "fchown",
    "ftruncate",
    "copy_file_range",
    "ioctl",
    "execve",
    "prctl",
    "setsid",
    "fcntl",
    "kill",
    "pidfd_send_signal",
    "clone",
    "clone3",
    "vfork",
];

/// What a run of this course does: the calls of each process, in order, with who it is.
fn record(course: &Course) -> Vec<(String, Vec<String>)> {
    let home = course.home();
    let traced = Traced::start(&home, &course.command(&home), "all", ("prctl", 1, Duration::from_millis(50)));
    let mut calls: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut executed: BTreeMap<u32, usize> = BTreeMap::new();
    let mut who: BTreeMap<u32, String> = BTreeMap::new();
    let mut watch = Watch::new(&home, course);
    let began = Instant::now();
    loop {
        match traced.next(Duration::from_millis(3)) {
            Some(Event::Called(pid, name, _)) => {
                let executed = executed.entry(pid).or_default();
                *executed += usize::from(name == "execve");
                // What follows the shim's own execve is the node's.
                if *executed < 2 || name == "execve" {
                    calls.entry(pid).or_default().push(name);
                }
            }
            Some(Event::Pauses(pid, is, _)) => _ = who.entry(pid).or_insert(is),
            None if watch.ended(traced.visor.pid(), true) => break,
            None => assert!(began.elapsed() < PATIENCE, "the recorded run never ended\n{}", home.report()),
        }
    }
    who.insert(traced.visor.pid(), "supervisor".to_owned());
    calls.into_iter().filter_map(|(pid, calls)| Some((who.get(&pid)?.clone(), calls))).collect()
}

/// All points of a recorded run. Recoveries are many: there it is the supervisor that is killed, at what it and its steps do.
fn points(course: &Course, recorded: &[(String, Vec<String>)]) -> BTreeSet<Point> {
    let again = course.name.contains("recovering");
    let mut points = BTreeSet::new();
    let mut seen: BTreeMap<(String, String, usize), usize> = BTreeMap::new();
    for (who, calls) in recorded {
        let supervisor = who == "supervisor";
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut executed, mut own) = (false, false);
        for call in calls {
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
            let alike = alike || (who == "probe" && !CHANGES.contains(&call.as_str()));
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
            points.extend(victims.iter().map(|victim| Point {
                who: who.to_owned(),
                nth: *nth,
                call: call.clone(),
                k: *k,
                victim: *victim,
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

    /// The same, and whether the upgrade is at an end. `type_it`: the operator is at the keyboard.
    fn ended(&mut self, supervisor: u32, type_it: bool) -> bool {
        self.look();
        if let Some(operator) = &mut self.operator {
            match operator.try_wait().unwrap() {
                None => return false,
                Some(status) => {
                    self.acknowledged |= status.success();
                    self.operator = None;
                    if !status.success() && type_it {
                        return false;
                    }
                }
            }
        }
        if type_it && !self.course.operator.is_empty() && !self.acknowledged {
            // Asked again until it is taken: a supervisor that has just begun does not know its node yet.
            if !self.home.nodes().is_empty() {
                let mut command = self.home.command(self.course.operator);
                self.operator = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            }
            return false;
        }
        self.course.ended(self.home, supervisor).is_some()
    }

    /// What must hold at the end.
    fn finish(mut self, visor: &mut Visor) -> Vec<String> {
        if let Some(mut operator) = self.operator.take() {
            let _ = operator.kill();
            let _ = operator.wait();
        }
        let home = self.home;
        match self.course.ended(home, visor.pid()) {
            None => _ = self.seen.insert(format!("it never ended: {:?}, nodes {:?}", results(home), home.nodes())),
            Some((results, release)) => {
                let end = self.course.ends.iter().position(|(ends, at)| results == **ends && release == *at);
                match end {
                    None => _ = self.seen.insert(format!("it ended {results:?} with {release}")),
                    Some(0) => {}
                    Some(_) if self.acknowledged => {
                        self.seen.insert(format!("what was acknowledged is lost: {results:?} with {release}"));
                    }
                    Some(_) => {}
                }
            }
        }
        if home.holders().is_empty() {
            self.seen.insert("a node runs without the lock".to_owned());
        }
        visor.signal(Signal::TERM);
        let began = Instant::now();
        while visor.lives() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        if visor.lives() || visor.end() != 0 {
            self.seen.insert("the supervisor does not end well".to_owned());
        }
        if !home.nodes().is_empty() || !home.holders().is_empty() {
            self.seen.insert(format!("left behind: {:?} {:?}", home.nodes(), home.holders()));
        }
        self.look();
        self.seen.extend(doubles(home, &ended_in_silence(home)));
        if fs::read(home.dir.join(DATA)).ok().as_deref() != Some(b"what no upgrade changes") {
            self.seen.insert("the data is not what it was".to_owned());
        }
        let reasons = home.history();
        if reasons.iter().any(|line| line["result"] != "committed" && line["reason"] == "") {
            self.seen.insert("no reason was recorded".to_owned());
        }
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

/// Runs the course, kills at the point, starts again, and judges.
fn run(course: &Course, point: &Point, pause: Duration) -> Run {
    let home = course.home();
    let mut traced = Traced::start(&home, &course.command(&home), &point.call, (&point.call, point.k, pause));
    let mut watch = Watch::new(&home, course);
    let mut met = 0;
    let mut end = End::Missed;
    let mut next: Option<Visor> = None;
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
                    end = if SystemTime::now() < until { End::Reached } else { End::Late };
                    watch.look();
                    if point.victim != Victim::Itself {
                        // Who starts it again, systemd or a person, has seen its end.
                        traced.visor.end();
                        next = Some(home.spawn(course.command(&home)));
                    }
                }
                watch.look();
            }
            Some(Event::Called(..)) => {}
            None if watch.ended(next.as_ref().unwrap_or(&traced.visor).pid(), next.is_none()) => break,
            None => {}
        }
    }
    let mut violations = watch.finish(next.as_mut().unwrap_or(&mut traced.visor));
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
    let given = std::env::var("WEMIXVISOR_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs())
}

fn all() -> bool {
    std::env::var("WEMIXVISOR_CRASH").is_ok_and(|value| value == "all")
}

/// Tries the points of these courses, in an order that the seed gives, all or for a time; panics when one is violated.
fn sweep(courses: &[Course]) {
    let seed = seed();
    let mut dice = Dice(seed);
    let mut order: Vec<(u64, usize, Point)> = Vec::new();
    for (i, course) in courses.iter().enumerate() {
        for point in points(course, &record(course)) {
            let first = if CHANGES.contains(&point.call.as_str()) { 4 } else { 1 };
            order.push((dice.roll() / first, i, point));
        }
    }
    order.sort();
    let began = Instant::now();
    let (at, violations) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let tally: Mutex<Vec<[usize; 3]>> = Mutex::new(vec![[0; 3]; courses.len()]);
    let work = || {
        while all() || began.elapsed() < SAMPLE_TIME {
            let Some((_, i, point)) = order.get(at.fetch_add(1, Ordering::Relaxed)) else { break };
            let run = run_exactly(&courses[*i], point);
            tally.lock().unwrap()[*i][run.end as usize] += 1;
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
    for (i, (course, [reached, missed, late])) in courses.iter().zip(tally.into_inner().unwrap()).enumerate() {
        let of = order.iter().filter(|(_, course, _)| *course == i).count();
        eprintln!(
            "crash: {}: {} points of {of} tried, {missed} not reached, {late} late",
            course.name,
            reached + missed + late
        );
    }
    let violations = violations.into_inner().unwrap();
    let tried = at.into_inner().min(order.len());
    eprintln!(
        "crash: {tried} points of {} tried, seed {seed}, {} violations ({} s)",
        order.len(),
        violations.len(),
        began.elapsed().as_secs()
    );
    assert!(violations.is_empty(), "seed {seed}\n{}", violations.join("\n"));
}

fn strace_is_missing() -> bool {
    let missing = !strace::available();
    if missing {
        eprintln!("SKIPPED: strace is not there or may not trace");
    }
    missing
}

/// A home where this course was killed at this point, supervisor and all; the node had the time to end.
fn halted(course: &Course, point: &Point) -> Option<Home> {
    let home = course.home();
    let pause = Duration::from_millis(100);
    let traced = Traced::start(&home, &course.command(&home), &point.call, (&point.call, point.k, pause));
    let mut watch = Watch::new(&home, course);
    let mut met = 0;
    let began = Instant::now();
    while began.elapsed() < course.patience {
        match traced.next(Duration::from_millis(3)) {
            Some(Event::Pauses(pid, who, until)) => {
                met += usize::from(who == point.who);
                if met == point.nth && who == point.who {
                    kill(traced.visor.pid(), Signal::KILL);
                    kill(pid, Signal::KILL);
                    let exact = SystemTime::now() < until;
                    crate::support::until("nobody is left", || home.holders().is_empty().then_some(()));
                    drop(traced);
                    return exact.then_some(home);
                }
            }
            Some(Event::Called(..)) => {}
            None if watch.ended(traced.visor.pid(), true) => return None,
            None => {}
        }
    }
    None
}

/// The courses that begin where these were killed: after each call that moves a name, or after some of them.
fn recoveries(of: &[Course]) -> Vec<(Home, Course)> {
    let mut all_points = Vec::new();
    let mut dice = Dice(seed());
    for course in of {
        let points = points(course, &record(course));
        all_points.extend(points.into_iter().filter_map(|point| {
            let moves = ["rename", "renameat2", "symlink", "symlinkat"].contains(&point.call.as_str());
            let moves =
                moves || (point.call.starts_with("unlink") && ["step Commit", "step Back"].contains(&&*point.who));
            (moves && point.victim == Victim::Supervisor && point.who != "probe" && point.who != "stage")
                .then(|| (dice.roll(), course, point))
        }));
    }
    if !all() {
        all_points.sort_by_key(|(order, ..)| *order);
        all_points.truncate(3);
    }
    let home = |(_, course, point): (u64, &Course, Point)| {
        let home = halted(course, &point)?;
        let course = recovering(course, &point, &home);
        Some((home, course))
    };
    all_points.into_iter().filter_map(home).collect()
}

/// A home where the upgrade went well.
fn committed() -> Home {
    let course = forward();
    let home = course.home();
    let mut visor = home.spawn(course.command(&home));
    crate::support::until("it is committed", || course.ended(&home, visor.pid()));
    visor.stop();
    drop(visor);
    home
}

#[test]
fn an_upgrade_that_is_killed_at_any_system_call_ends_once() {
    if strace_is_missing() {
        return;
    }
    let committed = committed();
    let courses = [forward(), reverting(), undoing(&committed.dir)];
    let (_halted, again): (Vec<Home>, Vec<Course>) = recoveries(&courses[..2]).into_iter().unzip();
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
