//! The backup commands: what they find, compare, pack, put back and remove; and what they leave alone.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Home, Said, kill, said, tmpfs, under, until, wemixvisor};

/// What a test wants to be in a backup: path, content.
type Content<'a> = &'a [(&'a str, &'a [u8])];

/// A backup as the format says, made without the program: `how` is link, copy or reflink; a link is to the data directory.
fn make(home: &Home, name: &str, created: &str, id: Option<&str>, how: &str, content: Content) -> PathBuf {
    let dir = home.root().join("backups").join(name);
    let live = home.root().join("data");
    let mut files = Vec::new();
    let mut bytes = 0;
    fs::create_dir_all(dir.join("data")).unwrap();
    for (path, text) in content {
        let (file, original) = (dir.join("data").join(path), live.join(path));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::create_dir_all(original.parent().unwrap()).unwrap();
        fs::write(&original, text).unwrap();
        match how {
            "link" => fs::hard_link(&original, &file).unwrap(),
            _ => {
                fs::write(&file, text).unwrap();
                let time = fs::metadata(&original).unwrap().modified().unwrap();
                File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
            }
        }
        files.push(entry(path, &file, how));
        bytes += text.len();
    }
    write_manifest(&dir, created, id, &files, bytes);
    dir
}

fn entry(path: &str, file: &Path, how: &str) -> String {
    let meta = fs::symlink_metadata(file).unwrap();
    let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    format!("{{\"path\":{},\"size\":{},\"mtime_ns\":{mtime},\"how\":\"{how}\"}}", json!(path), meta.len())
}

fn write_manifest(dir: &Path, created: &str, id: Option<&str>, files: &[String], bytes: usize) {
    let upgrade = if id.is_some() { "v2" } else { "manual" };
    let header = format!(
        "{{\"version\":1,\"id\":{},\"upgrade\":\"{upgrade}\",\"created\":\"{created}\",\"head\":99,\"release\":\"genesis\",\"mode\":\"snapshot\",\"files\":[",
        json!(id)
    );
    let lines =
        [vec![header], vec![files.join(",\n")].into_iter().filter(|l| !l.is_empty()).collect()].concat().join("\n");
    let text = format!("{lines}\n],\"count\":{},\"bytes\":{bytes}}}\n", files.len());
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
    fs::write(dir.join("manifest.json"), text).unwrap();
}

/// So many days before now, as a manifest tells a time.
fn days_ago(days: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", now - days * 86_400)])
        .output()
        .unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

fn names(home: &Home) -> Vec<String> {
    let dir = home.root().join("backups");
    let mut names: Vec<String> =
        fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn listed(home: &Home) -> Vec<Value> {
    home.run(&["backup", "list", "--json"]).code(0).json()["backups"].as_array().unwrap().clone()
}

/// Holds the lock of a directory, as who works on it does.
fn lock(dir: &Path) -> File {
    let file = File::open(dir).unwrap();
    file.lock().unwrap();
    file
}

#[test]
fn a_list_tells_of_each_backup_what_it_holds_and_what_only_it_holds() {
    let home = Home::new();
    assert_eq!(listed(&home), Vec::<Value>::new());
    assert!(home.run(&["backup", "list"]).code(0).out.starts_with("no backups in "));
    let kib = vec![7; 64 << 10];
    make(
        &home,
        "v2-20260101-000001",
        "2026-01-01T00:00:01Z",
        Some("v2-1"),
        "link",
        &[("a.ldb", &kib), ("b.ldb", &kib)],
    );
    make(&home, "manual-20260101-000000", "2026-01-01T00:00:00Z", None, "copy", &[("c", &kib)]);
    make(&home, "v3-20260101-000002", "2026-01-01T00:00:02Z", Some("v3-1"), "reflink", &[("d", &kib), ("e", &kib)]);
    // Of these the live side is gone, or is not the same any more.
    fs::remove_file(home.root().join("data/a.ldb")).unwrap();
    fs::write(home.root().join("data/e"), "new").unwrap();
    // Where it lies makes no difference.
    let inside = home.root().join("data/.wemixvisor-backups");
    fs::create_dir(&inside).unwrap();
    let (name, outside) = ("v2-20260101-000001", home.root().join("backups"));
    fs::rename(outside.join(name), inside.join(name)).unwrap();
    let all = listed(&home);
    let told: Vec<(&str, u64, u64)> = all
        .iter()
        .map(|b| (b["name"].as_str().unwrap(), b["bytes"].as_u64().unwrap(), b["exclusive_bytes"].as_u64().unwrap()))
        .collect();
    let (one, two) = (64 << 10, 128 << 10);
    assert_eq!(
        told,
        [("manual-20260101-000000", one, one), ("v2-20260101-000001", two, one), ("v3-20260101-000002", two, one)]
    );
    for backup in &all {
        assert_eq!(backup["head"], 99);
        assert_eq!(backup["release"], "genesis");
        assert_eq!(backup["mode"], "snapshot");
        assert_eq!(backup["complete"], true);
    }
    assert_eq!(all[0]["created"], "2026-01-01T00:00:00Z");
    let text = home.run(&["backup", "list"]).code(0).out;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["name", "created", "size", "only", "here", "head", "release", "mode"]);
    assert_eq!(
        lines[2],
        ["v2-20260101-000001", "2026-01-01T00:00:01Z", "128KiB", "64KiB", "99", "genesis", "snapshot"]
    );
    assert_eq!(lines.len(), 4);
}

#[test]
fn what_is_not_complete_is_listed_as_that_and_is_no_backup_to_any_command() {
    let home = Home::new();
    let backups = home.root().join("backups");
    let whole =
        make(&home, "v2-20260101-000000", "2026-01-01T00:00:00Z", Some("i"), "copy", &[("a", b"1"), ("b", b"2")]);
    let manifest = fs::read_to_string(whole.join("manifest.json")).unwrap();
    let broken = |name: &str, text: &str| {
        fs::create_dir_all(backups.join(name).join("data")).unwrap();
        fs::write(backups.join(name).join("manifest.json"), text).unwrap();
    };
    broken("garbage-20260101-000000", "\0\x01 no JSON at all");
    broken("empty-20260101-000000", "");
    broken("short-20260101-000000", &manifest[..manifest.len() - 20]);
    broken("header-20260101-000000", manifest.lines().next().unwrap());
    broken(
        "lines-20260101-000000",
        &manifest.lines().filter(|l| !l.contains("\"a\"")).fold(String::new(), |t, l| t + l + "\n"),
    );
    broken("time-20260101-000000", &manifest.replace("2026-01-01T", "yesterday"));
    broken("version-20260101-000000", &manifest.replace("\"version\":1", "\"version\":2"));
    fs::create_dir_all(backups.join("nothing-20260101-000000/data")).unwrap();
    fs::create_dir_all(backups.join(".partial-v3-20260101-000000/data")).unwrap();
    fs::create_dir_all(backups.join(".partial-v4-20260101-000000/data")).unwrap();
    // What is no backup at all is not spoken of.
    fs::create_dir_all(backups.join("lost+found")).unwrap();
    fs::write(backups.join("notes.txt"), "").unwrap();
    symlink(&whole, backups.join("link-20260101-000000")).unwrap();
    let _busy = lock(&backups.join(".partial-v4-20260101-000000"));
    let all = listed(&home);
    assert_eq!(all.len(), 11, "{all:#?}");
    for backup in &all {
        let name = backup["name"].as_str().unwrap();
        let complete = name == "v2-20260101-000000";
        assert_eq!(backup["complete"], complete, "{backup}");
        assert_eq!(backup["busy"], name.starts_with(".partial-v4"), "{backup}");
        assert_eq!(backup["error"] == "", complete, "{backup}");
        let file = home.dir.join("x.tar.gz");
        // The locks are made when they are first taken.
        let tree = || -> Vec<String> {
            let locks = [home.own("lock"), home.own("data.lock")].map(|path| path.display().to_string());
            home.tree().into_iter().filter(|line| !locks.iter().any(|lock| line.contains(lock))).collect()
        };
        let before = tree();
        for args in [
            &["backup", "verify", name][..],
            &["backup", "restore", name],
            &["backup", "export", name, file.to_str().unwrap()],
        ] {
            if !complete {
                home.run(args).code(1).one_error(name.trim_start_matches(".partial-"));
                assert!(!file.exists());
            }
        }
        assert_eq!(tree(), before, "{name}");
    }
    let text = home.run(&["backup", "list"]).code(0).out;
    assert!(text.contains(".partial-v4-20260101-000000: not complete, somebody works on it\n"), "{text}");
    assert!(text.contains("short-20260101-000000: not complete, "), "{text}");
}

#[test]
fn a_name_that_is_none_is_refused_and_the_nearest_one_is_told() {
    let home = Home::new();
    home.run(&["backup", "verify", "v2-20260101-000000"]).code(1).one_error("there is none in ");
    make(&home, "v2-20260101-000000", "2026-01-01T00:00:00Z", Some("i"), "copy", &[("a", b"1")]);
    let outside = home.dir.join("x.tar.gz");
    let before = home.tree();
    for (name, code, part) in [
        ("v2-20260101-000001", 1, "did you mean v2-20260101-000000?"),
        ("quarrelsome", 1, "backup list"),
        ("../backups/v2-20260101-000000", 2, "is no name of a backup"),
        ("v2-20260101-000000/", 2, "is no name of a backup"),
        ("/etc", 2, "is no name of a backup"),
        ("..", 2, "is no name of a backup"),
        (".", 2, "is no name of a backup"),
        ("", 2, "is no name of a backup"),
        (".partial-../../../etc", 2, "is no name of a backup"),
        (".partial-x", 1, "no backup has the name"),
    ] {
        home.run(&["backup", "verify", name]).code(code).one_error(part);
        home.run(&["backup", "restore", name]).code(code).one_error(part);
        home.run(&["backup", "export", name, outside.to_str().unwrap()]).code(code).one_error(part);
    }
    for (args, part) in [
        (&["backup"][..], "there are: create, list, verify, restore, export, prune"),
        (&["backup", "lsit"], "did you mean `backup list`?"),
        (&["backup", "verify"], "NAME is missing"),
        (&["backup", "export", "x"], "FILE.tar.gz is missing"),
        (&["backup", "create", "a", "b"], "one word too many"),
        (&["backup", "create", "a/b"], "is no name of an upgrade"),
        (&["backup", "create", ".."], "is no name of an upgrade"),
        (&["backup", "create", "genesis"], "cannot name an upgrade"),
        (&["backup", "create", "before-restore"], "give another name"),
        (&["backup", "prune", "--keep", "-1"], "is no count"),
        (&["backup", "prune", "--keep", "all"], "is no count"),
        (&["backup", "prune", "--max-age", "7"], "has no unit"),
        (&["backup", "prune", "--max-age", "0"], "--keep 0"),
        (&["backup", "prune", "--full"], "unknown option --full"),
    ] {
        home.run(args).code(2).one_error(part);
    }
    assert_eq!(home.tree(), before);
    assert!(!outside.exists());
}

#[test]
fn verify_names_what_is_missing_changed_or_too_many_and_counts_the_rest() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    let content: Vec<(String, Vec<u8>)> =
        (0..20).map(|i| (format!("geth/chaindata/{i:06}.ldb"), vec![1; 1000])).collect();
    let content: Vec<(&str, &[u8])> = content.iter().map(|(path, text)| (path.as_str(), text.as_slice())).collect();
    let dir = make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "link", &content);
    let verify = |code: i32| home.run(&["backup", "verify", name, "--json"]).code(code).json();
    let sound = verify(0);
    assert_eq!((&sound["sound"], &sound["files"], &sound["bytes"]), (&json!(true), &json!(20), &json!(20_000)));
    assert!(home.run(&["backup", "verify", name, "--full"]).code(0).out.contains("every byte read"));

    let file = |i: u32| dir.join(format!("data/geth/chaindata/{i:06}.ldb"));
    // The node's side of the link is written to: so is the backup's.
    let live = home.root().join("data/geth/chaindata/000003.ldb");
    File::options().append(true).open(&live).unwrap().write_all(b"more").unwrap();
    let told = verify(1);
    assert_eq!(told["faults"].as_array().unwrap().len(), 1);
    let fault = told["faults"][0].as_str().unwrap();
    assert!(fault.starts_with("geth/chaindata/000003.ldb: changed since the backup"), "{fault}");
    assert!(fault.contains("1004 bytes, the manifest says 1000"), "{fault}");
    let text = home.run(&["backup", "verify", name]).code(1).out;
    assert!(text.contains("is not as its manifest says:\n  geth/chaindata/000003.ldb: "), "{text}");

    // Written over with the same size: its time tells.
    File::options().write(true).open(file(4)).unwrap().set_modified(UNIX_EPOCH).unwrap();
    fs::remove_file(file(5)).unwrap();
    fs::create_dir(file(5)).unwrap();
    fs::remove_file(file(6)).unwrap();
    fs::write(dir.join("data/geth/extra"), "x").unwrap();
    let faults = verify(1)["faults"].to_string();
    for part in [
        "000004.ldb: changed since the backup, by way of the node's link to it: it has another time of change",
        "000005.ldb: is no file any more",
        "000006.ldb: is missing",
        "geth/extra: is not in the manifest",
    ] {
        assert!(faults.contains(part), "{part} in {faults}");
    }
    for i in 7..20 {
        fs::remove_file(file(i)).unwrap();
    }
    let told = verify(1);
    assert_eq!(told["faults"].as_array().unwrap().len(), 10);
    assert_eq!(told["more_faults"], 8);
    assert!(home.run(&["backup", "verify", name]).code(1).out.ends_with("  and 8 more\n"));
}

#[test]
fn a_manifest_that_leads_out_of_its_backup_is_not_followed() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    let dir = make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[("a", b"1")]);
    fs::write(home.dir.join("secret"), "s").unwrap();
    for path in ["../../../../secret", "/etc/passwd", "a/../../x", "", "./a", "%2e%2e/x", "a%00b"] {
        let line =
            entry("a", &dir.join("data/a"), "copy").replace("\"path\":\"a\"", &format!("\"path\":{}", json!(path)));
        write_manifest(&dir, "2026-01-01T00:00:00Z", Some("i"), &[line], 1);
        home.run(&["backup", "verify", name]).code(1).one_error("manifest");
        assert_eq!(listed(&home)[0]["complete"], false, "{path}");
    }
    // Through a link, or twice: what is counted is seen to be too many.
    symlink("/etc", dir.join("data/etc")).unwrap();
    let lines = [
        entry("a", &dir.join("data/a"), "copy"),
        entry("etc", &dir.join("data/etc"), "copy"),
        entry("etc/passwd", Path::new("/etc/passwd"), "copy"),
    ];
    let bytes = 1 + 4 + usize::try_from(fs::metadata("/etc/passwd").unwrap().len()).unwrap();
    write_manifest(&dir, "2026-01-01T00:00:00Z", Some("i"), &lines, bytes);
    assert!(home.run(&["backup", "verify", name, "--full"]).code(1).out.contains("by way of a link"));
}

/// Names and modes that an archive must keep.
fn odd_backup(home: &Home, name: &str) -> PathBuf {
    let dir = make(home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[]);
    let data = dir.join("data");
    let long = data.join("d".repeat(120)).join("e".repeat(120)).join("f".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("deep"), "deep").unwrap();
    fs::write(data.join(OsStr::from_bytes(b"not\xffutf8")), "1").unwrap();
    fs::write(data.join("new\nline \\ \"quote\" 100%"), "2").unwrap();
    fs::write(data.join("empty"), "").unwrap();
    fs::create_dir(data.join("nothing in it")).unwrap();
    symlink("../../over/there//x", data.join("link")).unwrap();
    symlink("t".repeat(300), data.join("long link")).unwrap();
    let sparse = File::create(data.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    (&sparse).write_all(b"begin").unwrap();
    fs::write(data.join("secret"), "k").unwrap();
    fs::set_permissions(data.join("secret"), Permissions::from_mode(0o400)).unwrap();
    File::options()
        .write(true)
        .open(data.join("empty"))
        .unwrap()
        .set_modified(UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789))
        .unwrap();
    let mut files = Vec::new();
    let mut bytes = 0;
    let found = Command::new("find").arg(&data).args(["-not", "-type", "d", "-printf", "%P\\0"]).output().unwrap();
    for path in found.stdout.split(|b| *b == 0).filter(|p| !p.is_empty()) {
        let file = data.join(OsStr::from_bytes(path));
        let shown = path.iter().fold(String::new(), |t, b| match b {
            b'%' | b'\n' | 0x80.. => t + &format!("%{b:02X}"),
            b => t + &char::from(*b).to_string(),
        });
        files.push(entry(&shown, &file, "copy"));
        bytes += usize::try_from(fs::symlink_metadata(&file).unwrap().len()).unwrap();
    }
    write_manifest(&dir, "2026-01-01T00:00:00Z", Some("i"), &files, bytes);
    dir
}

/// Everything that is to be the same: path, kind, mode, time, size, target and content.
fn fingerprint(dir: &Path) -> Vec<OsString> {
    let found = Command::new("find")
        .current_dir(dir)
        .args([".", "-type", "d", "-printf", "%y %m %P\\0", "-o", "-printf", "%y %m %T@ %s %P %l\\0"])
        .output()
        .unwrap();
    let mut lines: Vec<OsString> =
        found.stdout.split(|b| *b == 0).map(|line| OsString::from_vec(line.to_vec())).collect();
    lines.sort();
    let sums = Command::new("sh")
        .current_dir(dir)
        .args(["-c", "find . -type f -print0 | sort -z | xargs -0 sha256sum -z"])
        .output()
        .unwrap();
    lines.push(OsString::from_vec(sums.stdout));
    lines
}

#[test]
fn an_archive_unpacks_to_what_was_backed_up_and_is_a_backup_again() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    let dir = odd_backup(&home, name);
    home.run(&["backup", "verify", name, "--full"]).code(0);
    let before = fingerprint(&dir);
    let file = home.dir.join("x.tar.gz");
    let answer = home.run(&["backup", "export", name, file.to_str().unwrap()]).code(0);
    assert!(answer.out.contains(name) && answer.err.is_empty(), "{answer:?}");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fingerprint(&dir), before, "the backup itself stays as it is");
    fs::rename(&dir, home.dir.join("gone")).unwrap();
    let tar = Command::new("tar").arg("xzf").arg(&file).current_dir(home.root().join("backups")).output().unwrap();
    assert!(tar.status.success() && tar.stderr.is_empty(), "{}", String::from_utf8_lossy(&tar.stderr));
    assert_eq!(fingerprint(&dir), before);
    home.run(&["backup", "verify", name, "--full"]).code(0);

    // The same to a pipe, and nothing else on it.
    let mut command = home.command(&["--quiet", "backup", "export", name, "-"]);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    let mut tar = Command::new("tar").arg("tzf").arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    let listing = String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap();
    assert!(listing.starts_with(&format!("{name}/\n{name}/manifest.json\n{name}/data/\n")), "{listing}");
}

#[test]
fn a_file_that_is_there_is_kept_and_bad_targets_are_named() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[("a", b"1")]);
    let file = home.dir.join("x.tar.gz");
    fs::write(&file, "mine").unwrap();
    home.run(&["backup", "export", name, file.to_str().unwrap()]).code(4).one_error("x.tar.gz is there already");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    fs::remove_file(&file).unwrap();
    symlink("/nowhere", &file).unwrap();
    home.run(&["backup", "export", name, file.to_str().unwrap()]).code(4).one_error("is there already");
    home.run(&["backup", "export", name, "no/such/x.tar.gz"]).code(1).one_error("no/such");
    home.run(&["backup", "export", name, "/"]).code(2).one_error("is no name of a file");
    // A plain name is one in the working directory.
    home.run(&["backup", "export", name, "plain.tar.gz"]).code(0);
    assert!(home.dir.join("plain.tar.gz").is_file());
    // In the home it belongs to the home's owner.
    let inside = home.root().join("in.tar.gz");
    std::os::unix::fs::chown(home.root(), Some(12_345), Some(12_345)).unwrap_or_default();
    home.run(&["backup", "export", name, inside.to_str().unwrap()]).code(0);
    assert_eq!(fs::metadata(&inside).unwrap().uid(), fs::metadata(home.root()).unwrap().uid());
}

#[test]
fn an_export_that_was_killed_leaves_nothing_under_the_final_name_and_none_in_the_way() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    let dir = make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[]);
    // Far more than is packed before it is killed.
    let big = File::create(dir.join("data/big")).unwrap();
    big.set_len(200 << 30).unwrap();
    let line = entry("big", &dir.join("data/big"), "copy");
    write_manifest(&dir, "2026-01-01T00:00:00Z", Some("i"), &[line], 200 << 30);
    let file = home.dir.join("x.tar.gz");
    let tmp = home.dir.join(".x.tar.gz.tmp");
    let args = ["backup", "export", name, file.to_str().unwrap()];
    let mut command = home.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it writes", || fs::metadata(&tmp).ok().filter(|meta| meta.len() > 0));
    // It is in use: a second one may not write the same file, and nobody removes what it packs.
    home.run(&args).code(4).one_error("another export");
    assert!(home.run(&["backup", "prune", "--keep", "0"]).code(0).out.starts_with("nothing to remove"));
    kill(child.id(), Signal::KILL);
    child.wait().unwrap();
    assert!(!file.exists());
    assert!(tmp.exists());
    fs::remove_file(dir.join("data/big")).unwrap();
    write_manifest(&dir, "2026-01-01T00:00:00Z", Some("i"), &[], 0);
    home.run(&args).code(0);
    assert!(file.exists() && !tmp.exists());
}

#[test]
fn progress_of_an_export_is_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    let dir = make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[]);
    File::create(dir.join("data/big")).unwrap().set_len(200 << 30).unwrap();
    let line = entry("big", &dir.join("data/big"), "copy");
    write_manifest(&dir, "2026-01-01T00:00:00Z", Some("i"), &[line], 200 << 30);
    for (terminal, file, wanted) in [(false, "a", "exporting: "), (true, "b", "exporting [")] {
        let inner = home.command(&["backup", "export", name, file]);
        let mut command = if terminal {
            let line = format!("echo pid $$; exec {} backup export {name} {file}", wemixvisor());
            let mut script = Command::new("script");
            script
                .args(["-qec", &line, "/dev/null"])
                .env("DAEMON_HOME", home.root())
                .current_dir(&home.dir)
                .stdout(Stdio::piped());
            script.stdin(Stdio::null());
            script
        } else {
            let mut inner = inner;
            inner.stderr(Stdio::piped());
            inner
        };
        let Ok(mut child) = command.spawn() else { continue };
        let mut out: Box<dyn Read> =
            if terminal { Box::new(child.stdout.take().unwrap()) } else { Box::new(child.stderr.take().unwrap()) };
        let mut seen = String::new();
        let mut piece = [0; 256];
        until("progress is told", || {
            let n = out.read(&mut piece).unwrap();
            assert!(n > 0, "{seen}");
            seen += &String::from_utf8_lossy(&piece[..n]);
            (seen.contains(wanted) && seen.contains(" of 200GiB, ")).then_some(())
        });
        // `script` does not take along what runs in its terminal.
        if let Some(pid) = seen.strip_prefix("pid ").and_then(|rest| rest.split_whitespace().next()) {
            kill(pid.parse().unwrap(), Signal::KILL);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    until("both are gone", || home.run(&["backup", "prune", "--keep", "0"]).out.contains("removed").then_some(()));
}

#[test]
fn a_full_disk_at_an_export_is_named_and_leaves_nothing() {
    let home = Home::new();
    let Some(disk) = tmpfs(&home.dir.join("full"), "64k") else { return };
    let name = "v2-20260101-000000";
    let noise: Vec<u8> = {
        let mut bytes = vec![0; 400 << 10];
        File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        bytes
    };
    make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[("noise", &noise)]);
    let file = disk.0.join("x.tar.gz");
    home.run(&["backup", "export", name, file.to_str().unwrap()])
        .code(1)
        .one_error("full/.x.tar.gz.tmp: No space left");
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0);
}

#[test]
fn prune_by_itself_removes_only_what_upgrades_made_and_the_settings_give_up() {
    let home = Home::new();
    let big = vec![3; 64 << 10];
    make(&home, "manual-1", &days_ago(100), None, "copy", &[("m", &big)]);
    make(&home, "before-restore-1", &days_ago(90), None, "copy", &[("r", &big)]);
    make(&home, "v1-1", &days_ago(30), Some("v1-1"), "copy", &[("o", &big)]);
    make(&home, "v2-1", &days_ago(5), Some("v2-1"), "copy", &[("p", &big)]);
    make(&home, "v3-1", &days_ago(3), Some("v3-1"), "copy", &[("q", &big)]);
    let nothing = home.run(&["--set", "backup_keep=9", "--set", "backup_max_age=60d", "backup", "prune"]).code(0);
    assert_eq!(nothing.out, "nothing to remove\n");
    let old = home.run(&["--set", "backup_keep=9", "backup", "prune"]).code(0);
    assert_eq!(old.out, "removed v1-1 (64KiB freed)\n64KiB freed\n");
    let many = home.run(&["--json", "backup", "prune"]).code(0).json();
    assert_eq!(many, json!({"removed": [{"name": "v2-1", "freed": 65_536}]}));
    assert_eq!(names(&home), ["before-restore-1", "manual-1", "v3-1"]);
    home.run(&["--set", "backup_max_age=0", "backup", "prune"]).code(0);
    assert_eq!(names(&home), ["before-restore-1", "manual-1", "v3-1"], "0 is no limit");
    home.run(&["--set", "backup_keep=0", "backup", "prune"]).code(0);
    assert_eq!(names(&home), ["before-restore-1", "manual-1"]);
}

#[test]
fn prune_with_limits_of_its_own_takes_the_oldest_of_all() {
    let home = Home::new();
    let make_all = || {
        make(&home, "v1-1", &days_ago(30), Some("v1-1"), "copy", &[("o", b"1")]);
        make(&home, "manual-1", &days_ago(20), None, "copy", &[("m", b"1")]);
        make(&home, "v3-1", &days_ago(3), Some("v3-1"), "copy", &[("q", b"1")]);
        make(&home, "before-restore-1", &days_ago(1), None, "copy", &[("r", b"1")]);
    };
    make_all();
    home.run(&["backup", "prune", "--keep", "2"]).code(0);
    assert_eq!(names(&home), ["before-restore-1", "v3-1"]);
    make_all();
    home.run(&["backup", "prune", "--max-age", "25d"]).code(0);
    assert_eq!(names(&home), ["before-restore-1", "manual-1", "v3-1"]);
    make_all();
    home.run(&["backup", "prune", "--keep", "3", "--max-age", "2d"]).code(0);
    assert_eq!(names(&home), ["before-restore-1"]);
    home.run(&["backup", "prune", "--keep", "0"]).code(0);
    assert_eq!(names(&home), Vec::<String>::new());
}

#[test]
fn prune_never_touches_an_upgrade_under_way_nor_what_somebody_works_on_nor_what_it_does_not_understand() {
    let home = Home::new();
    let backups = home.root().join("backups");
    make(&home, "v1-1", &days_ago(30), Some("v1-1"), "copy", &[("o", b"1")]);
    make(&home, "v2-1", &days_ago(20), Some("v2-1"), "copy", &[("m", b"1")]);
    let used = make(&home, "v3-1", &days_ago(19), Some("v3-1"), "copy", &[("n", b"1")]);
    let broken = make(&home, "v4-1", &days_ago(18), Some("v4-1"), "copy", &[("q", b"1")]);
    fs::write(broken.join("manifest.json"), "{").unwrap();
    for name in [".partial-v5-1", ".partial-v6-1", ".partial-before-restore-1", ".partial-removed-v0"] {
        fs::create_dir_all(backups.join(name).join("data/sub")).unwrap();
        fs::write(backups.join(name).join("data/sub/x"), "x").unwrap();
    }
    fs::create_dir_all(backups.join("notes")).unwrap();
    symlink(home.own("genesis"), backups.join("v1-1/data/out")).unwrap();
    symlink(home.own("genesis"), backups.join(".partial-link")).unwrap();
    let journal = json!({
        "version": 1, "id": "v2-1", "name": "v2", "stage": "stop", "from": "genesis", "to": "v2", "begun": 1,
    });
    fs::write(home.own("journal.json"), journal.to_string()).unwrap();
    fs::write(home.own("restore.json"), "{}").unwrap();
    // What was copied beforehand waits for a plan as long as there is one.
    fs::create_dir_all(backups.join(".partial-ahead/data")).unwrap();
    home.plan("v9", 1000);
    let (one, other) = (lock(&backups.join(".partial-v6-1")), lock(&used));
    let removed = home.run(&["--json", "backup", "prune", "--keep", "0"]).code(0).json();
    let gone: Vec<&str> = removed["removed"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(gone, [".partial-removed-v0", ".partial-v5-1", "v1-1"]);
    assert_eq!(
        names(&home),
        [
            ".partial-ahead",
            ".partial-before-restore-1",
            ".partial-link",
            ".partial-v6-1",
            "notes",
            "v2-1",
            "v3-1",
            "v4-1"
        ]
    );
    assert!(home.own("genesis/bin/node").is_file(), "no link is followed");
    drop((one, other));
    fs::remove_file(home.own("journal.json")).unwrap();
    home.run(&["backup", "prune", "--keep", "9"]).code(0);
    assert!(names(&home).contains(&".partial-ahead".to_owned()));
    fs::remove_dir_all(home.root().join("data/upgrades")).unwrap();
    fs::remove_file(home.own("restore.json")).unwrap();
    home.run(&["backup", "prune", "--keep", "0"]).code(0);
    assert_eq!(names(&home), [".partial-link", "notes", "v4-1"]);
    fs::write(home.own("journal.json"), "{").unwrap();
    home.run(&["backup", "prune", "--keep", "0"]).code(1).one_error("journal.json");
}

/// A home whose node has run for some blocks and was stopped, and its data directory.
fn after_a_run(home: &Home) -> u64 {
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.until_status("some blocks are there", |s| s["height"].as_u64() > Some(5));
    visor.stop();
    home.head_on_disk()
}

#[test]
fn a_backup_is_made_of_a_stopped_node_and_put_back_with_what_it_replaces_kept() {
    let home = Home::new();
    let head = after_a_run(&home);
    fs::create_dir_all(home.datadir().join("etcd")).unwrap();
    fs::write(home.datadir().join("etcd/member"), "old").unwrap();
    let made = home.run(&["backup", "create"]).code(0);
    let name = made.out.trim().to_owned();
    assert!(name.starts_with("manual-") && made.out.lines().count() == 1, "{made:?}");
    home.run(&["backup", "verify", &name, "--full"]).code(0);
    let all = listed(&home);
    assert_eq!((all.len(), &all[0]["name"], &all[0]["complete"]), (1, &json!(name), &json!(true)));
    assert!(all[0]["head"].as_u64().unwrap() > 5 && all[0]["release"] == "genesis", "{all:?}");

    // The node goes on, and what it has now is put away.
    after_a_run(&home);
    let later = home.head_on_disk();
    assert!(later > head);
    fs::write(home.datadir().join("etcd/member"), "live").unwrap();
    let restored = home.run(&["--json", "backup", "restore", &name]).code(0).json();
    assert_eq!(restored["restored"], json!(name));
    let kept = restored["replaced"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("before-restore-"), "{kept}");
    assert_eq!(home.head_on_disk(), head);
    assert_eq!(fs::read_to_string(home.datadir().join("etcd/member")).unwrap(), "live");
    home.run(&["backup", "verify", &name]).code(0);
    home.run(&["backup", "verify", &kept]).code(0);
    assert!(listed(&home).iter().all(|b| b["complete"] == true));

    // And back again; the node lives on it.
    let answer = home.run(&["backup", "restore", &kept]).code(0);
    assert!(answer.out.contains(&kept) && answer.out.contains("before-restore-"), "{answer:?}");
    assert_eq!(home.head_on_disk(), later);
    after_a_run(&home);
    assert!(home.head_on_disk() > later);
}

#[test]
fn while_a_supervisor_runs_or_the_data_is_held_nothing_is_made_nor_put_back() {
    let home = Home::new();
    after_a_run(&home);
    let name = home.run(&["--quiet", "backup", "create", "before-v2"]).code(0).out.trim().to_owned();
    assert!(name.starts_with("before-v2-"), "{name}");
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    for args in [&["backup", "create"][..], &["backup", "restore", &name]] {
        home.run(args).code(4).one_error(&format!("is supervised, by pid {}", visor.pid()));
    }
    assert_eq!(names(&home), [name.as_str()]);
    visor.stop();
    let held = lock(&home.own("data.lock"));
    for args in [&["backup", "create"][..], &["backup", "restore", &name]] {
        home.run(args).code(4).one_error("still holds the data: `wemixvisor stop` waits for its end");
    }
    drop(held);
    // Who makes one is no supervisor to anybody, and none can begin.
    let lock = File::open(home.own("lock")).unwrap();
    lock.lock_shared().unwrap();
    assert_eq!(home.status()["state"], "stopped");
    assert!(File::open(home.own("lock")).unwrap().try_lock().is_err());
    drop(lock);
    let journal = json!({
        "version": 1, "id": "v2-1", "name": "v2", "stage": "trial", "from": "genesis", "to": "v2", "begun": 1,
    });
    fs::write(home.own("journal.json"), journal.to_string()).unwrap();
    home.run(&["backup", "restore", &name]).code(4).one_error("upgrade v2 is under way");
    assert_eq!(names(&home), [name.as_str()]);
    fs::remove_file(home.own("journal.json")).unwrap();
    home.run(&["backup", "restore", &name]).code(0);
}

#[test]
fn the_data_is_where_the_settings_or_the_last_run_say_and_must_be_there() {
    let home = Home::new();
    home.run(&["backup", "create"]).code(1).one_error("home/data");
    let elsewhere = home.dir.join("elsewhere");
    let set = format!("data_dir={}", elsewhere.display());
    home.run(&["--set", &set, "backup", "create"]).code(1).one_error("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    home.run(&["--set", &set, "backup", "create"]).code(1).one_error("elsewhere");
    assert_eq!(names(&home).iter().filter(|name| !name.starts_with('.')).count(), 0);
    fs::write(elsewhere.join("LOCK"), "").unwrap();
    fs::write(elsewhere.join("block"), "1").unwrap();
    let first = home.run(&["--set", &set, "backup", "create"]).code(0).out;
    let second = home.run(&["--set", &set, "backup", "create"]).code(0).out;
    assert_ne!(first, second, "each has a name of its own");
    fs::remove_dir_all(home.root().join("backups")).unwrap();
    // Where the node ran last decides where no setting does.
    after_a_run(&home);
    let name = home.run(&["backup", "create"]).code(0).out;
    assert!(home.root().join("backups").join(name.trim()).join("data/geth/chaindata/head").is_file());
    // A relative path means nothing here.
    fs::remove_file(home.own("data.lock")).unwrap();
    let config = fs::read_to_string(home.own("config.toml")).unwrap();
    fs::write(home.own("config.toml"), format!("{config}\nnode_args = [\"--datadir\", \"d\"]\n")).unwrap();
    home.run(&["backup", "create"]).code(2).one_error("DAEMON_DATA_DIR");
}

#[test]
fn a_full_disk_at_a_backup_is_named_and_leaves_no_half_one() {
    let home = Home::new();
    let Some(disk) = tmpfs(&home.dir.join("full"), "30m") else { return };
    let data = home.dir.join("elsewhere");
    fs::create_dir(&data).unwrap();
    let noise = vec![5; 1 << 20];
    (0..20).for_each(|i| fs::write(data.join(format!("{i:06}.ldb")), &noise).unwrap());
    let set = format!("data_dir={}", data.display());
    let to = format!("data_backup_dir={}", disk.0.display());
    let args = ["--set", &set, "--set", &to, "--set", "backup_mode=copy", "backup", "create"];
    home.run(&args).code(1).one_error("full");
    let left = || fs::read_dir(&disk.0).unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    assert_eq!(left(), Vec::<OsString>::new());
    // With room it is made.
    (3..20).for_each(|i| fs::remove_file(data.join(format!("{i:06}.ldb"))).unwrap());
    let name = home.run(&args).code(0).out;
    assert_eq!(left(), [OsString::from(name.trim())]);
}

#[test]
fn plans_of_every_file_stay_when_an_old_backup_takes_the_place_of_the_data_they_lie_in() {
    let home = Home::new();
    home.put("geth/block", "1");
    home.put("upgrade-info.json.batch", r#"[{"name": "withdrawn", "height": 10}]"#);
    let name = home.run(&["--quiet", "backup", "create"]).code(0).out.trim().to_owned();
    let now = [
        home.put("upgrade-info.json.batch", r#"[{"name": "v3", "height": 300}]"#),
        home.put("upgrade-info.json", r#"{"name": "v4", "height": 400}"#),
        home.put("upgrades/500/upgrade-info.json", r#"{"name": "v5", "height": 500}"#),
    ];
    let before = now.clone().map(|path| fs::read_to_string(path).unwrap());
    home.put("geth/block", "2");
    home.run(&["backup", "restore", &name]).code(0);
    assert_eq!(fs::read_to_string(home.root().join("data/geth/block")).unwrap(), "1");
    assert_eq!(now.map(|path| fs::read_to_string(path).unwrap()), before);
}

#[test]
fn what_the_file_system_keeps_at_the_top_of_the_data_is_neither_backed_up_nor_replaced() {
    let home = Home::new();
    home.put("geth/block", "1");
    let lost = home.root().join("data/lost+found");
    fs::create_dir(&lost).unwrap();
    fs::set_permissions(&lost, Permissions::from_mode(0o700)).unwrap();
    let inode = fs::metadata(&lost).unwrap().ino();
    let name = home.run(&["--quiet", "backup", "create"]).code(0).out.trim().to_owned();
    assert!(!home.root().join("backups").join(&name).join("data/lost+found").exists());
    home.run(&["backup", "restore", &name]).code(0);
    assert_eq!(fs::metadata(&lost).unwrap().ino(), inode);
}

#[test]
fn after_a_restore_no_plan_is_due_by_the_head_of_the_data_that_were_replaced() {
    let home = Home::new();
    after_a_run(&home);
    let name = home.run(&["--quiet", "backup", "create"]).code(0).out.trim().to_owned();
    let old = home.run(&["status", "--json"]).json()["height"].as_u64().unwrap();
    let mut visor = home.supervise(&[], &[]);
    home.until_status("more blocks are there", |s| s["height"].as_u64() > Some(old + 5));
    visor.stop();
    let newer = home.run(&["status", "--json"]).json()["height"].as_u64().unwrap();
    assert!(newer > old + 1, "{newer} {old}");
    home.run(&["backup", "restore", &name]).code(0);
    assert_eq!(home.run(&["status", "--json"]).json()["height"], old);
    // A node that ends before it has told its head: the last known one counts.
    home.release("genesis", "--die-at-start=3");
    home.release("v2", "");
    home.plan("v2", newer);
    let mut visor = home.supervise(&["--set", "max_restarts=2"], &[]);
    assert_eq!(visor.end(), 5);
    assert!(!home.started().contains(&"v2".to_owned()), "{:?}", home.started());
    assert_eq!(home.current(), "genesis");
}

#[test]
fn a_leftover_that_cannot_be_removed_is_in_no_backups_way_and_prune_names_it() {
    let home = Home::new();
    home.put("geth/block", "1");
    let left = home.root().join("backups/.partial-removed-v1-20260101-000000-1");
    let Some(_disk) = tmpfs(&left.join("data/mounted"), "1m") else { return };
    let name = home.run(&["--quiet", "backup", "create"]).code(0).out.trim().to_owned();
    home.run(&["backup", "restore", &name]).code(0);
    home.run(&["backup", "prune"]).code(1).one_error(left.to_str().unwrap());
    // Nor does it keep old ones from going.
    let said = home.run(&["--set", "backup_keep=0", "backup", "prune", "--keep", "0"]).code(1);
    assert!(said.err.contains("removed: ") && said.err.contains(&name), "{}", said.err);
    assert!(!home.root().join("backups").join(&name).exists());
}

#[test]
fn what_a_restore_replaced_is_whole_although_a_killed_node_left_its_socket_in_it() {
    let home = Home::new();
    home.put("geth/block", "1");
    let name = home.run(&["--quiet", "backup", "create"]).code(0).out.trim().to_owned();
    drop(std::os::unix::net::UnixListener::bind(home.root().join("data/geth.ipc")).unwrap());
    home.put("geth/block", "22");
    let restored = home.run(&["--json", "backup", "restore", &name]).code(0).json();
    let kept = restored["replaced"].as_str().unwrap();
    home.run(&["backup", "verify", kept, "--full"]).code(0);
    let archive = home.dir.join("a.tar.gz");
    home.run(&["backup", "export", kept, archive.to_str().unwrap()]).code(0);
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&home.dir).status();
    assert!(unpacked.unwrap().success());
    assert_eq!(fs::read_to_string(home.dir.join(kept).join("data/geth/block")).unwrap(), "22");
}

#[test]
fn while_a_backup_is_made_no_supervisor_starts_and_nobody_takes_its_maker_for_a_node() {
    let home = Home::new();
    let mut command = Command::new("flock");
    // As `backup create` holds them: the supervisors' lock shared, the data's alone.
    command.args(["--shared", "--no-fork"]).arg(home.own("lock"));
    command.args(["flock", "--no-fork"]).arg(home.own("data.lock")).args(["sleep", "1000"]);
    let mut maker = command.stdin(Stdio::null()).spawn().unwrap();
    until("both are held", || {
        File::open(home.own("data.lock")).ok().filter(|lock| lock.try_lock_shared().is_err()).map(|_| ())
    });
    home.run(&["start", "--datadir", "d"]).code(4).one_error("a backup is being made or put back");
    home.run(&["run", "--datadir", "d"]).code(4);
    for stop in [&["stop"][..], &["stop", "--now"]] {
        let said = home.run(stop).code(0);
        assert!(said.err.contains("a backup is being made or put back"), "{said:?}");
    }
    assert!(maker.try_wait().unwrap().is_none(), "it was not ended");
    maker.kill().unwrap();
    maker.wait().unwrap();
}

/// Runs a command as a user who is not root; none when this machine does not let us.
fn as_user(home: &Home, args: &[&str]) -> Option<Said> {
    let user = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"];
    let able = Command::new(user[0]).args(&user[1..]).arg("true").status().is_ok_and(|status| status.success());
    able.then(|| said(under(&user, &home.command(args))))
}

fn give_all(dir: &Path) {
    assert!(Command::new("chown").args(["-R", "4242:4242"]).arg(dir).status().unwrap().success());
}

#[test]
fn a_directory_that_cannot_be_moved_is_found_before_anything_is() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[("geth/a", b"1"), ("keystore/k", b"2")]);
    fs::create_dir_all(home.root().join("data/upgrades")).unwrap();
    let keystore = home.root().join("data/keystore");
    if as_user(&home, &["version"]).is_none() {
        return; // Nothing is forbidden to root.
    }
    give_all(&home.dir);
    fs::write(home.root().join("data/geth/a"), "now").unwrap();
    for locked in [keystore.clone(), home.root().join("backups").join(name).join("data/keystore")] {
        fs::set_permissions(&locked, Permissions::from_mode(0o500)).unwrap();
        let said = as_user(&home, &["backup", "restore", name]).unwrap();
        said.code(1).one_error("keystore cannot be moved: Permission denied");
        assert!(!home.own("restore.json").exists());
        assert_eq!(fs::read_to_string(home.root().join("data/geth/a")).unwrap(), "now");
        assert_eq!(names(&home), [name]);
        fs::set_permissions(&locked, Permissions::from_mode(0o700)).unwrap();
    }
    as_user(&home, &["backup", "restore", name]).unwrap().code(0);
    assert_eq!(fs::read_to_string(home.root().join("data/geth/a")).unwrap(), "1");
}

#[test]
fn data_below_a_directory_that_cannot_be_read_nor_written_is_restored_name_by_name() {
    let home = Home::new();
    if as_user(&home, &["version"]).is_none() {
        return;
    }
    let above = home.dir.join("srv");
    let data = above.join("chain");
    fs::create_dir_all(data.join("geth")).unwrap();
    fs::write(data.join("geth/a"), "then").unwrap();
    give_all(&home.dir);
    std::os::unix::fs::chown(&above, Some(0), Some(0)).unwrap();
    fs::set_permissions(&above, Permissions::from_mode(0o711)).unwrap();
    let setting = format!("data_dir={}", data.display());
    let made = as_user(&home, &["--quiet", "--set", &setting, "backup", "create"]).unwrap().code(0);
    let name = made.out.trim().to_owned();
    fs::write(data.join("geth/a"), "now").unwrap();
    // Where the names cannot be exchanged either, nothing is, and nothing is left behind that must be ended.
    fs::set_permissions(data.join("geth"), Permissions::from_mode(0o500)).unwrap();
    let said = as_user(&home, &["--quiet", "--set", &setting, "backup", "restore", &name]).unwrap();
    said.code(1).one_error("geth cannot be moved");
    assert!(!home.own("restore.json").exists());
    assert_eq!(fs::read_to_string(data.join("geth/a")).unwrap(), "now");
    fs::set_permissions(data.join("geth"), Permissions::from_mode(0o700)).unwrap();
    as_user(&home, &["--quiet", "--set", &setting, "backup", "restore", &name]).unwrap().code(0);
    assert_eq!(fs::read_to_string(data.join("geth/a")).unwrap(), "then");
}

#[test]
fn an_interrupted_restore_into_another_directory_is_not_ended_by_the_way() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[("geth/a", b"1")]);
    let other = home.dir.join("precious");
    fs::create_dir(&other).unwrap();
    let intent = json!({
        "version": 1, "backup": name, "id": "r-1", "created": "2026-01-01T00:10:00Z", "data": other,
        "partial": "backups/.partial-before-restore-r-1", "displaced": "before-restore-20260101-001000",
        "head": null, "release": null, "exchange": {"entries": {"new": [], "kept": []}},
    });
    fs::create_dir_all(home.root().join("backups/.partial-before-restore-r-1/data")).unwrap();
    fs::write(other.join("file"), "1").unwrap();
    fs::write(home.own("restore.json"), intent.to_string()).unwrap();
    for args in [&["backup", "create"][..], &["backup", "restore", name]] {
        home.run(args).code(4).one_error(&format!("--set data_dir={}", other.display()));
        assert!(other.join("file").is_file() && home.own("restore.json").exists());
    }
    let setting = format!("data_dir={}", other.display());
    fs::create_dir(other.join("geth")).unwrap();
    home.run(&["--set", &setting, "backup", "restore", name]).code(0);
    assert!(!home.own("restore.json").exists());
}

#[test]
fn an_archive_goes_into_no_file_that_somebody_else_made() {
    let home = Home::new();
    let name = "v2-20260101-000000";
    make(&home, name, "2026-01-01T00:00:00Z", Some("i"), "copy", &[("a", b"1")]);
    let (file, tmp) = (home.dir.join("x.tar.gz"), home.dir.join(".x.tar.gz.tmp"));
    fs::write(&tmp, "").unwrap();
    fs::set_permissions(&tmp, Permissions::from_mode(0o666)).unwrap();
    let mut open = File::open(&tmp).unwrap();
    home.run(&["backup", "export", name, file.to_str().unwrap()]).code(0);
    let mut seen = Vec::new();
    open.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"");
    assert_ne!(open.metadata().unwrap().ino(), fs::metadata(&file).unwrap().ino());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    // A link is replaced, and what it leads to is left alone.
    let mine = home.dir.join("mine");
    fs::write(&mine, "mine").unwrap();
    symlink(&mine, &tmp).unwrap();
    fs::remove_file(&file).unwrap();
    home.run(&["backup", "export", name, file.to_str().unwrap()]).code(0);
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    assert!(tmp.symlink_metadata().is_err());
}
