//! `upgrade …`: plans are files, so most of this needs no supervisor; what is under way is asked of it.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::client::Heard;
use super::meter::Meter;
use super::status::phase_word;
use super::{Context, answer, client};
use crate::cli::Upgrade;
use crate::config::show_size;
use crate::error::{Code, Error, OnFile, Result};
use crate::home::{Home, Name, Release};
use crate::job::fetch::origin;
use crate::job::{backup, check, durable, fetch, look, shim, stage, step};
use crate::journal::{History, Outcome, expected_downtime};
use crate::plan::Plan;
use crate::schedule::{Entry, Found, Known, Schedule, Standing};
use crate::source::{Link, Source};
use crate::supervise::control::Request;

/// Does what was said.
pub fn upgrade(context: &Context, command: &Upgrade) -> Result<ExitCode> {
    context.laid_out()?;
    match command {
        Upgrade::Schedule { name, height, url, checksum, info, force } => {
            let said = info_of(url.as_deref(), checksum.as_deref(), info.as_deref(), context.config.skip_checksum)?;
            let said = (url.is_some() || info.is_some()).then_some(said);
            schedule(context, &parse(name)?, *height, said, *force)?;
        }
        Upgrade::Add { name, file, height, force } => add(context, &parse(name)?, file, *height, *force)?,
        Upgrade::Prepare { name, url, checksum } => {
            return prepare(context, name.as_deref(), url.as_deref(), checksum.as_deref());
        }
        Upgrade::Check { name } => return check_release(context, name.as_deref()),
        Upgrade::List { all } => list(context, *all)?,
        Upgrade::Show { name } => show(context, &parse(name)?)?,
        Upgrade::Cancel { name } => cancel(context, &parse(name)?)?,
        Upgrade::Retry { name } => retry(context, &parse(name)?)?,
        Upgrade::Now { name } => now(context, &parse(name)?)?,
        Upgrade::Revert { to } => revert(context, to.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A name that was typed.
pub fn parse(name: &str) -> Result<Name> {
    Name::parse(name).map_err(Error::usage)
}

/// All plans and their standing, as they are on disk now.
fn plans(context: &Context) -> (Schedule, Vec<look::PlanError>) {
    let survey = look::look(&context.home);
    (judged(&survey), survey.errors)
}

fn judged(survey: &look::Survey) -> Schedule {
    Schedule::new(&survey.plans, &Known { current: survey.current.clone().ok(), brought: survey.brought })
}

/// The `info` of a plan that is written here.
fn info_of(url: Option<&str>, checksum: Option<&str>, text: Option<&str>, skip_checksum: bool) -> Result<Value> {
    let mut object = match text.map(|text| (text, serde_json::from_slice::<Map<String, Value>>(text.as_bytes()))) {
        None => Map::new(),
        Some((_, Ok(object))) => object,
        Some((text, Err(e))) if text.trim_start().starts_with('{') => {
            return Err(Error::usage(format!("--info begins as JSON and is none: {e}")));
        }
        Some((text, Err(_))) if url.is_none() => {
            let info = Value::String(text.to_owned());
            check_source(&info, skip_checksum)?;
            return Ok(info);
        }
        Some((text, Err(_))) => Map::from_iter([("description".to_owned(), json!(text))]),
    };
    match (url, checksum) {
        (Some(url), checksum) => {
            object.insert("binaries".to_owned(), json!({"any": url}));
            if let Some(checksum) = checksum {
                object.insert("checksum".to_owned(), json!(checksum));
            }
        }
        (None, Some(_)) => return Err(Error::usage("--checksum is of no use without --url")),
        (None, None) => {}
    }
    let info = if object.is_empty() { Value::Null } else { Value::Object(object) };
    check_source(&info, skip_checksum)?;
    Ok(info)
}

/// What says where to fetch a release must say so in full.
fn check_source(info: &Value, skip_checksum: bool) -> Result<()> {
    match Source::of(info).map_err(Error::usage)? {
        Some(source) => source.link().trusted(skip_checksum).map_err(Error::usage),
        None => Ok(()),
    }
}

/// A plan that may be written, and what it takes the place of.
pub struct Accepted {
    /// The plan.
    pub plan: Plan,
    /// Where the same name is planned for another height.
    pub moved: Vec<Found>,
}

impl Accepted {
    /// The files that its own takes the place of. Refused: one of them holds another plan too.
    fn replaced(&self, context: &Context) -> Result<Vec<(PathBuf, Vec<Plan>)>> {
        let name = &self.plan.name;
        let of_moved = |plan: &Plan| plan.name == *name && self.moved.iter().any(|moved| moved.height == plan.height);
        let mut files = files_of(context, name, of_moved)?;
        files.retain(|(path, _)| *path != context.home.plan_file(self.plan.height));
        Ok(files)
    }
}

fn schedule(context: &Context, name: &Name, height: u64, info: Option<Value>, force: bool) -> Result<()> {
    let ground = Ground::look(context);
    let before = ground.info(context, name).filter(|_| info.is_none());
    if before.is_some() {
        context.note(&format!("note: what the plan of {name} said (`info`) stays; --info '{{}}' drops it"));
    }
    let info = before.or(info).unwrap_or_default();
    let accepted = accept(&ground, context, name, height, info, force)?;
    put(context, accepted, ground.head)
}

fn accept(ground: &Ground, context: &Context, name: &Name, height: u64, info: Value, force: bool) -> Result<Accepted> {
    ground.is_free(context, name, height)?;
    let plan = Plan { name: name.clone(), height, info, batch: None, retry: 0 };
    let accepted = ground.accept(&context.home, plan)?;
    match accepted.moved.first().filter(|_| !force) {
        Some(other) => {
            Err(Error::refused(format!("upgrade {name} is planned for block {}: --force moves it", other.height)))
        }
        None => accepted.replaced(context).map(|_| accepted),
    }
}

/// What may speak against a new plan, as it is now.
pub struct Ground {
    survey: look::Survey,
    history: Vec<History>,
    /// The plans that wait.
    live: Vec<Found>,
    /// The head that is known.
    pub head: Option<u64>,
}

impl Ground {
    /// Looks at all of it.
    pub fn look(context: &Context) -> Ground {
        let survey = look::look(&context.home);
        // Only plans that wait can be in the way; so does what failed in a batch plan, and those behind it with it.
        let waits = |e: &Entry| match &e.standing {
            Standing::Pending | Standing::Conflict(_) | Standing::Held(_) => true,
            Standing::Failed(_) => e.plan.batch.is_some(),
            Standing::Done | Standing::Past(_) => false,
        };
        let live = judged(&survey).entries.into_iter().filter(waits).map(|e| e.plan).collect();
        let Heard { height: head, current } = client::heard(&context.home);
        if let Some(head) = head.filter(|_| !current) {
            context.note(&format!(
                "warning: the node does not tell its head now: what follows is judged by the last one, {head}"
            ));
        }
        Ground { live, survey, history: look::read_history(&context.home), head }
    }

    /// What the plan of this name says beside name and height, if one waits and says something.
    fn info(&self, context: &Context, name: &Name) -> Option<Value> {
        let waits = |plan: &&Plan| self.live.iter().any(|live| plan.name == *name && live.digest == plan.digest());
        let plans = look::plan_files(&context.home);
        let found = plans.iter().filter_map(|(_, plans)| plans.as_ref().ok()).flatten().find(waits)?;
        Some(found.info.clone()).filter(|info| !info.is_null())
    }

    /// Whether the file of this height may be written: not over the plan of another upgrade that waits.
    pub fn is_free(&self, context: &Context, name: &Name, height: u64) -> Result<()> {
        let path = context.home.plan_file(height);
        let waits = |plan: &&Plan| {
            plan.name != *name && plan.height != height && self.live.iter().any(|live| live.digest == plan.digest())
        };
        let plans = look::written_plans(&context.home).into_iter().find(|(file, _)| *file == path);
        let plans = plans.and_then(|(_, plans)| plans.ok()).unwrap_or_default();
        match plans.iter().find(waits) {
            Some(other) => Err(Error::refused(format!(
                "{} holds the plan of {} for block {} too: take it out of that file first",
                path.display(),
                other.name,
                other.height
            ))),
            None => Ok(()),
        }
    }

    /// Looks at everything that speaks against a plan; nothing is changed. Where the upgrade is planned already, the new plan
    /// stays a part of the batch plan that the old one is a part of.
    pub fn accept(&self, home: &Home, mut plan: Plan) -> Result<Accepted> {
        let (name, height) = (&plan.name, plan.height);
        let release = home.find(name);
        if self.survey.current.as_ref() == Ok(&release) {
            return Err(Error::refused(format!("release {release} is the current one already")));
        }
        if let Some(brought) = self.survey.brought.filter(|&brought| height <= brought) {
            return Err(Error::refused(format!(
                "the current release came at height {brought}: a plan for {height} would never run"
            )));
        }
        if let Some(head) = self.head.filter(|&head| head >= height) {
            return Err(Error::refused(format!(
                "block {height} has passed (head {head}): `wemixvisor upgrade now {name}` upgrades at once"
            )));
        }
        if let Some(other) = self.live.iter().find(|other| other.height == height && other.name != *name) {
            return Err(Error::refused(format!(
                "height {height} belongs to upgrade {}: `wemixvisor upgrade cancel {}` withdraws it",
                other.name, other.name
            )));
        }
        let same: Vec<&Found> = self.live.iter().filter(|other| other.name == *name).collect();
        plan.batch = same.iter().find_map(|other| other.batch.clone()).or(plan.batch);
        let moved = same.into_iter().filter(|other| other.height != height).cloned().collect();
        // Said anew by the operator: an earlier end of the same plan must not stand in its way.
        count_up(&mut plan, &self.history);
        Ok(Accepted { plan, moved })
    }
}

/// Gives the plan a content that no finished upgrade had.
fn count_up(plan: &mut Plan, history: &[History]) {
    while history.iter().any(|h| h.digest.as_deref() == Some(&plan.digest())) {
        plan.retry += 1;
    }
}

fn put(context: &Context, accepted: Accepted, head: Option<u64>) -> Result<()> {
    let files = accepted.replaced(context)?;
    let plan = accepted.plan;
    let (name, height) = (&plan.name, plan.height);
    write_plan(context, &plan)?;
    remove_files(files)?;
    if height_file_also_elsewhere(context, name, height) {
        context.note("note: data/upgrade-info.json holds the same upgrade; the plan is one");
    }
    let at = head.map(|head| format!(" (head {head})")).unwrap_or_default();
    let text = format!("upgrade {name} is planned for block {height}{at}");
    context.done(&text, json!({"name": name, "height": height, "head": head}))?;
    tell_if_missing(context, &plan);
    tell_if_headless(context, head);
    Ok(())
}

/// Warns where nobody knows how far the chain is.
pub fn tell_if_headless(context: &Context, head: Option<u64>) {
    if head.is_none() {
        context
            .note("warning: no head is known: the upgrade waits until the node's RPC tells one (DAEMON_RPC_ADDRESS)");
    }
}

/// Warns of a release that is not there yet, with what will bring it there.
pub fn tell_if_missing(context: &Context, plan: &Plan) {
    let (name, height) = (&plan.name, plan.height);
    let release = context.home.find(name);
    let binary = context.home.binary(&release);
    let source = Source::of(&plan.info).ok().flatten();
    let other = source.as_ref().and_then(|source| origin::contradiction(&context.home, &release, source));
    let why = match (&other, check::executable(&binary)) {
        (Some(why), _) => why.clone(),
        (None, Err(why)) => why,
        (None, Ok(())) => return,
    };
    let source = source.filter(|_| other.is_some() || binary.symlink_metadata().is_err());
    let because = other.map_or_else(String::new, |why| format!("; {why}"));
    match source {
        Some(source) if context.config.allow_download => {
            let when = if client::supervisor(&context.home).is_some() { "now" } else { "as soon as a supervisor runs" };
            context.note(&format!("its release is fetched from {} {when}{because}", source.link()));
        }
        Some(source) => context.note(&format!(
            "warning: its release must be there before block {height}: `wemixvisor upgrade prepare {name}` fetches it from {}, or with DAEMON_ALLOW_DOWNLOAD_BINARIES=true the supervisor does{because}",
            source.link()
        )),
        None => context.note(&format!(
            "warning: {why}; it must be there before block {height}: `wemixvisor upgrade add {name} FILE` puts it there"
        )),
    }
}

fn height_file_also_elsewhere(context: &Context, name: &Name, height: u64) -> bool {
    let files = look::plan_files(&context.home);
    let holds = |plans: &Vec<Plan>| plans.iter().any(|plan| plan.name == *name && plan.height == height);
    files.iter().filter(|(_, plans)| plans.as_ref().is_ok_and(holds)).count() > 1
}

/// Writes the plan file of its height. When that fails, no new directory is left.
pub fn write_plan(context: &Context, plan: &Plan) -> Result<()> {
    let path = context.home.plan_file(plan.height);
    let owner = context.home.owner().on("read", context.home.root())?;
    // People read and edit it.
    let text = format!("{:#}\n", json!(plan));
    durable::make_dirs(path.parent().unwrap_or(&path), 0o755, owner)
        .and_then(|()| durable::replace_file(&path, text.as_bytes(), 0o644, owner))
        .inspect_err(|_| remove_empty_dirs(&path))
}

/// Removes the directory of a file, such as a plan's, and the one above it, where they are empty.
pub fn remove_empty_dirs(file: &Path) {
    for dir in file.ancestors().skip(1).take(2) {
        let _ = fs::remove_dir(dir);
    }
}

/// Removes the files of all plans that are meant, and returns those plans, by height.
pub fn withdraw_where(context: &Context, what: &Name, is_it: impl Fn(&Plan) -> bool) -> Result<Vec<Plan>> {
    remove_files(files_of(context, what, is_it)?)
}

/// The files of all plans that are meant, by height. One that holds other plans too is refused.
fn files_of(context: &Context, what: &Name, is_it: impl Fn(&Plan) -> bool) -> Result<Vec<(PathBuf, Vec<Plan>)>> {
    let mut files = Vec::new();
    for (path, plans) in look::written_plans(&context.home) {
        let Ok(plans) = plans else { continue };
        if !plans.iter().any(&is_it) {
            continue;
        }
        if !plans.iter().all(&is_it) {
            return Err(Error::refused(format!(
                "{} holds other plans too: take {what} out of it by hand",
                path.display()
            )));
        }
        files.push((path, plans));
    }
    files.sort_by_key(|(_, plans)| plans.first().map(|plan| plan.height));
    Ok(files)
}

/// Removes plan files. The highest goes first: whoever is killed in between, none is left without those below it.
fn remove_files(files: Vec<(PathBuf, Vec<Plan>)>) -> Result<Vec<Plan>> {
    for (path, _) in files.iter().rev() {
        durable::remove_file(path)?;
        if let Some(dir) = path.parent() {
            // The directory of the height, when nothing else is in it.
            let _ = fs::remove_dir(dir);
        }
    }
    Ok(files.into_iter().flat_map(|(_, plans)| plans).collect())
}

fn add(context: &Context, name: &Name, file: &Path, height: Option<u64>, force: bool) -> Result<()> {
    let home = &context.home;
    check::executable_file(file).map_err(Error::usage)?;
    let release = home.find(name);
    let binary = home.binary(&release);
    let there = || Error::refused(format!("{} is there already: --force replaces it", binary.display()));
    if binary.symlink_metadata().is_ok() && !force {
        return Err(there());
    }
    let plan = |height| {
        let ground = Ground::look(context);
        // Where to fetch another one is not said of this file any more.
        let mut info = ground.info(context, name).filter(Value::is_object).unwrap_or_default();
        if let Some(said) = info.as_object_mut() {
            said.retain(|key, _| key != "binaries" && key != "checksum");
        }
        accept(&ground, context, name, height, info, force).map(|accepted| (accepted, ground.head))
    };
    let accepted = height.map(plan).transpose()?;
    let owner = home.owner().on("read", home.root())?;
    let installed = durable::make_dirs(binary.parent().unwrap_or(&binary), 0o755, owner).and_then(|()| {
        if force {
            durable::install_file(file, &binary, 0o755, owner).map(|()| true)
        } else {
            durable::install_new_file(file, &binary, 0o755, owner)
        }
    });
    // Somebody else may have brought it meanwhile.
    if !installed.inspect_err(|_| remove_empty_dirs(&binary))? {
        return Err(there());
    }
    origin::forget(&home.release(&release))?;
    let text = format!("installed {}", binary.display());
    let Some((accepted, head)) = accepted else {
        return context.done(&text, json!({"name": name, "binary": binary}));
    };
    // One object answers all of it.
    if !context.json {
        answer(&text)?;
    }
    put(context, accepted, head)
}

/// The upgrade that is meant, and its plan if it has one: the named one, else the next.
fn meant(context: &Context, name: Option<&str>) -> Result<(Name, Option<Entry>)> {
    let (schedule, errors) = plans(context);
    match name {
        Some(name) => {
            let name = parse(name)?;
            let entry = schedule.entries.into_iter().rev().find(|e| e.plan.name == name);
            Ok((name, entry))
        }
        None => match schedule.entries.into_iter().find(|e| e.standing == Standing::Pending) {
            Some(entry) => Ok((entry.plan.name.clone(), Some(entry))),
            None => {
                let why = errors.first().map(|e| format!("; {} holds none: {}", e.file, e.error)).unwrap_or_default();
                Err(Error::failed(format!("no upgrade is planned{why}")))
            }
        },
    }
}

fn prepare(context: &Context, name: Option<&str>, url: Option<&str>, checksum: Option<&str>) -> Result<ExitCode> {
    if name.is_none() && url.is_some() {
        return Err(Error::usage("--url needs the NAME of the upgrade that the release is for"));
    }
    if checksum.is_some() && url.is_none() {
        return Err(Error::usage("--checksum is of no use without --url"));
    }
    let (name, entry) = meant(context, name)?;
    let release = context.home.find(&name);
    let binary = context.home.binary(&release);
    let source = match url {
        Some(_) if binary.symlink_metadata().is_ok() => {
            let path = binary.display();
            return Err(Error::refused(format!("{path} is there already: move it away to fetch another one")));
        }
        Some(url) => Some(Source::Binary(Link::parse(url, checksum).map_err(Error::usage)?)),
        None => match entry.as_ref().map(|entry| entry.plan.source.clone()) {
            Some(Err(why)) if binary.symlink_metadata().is_err() => {
                return Err(Error::failed(format!("the plan of {name} does not say from where to fetch it: {why}")));
            }
            Some(Ok(source)) => source,
            Some(Err(_)) | None => None,
        },
    };
    let other = source.as_ref().is_some_and(|source| origin::contradiction(&context.home, &release, source).is_some());
    if other || binary.symlink_metadata().is_err() {
        let source = source.ok_or_else(|| {
            Error::failed(format!(
                "{} is not there, and no plan says from where to fetch it: give --url",
                binary.display()
            ))
        })?;
        fetch_release(context, &release, source)?;
    }
    check_release(context, Some(name.as_str()))
}

/// Fetches a release, showing how far it is.
pub fn fetch_release(context: &Context, release: &Release, source: Source) -> Result<()> {
    source.link().trusted(context.config.skip_checksum).map_err(Error::usage)?;
    let spec = fetch::Spec {
        release: release.clone(),
        source,
        retries: context.config.download_retries,
        skip_checksum: context.config.skip_checksum,
    };
    let mut meter = Meter::new(context, format!("fetching {release}"));
    let fetched = fetch::fetch(&context.home, &spec, &mut |sign| match sign {
        fetch::Sign::Progress(progress) => meter.tell(progress),
        fetch::Sign::Retry(why) => meter.interrupt(&why),
    });
    meter.end();
    match fetched? {
        fetch::Outcome::Installed(bytes) => {
            context.note(&format!("release {release} is there: {} from {}", show_size(bytes), spec.source.link()));
            Ok(())
        }
        fetch::Outcome::Present => {
            context.note(&format!("release {release} is there already: somebody else has brought it"));
            Ok(())
        }
        fetch::Outcome::WrongChecksum(why) | fetch::Outcome::Unfit(why) => Err(Error::failed(why)),
    }
}

/// Looks at a release as the supervisor does before it is due.
pub fn stage_now(context: &Context, release: Release, source: Option<Source>) -> stage::Staged {
    let home = &context.home;
    // As the supervisor does it: with the arguments of the node that runs, or ran last.
    let args = shim::read_record(home).map_or_else(|| context.config.node_args.clone(), |record| record.args);
    let final_args = home
        .current_release()
        .and_then(|release| shim::with_node_args(home, &release, &args).map_err(|e| e.message))
        .unwrap_or_else(|_| args.clone());
    let backup = (!context.config.skip_backup).then(|| backup::Spec::new(&context.config, home, &final_args));
    let hook = context.config.custom_preupgrade.clone();
    let mut staged =
        stage::stage(home, &stage::Spec { release, source, backup, hook, args, log: context.config.log_file.clone() });
    staged.checks.insert(
        0,
        stage::Check {
            what: "current points at a release".to_owned(),
            problem: home.current_release().err(),
            remark: None,
            warning: None,
        },
    );
    staged
}

/// Checks and their findings, one a line, for people.
pub fn findings(checks: &[stage::Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let finding =
            check.problem.as_deref().or(check.remark.as_deref()).map(|f| format!(": {f}")).unwrap_or_default();
        let _ = writeln!(text, "  {} {}{finding}", if check.problem.is_some() { "NO " } else { "yes" }, check.what);
        if let Some(warning) = &check.warning {
            let _ = writeln!(text, "      warning: {warning}");
        }
    }
    text
}

fn check_release(context: &Context, name: Option<&str>) -> Result<ExitCode> {
    let home = &context.home;
    let (name, entry) = meant(context, name)?;
    let pending = entry.as_ref().filter(|entry| entry.standing == Standing::Pending).map(|entry| &entry.plan);
    let source = pending.and_then(|plan| plan.source.clone().ok().flatten());
    let staged = stage_now(context, home.find(&name), source);
    let head = client::heard(home).height;
    let mut good = staged.problem().is_none();
    let mut outlook = Vec::new();
    if let Some(why) = pending.filter(|_| !good).and_then(|plan| told_note(home, plan)) {
        outlook.push(format!("the supervisor says: {why}"));
    }
    match entry.as_ref().map(|e| (&e.plan, &e.standing)) {
        None => outlook.push(format!("no plan names {name}: `wemixvisor upgrade schedule {name} HEIGHT` or `upgrade now {name}` would use this release")),
        Some((plan, Standing::Pending)) => {
            let due = crate::schedule::due_at(plan.height, context.config.lead());
            if context.config.validator_mode {
                let turn = told_note(home, plan).filter(|_| good).map(|note| format!(": {note}")).unwrap_or_default();
                outlook.push(format!("a validator is upgraded in its turn, and at head {due} at the latest{turn}"));
            }
            outlook.push(match head {
                Some(head) if head >= due => format!("it is due now (head {head})"),
                Some(head) => format!("at head {due} ({} blocks from now) the node is stopped, current moves to {}, and it starts with the same arguments", due.saturating_sub(head), plan.release),
                None => "no head is known: it waits until the node's RPC tells one".to_owned(),
            });
        }
        Some((plan, Standing::Done)) => outlook.push(format!("release {} runs already", plan.release)),
        Some((_, Standing::Past(why) | Standing::Failed(why) | Standing::Conflict(why) | Standing::Held(why))) => {
            good = false;
            outlook.push(format!("it will not run: {why}"));
        }
    }
    if !context.config.upgrade_enabled {
        good = false;
        outlook.push("DAEMON_UPGRADE_ENABLED is false: plans are shown, not executed".to_owned());
    }
    let copying = staged.backup.as_ref().map_or(0, |forecast| forecast.down_copy);
    let history = look::read_history(home);
    let committed = history.iter().rev().find(|h| h.result == Outcome::Committed);
    outlook.push(format!("downtime: {}", expected_downtime(committed, copying)));
    if context.json {
        let text = json!({"name": name, "release": staged.release, "version": staged.version, "ready": good, "checks": staged.checks, "outlook": outlook});
        answer(&format!("{text:#}"))?;
    } else {
        let release = home.binary(&staged.release);
        let mut text = format!("upgrade {name}, release {}\n{}", release.display(), findings(&staged.checks));
        for line in outlook {
            let _ = writeln!(text, "{line}");
        }
        answer(&text)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(Code::Failed as u8) })
}

/// What the supervisor, if one runs, has to say of a plan.
fn told_note(home: &Home, plan: &Found) -> Option<String> {
    let status = client::ask(home, &Request::Status).ok()??;
    let is_its =
        |told: &&Value| told.get("name") == Some(&json!(plan.name)) && told.get("height") == Some(&json!(plan.height));
    let told = status.get("plans")?.as_array()?.iter().find(is_its)?.get("note")?.as_str()?;
    Some(told.to_owned()).filter(|note| !note.is_empty())
}

/// The plans as they are on disk, each with its standing: as the supervisor sees it, where one runs and knows it already.
pub fn seen(context: &Context) -> Result<(Vec<Value>, Vec<look::PlanError>)> {
    let status = client::ask(&context.home, &Request::Status)?;
    let told: Vec<Value> = status.as_ref().and_then(|s| s.get("plans")?.as_array().cloned()).unwrap_or_default();
    let (schedule, errors) = plans(context);
    let journal = look::read_journal(&context.home).ok().flatten();
    let is_its = |plan: &Found| journal.as_ref().is_some_and(|j| j.digest.as_ref() == Some(&plan.digest));
    let phase = journal.as_ref().map_or("", |j| phase_word(j.stage));
    let waits = if status.is_none() { "waits for the next start, which goes on with it" } else { "" };
    let shape = |entry: &Entry| {
        let plan = &entry.plan;
        let same =
            |t: &&Value| t.get("name") == Some(&json!(plan.name)) && t.get("height") == Some(&json!(plan.height));
        let of = |key: &str| told.iter().find(same).and_then(|t| Some(t.get(key)?.as_str()?.to_owned()));
        let (state, note) = match &entry.standing {
            _ if status.is_none() && is_its(plan) => (phase, waits.to_owned()),
            Standing::Pending if status.is_none() => ("scheduled", "no supervisor runs".to_owned()),
            Standing::Pending => ("scheduled", String::new()),
            Standing::Done => ("done", String::new()),
            Standing::Past(why) => ("past", why.clone()),
            Standing::Failed(why) => ("failed", why.clone()),
            Standing::Conflict(why) => ("conflict", why.clone()),
            Standing::Held(why) => ("held", why.clone()),
        };
        let (state, note) = (of("state").unwrap_or_else(|| state.to_owned()), of("note").unwrap_or(note));
        json!({"name": plan.name, "height": plan.height, "state": state, "note": note, "file": plan.file, "description": plan.description, "batch": plan.batch})
    };
    let mut all: Vec<Value> = schedule.entries.iter().map(shape).collect();
    if let Some(journal) = journal.as_ref().filter(|_| !schedule.entries.iter().any(|entry| is_its(&entry.plan))) {
        // The operator's own word began it, or its plan was withdrawn meanwhile.
        let batch = journal.plan.as_ref().and_then(|plan| plan.batch.clone());
        all.push(json!({"name": journal.name, "height": journal.height, "state": phase, "note": waits, "file": "", "description": null, "batch": batch}));
    }
    Ok((all, errors))
}

/// The block of a plan, for people; one without a plan has none.
fn block(plan: &Value) -> String {
    plan.get("height").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), |height| height.to_string())
}

fn list(context: &Context, all: bool) -> Result<()> {
    let (plans, errors) = seen(context)?;
    let history = if all { look::read_history(&context.home) } else { Vec::new() };
    if context.json {
        let mut object = json!({"plans": plans, "plan_errors": errors});
        if all && let Some(object) = object.as_object_mut() {
            object.insert("history".to_owned(), json!(history));
        }
        return answer(&format!("{object:#}"));
    }
    let mut text = String::new();
    for plan in &plans {
        let of = |key: &str| plan.get(key).and_then(Value::as_str).unwrap_or("");
        let note = if of("note").is_empty() { String::new() } else { format!("  {}", of("note")) };
        let _ = writeln!(text, "{:<20} {:>12}  {:<9}{note}", of("name"), block(plan), of("state"));
    }
    for error in &errors {
        let _ = writeln!(text, "{} is no plan: {}", error.file, error.error);
    }
    if all {
        for line in &history {
            let height = line.height.map_or_else(|| "-".to_owned(), |h| h.to_string());
            let down = crate::config::show_duration(std::time::Duration::from_millis(line.downtime_ms));
            let why = if line.reason.is_empty() { String::new() } else { format!(": {}", line.reason) };
            let _ = writeln!(
                text,
                "{} {:<20} {height:>12}  {} from {} (downtime {down}){why}",
                line.finished,
                line.name,
                line.result.word(),
                line.from
            );
        }
    }
    answer(if text.is_empty() { "no upgrade is planned" } else { &text })
}

fn show(context: &Context, name: &Name) -> Result<()> {
    let (plans, _) = seen(context)?;
    let plans: Vec<&Value> =
        plans.iter().filter(|plan| plan.get("name").and_then(Value::as_str) == Some(name.as_str())).collect();
    let files: Vec<Plan> = look::plan_files(&context.home)
        .into_iter()
        .filter_map(|(_, plans)| plans.ok())
        .flatten()
        .filter(|plan| plan.name == *name)
        .collect();
    let history: Vec<_> = look::read_history(&context.home).into_iter().filter(|h| h.name == *name).collect();
    if plans.is_empty() && history.is_empty() {
        return Err(Error::failed(format!("no plan and no finished upgrade has the name {name}")));
    }
    if context.json {
        return answer(&format!("{:#}", json!({"plans": plans, "files": files, "history": history})));
    }
    let mut text = String::new();
    for plan in plans {
        let of = |key: &str| plan.get(key).and_then(Value::as_str).unwrap_or("");
        let file = if of("file").is_empty() { "none holds its plan" } else { of("file") };
        let _ = writeln!(text, "{name} at block {}: {} {}\n  file     {file}", block(plan), of("state"), of("note"));
        if !of("description").is_empty() {
            let _ = writeln!(text, "  about    {}", of("description"));
        }
        let _ = writeln!(text, "  release  {}", context.home.binary(&context.home.find(name)).display());
    }
    for line in history {
        let why = if line.reason.is_empty() { String::new() } else { format!(": {}", line.reason) };
        let _ = writeln!(text, "{} {} from {} to {}{why}", line.finished, line.result.word(), line.from, line.to);
    }
    answer(&text)
}

fn cancel(context: &Context, name: &Name) -> Result<()> {
    let home = &context.home;
    let ask = || client::ask(home, &Request::Cancel { name: name.clone() });
    // What has begun is undone by its supervisor; asked once more after the files are gone, for it may have begun meanwhile.
    let undone = |reply: Option<Value>| reply.is_some_and(|r| r.get("under_way") != Some(&Value::Bool(false)));
    let mut was_under_way = undone(ask()?);
    if !was_under_way && let Some(journal) = look::read_journal(home)?.filter(|j| j.name == *name) {
        return Err(Error::refused(format!(
            "upgrade {name} is under way ({}) but no supervisor runs: start it, then cancel",
            phase_word(journal.stage)
        )));
    }
    let removed = withdraw_where(context, name, |plan| plan.name == *name)?;
    if !was_under_way {
        was_under_way = undone(ask()?);
    }
    match (was_under_way, removed.len()) {
        (true, _) => context.done(
            &format!("upgrade {name} was under way and is undone; the old release starts again"),
            json!({"name": name}),
        ),
        (false, 0) => Err(Error::failed(format!("no upgrade {name} is planned"))),
        (false, _) => context.done(&format!("the plan for {name} is withdrawn"), json!({"name": name})),
    }
}

fn retry(context: &Context, name: &Name) -> Result<()> {
    let files = look::plan_files(&context.home);
    let history = look::read_history(&context.home);
    let failed = |plan: &&Plan| {
        let last = history.iter().rev().find(|h| h.digest.as_deref() == Some(&plan.digest()));
        plan.name == *name
            && last.is_some_and(|h| matches!(h.result, Outcome::Failed | Outcome::Reverted | Outcome::Cancelled))
    };
    let Some(plan) = files.iter().filter_map(|(_, plans)| plans.as_ref().ok()).flatten().find(failed) else {
        let last = history.iter().rev().find(|h| h.name == *name);
        return Err(Error::refused(match last.map(|h| h.result) {
            Some(result @ (Outcome::Failed | Outcome::Reverted | Outcome::Cancelled)) => format!(
                "upgrade {name} was {}, and no file holds its plan any more: `wemixvisor upgrade schedule {name} HEIGHT` plans it again",
                result.word()
            ),
            Some(Outcome::Committed | Outcome::Passed) | None => format!("no plan of {name} has failed"),
        }));
    };
    let mut plan = plan.clone();
    count_up(&mut plan, &history);
    // Whichever file held it, the height's own file now does; the others must not say the old content. It is there at any
    // time: else those that it holds up would go on.
    let mut files = files_of(context, name, |other| other.name == *name && other.height == plan.height)?;
    files.retain(|(path, _)| *path != context.home.plan_file(plan.height));
    write_plan(context, &plan)?;
    remove_files(files)?;
    let text = format!("upgrade {name} at block {} will be tried again", plan.height);
    context.done(&text, json!({"name": name, "height": plan.height}))
}

fn now(context: &Context, name: &Name) -> Result<()> {
    let release = context.home.find(name);
    check::executable(&context.home.binary(&release)).map_err(Error::refused)?;
    client::demand(&context.home, &Request::Now { name: name.clone(), release })?;
    context.done(&format!("upgrade {name} has begun: see `wemixvisor status`"), json!({"name": name}))
}

fn revert(context: &Context, to: Option<&str>) -> Result<()> {
    let home = &context.home;
    let current = home.current_release().map_err(Error::refused)?;
    let said = to.map(Release::parse).transpose().map_err(Error::usage)?;
    // On trial the journal says where back is; else the history does.
    let on_trial = look::read_journal(home)?.is_some();
    let to = match (said, on_trial) {
        (Some(to), _) => Some(to),
        (None, true) => None,
        (None, false) => Some(step::release_before(home, &current).ok_or_else(|| {
            Error::refused(format!(
                "it is not known what ran before {current}, or that release is gone: say which, with --to"
            ))
        })?),
    };
    if let Some(to) = &to {
        check::executable(&home.binary(to)).map_err(Error::refused)?;
    }
    client::demand(home, &Request::Revert { to })?;
    context.done(&format!("going back from {current}: see `wemixvisor status`"), json!({"from": current}))
}
