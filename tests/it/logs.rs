//! The node's log and ours: trimming under a writer, the `logs` command, and a log that nobody reads.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use crate::support::{Home, Said, kill, lives, said, tmpfs, until, wemixvisor};

/// A line of the flood; `MOCK …` and others have no number.
fn number(line: &[u8]) -> Option<u64> {
    let at = line.windows(7).rposition(|word| word == b"number=")?;
    let digits = line.get(at + 7..)?.get(..12)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What a log holds of the flood: its first and last number. Fails where one is missing, or twice.
fn contiguous(path: &Path) -> Result<(u64, u64), String> {
    let mut first = None;
    let mut last: Option<u64> = None;
    let mut torn = 0;
    for line in BufReader::new(File::open(path).unwrap()).split(b'\n') {
        let line = line.unwrap();
        match (number(&line), last) {
            (Some(n), Some(last)) if n != last + 1 => return Err(format!("{n} follows {last}")),
            (Some(n), _) => {
                first = first.or(Some(n));
                last = Some(n);
            }
            (None, _) if line.starts_with(b"DEBUG[01-01") => torn += 1,
            (None, _) => {}
        }
    }
    // The last line may be half written.
    if torn > 1 { Err(format!("{torn} torn lines")) } else { Ok((first.unwrap_or(0), last.unwrap_or(0))) }
}

/// A log of the node in a home of its own, and a supervisor in the background that trims it.
fn flooded(home: &Home, log: &Path, max: &str, pace: u64) -> u32 {
    let args = home.node_args();
    let (log, max) = (format!("log_file={}", log.display()), format!("log_max_size={max}"));
    let flood = format!("--log-flood={pace}");
    let words = ["--set", &log, "--set", &max, "start", "--", &flood];
    home.run(&words.into_iter().chain(args.iter().map(String::as_str)).collect::<Vec<_>>()).code(0);
    u32::try_from(home.status()["supervisor_pid"].as_u64().unwrap()).unwrap()
}

/// The number that a log begins with; it grows with every trim.
fn front(log: &Path) -> u64 {
    let file = File::open(log).unwrap();
    let begin = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap_or(0);
    let mut head = vec![0; 4096];
    let n = std::os::unix::fs::FileExt::read_at(&file, &mut head, begin).unwrap_or(0);
    head.truncate(n);
    head.split(|byte| *byte == b'\n').find_map(number).unwrap_or(0)
}

/// Waits for so many trims of a log, and returns the most room that it took.
fn trims(log: &Path, count: u32) -> u64 {
    let (mut seen, mut last, mut most) = (0, front(log), 0);
    until("it was trimmed often enough", || {
        most = most.max(fs::metadata(log).unwrap().blocks() * 512);
        let now = front(log);
        if now > last {
            (seen, last) = (seen + 1, now);
        }
        (seen >= count).then_some(most)
    })
}

/// Floods a log, lets it be trimmed three times, and looks whether anything is lost.
fn nothing_is_lost(log: &Path) {
    let home = Home::new();
    let began = Instant::now();
    flooded(&home, log, "64MiB", 150);
    let most = trims(log, 3);
    home.run(&["stop"]).code(0);
    let took = began.elapsed();
    let (first, last) = contiguous(log).unwrap();
    assert!(first > 0, "it was trimmed");
    let pace = (last * 338) as f64 / 1e6 / took.as_secs_f64();
    eprintln!("{}: {pace:.0} MB/s, {first} lines trimmed of {last}, at most {} MB", log.display(), most / 1_000_000);
    // A pause of ten seconds at first, then as short as it takes.
    assert!(most < 2_500_000_000, "{most}");
    let text = fs::read_to_string(home.root().join("logs/wemixvisor.log")).unwrap();
    assert!(!text.contains("trim"), "{text}");
}

#[test]
fn a_log_is_trimmed_under_a_node_that_writes_and_loses_nothing() {
    let dir = Home::empty();
    nothing_is_lost(&dir.dir.join("node.log"));
}

/// A file system in a file, mounted; it is gone with this.
struct Mounted {
    _home: Home,
    dir: PathBuf,
}

fn mounted(kind: &str) -> Option<Mounted> {
    let home = Home::empty();
    let (image, dir) = (home.dir.join("image"), home.dir.join("mounted"));
    fs::create_dir_all(&dir).unwrap();
    File::create(&image).unwrap().set_len(4 << 30).unwrap();
    let ran = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let made = ran(Command::new(format!("/usr/sbin/mkfs.{kind}")).arg("-q").arg(&image))
        && ran(Command::new("mount").args(["-o", "loop"]).args([&image, &dir]));
    if !made {
        eprintln!("SKIPPED: no {kind} can be made and mounted here");
    }
    made.then_some(Mounted { _home: home, dir })
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

#[test]
fn nothing_is_lost_on_xfs() {
    if let Some(place) = mounted("xfs") {
        nothing_is_lost(&place.dir.join("node.log"));
    }
}

#[test]
fn nothing_is_lost_on_btrfs_where_the_front_becomes_a_hole() {
    if let Some(place) = mounted("btrfs") {
        let log = place.dir.join("node.log");
        nothing_is_lost(&log);
        let meta = fs::metadata(&log).unwrap();
        assert!(meta.blocks() * 512 < meta.len(), "{} bytes in {} blocks", meta.len(), meta.blocks());
    }
}

/// File systems differ in what they take of a write that is not to wait.
#[test]
fn our_own_log_is_written_on_every_file_system() {
    for kind in ["xfs", "btrfs"] {
        let Some(place) = mounted(kind) else { continue };
        let home = Home::new();
        let logs = home.root().join("logs");
        fs::create_dir_all(&logs).unwrap();
        assert!(Command::new("mount").arg("--bind").args([&place.dir, &logs]).status().unwrap().success());
        let _bound = Mounted { _home: Home::empty(), dir: logs.clone() };
        let args = home.node_args();
        let words: Vec<&str> = ["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect();
        home.run(&words).code(0);
        home.run(&["stop"]).code(0);
        let text = fs::read_to_string(logs.join("wemixvisor.log")).unwrap();
        for part in ["supervises", "the node runs", "asked to stop", "the node ended"] {
            assert!(text.contains(part), "{kind}: {part:?} is not in {text}");
        }
        assert!(!text.contains("lost"), "{kind}: {text}");
    }
}

#[test]
fn a_log_that_was_removed_is_kept_bounded_and_read_as_long_as_the_node_writes_to_it() {
    let home = Home::new();
    let log = home.dir.join("node.log");
    let supervisor = flooded(&home, &log, "64MiB", 150);
    fs::remove_file(&log).unwrap();
    let node = home.status()["pid"].as_u64().unwrap();
    let open = PathBuf::from(format!("/proc/{node}/fd/1"));
    assert!(trims(&open, 2) > 0);
    let own = home.root().join("logs/wemixvisor.log");
    let warned = || fs::read_to_string(&own).unwrap().matches("was removed while the node writes to it").count();
    until("it is said", || (warned() > 0).then_some(()));
    let last = home.run(&["logs", "-n", "3"]).code(0).out;
    assert!(last.lines().filter_map(|line| number(line.as_bytes())).count() >= 2, "{last}");
    assert!(lives(supervisor));
    home.run(&["stop"]).code(0);
    assert_eq!(warned(), 1);
}

#[test]
fn nothing_is_lost_on_tmpfs_where_the_front_becomes_a_hole() {
    let dir = Home::empty();
    if let Some(place) = tmpfs(&dir.dir.join("memory"), "3G") {
        nothing_is_lost(&place.0.join("node.log"));
    }
}

/// The control: the same writer, the same detector, and the way that rotating tools trim.
#[test]
fn copy_and_truncate_does_lose_and_the_detector_sees_it() {
    let home = Home::new();
    let (log, copy) = (home.dir.join("node.log"), home.dir.join("copy"));
    flooded(&home, &log, "0", 150);
    let lost = until("something is lost", || {
        fs::copy(&log, &copy).unwrap();
        File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        let (_, last) = contiguous(&copy).unwrap();
        let next = until("it goes on", || Some(front(&log)).filter(|next| *next > 0));
        // The first line after the cut may be torn.
        (next > last + 2).then_some((last, next))
    });
    home.run(&["stop"]).code(0);
    // Put together, as an operator would read it.
    let mut whole = OpenOptions::new().append(true).open(&copy).unwrap();
    whole.write_all(b"\n").unwrap();
    whole.write_all(&fs::read(&log).unwrap()).unwrap();
    assert!(contiguous(&copy).is_err(), "{lost:?}");
}

#[test]
fn a_follower_reads_every_line_across_trims() {
    let home = Home::new();
    let log = home.dir.join("node.log");
    flooded(&home, &log, "2MiB", 3);
    let mut follow = home.command(&["logs", "-f", "-n", "1", "--grep", "Flooding"]);
    let mut child = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let reader = std::thread::spawn({
        let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let mut expected = None;
        let mut errors = Vec::new();
        let mut count = 0;
        move || {
            while let Some(Ok(line)) = lines.next() {
                let n = number(&line);
                if n.is_none() || expected.is_some_and(|expected| Some(expected) != n) {
                    errors.push(format!("{n:?} in place of {expected:?}"));
                }
                expected = n.map(|n| n + 1);
                count += 1;
            }
            (errors, count)
        }
    });
    trims(&log, 4);
    kill(child.id(), Signal::TERM);
    let mut notes = String::new();
    child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
    let (errors, count) = reader.join().unwrap();
    child.wait().unwrap();
    home.run(&["stop"]).code(0);
    assert_eq!((errors, notes.as_str()), (Vec::new(), ""));
    assert!(count > 10_000, "{count}");
}

#[test]
fn a_log_that_cannot_be_trimmed_is_left_alone_and_named_once() {
    let home = Home::new();
    let (target, link) = (home.dir.join("target"), home.dir.join("link"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    flooded(&home, &link, "1MiB", 10);
    let own = home.root().join("logs/wemixvisor.log");
    let said = |text: &str| text.lines().filter(|line| line.contains("is a link: it is not trimmed")).count();
    until("it is said", || (said(&fs::read_to_string(&own).unwrap()) > 0).then_some(()));
    let before = fs::metadata(&target).unwrap().len();
    until("it grows", || (fs::metadata(&target).unwrap().len() > before + (20 << 20)).then_some(()));
    home.run(&["stop"]).code(0);
    assert_eq!(said(&fs::read_to_string(&own).unwrap()), 1);
    assert_eq!(contiguous(&target).unwrap().0, 0);
}

#[test]
fn our_own_log_is_kept_bounded_too() {
    let home = Home::new();
    let own = home.root().join("logs/wemixvisor.log");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    let line = format!("{}\n", "x".repeat(99));
    fs::write(&own, line.repeat(200_000)).unwrap();
    let args = home.node_args();
    home.run(&["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect::<Vec<_>>()).code(0);
    until("it is trimmed", || {
        let file = File::open(&own).unwrap();
        let begin = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
        (file.metadata().unwrap().len() - begin < 10 << 20).then_some(())
    });
    home.run(&["stop"]).code(0);
    let text = fs::read_to_string(&own).unwrap();
    let last: Vec<&str> = text.lines().filter(|line| !line.contains("xxx")).collect();
    assert!(last.len() >= 3 && last.iter().any(|line| line.contains("asked to stop")), "{last:?}");
}

// ---- the command --------------------------------------------------------------------------------

/// A home with this log; no node runs.
fn with_log(text: impl AsRef<[u8]>) -> (Home, PathBuf) {
    let home = Home::new();
    let log = home.root().join("logs/node.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, text).unwrap();
    (home, log)
}

fn lines(said: &Said) -> Vec<&str> {
    said.out.lines().collect()
}

#[test]
fn the_last_lines_are_shown_and_as_many_as_are_asked_for() {
    let text: String = (0..250).map(|n| format!("line {n}\n")).collect();
    let (home, log) = with_log(&text);
    let said = home.run(&["logs"]).code(0);
    assert_eq!((lines(&said).len(), lines(&said)[0], lines(&said)[99]), (100, "line 150", "line 249"));
    assert_eq!(home.run(&["logs", "-n2"]).code(0).out, "line 248\nline 249\n");
    assert_eq!(home.run(&["logs", "--lines", "0"]).code(0).out, "");
    assert_eq!(home.run(&["logs", "-n", "all"]).code(0).out, text);
    assert_eq!(home.run(&["logs", "-n", "1000"]).code(0).out, text);
    assert_eq!(home.run(&["logs", "-n", "2", "--grep", "e [0-9]{2}$"]).code(0).out, "line 98\nline 99\n");
    // A last line that is not whole yet.
    OpenOptions::new().append(true).open(&log).unwrap().write_all(b"half").unwrap();
    assert_eq!(home.run(&["logs", "-n", "2"]).code(0).out, "line 249\nhalf\n");
    fs::write(&log, "").unwrap();
    assert_eq!(home.run(&["logs"]).code(0).out, "");
}

#[test]
fn lines_are_chosen_by_their_stamps_and_those_without_belong_to_the_line_before() {
    let text = "torn end\n\
        t=2026-01-01T10:00:00+0000 lvl=info msg=first\n\
        {\"t\":\"2026-01-01T11:00:00Z\",\"lvl\":\"info\",\"msg\":\"second\"}\n\
        goroutine 1:\n\
        t=2026-01-01T09:30:00+0000 lvl=info msg=back\n\
        t=2026-01-01T12:00:00Z lvl=info msg=third\n\
        more\n\
        t=2026-01-01T13:00:00Z lvl=info msg=fourth\n";
    let (home, _) = with_log(text);
    let of = |args: &[&str]| {
        let said = home.run(&[&["logs"], args].concat()).code(0);
        lines(&said).iter().map(|line| line.split("msg=").last().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let second = "{\"t\":\"2026-01-01T11:00:00Z\",\"lvl\":\"info\",\"msg\":\"second\"}";
    assert_eq!(of(&["--since", "2026-01-01T10:30:00Z"]), [second, "goroutine 1:", "third", "more", "fourth"]);
    assert_eq!(of(&["--since", "2026-01-01T10:30:00Z", "-n", "3"]), ["third", "more", "fourth"]);
    assert_eq!(of(&["--since", "2026-01-01T10:30:00Z", "-n", "4"]), ["goroutine 1:", "third", "more", "fourth"]);
    // A stamp that goes back: each line by its own.
    assert_eq!(of(&["--until", "2026-01-01T10:00:00Z"]), ["first", "back"]);
    assert_eq!(of(&["--since", "2026-01-01T10:30:00Z", "--until", "2026-01-01T12:00:00Z"]).len(), 4);
    assert_eq!(of(&["--since", "2026-01-01T10:30:00Z", "--grep", "more|gorou", "-n1"]), ["more"]);
    assert_eq!(of(&["--since", "2026-02-01"]), [""; 0]);
    fs::write(home.root().join("logs/node.log"), "no stamp\n").unwrap();
    let said = home.run(&["logs", "--since", "1h"]).code(0);
    assert!(said.out.is_empty() && said.err.contains("no line"), "{said:?}");
}

#[test]
fn a_node_of_ours_can_be_asked_for_by_time() {
    let home = Home::new();
    let args = home.node_args();
    home.run(&["start", "--"].into_iter().chain(args.iter().map(String::as_str)).collect::<Vec<_>>()).code(0);
    assert!(home.run(&["logs", "--since", "1m"]).code(0).out.contains("Starting peer-to-peer node"));
    assert!(!home.run(&["logs", "--until", "1h"]).code(0).out.contains("Starting peer-to-peer node"));
    home.run(&["stop"]).code(0);
}

#[test]
fn bad_wishes_are_told_and_a_log_that_is_not_there_is_1() {
    let home = Home::new();
    home.run(&["logs"]).code(1).one_error("logs/node.log");
    home.run(&["logs", "--grep", "("]).code(2).one_error("--grep: \"(\" is no regular expression");
    home.run(&["logs", "--since", "yesterday"]).code(2).one_error("--since: \"yesterday\" is no time");
    home.run(&["logs", "--since", "1m", "--until", "2h"]).code(2).one_error("--since is later than --until");
    home.run(&["logs", "-n", "x"]).code(2).one_error("--lines");
    home.run(&["logs", "-f", "--until", "1h"]).code(2).one_error("--follow");
    home.run(&["logs", "--json"]).code(2).one_error("--json");
    home.run(&["--set", "log_file=/dev/null", "logs"]).code(1).one_error("/dev/null is no regular file");
    let fifo = home.dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    home.run(&["--set", &format!("log_file={}", fifo.display()), "logs"]).code(1).one_error("no regular file");
}

#[test]
fn a_log_that_may_not_be_read_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let (home, log) = with_log("secret\n");
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    for dir in [&home.dir, &home.root(), &home.root().join("wemixvisor")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let copy = home.dir.join("program");
    fs::copy(wemixvisor(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).arg("logs");
    command.env("DAEMON_HOME", home.root());
    said(command).code(1).one_error("node.log: Permission denied");
}

#[test]
fn nothing_in_a_log_drives_the_terminal() {
    let (home, _) = with_log(b"\x1b[32mINFO \x1b[0m[11-26|04:15:34.088] ok\n\x1b]0;x\x07\0\xff\x9b2J\r\nlast\n");
    let said = home.run(&["logs"]).code(0);
    assert_eq!(lines(&said)[0], "INFO [11-26|04:15:34.088] ok");
    assert!(said.out.chars().all(|c| !c.is_control() || c == '\n'), "{said:?}");
    assert_eq!(lines(&said).len(), 3);
}

#[test]
fn a_line_of_any_length_takes_bounded_memory() {
    let (home, log) = with_log("first\n");
    // One line of a gigabyte: a hole, which reads as zeros.
    let file = OpenOptions::new().append(true).open(&log).unwrap();
    file.set_len(1 << 30).unwrap();
    (&file).write_all(b"\nlast\n").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 65536; exec \"$0\" logs", wemixvisor()]).env("DAEMON_HOME", home.root());
    let said = said(command).code(0);
    assert_eq!((lines(&said).len(), lines(&said)[0], lines(&said)[2]), (3, "first", "last"));
    assert!(lines(&said)[1].contains("bytes more)"));
}

#[test]
fn the_last_lines_of_a_huge_log_are_found_without_reading_it() {
    let (home, log) = with_log("first\n");
    let file = OpenOptions::new().append(true).open(&log).unwrap();
    if file.set_len(100 << 30).is_err() {
        eprintln!("SKIPPED: no file of 100 GiB can be made here");
        return;
    }
    let tail: String = (0..200).map(|n| format!("\nline {n}")).collect();
    (&file).write_all(tail.as_bytes()).unwrap();
    let said = home.run(&["logs"]).code(0);
    assert_eq!((lines(&said).len(), lines(&said)[99]), (100, "line 199"));
}

/// A follower whose lines are awaited.
struct Follower {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Follower {
    fn new(home: &Home, args: &[&str]) -> Follower {
        let mut command = home.command(&[&["logs", "-f"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Follower { child, lines }
    }

    /// The next line; a follower that says none makes the test hang, which its runner ends.
    fn next(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn end(mut self) -> String {
        // Not INT: where the tests were started in the background it is ignored, by whom they start as well.
        kill(self.child.id(), Signal::TERM);
        let mut notes = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status:?}");
        notes
    }
}

fn append(log: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(log).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_follower_goes_on_after_truncation_and_with_another_file() {
    let (home, log) = with_log("one\ntwo\n");
    let mut follower = Follower::new(&home, &["-n", "1"]);
    assert_eq!(follower.next(), "two");
    append(&log, "thr");
    append(&log, "ee\n");
    assert_eq!(follower.next(), "three");
    // Truncated and written again.
    fs::write(&log, "four\n").unwrap();
    assert_eq!(follower.next(), "four");
    // Renamed, with a last line, and made anew.
    append(&log, "five\n");
    fs::rename(&log, log.with_extension("1")).unwrap();
    append(&log, "six\n");
    assert_eq!(follower.next(), "five");
    assert_eq!(follower.next(), "six");
    let notes = follower.end();
    assert!(notes.contains("trimmed or truncated") && notes.lines().count() == 1, "{notes}");
}

#[test]
fn a_follower_waits_for_a_log_that_is_not_there_yet() {
    let home = Home::new();
    let log = home.root().join("logs/node.log");
    let mut follower = Follower::new(&home, &[]);
    let mut note = [0; 12];
    follower.child.stderr.as_mut().unwrap().read_exact(&mut note).unwrap();
    assert_eq!(&note, b"waiting for ");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    append(&log, "one\n");
    assert_eq!(follower.next(), "one");
    follower.end();
}

#[test]
fn what_is_written_from_now_on_is_shown_whatever_its_stamp_says() {
    let (home, log) = with_log("t=2001-01-01T00:00:00Z old\n");
    append(&log, &format!("t={}-01-01T00:00:00Z new\n", 2100));
    let mut follower = Follower::new(&home, &["--since", "2090-01-01"]);
    assert_eq!(follower.next(), "t=2100-01-01T00:00:00Z new");
    append(&log, "t=2001-01-01T00:00:00Z back\n");
    assert_eq!(follower.next(), "t=2001-01-01T00:00:00Z back");
    follower.end();
}

#[test]
fn a_reader_that_is_gone_ends_it_quietly() {
    let (home, log) = with_log("line\n".repeat(300_000));
    for args in [&["-n", "all"][..], &["-f"]] {
        let mut command = home.command(&[&["logs"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut line).unwrap();
        // Nothing more is written: it must see by itself that nobody reads.
        let status = until("it ends", || child.try_wait().unwrap());
        let mut notes = String::new();
        child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
        assert!(status.success() && notes.is_empty(), "{status:?} {notes}");
    }
    assert_eq!(fs::metadata(log).unwrap().len(), 1_500_000);
}

#[test]
fn the_output_of_a_node_in_the_foreground_is_found_where_its_supervisor_put_it() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    assert!(home.run(&["logs", "-n", "all"]).code(0).out.contains("Starting peer-to-peer node"), "from dir/err");
    visor.stop();
    // A pipe can be read by nobody else.
    let args = home.node_args();
    let mut command = home.command(&[&["run"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stderr.take().unwrap();
    let drain = std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
    home.until_status("the node answers", |s| s["head_known"] == true);
    home.run(&["logs"]).code(1).one_error("pipe:");
    home.run(&["stop"]).code(0);
    child.wait().unwrap();
    drain.join().unwrap().unwrap();
    // A socket is the journal's.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = home.command(&[&["run"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    let mut child = command.stdout(Stdio::null()).stderr(std::os::fd::OwnedFd::from(theirs)).spawn().unwrap();
    drop(command);
    let drain = std::thread::spawn(move || std::io::copy(&mut &ours, &mut std::io::sink()));
    home.until_status("the node answers", |s| s["head_known"] == true);
    let said = home.run(&["logs", "-f", "-n5", "--since", "2026-01-01T00:00:00Z", "--grep", "it's"]).code(1);
    let command = " -n 5 -f --since=@1767225600 --grep='it'\\''s'";
    assert!(said.err.contains("journalctl ") && said.err.trim_end().ends_with(command), "{said:?}");
    home.run(&["stop"]).code(0);
    child.wait().unwrap();
    drain.join().unwrap().unwrap();
}

// ---- our own log --------------------------------------------------------------------------------

/// Runs a supervisor whose log goes there, and returns what it wrote.
fn logged(
    home: &Home,
    ours: &[&str],
    env: &[(&str, String)],
    err: impl Into<Stdio>,
    read: impl FnOnce() -> String,
) -> String {
    let args = home.node_args();
    let words = ["--set", "log_file=/dev/null"].into_iter().chain(ours.iter().copied()).chain(["run"]);
    let words: Vec<&str> = words.chain(args.iter().map(String::as_str)).collect();
    let mut command = home.command(&words);
    command.envs(env.iter().map(|(k, v)| (*k, v))).stdout(Stdio::null()).stderr(err);
    let mut child = command.spawn().unwrap();
    drop(command);
    home.until_status("the node answers", |s| s["head_known"] == true);
    home.run(&["stop"]).code(0);
    until("it ends", || child.try_wait().unwrap());
    read()
}

#[test]
fn our_log_has_stamps_for_people_and_priorities_for_the_journal() {
    let home = Home::new();
    let path = home.dir.join("log");
    let run = |ours: &[&str], env: &[(&str, String)]| {
        let file = File::create(&path).unwrap();
        logged(&home, ours, env, file, || fs::read_to_string(&path).unwrap())
    };
    let plain = run(&[], &[]);
    let line = plain.lines().find(|line| line.contains("the node runs release=genesis pid=")).unwrap();
    assert!(line.contains("Z INFO  the node runs") && !plain.contains('\x1b'), "{plain}");
    let meta = fs::metadata(&path).unwrap();
    let journal = run(&[], &[("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()))]);
    assert!(
        journal.lines().all(|line| line.starts_with("<6>wemixvisor: ") || line.starts_with("<4>wemixvisor: ")),
        "{journal}"
    );
    // Inherited from somebody else, whose stderr was the journal.
    let other = run(&[], &[("JOURNAL_STREAM", "8:1".to_owned())]);
    assert!(other.contains("Z INFO  the node runs") && !other.contains("<6>"), "{other}");
    assert!(!run(&["--quiet"], &[]).contains("INFO"));
    assert!(!run(&[], &[("RUST_LOG", "error".to_owned())]).contains("INFO"));
    assert_eq!(run(&["--set", "cosmovisor_disable_logs=true"], &[]), "");
}

/// A supervisor on a terminal, through script(1): what is written to the first is typed, the second is what it shows.
fn on_terminal(home: &Home, ours: &str) -> Child {
    let line = format!("exec {} {ours} --set log_file=/dev/null run {}", wemixvisor(), home.node_args().join(" "));
    let mut command = Command::new("script");
    command
        .args(["-qfec", &line, "/dev/null"])
        .env("DAEMON_HOME", home.root())
        .env_remove("NO_COLOR")
        .current_dir(&home.dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn our_log_has_colours_on_a_terminal_unless_they_are_unwanted() {
    for (ours, coloured) in [("", true), ("--set color_logs=false", false)] {
        let ours = ours.replace("color_logs", "cosmovisor_color_logs");
        let home = Home::new();
        let mut child = on_terminal(&home, &ours);
        home.until_status("the node answers", |s| s["head_known"] == true);
        home.run(&["stop"]).code(0);
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        assert!(text.contains("the node runs"), "{text}");
        assert_eq!(text.contains("\x1b[32mINFO"), coloured, "{text}");
    }
}

/// Makes the supervisor say many lines: each reload is one.
fn talk(home: &Home, supervisor: u32, times: u32) {
    for _ in 0..times {
        kill(supervisor, Signal::HUP);
        assert_eq!(home.status()["state"], "running");
    }
}

#[test]
fn a_terminal_that_is_stopped_stops_only_the_log_and_what_was_lost_is_counted() {
    let home = Home::new();
    let mut child = on_terminal(&home, "");
    let mut typed = child.stdin.take().unwrap();
    let supervisor = u32::try_from(
        home.until_status("the node answers", |s| s["head_known"] == true)["supervisor_pid"].as_u64().unwrap(),
    )
    .unwrap();
    let mut shown = child.stdout.take().unwrap();
    let all = std::thread::spawn(move || {
        let mut text = String::new();
        shown.read_to_string(&mut text).map(|_| text)
    });
    typed.write_all(b"\x13").unwrap();
    talk(&home, supervisor, 300);
    assert!(lives(supervisor));
    typed.write_all(b"\x11").unwrap();
    talk(&home, supervisor, 5);
    home.run(&["stop"]).code(0);
    let text = all.join().unwrap().unwrap();
    child.wait().unwrap();
    assert!(text.contains("log lines were lost"), "{text}");
    // What was asked for last may be told after it.
    assert!(text.split("lines were lost").last().unwrap().contains("the node ended"), "{text}");
}

#[test]
fn lines_that_a_full_pipe_did_not_take_are_counted_and_the_log_goes_on() {
    let home = Home::new();
    let (mut read, write) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    let args = home.node_args();
    let words: Vec<&str> =
        ["--set", "log_file=/dev/null", "run"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let mut command = home.command(&words);
    let mut child = command.stdout(Stdio::null()).stderr(write).spawn().unwrap();
    drop(command);
    home.until_status("the node answers", |s| s["head_known"] == true);
    talk(&home, child.id(), 200);
    // It is read again.
    let all = std::thread::spawn(move || {
        let mut text = String::new();
        read.read_to_string(&mut text).map(|_| text)
    });
    talk(&home, child.id(), 5);
    home.run(&["stop"]).code(0);
    until("it ends", || child.try_wait().unwrap());
    let text = all.join().unwrap().unwrap();
    let lost: u64 =
        text.lines().filter_map(|line| line.strip_prefix('(')?.split(' ').next()?.parse::<u64>().ok()).sum();
    assert!(lost > 10, "{text}");
    // Whole lines only.
    assert!(
        text.lines().all(|line| line.starts_with('(') || line.contains("Z INFO  ") || line.contains("Z WARN  ")),
        "{text}"
    );
}
