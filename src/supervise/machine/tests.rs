//! The machine without any process: traces, the golden table of all transitions, and a seeded random walk through a toy
//! world that knows which children live and who holds the data.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

use std::fmt::Write;

use super::*;
use crate::config::{Config, Sources, resolve};
use crate::event::What;
use crate::home::Name;
use crate::job::fetch;
use crate::job::look::Survey;
use crate::job::measure::Measured;
use crate::job::stage::{Check, Staged};
use crate::job::trim::Trimmed;
use crate::job::validators::Validators;
use crate::journal::{Head, Highest, Known, rfc3339, unix_now};
use crate::plan::Rolling;
use crate::schedule::Found;
use crate::source::{Link, Place, Source};

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
        source: Ok(None),
        batch: None,
        rolling: Rolling::default(),
        release: release(name),
        print: Some("print".to_owned()),
        other: None,
        file: format!("data/upgrades/{height}/upgrade-info.json"),
        outcome: None,
    }
}

/// One whose release is not there, and can be fetched.
fn remote(name: &str, height: u64) -> Found {
    let link = Link { place: Place::Web(format!("http://h/{name}")), checksum: None };
    Found { print: None, source: Ok(Some(Source::Binary(link))), ..plan(name, height) }
}

const MAY_FETCH: &[(&str, &str)] = &[("daemon_allow_download_binaries", "true")];

fn fetched(outcome: Result<fetch::Outcome, &str>) -> Event {
    Event::Done(Role::Fetch, outcome.map(Report::Fetched).map_err(str::to_owned))
}

fn survey(current: &str, journal: Option<Journal>, plans: Vec<Found>) -> Survey {
    Survey {
        current: Ok(release(current)),
        brought: None,
        journal: Ok(journal),
        plans,
        errors: Vec::new(),
        restoring: false,
        last: None,
        committed: None,
        known: Known::default(),
        known_error: None,
        machine: None,
        record: None,
        watch: Vec::new(),
        watchable: true,
    }
}

fn journal(stage: Stage) -> Journal {
    Journal {
        height: Some(100),
        digest: Some("v2@100".to_owned()),
        head: Some(99),
        ..Journal::new("v2-1-1".to_owned(), Name::parse("v2").unwrap(), stage, Release::Genesis, release("v2"), 1)
    }
}

/// The same with a backup, and a hook to run or what a hook may have changed.
fn backed_up(stage: Stage) -> Journal {
    Journal {
        backup: Some("v2-20260101-000000".to_owned()),
        hooks: if stage == Stage::Hook { vec!["/h/hook".into()] } else { Vec::new() },
        touched: true,
        ..journal(stage)
    }
}

fn fit(name: &str) -> Staged {
    Staged {
        release: release(name),
        print: Some("print".to_owned()),
        checks: Vec::new(),
        version: Some("2".to_owned()),
        backup: None,
    }
}

fn unfit(name: &str) -> Staged {
    let check =
        Check { what: "it".to_owned(), problem: Some("it is not there".to_owned()), remark: None, warning: None };
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

/// So much room is free, and 100 MiB are used.
fn measured(free: u64) -> Event {
    let measured = Measured { memory: Some(100 << 20), cpu: None, disk: Some((free, 1 << 50)) };
    Event::Done(Role::Measure, Ok(Report::Measured(measured)))
}

fn recorded(name: &str, starts: u32) -> Event {
    Event::Note(Role::Node, Note::Recorded(Recorded { release: release(name), args: Vec::new(), starts }))
}

fn cleared() -> Event {
    Event::Done(Role::Clear, Ok(Report::Cleared))
}

/// What the events say whose command was started.
fn told(effects: &[Effect]) -> Vec<String> {
    let one = |effect: &Effect| match effect {
        Effect::Start(Role::Event, Job::Event(_, event)) => Some(event.message.clone()),
        _ => None,
    };
    effects.iter().filter_map(one).collect()
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
            measured(1 << 50),
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

    /// The data is backed up, the first hook runs.
    fn hooking(set: &[(&str, &str)]) -> Drive {
        Drive::begun(set).all([
            Event::Ended(Exit::Code(0)),
            cleared(),
            stepped(Some(backed_up(Stage::Hook))),
            Event::Note(Role::Hook, Note::HookStarted { attempt: 1 }),
        ])
    }

    /// The upgrade was taken back; the old release runs on what the new one left.
    fn returned(set: &[(&str, &str)]) -> Drive {
        let back = Journal { back: Some((Outcome::Reverted, "x".to_owned())), starts: 1, ..backed_up(Stage::Return) };
        Drive::new(set).all([
            Event::Booted,
            surveyed(survey("genesis", Some(back), Vec::new())),
            Event::Watching(true),
            recorded("genesis", 1),
            Event::Executed,
        ])
    }

    /// The link has moved; the new release was executed.
    fn trial(set: &[(&str, &str)]) -> Drive {
        Drive::begun(set).all([
            Event::Ended(Exit::Code(0)),
            cleared(),
            stepped(Some(journal(Stage::Switch))),
            stepped(Some(journal(Stage::Trial))),
            recorded("v2", 1),
            Event::Executed,
        ])
    }
}

const VALIDATOR: &[(&str, &str)] = &[("validator_mode", "true"), ("daemon_restart_backoff", "1s")];

fn short(effects: &[Effect]) -> String {
    let one = |effect: &Effect| match effect {
        Effect::Launch(_) => Some("launch".to_owned()),
        Effect::RunHook => Some("hook".to_owned()),
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
fn an_upgrade_stops_backs_up_switches_starts_proves_and_commits_in_this_order() {
    let mut drive = Drive::up(&[], vec![plan("v2", 100)]);
    assert!(!short(&drive.feed(probed(98))).contains("step"), "not early");
    drive.looked();
    assert!(!short(&drive.feed(probed(99))).contains("step"), "not before its release was checked");
    assert_eq!(short(&drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))))), "step:Begin");
    let begun = short(&drive.feed(stepped(Some(journal(Stage::Stop)))));
    assert!(begun.contains("TERM:Node"), "{begun}");
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(0)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:Backup");
    let saved = short(&drive.feed(stepped(Some(journal(Stage::Switch)))));
    assert!(saved.contains("step:Switch"), "{saved}");
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
        assert_eq!(short(&drive.feed(cleared())), "step:Backup");
    }
}

#[test]
fn a_release_that_is_missing_is_fetched_the_node_running_and_then_looked_at() {
    let drive = Drive::up(MAY_FETCH, vec![remote("v2", 100)]);
    assert!(drive.machine.fetching.is_some() && drive.machine.staging.is_none());
    let mut drive = drive.all([probed(99)]);
    assert_eq!(drive.machine.state, State::Up, "it is due, and waits");
    let note = Note::Progress(Progress { files: 0, bytes: 1 << 20, of: Some(3 << 20) });
    drive.feed(Event::Note(Role::Fetch, note));
    let status = drive.machine.status();
    assert_eq!(status["upgrade"]["phase"], "staging");
    assert_eq!(status["upgrade"]["progress"], "1MiB of 3MiB");
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("being fetched: 1MiB of 3MiB"), "{status}");
    drive.plans = vec![plan("v2", 100)];
    drive = drive.all([fetched(Ok(fetch::Outcome::Installed(3 << 20)))]);
    assert_eq!(drive.machine.staging, Some(release("v2")));
    assert!(short(&drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))))).contains("step:Begin"));
}

#[test]
fn only_what_comes_now_counts_as_downloaded() {
    let mut drive = Drive::up(MAY_FETCH, vec![remote("v2", 1000)]);
    // Some is there from before; more comes; it begins anew; all of it comes.
    for (bytes, downloaded) in [(100, 0), (300, 200), (0, 200), (50, 250), (400, 600)] {
        drive.feed(Event::Note(Role::Fetch, Note::Progress(Progress { files: 0, bytes, of: Some(400) })));
        assert_eq!(drive.machine.counts.downloaded, downloaded, "at {bytes}");
    }
    drive.feed(fetched(Ok(fetch::Outcome::Installed(400))));
    assert_eq!(drive.machine.counts.downloaded, 600);
}

#[test]
fn a_release_is_fetched_only_where_that_is_allowed_and_said_how() {
    let drive = Drive::up(&[], vec![remote("v2", 100)]);
    assert!(drive.machine.fetching.is_none() && drive.machine.staging == Some(release("v2")));
    let plans = drive.machine.status()["plans"].to_string();
    assert!(plans.contains("DAEMON_ALLOW_DOWNLOAD_BINARIES=true"), "{plans}");
    let nonsense = Found { source: Err("no checksum".to_owned()), ..remote("v2", 100) };
    let drive = Drive::up(MAY_FETCH, vec![nonsense]);
    assert!(drive.machine.fetching.is_none());
    assert!(drive.machine.status()["plans"].to_string().contains("does not say from where: no checksum"));
}

#[test]
fn what_could_not_be_fetched_is_tried_again_with_growing_pauses_and_holds_up_no_other() {
    let plans = vec![remote("v2", 100), remote("v3", 200)];
    let mut drive = Drive::up(MAY_FETCH, plans);
    let of = |drive: &Drive| drive.machine.status()["plans"].to_string();
    // The nearest fails, the next one's turn comes at once.
    let effects = drive.feed(fetched(Err("status 404")));
    assert!(
        short(&effects).contains("start:Fetch") && of(&drive).contains("status 404; another try in 5s"),
        "{effects:?}"
    );
    let longest = |mut drive: Drive| {
        let mut waited = Vec::new();
        for _ in 0..24 {
            if let Some(at) = drive.machine.next_fetch_try() {
                drive.now = at;
                drive.feed(Event::Tick);
            }
            drive.feed(fetched(Err("status 404")));
            waited.extend(drive.machine.refused.get("v2@100").and_then(|r| r.again).map(|at| at - drive.now));
        }
        waited.into_iter().max().unwrap().as_secs()
    };
    assert_eq!(longest(drive), 600);
    // A plan that is due waits for nothing else, also by the head that an earlier life told.
    let mut due = Drive::up(MAY_FETCH, vec![remote("v2", 100)]);
    due.machine.known.head = Some(Head { number: 99, seen: 0, release: Release::Genesis });
    assert_eq!(longest(due), 30);
}

#[test]
fn a_wrong_checksum_waits_for_the_operator_or_another_plan() {
    let mut drive = Drive::up(MAY_FETCH, vec![remote("v2", 100)]);
    drive.feed(fetched(Ok(fetch::Outcome::WrongChecksum("it is wrong".to_owned()))));
    assert_eq!(drive.machine.next_fetch_try(), None);
    let plans = drive.machine.status()["plans"].to_string();
    assert!(plans.contains("it is wrong: `wemixvisor upgrade prepare v2` tries again"), "{plans}");
    let drive = drive.after(24 * 3600);
    assert!(drive.machine.fetching.is_none());
    // The operator's own fetch brought it.
    let there = Drive { plans: vec![plan("v2", 100)], ..drive.clone() }.all([Event::FilesChanged]);
    assert_eq!(there.machine.staging, Some(release("v2")));
    let other = Found { digest: "other".to_owned(), ..remote("v2", 100) };
    let changed = Drive { plans: vec![other], ..drive }.all([Event::FilesChanged]);
    assert!(changed.machine.fetching.is_some(), "another plan is another try");
    // And nothing is known any more of the one that is gone.
    assert!(changed.machine.refused.is_empty());
}

#[test]
fn a_fetch_ends_when_its_plan_is_withdrawn_or_the_release_came_otherwise() {
    for plans in [Vec::new(), vec![plan("v2", 100)]] {
        let mut drive = Drive::up(MAY_FETCH, vec![remote("v2", 100)]);
        let look = surveyed(survey("genesis", None, plans));
        let effects = drive.feed(look);
        assert!(short(&effects).contains("KILL:Fetch"), "{effects:?}");
        let effects = drive.feed(Event::Done(Role::Fetch, Err("killed".to_owned())));
        assert!(drive.machine.refused.is_empty() && drive.machine.fetching.is_none(), "{effects:?}");
    }
    // The job itself has just put it there: it is not killed before it has synced that.
    let mut drive = Drive::up(MAY_FETCH, vec![remote("v2", 100)]);
    drive.feed(Event::Note(Role::Fetch, Note::Progress(Progress { files: 0, bytes: 7, of: Some(7) })));
    let effects = drive.feed(surveyed(survey("genesis", None, vec![plan("v2", 100)])));
    assert!(!short(&effects).contains("KILL") && drive.machine.staging.is_some(), "{effects:?}");
}

#[test]
fn a_due_plan_that_waits_for_its_download_is_told_of_once_and_tried_soon() {
    let set = [MAY_FETCH, &[("daemon_event_command", "/tell")]].concat();
    let mut drive = Drive::up(&set, vec![remote("v2", 100)]).all([probed(150)]);
    let mut all = Vec::new();
    for round in 0..12 {
        // Each time with another countdown, and then with how much has come.
        drive.now += Duration::from_millis(700);
        all.extend(drive.feed(fetched(Err("status 404"))));
        all.extend(drive.feed(Event::Done(Role::Event, Ok(Report::Told))));
        for _ in 0..3 {
            drive.now += Duration::from_millis(700);
            all.extend(drive.feed(probed(151 + round)));
        }
        let again = drive.machine.next_fetch_try().unwrap();
        assert!(again - drive.now <= Duration::from_secs(30), "it is due: {round}");
        drive.now = again;
        all.extend(drive.feed(Event::Tick));
        assert!(drive.machine.fetching.is_some(), "{round}");
        let note = Note::Progress(Progress { files: 0, bytes: round, of: Some(400) });
        all.extend(drive.feed(Event::Note(Role::Fetch, note)));
        all.extend(drive.feed(probed(151 + round)));
    }
    let logged = all.iter().filter(|e| matches!(e, Effect::Log(_, text) if text.contains("is due but waits"))).count();
    assert!(logged <= 2 && told(&all).len() <= 2, "{logged} {:?}", told(&all));
    // Long before its height there is time.
    let mut far = Drive::up(&set, vec![remote("v2", 1_000_000)]).all([probed(150)]);
    for _ in 0..9 {
        far.feed(fetched(Err("status 404")));
        far.now = far.machine.next_fetch_try().unwrap();
        far.feed(Event::Tick);
    }
    far.feed(fetched(Err("status 404")));
    assert_eq!(far.machine.next_fetch_try().unwrap() - far.now, Duration::from_mins(10));
    // What only the operator can mend is an event at once.
    let out = far.all([]).feed(fetched(Ok(fetch::Outcome::WrongChecksum("wrong".to_owned()))));
    assert!(out.is_empty(), "nothing was being fetched");
    let mut wrong = Drive::up(&set, vec![remote("v2", 1_000_000)]).all([probed(150)]);
    let out = wrong.feed(fetched(Ok(fetch::Outcome::WrongChecksum("wrong".to_owned()))));
    assert_eq!(told(&out), ["wrong"]);
}

#[test]
fn arguments_that_were_mistyped_at_a_restart_in_a_trial_cost_the_release_nothing() {
    let mut drive = Drive::trial(&[("daemon_restart_backoff", "1s")]);
    let before = drive.machine.args.clone();
    let bad = vec!["--nosuch".to_owned()];
    drive.feed(Event::Asked(9, Request::Restart { args: Some(bad.clone()) }));
    drive = drive.all([Event::Ended(Exit::Code(0)), cleared(), recorded("v2", 2), Event::Executed]);
    assert_eq!(drive.machine.args, bad);
    let out = format!("{:?}", drive.feed(Event::Ended(Exit::Code(1))));
    assert!(out.contains("it is started with its earlier arguments again") && out.contains("Reply(9"), "{out}");
    assert_eq!(drive.machine.args, before);
    assert_eq!(drive.machine.journal.as_ref().unwrap().stage, Stage::Trial);
}

#[test]
fn a_due_plan_whose_release_is_not_fit_waits_and_the_old_release_runs_on() {
    let mut drive = Drive::up(&[], vec![plan("v2", 100)]);
    drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(unfit("v2")))));
    for head in [99, 100, 150] {
        assert!(!short(&drive.feed(probed(head))).contains("step"));
    }
    assert_eq!(drive.machine.public_state(), "running");
    // Looked at again when the node first answered.
    drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(unfit("v2")))));
    drive.looked();
    // The binary comes: a look sees it, it is checked at once, and the upgrade begins.
    let mut found = plan("v2", 100);
    found.print = Some("another".to_owned());
    drive.feed(Event::FilesChanged);
    drive.now += Duration::from_secs(1);
    drive.feed(Event::Tick);
    assert!(short(&drive.feed(surveyed(survey("genesis", None, vec![found])))).contains("start:Stage"));
    // What was looked at before counts for nothing any more.
    let effects = short(&drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))))));
    assert!(!effects.contains("step"), "{effects}");
    drive.looked();
    drive = drive.after(5);
    assert!(drive.machine.staging.is_some());
    let another = Staged { print: Some("another".to_owned()), ..fit("v2") };
    drive.plans[0].print.clone_from(&another.print);
    drive.feed(surveyed(survey("genesis", None, drive.plans.clone())));
    assert!(short(&drive.feed(Event::Done(Role::Stage, Ok(Report::Staged(another))))).contains("step:Begin"));
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
    assert_eq!(short(&node.feed(Event::Ended(Exit::Code(0)))), "start:Measure", "was it for want of room?");
    node.feed(measured(1 << 50));
    assert!(matches!(node.machine.state, State::Backoff { .. }));
    let mut late = Drive::up(&[], Vec::new()).after(61);
    late.feed(Event::Ended(Exit::Code(0)));
    assert!(matches!(late.machine.state, State::Backoff { .. }), "after 60 s it was no command");
}

#[test]
fn a_command_is_not_taken_for_the_node_of_an_upgrade() {
    let head = Some(Head { number: 99, seen: 0, release: Release::Genesis });
    let known = || Known { head: head.clone(), ..Known::default() };
    let under_way = || survey("v2", Some(journal(Stage::Trial)), Vec::new());
    let due = || Survey { known: known(), ..survey("genesis", None, vec![plan("v2", 100)]) };
    let later = || Survey { known: known(), ..survey("genesis", None, vec![plan("v2", 101)]) };
    let mut drive = Drive::trial(&[]);
    let asked = Request::Restart { args: Some(vec!["version".to_owned()]) };
    assert_eq!(short(&drive.feed(Event::Asked(1, asked))), "reply");
    assert_eq!(drive.machine.state, State::Up, "the node runs on");
    for (args, survey, refused) in [
        (&["version"][..], under_way(), true),
        (&["--datadir", "/d", "init", "genesis.json"], due(), true),
        (&["version"], later(), false),
        (&["--datadir", "/d"], under_way(), false),
        (&["start"], under_way(), false),
        (&[], due(), false),
    ] {
        let mut drive = Drive::new(&[]).all([Event::Booted]);
        drive.machine.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let effects = short(&drive.feed(surveyed(survey)));
        assert_eq!(effects.contains("exit:4"), refused, "{args:?}: {effects}");
    }
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
    let mut drive =
        Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared(), stepped(Some(journal(Stage::Switch)))]);
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
fn an_old_release_that_cannot_run_waits_for_the_step_that_the_disk_refuses_and_is_not_given_up() {
    let set = &[("daemon_restart_backoff", "0"), ("daemon_max_restarts", "1")];
    let mut drive =
        Drive::begun(set).all([Event::Ended(Exit::Code(0)), cleared(), stepped(Some(journal(Stage::Switch)))]);
    let fails = || Event::Done(Role::Step, Err("No space left on device".to_owned()));
    for _ in 0..5 {
        drive.feed(fails());
        drive.looked();
        drive = drive.after(1);
    }
    for round in 0..2 {
        assert!(short(&drive.feed(fails())).contains("launch"), "round {round}: the node comes first");
        drive = drive.all([recorded("genesis", 0), Event::Executed]);
        if round == 0 {
            assert!(short(&drive.feed(Event::Ended(Exit::Code(1)))).contains("launch"), "its restarts come before");
            drive = drive.all([recorded("genesis", 0), Event::Executed]);
        }
        assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Clear");
        assert_eq!(short(&drive.feed(cleared())), "", "neither an end nor a start");
        drive.now += Duration::from_secs(31);
        assert!(short(&drive.feed(Event::Tick)).contains("step:TurnBack"));
        for _ in 0..2 {
            drive.feed(fails());
            drive.looked();
            drive = drive.after(1);
        }
    }
    let back = Journal { back: Some((Outcome::Failed, "x".to_owned())), ..journal(Stage::Back) };
    drive.feed(stepped(Some(back)));
    drive.feed(cleared());
    assert!(short(&drive.feed(stepped(None))).contains("launch"), "there is room again");
}

#[test]
fn hooks_run_one_after_the_other_and_the_link_moves_only_when_the_last_is_done() {
    let mut drive = Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared()]);
    let two = Journal { hooks: vec!["/h/a".into(), "/h/b".into()], ..backed_up(Stage::Hook) };
    assert!(short(&drive.feed(stepped(Some(two.clone())))).contains("hook"));
    for left in [vec!["/h/b".into()], Vec::new()] {
        drive.looked();
        drive.feed(Event::Note(Role::Hook, Note::HookStarted { attempt: 1 }));
        assert_eq!(short(&drive.feed(Event::HookEnded(Exit::Code(0), None))), "step:Hooked");
        let stage = if left.is_empty() { Stage::Switch } else { Stage::Hook };
        let done = Journal { hooks: left.clone(), stage, ..two.clone() };
        assert!(short(&drive.feed(stepped(Some(done)))).contains("start:Clear"), "what it left behind is waited for");
        let next = short(&drive.feed(cleared()));
        assert_eq!(next, if left.is_empty() { "step:Switch" } else { "hook" });
    }
}

#[test]
fn a_hook_that_exits_31_is_run_again_with_growing_pauses_up_to_the_maximum() {
    let mut drive = Drive::hooking(&[("daemon_preupgrade_max_retries", "2")]);
    for (attempt, pause) in [(1, 1), (2, 2)] {
        assert_eq!(short(&drive.feed(Event::HookEnded(Exit::Code(31), None))), "start:Clear");
        assert_eq!(short(&drive.feed(cleared())), "");
        drive.now += Duration::from_millis(pause * 1000 - 1);
        assert_eq!(short(&drive.feed(Event::Tick)), "", "attempt {attempt}");
        drive.now += Duration::from_millis(1);
        assert_eq!(short(&drive.feed(Event::Tick)), "hook", "attempt {attempt}");
        drive.feed(Event::Note(Role::Hook, Note::HookStarted { attempt: attempt + 1 }));
    }
    let effects = drive.feed(Event::HookEnded(Exit::Code(31), None));
    assert_eq!(short(&effects), "step:TurnBack");
}

#[test]
fn a_hook_that_fails_in_any_way_takes_the_upgrade_back() {
    for exit in [Exit::Code(1), Exit::Code(127), Exit::Signal(11), Exit::Code(31)] {
        let mut drive = Drive::hooking(&[]);
        let effects = drive.feed(Event::HookEnded(exit, Some("no such table".to_owned())));
        assert_eq!(short(&effects), "step:TurnBack", "{exit}");
        let Some(Effect::Start(_, Job::Step(step))) = effects.last() else { panic!("{effects:?}") };
        let Step::TurnBack { outcome: Outcome::Failed, reason, put_off: false } = &**step else { panic!("{step:?}") };
        assert!(reason.contains("/h/hook") && reason.contains("no such table"), "{reason}");
    }
}

#[test]
fn a_hook_that_hangs_gets_term_at_its_deadline_and_kill_when_the_grace_is_over() {
    let mut drive = Drive::hooking(&[("daemon_preupgrade_timeout", "7s"), ("daemon_shutdown_grace", "2s")]);
    drive.now += Duration::from_millis(6999);
    assert_eq!(short(&drive.feed(Event::Tick)), "");
    drive.now += Duration::from_millis(1);
    assert!(short(&drive.feed(Event::Tick)).contains("TERM:Hook"));
    let quiet = || Event::Sample(Counters { used: [(1, (5, 5))].into(), blocked: false });
    let mut all = String::new();
    for _ in 0..2 {
        all += &short(&drive.feed(quiet()));
    }
    assert!(!all.contains("KILL"), "{all}");
    assert_eq!(short(&drive.feed(quiet())), "KILL:Hook");
    assert_eq!(short(&drive.feed(Event::HookEnded(Exit::Signal(9), None))), "step:TurnBack");
}

#[test]
fn a_hook_that_a_stop_interrupts_did_not_fail_the_plan() {
    for exit in [Exit::Signal(15), Exit::Code(1)] {
        let mut drive = Drive::hooking(&[]);
        assert!(short(&drive.feed(Event::Signal(Sig::Stop))).contains("TERM:Hook"));
        assert_eq!(short(&drive.feed(Event::HookEnded(exit, None))), "start:Clear");
        assert_eq!(short(&drive.feed(cleared())), "exit:0", "{exit}");
    }
}

#[test]
fn a_cancel_ends_the_backup_or_the_hook_that_runs() {
    let cancel = || Event::Asked(1, Request::Cancel { name: Name::parse("v2").unwrap() });
    let mut backing_up = Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared()]);
    assert_eq!(short(&backing_up.feed(cancel())), "KILL:Step");
    let killed = Event::Done(Role::Step, Err("killed".to_owned()));
    assert_eq!(short(&backing_up.feed(killed)), "start:Look step:TurnBack");
    let mut hooking = Drive::hooking(&[]);
    assert_eq!(short(&hooking.feed(cancel())), "TERM:Hook sample");
    assert_eq!(short(&hooking.feed(Event::HookEnded(Exit::Signal(15), None))), "start:Clear");
    assert_eq!(short(&hooking.feed(cleared())), "step:TurnBack");
}

#[test]
fn what_a_disk_does_wrong_puts_an_upgrade_off_and_does_not_fail_its_plan_at_once() {
    let mut drive = Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared()]);
    let fails = || Event::Done(Role::Step, Err("No space left on device".to_owned()));
    let put_off = |effects: &[Effect]| {
        effects.iter().find_map(|e| match e {
            Effect::Start(_, Job::Step(step)) => match &**step {
                Step::TurnBack { put_off, .. } => Some(*put_off),
                _ => None,
            },
            _ => None,
        })
    };
    for expected in [true, true, false] {
        let mut effects = Vec::new();
        for _ in 0..3 {
            effects = drive.feed(fails());
            drive.looked();
            drive.now += Duration::from_secs(1);
            drive.feed(Event::Tick);
        }
        assert_eq!(put_off(&effects), Some(expected), "{effects:?}");
        let back = Journal { back: Some((Outcome::Failed, "x".to_owned())), ..journal(Stage::Back) };
        drive = drive.all([stepped(Some(back)), cleared(), stepped(None), recorded("genesis", 0), Event::Executed]);
        assert_eq!(drive.machine.state, State::Up);
        // It is due again, but only after a pause, and its release is looked at anew.
        drive = drive.all([Event::Done(Role::Stage, Ok(Report::Staged(fit("v2")))), probed(99)]);
        assert_eq!(drive.machine.step, None, "not at once");
        drive.now += Duration::from_mins(10);
        drive = drive.all([Event::Tick, probed(99)]);
        assert!(matches!(drive.machine.step, Some(Step::Begin(_))), "{:?}", drive.machine.step);
        drive = drive.all([stepped(Some(journal(Stage::Stop))), Event::Ended(Exit::Code(0)), cleared()]);
    }
}

#[test]
fn the_data_goes_back_only_when_the_old_release_cannot_run_on_what_was_left() {
    // It answers: the upgrade is over.
    assert!(short(&Drive::returned(&[]).feed(probed(99))).contains("step:Back"));
    // It lives for long without an answer: so is it then.
    let mut silent = Drive::returned(&[("daemon_trial_timeout", "5m")]);
    silent.machine.known.head = Some(Head { number: 99, seen: 0, release: Release::Genesis });
    let mut silent = silent.after(299);
    assert_eq!(silent.machine.step, None);
    silent.now += Duration::from_secs(1);
    assert!(short(&silent.feed(Event::Tick)).contains("step:Back"));
    // It ends three times: its data of before is put back.
    let mut drive = Drive::returned(&[("daemon_restart_backoff", "1s")]);
    for starts in 2..=3 {
        assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "", "start {starts}");
        drive = drive.after(60).all([recorded("genesis", starts), Event::Executed]);
    }
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "step:TurnBack");
    let restore = Journal { back: Some((Outcome::Reverted, "x".to_owned())), ..backed_up(Stage::Restore) };
    drive = drive.all([stepped(Some(restore))]);
    assert_eq!(short(&drive.feed(cleared())), "step:Restore");
}

#[test]
fn data_that_the_old_release_needs_is_brought_back_once_there_is_room_and_not_forgone() {
    let mut drive = Drive::returned(&[("daemon_restart_backoff", "0"), ("daemon_max_restarts", "0")]);
    for starts in 2..=3 {
        drive = drive.all([Event::Ended(Exit::Code(1)), recorded("genesis", starts), Event::Executed]);
    }
    let restore = Journal { back: Some((Outcome::Reverted, "x".to_owned())), ..backed_up(Stage::Restore) };
    drive = drive.all([Event::Ended(Exit::Code(1)), cleared(), stepped(Some(restore)), cleared()]);
    let fails = || Event::Done(Role::Step, Err("No space left on device".to_owned()));
    for _ in 0..5 {
        drive = drive.all([fails()]).after(1);
    }
    assert!(matches!(drive.machine.step, Some(Step::Forgo { .. })), "{:?}", drive.machine.step);
    assert!(short(&drive.feed(fails())).contains("launch"), "the node comes first");
    drive = drive.all([recorded("genesis", 0), Event::Executed]);
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "");
    drive.now += Duration::from_secs(31);
    assert!(short(&drive.feed(Event::Tick)).contains("step:Restore"));
}

#[test]
fn the_data_never_goes_back_over_blocks_that_are_newer_than_its_backup() {
    let mut drive = Drive::returned(&[("daemon_restart_backoff", "1s"), ("daemon_max_restarts", "3")]);
    drive.machine.known.head = Some(Head { number: 100, seen: 0, release: release("v2") });
    let mut all = String::new();
    for starts in 2..=6 {
        all += &short(&drive.feed(Event::Ended(Exit::Code(1))));
        drive = drive.after(60).all([cleared(), recorded("genesis", starts), Event::Executed]);
    }
    assert!(!all.contains("TurnBack") && all.contains("start:Clear"), "{all}");
}

#[test]
fn a_validator_is_held_before_a_start_for_longer_when_its_end_was_not_clean() {
    let left = |drive: &Drive| match drive.machine.state {
        State::Held { until, .. } => (until - drive.now).as_secs(),
        _ => 0,
    };
    let restart = || Event::Asked(1, Request::Restart { args: None });
    let clean = Drive::up(VALIDATOR, Vec::new()).all([restart(), Event::Ended(Exit::Code(0)), cleared()]);
    assert_eq!(left(&clean), 4, "two block periods and one request timeout");
    assert_eq!(clean.machine.public_state(), "starting");
    assert_eq!(clean.machine.status()["hold"]["reason"].as_str().map(|why| why.contains("validator")), Some(true));
    let crashed = Drive::up(VALIDATOR, Vec::new()).all([probed(7), Event::Ended(Exit::Code(1))]).after(1);
    assert_eq!(left(&crashed), 59);
    let other = Drive::up(&[], Vec::new()).all([restart(), Event::Ended(Exit::Code(0)), cleared()]);
    assert_eq!(left(&other), 0, "nobody else is held");
    let mut held = Drive::up(VALIDATOR, Vec::new()).all([restart(), Event::Ended(Exit::Code(0)), cleared()]);
    held.now += Duration::from_secs(4);
    assert_eq!(short(&held.feed(Event::Tick)), "launch");
}

fn address(n: usize) -> String {
    format!("0x{n:040x}")
}

/// An answer of the validator of this rank, in a set of so many of which the first so many signed lately.
fn validator(head: u64, rank: usize, of: usize, signed: usize) -> Event {
    let set: Vec<String> = (0..of).map(address).collect();
    let active = set.iter().take(signed).cloned().collect();
    let validators = Validators {
        kind: Kind::Wbft,
        own: address(rank),
        set,
        active,
        at: BTreeMap::new(),
        clients: BTreeMap::from([(address(0), "geth v1.13.15".to_owned())]),
    };
    let Event::Done(Role::Probe, Ok(Report::Probed(probed))) = probed(head) else { unreachable!() };
    let probed = Probed { validators: Some(validators), ..*probed };
    Event::Done(Role::Probe, Ok(Report::Probed(Box::new(probed))))
}

/// The validator's node runs, and the release of its plan for block 1000 is fit.
fn rolling(set: &[(&str, &str)]) -> Drive {
    let fit = Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))));
    Drive::up(&[VALIDATOR, set].concat(), vec![plan("v2", 1000)]).all([fit])
}

#[test]
fn a_validator_is_due_in_the_slot_of_its_rank_and_not_at_the_height() {
    // Four validators, 60 blocks each: the slots begin at 999 - 240.
    for (rank, due) in [(0, 759), (1, 819), (3, 939)] {
        let mut drive = rolling(&[]).all([validator(due - 1, rank, 4, 4)]);
        assert!(drive.machine.step.is_none(), "rank {rank}");
        let status = drive.machine.status();
        assert_eq!(status["validator"]["slot"], due, "{status}");
        assert_eq!((&status["validator"]["rank"], &status["validator"]["margin"]), (&rank.into(), &0.into()));
        assert_eq!(status["readiness"][0]["client"], "geth v1.13.15");
        let waits = status["upgrade"]["waits_for"].as_str().unwrap();
        assert!(waits.contains(&format!("its turn at block {due} (rank {rank} of 4")), "{waits}");
        assert!(short(&drive.feed(validator(due, rank, 4, 4))).contains("step:Begin"), "rank {rank}");
    }
    // What the plan says wins; DAEMON_UPGRADE_LEAD does not count; without VALIDATOR_MODE all of this does not.
    let said = Found { rolling: Rolling { start: Some(500), spacing: Some(7) }, ..plan("v2", 1000) };
    let lead = [VALIDATOR, &[("daemon_upgrade_lead", "900")]].concat();
    let fit = || Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))));
    let mut drive = Drive::up(&lead, vec![said]).all([fit(), validator(513, 2, 4, 4)]);
    assert!(drive.machine.step.is_none());
    assert!(short(&drive.feed(validator(514, 2, 4, 4))).contains("step:Begin"));
    let drive = Drive::up(&[], vec![plan("v2", 1000)]).all([fit(), validator(990, 0, 4, 4)]);
    assert!(drive.machine.step.is_none() && drive.machine.said_validator);
    // Who is none of them is due at the height.
    let drive = rolling(&[]).all([validator(998, 9, 4, 4)]);
    assert!(drive.machine.step.is_none());
}

#[test]
fn a_validator_waits_for_the_others_until_the_height_or_until_the_chain_stands_still() {
    let due = || rolling(&[]).all([validator(819, 1, 4, 3)]);
    let mut drive = due();
    assert!(drive.machine.step.is_none(), "with two others, three of four are a quorum only with this one");
    let waits = drive.machine.status()["upgrade"]["waits_for"].to_string();
    assert!(waits.contains("2 of 3 signed lately, 3 are needed"), "{waits}");
    assert!(short(&drive.feed(validator(820, 1, 4, 4))).contains("step:Begin"), "they are back");
    let mut drive = due().all([validator(998, 1, 4, 3)]);
    assert!(drive.machine.step.is_none());
    assert!(short(&drive.feed(validator(999, 1, 4, 3))).contains("step:Begin"), "the height is next");
    let mut drive = due();
    drive.now += Duration::from_secs(59);
    assert!(!short(&drive.feed(validator(819, 1, 4, 3))).contains("step"));
    drive.looked();
    drive.now += Duration::from_secs(1);
    assert!(short(&drive.feed(validator(819, 1, 4, 3))).contains("step:Begin"), "it stands still");
    // A node that is silent tells nothing of the chain.
    let mut drive = due();
    drive.now += Duration::from_secs(61);
    let silent = Event::Done(Role::Probe, Err("connection refused".to_owned()));
    assert!(!short(&drive.feed(silent)).contains("step"));
}

#[test]
fn a_validator_that_missed_its_turn_waits_for_the_next_one() {
    let said = Found { rolling: Rolling { start: Some(100), spacing: Some(60) }, ..plan("v2", 1000) };
    let fit = Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))));
    // The second of four: its turns begin at 160 and 400.
    let mut drive = Drive::up(VALIDATOR, vec![said]).all([fit, validator(160, 1, 4, 3), validator(300, 1, 4, 4)]);
    assert!(drive.machine.step.is_none(), "the fourth one's turn");
    let waits = drive.machine.status()["upgrade"]["waits_for"].to_string();
    assert!(waits.contains("its next turn at block 400"), "{waits}");
    drive.feed(validator(399, 1, 4, 4));
    assert!(drive.machine.step.is_none());
    assert!(short(&drive.feed(validator(400, 1, 4, 4))).contains("step:Begin"));
}

#[test]
fn a_plan_that_comes_too_late_for_turns_is_warned_of_once() {
    // Turns of 60 blocks begin at 759: the first of four had its own, and there is no second round before the height.
    let told = |drive: &mut Drive, head| {
        let said = drive.feed(validator(head, 0, 4, 4));
        said.into_iter()
            .filter(|e| matches!(e, Effect::Log(Level::Warn, text) if text.contains("info.rolling")))
            .count()
    };
    let mut late = rolling(&[]);
    assert_eq!([900, 901, 998].map(|head| told(&mut late, head)), [1, 0, 0]);
    assert!(late.machine.step.is_none());
    late.looked();
    assert!(late.machine.status()["upgrade"]["waits_for"].to_string().contains("its next turn at block 999"));
    assert!(short(&late.feed(validator(999, 0, 4, 4))).contains("step:Begin"));
    let mut in_time = rolling(&[]);
    assert_eq!(told(&mut in_time, 759), 0, "its turn is now");
    let closer = Found { rolling: Rolling { start: Some(759), spacing: Some(20) }, ..plan("v2", 1000) };
    let fit = Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))));
    let mut closer = Drive::up(VALIDATOR, vec![closer]).all([fit]);
    assert_eq!(told(&mut closer, 800), 0, "another one comes at 839");
}

#[test]
fn a_set_without_slack_is_warned_of_and_upgraded_one_by_one() {
    for (of, signed, goes) in [(1, 1, true), (2, 2, true), (3, 3, true), (3, 2, false)] {
        let mut drive = rolling(&[]);
        let said = drive.feed(validator(0, 0, of, signed));
        let warned =
            said.iter().any(|e| matches!(e, Effect::Log(Level::Warn, text) if text.contains("will stand still")));
        assert!(warned, "{of}: {said:?}");
        drive.looked();
        let due = 999 - 60 * of as u64;
        let begins = short(&drive.feed(validator(due, 0, of, signed))).contains("step:Begin");
        assert_eq!(begins, goes, "{signed} of {of}");
    }
}

#[test]
fn a_node_that_ended_itself_for_want_of_room_is_started_when_there_is_some() {
    let ended = || Drive::up(&[], Vec::new()).all([probed(7), Event::Ended(Exit::Code(0))]);
    let mut drive = ended();
    assert!(!short(&drive.feed(measured(9 << 30))).contains("launch"));
    let status = drive.machine.status();
    assert_eq!(status["state"], "starting");
    assert!(status["hold"]["reason"].as_str().unwrap().contains("9GiB of 10GiB"), "{status}");
    assert_eq!(drive.machine.restarts, 0, "it counts as none");
    for _ in 0..20 {
        drive.now += Duration::from_secs(5);
        assert!(short(&drive.feed(Event::Tick)).starts_with("start:Measure"));
        drive.looked();
        drive.feed(measured(1 << 30));
    }
    drive.now += Duration::from_secs(5);
    drive.feed(Event::Tick);
    assert_eq!(short(&drive.feed(measured(10 << 30))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "launch");
    // One that failed, or that had room, is started after the usual pause; and a stop ends the wait.
    let mut failed = Drive::up(&[], Vec::new()).all([probed(7), measured(1 << 30)]);
    assert_eq!(short(&failed.feed(Event::Ended(Exit::Code(1)))), "start:Measure");
    failed.feed(measured(1 << 30));
    assert!(matches!(failed.machine.state, State::Backoff { .. }), "{}", short(&failed.feed(Event::Tick)));
    let mut stopped = ended();
    stopped.feed(measured(1 << 30));
    assert_eq!(short(&stopped.feed(Event::Signal(Sig::Stop))), "start:Clear");
}

#[test]
fn where_nothing_is_left_a_node_waits_for_room_whatever_its_end_and_no_release_pays_for_it() {
    let nothing = || measured(1 << 20);
    let mut drive = Drive::up(&[("daemon_max_restarts", "0")], Vec::new()).all([nothing()]);
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Measure");
    drive.feed(nothing());
    assert!(matches!(drive.machine.state, State::Held { why: Hold::Room(_), .. }), "{:?}", drive.machine.state);
    // On trial it is not counted, in memory and, when there is room again, on disk.
    let mut drive = Drive::trial(&[("daemon_restart_backoff", "1s")]).all([probed(99), nothing()]);
    for exit in [Exit::Code(1), Exit::Signal(7), Exit::Code(1)] {
        drive = drive.all([Event::Ended(exit), nothing()]);
        let state = &drive.machine.state;
        assert!(matches!(state, State::Held { why: Hold::Room(Room::Any), .. }), "{state:?}");
        assert_eq!(drive.machine.journal.as_ref().unwrap().starts, 0);
        drive = drive.after(5).all([measured(500 << 20)]).after(5);
        // It ran with less than the least: what it had is enough.
        let effects = drive.feed(measured(513 << 20));
        let uncounted =
            |effect: &Effect| matches!(effect, Effect::Start(_, Job::Clear(spec)) if spec.starts == Some(0));
        assert!(effects.iter().any(uncounted), "{effects:?}");
        assert_eq!(short(&drive.feed(cleared())), "launch");
        drive = drive.all([recorded("v2", 1), Event::Executed, probed(99), nothing()]);
    }
    // What ended by itself needs the least; a restart meanwhile counts nothing either.
    drive = drive.all([Event::Ended(Exit::Code(0)), nothing()]);
    assert!(matches!(drive.machine.state, State::Held { why: Hold::Room(Room::Least), .. }));
    let effects = drive.feed(Event::Asked(7, Request::Restart { args: None }));
    assert!(effects.iter().any(|e| matches!(e, Effect::Start(_, Job::Clear(spec)) if spec.starts == Some(0))));
    // geth may find at its start that too little is left, and end itself before it answers.
    let little = || measured(600 << 20);
    let mut drive = Drive::up(&[], Vec::new()).all([probed(7), nothing(), Event::Ended(Exit::Code(1)), nothing()]);
    drive = drive.after(5).all([little(), cleared(), recorded("genesis", 0), Event::Executed, little()]);
    let mut command = drive.clone();
    drive = drive.all([Event::Ended(Exit::Code(0)), little()]);
    let state = &drive.machine.state;
    assert!(matches!(state, State::Held { why: Hold::Room(Room::Least), .. }), "{state:?}");
    command.machine.args = vec!["version".to_owned()];
    command = command.all([Event::Ended(Exit::Code(0)), little(), cleared()]);
    assert_eq!(command.machine.state, State::Leaving { code: 0 });
    // Who wants no restarts gets none, but in an upgrade.
    let never = &[("daemon_restart_on_failure", "false")][..];
    let crash = |drive: Drive| drive.all([nothing(), Event::Ended(Exit::Code(1)), nothing(), cleared()]);
    assert_eq!(crash(Drive::up(never, Vec::new())).machine.state, State::Leaving { code: 5 });
    let held = crash(Drive::trial(never));
    assert!(matches!(held.machine.state, State::Held { .. }), "{:?}", held.machine.state);
    // A disk that hangs is not waited for: what was measured last counts.
    let mut drive = Drive::up(&[], Vec::new()).all([nothing(), Event::Ended(Exit::Code(1))]);
    assert!(matches!(drive.machine.state, State::Deciding(_)));
    for _ in 0..20 {
        drive = drive.after(1);
    }
    assert!(!matches!(drive.machine.state, State::Deciding(_)));
    // A new release that ends itself where there is room enough is one that does not work.
    let mut drive = Drive::trial(&[("daemon_restart_backoff", "1s")]).all([probed(99), measured(9 << 30)]);
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(0)))), "start:Measure");
    drive.feed(measured(9 << 30));
    assert!(matches!(drive.machine.state, State::Backoff { .. }), "{:?}", drive.machine.state);
    // One that may not be taken back any more does not pay for it.
    let proven = || Drive::trial(&[]).all([probed(99), measured(9 << 30)]);
    let mut drive = proven();
    drive.machine.journal.as_mut().unwrap().proven = true;
    drive = drive.all([Event::Ended(Exit::Code(0)), measured(9 << 30)]);
    assert!(matches!(drive.machine.state, State::Held { why: Hold::Room(Room::Least), .. }));
    // Who waits for the first start is told at once, and why.
    let mut drive = Drive::trial(&[]).all([probed(99), nothing()]);
    (drive.machine.background, drive.machine.up) = (true, false);
    drive = drive.all([Event::Ended(Exit::Code(1)), nothing(), cleared()]);
    assert_eq!(drive.machine.state, State::Leaving { code: 5 });
    let why = drive.machine.error.clone().unwrap();
    assert!(why.contains("exit status 1") && why.contains("only 1MiB of 512MiB are free"), "{why}");
}

#[test]
fn who_wants_to_leave_is_not_kept_by_data_that_cannot_be_looked_at() {
    let lost = || Event::Done(Role::Clear, Err("cannot open /h/wemixvisor/data.lock: No such file".to_owned()));
    let mut drive = Drive::up(&[], Vec::new()).all([Event::Signal(Sig::Stop), Event::Ended(Exit::Code(0))]);
    for _ in 0..4 {
        assert!(!short(&drive.feed(lost())).contains("exit"));
        drive = drive.after(1);
    }
    assert_eq!(short(&drive.feed(lost())), "exit:5");
    assert!(drive.machine.error.unwrap().contains("data.lock"));
    // Who is to start the node again never does so without knowing.
    let mut drive = Drive::up(&[("daemon_restart_on_failure", "false")], Vec::new());
    drive.machine.journal = Some(journal(Stage::Switch));
    drive.feed(Event::Ended(Exit::Code(1)));
    for _ in 0..10 {
        assert!(!short(&drive.feed(lost())).contains("launch"));
        drive = drive.after(1);
    }
    assert!(matches!(drive.machine.state, State::Clearing { .. }), "{:?}", drive.machine.state);
}

#[test]
fn a_node_that_hangs_is_restarted_and_one_that_works_or_is_new_is_not() {
    let set = &[("daemon_hang_timeout", "20s"), ("daemon_max_restarts", "1")][..];
    let silent = || Event::Done(Role::Probe, Err("no answer".to_owned()));
    let mut ticks = 0;
    let mut passes = |drive: &mut Drive, seconds: u64, works: bool| {
        let mut all = String::new();
        for _ in 0..seconds {
            drive.now += Duration::from_secs(1);
            all += &short(&drive.feed(silent()));
            ticks += if works { 100 } else { 0 };
            let counters = Counters { used: BTreeMap::from([(1, (ticks, 0))]), blocked: false };
            if drive.machine.sample_at.is_some() {
                all += &short(&drive.feed(Event::Sample(counters)));
            }
            drive.looked();
        }
        all
    };
    let answered = || Drive::up(set, Vec::new()).all([probed(7)]);
    let mut drive = answered();
    assert!(!passes(&mut drive, 19, false).contains("TERM"));
    assert!(passes(&mut drive, 3, false).contains("TERM:Node"));
    assert_eq!(drive.machine.restarts, 1);
    let mut drive = answered();
    assert!(!passes(&mut drive, 60, true).contains("TERM"), "it is busy");
    assert!(passes(&mut drive, 40, false).contains("TERM:Node"), "and then it hangs");
    let mut drive = Drive::up(set, Vec::new());
    assert!(!passes(&mut drive, 60, false).contains("TERM"), "it has never answered: it is still coming up");
    let mut drive = Drive::trial(set).all([probed(99)]);
    assert!(!passes(&mut drive, 60, false).contains("TERM"), "an upgrade is under way");
    let mut drive = Drive::up(&[("daemon_hang_timeout", "0")], Vec::new()).all([probed(7)]);
    assert!(!passes(&mut drive, 3600, false).contains("TERM"), "nobody wants that");
    // What did not help is not done for ever.
    let mut drive = answered();
    drive.machine.restarts = 1;
    passes(&mut drive, 22, false);
    assert_eq!(drive.machine.state, State::Stopping { then: Then::Exit(5) });
    assert!(drive.machine.error.as_ref().unwrap().contains("1 restarts in a row did not help"));
    let mut drive = answered();
    drive.machine.config.restart_on_failure = false;
    passes(&mut drive, 22, false);
    assert!(drive.machine.error.as_ref().unwrap().ends_with("and DAEMON_RESTART_ON_FAILURE is false"));
}

#[test]
fn health_is_told_with_figures_and_the_last_twenty_results() {
    let set = &[("daemon_max_memory", "50MiB"), ("daemon_health_check_interval", "30s")][..];
    let mut drive = Drive::up(set, Vec::new()).all([probed(7)]);
    let said: Vec<Effect> = (0..30)
        .flat_map(|n| {
            drive.now += Duration::from_secs(30);
            drive.feed(Event::Tick);
            drive.feed(measured(if n < 25 { 1 << 30 } else { 1 << 50 }))
        })
        .collect();
    let logged = |part: &str| said.iter().filter(|e| matches!(e, Effect::Log(_, text) if text.contains(part))).count();
    assert_eq!(logged("disk_space: 1GiB free, less than 10GiB"), 1, "{said:?}");
    assert_eq!(logged("disk_space is well again"), 1);
    let health = &drive.machine.status()["health"];
    let checks = &health["checks"];
    assert_eq!((&checks["memory"]["healthy"], &checks["memory"]["used_bytes"]), (&false.into(), &(100 << 20).into()));
    assert_eq!(
        (&checks["disk_space"]["healthy"], &checks["disk_space"]["free_bytes"]),
        (&true.into(), &(1_u64 << 50).into())
    );
    assert!(checks["sync_status"]["error"].as_str().unwrap().starts_with("no new block for"), "{checks}");
    let results = health["results"].as_array().unwrap();
    assert_eq!(results.len(), 20);
    assert_eq!(results[19]["failed"], serde_json::json!(["sync_status", "memory"]));
    assert!(results[0]["failed"].to_string().contains("disk_space"));
}

#[test]
fn a_set_that_changes_does_not_move_slots_that_have_begun() {
    let mut drive = rolling(&[]).all([validator(760, 3, 4, 4)]);
    assert_eq!(drive.machine.status()["validator"]["slot"], 939);
    // A fifth one would have all begin 60 blocks earlier.
    drive.feed(validator(770, 3, 5, 5));
    assert_eq!(drive.machine.status()["validator"]["slot"], 939);
}

#[test]
fn a_long_hold_ends_when_another_node_shows_that_the_chain_has_gone_on() {
    let reference = [("daemon_reference_rpc", "http://10.0.0.1:8545")];
    let set = [VALIDATOR, &reference].concat();
    let told =
        |head: Result<u64, &str>| Event::Done(Role::Reference, head.map(Report::ReferenceHead).map_err(str::to_owned));
    let mut drive = Drive::up(&set, Vec::new()).all([probed(50), Event::Ended(Exit::Signal(9))]);
    drive.now += Duration::from_secs(1);
    let effects = drive.feed(Event::Tick);
    assert!(
        matches!(drive.machine.state, State::Held { .. }) && short(&effects).contains("start:Reference"),
        "{effects:?}"
    );
    for still in [told(Ok(50)), told(Ok(51)), told(Err("no answer"))] {
        drive.feed(still);
        assert!(matches!(drive.machine.state, State::Held { .. }));
        drive.now += Duration::from_secs(1);
        assert!(short(&drive.feed(Event::Tick)).contains("start:Reference"), "it is asked again");
    }
    assert!(short(&drive.feed(told(Ok(52)))).contains("launch"));
    // What the node told last may be old: the chain has made 20 blocks since, at the pace that is usual, of which it may
    // have had all, or those that the other one has by then.
    for (first, over) in [(75, 77), (60, 72), (0, 72)] {
        let mut drive = Drive::up(&set, Vec::new()).all([probed(50)]).after(20);
        drive = drive.all([Event::Ended(Exit::Signal(9))]).after(1);
        for head in [first, over - 1] {
            drive.feed(told(Ok(head)));
            assert!(matches!(drive.machine.state, State::Held { .. }), "{first} {head}");
        }
        assert!(short(&drive.feed(told(Ok(over)))).contains("launch"), "{first} {over}");
    }
    // A supervisor that begins knows nothing of what its node did after it was asked last: that was 30 seconds ago, and the
    // other node may be behind. Data that were put back take nothing back that was signed.
    let ago = |seconds: u64| unix_now() - seconds;
    let head = |number, seconds| Some(Head { number, seen: ago(seconds), release: release("genesis") });
    let highest = |number, seconds| Some(Highest { number, seen: ago(seconds) });
    for (known, first, over) in [
        (Known { head: head(50, 30), ..Known::default() }, 90, 92),
        (Known { head: head(50, 30), ..Known::default() }, 60, 83),
        (Known { head: head(20, 0), highest: highest(50, 30), ..Known::default() }, 60, 83),
    ] {
        let mut drive = Drive::new(&set).all([Event::Booted]);
        drive.feed(surveyed(Survey { known, ..survey("genesis", None, Vec::new()) }));
        drive.feed(Event::Tick);
        for head in [first, over - 2] {
            drive.feed(told(Ok(head)));
            assert!(matches!(drive.machine.state, State::Held { .. }), "{head} of {over}: {:?}", drive.machine.state);
        }
        assert!(short(&drive.feed(told(Ok(over)))).contains("launch"), "{over}");
    }
    // Where the clock went back, nobody knows how far it came.
    let known = Known { head: Some(Head { seen: unix_now() + 3600, ..head(50, 0).unwrap() }), ..Known::default() };
    let mut drive = Drive::new(&set).all([Event::Booted]);
    drive.feed(surveyed(Survey { known, ..survey("genesis", None, Vec::new()) }));
    assert!(!short(&drive.feed(Event::Tick)).contains("start:Reference"));
    drive.now += Duration::from_secs(61);
    assert!(short(&drive.feed(Event::Tick)).contains("launch"));
    // A second life that never told its head may have gone as far as the chain.
    let mut drive = Drive::up(&set, Vec::new()).all([probed(50), Event::Ended(Exit::Signal(9))]).after(1);
    drive = drive.all([told(Ok(50)), told(Ok(52)), Event::Executed]).after(20);
    drive = drive.all([Event::Ended(Exit::Signal(9))]).after(2);
    for head in [60, 72] {
        drive.feed(told(Ok(head)));
        assert!(matches!(drive.machine.state, State::Held { .. }), "{head}: {:?}", drive.machine.state);
    }
    assert!(short(&drive.feed(told(Ok(73)))).contains("launch"));
    // Without one, or where it never answers, the hold ends by itself.
    let mut drive = Drive::up(&set, Vec::new()).all([probed(50), Event::Ended(Exit::Signal(9))]).after(1);
    drive.feed(told(Err("no answer")));
    drive.now += Duration::from_secs(60);
    assert!(short(&drive.feed(Event::Tick)).contains("launch"));
}

#[test]
fn a_validator_ends_when_it_is_about_to_propose_no_block() {
    let restart = || Event::Asked(1, Request::Restart { args: None });
    let up = || rolling(&[]).all([validator(500, 1, 4, 4)]);
    let asked = || up().all([restart()]);
    let passed = |came| Event::Done(Role::Proposal, Ok(Report::ProposesNothing(came)));
    let effects = up().feed(restart());
    assert_eq!(short(&effects), "start:Proposal");
    let patience = effects.iter().find_map(|effect| match effect {
        Effect::Start(_, Job::Proposal(spec)) => Some(spec.patience),
        _ => None,
    });
    assert_eq!(patience, Some(Duration::from_secs(10)), "eight block periods and one request timeout");
    // It is not ended by TERM before, nor does its grace count, nor is that a time without it.
    let mut drive = asked().after(2);
    assert_eq!((&drive.machine.state, drive.machine.sample_at), (&State::Stopping { then: Then::Go }, None));
    assert!(short(&drive.feed(passed(true))).contains("TERM:Node"));
    assert_eq!(drive.machine.stop_began, Some(drive.now));
    drive.feed(Event::Ended(Exit::Code(0)));
    drive.feed(cleared());
    assert!(matches!(drive.machine.state, State::Held { .. }), "what it signed of others is held for as ever");
    // It ends all the same where that does not come, or cannot be told, and where the job hangs.
    for result in [passed(false), Event::Done(Role::Proposal, Err("no".to_owned()))] {
        let effects = asked().feed(result);
        assert!(short(&effects).contains("TERM:Node"));
        assert!(effects.iter().any(|e| matches!(e, Effect::Log(Level::Warn, text) if text.contains("signs twice"))));
    }
    let mut drive = asked();
    drive.now += Duration::from_secs(13);
    assert!(short(&drive.feed(Event::Tick)).contains("KILL:Proposal"));
    assert!(short(&drive.feed(Event::Done(Role::Proposal, Err("killed".to_owned())))).contains("TERM:Node"));
    // Who wants the node killed does not wait; one that ends meanwhile has ended.
    let mut drive = asked();
    assert!(short(&drive.feed(Event::Asked(9, Request::Stop { now: true }))).contains("KILL:Node"));
    assert!(!short(&drive.feed(passed(true))).contains("TERM"));
    let mut drive = asked();
    assert!(short(&drive.feed(Event::Ended(Exit::Code(0)))).contains("KILL:Proposal"));
    assert!(!short(&drive.feed(passed(true))).contains("TERM"));

    // Nobody waits where nobody goes on, or all stop; nor for one that proposes nothing, has not answered, or does not any more.
    let silent = Event::Done(Role::Probe, Err("connection refused".to_owned()));
    let at = |head, signed| Drive::up(VALIDATOR, vec![plan("v2", 1000)]).all([validator(head, 1, 4, signed)]);
    for (drive, waits) in [
        (at(500, 4), true),
        (at(500, 3), true),
        (at(500, 2), false),
        (at(998, 4), true),
        (at(999, 4), false),
        (at(1000, 4), true),
        (Drive::up(VALIDATOR, Vec::new()).all([validator(500, 3, 4, 3)]), false),
        (Drive::up(&[], Vec::new()).all([validator(500, 1, 4, 4)]), false),
        (Drive::up(VALIDATOR, Vec::new()).all([validator(500, 7, 4, 4)]), false),
        (Drive::up(VALIDATOR, Vec::new()), false),
        (Drive::up(VALIDATOR, Vec::new()).all([validator(500, 1, 4, 4), silent]), false),
    ] {
        let effects = short(&drive.clone().feed(restart()));
        assert_eq!((effects.contains("start:Proposal"), effects.contains("TERM:Node")), (waits, !waits), "{effects}");
    }
}

#[test]
fn a_home_that_ran_on_another_machine_runs_no_validator_until_somebody_says_that_it_was_moved() {
    let moved = || Survey {
        known: Known { machine: Some("there".to_owned()), ..Known::default() },
        machine: Some("here".to_owned()),
        ..survey("genesis", None, Vec::new())
    };
    for (set, starts) in
        [(VALIDATOR, false), (&[("validator_mode", "true"), ("daemon_moved", "true")][..], true), (&[][..], true)]
    {
        let mut drive = Drive::new(set).all([Event::Booted]);
        let effects = short(&drive.feed(surveyed(moved())));
        assert_eq!(effects.contains("launch"), starts, "{set:?}: {effects}");
        assert_eq!(effects.contains("exit:4"), !starts, "{set:?}: {effects}");
    }
}

#[test]
fn a_validator_at_its_height_is_not_given_back_to_the_old_release() {
    let mut drive = Drive::trial(&[("validator_mode", "true"), ("daemon_restart_backoff", "1s")]);
    for starts in 1..=2 {
        drive.feed(Event::Ended(Exit::Code(1)));
        drive = drive.after(61).after(60).all([recorded("v2", starts + 1), Event::Executed]);
    }
    assert_eq!(short(&drive.feed(Event::Ended(Exit::Code(1)))), "start:Clear");
    assert_eq!(short(&drive.feed(cleared())), "exit:5");
}

#[test]
fn an_upgrade_after_one_that_could_not_be_taken_back_goes_its_whole_way() {
    let mut drive = Drive::trial(&[("daemon_restart_backoff", "0"), ("daemon_trial_time", "1s")]);
    for starts in 2..=3 {
        drive = drive.all([Event::Ended(Exit::Code(1)), recorded("v2", starts), Event::Executed]);
    }
    drive = drive.all([Event::Ended(Exit::Code(1)), cleared()]);
    let fails = || Event::Done(Role::Step, Err("No space left on device".to_owned()));
    for _ in 0..3 {
        drive = drive.all([fails()]).after(1);
    }
    drive = drive.all([recorded("v2", 4), Event::Executed, probed(99)]).after(2);
    assert!(matches!(drive.machine.step, Some(Step::Prove { .. })), "{:?}", drive.machine.step);
    let proven = Journal { proven: true, ..journal(Stage::Trial) };
    drive = drive.all([stepped(Some(proven)), probed(200), stepped(None)]);
    drive.plans = vec![plan("v3", 300)];
    let look = surveyed(survey("v2", None, drive.plans.clone()));
    drive = drive.all([look, Event::Done(Role::Stage, Ok(Report::Staged(fit("v3")))), probed(299)]);
    assert!(matches!(drive.machine.step, Some(Step::Begin(_))), "{:?}", drive.machine.step);
    let begun = Journal { to: release("v3"), ..journal(Stage::Stop) };
    drive = drive.all([stepped(Some(begun)), Event::Ended(Exit::Code(0)), cleared()]);
    assert!(matches!(drive.machine.step, Some(Step::Backup(_))), "{:?}", drive.machine.step);
}

#[test]
fn a_validator_is_held_from_the_end_of_a_node_that_another_supervisor_left() {
    let record = crate::journal::Record {
        pid: 7,
        start_time: 1,
        boot_id: "b".to_owned(),
        release: Release::Genesis,
        args: Vec::new(),
        started: 1,
        death_signal: false,
        ended: None,
    };
    let mut survey = survey("genesis", None, Vec::new());
    survey.record = Some(record);
    let mut drive = Drive::new(VALIDATOR).all([Event::Booted, surveyed(survey)]);
    assert!(matches!(drive.machine.state, State::Held { .. }));
    drive.now += Duration::from_mins(1);
    assert!(short(&drive.feed(Event::Tick)).contains("launch"));
    // The old node lives on and is only ended now.
    drive.feed(Event::Note(Role::Node, Note::Busy(Vec::new())));
    assert!(short(&drive.feed(Event::Ended(Exit::Code(1)))).contains("start:Clear"));
    drive.now += Duration::from_mins(2);
    assert!(!short(&drive.feed(cleared())).contains("launch"), "held from here on");
    assert!(matches!(drive.machine.state, State::Held { until, .. } if until == drive.now + Duration::from_mins(1)));
}

#[test]
fn a_step_that_was_killed_after_its_write_is_known_from_what_it_wrote() {
    let mut drive = Drive::up(&[], Vec::new()).all([probed(99)]);
    drive.machine.current = Some(release("v2"));
    let asked = drive.feed(Event::Asked(1, Request::Revert { to: Some(Release::Genesis) }));
    assert_eq!(short(&asked), "step:Undo");
    let effects = short(&drive.feed(Event::Done(Role::Step, Err("it was killed".to_owned()))));
    assert!(effects.contains("reply") && effects.contains("start:Look"), "{effects}");
    let back = Journal { back: Some((Outcome::Reverted, "x".to_owned())), ..journal(Stage::Back) };
    let effects = short(&drive.feed(surveyed(survey("v2", Some(back), Vec::new()))));
    assert!(effects.contains("TERM:Node"), "{effects}");
}

#[test]
fn an_interrupted_restore_is_ended_before_anybody_starts() {
    let pending = Survey { restoring: true, ..survey("genesis", None, Vec::new()) };
    let mut drive = Drive::new(&[]).all([Event::Booted]);
    assert!(short(&drive.feed(surveyed(pending))).contains("start:Clear"));
    assert_eq!(short(&drive.feed(cleared())), "step:Restore");
    assert!(short(&drive.feed(stepped(None))).contains("launch"));
}

#[test]
fn what_must_be_copied_is_copied_ahead_in_time_and_again_closer_to_the_height() {
    let forecast = || crate::job::backup::Forecast {
        mode: crate::manifest::Mode::Copy,
        how: crate::manifest::How::Copy,
        place: "/b".into(),
        files: 1,
        bytes: 1 << 30,
        to_copy: 1 << 30,
        down_copy: 1 << 20,
        free: 1 << 40,
        fixed: None,
    };
    let staged = || Event::Done(Role::Stage, Ok(Report::Staged(Staged { backup: Some(forecast()), ..fit("v2") })));
    let mut drive = Drive::up(&[], vec![plan("v2", 10_000)]).all([staged()]);
    // One block a second.
    for head in [1, 2, 3] {
        drive.now += Duration::from_secs(1);
        assert!(!short(&drive.feed(probed(head))).contains("Ahead"), "too early");
    }
    let jump = |drive: &mut Drive, head: u64| {
        drive.looked();
        drive.now += Duration::from_secs(head - drive.machine.life.head.unwrap());
        short(&drive.feed(probed(head)))
    };
    assert!(jump(&mut drive, 8300).contains("start:Ahead"), "half an hour before");
    drive.now += Duration::from_secs(20);
    drive.feed(Event::Done(Role::Ahead, Ok(Report::CopiedAhead(1 << 30))));
    assert!(!jump(&mut drive, 8500).contains("Ahead"));
    assert!(jump(&mut drive, 9600).contains("start:Ahead"), "at a quarter of what was left");
    drive.feed(Event::Done(Role::Ahead, Ok(Report::CopiedAhead(1 << 20))));
    assert!(jump(&mut drive, 9950).contains("start:Ahead"), "again");
    assert!(jump(&mut drive, 9999).contains("step:Begin"));
    assert!(short(&drive.feed(stepped(Some(journal(Stage::Stop))))).contains("KILL:Ahead"), "it is over");
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
fn arguments_that_change_while_it_runs_are_said_to_wait() {
    let mut drive = Drive::up(&[], Vec::new()).all([Event::Signal(Sig::Reload)]);
    let flags = [("daemon_home".to_owned(), "/h".to_owned())];
    let sources = Sources { flags: &flags, config_file: None, env: &[], etc: std::path::Path::new("/nowhere") };
    let mut settings = resolve(&sources).unwrap();
    settings.node_args = vec!["--cache".to_owned(), "1".to_owned()];
    let warned = |drive: &mut Drive, settings: &Settings| {
        let said = drive.feed(Event::Done(Role::Reload, Ok(Report::Settings(Box::new(settings.clone())))));
        said.iter().any(|e| matches!(e, Effect::Log(Level::Warn, text) if text.contains("node_args")))
    };
    assert!(warned(&mut drive, &settings));
    assert!(!warned(&mut drive, &settings), "once");
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
        ("upgrade: backing up", Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared()])),
        ("upgrade: hook", Drive::hooking(&[])),
        ("upgrade: hook told to end", Drive::hooking(&[]).after(301)),
        ("upgrade: hook, stop asked", Drive::hooking(&[]).all([Event::Signal(Sig::Stop)])),
        (
            "upgrade: pause before a hook",
            Drive::hooking(&[("daemon_preupgrade_max_retries", "3")])
                .all([Event::HookEnded(Exit::Code(31), None), cleared()]),
        ),
        (
            "upgrade: switching",
            Drive::begun(&[]).all([Event::Ended(Exit::Code(0)), cleared(), stepped(Some(journal(Stage::Switch)))]),
        ),
        (
            "upgrade: starting",
            Drive::begun(&[]).all([
                Event::Ended(Exit::Code(0)),
                cleared(),
                stepped(Some(journal(Stage::Switch))),
                stepped(Some(journal(Stage::Trial))),
            ]),
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
        ("upgrade: the data goes back", {
            let restore = surveyed(survey("genesis", Some(backed_up(Stage::Restore)), Vec::new()));
            Drive::new(&[]).all([Event::Booted, restore, cleared()])
        }),
        ("upgrade: the old release on what was left", Drive::returned(&[])),
        ("up: fetching", Drive::up(MAY_FETCH, vec![remote("v2", 100)])),
        ("up: could not fetch", Drive::up(MAY_FETCH, vec![remote("v2", 100)]).all([fetched(Err("it broke"))])),
        ("full", Drive::up(&[], Vec::new()).all([probed(7), Event::Ended(Exit::Code(0)), measured(1 << 20)])),
        ("held", Drive::trial(VALIDATOR).all([exit()]).after(60)),
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
        ("hook ended 0", Event::HookEnded(Exit::Code(0), None)),
        ("hook ended 1", Event::HookEnded(Exit::Code(1), Some("no".to_owned()))),
        ("hook ended 31", Event::HookEnded(Exit::Code(31), None)),
        ("head 50", probed(50)),
        ("head 99", probed(99)),
        ("no answer", Event::Done(Role::Probe, Err("connection refused".to_owned()))),
        ("looked: nothing new", surveyed(survey("genesis", None, Vec::new()))),
        ("looked: plan v2@100", surveyed(survey("genesis", None, vec![plan("v2", 100)]))),
        ("look failed", Event::Done(Role::Look, Err("it was killed".to_owned()))),
        ("staged: fit", Event::Done(Role::Stage, Ok(Report::Staged(fit("v2"))))),
        ("staged: unfit", Event::Done(Role::Stage, Ok(Report::Staged(unfit("v2"))))),
        ("measured: full", measured(1 << 20)),
        ("fetched", fetched(Ok(fetch::Outcome::Installed(7)))),
        ("fetched: wrong", fetched(Ok(fetch::Outcome::WrongChecksum("wrong".to_owned())))),
        ("fetch failed", fetched(Err("status 404"))),
        ("step done: stop", stepped(Some(journal(Stage::Stop)))),
        ("step done: hook", stepped(Some(backed_up(Stage::Hook)))),
        ("step done: switch", stepped(Some(journal(Stage::Switch)))),
        ("step done: trial", stepped(Some(journal(Stage::Trial)))),
        ("step done: none", stepped(None)),
        ("step failed", Event::Done(Role::Step, Err("No space left on device".to_owned()))),
        ("data is free", cleared()),
        ("clear job failed", Event::Done(Role::Clear, Err("it was killed".to_owned()))),
        ("files changed", Event::FilesChanged),
        ("TERM", Event::Signal(Sig::Stop)),
        ("HUP", Event::Signal(Sig::Reload)),
        ("ask status", Event::Asked(9, Request::Status)),
        ("ask head", Event::Asked(9, Request::Head)),
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

/// What client 9 was told of the head.
fn told_head(effects: &[Effect]) -> Option<Reply> {
    let one = |effect: &Effect| match effect {
        Effect::Reply(9, reply) => Some(reply.clone()),
        _ => None,
    };
    let told: Vec<Reply> = effects.iter().filter_map(one).collect();
    assert!(told.len() <= 1, "{told:?}");
    told.first().cloned()
}

#[test]
fn who_asks_for_the_head_is_told_once_the_node_was_asked_and_always_told() {
    let exit = || Event::Ended(Exit::Code(1));
    let asks = || Event::Asked(9, Request::Head);
    let reply =
        |height: u64, current: bool| Some(Reply::done(serde_json::json!({"height": height, "current": current})));
    let head = |height: u64| reply(height, false);
    let mut up = Drive::up(&[], Vec::new()).all([probed(7)]);
    let effects = up.feed(asks());
    assert!(effects.iter().any(|e| matches!(e, Effect::Start(Role::Probe, _))), "{effects:?}");
    assert_eq!(told_head(&effects), None, "what was known may be old");
    let silent = Event::Done(Role::Probe, Err("connection refused".to_owned()));
    assert_eq!(told_head(&up.clone().feed(silent)), head(7), "a node that says nothing keeps nobody waiting");
    let mut ended = up.clone().all([exit()]);
    assert_eq!(told_head(&ended.feed(probed(9))), head(7), "nor does one that has ended");
    assert_eq!(told_head(&up.feed(probed(253))), reply(253, true));
    assert_eq!(told_head(&up.feed(probed(254))), None, "once");
    let mut backoff = Drive::up(&[], Vec::new()).all([probed(7), exit()]);
    assert_eq!(told_head(&backoff.feed(asks())), head(7), "nobody is there to be asked");
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
    /// The hook's process.
    hook: Option<Sim>,
    /// A grandchild that outlived its node holds the data.
    straggler: bool,
    jobs: BTreeMap<Role, Job>,
    current: &'static str,
    journal: Option<Journal>,
    failed: bool,
    finished: Vec<Outcome>,
    restored: u64,
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

/// Whether a step changes link or data, so that no node may be started meanwhile.
fn moves(step: &Step) -> bool {
    matches!(step, Step::Backup(_) | Step::Switch | Step::Restore | Step::Back { .. })
}

impl World {
    fn new(seed: u64) -> World {
        let grace = [
            ("daemon_shutdown_grace", "2s"),
            ("daemon_trial_time", "5s"),
            ("daemon_trial_blocks", "3"),
            ("daemon_restart_backoff", "1s"),
            ("daemon_max_restarts", "2"),
            ("daemon_preupgrade_timeout", "5s"),
            ("daemon_preupgrade_max_retries", "1"),
            ("validator_mode", if seed.is_multiple_of(4) { "true" } else { "false" }),
            ("daemon_validator_hold", "3s"),
            ("daemon_allow_download_binaries", "true"),
            ("daemon_event_command", if seed.is_multiple_of(2) { "/tell" } else { "" }),
        ];
        // In every third world the release is still to be fetched.
        let plan = if seed.is_multiple_of(3) { remote("v2", 10) } else { plan("v2", 10) };
        World {
            drive: Drive::new(&grace),
            dice: Dice(seed.max(1)),
            node: None,
            hook: None,
            straggler: false,
            jobs: BTreeMap::new(),
            current: "genesis",
            journal: None,
            failed: false,
            finished: Vec::new(),
            restored: 0,
            plans: vec![plan],
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
                assert!(self.hook.is_none(), "a node is started beside a hook");
                let moves = |job: &Job| matches!(job, Job::Step(step) if moves(step));
                assert!(!self.jobs.values().any(moves), "a node is started while the link moves");
                assert!(!self.jobs.contains_key(&Role::Clear), "a node is started while the data is being cleared");
                self.node = Some(Sim { runs: false, terms: 0, deaf: false });
            }
            Effect::RunHook => {
                assert!(self.node.is_none(), "a hook runs beside a node");
                assert!(self.hook.is_none(), "two hooks");
                let busy = [Role::Step, Role::Clear].iter().any(|role| self.jobs.contains_key(role));
                assert!(!busy, "a hook beside a step");
                self.hook = Some(Sim { runs: false, terms: 0, deaf: false });
            }
            Effect::Start(role, job) => {
                if let Job::Step(step) = &job {
                    assert!(self.hook.is_none(), "a step is done beside a hook");
                    if let Step::Switch | Step::Backup(_) | Step::Restore = **step {
                        assert!(self.node.is_none(), "the link moves under a node");
                    }
                    if let Step::Back { .. } = **step {
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
            Effect::Terminate(Role::Hook) => {
                self.hook.as_mut().expect("TERM without a hook").terms += 1;
            }
            Effect::Kill(Role::Hook) => {
                return self.hook.take().map(|_| Event::HookEnded(Exit::Signal(9), None));
            }
            Effect::Kill(role) => {
                return self.jobs.remove(&role).map(|_| Event::Done(role, Err("killed".to_owned())));
            }
            Effect::Sample(_) => return Some(Event::Sample(Counters::default())),
            Effect::Watch(_) => return Some(Event::Watching(true)),
            Effect::Exit(code, ..) => {
                assert!(self.node.is_none(), "it leaves a node behind");
                assert!(self.hook.is_none(), "it leaves a hook behind");
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
            Step::Backup(_) => {
                let hooks = self.dice.roll(3);
                let journal = self.journal.as_mut().ok_or("no journal")?;
                if journal.stage == Stage::Stop {
                    journal.backup = Some("b".to_owned());
                    journal.hooks = (0..hooks).map(|n| format!("/h/{n}").into()).collect();
                    journal.stage = if hooks == 0 { Stage::Switch } else { Stage::Hook };
                }
            }
            Step::Hooked { hook, .. } => {
                let journal = self.journal.as_mut().ok_or("no journal")?;
                if journal.stage == Stage::Hook && journal.hooks.first() == Some(hook) {
                    journal.hooks.remove(0);
                    journal.attempt = 0;
                    journal.stage = if journal.hooks.is_empty() { Stage::Switch } else { Stage::Hook };
                }
            }
            Step::Switch => {
                let journal = self.journal.as_mut().ok_or("no journal")?;
                if journal.stage == Stage::Switch {
                    journal.stage = Stage::Trial;
                    journal.starts = 0;
                    journal.touched = true;
                    self.current = "v2";
                }
            }
            Step::Restore => {
                let journal = self.journal.as_mut().ok_or("no journal")?;
                if journal.stage == Stage::Restore {
                    assert_eq!(self.current, "genesis", "the data goes back under the new release");
                    journal.replaced = Some("r".to_owned());
                    journal.stage = Stage::Back;
                    self.restored += 1;
                }
            }
            Step::Forgo { .. } => {
                let journal = self.journal.as_mut().ok_or("no journal")?;
                journal.touched = false;
                journal.stage = Stage::Back;
            }
            Step::Prove { .. } => self.journal.as_mut().ok_or("no journal")?.proven = true,
            Step::Commit => self.finish(Outcome::Committed),
            Step::TurnBack { outcome, reason, .. } => {
                let journal = self.journal.as_mut().ok_or("no journal")?;
                journal.stage = match journal.stage {
                    Stage::Return => Stage::Restore,
                    Stage::Hook | Stage::Switch if journal.way_back().is_some() => Stage::Restore,
                    _ => Stage::Back,
                };
                journal.back.get_or_insert((*outcome, reason.clone()));
            }
            Step::Back { stage } if self.journal.as_ref().is_some_and(|j| j.stage != *stage) => {}
            Step::Back { .. }
                if self.journal.as_ref().is_some_and(|j| j.stage == Stage::Back && j.way_back().is_some()) =>
            {
                self.current = "genesis";
                let journal = self.journal.as_mut().ok_or("no journal")?;
                journal.stage = Stage::Return;
                journal.starts = 0;
            }
            Step::Back { .. } => {
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
                let missing = self.plans[0].print.is_none();
                Ok(Report::Staged(if missing || (self.dice.roll(4) == 0 && !self.failed) {
                    unfit("v2")
                } else {
                    fit("v2")
                }))
            }
            Job::Step(step) => self.carry_out(&step).map(|()| Report::Stepped(self.journal.clone().map(Box::new))),
            Job::Fetch(_) => match self.dice.roll(3) {
                0 => Err("it broke".to_owned()),
                1 => Ok(Report::Fetched(fetch::Outcome::WrongChecksum("it is wrong".to_owned()))),
                _ => {
                    self.plans[0].print = Some("print".to_owned());
                    Ok(Report::Fetched(fetch::Outcome::Installed(1)))
                }
            },
            Job::Measure(_) => {
                let free = self.dice.roll(30) << 30;
                let free = if self.failed { 1 << 40 } else { free };
                Ok(Report::Measured(Measured { memory: Some(1), cpu: None, disk: Some((free, 1 << 40)) }))
            }
            Job::Reference(_) => Ok(Report::ReferenceHead(self.head)),
            Job::Proposal(_) => match self.dice.roll(3) {
                0 => Err("it offers no such thing".to_owned()),
                roll => Ok(Report::ProposesNothing(roll == 1)),
            },
            Job::CopyAhead(_) => Ok(Report::CopiedAhead(1)),
            Job::Prune(..) => Ok(Report::Pruned(Vec::new())),
            Job::Trim(logs) => Ok(Report::Trimmed(Trimmed { sizes: vec![(0, 0); logs.len()], problems: Vec::new() })),
            Job::Clear(_) => {
                assert!(self.hook.is_none(), "the data is said to be free under a hook");
                assert!(self.node.is_none(), "the data is said to be free under a node");
                self.straggler = false;
                Ok(Report::Cleared)
            }
            Job::Reload(_) => Err("no".to_owned()),
            Job::Event(..) => Ok(Report::Told),
            Job::Metrics(_) => Ok(Report::Written),
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
            if let Some(journal) = self.journal.as_mut().filter(|j| j.on_probation().is_some()) {
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

    fn move_hook(&mut self) {
        let Some(mut hook) = self.hook else { return };
        if !hook.runs && hook.terms == 0 {
            if self.straggler {
                self.hook = None;
                self.feed(Event::Note(Role::Hook, Note::Busy(Vec::new())));
                return self.feed(Event::HookEnded(Exit::Code(1), None));
            }
            let journal = self.journal.as_mut().unwrap();
            journal.attempt += 1;
            journal.touched = true;
            let attempt = journal.attempt;
            hook.runs = true;
            hook.deaf = !self.failed && self.dice.roll(5) == 0;
            self.hook = Some(hook);
            return self.feed(Event::Note(Role::Hook, Note::HookStarted { attempt }));
        }
        if if hook.terms > 0 { !hook.deaf } else { self.dice.roll(3) == 0 } {
            self.hook = None;
            self.straggler = self.dice.roll(4) == 0;
            let exit = Exit::Code([0, 0, 0, 31, 2][usize::try_from(self.dice.roll(5)).unwrap()]);
            self.feed(Event::HookEnded(exit, None));
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
                _ => {
                    self.move_node();
                    self.move_hook();
                }
            }
        }
        // From here on nothing fails any more: after TERM, time and deaths alone must lead to the end.
        self.failed = true;
        self.feed(Event::Signal(Sig::Stop));
        for _ in 0..400 {
            self.end_job();
            self.move_node();
            self.move_hook();
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
    let (mut finished, mut left, mut restored) = (BTreeMap::new(), BTreeMap::new(), 0);
    for seed in seeds {
        let mut world = World::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.walk(300)));
        if walked.is_err() {
            let trail = &world.trail[world.trail.len().saturating_sub(60)..];
            panic!("WEMIXVISOR_SEED={seed} shows it; the end of its way:\n{}", trail.join("\n"));
        }
        *left.entry(world.left.unwrap()).or_insert(0) += 1;
        restored += world.restored;
        for outcome in world.finished {
            *finished.entry(outcome.word()).or_insert(0) += 1;
        }
    }
    // The walk is worth nothing unless it came through every kind of end.
    if std::env::var_os("WEMIXVISOR_SEED").is_none() {
        assert!(finished.len() >= 4 && restored > 0, "{finished:?}, {restored} restored");
        assert!(left.contains_key(&0) && left.contains_key(&5), "{left:?}");
    }
}

#[test]
fn the_toy_world_sees_each_thing_that_must_never_be() {
    let switch = || Effect::Start(Role::Step, Job::Step(Box::new(Step::Switch)));
    let restore = || Effect::Start(Role::Step, Job::Step(Box::new(Step::Restore)));
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
        ("the link moves under a node", vec![launch(), restore()]),
        ("a node is started while the link moves", vec![restore(), launch()]),
        ("a node is started beside a hook", vec![Effect::RunHook, launch()]),
        ("a hook runs beside a node", vec![launch(), Effect::RunHook]),
        ("two hooks", vec![Effect::RunHook, Effect::RunHook]),
        ("a hook beside a step", vec![switch(), Effect::RunHook]),
        ("a step is done beside a hook", vec![Effect::RunHook, switch()]),
        ("it leaves a hook behind", vec![Effect::RunHook, Effect::Exit(0, "stopped", String::new())]),
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

#[test]
fn the_last_word_comes_first_and_what_is_not_told_is_said() {
    let mut drive = Drive::up(&[("daemon_event_command", "/tell")], Vec::new());
    let mut out = Vec::new();
    for n in 0..3 {
        drive.machine.announce(What::Hold { until: None }, None, n.to_string(), &mut out);
    }
    drive.machine.announce(What::Error { exit_status: 5 }, None, "the end".to_owned(), &mut out);
    assert_eq!(told(&drive.feed(Event::Done(Role::Event, Ok(Report::Told)))), ["the end"]);
    drive.machine.state = State::Leaving { code: 5 };
    drive.machine.leave_at = Some(drive.now + Duration::from_secs(10));
    drive.now += Duration::from_secs(10);
    let out = format!("{:?}", drive.feed(Event::Tick));
    assert!(out.contains("3 events were not told") && out.contains("Exit(5"), "{out}");
}

#[test]
fn the_log_that_is_written_is_the_one_of_the_nodes_start() {
    let mut drive = Drive::up(&[("daemon_log_file", "/one"), ("daemon_log_max_size", "4MiB")], Vec::new());
    assert_eq!(drive.machine.written_log().as_deref(), Some(std::path::Path::new("/one")));
    drive.machine.config.log_file = Some("/other".into());
    assert_eq!(drive.machine.written_log().as_deref(), Some(std::path::Path::new("/one")));
    drive = drive.all([Event::Ended(Exit::Signal(9))]).after(600);
    drive.feed(Event::Tick);
    assert_eq!(drive.machine.written_log().as_deref(), Some(std::path::Path::new("/other")));
}

#[test]
fn events_are_told_one_by_one_in_their_order_each_for_half_a_minute_at_most() {
    let mut drive = Drive::up(&[("daemon_event_command", "/tell")], Vec::new());
    let mut out = Vec::new();
    for n in 0..70 {
        drive.machine.announce(What::Hold { until: None }, None, n.to_string(), &mut out);
    }
    assert_eq!(told(&out), ["0"]);
    let killed = |effects: Vec<Effect>| effects.contains(&Effect::Kill(Role::Event));
    drive.now += Duration::from_secs(29);
    assert!(!killed(drive.feed(Event::Tick)));
    drive.now += Duration::from_secs(1);
    assert!(killed(drive.feed(Event::Tick)));
    // Of those that were too many, the oldest are left out, and that is said.
    let out = drive.feed(Event::Done(Role::Event, Err("it was killed".to_owned())));
    assert!(format!("{out:?}").contains("too slow: 5 events were not told"), "{out:?}");
    let mut order = told(&out);
    while let [one] = told(&drive.feed(Event::Done(Role::Event, Ok(Report::Told)))).as_slice() {
        order.push(one.clone());
    }
    assert_eq!(order, (6..70).map(|n| n.to_string()).collect::<Vec<_>>());
}
