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
//! `WEMIXVISOR_ONLY=TEXT` tries only kills and failures that have that text in what a violation shows of them.

mod course;
mod faults;
mod full_disk;
mod points;
pub mod strace;
mod watch;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use self::course::{
    Course, Program, forward, hooked, naive, recovering, restoring, restoring_by_hand, reverting, undoing,
};
use self::points::{Point, Victim, points, record};
use self::strace::{Event, Traced};
use self::watch::Watch;
use crate::support::{Home, kill, until};

/// How long one run may take until it has converged: a step that failed is tried again after ten seconds.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long the sample is tried.
const SAMPLE_TIME: Duration = Duration::from_secs(60);
/// How many runs there are at a time: most of their time is waiting.
const SIDE_BY_SIDE: usize = 4;

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

/// Whether this one is to be tried, where only some are.
fn wanted(shown: &str) -> bool {
    std::env::var("WEMIXVISOR_ONLY").map_or(true, |only| shown.contains(&only))
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
            if (changes || every()) && wanted(&format!("{} {point:?}", course.name)) {
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
