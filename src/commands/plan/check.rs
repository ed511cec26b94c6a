//! Checks batch plans before their time: whether one could be applied, and whether its releases are there and fit.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::super::upgrade::{Ground, fetch_release, findings, parse, stage_now};
use super::super::{Context, answer};
use super::make::{Listed, of_file, sum_of, trusted};
use super::{apply, count, tell};
use crate::batch::Batch;
use crate::error::{Code, Result};
use crate::home::Name;
use crate::job::fetch::origin;
use crate::job::stage::Check;
use crate::job::{batches, check};
use crate::plan::Plan;
use crate::source::{Link, Place, Source};

/// Tells everything that speaks against a batch plan, or against the file that is to become one.
pub fn validate(context: &Context, what: &str) -> Result<ExitCode> {
    let is_file = what.contains('/') || [".json", ".csv"].iter().any(|end| what.to_ascii_lowercase().ends_with(end));
    if is_file {
        return verdict(context, None, what, &checks(context, None, of_file(Path::new(what))));
    }
    let (path, batch) = batches::find(&context.home, &parse(what)?)?;
    if batch.applied_at.is_some() {
        return applied(context, &path, &batch);
    }
    let checks = checks(context, Some(&batch.name), Ok((batch.upgrades, String::new())));
    verdict(context, Some(&batch.name), &path.display().to_string(), &checks)
}

/// One that is applied was judged then; what counts is how its upgrades stand.
fn applied(context: &Context, path: &Path, batch: &Batch) -> Result<ExitCode> {
    let mut checks = vec![finding("it is a batch plan", Ok(Some("applied".to_owned())))];
    for (stand, plan) in tell::stands(context, batch)?.iter().zip(&batch.upgrades) {
        let wrong = matches!(stand.state.as_str(), "failed" | "held" | "conflict");
        let note = if stand.note.is_empty() { stand.state.clone() } else { format!("{}, {}", stand.state, stand.note) };
        let what = format!("{} at block {}", stand.name, stand.height);
        checks.push(finding(&what, if wrong { Err(note) } else { Ok(Some(note)) }));
        if !stand.is_over() {
            checks.extend(of_release(context, plan));
        }
    }
    verdict(context, Some(&batch.name), &path.display().to_string(), &checks)
}

fn verdict(context: &Context, name: Option<&Name>, title: &str, checks: &[Check]) -> Result<ExitCode> {
    let valid = checks.iter().all(|check| check.problem.is_none());
    if context.json {
        answer(&format!("{:#}", json!({"name": name, "file": title, "valid": valid, "checks": checks})))?;
    } else {
        let what = name.map_or_else(String::new, |name| format!("batch plan {name}, "));
        answer(&format!("{what}{title}\n{}", findings(checks)))?;
    }
    Ok(exit(valid))
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::from(Code::Failed as u8) }
}

fn finding(what: &str, found: std::result::Result<Option<String>, String>) -> Check {
    let (remark, problem) = match found {
        Ok(remark) => (remark, None),
        Err(problem) => (None, Some(problem)),
    };
    Check { what: what.to_owned(), problem, remark, warning: None }
}

fn checks(context: &Context, name: Option<&Name>, read: Listed) -> Vec<Check> {
    let upgrades = match read {
        Ok((upgrades, _)) => upgrades,
        Err(errors) => return errors.into_iter().map(|e| finding("it is a batch plan", Err(e))).collect(),
    };
    let mut checks = vec![finding("it is a batch plan", Ok(Some(count(&upgrades))))];
    let ground = Ground::look(context);
    for plan in &upgrades {
        let stands = apply::stands(context, &ground, name, plan).map(|_| None).map_err(|e| e.message);
        checks.push(finding(&format!("{} can be planned for block {}", plan.name, plan.height), stands));
        checks.extend(of_release(context, plan));
    }
    checks
}

/// What can be said of an upgrade's release without running it: one that is there can be executed, else it can be fetched.
fn of_release(context: &Context, plan: &Plan) -> Vec<Check> {
    let name = &plan.name;
    let source = trusted(context, plan);
    let release = context.home.find(name);
    let binary = context.home.binary(&release);
    let there = binary.symlink_metadata().is_ok();
    let mut checks = Vec::new();
    if there {
        checks.push(finding(&format!("release {name} can be executed"), check::executable(&binary).map(|()| None)));
        let source = source.as_ref().ok().and_then(Option::as_ref);
        if let Some(why) = source.and_then(|source| origin::contradiction(&context.home, &release, source)) {
            checks.push(finding(&format!("release {name} is the one of the plan"), Err(why)));
        }
    }
    match source {
        Ok(Some(source)) => {
            let unchanged = if there { Ok(()) } else { unchanged(source.link()) };
            let found = unchanged.map(|()| Some(source.link().to_string()));
            checks.push(finding(&format!("release {name} has a source"), found));
        }
        Ok(None) if there => {}
        Ok(None) => checks.push(Check {
            warning: Some(format!("it is not there yet: `wemixvisor upgrade add {name} FILE` puts it there")),
            ..finding(&format!("release {name} may come later"), Ok(None))
        }),
        Err(why) => checks.push(finding(&format!("release {name} has a source"), Err(why))),
    }
    checks
}

/// A file of this machine is looked at; what is on the web is seen when it is fetched.
fn unchanged(link: &Link) -> std::result::Result<(), String> {
    let (Place::File(path), Some(wanted)) = (&link.place, &link.checksum) else { return Ok(()) };
    let sum = sum_of(path, wanted.hasher()).map_err(|e| e.message)?;
    if sum == *wanted {
        return Ok(());
    }
    Err(format!("{link} was changed since: its checksum is {sum}, it should be {wanted}"))
}

/// Fetches every release that is missing and checks them all; one that fails keeps none of the others from it.
pub fn prepare(context: &Context, name: &Name) -> Result<ExitCode> {
    let (_, batch) = batches::find(&context.home, name)?;
    let mut good = true;
    let mut told = Vec::new();
    for (stand, plan) in tell::stands(context, &batch)?.iter().zip(&batch.upgrades) {
        if stand.is_over() {
            continue;
        }
        let release = context.home.find(&plan.name);
        let binary = context.home.binary(&release);
        let mut checks = Vec::new();
        let source = trusted(context, plan).ok().flatten();
        let other =
            source.as_ref().is_some_and(|source| origin::contradiction(&context.home, &release, source).is_some());
        if (other || binary.symlink_metadata().is_err())
            && let Some(fetched) = fetch(context, plan)
        {
            checks.push(finding("the release was fetched", fetched));
        }
        let mut version = None;
        if checks.iter().all(|check| check.problem.is_none()) {
            let staged = stage_now(context, release, source);
            checks.extend(staged.checks);
            version = staged.version;
        }
        let ready = checks.iter().all(|check| check.problem.is_none());
        good &= ready;
        if context.json {
            told.push(
                json!({"name": plan.name, "height": plan.height, "version": version, "ready": ready, "checks": checks}),
            );
        } else {
            answer(&format!("upgrade {}, release {}\n{}", plan.name, binary.display(), findings(&checks)))?;
        }
    }
    if context.json {
        answer(&format!("{:#}", json!({"name": name, "ready": good, "upgrades": told})))?;
    }
    Ok(exit(good))
}

/// Fetches a release from where its plan says; none: it does not say.
fn fetch(context: &Context, plan: &Plan) -> Option<std::result::Result<Option<String>, String>> {
    let source: Source = match trusted(context, plan) {
        Ok(source) => source?,
        Err(why) => return Some(Err(why)),
    };
    let from = source.link().to_string();
    let fetched = fetch_release(context, &context.home.find(&plan.name), source);
    Some(fetched.map(|()| Some(from)).map_err(|e| e.message))
}
