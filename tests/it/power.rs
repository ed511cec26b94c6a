//! Power loss. What the journal and the link rely on is the sync of file and directory: a real upgrade is recorded system
//! call by system call, and every image that a crash may leave at any instant of it is looked at. Each must hold a link to
//! a release, a whole journal or none, and the two in agreement; and from each the next start ends the upgrade, once.

mod disk;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::Value;

use crate::crash::strace;
use crate::support::{Home, mocknode, text, under, until};
use disk::{Dice, Disk, Entry, Image};
use trace::Act;

/// The most images of one instant; where there are more, the dice choose.
const MOST: usize = 2000;

/// The same where a fault is there to be found: some of the images show it.
const ENOUGH: usize = 60;

/// How many images a supervisor is started on beside one of each kind.
const MORE_STARTS: usize = 12;

/// How the recorded upgrade ends.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    /// The new release proves itself.
    Committed,
    /// The new release dies three times and is taken back.
    Reverted,
}

impl Ending {
    /// The habits of the new release.
    fn flags(self) -> &'static str {
        match self {
            Ending::Committed => "",
            Ending::Reverted => "--die-at-start",
        }
    }

    fn result(self) -> &'static str {
        match self {
            Ending::Committed => "committed",
            Ending::Reverted => "reverted",
        }
    }

    /// The release that runs in the end.
    fn release(self) -> &'static str {
        match self {
            Ending::Committed => "v2",
            Ending::Reverted => "genesis",
        }
    }
}

/// An upgrade as it was done: what was there before, and every act.
struct Recording {
    height: u64,
    before: Image,
    acts: Vec<Act>,
    /// The home that it was made in, its node stopped: the images get a copy of its data.
    home: Home,
}

/// Settings that make an upgrade short: most of its time is waiting.
const QUICK: [&str; 10] = [
    "--set",
    "trial_time=100ms",
    "--set",
    "trial_blocks=1",
    "--set",
    "height_poll_interval=100ms",
    "--set",
    "restart_backoff=20ms",
    "--set",
    "health_check_interval=100ms",
];

impl Recording {
    /// Records an upgrade; none where there is no strace.
    fn make(ending: Ending) -> Option<Recording> {
        if !strace::available() {
            // Past the capture of output: what was not tested must be seen.
            let _ = writeln!(std::io::stderr(), "power: SKIPPED: strace cannot trace here");
            return None;
        }
        let home = Home::new();
        home.release("v2", ending.flags());
        // There before, as in a home that has seen upgrades: a line may be torn, the file itself is no news.
        fs::write(home.own("history.jsonl"), OLDER).unwrap();
        let before = image_of(&home.own(""));
        let out = home.dir.join("trace");
        let words = ["strace", "-D", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-e", "signal=none", "-e"];
        let calls = format!("trace={}", trace::CALLS);
        let starter: Vec<&str> = words.into_iter().chain([&calls, "-o", out.to_str().unwrap()]).collect();
        let (args, head) = (home.node_args(), ["--start-head", "100"]);
        let words = args.iter().map(String::as_str).chain(head);
        let ours: Vec<&str> = QUICK.into_iter().chain(["run"]).chain(words).collect();
        let mut visor = home.spawn(under(&starter, &home.command(&ours)));
        let height = visor.until_up()["height"].as_u64().unwrap() + 10;
        home.plan("v2", height);
        home.until_finished("v2", ending.result());
        until("the journal is gone", || (!home.own("journal.json").exists()).then_some(()));
        visor.until_release(ending.release());
        visor.stop();
        let (pid, end) = (visor.pid().to_string(), "+++ exited with 0 +++");
        let text = until("the trace is whole", || {
            let text = fs::read_to_string(&out).ok()?;
            text.lines().any(|line| line.starts_with(&pid) && line.ends_with(end)).then_some(text)
        });
        drop(visor);
        let acts = trace::read(&text, &fs::canonicalize(home.own("")).unwrap());
        Some(Recording { height, before, acts, home })
    }

    /// Goes through all instants with the dice; tells each image that may be found there to `each`, with how often the new
    /// release was executed by then. Returns how many instants there were, and images.
    fn crash(
        &self,
        acts: &[Act],
        most: usize,
        dice: &mut Dice,
        mut each: impl FnMut(usize, &Image, u64),
    ) -> (usize, usize) {
        let mut disk = Disk::new(&self.before);
        let (mut images, mut executed) = (0, 0);
        for number in 0..=acts.len() {
            let (found, _) = disk.images(most, dice);
            images += found.len();
            found.iter().for_each(|image| each(number, image, executed));
            if let Some(act) = acts.get(number) {
                if let Act::Exec { path } = act
                    && path == Path::new("current/bin/node")
                    && disk.now().get("current") == Some(&Entry::Link("upgrades/v2".to_owned()))
                {
                    executed += 1;
                }
                disk.act(number, act);
            }
        }
        // What the acts were translated to is what really happened.
        if acts.len() == self.acts.len() {
            assert_eq!(disk.now(), image_of(&self.home.own("")));
        }
        (acts.len() + 1, images)
    }

    /// Whether this image breaks a promise, and which.
    fn judge(image: &Image, executed: u64) -> Result<(), String> {
        let Some(Entry::Link(current)) = image.get("current") else { return Err("current is gone".to_owned()) };
        let current = Path::new(current).file_name().unwrap().to_str().unwrap().to_owned();
        if current != "genesis" && current != "v2" {
            return Err(format!("current points at {current}"));
        }
        let journal = match image.get("journal.json") {
            None => None,
            Some(Entry::File(content)) => Some(
                serde_json::from_slice::<Value>(content)
                    .map_err(|e| format!("the journal is torn: {e}: {:?}", String::from_utf8_lossy(content)))?,
            ),
            Some(Entry::Dir | Entry::Link(_)) => return Err("the journal is no file".to_owned()),
        };
        let lines = history(image)?;
        let ended = lines.last().map(|line| text(line, "result"));
        if lines.len() > 1 {
            return Err(format!("it ended {} times", lines.len()));
        }
        let expected = |place: &str| match place {
            "genesis" | "v2" if current == place => Ok(()),
            _ => Err(format!("current is {current}, but journal and history say {place}: {journal:?} {ended:?}")),
        };
        let Some(journal) = &journal else {
            if executed > 0 && ended.is_none() {
                return Err("the new release ran, and nothing tells of it".to_owned());
            }
            return expected(if ended.as_deref() == Some("committed") { "v2" } else { "genesis" });
        };
        let (stage, starts) = (text(journal, "stage"), journal["starts"].as_u64().unwrap());
        let fits = match stage.as_str() {
            "stop" | "hook" => current == "genesis" && executed == 0 && ended.is_none(),
            "switch" => executed == 0 && ended.is_none(),
            "trial" => current == "v2" && starts >= executed && ended.as_deref() != Some("reverted"),
            "restore" | "back" => ended.is_none(),
            "return" => current == "genesis" && ended.as_deref() != Some("committed"),
            _ => false,
        };
        if !fits {
            return Err(format!("at {stage} with {starts} starts of {executed}, {ended:?}, current is {current}"));
        }
        Ok(())
    }
}

/// Whether an upgrade has begun in this image.
fn begun(image: &Image) -> bool {
    image.contains_key("journal.json") || !history(image).unwrap().is_empty()
}

/// Starts a supervisor on this image of the home in `from`, with this plan and a copy of its node's data, and waits until all
/// is as it should be.
fn recovers(ending: Ending, image: &Image, height: u64, from: &Path) {
    let home = Home::empty();
    home.release("genesis", "");
    home.release("v2", ending.flags());
    write_image(image, from, &home);
    let copy = |path: &str| {
        let copied = Command::new("cp").arg("-a").arg(from.join(path)).arg(home.dir.join(path)).status();
        assert!(copied.unwrap().success());
    };
    copy("d");
    let names_backup = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap()["backup"].is_string();
    // Backups are written outside of what was recorded: the one is there that a journal relies on.
    if image.get("journal.json").is_none_or(|entry| matches!(entry, Entry::File(content) if names_backup(content))) {
        copy("home/backups");
    }
    let begun = begun(image);
    if begun {
        home.plan("v2", height);
    }
    let mut visor = home.supervise(&QUICK, &[]);
    // A line that was cut short stays, closed, among the whole ones.
    let now = || {
        let text = String::from_utf8_lossy(&fs::read(home.own("history.jsonl")).unwrap()).into_owned();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ended = lines.filter(|line| line["name"] == "v2").map(|line| crate::support::text(&line, "result"));
        (ended.collect::<Vec<_>>(), home.current())
    };
    if begun {
        home.until_finished("v2", ending.result());
        until("the journal is gone", || (!home.own("journal.json").exists()).then_some(()));
        visor.until_release(ending.release());
        assert_eq!(now(), (vec![ending.result().to_owned()], ending.release().to_owned()));
    } else {
        visor.until_release("genesis");
        assert_eq!(now(), (Vec::new(), "genesis".to_owned()));
    }
    assert_eq!(home.nodes().len(), 1);
    visor.stop();
}

/// A line of an upgrade long ago.
const OLDER: &str = concat!(
    r#"{"id":"v1-1-1","name":"v1","height":1,"from":"genesis","to":"v1","result":"failed","reason":"long ago","#,
    r#""started":"2026-01-01T00:00:00Z","finished":"2026-01-01T00:00:00Z","downtime_ms":0,"phases":{},"#,
    r#""backup":null,"clean_stop":null}"#,
    "\n"
);

/// The lines of the upgrade under test. Only a last line may be cut short, and then it has no end.
fn history(image: &Image) -> Result<Vec<Value>, String> {
    let Some(Entry::File(content)) = image.get("history.jsonl") else { return Err("the history is gone".to_owned()) };
    let mut lines = Vec::new();
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Value>(line) {
            Ok(value) if line.ends_with(b"\n") => lines.push(value),
            Ok(_) | Err(_) if !line.ends_with(b"\n") => {}
            Ok(_) | Err(_) => return Err(format!("a torn line in the history: {:?}", String::from_utf8_lossy(line))),
        }
    }
    if lines.first().is_none_or(|line| line["name"] != "v1") {
        return Err("the history lost a line".to_owned());
    }
    Ok(lines.split_off(1))
}

/// What lies in a directory, without binaries and sockets.
fn image_of(dir: &Path) -> Image {
    fn walk(dir: &Path, path: &str, image: &mut Image) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                image.insert(below, Entry::Link(target.to_str().unwrap().to_owned()));
            } else if kind.is_dir() && name != "bin" {
                walk(&entry.path(), &below, image);
                image.insert(below, Entry::Dir);
            } else if kind.is_file() {
                image.insert(below, Entry::File(fs::read(entry.path()).unwrap().into()));
            }
        }
    }
    let mut image = Image::new();
    walk(dir, "", &mut image);
    image
}

/// Lays an image of `from` out in a home that holds the releases; files speak of the new home where they spoke of the old.
fn write_image(image: &Image, from: &Path, home: &Home) {
    let moved = |content: &[u8]| {
        let (old, new) = (from.to_str().unwrap(), home.dir.to_str().unwrap());
        // Only text names a home, and what is torn need not be text.
        std::str::from_utf8(content).map_or_else(|_| content.to_vec(), |text| text.replace(old, new).into_bytes())
    };
    for (path, entry) in image {
        let path: PathBuf = home.own(path);
        match entry {
            Entry::Dir => fs::create_dir_all(&path).unwrap(),
            Entry::File(content) => fs::write(&path, moved(content)).unwrap(),
            Entry::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
        }
    }
}

/// The seed of this run; a failure shows it.
fn dice() -> Dice {
    let seed =
        std::env::var("WEMIXVISOR_SEED").map_or_else(|_| std::process::id().into(), |seed| seed.parse().unwrap());
    println!("power: WEMIXVISOR_SEED={seed}");
    Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15).max(1))
}

/// All images of a recording are good, and from one of each kind (and some more) the next start ends the upgrade.
fn every_image_is_good(ending: Ending) {
    let Some(recording) = Recording::make(ending) else { return };
    let mut dice = dice();
    let mut distinct = BTreeSet::new();
    // One of each kind: what decides is link, journal and history, and whether what else is known can be read.
    let mut kinds: BTreeMap<_, Vec<Image>> = BTreeMap::new();
    let (instants, images) = recording.crash(&recording.acts, MOST, &mut dice, |number, image, executed| {
        if let Err(why) = Recording::judge(image, executed) {
            panic!("a crash before act {number} ({:?}): {why}\n{image:?}", recording.acts.get(number));
        }
        if distinct.insert(image.clone()) {
            let whole = |name: &str| match image.get(name) {
                Some(Entry::File(content)) => Some(serde_json::from_slice::<Value>(content).is_ok()),
                Some(Entry::Dir | Entry::Link(_)) | None => None,
            };
            let kind = (
                ["current", "journal.json", "history.jsonl"].map(|name| image.get(name).cloned()),
                ["state.json", "data.lock"].map(whole),
            );
            kinds.entry(kind).or_default().push(image.clone());
        }
    });
    let mut starts: Vec<Image> = kinds.values().map(|images| images[dice.roll(images.len())].clone()).collect();
    let all: Vec<&Image> = distinct.iter().collect();
    starts.extend((0..MORE_STARTS).map(|_| all[dice.roll(all.len())].clone()));
    println!(
        "power, {}: {} acts, {instants} instants, {images} images, {} of them distinct, {} kinds, {} starts",
        ending.result(),
        recording.acts.len(),
        distinct.len(),
        kinds.len(),
        starts.len()
    );
    mocknode();
    let (left, height, from) = (Mutex::new(starts), recording.height, recording.home.dir.as_path());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some(image) = left.lock().unwrap().pop() else { return };
                    recovers(ending, &image, height, from);
                }
            });
        }
    });
}

#[test]
fn a_power_loss_at_any_instant_of_an_upgrade_leaves_what_the_next_start_ends() {
    every_image_is_good(Ending::Committed);
}

#[test]
fn a_power_loss_at_any_instant_of_a_revert_leaves_what_the_next_start_ends() {
    every_image_is_good(Ending::Reverted);
}

/// The control: with the syncs of a kind left out, the same upgrade has images that break a promise.
#[test]
fn the_detector_of_power_loss_sees_a_sync_that_is_missing() {
    let Some(recording) = Recording::make(Ending::Committed) else { return };
    let mut dice = dice();
    let mut faults = |left_out: &dyn Fn(usize, &Path) -> bool| {
        let keep = |(number, act): &(usize, &Act)| !matches!(act, Act::Sync { path, .. } if left_out(*number, path));
        // In place of the act that is left out stands one that does nothing, so that the numbers stay.
        let nothing = Act::Exec { path: PathBuf::from("nothing") };
        let acts: Vec<Act> = (recording.acts.iter().enumerate())
            .map(|act| if keep(&act) { act.1.clone() } else { nothing.clone() })
            .collect();
        let mut faults = BTreeSet::new();
        recording.crash(&acts, ENOUGH, &mut dice, |_, image, executed| {
            if let Err(why) = Recording::judge(image, executed) {
                faults.insert(why);
            }
        });
        faults
    };
    let own = Path::new("");
    assert_eq!(faults(&|_, _| false), BTreeSet::new());
    let no_file = faults(&|_, path| path == Path::new(".journal.json.tmp"));
    assert!(no_file.iter().any(|why| why.contains("the journal is torn")), "{no_file:?}");
    let no_dir = faults(&|_, path| path == own);
    assert!(
        no_dir.iter().any(|why| why.contains("at trial with 0 starts of 0, None, current is genesis")),
        "{no_dir:?}"
    );
    assert!(no_dir.iter().any(|why| why.contains("nothing tells of it")), "{no_dir:?}");
    // And each alone: those that follow one another may stand in for one another, these may not.
    let alone = |(number, act): (usize, &Act)| match act {
        Act::Sync { path, .. } => Some((path.clone(), !faults(&|other, _| other == number).is_empty())),
        Act::Open { .. } | Act::Write { .. } | Act::Resize { .. } | Act::Symlink { .. } | Act::Mkdir { .. } => None,
        Act::Unlink { .. } | Act::Rename { .. } | Act::Exec { .. } => None,
    };
    let seen: Vec<(PathBuf, bool)> = recording.acts.iter().enumerate().filter_map(alone).collect();
    println!("power, control: {seen:?}");
    for name in [".journal.json.tmp", "history.jsonl"] {
        assert!(seen.iter().all(|(path, seen)| path != Path::new(name) || *seen), "{name}: {seen:?}");
    }
    assert!(seen.iter().filter(|(path, seen)| path == own && *seen).count() >= 2, "{seen:?}");
}
