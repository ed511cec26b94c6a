//! What each known plan's standing is, and which one is due. Pure: it is told what is known and asks nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::home::{Name, Release};
use crate::journal::Outcome;
use crate::plan::Rolling;
use crate::source::Source;

/// A plan as found in a file, with the release it would run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The name of the upgrade.
    pub name: Name,
    /// The first block that the new release must execute.
    pub height: u64,
    /// Digest of the plan's content.
    pub digest: String,
    /// What a person wrote about it.
    pub description: Option<String>,
    /// Where its release can be fetched, if the plan says so; the error is what is wrong with what it says.
    pub source: Result<Option<Source>, String>,
    /// The batch plan that it is a part of.
    pub batch: Option<Name>,
    /// When validators take their turns.
    pub rolling: Rolling,
    /// The release that its name stands for.
    pub release: Release,
    /// What the release's files looked like (size, time, inode, mode); `None` when its binary is not there, or not the one
    /// that the plan wants.
    pub print: Option<String>,
    /// Why the one that is there is not the one that the plan wants, if so.
    #[serde(default)]
    pub other: Option<String>,
    /// The file, relative to the home.
    pub file: String,
    /// How this very content ended earlier, and why.
    pub outcome: Option<(Outcome, String)>,
}

/// What is to become of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits for its height.
    Pending,
    /// Its release is the current one.
    Done,
    /// It will not run: its time was before.
    Past(String),
    /// It was tried and did not work; it is not tried again by itself.
    Failed(String),
    /// It contradicts another plan.
    Conflict(String),
    /// One before it in the same batch plan did not work.
    Held(String),
}

/// What the standings depend on, beside the plans.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The release that `current` points at.
    pub current: Option<Release>,
    /// The height of the plan that brought it.
    pub brought: Option<u64>,
}

/// A plan and its standing.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The plan.
    pub plan: Found,
    /// What is to become of it.
    pub standing: Standing,
}

/// All known plans, by height.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    /// One entry per name and height.
    pub entries: Vec<Entry>,
}

impl Schedule {
    /// Judges the plans. The same name and height in several files is one plan (the first file's content counts).
    pub fn new(found: &[Found], known: &Known) -> Schedule {
        let mut plans: BTreeMap<(u64, Name), Found> = BTreeMap::new();
        for plan in found {
            plans.entry((plan.height, plan.name.clone())).or_insert_with(|| plan.clone());
        }
        let standing = |plan: &Found| {
            if known.current.as_ref() == Some(&plan.release) {
                return Standing::Done;
            }
            match &plan.outcome {
                Some((Outcome::Reverted | Outcome::Failed, why)) => return Standing::Failed(why.clone()),
                Some((Outcome::Passed | Outcome::Cancelled, why)) => return Standing::Past(why.clone()),
                Some((Outcome::Committed, _)) => return Standing::Past("it was carried out earlier".to_owned()),
                None => {}
            }
            if let Some(brought) = known.brought.filter(|&brought| plan.height <= brought) {
                return Standing::Past(format!("the current release came at height {brought}"));
            }
            Standing::Pending
        };
        let mut entries: Vec<Entry> =
            plans.values().map(|plan| Entry { standing: standing(plan), plan: plan.clone() }).collect();
        // Only plans that would run can contradict each other.
        let waiting: Vec<(u64, Name)> = entries
            .iter()
            .filter(|e| e.standing == Standing::Pending)
            .map(|e| (e.plan.height, e.plan.name.clone()))
            .collect();
        for entry in entries.iter_mut().filter(|e| e.standing == Standing::Pending) {
            let plan = &entry.plan;
            if let Some((height, name)) =
                waiting.iter().find(|(height, name)| (*height == plan.height) != (*name == plan.name))
            {
                entry.standing = Standing::Conflict(if *height == plan.height {
                    format!("{} and {name} both want height {height}: withdraw one", plan.name)
                } else {
                    format!("{name} is planned at {} and at {height}: withdraw one", plan.height)
                });
            }
        }
        hold_back(&mut entries);
        Schedule { entries }
    }

    /// The plans that wait, nearest first.
    pub fn pending(&self) -> impl Iterator<Item = &Found> {
        self.entries.iter().filter(|e| e.standing == Standing::Pending).map(|e| &e.plan)
    }

    /// Which of the plans that are due runs: the highest, or, where that is one of a batch, the lowest of that batch.
    pub fn chosen(&self, is_due: impl Fn(&Found) -> bool) -> Option<&Found> {
        let highest = self.pending().filter(|plan| is_due(plan)).last()?;
        match &highest.batch {
            Some(batch) => self.pending().find(|plan| is_due(plan) && plan.batch.as_ref() == Some(batch)),
            None => Some(highest),
        }
    }

    /// The plans that a due one passes over.
    pub fn passed_by(&self, due: &Found) -> Vec<Found> {
        self.pending().filter(|plan| plan.height < due.height).cloned().collect()
    }

    /// The nearest plan that is not due yet.
    pub fn next(&self, is_due: impl Fn(&Found) -> bool) -> Option<&Found> {
        self.pending().find(|plan| !is_due(plan))
    }
}

/// The upgrades of a batch plan run one after the other: those behind one that cannot run wait for the operator.
fn hold_back(entries: &mut [Entry]) {
    let mut stopped: BTreeMap<Name, String> = BTreeMap::new();
    for entry in entries {
        let Some(batch) = &entry.plan.batch else { continue };
        let name = &entry.plan.name;
        let why = match &entry.standing {
            Standing::Failed(_) => format!("{name}, before it in plan {batch}, failed: retry or cancel that one first"),
            Standing::Conflict(_) => format!("{name}, before it in plan {batch}, contradicts another plan"),
            Standing::Pending => {
                if let Some(why) = stopped.get(batch) {
                    entry.standing = Standing::Held(why.clone());
                }
                continue;
            }
            Standing::Done | Standing::Past(_) | Standing::Held(_) => continue,
        };
        stopped.entry(batch.clone()).or_insert(why);
    }
}

/// The head at which a plan is due: the block before its height, or `lead` blocks earlier.
pub fn due_at(height: u64, lead: u64) -> u64 {
    height.saturating_sub(1).saturating_sub(lead)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plan(name: &str, height: u64) -> Found {
        let name = Name::parse(name).unwrap();
        Found {
            release: Release::Upgrade(name.clone()),
            digest: format!("{name}@{height}"),
            file: format!("data/upgrades/{height}/upgrade-info.json"),
            name,
            height,
            description: None,
            source: Ok(None),
            batch: None,
            rolling: Rolling::default(),
            print: None,
            other: None,
            outcome: None,
        }
    }

    /// By the head alone, as for a node that has no turn to take. An unknown head reaches nothing.
    fn reached(head: Option<u64>, lead: u64) -> impl Fn(&Found) -> bool {
        move |plan| head.is_some_and(|head| head >= due_at(plan.height, lead))
    }

    fn standings(found: &[Found], known: &Known) -> Vec<Standing> {
        Schedule::new(found, known).entries.into_iter().map(|e| e.standing).collect()
    }

    #[test]
    fn a_plan_is_due_one_block_before_its_height_and_never_on_an_unknown_head() {
        let schedule = Schedule::new(&[plan("v2", 100)], &Known::default());
        let due = |head, lead| schedule.chosen(reached(head, lead)).is_some();
        assert!(!due(None, 0));
        assert!(!due(Some(0), 0));
        assert!(!due(Some(98), 0));
        assert!(due(Some(99), 0));
        assert!(due(Some(100), 0));
        assert!(!due(Some(94), 4));
        assert!(due(Some(95), 4));
        assert!(due(Some(0), 1000));
        assert!(due(Some(0), 0) == (due_at(1, 0) > 0), "height 1 alone is due at head 0");
        assert_eq!(due_at(1, 0), 0);
    }

    #[test]
    fn of_several_due_plans_the_highest_runs_and_the_lower_are_passed() {
        let schedule = Schedule::new(&[plan("v3", 200), plan("v2", 100), plan("v4", 300)], &Known::default());
        assert_eq!(schedule.chosen(reached(Some(250), 0)).unwrap().name.as_str(), "v3");
        assert_eq!(schedule.passed_by(schedule.chosen(reached(Some(250), 0)).unwrap()).len(), 1);
        assert_eq!(schedule.next(reached(Some(250), 0)).unwrap().name.as_str(), "v4");
        assert_eq!(schedule.next(reached(None, 0)).unwrap().name.as_str(), "v2");
    }

    #[test]
    fn the_upgrades_of_a_batch_run_one_after_the_other_and_one_that_failed_holds_those_behind_it() {
        let of = |name: &str, height: u64, outcome: Option<Outcome>| {
            let outcome = outcome.map(|outcome| (outcome, "it died".to_owned()));
            Found { batch: Some(Name::parse("b").unwrap()), outcome, ..plan(name, height) }
        };
        let all = [of("v2", 100, None), of("v3", 200, None), of("v4", 300, None), plan("x", 150)];
        let schedule = Schedule::new(&all, &Known::default());
        let due = |head| schedule.chosen(reached(Some(head), 0)).map(|plan| plan.name.to_string());
        assert_eq!(due(98), None);
        assert_eq!(due(250).as_deref(), Some("v2"), "also where later ones are due");
        let done = Known { current: Some(Release::parse("v2").unwrap()), brought: Some(100) };
        let next = Schedule::new(&all, &done);
        assert_eq!(next.chosen(reached(Some(250), 0)).unwrap().name.as_str(), "v3");
        assert_eq!(next.passed_by(next.chosen(reached(Some(250), 0)).unwrap()).len(), 1, "x, which is no part of it");
        let failed = [
            of("v2", 100, Some(Outcome::Committed)),
            of("v3", 200, Some(Outcome::Reverted)),
            of("v4", 300, None),
            plan("y", 400),
        ];
        let shape = standings(&failed, &done);
        assert_eq!(shape[1], Standing::Failed("it died".to_owned()));
        assert!(
            matches!(&shape[2], Standing::Held(why) if why.contains("v3, before it in plan b, failed")),
            "{shape:?}"
        );
        assert_eq!(shape[3], Standing::Pending, "another plan is not held");
        let schedule = Schedule::new(&failed, &done);
        assert!(schedule.chosen(reached(Some(350), 0)).is_none());
        assert_eq!(schedule.chosen(reached(Some(450), 0)).unwrap().name.as_str(), "y");
    }

    #[test]
    fn the_same_plan_in_two_files_is_one_and_contradictions_run_nothing() {
        assert_eq!(standings(&[plan("v2", 100), plan("v2", 100)], &Known::default()), [Standing::Pending]);
        for pair in [[plan("v2", 100), plan("v3", 100)], [plan("v2", 100), plan("v2", 200)]] {
            let schedule = Schedule::new(&pair, &Known::default());
            assert!(schedule.entries.iter().all(|e| matches!(e.standing, Standing::Conflict(_))), "{schedule:?}");
            assert!(schedule.chosen(reached(Some(1000), 0)).is_none());
        }
    }

    #[test]
    fn past_done_and_failed_plans_are_shown_and_never_executed() {
        let known = Known { current: Some(Release::parse("v2").unwrap()), brought: Some(100) };
        let ended = |name: &str, height: u64, outcome: Outcome, why: &str| {
            let mut plan = plan(name, height);
            plan.outcome = Some((outcome, why.to_owned()));
            plan
        };
        let plans = [
            plan("v1", 100),
            plan("v2", 100),
            ended("v4", 400, Outcome::Passed, "too late"),
            ended("v5", 500, Outcome::Reverted, "it died"),
            plan("v6", 600),
            plan("v7", 440),
        ];
        let schedule = Schedule::new(&plans, &known);
        let shape: Vec<String> = schedule.entries.iter().map(|e| format!("{} {:?}", e.plan.name, e.standing)).collect();
        assert!(shape[0].starts_with("v1 Past"), "{shape:?}");
        assert_eq!(shape[1], "v2 Done");
        assert_eq!(shape[2], "v4 Past(\"too late\")");
        assert_eq!(shape[3], "v7 Pending");
        assert_eq!(shape[4], "v5 Failed(\"it died\")");
        assert_eq!(shape[5], "v6 Pending");
        assert_eq!(schedule.chosen(reached(Some(450), 0)).unwrap().name.as_str(), "v7");
    }
}
