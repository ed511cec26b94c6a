//! What a backup costs while no node runs, beside Debian's own tools on the same tree: snapshots and `tar czf`, copies and
//! `cp -a`; and what the program needs of memory for very many files. The data is written out, not sparse, wherever a peer
//! must read it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::{Place, mocknode, until};
use crate::{Row, median, ms, ratio};

const MIB: u64 = 1 << 20;

/// Where the trees are built: beside what the build makes, which lies on a disk.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// What must be free there: the data, a copy of it, an archive of it, and something over.
const ROOM: u64 = 16 << 30;

/// The files of the tree that snapshots, `tar` and `cp` are measured on, 2 MiB each: 4 GiB.
const FILES: u64 = 2048;

/// How often an upgrade is measured; the one in the middle counts.
const UPGRADES: usize = 5;

/// Files for the figure of memory.
const MANY: u64 = 1_000_000;

/// The most memory that a backup may need, in KiB.
const MEMORY_MAX: u64 = 16 << 10;

/// All figures of backups.
pub fn rows() -> Vec<Row> {
    let scratch = Path::new(SCRATCH);
    fs::create_dir_all(scratch).unwrap();
    let stat = rustix::fs::statvfs(scratch).unwrap();
    if stat.f_bavail * stat.f_frsize < ROOM {
        return vec![skipped("backups", &format!("{SCRATCH} has less than {} GiB free", ROOM >> 30))];
    }
    let node = mocknode();
    let mut rows = Vec::new();
    {
        let tree = Scratch::new(scratch, "tree");
        let data = tree.dir.join("data");
        fill(&data, FILES, Kind::Written(2 * MIB));
        println!("{} of data in {FILES} files are written; tar and cp follow", size(bytes(&data)));
        let (tar, cp) = (tar(&data), cp(&data, &[]));
        rows.extend(snapshots(scratch, &node, &data, tar));
        rows.extend(copied_ahead(scratch, &node, &data, cp));
    }
    rows.extend(geth_like(scratch, &node));
    for (kind, name) in [("xfs", "XFS"), ("btrfs", "btrfs")] {
        rows.extend(reflinks(scratch, &node, kind, name));
    }
    println!("{MANY} files follow");
    rows.push(memory(scratch, &node));
    rows
}

/// A directory that goes with its end.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn new(base: &Path, name: &str) -> Scratch {
        let dir = base.join(format!("wemixvisor-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Scratch { dir: dir.canonicalize().unwrap() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn skipped(what: &str, why: &str) -> Row {
    Row { what: what.to_owned(), ours: format!("skipped: {why}"), peer: "-".to_owned(), ratio: None, target: None }
}

// ---- trees --------------------------------------------------------------------------------------

/// What the immutable files of a tree hold.
#[derive(Clone, Copy)]
enum Kind {
    /// So many bytes that no archiver can make smaller.
    Written(u64),
    /// So many bytes, none of them written.
    Sparse(u64),
}

/// Makes a data directory as geth's is: a key-value store of many files that never change again beside some that do.
fn fill(data: &Path, files: u64, kind: Kind) {
    let store = data.join("geth/chaindata");
    fs::create_dir_all(&store).unwrap();
    for number in 0..files {
        table(&store, number, kind);
    }
    for (name, length) in [("CURRENT", 16), ("MANIFEST-000004", 2 << 10), ("LOG", 200 << 10), ("000005.log", 1 << 20)] {
        fs::write(store.join(name), noise(length)).unwrap();
    }
    sync(data);
}

/// One file of the key-value store, on disk.
fn table(store: &Path, number: u64, kind: Kind) {
    let mut file = File::create(store.join(format!("{number:06}.ldb"))).unwrap();
    match kind {
        Kind::Written(length) => file.write_all(&noise(length)).unwrap(),
        Kind::Sparse(length) => file.set_len(length).unwrap(),
    }
}

/// Bytes that are hard to compress, the same at each call.
fn noise(length: u64) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length.div_ceil(8) as usize).flatten().take(length as usize).collect()
}

/// Everything on that file system to its disk, so that nobody is charged for what another one wrote.
fn sync(dir: &Path) {
    rustix::fs::syncfs(File::open(dir).unwrap()).unwrap();
}

/// The sizes of all files below.
fn bytes(dir: &Path) -> u64 {
    sum(dir, &|meta| meta.len())
}

fn sum(dir: &Path, of: &dyn Fn(&fs::Metadata) -> u64) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { sum(&entry.path(), of) } else { of(&meta) }
        })
        .sum()
}

fn size(bytes: u64) -> String {
    if bytes >> 30 > 0 {
        format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

// ---- peers --------------------------------------------------------------------------------------

fn timed(command: &mut Command) -> Duration {
    let began = Instant::now();
    let end = command.stdin(Stdio::null()).status().unwrap();
    let took = began.elapsed();
    assert!(end.success(), "{command:?} ended with {end}");
    took
}

/// `tar czf` of the tree, beside it.
fn tar(data: &Path) -> Duration {
    let archive = data.with_extension("tar.gz");
    let took = timed(Command::new("tar").arg("-C").arg(data).arg("-czf").arg(&archive).arg("."));
    fs::remove_file(archive).unwrap();
    sync(data);
    took
}

/// `cp -a` of the tree, beside it: until it returns, which is before the copy is on disk.
fn cp(data: &Path, options: &[&str]) -> Duration {
    let copy = data.with_extension("copy");
    let took = timed(Command::new("cp").arg("-a").args(options).arg(data).arg(&copy));
    fs::remove_dir_all(copy).unwrap();
    sync(data);
    took
}

// ---- upgrades -----------------------------------------------------------------------------------

/// A supervised node with data of this size, and what its upgrades take.
struct Node {
    place: Place,
    upgrades: usize,
}

/// The time without a node, and the part of it that the backup took.
struct Downtime {
    all: Duration,
    backup: Duration,
}

impl Node {
    /// Starts it on this data.
    fn start(mut place: Place, data: &Path, settings: &[&str]) -> Node {
        let quick = ["trial_time=100ms", "trial_blocks=1", "height_poll_interval=200ms", "backup_keep=9"];
        let mut words: Vec<&str> = quick.iter().chain(settings).flat_map(|setting| ["--set", *setting]).collect();
        words.extend(["run", "--datadir", data.to_str().unwrap(), "--period", "50ms"]);
        let log = File::create(place.dir.join("log")).unwrap();
        let mut command = place.command(&words);
        command.stderr(log);
        place.spawn(command);
        place.until_up();
        Node { place, upgrades: 0 }
    }

    /// The name of the next release, installed.
    fn next(&mut self) -> String {
        self.upgrades += 1;
        let name = format!("v{}", self.upgrades + 1);
        self.place.release(&name);
        name
    }

    fn ours(&self, args: &[&str]) {
        assert!(self.place.command(args).status().unwrap().success(), "{args:?}");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.dir.join("log")).unwrap()
    }

    /// Upgrades it to a release that is there.
    fn upgrade(&self, name: &str) -> Downtime {
        sync(&self.place.dir);
        self.ours(&["upgrade", "now", name]);
        let line = until("the upgrade has ended", || {
            let text = fs::read_to_string(self.place.home().join("wemixvisor/history.jsonl")).ok()?;
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["name"] == name)
        });
        assert_eq!(line["result"], "committed", "{line}");
        assert!(line["backup"].is_string(), "{line}");
        let time = |value: &Value| Duration::from_millis(value.as_u64().unwrap());
        Downtime { all: time(&line["downtime_ms"]), backup: time(&line["phases"]["backup"]) }
    }

    /// Upgrades it to the next release.
    fn next_upgrade(&mut self) -> Downtime {
        let name = self.next();
        self.upgrade(&name)
    }
}

/// What is in the middle of several upgrades of each of these nodes, which take turns: they meet the same machine.
fn upgrades(nodes: &mut [Node]) -> Vec<Downtime> {
    let mut times: Vec<Vec<Downtime>> = nodes.iter().map(|_| Vec::new()).collect();
    for _ in 0..UPGRADES {
        for (node, times) in nodes.iter_mut().zip(&mut times) {
            times.push(node.next_upgrade());
        }
    }
    let middle = |times: Vec<Downtime>| {
        let (all, backups) = times.into_iter().map(|time| (time.all, time.backup)).unzip();
        Downtime { all: median(all), backup: median(backups) }
    };
    times.into_iter().map(middle).collect()
}

fn row(what: impl Into<String>, ours: Duration, peer: &str, theirs: Duration, most: Option<(&str, f64)>) -> Row {
    Row {
        what: what.into(),
        ours: ms(ours),
        peer: format!("{peer} {}", ms(theirs)),
        ratio: ratio(ours, theirs),
        target: most.map(|(said, most)| (said.to_owned(), ours.as_secs_f64() <= most * theirs.as_secs_f64())),
    }
}

/// Snapshots: far below `tar czf`, and the same when the data grows.
fn snapshots(base: &Path, node: &Path, data: &Path, tar: Duration) -> Vec<Row> {
    let grown = Scratch::new(base, "grown");
    fill(&grown.dir, FILES, Kind::Sparse(10 * MIB));
    let start = |name: &str, data: &Path| Node::start(Place::new(base, name, node), data, &["backup_mode=snapshot"]);
    let times = upgrades(&mut [start("snapshot", data), start("snapshot-grown", &grown.dir)]);
    let (four, twenty) = (&times[0], &times[1]);
    let below = Some(("<= 1/200", 1.0 / 200.0));
    vec![
        row("snapshot of 4 GiB, downtime of the upgrade", four.all, "tar czf", tar, below),
        row("of that the backup", four.backup, "tar czf", tar, None),
        row("snapshot of 20 GiB in as many files, downtime", twenty.all, "4 GiB", four.all, Some(("<= 1.5", 1.5))),
        row("of that the backup", twenty.backup, "4 GiB", four.backup, Some(("<= 1.5", 1.5))),
    ]
}

/// Copies, most of which was made before the stop.
fn copied_ahead(base: &Path, node: &Path, data: &Path, cp: Duration) -> Vec<Row> {
    let mut node = Node::start(Place::new(base, "copied", node), data, &["backup_mode=copy"]);
    let name = node.next();
    // So far away that nothing but the first copying ahead happens, and near enough for it.
    node.ours(&["upgrade", "schedule", &name, "20000"]);
    until("it is copied ahead", || node.log().contains("copied ahead ").then_some(()));
    // What a compaction does: some files go, others come.
    let store = data.join("geth/chaindata");
    for number in 0..FILES / 50 {
        fs::remove_file(store.join(format!("{:06}.ldb", number * 50))).unwrap();
        table(&store, FILES + number, Kind::Written(2 * MIB));
    }
    let ahead = node.place.home().join("backups/.partial-ahead/data/geth/chaindata");
    let there = |number: u64| ahead.join(format!("{number:06}.ldb")).exists();
    assert!(there(1) && !there(FILES), "what came later is copied when no node runs");
    let time = node.upgrade(&name);
    let tenth = Some(("<= 1/10", 0.1));
    vec![
        row("copy of 4 GiB, 2 % changed since it was copied ahead, downtime", time.all, "cp -a", cp, tenth),
        row("of that the backup", time.backup, "cp -a", cp, None),
    ]
}

/// A tree with the freezer of a chain: the last files of each table, which must be copied, are long and have holes.
fn geth_like(base: &Path, node: &Path) -> Vec<Row> {
    const HEADS: u64 = 20;
    const LENGTH: u64 = 2 << 30;
    let tree = Scratch::new(base, "freezer");
    let data = tree.dir.join("data");
    fill(&data, 5000, Kind::Written(4 << 10));
    let freezer = data.join("geth/chaindata/ancient/chain");
    fs::create_dir_all(&freezer).unwrap();
    for number in 0..HEADS {
        use std::os::unix::fs::FileExt;
        let (table, file) = (number / 2, number % 2);
        let head = File::create(freezer.join(format!("table{table}.{file:04}.cdat"))).unwrap();
        head.set_len(LENGTH).unwrap();
        for at in [0, LENGTH / 2, LENGTH - MIB] {
            head.write_all_at(&noise(MIB), at).unwrap();
        }
        fs::write(freezer.join(format!("table{table}.cidx")), noise(6 << 10)).unwrap();
    }
    let cp = cp(&data, &[]);
    let mut nodes = [Node::start(Place::new(base, "freezer", node), &data, &["backup_mode=snapshot"])];
    let time = upgrades(&mut nodes).remove(0);
    let on_disk = |dir: &Path| sum(dir, &|meta| meta.blocks() * 512);
    let mut backups = fs::read_dir(nodes[0].place.home().join("backups")).unwrap().map(|entry| entry.unwrap().path());
    let backup = backups.find(|path| path.join("manifest.json").exists()).unwrap();
    let room = on_disk(&backup.join("data/geth/chaindata/ancient/chain"));
    let source = on_disk(&freezer);
    vec![
        row("snapshot of 20 freezer files of 2 GiB and 5000 *.ldb, downtime", time.all, "cp -a", cp, None),
        row("of that the backup", time.backup, "cp -a", cp, None),
        Row {
            what: "room that these freezer files take in the backup".to_owned(),
            ours: size(room),
            peer: format!("in the data {}", size(source)),
            ratio: Some(room as f64 / source as f64),
            target: Some(("<= 1.1".to_owned(), room as f64 <= 1.1 * source as f64)),
        },
    ]
}

// ---- reflinks -----------------------------------------------------------------------------------

/// A file system in a file, mounted.
struct Image {
    /// Its root.
    dir: PathBuf,
    _scratch: Scratch,
}

impl Image {
    /// None, and why, where it cannot be made or mounted.
    fn mount(base: &Path, kind: &str) -> Result<Image, String> {
        let scratch = Scratch::new(base, kind);
        let (file, dir) = (scratch.dir.join("image"), scratch.dir.join("root"));
        File::create(&file).unwrap().set_len(8 << 30).unwrap();
        fs::create_dir(&dir).unwrap();
        let quiet = |program: &str, words: &[&str]| {
            let output = Command::new(program).args(words).stdin(Stdio::null()).output();
            match output {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    Err(format!("{program} failed: {}", said.lines().next().unwrap_or_default()))
                }
                Err(e) => Err(format!("{program}: {e}")),
            }
        };
        quiet(&format!("mkfs.{kind}"), &["-q", file.to_str().unwrap()])?;
        quiet("mount", &["-o", "loop", file.to_str().unwrap(), dir.to_str().unwrap()])?;
        Ok(Image { dir, _scratch: scratch })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}

/// The same where the file system can share blocks.
fn reflinks(base: &Path, node: &Path, kind: &str, name: &str) -> Vec<Row> {
    let image = match Image::mount(base, kind) {
        Ok(image) => image,
        Err(why) => return vec![skipped(&format!("snapshot on {name}"), &why)],
    };
    let data = image.dir.join("data");
    fill(&data, FILES / 4, Kind::Written(2 * MIB));
    let (plain, reflink) = (cp(&data, &["--reflink=never"]), cp(&data, &["--reflink=always"]));
    let node = Node::start(Place::new(&image.dir, kind, node), &data, &["backup_mode=snapshot"]);
    let time = upgrades(&mut [node]).remove(0);
    vec![
        row(format!("snapshot of 1 GiB on {name}, downtime"), time.all, "cp -a --reflink=never", plain, None),
        row("of that the backup".to_owned(), time.backup, "cp -a --reflink=always", reflink, None),
    ]
}

// ---- memory -------------------------------------------------------------------------------------

/// What `backup create` needs of memory for a million files.
fn memory(base: &Path, node: &Path) -> Row {
    let place = Place::new(base, "many", node);
    let data = place.dir.join("data");
    for number in 0..MANY {
        let dir = data.join(format!("geth/chaindata/{:03}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        File::create(dir.join(format!("{number:06}.ldb"))).unwrap();
    }
    sync(&data);
    let setting = format!("data_dir={}", data.display());
    let mut child = place.command(&["--set", &setting, "backup", "create"]).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // The kernel keeps the peak; it is gone with the process, so the last look counts.
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success());
    Row {
        what: format!("memory of a backup of {MANY} files"),
        ours: format!("{peak} KiB"),
        peer: "-".to_owned(),
        ratio: None,
        target: Some((format!("< {MEMORY_MAX} KiB"), peak < MEMORY_MAX)),
    }
}
