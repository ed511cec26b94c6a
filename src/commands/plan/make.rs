//! Makes batch plans: of words, and of the lists of a file.

use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::super::Context;
use super::{count, lines};
use crate::batch::{self, Batch, Row};
use crate::error::{Error, OnFile, Result};
use crate::home::Name;
use crate::job::{batches, check, look};
use crate::journal::{rfc3339, unix_now};
use crate::plan::Plan;
use crate::source::{Checksum, Hasher, Source, file_url};

/// The upgrades that were read and what was said about them, or every error.
pub type Listed = std::result::Result<(Vec<Plan>, String), Vec<String>>;

/// Makes a batch plan of what was typed or of a file.
pub fn create(
    context: &Context,
    name: Name,
    description: Option<&str>,
    words: &[String],
    file: Option<&Path>,
) -> Result<()> {
    is_free(context, &name)?;
    let listed = match (words, file) {
        ([], None) => return Err(Error::usage("plan create: say the upgrades, as NAME:HEIGHT, or give --file")),
        ([], Some(file)) => {
            of_file(file).map_err(|errors| Error::usage(lines(&format!("{}: ", file.display()), &errors)))
        }
        (words, None) => {
            let read = batch::words(words).and_then(of_rows).map(|upgrades| (upgrades, String::new()));
            read.map_err(|errors| Error::usage(lines("", &errors)))
        }
        ([_, ..], Some(_)) => {
            return Err(Error::usage("plan create: say the upgrades or give --file, not both"));
        }
    };
    let (upgrades, said) = listed?;
    let untrusted: Vec<String> = upgrades
        .iter()
        .enumerate()
        .filter_map(|(i, plan)| {
            trusted(context, plan).err().map(|e| format!("{}: {e}", batch::place(i, Some(&plan.name))))
        })
        .collect();
    if !untrusted.is_empty() {
        return Err(Error::usage(lines("", &untrusted)));
    }
    let description = description.map_or(said, str::to_owned);
    let made = Batch::new(name, description, rfc3339(unix_now()), upgrades);
    // Whatever it was made of: what is written can be read.
    batch::parse(made.text().as_bytes()).map_err(|errors| Error::usage(lines("", &errors)))?;
    let _held = batches::hold(&context.home)?;
    is_free(context, &made.name)?;
    let path = context.home.plans().join(made.file_name());
    batches::write(&context.home, &path, &made)?;
    let name = &made.name;
    let text = format!(
        "batch plan {name} of {} is written to {}: `wemixvisor plan validate {name}` checks it, `wemixvisor plan apply {name}` plans them",
        count(&made.upgrades),
        path.display()
    );
    context.done(&text, json!({"name": name, "file": path}))
}

fn is_free(context: &Context, name: &Name) -> Result<()> {
    match batches::all(&context.home).iter().find(|kept| kept.named.as_ref() == Some(name)) {
        Some(kept) => Err(Error::refused(format!(
            "there is a batch plan {name} already, {}: `wemixvisor plan remove {name}` removes it",
            kept.path.display()
        ))),
        None => Ok(()),
    }
}

/// Whether what a plan says of its release can be fetched; none: it says nothing.
pub fn trusted(context: &Context, plan: &Plan) -> std::result::Result<Option<Source>, String> {
    let source = Source::of(&plan.info)?;
    if let Some(source) = &source {
        source.link().trusted(context.config.skip_checksum)?;
    }
    Ok(source)
}

/// Reads a list of upgrades, by the end of its name: `.json` or `.csv`.
pub fn of_file(file: &Path) -> Listed {
    let ends = |end: &str| file.extension().is_some_and(|found| found.eq_ignore_ascii_case(end));
    if !ends("json") && !ends("csv") {
        return Err(vec!["its name ends neither in .json nor in .csv".to_owned()]);
    }
    let bytes = look::read_plan_bytes(file).map_err(|why| vec![why])?;
    if ends("json") {
        return batch::listed(&bytes);
    }
    let upgrades = batch::csv(&bytes).and_then(of_rows)?;
    Ok((upgrades, String::new()))
}

/// Makes plans of what was typed or listed; a file is hashed, so that a later change of it is noticed.
fn of_rows(rows: Vec<Row>) -> std::result::Result<Vec<Plan>, Vec<String>> {
    let (mut upgrades, mut errors) = (Vec::new(), Vec::new());
    for Row { place, name, height, source } in rows {
        let info = match &source {
            None => Ok(Value::Null),
            Some(url) if batch::is_url(url) => batch::info_of_url(url),
            Some(file) => info_of_binary(Path::new(file)),
        };
        match info {
            Ok(info) => upgrades.push(Plan { name, height, info, batch: None, retry: 0 }),
            Err(e) => errors.push(format!("{place}: {e}")),
        }
    }
    if errors.is_empty() {
        errors = batch::contradictions(&upgrades);
    }
    if errors.is_empty() { Ok(upgrades) } else { Err(errors) }
}

fn info_of_binary(file: &Path) -> std::result::Result<Value, String> {
    check::executable_file(file)?;
    let path = file.canonicalize().map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let sum = sum_of(&path, Hasher::Sha256(Default::default())).map_err(|e| e.message)?;
    let url = file_url(&path, &sum).ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))?;
    Ok(json!({"binaries": {"any": url}}))
}

/// The checksum of a file.
pub fn sum_of(path: &Path, mut hasher: Hasher) -> Result<Checksum> {
    let (mut file, _) = check::plain_file(path).on("read", path)?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk).on("read", path)? {
            0 => return Ok(hasher.sum()),
            n => hasher.update(chunk.get(..n).unwrap_or_default()),
        }
    }
}
