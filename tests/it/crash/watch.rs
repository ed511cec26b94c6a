//! The detector: what must hold of a home at every instant and what must hold at the end, seen from outside.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::PATIENCE;
use super::course::{Course, DATA, Program, SINCE, backups, data_is, name, nodes, results};
use crate::death::{doubles_in, silent_in};
use crate::support::{Home, Visor};

/// What is seen of a home from outside, all the time.
pub struct Watch<'a> {
    pub home: &'a Home,
    pub course: &'a Course,
    pub operator: Option<Child>,
    pub acknowledged: bool,
    pub seen: BTreeSet<String>,
}

impl<'a> Watch<'a> {
    pub fn new(home: &'a Home, course: &'a Course) -> Watch<'a> {
        Watch { home, course, operator: None, acknowledged: false, seen: BTreeSet::new() }
    }

    /// What must hold at every instant: `current` leads to a release of this upgrade.
    pub fn look(&mut self) {
        match fs::read_link(self.home.own("current")) {
            Err(e) => _ = self.seen.insert(format!("current cannot be read: {e}")),
            Ok(target) if target != Path::new("upgrades/v1") && target != Path::new("upgrades/v2") => {
                self.seen.insert(format!("current points at {}", target.display()));
            }
            Ok(_) if !self.home.own("current/bin/node").is_file() => {
                self.seen.insert("current dangles".to_owned());
            }
            Ok(_) => {}
        }
    }

    /// The same, and whether the run of this program is at its end. `type_it`: the operator is at the keyboard.
    pub fn ended(&mut self, visor: &mut Visor, type_it: bool) -> bool {
        self.look();
        if type_it && matches!(self.course.under_test, Program::Restore) {
            let over = !visor.lives();
            self.acknowledged = over && visor.end() == 0;
            return over;
        }
        if let Some(operator) = &mut self.operator {
            let Some(status) = operator.try_wait().unwrap() else { return false };
            self.acknowledged |= status.success();
            self.operator = None;
        }
        // Done is done, also where the word for it was lost.
        let done = results(self.home) == self.course.ends[0].0;
        if type_it && !self.course.operator.is_empty() && !self.acknowledged && !done {
            // Asked again until it is taken: a supervisor that has just begun does not know its node yet.
            if !nodes(self.home).is_empty() {
                let mut command = self.home.command(self.course.operator);
                self.operator = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            }
            return false;
        }
        self.course.ended(self.home, visor.pid()).is_some()
    }

    /// What must hold at the end. `forced`: only the process at the point was killed, not its supervisor.
    pub fn finish(mut self, visor: &mut Visor, forced: bool) -> Vec<String> {
        if let Some(mut operator) = self.operator.take() {
            let _ = operator.kill();
            let _ = operator.wait();
        }
        let (home, course) = (self.home, self.course);
        let mut wrong = |what: String| _ = self.seen.insert(what);
        let results = results(home);
        match course.ended(home, visor.pid()) {
            None => wrong(format!("it never ended: {results:?}, nodes {:?}", nodes(home))),
            Some((_, release)) => {
                let end = course.ends.iter().position(|(ends, at)| results == **ends && release == *at);
                let wish = !course.operator.is_empty() && !self.acknowledged;
                if end.is_none() || (end != Some(0) && !wish && !forced) {
                    wrong(format!("it ended {results:?} with {release}"));
                }
            }
        }
        if home.holders().is_empty() {
            wrong("a node runs without the lock".to_owned());
        }
        visor.signal(Signal::TERM);
        let began = Instant::now();
        while visor.lives() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        if visor.lives() || visor.end() != 0 {
            wrong("the supervisor does not end well".to_owned());
        }
        if !nodes(home).is_empty() || !home.holders().is_empty() {
            wrong(format!("left behind: {:?} {:?}", nodes(home), home.holders()));
        }
        // What was replaced has a journal of its own.
        let aside = backups(home).into_iter().filter(|path| name(path).starts_with("before-restore"));
        let aside: Vec<PathBuf> = aside.map(|path| path.join("data")).collect();
        for data in aside.iter().chain([&home.datadir()]) {
            let text = fs::read_to_string(data.join("mock.journal")).unwrap_or_default();
            let journal: Vec<Vec<String>> =
                text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect();
            doubles_in(&journal, &silent_in(&journal)).into_iter().for_each(&mut wrong);
        }
        let by_hand = matches!(course.under_test, Program::Restore);
        let old = data_is(home, DATA) && !home.datadir().join("migrated").exists();
        if !old && (!by_hand || self.acknowledged || !data_is(home, SINCE)) {
            wrong("the data is not what it should be".to_owned());
        }
        if !matches!(course.under_test, Program::Script(_)) {
            let made = backups(home).iter().filter(|path| name(path).starts_with("v2-")).count();
            let replaced = usize::from(course.name.starts_with("restoring") && old);
            // One that failed may have done so before it made its backup, and the next try makes its own.
            let made = if home.history().iter().any(|line| line["result"] == "failed") { 1 } else { made };
            // A hook that was killed may have changed the data, which then goes back.
            let replaced = if course.hook.is_some() && forced { aside.len() } else { replaced };
            if (made, aside.len()) != (1, replaced) {
                wrong(format!("backups: {:?}", backups(home)));
            }
            for path in backups(home) {
                let said = home.run(&["backup", "verify", name(&path)]);
                if said.code != 0 {
                    wrong(format!("backup {}: {}", path.display(), said.err));
                }
            }
        }
        if course.hook.is_some() && results == ["committed"] && !home.dir.join("hook").exists() {
            wrong("the hook did not run".to_owned());
        }
        if home.history().iter().any(|line| line["result"] != "committed" && line["reason"] == "") {
            wrong("no reason was recorded".to_owned());
        }
        self.look();
        self.seen.into_iter().collect()
    }
}
