//! `plan …`: batch plans, several upgrades under one name. They are files, so none of this needs a supervisor.

mod apply;
mod check;
mod make;
mod tell;

use std::process::ExitCode;

use super::Context;
use super::upgrade::parse;
use crate::cli::Plan;
use crate::error::Result;
use crate::plan::Plan as Upgrade;

/// How many errors of one file are told.
const ERRORS_TOLD: usize = 20;

/// Does what was said.
pub fn plan(context: &Context, command: &Plan) -> Result<ExitCode> {
    context.laid_out()?;
    match command {
        Plan::Create { name, description, upgrades, file } => {
            make::create(context, parse(name)?, description.as_deref(), upgrades, file.as_deref())?;
        }
        Plan::Validate { what } => return check::validate(context, what),
        Plan::Prepare { name } => return check::prepare(context, &parse(name)?),
        Plan::Apply { name } => apply::apply(context, &parse(name)?)?,
        Plan::List => tell::list(context)?,
        Plan::Show { name } => tell::show(context, &parse(name)?)?,
        Plan::Remove { name } => apply::remove(context, &parse(name)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `1 upgrade`, `3 upgrades`.
fn count(upgrades: &[Upgrade]) -> String {
    format!("{} upgrade{}", upgrades.len(), if upgrades.len() == 1 { "" } else { "s" })
}

/// Errors as lines, each with what is in front of it; of very many only the first.
fn lines(before: &str, errors: &[String]) -> String {
    let mut lines: Vec<String> = errors.iter().take(ERRORS_TOLD).map(|error| format!("{before}{error}")).collect();
    if errors.len() > ERRORS_TOLD {
        lines.push(format!("{before}and {} more", errors.len() - ERRORS_TOLD));
    }
    lines.join("\n")
}
