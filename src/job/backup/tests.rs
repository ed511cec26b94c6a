//! Backups and restores in directories of their own, and the states that a killed restore leaves.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::*;
use crate::manifest::{Entry, Reader, decode};

/// A home with a node's data in a directory that goes with it.
struct World {
    root: PathBuf,
    home: Home,
    spec: Spec,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left in {}", self.root.display());
        } else {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

impl World {
    fn new() -> World {
        World::in_dir(&std::env::temp_dir())
    }

    fn in_dir(dir: &Path) -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = dir.join(format!("wemixvisor-backup-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("home/wemixvisor")).unwrap();
        let home = Home::new(root.join("home"), "geth");
        let data_dir = home.data();
        let spec = Spec { data_dir, backup_dir: root.join("home/backups"), mode: BackupMode::Auto, ancient: None };
        World { root, home, spec }
    }

    /// A node's data as it lies there for long.
    fn with_node(self) -> World {
        for (path, size) in [
            ("geth/nodekey", 64),
            ("geth/LOCK", 0),
            ("geth/nodes/000001.ldb", 10),
            ("geth/chaindata/000001.ldb", 3_000),
            ("geth/chaindata/000002.sst", 2_000),
            ("geth/chaindata/CURRENT", 16),
            ("geth/chaindata/LOCK", 0),
            ("geth/chaindata/ancient/chain/FLOCK", 0),
            ("geth/chaindata/ancient/chain/bodies.0000.cdat", 4_000),
            ("geth/chaindata/ancient/chain/bodies.0001.cdat", 4_001),
            ("geth/chaindata/ancient/chain/bodies.0002.cdat", 4_002),
            ("geth/chaindata/ancient/chain/bodies.cidx", 30),
            ("geth/chaindata/ancient/chain/hashes.0000.rdat", 90),
            ("keystore/key", 491),
        ] {
            self.put(path, &vec![b'1'; size]);
        }
        self
    }

    fn data(&self, path: &str) -> PathBuf {
        self.spec.data_dir.join(path)
    }

    /// Writes a file of the node, an hour ago.
    fn put(&self, path: &str, content: &[u8]) {
        let path = self.data(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        fs::write(&path, content).unwrap();
        age(&path);
    }

    fn create(&self) -> String {
        self.create_for(None)
    }

    fn create_for(&self, id: Option<&str>) -> String {
        let about = About {
            id: id.map(str::to_owned),
            upgrade: "v2".to_owned(),
            head: Some(99),
            release: Some(Release::Genesis),
        };
        create(&self.home, &self.spec, &about, &mut |_| ()).unwrap()
    }

    fn backup(&self, name: &str) -> PathBuf {
        self.spec.backup_dir.join(name)
    }

    fn manifest(&self, name: &str) -> Vec<Entry> {
        entries(&self.backup(name))
    }

    fn how(&self, name: &str, path: &str) -> Option<How> {
        self.manifest(name).into_iter().find(|entry| entry.path == path).map(|entry| entry.how)
    }

    fn names(&self) -> Vec<String> {
        listed(&self.spec.backup_dir)
    }
}

fn listed(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        place::names(dir).unwrap().into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn age(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

fn entries(backup: &Path) -> Vec<Entry> {
    let file = std::io::BufReader::new(File::open(backup.join("manifest.json")).unwrap());
    let mut reader = Reader::new(file).unwrap();
    let mut found = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        found.push(entry);
    }
    found
}

/// Everything below a directory: path, what it is, mode, time and content.
fn photograph(dir: &Path) -> Vec<String> {
    fn look(dir: &Path, root: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let shown = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
            let what = if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_file() {
                let content = fs::read(&path).unwrap();
                format!(
                    "{} bytes {:x}",
                    content.len(),
                    content.iter().fold(0_u64, |sum, b| sum.wrapping_mul(31) + u64::from(*b))
                )
            } else {
                "other".to_owned()
            };
            out.push(format!("{shown} {:o} {}.{:09} {what}", meta.mode(), meta.mtime(), meta.mtime_nsec()));
            if meta.is_dir() {
                look(&path, root, out);
            }
        }
    }
    let mut out = Vec::new();
    look(dir, dir, &mut out);
    out.sort();
    out
}

/// The same without what no backup holds.
fn of_backup(data: &Path) -> Vec<String> {
    let left_out =
        ["geth/LOCK ", "geth/chaindata/LOCK ", "geth/chaindata/ancient/chain/FLOCK ", "geth/nodes", "lost+found"];
    let mut all = photograph(data);
    all.retain(|line| !left_out.iter().any(|left| line.starts_with(left)) && !line.contains(".wemixvisor-"));
    all
}

#[test]
fn a_snapshot_links_what_never_changes_and_copies_the_rest() {
    let world = World::new().with_node();
    let name = world.create();
    let backup = world.backup(&name);
    assert_eq!(photograph(&backup.join("data")), of_backup(&world.spec.data_dir));
    if world.how(&name, "geth/nodekey") == Some(How::Reflink) {
        return;
    }
    let freezer = "geth/chaindata/ancient/chain/";
    for (path, how) in [
        ("geth/chaindata/000001.ldb", Some(How::Link)),
        ("geth/chaindata/000002.sst", Some(How::Link)),
        ("geth/chaindata/CURRENT", Some(How::Copy)),
        (&format!("{freezer}bodies.0000.cdat"), Some(How::Link)),
        (&format!("{freezer}bodies.0001.cdat"), Some(How::Copy)),
        (&format!("{freezer}bodies.0002.cdat"), Some(How::Copy)),
        (&format!("{freezer}bodies.cidx"), Some(How::Copy)),
        (&format!("{freezer}hashes.0000.rdat"), Some(How::Copy)),
        ("geth/LOCK", None),
        ("geth/nodes/000001.ldb", None),
    ] {
        assert_eq!(world.how(&name, path), how, "{path}");
        let inode = |dir: &Path| fs::metadata(dir.join(path)).unwrap().ino();
        if let Some(how) = how {
            assert_eq!(inode(&backup.join("data")) == inode(&world.spec.data_dir), how == How::Link, "{path}");
        }
    }
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(world.names(), [name]);
}

#[test]
fn a_backup_keeps_modes_times_links_holes_and_odd_names() {
    let world = World::new().with_node();
    world.put("geth/\u{fc} \"\n", b"odd");
    let raw = world.spec.data_dir.join(std::ffi::OsStr::from_bytes(b"geth/\xff%"));
    fs::write(&raw, "raw").unwrap();
    symlink("/nowhere", world.data("geth/dangling")).unwrap();
    fs::set_permissions(world.data("geth/nodekey"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::create_dir(world.data("empty")).unwrap();
    fs::set_permissions(world.data("empty"), fs::Permissions::from_mode(0o2511)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.data("geth.ipc")).unwrap();
    let holes = File::create(world.data("geth/holes")).unwrap();
    holes.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"in the middle", 30 << 20).unwrap();
    let name = world.create();
    let copy = world.backup(&name).join("data");
    let meta = fs::metadata(copy.join("geth/holes")).unwrap();
    assert_eq!(meta.len(), 64 << 20);
    assert!(meta.blocks() < 100, "{} blocks", meta.blocks());
    let mut expected = of_backup(&world.spec.data_dir);
    expected.retain(|line| !line.starts_with("geth.ipc"));
    assert_eq!(photograph(&copy), expected);
    for entry in world.manifest(&name) {
        let path = decode(&entry.path).unwrap();
        let meta = copy.join(std::ffi::OsStr::from_bytes(&path)).symlink_metadata().unwrap();
        assert_eq!(meta.len(), entry.size, "{}", entry.path);
        assert_eq!(meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), entry.mtime_ns, "{}", entry.path);
    }
}

#[test]
fn a_second_backup_of_the_same_second_gets_another_name_and_one_of_the_same_upgrade_is_adopted() {
    let world = World::new().with_node();
    let names: Vec<String> = (0..3).map(|_| world.create()).collect();
    assert_eq!(world.names().len(), 3, "{names:?}");
    let first = world.create_for(Some("v2-1"));
    assert_eq!(world.create_for(Some("v2-1")), first);
    assert_ne!(world.create_for(Some("v2-2")), first);
}

#[test]
fn what_was_copied_ahead_is_not_copied_again() {
    let mut world = World::new().with_node();
    world.spec.mode = BackupMode::Copy;
    let before = forecast(&world.home, &world.spec).unwrap();
    assert_eq!((before.mode, before.how, before.files), (Mode::Copy, How::Copy, 10));
    let copied = copy_ahead(&world.home, &world.spec, &mut |_| ()).unwrap();
    assert_eq!(copied, 3_000 + 2_000 + 4_000 + 4_001);
    let after = forecast(&world.home, &world.spec).unwrap();
    assert_eq!(after.to_copy, after.down_copy);
    assert_eq!(after.down_copy, before.down_copy);
    assert_eq!(copy_ahead(&world.home, &world.spec, &mut |_| ()).unwrap(), 0);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let ahead = world.spec.backup_dir.join(".partial-ahead/data/geth/chaindata");
    let kept = inode(&ahead.join("000001.ldb"));
    world.put("geth/chaindata/000002.sst", &[b'2'; 2_001]);
    fs::remove_file(world.data("geth/chaindata/ancient/chain/bodies.0001.cdat")).unwrap();
    let name = world.create();
    let copy = world.backup(&name).join("data");
    assert_eq!(inode(&copy.join("geth/chaindata/000001.ldb")), kept);
    assert_eq!(photograph(&copy), of_backup(&world.spec.data_dir));
    assert_eq!(world.names(), [name]);
}

#[test]
fn what_changed_a_moment_ago_is_left_for_later() {
    let mut world = World::new().with_node();
    world.spec.mode = BackupMode::Copy;
    fs::write(world.data("geth/chaindata/000003.ldb"), "being written").unwrap();
    copy_ahead(&world.home, &world.spec, &mut |_| ()).unwrap();
    assert!(!world.spec.backup_dir.join(".partial-ahead/data/geth/chaindata/000003.ldb").exists());
    let name = world.create();
    assert_eq!(photograph(&world.backup(&name).join("data")), of_backup(&world.spec.data_dir));
}

#[test]
fn leftovers_are_removed_when_nobody_builds_on_them_and_only_then() {
    let world = World::new().with_node();
    world.create();
    let outside = world.root.join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "1").unwrap();
    let old = world.spec.backup_dir.join(".partial-old");
    fs::create_dir_all(old.join("data/deep")).unwrap();
    symlink(&outside, old.join("data/link")).unwrap();
    fs::set_permissions(old.join("data/deep"), fs::Permissions::from_mode(0o000)).unwrap();
    let owner = world.home.owner().unwrap();
    let busy = place::Partial::open(&world.spec.backup_dir, ".partial-busy", owner).unwrap();
    world.create();
    assert!(!old.exists());
    assert!(outside.join("precious").exists());
    assert!(busy.path.exists());
    let again = place::Partial::open(&world.spec.backup_dir, ".partial-busy", owner);
    assert!(again.err().unwrap().message.contains("another process"));
}

#[test]
fn nothing_to_back_up_is_an_error_that_says_what_to_do() {
    let world = World::new();
    let refused = |world: &World| forecast(&world.home, &world.spec).unwrap_err().message;
    assert!(refused(&world).contains("No such file"), "{}", refused(&world));
    fs::create_dir_all(world.data("upgrades/100")).unwrap();
    fs::write(world.data("upgrades/100/upgrade-info.json"), "{}").unwrap();
    assert!(refused(&world).contains("UNSAFE_SKIP_BACKUP"), "{}", refused(&world));
    let mut world = world.with_node();
    assert!(forecast(&world.home, &world.spec).is_ok());
    world.spec.ancient = Some(world.root.join("ancient"));
    assert!(refused(&world).contains("UNSAFE_SKIP_BACKUP"), "{}", refused(&world));
    world.spec.ancient = Some(world.data("geth/chaindata/ancient"));
    assert!(forecast(&world.home, &world.spec).is_ok());
    for (relative, inside) in
        [("chaindata/ancient", true), ("../ancient", true), ("../../ancient", false), ("a/../../../data/b", false)]
    {
        world.spec.ancient = Some(relative.into());
        assert_eq!(forecast(&world.home, &world.spec).is_ok(), inside, "{relative}");
    }
}

#[test]
fn our_own_folders_in_the_data_are_left_out() {
    let mut world = World::new();
    world.spec.data_dir = world.root.join("home");
    world.spec.backup_dir = world.root.join("home/elsewhere");
    let world = world.with_node();
    fs::write(world.root.join("home/wemixvisor/journal.json"), "{}").unwrap();
    fs::create_dir_all(world.root.join("home/logs")).unwrap();
    let first = world.create();
    let name = world.create();
    assert_ne!(first, name);
    assert_eq!(listed(&world.backup(&name).join("data")), ["geth", "keystore"]);
}

/// What the node does after the backup: some of everything.
fn go_on(world: &World) {
    world.put("geth/chaindata/CURRENT", b"MANIFEST-000009\n");
    world.put("geth/chaindata/000009.ldb", b"newer");
    fs::remove_file(world.data("geth/chaindata/000001.ldb")).unwrap();
    world.put("only-now/file", b"1");
    fs::remove_dir_all(world.data("keystore")).unwrap();
}

fn put_back(world: &World, name: &str, id: &str) -> String {
    restore(&world.home, &world.spec, name, id, &mut |_| ()).unwrap()
}

/// Builds the new tree and the intent, and exchanges nothing.
fn prepare(world: &World, name: &str, id: &str) {
    let site = place::Site::find(&world.home, &world.spec).unwrap();
    restore::prepare(&world.home, &site, &world.backup(name), name, id, &mut |_| ()).unwrap();
}

/// The data are the backup's, what they replaced is a complete backup, nothing unfinished is left.
fn restored(world: &World, name: &str, before: &[String]) {
    let displaced: Vec<String> = world.names().into_iter().filter(|name| name.starts_with("before-restore")).collect();
    assert_eq!(world.names().len(), 2, "{:?}", world.names());
    let [displaced] = displaced.as_slice() else { panic!("{displaced:?}") };
    let kept = ["upgrades", "upgrade-info.json", "etcd", ".wemixvisor-"];
    let strip = |mut lines: Vec<String>| {
        lines.retain(|line| !kept.iter().any(|kept| line.starts_with(kept)));
        lines
    };
    assert_eq!(strip(of_backup(&world.spec.data_dir)), strip(photograph(&world.backup(name).join("data"))));
    assert_eq!(photograph(&world.backup(displaced).join("data")), strip(before.to_vec()));
    let listed: std::collections::BTreeSet<String> =
        world.manifest(displaced).into_iter().map(|entry| entry.path).collect();
    assert!(listed.contains("only-now/file"), "{listed:?}");
    let header = place::header(&world.backup(displaced)).unwrap();
    assert_eq!((header.upgrade.as_str(), header.id, header.restore.as_deref()), ("before-restore", None, Some("r-1")));
    assert!(!restore_pending(&world.home));
    assert!(!world.data("geth/LOCK").exists());
}

/// A world whose data directory is exchanged as a whole, and one where it is name by name.
fn both() -> [World; 2] {
    let mut whole = World::new();
    whole.spec.data_dir = whole.root.join("chain");
    let entries = World::new();
    fs::create_dir_all(entries.data("upgrades/7")).unwrap();
    fs::write(entries.data("upgrades/7/upgrade-info.json"), "{}").unwrap();
    [whole.with_node(), entries.with_node()]
}

#[test]
fn a_restore_puts_the_backup_in_the_data_s_place_and_keeps_what_was_there() {
    for world in both() {
        let name = world.create();
        go_on(&world);
        let before = photograph(&world.spec.data_dir);
        let displaced = put_back(&world, &name, "r-1");
        restored(&world, &name, &before);
        let inode = |dir: &Path, file: &str| fs::metadata(dir.join("geth/chaindata").join(file)).unwrap().ino();
        let backup = world.backup(&name).join("data");
        let linked = world.how(&name, "geth/chaindata/000001.ldb") == Some(How::Link);
        for (file, shared) in [("000001.ldb", linked), ("CURRENT", false)] {
            assert_eq!(inode(&world.spec.data_dir, file) == inode(&backup, file), shared, "{file}");
        }
        assert_eq!(put_back(&world, &name, "r-1"), displaced, "the same restore is not done twice");
        restored(&world, &name, &before);
        put_back(&world, &displaced, "r-2");
        assert!(world.data("only-now/file").exists() && !world.data("keystore").exists());
    }
}

#[test]
fn a_restore_leaves_plans_and_etcd_as_they_are_now() {
    let world = World::new().with_node();
    world.put("etcd/member/wal", b"old");
    world.put("upgrades/5/upgrade-info.json", b"withdrawn since");
    world.put("upgrade-info.json", b"old");
    let name = world.create();
    go_on(&world);
    world.put("etcd/member/wal", b"new");
    fs::remove_dir_all(world.data("upgrades/5")).unwrap();
    world.put("upgrades/9/upgrade-info.json", b"new");
    fs::remove_file(world.data("upgrade-info.json")).unwrap();
    let before = photograph(&world.spec.data_dir);
    put_back(&world, &name, "r-1");
    restored(&world, &name, &before);
    assert_eq!(fs::read(world.data("etcd/member/wal")).unwrap(), b"new");
    assert_eq!(listed(&world.data("upgrades")), ["9"]);
    assert!(!world.data("upgrade-info.json").exists());
}

#[test]
fn a_backup_whose_linked_files_were_written_to_is_not_restored() {
    let world = World::new().with_node();
    let name = world.create();
    if world.how(&name, "geth/chaindata/000001.ldb") != Some(How::Link) {
        return;
    }
    fs::write(world.data("geth/chaindata/000001.ldb"), vec![b'x'; 3_000]).unwrap();
    let before = photograph(&world.root);
    let error = restore(&world.home, &world.spec, &name, "r-1", &mut |_| ()).unwrap_err().message;
    assert!(error.contains("geth/chaindata/000001.ldb was changed"), "{error}");
    assert_eq!(photograph(&world.root), before);
    assert!(restore(&world.home, &world.spec, "v3-20260101-000000", "r-1", &mut |_| ()).is_err());
}

#[test]
fn lost_data_are_restored_too() {
    for world in both() {
        let name = world.create();
        fs::remove_dir_all(&world.spec.data_dir).unwrap();
        restore_lost(&world.home, &world.spec, &name, "r-1", &mut |_| ()).unwrap();
        assert!(world.data("geth/nodekey").exists());
        assert!(!restore_pending(&world.home));
    }
}

#[test]
fn a_data_directory_that_is_a_link_stays_one() {
    let mut world = World::new();
    world.spec.data_dir = world.root.join("chain");
    let mut world = world.with_node();
    let link = world.root.join("link");
    symlink("chain", &link).unwrap();
    world.spec.data_dir = link.clone();
    let name = world.create();
    go_on(&world);
    let before = photograph(&world.root.join("chain"));
    put_back(&world, &name, "r-1");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("chain"));
    world.spec.data_dir = world.root.join("chain");
    restored(&world, &name, &before);
}

/// What a killed restore may leave: each step is done to `data` and the unfinished backup.
type Step = fn(&Path, &Path);

fn exchange(one: &Path, other: &Path) {
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, one, cwd, other, rustix::fs::RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn a_restore_that_was_killed_anywhere_is_finished_by_the_next_try() {
    let whole: &[Step] = &[|_, _| (), |data, partial| exchange(data, &partial.join("data"))];
    let entries: &[Step] = &[
        |_, _| (),
        |data, partial| exchange(&data.join("geth"), &partial.join("data/geth")),
        |data, partial| fs::rename(partial.join("data/keystore"), data.join("keystore")).unwrap(),
        |data, partial| {
            exchange(&data.join("geth"), &partial.join("data/geth"));
            fs::rename(partial.join("data/keystore"), data.join("keystore")).unwrap();
            fs::rename(data.join("only-now"), partial.join("data/only-now")).unwrap();
        },
        // The two steps of a file system that cannot exchange.
        |data, partial| {
            fs::create_dir(partial.join("old")).unwrap();
            fs::rename(data.join("geth"), partial.join("old/geth")).unwrap();
        },
        |data, partial| {
            fs::create_dir(partial.join("old")).unwrap();
            fs::rename(data.join("geth"), partial.join("old/geth")).unwrap();
            fs::rename(partial.join("data/geth"), data.join("geth")).unwrap();
        },
        |data, partial| {
            exchange(&data.join("geth"), &partial.join("data/geth"));
            fs::write(partial.join("manifest.json"), "{\"cut").unwrap();
        },
    ];
    for (which, steps) in [whole, entries].into_iter().enumerate() {
        for (number, step) in steps.iter().enumerate() {
            for again in [false, true] {
                let [first, second] = both();
                let world = if which == 0 { first } else { second };
                let name = world.create();
                go_on(&world);
                let before = photograph(&world.spec.data_dir);
                prepare(&world, &name, "r-1");
                assert!(restore_pending(&world.home));
                assert_eq!(photograph(&world.spec.data_dir), before);
                let partial = world.spec.backup_dir.join(".partial-before-restore-r-1");
                let intent = fs::read_to_string(world.home.restore()).unwrap();
                assert!(intent.contains(["whole", "entries"][which]), "{intent}");
                step(&world.spec.data_dir, &partial);
                let refused = create(
                    &world.home,
                    &world.spec,
                    &About { id: None, upgrade: "x".into(), head: None, release: None },
                    &mut |_| (),
                );
                assert!(refused.unwrap_err().message.contains("must be finished"), "step {number}");
                if again {
                    put_back(&world, &name, "r-1");
                } else {
                    finish_restore(&world.home).unwrap();
                }
                restored(&world, &name, &before);
                finish_restore(&world.home).unwrap();
                // Killed after the last rename, before the intent was removed.
                fs::write(world.home.restore(), &intent).unwrap();
                finish_restore(&world.home).unwrap();
                restored(&world, &name, &before);
            }
        }
    }
}

/// A world whose data directory is a file system of its own, when this machine lets us mount one.
struct Mounted(World);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0.spec.data_dir).status();
    }
}

impl std::ops::Deref for Mounted {
    type Target = World;
    fn deref(&self) -> &World {
        &self.0
    }
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> bool {
    std::process::Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

fn mounted(kind: &str) -> Option<Mounted> {
    let world = World::new();
    fs::create_dir_all(&world.spec.data_dir).unwrap();
    let at = world.spec.data_dir.as_os_str();
    let done = if kind == "tmpfs" {
        run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), "size=64m".as_ref(), "none".as_ref(), at])
    } else {
        let image = world.root.join("image");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        run(&format!("mkfs.{kind}"), &[image.as_os_str()])
            && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at])
    };
    if !done {
        eprintln!("skipped: {kind} cannot be mounted here");
        return None;
    }
    Some(Mounted(World { root: world.root.clone(), home: world.home.clone(), spec: world.spec.clone() }.with_node()))
        .inspect(|_| std::mem::forget(world))
}

#[test]
fn data_on_a_file_system_of_its_own_keep_their_backups_there() {
    for (kind, how) in [("tmpfs", How::Link), ("ext4", How::Link), ("xfs", How::Reflink), ("btrfs", How::Reflink)] {
        let Some(mut world) = mounted(kind) else { continue };
        let forecast = forecast(&world.home, &world.spec).unwrap();
        let inside = world.data(".wemixvisor-backups");
        assert_eq!((forecast.place, forecast.how), (inside.clone(), how), "{kind}");
        world.0.spec.mode = BackupMode::Snapshot;
        let name = world.create();
        assert_eq!(listed(&inside), [name.as_str()]);
        let copied = entries(&inside.join(&name)).iter().any(|entry| entry.how == How::Copy);
        assert_eq!(copied, how == How::Link, "{kind}");
        assert_eq!(photograph(&inside.join(&name).join("data")), of_backup(&world.spec.data_dir));
        // An exchange changes the time of a directory on XFS.
        let data = || {
            let mut all = of_backup(&world.spec.data_dir);
            all.retain(|line| !line.starts_with("geth 4") && !line.starts_with("keystore 4"));
            all
        };
        let old = data();
        go_on(&world);
        let displaced = put_back(&world, &name, "r-1");
        assert_eq!(data(), old, "{kind}");
        assert!(inside.join(&displaced).join("data/only-now/file").exists());
        assert_eq!(listed(&inside).len(), 2);
        // A backup that lies elsewhere is put back by copies.
        let spec = Spec { mode: BackupMode::Copy, ..world.spec.clone() };
        let about = About { id: None, upgrade: "manual".into(), head: None, release: None };
        let copy = create(&world.home, &spec, &about, &mut |_| ()).unwrap();
        assert!(world.backup(&copy).exists());
        go_on(&world);
        put_back(&world, &copy, "r-2");
        assert_eq!(data(), old, "{kind}");
    }
}

#[test]
fn a_backup_without_room_says_what_it_needs_and_gives_back_what_it_took() {
    let Some(mut world) = mounted("tmpfs") else { return };
    let file = File::create(world.data("geth/wal.log")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 40 << 20], 0).unwrap();
    let error = forecast(&world.home, &world.spec).unwrap_err().message;
    assert!(error.contains("needs 56MiB") && error.contains("make room"), "{error}");
    let error = create(
        &world.home,
        &world.spec,
        &About { id: None, upgrade: "x".into(), head: None, release: None },
        &mut |_| (),
    );
    assert!(error.unwrap_err().message.contains("wal.log"));
    assert_eq!(listed(&world.data(".wemixvisor-backups")), [""; 0]);
    drop(file);
    // Holes need none.
    let sparse = File::create(world.data("geth/wal.log")).unwrap();
    sparse.set_len(10 << 30).unwrap();
    let found = forecast(&world.home, &world.spec).unwrap();
    assert!(found.to_copy < 1 << 20 && found.bytes > 10 << 30, "{found:?}");
    world.0.spec.mode = BackupMode::Snapshot;
    world.create();
}

#[test]
fn a_database_behind_a_link_that_leads_out_is_no_backup() {
    let world = World::new().with_node();
    let elsewhere = world.root.join("elsewhere");
    for (path, wanted) in [
        ("geth/chaindata", "geth/chaindata leads to"),
        ("geth/chaindata/ancient", "geth/chaindata/ancient leads to"),
        ("geth", "geth leads to"),
    ] {
        fs::rename(world.data(path), &elsewhere).unwrap();
        symlink(&elsewhere, world.data(path)).unwrap();
        let refused = forecast(&world.home, &world.spec).unwrap_err();
        assert!(refused.message.contains(wanted) && refused.message.contains("no backup covers"), "{refused}");
        fs::remove_file(world.data(path)).unwrap();
        fs::rename(&elsewhere, world.data(path)).unwrap();
    }
    // What holds no database, and what is in the data anyway, may be linked to.
    fs::rename(world.data("keystore"), &elsewhere).unwrap();
    symlink(&elsewhere, world.data("keystore")).unwrap();
    symlink("geth/chaindata", world.data("shortcut")).unwrap();
    symlink("/nowhere", world.data("dangling")).unwrap();
    forecast(&world.home, &world.spec).unwrap();
    assert!(world.names().is_empty(), "{:?}", world.names());
}

#[test]
fn a_file_system_mounted_inside_the_data_is_not_torn_out() {
    let world = World::new().with_node();
    let inner = world.data("geth/chaindata/ancient");
    let name = world.create();
    let before = photograph(&world.spec.data_dir);
    if !run("mount", &["--bind".as_ref(), inner.as_os_str(), inner.as_os_str()]) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let told = forecast(&world.home, &world.spec);
    let refused = restore(&world.home, &world.spec, &name, "r-1", &mut |_| ());
    let again = create(
        &world.home,
        &world.spec,
        &About { id: None, upgrade: "x".into(), head: None, release: None },
        &mut |_| (),
    );
    assert!(run("umount", &[inner.as_os_str()]));
    assert!(refused.unwrap_err().message.contains("file system of its own"));
    assert_eq!(told.unwrap().fixed, Some(inner.canonicalize().unwrap()), "it is known before");
    assert_eq!(forecast(&world.home, &world.spec).unwrap().fixed, None);
    assert_eq!(photograph(&world.spec.data_dir), before);
    assert!(!restore_pending(&world.home));
    assert_eq!(photograph(&world.backup(&again.unwrap()).join("data")), of_backup(&world.spec.data_dir));
    assert_eq!(world.names().len(), 2);
}

#[test]
fn what_was_replaced_and_cannot_be_listed_is_kept_all_the_same() {
    for world in both() {
        let name = world.create();
        let deep = format!("deep/{}", "d/".repeat(120));
        fs::create_dir_all(world.data(&deep)).unwrap();
        let data = |dir: &Path| {
            let mut all = of_backup(dir);
            all.retain(|line| !line.starts_with("upgrades"));
            all
        };
        restore(&world.home, &world.spec, &name, "r-1", &mut |_| ()).unwrap_err();
        assert!(restore_pending(&world.home), "once more");
        finish_restore(&world.home).unwrap();
        let displaced = list::find(&world.spec).unwrap().into_iter().map(|found| found.name);
        let displaced = displaced.into_iter().find(|name| name.starts_with("before-restore-")).unwrap();
        assert!(!restore_pending(&world.home));
        assert_eq!(data(&world.spec.data_dir), data(&world.backup(&name).join("data")));
        assert!(world.backup(&displaced).join("data").join(&deep).is_dir());
        let found = list::find(&world.spec).unwrap();
        let found = found.iter().find(|found| found.name == displaced).unwrap();
        assert!(matches!(found.state, list::State::Broken(_)), "{found:?}");
        assert!(!found.dir.join("manifest.json").exists());
    }
}

#[test]
fn an_intent_that_was_tampered_with_moves_nothing() {
    type Change = fn(&World, String) -> String;
    let changes: &[(Change, &str)] = &[
        (|_, text| text.replace("\"displaced\":\"before", "\"displaced\":\"../../before"), "is no name of a backup"),
        (|_, text| text.replace("\"displaced\":\"before", "\"displaced\":\".before"), "is no name of a backup"),
        (
            |world, text| {
                fs::rename(world.backup(".partial-before-restore-r-1"), world.backup("v1-20250101-000000")).unwrap();
                text.replace(".partial-before-restore-r-1", "v1-20250101-000000")
            },
            "no unfinished backup of a restore",
        ),
        (
            |_, text| text.replace(".partial-before-restore-r-1", ".partial-before-restore-r-1/.."),
            "no unfinished backup of a restore",
        ),
    ];
    for (change, why) in changes {
        let [world, _] = both();
        let name = world.create();
        go_on(&world);
        prepare(&world, &name, "r-1");
        let text = change(&world, fs::read_to_string(world.home.restore()).unwrap());
        fs::write(world.home.restore(), text).unwrap();
        let before = photograph(&world.root);
        let error = finish_restore(&world.home).unwrap_err().message;
        assert!(error.contains(why), "{error}");
        assert_eq!(photograph(&world.root), before);
    }
}

#[test]
fn root_exchanges_nothing_that_is_not_the_home_s_owner_s() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (at, uid, done) in [("chain", 4243, false), ("chain", 0, true), ("chain", 4242, true)] {
        let [world, _] = both();
        std::os::unix::fs::chown(world.home.root(), Some(4242), Some(4242)).unwrap();
        let name = world.create();
        std::os::unix::fs::chown(world.root.join(at), Some(uid), Some(uid)).unwrap();
        let before = photograph(&world.spec.data_dir);
        let tried = restore(&world.home, &world.spec, &name, "r-1", &mut |_| ());
        assert_eq!(tried.is_ok(), done, "{uid}: {tried:?}");
        if let Err(e) = tried {
            assert!(e.message.contains("belongs to user 4243"), "{e}");
            assert_eq!(photograph(&world.spec.data_dir), before);
            assert_eq!(world.names(), [name]);
            assert!(!restore_pending(&world.home));
        }
    }
}

#[test]
fn backups_may_lie_behind_a_link() {
    let world = World::new().with_node();
    let disk = world.root.join("disk");
    fs::create_dir(&disk).unwrap();
    symlink("../disk", &world.spec.backup_dir).unwrap();
    let name = world.create();
    assert_eq!(listed(&disk), [name.as_str()]);
    go_on(&world);
    put_back(&world, &name, "r-1");
    assert!(world.data("keystore/key").exists());
    assert_eq!(list::find(&world.spec).unwrap().len(), 2);
}

#[test]
fn an_automatic_restore_does_not_fill_a_directory_where_nothing_is_mounted() {
    let restored = |world: &World, name: &str| restore(&world.home, &world.spec, name, "r-1", &mut |_| ());
    for world in both() {
        let name = world.create();
        for leftover in [None, Some(".wemixvisor-trial-1"), Some("lost+found")] {
            fs::remove_dir_all(&world.spec.data_dir).unwrap_or_default();
            if let Some(leftover) = leftover {
                fs::create_dir_all(world.data(leftover)).unwrap();
            }
            let error = restored(&world, &name).unwrap_err().message;
            assert!(error.contains("mount"), "{error}");
            assert!(!restore_pending(&world.home) && !world.data("geth").exists());
        }
        fs::create_dir(world.data("geth")).unwrap();
        restored(&world, &name).unwrap();
        assert!(world.data("geth/nodekey").exists());
    }
}

#[test]
fn a_backup_that_does_not_know_its_head_leaves_the_last_known_one() {
    let world = World::new().with_node();
    let about = About { id: None, upgrade: "blind".into(), head: None, release: None };
    let blind = create(&world.home, &world.spec, &about, &mut |_| ()).unwrap();
    let known = world.create();
    let head = || crate::job::look::read_known(&world.home).head.map(|head| head.number);
    put_back(&world, &known, "r-1");
    assert_eq!(head(), Some(99));
    put_back(&world, &blind, "r-2");
    assert_eq!(head(), Some(99));
}

#[test]
fn names_cannot_speak_to_the_terminal() {
    let world = World::new().with_node();
    let name = world.create();
    fs::write(world.backup(&name).join("data/\x1b[2Jodd"), "").unwrap();
    let found = list::named(&world.spec, &name).unwrap();
    let verdict = verify::verify(&found, false, &mut |_| ()).unwrap();
    assert_eq!(verdict.faults, ["%1B[2Jodd: is not in the manifest"]);
    fs::create_dir_all(world.data(&format!("\x1b[2J/{}", "d/".repeat(120)))).unwrap();
    let error = forecast(&world.home, &world.spec).unwrap_err().message;
    assert!(error.contains("%1B[2J/d/") && !error.contains('\x1b'), "{error}");
}

#[test]
fn a_manifest_that_is_no_file_is_not_waited_for() {
    let world = World::new().with_node();
    let name = world.create();
    let manifest = world.backup(&name).join("manifest.json");
    let kept = world.root.join("kept");
    fs::rename(&manifest, &kept).unwrap();
    assert!(run("mkfifo", &[manifest.as_os_str()]));
    assert!(place::header(&world.backup(&name)).is_err());
    assert!(list::named(&world.spec, &name).is_err());
    fs::remove_file(&manifest).unwrap();
    symlink(&kept, &manifest).unwrap();
    assert!(place::header(&world.backup(&name)).is_err());
    assert!(list::named(&world.spec, &name).is_err());
}

#[test]
fn trial_files_that_a_kill_left_in_the_data_are_removed() {
    let world = World::new().with_node();
    let own = format!(".wemixvisor-trial-{}", std::process::id());
    // Nobody has such a number.
    for left in [&own, ".wemixvisor-trial-99999999", ".wemixvisor-trial-99999999-2"] {
        fs::write(world.data(left), "left").unwrap();
    }
    // Of somebody who lives: it may be in use.
    fs::write(world.data(".wemixvisor-trial-1"), "used").unwrap();
    fs::create_dir(world.data(".partial-mine")).unwrap();
    world.create();
    let mut left = listed(&world.spec.data_dir);
    left.retain(|name| name.starts_with('.'));
    assert_eq!(left, [".partial-mine", ".wemixvisor-trial-1"]);
}

#[test]
fn a_relative_data_directory_is_where_it_was_said() {
    let home = Home::new(PathBuf::from("/h"), "geth");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let spec = |line: &str| Spec::new(&Config::default(), &home, &words(line));
    assert_eq!(spec("--datadir d").data_dir, std::env::current_dir().unwrap().join("d"));
    assert_eq!(spec("--datadir /d").data_dir, Path::new("/d"));
}
