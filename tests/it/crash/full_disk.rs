//! The disk is full, but for a few pages, from the moment that a step, the clearing or the shim begins: a node runs all the
//! same, and once there is room again the upgrade ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::course::{Course, Program, nodes, results};
use super::faults::{caught, targets};
use super::watch::Watch;
use super::{Dice, End, Run, seed, strace_is_missing, try_all};
use crate::support::{Home, mocknode};

/// The size of the disk: some releases and a little more.
const SIZE: &str = "size=48m";

/// A disk of its own for one home; what the node writes lies elsewhere.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Disk> {
        fs::create_dir_all(at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "none"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then(|| Disk(at.to_owned()))
    }

    /// Leaves so many free pages.
    fn fill(&self, pages: u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let leave = pages * 4096;
        let free = stat.f_bavail * stat.f_frsize;
        fs::write(self.0.join("fill"), vec![1; usize::try_from(free.saturating_sub(leave)).unwrap()]).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Fills the disk when this process begins, and judges.
fn run(course: &Course, who: &str, nth: usize, pages: u64) -> Run {
    let home = Home::empty();
    let disk = Disk::mount(&home.root()).unwrap();
    let node = home.dir.join("node");
    assert!(Command::new("strip").arg("-o").arg(&node).arg(mocknode()).status().unwrap().success());
    fs::set_permissions(&node, fs::Permissions::from_mode(0o755)).unwrap();
    home.run(&["init", node.to_str().unwrap()]).code(0);
    for release in ["upgrades/v1/bin", "upgrades/v2/bin"] {
        fs::create_dir_all(home.own(release)).unwrap();
        fs::hard_link(home.own("genesis/bin/node"), home.own(release).join("node")).unwrap();
    }
    course.lay_out(&home);
    let mut watch = Watch::new(&home, course);
    let Some((mut visor, ())) = caught(course, &home, who, nth, |_| disk.fill(pages)) else {
        return Run { end: End::Missed, violations: Vec::new(), report: String::new() };
    };
    let mut violations = Vec::new();
    let began = Instant::now();
    let mut up = None;
    // One that is up and stays up: what cannot start ends within milliseconds.
    while began.elapsed() < course.patience && up.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(300)) {
        up = up.filter(|_| nodes(&home).len() == 1).or_else(|| (nodes(&home).len() == 1).then(Instant::now));
        watch.look();
        std::thread::sleep(Duration::from_millis(5));
    }
    // Where the old release cannot run on what the new one left, only room for the data of before helps.
    if up.is_none() && course.name == "forward" {
        violations.push("no node runs while the disk is full".to_owned());
    }
    disk.empty();
    while began.elapsed() < 2 * course.patience && visor.lives() && !watch.ended(&mut visor, false) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let bad = results(&home) != ["committed"];
    violations.extend(watch.finish(&mut visor, true));
    let log = home.log();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("No space left") || line.contains("make room")).collect();
    if bad && course.name == "forward" && told.is_empty() {
        violations.push("nobody was told why".to_owned());
    }
    violations.extend(
        told.iter()
            .filter(|line| !line.contains(home.dir.to_str().unwrap()))
            .map(|line| format!("no file is named: {line}")),
    );
    violations
        .iter_mut()
        .for_each(|violation| *violation = format!("{} {who} {nth}, {pages} pages: {violation}", course.name));
    let report = if violations.is_empty() { String::new() } else { home.report() };
    Run { end: End::Reached, violations, report }
}

#[test]
fn a_disk_that_is_full_at_any_step_costs_neither_the_node_nor_the_upgrade() {
    let place = Home::empty();
    if strace_is_missing() || Disk::mount(&place.dir).is_none() {
        return eprintln!("SKIPPED: no tmpfs can be mounted here");
    }
    let mut dice = Dice(seed());
    let mut order = Vec::new();
    for (course, who, nth) in targets() {
        let course = Course { under_test: Program::Copying, ..course };
        order.extend((0..8).map(|pages| (dice.roll(), course.clone(), who, nth, pages)));
    }
    order.sort_by_key(|(at, ..)| *at);
    try_all("full disks", &order, Duration::from_secs(15), |(_, course, who, nth, pages)| {
        run(course, who, *nth, *pages)
    });
}
