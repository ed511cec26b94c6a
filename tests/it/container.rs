//! As process 1 of a container: a user without a name, a root that is read-only but for the home, and orphans to reap. It is
//! made with namespaces; without the right to those these tests say so and do nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::{Home, Visor, kill, mocknode, until, wemixvisor};

/// A user that no machine has a name for.
const USER: &str = "412345";

/// A home in such a container; what is copied in is all that it needs.
struct Container {
    home: Home,
}

impl Container {
    fn new() -> Option<Container> {
        let mut probe = Command::new("unshare");
        probe.args(["--pid", "--fork", "--mount", "--mount-proc", "setpriv", "--reuid", USER, "true"]);
        if !probe.output().is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: no container can be made here: it takes root, unshare and setpriv");
            return None;
        }
        let home = Home::empty();
        for (from, to) in [(Path::new(wemixvisor()), "wemixvisor"), (mocknode(), "mock")] {
            assert!(Command::new("cp").arg(from).arg(home.dir.join(to)).status().unwrap().success());
        }
        // Each start leaves an orphan behind that ends at once, and one that ends later.
        let dir = home.dir.display().to_string();
        let script = format!(
            "case $1 in *v*) exec {dir}/mock \"$@\";; esac\n(sleep 0.1 & true); (sleep 0.5 & true)\nexec {dir}/mock \"$@\""
        );
        fs::write(home.dir.join("node"), format!("#!/bin/sh\n{script}\n")).unwrap();
        let container = Container { home };
        assert!(container.command(&["init", &format!("{dir}/node")]).status().unwrap().success());
        Some(container)
    }

    /// A command of ours as process 1, by that user, with nothing in its environment but the home.
    fn command(&self, args: &[&str]) -> Command {
        let dir = self.home.dir.to_str().unwrap();
        let script = "mount --make-rprivate / && mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro / && cd \"$1\" || exit 99; \
                      dir=$1; shift; chown -R \"$1\" \"$dir\"; user=$1; shift; \
                      exec setpriv --reuid \"$user\" --regid \"$user\" --clear-groups --no-new-privs \
                      env -i PATH=/usr/bin:/bin DAEMON_HOME=\"$dir/home\" \"$dir/wemixvisor\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", script, "sh"]);
        command.args([dir, USER]).args(args).stdin(std::process::Stdio::null());
        command
    }

    fn run(&self, node: &[&str]) -> Visor<'_> {
        let args = self.home.node_args();
        let quick = ["--set", "restart_backoff=50ms", "--set", "height_poll_interval=200ms", "run"];
        let words: Vec<&str> =
            quick.into_iter().chain(args.iter().map(String::as_str)).chain(node.iter().copied()).collect();
        self.home.spawn(self.command(&words))
    }

    /// The supervisor, as this side of the container sees it.
    fn supervisor(&self, visor: &Visor) -> u32 {
        until("there is a supervisor", || children(visor.pid()).first().copied())
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn zombies(pid: u32) -> usize {
    let is_zombie = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
    };
    children(pid).iter().filter(|pid| is_zombie(pid)).count()
}

fn mode_and_owner(path: PathBuf) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mode() & 0o777, meta.uid())
}

#[test]
fn as_process_1_without_a_name_it_runs_a_node_on_a_root_that_is_read_only_and_stops_it() {
    let Some(container) = Container::new() else { return };
    let home = &container.home;
    let mut visor = container.run(&[]);
    visor.until_up();
    let supervisor = container.supervisor(&visor);
    let status = fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    assert!(line("NSpid:").ends_with("\t1"), "it is process 1: {}", line("NSpid:"));
    assert!(line("Uid:").contains(USER), "{}", line("Uid:"));
    assert_eq!(home.status()["supervisor_pid"], 1);
    // The control: nothing but the home can be written to.
    let root = format!("/proc/{supervisor}/root");
    let attempt = |path: String| {
        let mut touch = Command::new("nsenter");
        touch.args(["--target", &supervisor.to_string(), "--mount", "touch", &path]);
        touch.output().unwrap().status.success()
    };
    assert!(!attempt("/tmp/wv-probe".to_owned()) && attempt(format!("{}/probe", home.dir.display())), "{root}");
    assert_eq!(mode_and_owner(home.own("control.sock")), (0o600, USER.parse().unwrap()));
    assert_eq!(mode_and_owner(home.own("lock")).1, USER.parse::<u32>().unwrap());
    kill(supervisor, Signal::TERM);
    assert_eq!(visor.end(), 0);
    assert_eq!(home.events("stop").len(), 1, "the node ended cleanly");
}

#[test]
fn as_process_1_it_reaps_the_orphans_that_are_left_to_it() {
    let Some(container) = Container::new() else { return };
    let mut visor = container.run(&[]);
    visor.until_up();
    let supervisor = container.supervisor(&visor);
    until("the orphans are gone", || (children(supervisor).len() == 1).then_some(()));
    // The control: as long as it stands still, an orphan's end is seen.
    kill(supervisor, Signal::STOP);
    let mut orphan = Command::new("nsenter");
    orphan.args(["--target", &supervisor.to_string(), "--pid", "--mount", "sh", "-c", "(sleep 0.1 & true)"]);
    assert!(orphan.status().unwrap().success());
    until("an orphan waits to be reaped", || (zombies(supervisor) == 1).then_some(()));
    kill(supervisor, Signal::CONT);
    until("it was reaped", || (zombies(supervisor) == 0).then_some(()));
    kill(supervisor, Signal::TERM);
    assert_eq!(visor.end(), 0);
}

#[test]
fn the_end_of_process_1_is_the_end_of_its_node() {
    let Some(container) = Container::new() else { return };
    let mut visor = container.run(&[]);
    visor.until_up();
    let supervisor = container.supervisor(&visor);
    kill(supervisor, Signal::KILL);
    visor.end();
    until("nobody holds the data", || container.home.holders().is_empty().then_some(()));
    // And the next one starts on what it left.
    let mut visor = container.run(&[]);
    visor.until_up();
    let supervisor = container.supervisor(&visor);
    kill(supervisor, Signal::TERM);
    assert_eq!(visor.end(), 0);
}
