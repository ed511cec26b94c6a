//! Applies a batch plan, all of it or nothing, and takes it back. What counts is the mark in its file: until that is there,
//! its plan files count for nothing, whoever was killed.

use std::path::PathBuf;

use serde_json::json;

use super::super::Context;
use super::super::status::phase_word;
use super::super::upgrade::{Ground, remove_empty_dirs, tell_if_headless, tell_if_missing, withdraw_where, write_plan};
use super::tell::{self, Stand};
use super::{count, lines};
use crate::batch::{self, Batch};
use crate::error::{Error, OnFile, Result};
use crate::home::Name;
use crate::job::{batches, durable, look};
use crate::journal::{Journal, rfc3339, unix_now};
use crate::plan::Plan;

/// Plans all upgrades of a batch plan.
pub fn apply(context: &Context, name: &Name) -> Result<()> {
    let home = &context.home;
    // What is not there needs no directory.
    batches::find(home, name)?;
    let _held = batches::hold(home)?;
    let (path, batch) = batches::find(home, name)?;
    if let Some(applied_at) = &batch.applied_at {
        let text = format!(
            "batch plan {name} is applied already, since {applied_at}: `wemixvisor plan show {name}` tells how far it is"
        );
        return context.done(&text, json!({"name": name, "applied_at": applied_at}));
    }
    let ground = Ground::look(context);
    let plans = accepted(context, &ground, &batch)?;
    let mut written = Written::default();
    let done = plans
        .iter()
        .try_for_each(|plan| written.write(context, plan))
        .and_then(|()| batches::write(home, &path, &batch.clone().applied(rfc3339(unix_now()))));
    if let Err(error) = done {
        // The mark may be there although it could not be synced.
        if batches::find(home, name).is_ok_and(|(_, found)| found.applied_at.is_some()) {
            let _ = batches::write(home, &path, &batch);
        }
        written.take_back(context);
        return Err(Error::failed(format!("{}: none of batch plan {name} is planned", error.message)));
    }
    let head = ground.head.map(|head| format!(" (head {head})")).unwrap_or_default();
    let text = format!("batch plan {name} is applied, {} planned{head}", count(&plans));
    context.done(&text, json!({"name": name, "planned": plans.len()}))?;
    plans.iter().for_each(|plan| tell_if_missing(context, plan));
    tell_if_headless(context, ground.head);
    Ok(())
}

/// The plans that may be written for a batch plan, or everything that speaks against them.
fn accepted(context: &Context, ground: &Ground, batch: &Batch) -> Result<Vec<Plan>> {
    let (mut plans, mut errors) = (Vec::new(), Vec::new());
    for (i, plan) in batch.upgrades.iter().enumerate() {
        match stands(context, ground, Some(&batch.name), plan) {
            Ok(plan) => plans.push(plan),
            Err(error) => errors.push(format!("{}: {}", batch::place(i, Some(&plan.name)), error.message)),
        }
    }
    if errors.is_empty() { Ok(plans) } else { Err(Error::refused(lines("", &errors))) }
}

/// The plan that would be written for an upgrade of a batch plan (none: of one without a name), or what speaks against it.
pub fn stands(context: &Context, ground: &Ground, batch: Option<&Name>, plan: &Plan) -> Result<Plan> {
    let name = &plan.name;
    ground.is_free(context, name, plan.height)?;
    let accepted = ground.accept(&context.home, Plan { batch: batch.cloned(), ..plan.clone() })?;
    if let Some(other) = accepted.plan.batch.as_ref().filter(|other| Some(*other) != batch) {
        return Err(Error::refused(format!("upgrade {name} is part of batch plan {other} already")));
    }
    match accepted.moved.first() {
        Some(other) => Err(Error::refused(format!(
            "upgrade {name} is planned for block {}: `wemixvisor upgrade cancel {name}` withdraws that",
            other.height
        ))),
        None => Ok(accepted.plan),
    }
}

/// What was written so far, and what was there before.
#[derive(Default)]
struct Written {
    files: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl Written {
    fn write(&mut self, context: &Context, plan: &Plan) -> Result<()> {
        let path = context.home.plan_file(plan.height);
        // What cannot be read was no plan; it is not brought back.
        let before = look::read_plan_bytes(&path).ok();
        self.files.push((path, before));
        write_plan(context, plan)
    }

    /// Puts back what was there before. What cannot be put back counts for nothing: the batch plan is not marked.
    fn take_back(self, context: &Context) {
        for (path, before) in self.files.into_iter().rev() {
            let owner = context.home.owner().on("read", context.home.root());
            let is_file = path.symlink_metadata().is_ok_and(|meta| meta.is_file());
            let done = match &before {
                Some(bytes) => owner.and_then(|owner| durable::replace_file(&path, bytes, 0o644, owner)),
                None if is_file => durable::remove_file(&path),
                None => Ok(()),
            };
            if let Err(error) = done {
                context.note(&format!("warning: {}; it counts for nothing", error.message));
            }
            remove_empty_dirs(&path);
        }
    }
}

/// Withdraws what is left of a batch plan and removes its file.
pub fn remove(context: &Context, name: &Name) -> Result<()> {
    let home = &context.home;
    batches::find(home, name)?;
    let _held = batches::hold(home)?;
    let (path, batch) = batches::find(home, name)?;
    let under_way = |journal: &Journal| {
        let part_of = journal.plan.as_ref().is_some_and(|plan| plan.batch.as_ref() == Some(name));
        part_of || (batch.applied_at.is_some() && batch.upgrades.iter().any(|plan| plan.name == journal.name))
    };
    if let Some(Journal { name: upgrade, stage, .. }) = look::read_journal(home)?.filter(under_way) {
        return Err(Error::refused(format!(
            "upgrade {upgrade} of batch plan {name} is under way ({}): wait for its end",
            phase_word(stage)
        )));
    }
    let over: Vec<Name> = tell::stands(context, &batch)?.into_iter().filter(Stand::is_over).map(|s| s.name).collect();
    let left = |plan: &Plan| plan.batch.as_ref() == Some(name) && !over.contains(&plan.name);
    let mut withdrawn: Vec<String> = withdraw_where(context, name, left)?.iter().map(|p| p.name.to_string()).collect();
    withdrawn.dedup();
    durable::remove_file(&path)?;
    let what = match (batch.applied_at.is_some(), withdrawn.is_empty()) {
        (false, true) => "it was not applied".to_owned(),
        (true, true) => "none of its upgrades was left".to_owned(),
        (_, false) => format!("withdrawn: {}", withdrawn.join(", ")),
    };
    context.done(&format!("batch plan {name} is removed; {what}"), json!({"name": name, "withdrawn": withdrawn}))
}
