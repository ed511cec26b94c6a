//! The machine without any process: traces, the golden table of all transitions, and a seeded random walk through a toy
//! world that knows which children live and who holds the data.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

use std::fmt::Write;

use super::*;
use crate::config::{Config, Sources, resolve};
use crate::home::Name;
use crate::job::look::Survey;
use crate::job::stage::{Check, Staged};
use crate::journal::{Phases, rfc3339};
use crate::schedule::Found;

fn config(set: &[(&str, &str)]) -> Config {
    let flags: Vec<(String, String)> =
        [("daemon_home", "/h")].iter().chain(set).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let sources = Sources { flags: &flags, config_file: None, env: &[], etc: std::path::Path::new("/nowhere") };
    resolve(&sources).unwrap().config().unwrap()
}

fn release(name: &str) -> Release {
    Release::parse(name).unwrap()
}

fn plan(name: &str, height: u64) -> Found {
    Found {
        name: Name::parse(name).unwrap(),
        height,
        digest: format!("{name}@{height}"),
        description: None,
        fetchable: false,
        release: release(name),
        print: Some("print".to_owned()),
        file: format!("data/upgrades/{height}/upgrade-info.json"),
        outcome: None,
    }
}

fn survey(current: &str, journal: Option<Journal>, plans: Vec<Found>) -> Survey {
    Survey {
        current: Ok(release(current)),
        brought: None,
        journal: Ok(journal),
        plans,
        errors: Vec::new(),
        last: None,
        known: Known::default(),
        known_error: None,
        record: None,
        watch: Vec::new(),
        watchable: true,
    }
}

fn journal(stage: Stage) -> Journal {
    Journal {
        version: 1,
        id: "v2-1-1".to_owned(),
        name: Name::parse("v2").unwrap(),
        stage,
        from: Release::Genesis,
        to: release("v2"),
        height: Some(100),
        digest: Some("v2@100".to_owned()),
        plan: None,
        passed: Vec::new(),
        head: Some(99),
        identity: Identity::default(),
        starts: 0,
        proven: false,
        back: None,
        begun: 1,
        phases: Phases::default(),
        clean_stop: None,
    }
}

fn fit(name: &str) -> Staged {
    Staged {
        release: release(name),
        print: Some("print".to_owned()),
        checks: Vec::new(),
        version: Some("2".to_owned()),
    }
}

fn unfit(name: &str) -> Staged {
    let check = Check { what: "it".to_owned(), problem: Some("it is not there".to_owned()), remark: None };
    Staged { checks: vec![check], ..fit(name) }
}

fn probed(head: u64) -> Event {
    let identity =
        Identity { chain_id: Some("0x1".to_owned()), genesis: Some("0xg".to_owned()), node: Some("n".to_owned()) };
    let probed = Probed { address: "ipc".to_owned(), head, identity: Some(identity), ..Probed::default() };
    Event::Done(Role::Probe, Ok(Report::Probed(Box::new(probed))))
}

fn stepped(journal: Option<Journal>) -> Event {
    Event::Done(Role::Step, Ok(Report::Stepped(journal.map(Box::new))))
}

fn surveyed(survey: Survey) -> Event {
    Event::Done(Role::Look, Ok(Report::Surveyed(Box::new(survey))))
}

fn recorded(name: &str, starts: u32) -> Event {
    Event::Note(Role::Node, Note::Recorded(Recorded { release: release(name), args: Vec::new(), starts }))
}

fn cleared() -> Event {
    Event::Done(Role::Clear, Ok(Report::Cleared))
}

/// A machine and its clock.
#[derive(Clone)]
struct Drive {
    machine: Machine,
    now: Now,
    plans: Vec<Found>,
}

impl Drive {
    fn new(set: &[(&str, &str)]) -> Drive {
        let config = config(set);
        let home = Home::new(&config.home, &config.name);
        Drive {
            machine: Machine::new(config, home, Flags::default(), false, vec!["--x".to_owned()]),
            now: Now::ZERO,
            plans: Vec::new(),
        }
    }

    fn feed(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Event::Done(Role::Probe, _) = event {
            // An answer belongs to a question of this life.
            self.machine.probing.get_or_insert(self.machine.life.launched);
        }
        self.machine.step(self.now, event, &mut out);
        out
    }

    /// Feeds events; looks that are asked for find what is there.
    fn all(mut self, events: impl IntoIterator<Item = Event>) -> Drive {
        for event in events {
            self.feed(event);
            self.looked();
        }
        self
    }

    fn looked(&mut self) {
        while self.machine.state != State::Boot && self.machine.looking != Looking::No {
            let current = self.machine.current.as_ref().map_or_else(|| "genesis".to_owned(), Release::to_string);
            self.feed(surveyed(survey(&current, self.machine.journal.clone(), self.plans.clone())));
        }
    }

    fn after(mut self, seconds: u64) -> Drive {
        self.now += Duration::from_secs(seconds);
        self.all([Event::Tick])
    }

    /// A node that runs the genesis release, with these plans.
    fn up(set: &[(&str, &str)], plans: Vec<Found>) -> Drive {
        Drive { plans: plans.clone(), ..Drive::new(set) }.all([
            Event::Booted,
            surveyed(survey("genesis", None, plans)),
            Event::Watching(true),
            recorded("genesis", 0),
            Event::Executed,
        ])
    }

    /// The upgrade to v2 was due and has begun.
    fn begun(set: &[(&str, &str)]) -> Drive {
        Drive::up(set, vec![plan("v2", 100)]).all([
            Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))),
            probed(99),
            stepped(Some(journal(Stage::Stop))),
        ])
    }

    /// The link has moved; the new release was executed.
    fn trial(set: &[(&str, &str)]) -> Drive {
        Drive::begun(set).all([
            Event::Ended(Exit::Code(0)),
            cleared(),
            stepped(Some(journal(Stage::Trial))),
            recorded("v2", 1),
            Event::Executed,
        ])
    }
}

fn short(effects: &[Effect]) -> String {
    let one = |effect: &Effect| match effect {
        Effect::Launch(_) => Some("launch".to_owned()),
        Effect::Start(Role::Step, Job::Step(step)) => {
            let name = format!("{step:?}");
            Some(format!("step:{}", name.split([' ', '(', '{']).next().unwrap()))
        }
        Effect::Start(role, _) => Some(format!("start:{role:?}")),
        Effect::Terminate(role) => Some(format!("TERM:{role:?}")),
        Effect::Kill(role) => Some(format!("KILL:{role:?}")),
        Effect::Sample(_) => Some("sample".to_owned()),
        Effect::Reply(..) => Some("reply".to_owned()),
        Effect::Ready => Some("ready".to_owned()),
        Effect::Exit(code, ..) => Some(format!("exit:{code}")),
        Effect::Watch(_) | Effect::Log(..) => None,
    };
    effects.iter().filter_map(one).collect::<Vec<_>>().join(" ")
}

// ---- traces ---------------------------------------------------------------------------------------------------

#[test]
fn an_upgrade_stops_switches_starts_proves_and_commits_in_this_order() {
    let mut drive = Drive::up(&[], vec![plan("v2", 100)]);
    assert!(!short(&drive.feed(probed(98))).contains("step"), "not early");
    drive.looked();
    assert!(!short(&drive.feed(probed(99))).contains("step"), "not before its release was checked");
    assert_eq!(short(&drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))))), "step:Begin");
    let begun = short(&drive.feed(stepped(Some(journal(Stage::Stop)))));
    assert!(begun.contains("TERM:Node"), "{begun}");
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(0)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:Switch");
    let switched = short(&drive.feed(stepped(Some(journal(Stage::Trial)))));
    assert!(switched.contains("launch"), "{switched}");
    drive = drive.all([recorded("v2", 1), Event::Executed, probed(99)]);
    assert!(!short(&drive.clone().after(59).feed(probed(101))).contains("step"), "not proven before its time");
    drive.now += Duration::from_secs(60);
    assert!(short(&drive.feed(Event::Tick)).contains("step:Prove"));
    let proven = Journal { proven: true, starts: 1, ..journal(Stage::Trial) };
    assert!(!short(&drive.feed(stepped(Some(proven)))).contains("Commit"), "its blocks are missing");
    drive = drive.after(1);
    assert!(short(&drive.feed(probed(119))).contains("step:Commit"));
    drive.feed(stepped(None));
    assert_eq!(drive.machine.public_state(), "running");
}

#[test]
fn an_unknown_head_is_never_due_and_becomes_an_alarm() {
    let mut drive = Drive::up(&[], vec![plan("v2", 1)]);
    drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))));
    let silent = || Event::Done(Role::Probe, Err("connection refused".to_owned()));
    assert!(!short(&drive.feed(silent())).contains("step"));
    drive.now += Duration::from_secs(301);
    let effects = drive.feed(Event::Tick);
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Log(Level::Error, text) if text.contains("no head is known"))),
        "{effects:?}"
    );
    assert_eq!(drive.machine.status()["health"]["healthy"], false);
}

#[test]
fn a_node_that_ended_at_the_height_is_upgraded_whatever_its_status_was() {
    for exit in [Exit::Code(0), Exit::Code(1), Exit::Signal(11)] {
        let mut drive = Drive::up(&[], vec![plan("v2", 100)]);
        drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))));
        drive.machine.known.head = Some(Head { number: 99, seen: 0, release: Release::Genesis });
        assert_eq!(short(&drive.feed(Event::Ended(exit))), "step:Begin", "{exit}");
        assert_eq!(short(&drive.feed(stepped(Some(journal(Stage::Stop))))), "start:Look start:Clear");
        assert_eq!(short(&drive.feed(cleared())), "step:Switch");
    }
}

#[test]
fn a_due_plan_whose_release_is_not_fit_waits_and_the_old_release_runs_on() {
    let mut drive = Drive::up(&[], vec![plan("v2", 100)]);
    drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(unfit("v2")))));
    for head in [99, 100, 150] {
        assert!(!short(&drive.feed(probed(head))).contains("step"));
    }
    assert_eq!(drive.machine.public_state(), "running");
    drive.looked();
    // The binary comes: a look sees it, it is checked at once, and the upgrade begins.
    let mut found = plan("v2", 100);
    found.print = Some("another".to_owned());
    drive.feed(Event::FilesChanged);
    drive.now += Duration::from_secs(1);
    drive.feed(Event::Tick);
    assert!(short(&drive.feed(surveyed(survey("genesis", None, vec![found])))).contains("start:Stage"));
    assert!(short(&drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))))).contains("step:Begin"));
}

#[test]
fn three_ends_before_the_proof_bring_the_old_release_back_and_a_third_start_that_lives_does_not() {
    let mut drive = Drive::trial(&[("daemon_restart_backoff", "1s")]);
    for starts in 1..=2 {
        assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "", "start {starts}");
        drive = drive.after(60);
        drive = drive.all([recorded("v2", starts + 1), Event::Executed]);
    }
    assert!(!short(&drive.clone().feed(probed(99))).contains("step"), "the third start lives");
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:TurnBack");
    let back = Journal { back: Some((Outcome::Reverted, "x".to_owned())), ..journal(Stage::Back) };
    assert_eq!(short(&drive.feed(stepped(Some(back)))), "start:Look start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:Back");
    let after = short(&drive.feed(stepped(None)));
    assert!(after.contains("launch"), "{after}");
}

#[test]
fn after_a_block_of_the_new_rules_nothing_goes_back_by_itself() {
    let mut drive = Drive::trial(&[("daemon_restart_backoff", "1s"), ("daemon_max_restarts", "2")]);
    drive.feed(probed(100));
    for starts in 1..=2 {
        drive.feed(Event::Ended(Exit::Code(1)));
        drive = drive.after(60).all([recorded("v2", starts + 1), Event::Executed]);
    }
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "exit:5");
}

#[test]
fn a_wrong_chain_ends_the_trial_at_once() {
    let mut drive = Drive::trial(&[]);
    drive.machine.journal.as_mut().unwrap().identity.chain_id = Some("0x457".to_owned());
    let effects = drive.feed(probed(99));
    assert!(short(&effects).contains("step:TurnBack"), "{}", short(&effects));
    assert!(effects.iter().any(|e| matches!(e, Effect::Start(_, Job::Step(step)) if matches!(&**step, Step::TurnBack { reason, .. } if reason.contains("chain id is 0x1, it was 0x457")))));
}

#[test]
fn term_is_sent_once_and_kill_only_when_the_grace_is_over() {
    let mut drive = Drive::up(&[("daemon_shutdown_grace", "3s")], Vec::new());
    assert_eq!(short(&drive.feed(Event::Signal(Sig::Stop))), "TERM:Node sample");
    assert_eq!(short(&drive.feed(Event::Signal(Sig::Stop))), "");
    let quiet = || Event::Sample(Counters { used: [(1, (5, 5))].into(), blocked: false });
    let mut all = String::new();
    for _ in 0..3 {
        all += &short(&drive.feed(quiet()));
    }
    assert!(!all.contains("KILL"), "{all}");
    assert_eq!(short(&drive.feed(quiet())), "KILL:Node");
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Signal(9)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "exit:0");
}

#[test]
fn a_command_ends_the_program_and_a_node_that_answered_is_started_again() {
    let mut command = Drive::up(&[], Vec::new());
    assert_eq!(short(&command.feed(Event::Ended(Exit::Code(0)))), "start:Clear");
    assert_eq!(short(&command.feed(cleared())), "exit:0");
    let mut node = Drive::up(&[], Vec::new()).all([probed(7)]);
    assert_eq!(short(&node.feed(Event::Ended(Exit::Code(0)))), "");
    assert!(matches!(node.machine.state, State::Backoff { .. }));
    let mut late = Drive::up(&[], Vec::new()).after(61);
    late.feed(Event::Ended(Exit::Code(0)));
    assert!(matches!(late.machine.state, State::Backoff { .. }), "after 60 s it was no command");
}

#[test]
fn a_cancel_between_stop_and_switch_starts_the_old_release_again() {
    let mut drive = Drive::begun(&[]);
    assert_eq!(short(&drive.feed(Event::Asked(1, Request::Cancel { name: Name::parse("v2").unwrap() }))), "");
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(0)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:TurnBack");
    let back = Journal { back: Some((Outcome::Cancelled, "x".to_owned())), ..journal(Stage::Back) };
    assert_eq!(short(&drive.feed(stepped(Some(back)))), "start:Look reply start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:Back");
    assert!(short(&drive.feed(stepped(None))).contains("launch"));
    let mut late = Drive::trial(&[]);
    let effects = late.feed(Event::Asked(1, Request::Cancel { name: Name::parse("v2").unwrap() }));
    assert!(matches!(&effects[0], Effect::Reply(1, reply) if format!("{reply:?}").contains("revert")), "{effects:?}");
}

#[test]
fn a_switch_that_cannot_be_done_gives_the_old_release_back() {
    let mut drive = Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared()]);
    let fails = || Event::Done(Role::Step, Err("No space left on device".to_owned()));
    for _ in 0..2 {
        assert_eq!(short(&drive.feed(fails())), "start:Look");
        drive.looked();
        drive.now += Duration::from_secs(1);
        assert_eq!(short(&drive.feed(Event::Tick)), "step:Switch");
    }
    assert_eq!(short(&drive.feed(fails())), "start:Look step:TurnBack");
    for _ in 0..2 {
        drive.feed(fails());
        drive.looked();
        drive.now += Duration::from_secs(1);
        drive.feed(Event::Tick);
    }
    // Not even that can be written: the node comes first.
    assert!(short(&drive.feed(fails())).contains("launch"));
    let mut drive = drive.all([recorded("genesis", 0), Event::Executed]);
    assert_eq!(drive.machine.state, State::Up);
    drive.now += Duration::from_secs(31);
    assert!(short(&drive.feed(Event::Tick)).contains("step:TurnBack"));
    let back = Journal { back: Some((Outcome::Failed, "x".to_owned())), ..journal(Stage::Back) };
    assert!(short(&drive.feed(stepped(Some(back)))).contains("step:Back"), "beside the running node");
    drive.feed(stepped(None));
    assert_eq!((drive.machine.state.clone(), drive.machine.journal.clone()), (State::Up, None));
}

#[test]
fn the_first_head_of_a_home_makes_nothing_due_before_the_plans_were_judged_by_it() {
    let mut drive = Drive::up(&[], vec![plan("v2", 100)]);
    drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))));
    let effects = short(&drive.feed(probed(200)));
    assert!(effects.contains("start:Look") && !effects.contains("step"), "{effects}");
    let mut past = plan("v2", 100);
    past.outcome = Some((Outcome::Passed, "x".to_owned()));
    let effects = short(&drive.feed(surveyed(survey("genesis", None, vec![past]))));
    assert!(!effects.contains("step"), "{effects}");
}

#[test]
fn with_the_file_trigger_a_plan_that_appears_is_due_at_once() {
    let mut drive = Drive::up(&[("daemon_upgrade_trigger", "file")], vec![plan("v2", 100)]);
    drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))));
    assert!(!short(&drive.feed(probed(500))).contains("Begin"), "it was there before");
    let mut past = plan("v2", 100);
    past.outcome = Some((Outcome::Passed, "x".to_owned()));
    drive.plans = vec![past.clone()];
    drive.looked();
    drive.feed(Event::FilesChanged);
    drive = drive.after(1);
    drive.plans = vec![past, plan("v3", 9000)];
    drive.feed(Event::FilesChanged);
    drive = drive.after(2);
    let effects = drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v3")))));
    assert!(short(&effects).contains("step:Begin"), "{}", short(&effects));
}

// ---- the golden table -----------------------------------------------------------------------------------------

/// Every state in which the machine can stand, by a way that leads there.
fn states() -> Vec<(&'static str, Drive)> {
    let quick = &[("daemon_restart_backoff", "0")][..];
    let exit = || Event::Ended(Exit::Code(1));
    vec![
        ("boot", Drive::new(&[]).all([Event::Booted])),
        (
            "starting",
            Drive::new(&[]).all([Event::Booted, surveyed(survey("genesis", None, Vec::new())), Event::Watching(true)]),
        ),
        ("up", Drive::up(&[], Vec::new())),
        ("up, answers", Drive::up(&[], Vec::new()).all([probed(7)])),
        (
            "up, plan staged",
            Drive::up(&[], vec![plan("v2", 100)]).all([Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))))]),
        ),
        (
            "up, upgrade begins",
            Drive::up(&[], vec![plan("v2", 100)])
                .all([Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))), probed(99)]),
        ),
        ("deciding (a look is out)", Drive::up(&[], Vec::new()).all([probed(7), Event::Watching(false), exit()])),
        ("backoff", Drive::up(&[], Vec::new()).all([probed(7), exit()])),
        ("starting again", Drive::up(quick, Vec::new()).all([probed(7), exit()])),
        ("stopping", Drive::up(&[], Vec::new()).all([Event::Signal(Sig::Stop)])),
        ("killing", Drive::up(&[], Vec::new()).all([Event::Asked(1, Request::Stop { now: true })])),
        ("clearing before the end", Drive::up(&[], Vec::new()).all([Event::Signal(Sig::Stop), exit()])),
        ("upgrade: stopping", Drive::begun(&[])),
        ("upgrade: clearing", Drive::begun(&[]).all([Event::Ended(Exit::Code(0))])),
        ("upgrade: switching", Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared()])),
        (
            "upgrade: starting",
            Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared(), stepped(Some(journal(Stage::Trial)))]),
        ),
        ("upgrade: trial", Drive::trial(&[])),
        ("upgrade: trial, answers", Drive::trial(&[]).all([probed(99)])),
        ("upgrade: trial, ended twice", {
            let mut drive = Drive::trial(&[("daemon_restart_backoff", "0")]);
            drive = drive.all([exit(), recorded("v2", 2), Event::Executed, exit(), recorded("v2", 3)]);
            drive.all([Event::Executed])
        }),
        ("upgrade: going back", {
            let back = Journal { back: Some((Outcome::Reverted, "x".to_owned())), ..journal(Stage::Back) };
            Drive::new(&[]).all([Event::Booted, surveyed(survey("v2", Some(back), Vec::new()))])
        }),
        ("leaving", Drive::up(&[], Vec::new()).all([Event::Signal(Sig::Stop), exit(), cleared()])),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    let name = || Name::parse("v2").unwrap();
    vec![
        ("node executed", Event::Executed),
        ("node ended 0", Event::Ended(Exit::Code(0))),
        ("node ended 1", Event::Ended(Exit::Code(1))),
        ("node killed", Event::Ended(Exit::Signal(9))),
        ("head 50", probed(50)),
        ("head 99", probed(99)),
        ("no answer", Event::Done(Role::Probe, Err("connection refused".to_owned()))),
        ("looked: nothing new", surveyed(survey("genesis", None, Vec::new()))),
        ("looked: plan v2@100", surveyed(survey("genesis", None, vec![plan("v2", 100)]))),
        ("look failed", Event::Done(Role::Look, Err("it was killed".to_owned()))),
        ("staged: fit", Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))))),
        ("staged: unfit", Event::Done(Role::Stage, Ok(Report::Staged(unfit("v2"))))),
        ("step done: stop", stepped(Some(journal(Stage::Stop)))),
        ("step done: trial", stepped(Some(journal(Stage::Trial)))),
        ("step done: none", stepped(None)),
        ("step failed", Event::Done(Role::Step, Err("No space left on device".to_owned()))),
        ("data is free", cleared()),
        ("clear job failed", Event::Done(Role::Clear, Err("it was killed".to_owned()))),
        ("files changed", Event::FilesChanged),
        ("TERM", Event::Signal(Sig::Stop)),
        ("HUP", Event::Signal(Sig::Reload)),
        ("ask status", Event::Asked(9, Request::Status)),
        ("ask stop --now", Event::Asked(9, Request::Stop { now: true })),
        ("ask restart", Event::Asked(9, Request::Restart { args: None })),
        ("ask cancel v2", Event::Asked(9, Request::Cancel { name: name() })),
        ("ask now v2", Event::Asked(9, Request::Now { name: name(), release: release("v2") })),
        ("ask revert", Event::Asked(9, Request::Revert { to: None })),
    ]
}

fn place(state: &State) -> String {
    let text = format!("{state:?}");
    let name = text.split([' ', '(', '{']).next().unwrap().to_owned();
    let then = if text.contains("then: Go") {
        " then go"
    } else if text.contains("then: Exit") {
        " then exit"
    } else {
        ""
    };
    name + then
}

#[test]
fn the_table_of_transitions_is_the_golden_one() {
    let mut table = String::from(
        "# state | event -> next state | public state | effects (generated: WEMIXVISOR_BLESS=1 cargo test transitions)\n",
    );
    for (from, drive) in states() {
        for (name, event) in events() {
            let mut drive = drive.clone();
            let effects = drive.feed(event);
            let (to, public) = (place(&drive.machine.state), drive.machine.public_state());
            let effects = short(&effects);
            let _ = writeln!(table, "{from} | {name} -> {to} | {public} | {effects}");
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/transitions.txt");
    if std::env::var_os("WEMIXVISOR_BLESS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (now, then) in table.lines().zip(golden.lines()) {
        assert_eq!(now, then, "a transition changed: if it is meant, generate the table again");
    }
    assert_eq!(table.lines().count(), golden.lines().count());
}

// ---- the random walk ------------------------------------------------------------------------------------------

/// A generator of numbers that a seed repeats (xorshift64*, Vigna 2016).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// What really lives, lies on disk and is held, whatever the machine believes.
struct World {
    drive: Drive,
    dice: Dice,
    /// The node's process: none, the shim, or the node (deaf or not); whether it got TERM.
    node: Option<Sim>,
    /// A grandchild that outlived its node holds the data.
    straggler: bool,
    jobs: BTreeMap<Role, Job>,
    current: &'static str,
    journal: Option<Journal>,
    failed: bool,
    finished: Vec<Outcome>,
    plans: Vec<Found>,
    head: u64,
    left: Option<u8>,
    trail: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
struct Sim {
    runs: bool,
    terms: u32,
    deaf: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let grace = [
            ("daemon_shutdown_grace", "2s"),
            ("daemon_trial_time", "5s"),
            ("daemon_trial_blocks", "3"),
            ("daemon_restart_backoff", "1s"),
            ("daemon_max_restarts", "2"),
        ];
        World {
            drive: Drive::new(&grace),
            dice: Dice(seed.max(1)),
            node: None,
            straggler: false,
            jobs: BTreeMap::new(),
            current: "genesis",
            journal: None,
            failed: false,
            finished: Vec::new(),
            plans: vec![plan("v2", 10)],
            head: 0,
            left: None,
            trail: Vec::new(),
        }
    }

    fn feed(&mut self, event: Event) {
        if self.left.is_some() {
            return;
        }
        self.trail.push(
            format!("{:?} {} <- {event:?}", self.drive.now, place(&self.drive.machine.state))
                .chars()
                .take(300)
                .collect(),
        );
        for effect in self.drive.feed(event) {
            self.trail.push(format!("    {}", short(std::slice::from_ref(&effect))));
            let more = self.perform(effect);
            if let Some(event) = more {
                self.feed(event);
            }
        }
    }

    /// Carries out an effect, and sees what must never be.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Launch(_) => {
                assert!(self.node.is_none(), "two nodes");
                let moves =
                    |job: &Job| matches!(job, Job::Step(step) if matches!(**step, Step::Switch { .. } | Step::Back));
                assert!(!self.jobs.values().any(moves), "a node is started while the link moves");
                assert!(!self.jobs.contains_key(&Role::Clear), "a node is started while the data is being cleared");
                self.node = Some(Sim { runs: false, terms: 0, deaf: false });
            }
            Effect::Start(role, job) => {
                if let Job::Step(step) = &job {
                    if let Step::Switch { .. } = **step {
                        assert!(self.node.is_none(), "the link moves under a node");
                    }
                    if let Step::Back = **step {
                        let there = self.current == "genesis";
                        assert!(self.node.is_none() || there, "the link moves back under a node");
                    }
                }
                assert!(role == Role::Reload || !self.jobs.contains_key(&role), "two of {role:?}");
                self.jobs.insert(role, job);
            }
            Effect::Terminate(Role::Node) => {
                let node = self.node.as_mut().expect("TERM without a node");
                node.terms += 1;
                assert_eq!(node.terms, 1, "TERM twice");
            }
            Effect::Kill(Role::Node) => {
                assert!(self.node.is_none_or(|n| n.terms > 0), "KILL before TERM");
                return self.node.take().map(|_| Event::Ended(Exit::Signal(9)));
            }
            Effect::Kill(role) => {
                return self.jobs.remove(&role).map(|_| Event::Done(role, Err("killed".to_owned())));
            }
            Effect::Sample(_) => return Some(Event::Sample(Counters::default())),
            Effect::Watch(_) => return Some(Event::Watching(true)),
            Effect::Exit(code, ..) => {
                assert!(self.node.is_none(), "it leaves a node behind");
                self.left = Some(code);
            }
            Effect::Terminate(_) | Effect::Reply(..) | Effect::Ready | Effect::Log(..) => {}
        }
        None
    }

    /// What a step does to the disk; now and then it fails, or is done and killed before it can say so.
    fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        let fails = !self.failed && self.dice.roll(6) == 0;
        if fails && self.dice.roll(2) == 0 {
            return Err("it failed".to_owned());
        }
        match step {
            Step::Begin(begin) => {
                self.journal.get_or_insert(Journal { to: begin.to.clone(), head: begin.head, ..journal(Stage::Stop) });
            }
            Step::Switch { .. } => {
                self.current = "v2";
                let journal = self.journal.as_mut().ok_or("no journal")?;
                journal.stage = Stage::Trial;
                journal.starts = 0;
            }
            Step::Prove { .. } => self.journal.as_mut().ok_or("no journal")?.proven = true,
            Step::Commit => self.finish(Outcome::Committed),
            Step::TurnBack { outcome, reason } => {
                let journal = self.journal.as_mut().ok_or("no journal")?;
                journal.stage = Stage::Back;
                journal.back = Some((*outcome, reason.clone()));
            }
            Step::Back => {
                let outcome =
                    self.journal.as_ref().and_then(|j| j.back.clone()).map_or(Outcome::Failed, |(outcome, _)| outcome);
                self.current = "genesis";
                self.finish(outcome);
            }
            Step::Undo { .. } => {
                if self.current == "genesis" || self.journal.is_some() {
                    return Err("nothing to undo".to_owned());
                }
                self.journal =
                    Some(Journal { back: Some((Outcome::Reverted, "x".to_owned())), ..journal(Stage::Back) });
            }
        }
        if fails { Err("it was killed at its end".to_owned()) } else { Ok(()) }
    }

    fn finish(&mut self, outcome: Outcome) {
        if self.journal.take().is_some() {
            self.finished.push(outcome);
            for plan in &mut self.plans {
                plan.outcome = Some((outcome, rfc3339(0)));
            }
        }
    }

    fn end_job(&mut self) {
        let roles: Vec<Role> = self.jobs.keys().copied().collect();
        if roles.is_empty() {
            return;
        }
        let role = roles[usize::try_from(self.dice.roll(roles.len() as u64)).unwrap()];
        if role == Role::Clear
            && self.straggler
            && !matches!(self.jobs[&role], Job::Clear(clear::Spec { kill: true, .. }))
        {
            let holder = Holder { pid: 77, start_time: 1, command: "child".to_owned() };
            return self.feed(Event::Note(role, Note::Holders(vec![holder])));
        }
        let result = match self.jobs.remove(&role).unwrap() {
            Job::Look => {
                let mut survey = survey(self.current, self.journal.clone(), self.plans.clone());
                survey.known = self.drive.machine.known.clone();
                Ok(Report::Surveyed(Box::new(survey)))
            }
            Job::Probe(_) => match self.node {
                Some(Sim { runs: true, .. }) if self.dice.roll(4) > 0 => {
                    self.head += self.dice.roll(3);
                    let Event::Done(_, result) = probed(self.head) else { unreachable!() };
                    result
                }
                _ => Err("no answer".to_owned()),
            },
            Job::Stage(_) => {
                Ok(Report::Staged(if self.dice.roll(4) == 0 && !self.failed { unfit("v2") } else { fit("v2") }))
            }
            Job::Step(step) => self.carry_out(&step).map(|()| Report::Stepped(self.journal.clone().map(Box::new))),
            Job::Clear(_) => {
                assert!(self.node.is_none(), "the data is said to be free under a node");
                self.straggler = false;
                Ok(Report::Cleared)
            }
            Job::Reload(_) => Err("no".to_owned()),
        };
        self.feed(Event::Done(role, result));
    }

    fn move_node(&mut self) {
        let Some(mut node) = self.node else { return };
        if !node.runs && node.terms == 0 {
            if self.straggler {
                self.node = None;
                self.feed(Event::Note(Role::Node, Note::Busy(Vec::new())));
                return self.feed(Event::Ended(Exit::Code(1)));
            }
            let mut starts = 0;
            if let Some(journal) = self.journal.as_mut().filter(|j| j.stage == Stage::Trial) {
                journal.starts += 1;
                starts = journal.starts;
            }
            self.feed(recorded(self.current, starts));
            node.runs = true;
            node.deaf = !self.failed && self.dice.roll(5) == 0;
            self.node = Some(node);
            return self.feed(Event::Executed);
        }
        let ends = if node.terms > 0 { !node.deaf } else { !self.failed && self.dice.roll(4) == 0 };
        if ends {
            self.node = None;
            self.straggler = self.dice.roll(4) == 0;
            let exit = if node.runs { Exit::Code(i32::try_from(self.dice.roll(2)).unwrap()) } else { Exit::Signal(15) };
            self.feed(Event::Ended(exit));
        }
    }

    fn pass_time(&mut self) {
        let jump = Duration::from_millis(self.dice.roll(3000));
        self.drive.now += jump;
        self.feed(Event::Tick);
        if self.left.is_none()
            && let Some(at) = self.drive.machine.wake_at()
        {
            assert!(at > self.drive.now, "a deadline that was just served is due again: it would spin");
        }
    }

    fn walk(&mut self, steps: u64) {
        let name = || Name::parse("v2").unwrap();
        self.feed(Event::Booted);
        for _ in 0..steps {
            match self.dice.roll(40) {
                0 => self.feed(Event::FilesChanged),
                1 => self.feed(Event::Asked(1, Request::Cancel { name: name() })),
                2 => self.feed(Event::Asked(2, Request::Now { name: name(), release: release("v2") })),
                3 => {
                    let to = (self.dice.roll(2) == 0).then_some(Release::Genesis);
                    self.feed(Event::Asked(3, Request::Revert { to }));
                }
                4 => self.feed(Event::Asked(4, Request::Restart { args: None })),
                5 => self.plans[0].outcome = None,
                6 => self.straggler = self.straggler || (self.node.is_none() && self.dice.roll(8) == 0),
                7..16 => self.pass_time(),
                16..28 => self.end_job(),
                _ => self.move_node(),
            }
        }
        // From here on nothing fails any more: after TERM, time and deaths alone must lead to the end.
        self.failed = true;
        self.feed(Event::Signal(Sig::Stop));
        for _ in 0..400 {
            self.end_job();
            self.move_node();
            self.pass_time();
        }
        assert!(self.left.is_some(), "it never ends: {}", place(&self.drive.machine.state));
        assert!(["genesis", "v2"].contains(&self.current));
    }
}

#[test]
fn whatever_the_order_of_events_there_is_one_node_at_most_and_term_leads_to_the_end() {
    let seeds: Vec<u64> = match std::env::var("WEMIXVISOR_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=600).collect(),
    };
    let (mut finished, mut left) = (BTreeMap::new(), BTreeMap::new());
    for seed in seeds {
        let mut world = World::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.walk(300)));
        if walked.is_err() {
            let trail = &world.trail[world.trail.len().saturating_sub(60)..];
            panic!("WEMIXVISOR_SEED={seed} shows it; the end of its way:\n{}", trail.join("\n"));
        }
        *left.entry(world.left.unwrap()).or_insert(0) += 1;
        for outcome in world.finished {
            *finished.entry(outcome.word()).or_insert(0) += 1;
        }
    }
    // The walk is worth nothing unless it came through every kind of end.
    if std::env::var_os("WEMIXVISOR_SEED").is_none() {
        assert!(finished.len() >= 4, "{finished:?}");
        assert!(left.contains_key(&0) && left.contains_key(&5), "{left:?}");
    }
}

#[test]
fn the_toy_world_sees_each_thing_that_must_never_be() {
    let switch = || Effect::Start(Role::Step, Job::Step(Box::new(Step::Switch { stop_ms: None, clean_stop: None })));
    let launch = || Effect::Launch(Vec::new());
    let term = || Effect::Terminate(Role::Node);
    let look = || Effect::Start(Role::Look, Job::Look);
    let clear = || {
        let spec = clear::Spec { kill: false, ended: None, starts: None };
        Effect::Start(Role::Clear, Job::Clear(spec))
    };
    for (seen, wrong) in [
        ("two nodes", vec![launch(), launch()]),
        ("a node is started while the link moves", vec![switch(), launch()]),
        ("a node is started while the data is being cleared", vec![clear(), launch()]),
        ("the link moves under a node", vec![launch(), switch()]),
        ("two of Look", vec![look(), look()]),
        ("TERM twice", vec![launch(), term(), term()]),
        ("KILL before TERM", vec![launch(), Effect::Kill(Role::Node)]),
        ("it leaves a node behind", vec![launch(), Effect::Exit(0, "stopped", String::new())]),
    ] {
        let mut world = World::new(1);
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for effect in wrong {
                world.perform(effect);
            }
        }));
        let panic = walked.expect_err(seen);
        let text =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        assert!(text.as_deref().is_some_and(|text| text.contains(seen)), "{seen}: {text:?}");
    }
}
