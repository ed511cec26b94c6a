//! Tells of batch plans: which there are, and how far each is.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::upgrade::seen;
use super::super::{Context, answer, client};
use super::count;
use crate::batch::Batch;
use crate::error::Result;
use crate::home::Name;
use crate::job::look::PlanError;
use crate::job::{batches, look};
use crate::journal::{History, Outcome};
use crate::plan;
use crate::schedule::due_at;

/// How an upgrade of a batch plan stands.
#[derive(Clone, Debug, Serialize)]
pub struct Stand {
    /// Its name.
    pub name: Name,
    /// Its height, also where it was moved since.
    pub height: u64,
    /// The state as `upgrade list` tells it, or that there is none.
    pub state: String,
    /// More about it.
    pub note: String,
}

impl Stand {
    /// Whether it is carried out.
    pub fn is_done(&self) -> bool {
        self.state == "done"
    }

    /// Whether nothing more will come of it.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "past" | "passed" | "withdrawn")
    }

    /// Whether it waits for nothing but its time, or is under way.
    fn is_coming(&self) -> bool {
        !self.is_over() && !matches!(self.state.as_str(), "failed" | "held" | "conflict" | NOT_APPLIED)
    }
}

/// The state of every upgrade of a batch plan that is not applied.
const NOT_APPLIED: &str = "not applied";

/// What all batch plans are compared with.
struct Seen {
    plans: Vec<Value>,
    history: Vec<History>,
}

impl Seen {
    fn look(context: &Context) -> Result<Seen> {
        Ok(Seen { plans: seen(context)?.0, history: look::read_history(&context.home) })
    }

    fn stands(&self, batch: &Batch) -> Vec<Stand> {
        batch.upgrades.iter().map(|upgrade| self.stand(batch, &upgrade.name, upgrade.height)).collect()
    }

    fn stand(&self, batch: &Batch, name: &Name, height: u64) -> Stand {
        let make = |height, state: &str, note: &str| Stand {
            name: name.clone(),
            height,
            state: state.to_owned(),
            note: note.to_owned(),
        };
        if batch.applied_at.is_none() {
            return make(height, NOT_APPLIED, "");
        }
        let says = |plan: &Value, key: &str, name: &Name| plan.get(key).and_then(Value::as_str) == Some(name.as_str());
        let is_it = |plan: &&Value| says(plan, "name", name) && says(plan, "batch", &batch.name);
        let planned = self.plans.iter().rfind(is_it);
        let of = |key: &str| planned.and_then(|plan| plan.get(key)?.as_str()).unwrap_or("");
        let height = planned.and_then(|plan| plan.get("height")?.as_u64()).unwrap_or(height);
        let ended = self.history.iter().rev().find(|h| h.name == *name && h.height == Some(height));
        match (of("state"), ended.map(|line| line.result)) {
            // What is past is told better by how it ended.
            ("past" | "", Some(Outcome::Committed)) => make(height, "done", ""),
            ("past" | "", Some(Outcome::Passed)) => make(height, "passed", of("note")),
            ("", Some(Outcome::Failed | Outcome::Reverted | Outcome::Cancelled) | None) => {
                make(height, "withdrawn", "no file holds its plan any more")
            }
            (state, Some(_) | None) => make(height, state, of("note")),
        }
    }
}

/// How each upgrade of a batch plan stands.
pub fn stands(context: &Context, batch: &Batch) -> Result<Vec<Stand>> {
    // Half applied, it is not seen by anybody; all that was written is to be told.
    if batch.applied_at.is_none() {
        let unseen = Seen { plans: Vec::new(), history: Vec::new() };
        return Ok(unseen.stands(batch));
    }
    Ok(Seen::look(context)?.stands(batch))
}

fn progress(stands: &[Stand]) -> String {
    format!("{} of {} done", stands.iter().filter(|stand| stand.is_done()).count(), stands.len())
}

/// Lists them.
pub fn list(context: &Context) -> Result<()> {
    let seen = Seen::look(context)?;
    let (mut plans, mut errors, mut text) = (Vec::new(), Vec::new(), String::new());
    for kept in batches::all(&context.home) {
        let file = kept.path.strip_prefix(context.home.root()).unwrap_or(&kept.path).display().to_string();
        match kept.batch {
            Ok(batch) => {
                let stands = seen.stands(&batch);
                let progress = progress(&stands);
                let state = if batch.applied_at.is_some() { &progress } else { NOT_APPLIED };
                let (name, count) = (batch.name.as_str(), count(&batch.upgrades));
                let _ = writeln!(text, "{name:<20} {}  {count:>14}  {state}", batch.created_at);
                plans.push(json!({
                    "name": batch.name, "description": batch.description, "created_at": batch.created_at,
                    "applied_at": batch.applied_at, "upgrades": stands.len(),
                    "done": stands.iter().filter(|stand| stand.is_done()).count(), "progress": progress, "file": file,
                }));
            }
            Err(why) => errors.push(PlanError { file, error: batches::in_a_line(&why) }),
        }
    }
    if context.json {
        return answer(&format!("{:#}", json!({"plans": plans, "plan_errors": errors})));
    }
    for PlanError { file, error } in &errors {
        let _ = writeln!(text, "{file} is no batch plan: {error}");
    }
    answer(if text.is_empty() { "there is no batch plan" } else { &text })
}

/// Tells all about one.
pub fn show(context: &Context, name: &Name) -> Result<()> {
    let (path, batch) = batches::find(&context.home, name)?;
    let stands = stands(context, &batch)?;
    let progress = progress(&stands);
    let done = stands.iter().filter(|stand| stand.is_done()).count();
    let failed = |stand: &&Stand| stand.state == "failed";
    let pending = stands.iter().filter(|stand| !stand.is_over() && !failed(stand)).count();
    let head = client::heard(&context.home).height;
    let left = |stand: &Stand| head.map(|head| due_at(stand.height, context.config.lead()).saturating_sub(head));
    let next = stands.iter().find(|stand| stand.is_coming());
    let file = path.strip_prefix(context.home.root()).unwrap_or(&path).display();
    if context.json {
        let file = file.to_string();
        let next = next.map(|next| json!({"name": next.name, "height": next.height, "blocks_left": left(next)}));
        return answer(&format!(
            "{:#}",
            json!({
                "name": batch.name, "description": batch.description, "created_at": batch.created_at,
                "applied_at": batch.applied_at, "file": file, "upgrades": stands, "done": done, "pending": pending,
                "next": next, "progress": progress,
            })
        ));
    }
    let mut text = match &batch.applied_at {
        Some(applied_at) => format!("batch plan {name}, applied {applied_at}: {progress}\n"),
        None => format!("batch plan {name}, not applied: `wemixvisor plan apply {name}` plans its upgrades\n"),
    };
    if let Some(description) = plan::readable(&batch.description) {
        let _ = writeln!(text, "  about    {description}");
    }
    let _ = writeln!(text, "  created  {}\n  file     {file}", batch.created_at);
    for stand in &stands {
        let note = if stand.note.is_empty() { String::new() } else { format!("  {}", stand.note) };
        let _ = writeln!(text, "{:<20} {:>12}  {:<9}{note}", stand.name.as_str(), stand.height, stand.state);
    }
    if let Some(next) = next {
        let left = left(next).zip(head).map(|(left, head)| format!(", {left} blocks from now (head {head})"));
        let _ = writeln!(text, "next: {} at block {}{}", next.name, next.height, left.unwrap_or_default());
    } else if let Some(failed) = stands.iter().find(failed) {
        let _ = writeln!(text, "next: nothing until {} is retried or cancelled", failed.name);
    }
    answer(&text)
}
