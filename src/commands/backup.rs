//! `backup …`: looks after the backups of the node's data. Making one and putting one back need nobody else at the data; the
//! rest works at any time.

use std::fmt::Write as _;
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::meter::Meter;
use super::{Context, answer, client};
use crate::cli::Backup;
use crate::config::show_size;
use crate::error::{Code, Error, OnFile, Result};
use crate::home::{Home, Name, Owner};
use crate::job::backup::list::{self, Found, Held, State};
use crate::job::backup::prune::{Limits, prune};
use crate::job::backup::{self as store, About, Spec, export, verify};
use crate::job::shim::{open_lock, read_record, with_node_args};
use crate::job::{clear, durable, look, step};
use crate::journal::{Stage, unix_now};
use crate::manifest::{Header, Mode};
use crate::node_args;

/// Does what was said.
pub fn backup(context: &Context, command: &Backup) -> Result<ExitCode> {
    context.laid_out()?;
    let spec = spec(context)?;
    let done = match command {
        Backup::Create { name } => create(context, &spec, name.as_deref()),
        Backup::List => list_all(context, &spec),
        Backup::Verify { name, full } => return verify_one(context, &spec, name, *full),
        Backup::Restore { name } => restore(context, &spec, name),
        Backup::Export { name, file } => export_one(context, &spec, name, file),
        Backup::Prune { keep, max_age } => remove(context, &spec, *keep, *max_age),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Where the data is and where backups go: as the node was run last, else as it would be.
fn spec(context: &Context) -> Result<Spec> {
    let home = &context.home;
    let args = read_record(home).map_or_else(|| context.config.node_args.clone(), |record| record.args);
    let args = match home.current_release() {
        Ok(release) => with_node_args(home, &release, &args)?,
        Err(_) => args,
    };
    // Where that was nobody knows here.
    if let (None, Some(dir)) = (&context.config.data_dir, node_args::data_dir(&args).filter(|dir| dir.is_relative())) {
        return Err(Error::usage(format!(
            "the node's --datadir {} is relative to where it was started: say DAEMON_DATA_DIR, an absolute path",
            dir.display()
        )));
    }
    Ok(Spec::new(&context.config, home, &args))
}

/// The locks of who works on the data of a stopped node; nobody starts while they are held.
struct AtRest {
    _lock: File,
    _data: File,
}

fn at_rest(home: &Home) -> Result<AtRest> {
    let path = home.lock();
    let mut options = File::options();
    let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).on("open", &path)?;
    durable::give(&path, home.owner().on("read", home.root())?)?;
    // Shared: no supervisor can begin, and nobody takes us for one.
    if lock.try_lock_shared().is_err() {
        return Err(Error::refused(format!(
            "{} is supervised, by pid {}: the node must be stopped, see `wemixvisor stop`",
            home.root().display(),
            client::supervisor(home).unwrap_or(0)
        )));
    }
    let data = open_lock(home)?;
    if data.try_lock().is_err() {
        let holders = clear::list(&clear::holders(home));
        return Err(Error::refused(format!("{holders} still holds the data: `wemixvisor stop` waits for its end")));
    }
    Ok(AtRest { _lock: lock, _data: data })
}

/// An exchange of trees that was cut short is ended before anything else; that of an upgrade is its supervisor's to end.
fn settle(context: &Context, spec: &Spec) -> Result<()> {
    let home = &context.home;
    let Some((name, data)) = store::interrupted(home)? else { return Ok(()) };
    if let Some(journal) = look::read_journal(home)?.filter(|journal| journal.stage == Stage::Restore) {
        return Err(Error::refused(format!(
            "upgrade {} was putting its backup back: start the node, which ends that first",
            journal.name
        )));
    }
    // What a file says is exchanged only where the operator means it.
    let resolved = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if resolved(&data) != resolved(&spec.data_dir) {
        return Err(Error::refused(format!(
            "the restore of {name} into {} was cut short, but the data directory is {}: end it first with --set data_dir={}, if that was meant",
            data.display(),
            spec.data_dir.display(),
            data.display()
        )));
    }
    context.note("a restore was cut short: ending it first");
    store::finish_restore(home)
}

fn create(context: &Context, spec: &Spec, name: Option<&str>) -> Result<()> {
    let home = &context.home;
    let name = Name::parse(name.unwrap_or("manual")).map_err(Error::usage)?;
    if name.as_str() == store::BEFORE {
        return Err(Error::usage(format!("{name} is what restores call what they replaced: give another name")));
    }
    let _locks = at_rest(home)?;
    settle(context, spec)?;
    let forecast = store::forecast(home, spec)?;
    context.note(&format!(
        "{} in {}: {} files, {}, of which {} are copied",
        mode_word(forecast.mode),
        forecast.place.display(),
        forecast.files,
        show_size(forecast.bytes),
        show_size(forecast.to_copy)
    ));
    let about = About {
        id: None,
        upgrade: name.to_string(),
        head: look::read_known(home).head.map(|head| head.number),
        release: home.current_release().ok(),
    };
    let mut meter = Meter::new(context, "backing up");
    let made = store::create(home, spec, &about, &mut |progress| meter.tell(progress));
    meter.end();
    let made = made?;
    if context.json { answer(&format!("{:#}", json!({"name": made}))) } else { answer(&made) }
}

fn restore(context: &Context, spec: &Spec, name: &str) -> Result<()> {
    let home = &context.home;
    let found = list::named(spec, name)?;
    let header = found.header().ok_or_else(|| Error::failed(format!("{name} is not complete")))?;
    let _locks = at_rest(home)?;
    settle(context, spec)?;
    // Where the link is back already, the data may be what keeps the old release from running.
    let journal = look::read_journal(home)?;
    if let Some(journal) = journal.as_ref().filter(|journal| journal.stage != Stage::Return) {
        return Err(Error::refused(format!(
            "upgrade {} is under way: start the node to let it end, or take it back with `wemixvisor upgrade cancel {}` or `wemixvisor upgrade revert`, then stop",
            journal.name, journal.name
        )));
    }
    let _kept = found.hold()?;
    if let (Some(then), Ok(now)) = (&header.release, home.current_release())
        && *then != now
    {
        context.note(&format!("warning: release {then} ran on these data, the current one is {now}"));
    }
    let id = format!("restore-{}-{}", unix_now(), std::process::id());
    let mut meter = Meter::new(context, "restoring");
    let replaced = store::restore_lost(home, spec, name, &id, &mut |progress| meter.tell(progress));
    meter.end();
    let replaced = replaced?;
    if let Some(mut journal) = journal {
        // The old release now has to show that it can run on these data, and nothing takes them back by itself.
        journal.replaced = Some(replaced.clone());
        journal.starts = 0;
        step::write_journal(home, &journal)?;
    }
    if context.json {
        return answer(&format!("{:#}", json!({"restored": name, "replaced": replaced, "head": header.head})));
    }
    let at = header.head.map_or_else(String::new, |head| format!(" (block {head})"));
    answer(&format!(
        "{} holds the data of {name}{at}; what it held before is kept as the backup {replaced}",
        spec.data_dir.display()
    ))
}

fn list_all(context: &Context, spec: &Spec) -> Result<()> {
    let mut values = Vec::new();
    let mut rows = vec![["name", "created", "size", "only here", "head", "release", "mode"].map(str::to_owned)];
    let mut notes = String::new();
    for found in list::find(spec)? {
        let held = held(&found, spec);
        let (error, busy) = (held.as_ref().err(), matches!(found.state, State::Partial { busy: true }));
        let (held, header) = (held.as_ref().ok(), found.header().filter(|_| held.is_ok()));
        values.push(json!({
            "name": found.name,
            "created": header.map(|header| &header.created),
            "bytes": held.map(|held| held.totals.bytes),
            "exclusive_bytes": held.map(|held| held.exclusive),
            "head": header.and_then(|header| header.head),
            "release": header.and_then(|header| header.release.as_ref()),
            "mode": header.map(|header| mode_word(header.mode)),
            "complete": header.is_some(),
            "busy": busy,
            "error": error.map_or("", String::as_str),
        }));
        match (held, header, error) {
            (Some(held), Some(header), _) => rows.push(row(&found.name, header, held)),
            (_, _, why) => {
                let why = why.map_or("", String::as_str);
                let _ = writeln!(notes, "{}: not complete, {why}", found.name);
            }
        }
    }
    if context.json {
        return answer(&format!("{:#}", json!({ "backups": values })));
    }
    if values.is_empty() {
        return answer(&format!("no backups in {}", spec.backup_dir.display()));
    }
    answer(&format!("{}{notes}", if rows.len() > 1 { table(&rows) } else { String::new() }))
}

/// What a backup holds; the error says why it is none.
fn held(found: &Found, spec: &Spec) -> std::result::Result<Held, String> {
    match &found.state {
        State::Complete(_) => list::measure(found, spec).map_err(|e| e.message),
        State::Broken(why) => Err(why.clone()),
        State::Partial { busy: true } => Err("somebody works on it".to_owned()),
        State::Partial { busy: false } if found.is_ahead() => Err("copied beforehand for the next upgrade".to_owned()),
        State::Partial { busy: false } => Err("left half-made; `wemixvisor backup prune` removes it".to_owned()),
    }
}

fn row(name: &str, header: &Header, held: &Held) -> [String; 7] {
    let unknown = || "-".to_owned();
    [
        name.to_owned(),
        header.created.clone(),
        show_size(held.totals.bytes),
        show_size(held.exclusive),
        header.head.map_or_else(unknown, |head| head.to_string()),
        header.release.as_ref().map_or_else(unknown, ToString::to_string),
        mode_word(header.mode).to_owned(),
    ]
}

/// Columns as wide as what is in them; figures to the right.
fn table(rows: &[[String; 7]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            let _ = if matches!(column, 2..=4) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Snapshot => "snapshot",
        Mode::Copy => "copy",
    }
}

fn verify_one(context: &Context, spec: &Spec, name: &str, full: bool) -> Result<ExitCode> {
    let found = list::named(spec, name)?;
    let _kept = found.hold()?;
    let mut meter = Meter::new(context, "reading");
    let verdict = verify::verify(&found, full, &mut |progress| meter.tell(progress));
    meter.end();
    let verdict = verdict?;
    let sound = verdict.count == 0;
    let more = verdict.count - verdict.faults.len() as u64;
    if context.json {
        answer(&format!(
            "{:#}",
            json!({
                "name": name, "sound": sound, "files": verdict.totals.count, "bytes": verdict.totals.bytes,
                "read": full, "faults": verdict.faults, "more_faults": more,
            })
        ))?;
    } else if sound {
        let read = if full { ", every byte read" } else { "" };
        let bytes = show_size(verdict.totals.bytes);
        answer(&format!("{name} is as its manifest says: {} files, {bytes}{read}", verdict.totals.count))?;
    } else {
        let mut text = format!("{name} is not as its manifest says:\n");
        for fault in &verdict.faults {
            let _ = writeln!(text, "  {fault}");
        }
        if more > 0 {
            let _ = writeln!(text, "  and {more} more");
        }
        answer(&text)?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(Code::Failed as u8) })
}

fn export_one(context: &Context, spec: &Spec, name: &str, file: &Path) -> Result<()> {
    let found = list::named(spec, name)?;
    let _kept = found.hold()?;
    let stdout = file == Path::new("-");
    if stdout && std::io::stdout().is_terminal() {
        return Err(Error::usage("an archive is not for a terminal: send it to a file or into a pipe"));
    }
    let mut meter = Meter::new(context, "exporting");
    let mut tell = |progress| meter.tell(progress);
    let written = if stdout {
        export::write(&found, &mut std::io::stdout().lock(), Path::new("stdout"), &mut tell)
    } else {
        owner_there(&context.home, file).and_then(|owner| export::to_file(&found, file, owner, &mut tell))
    };
    meter.end();
    written?;
    match (stdout, context.json) {
        (true, _) => Ok(()),
        (false, true) => answer(&format!("{:#}", json!({"name": name, "file": file}))),
        (false, false) => answer(&format!("{} holds {name}", file.display())),
    }
}

/// What is made in the home belongs to its owner; elsewhere it is whoever made it's.
fn owner_there(home: &Home, file: &Path) -> Result<Option<Owner>> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (dir, root) = (dir.canonicalize().on("write to", dir)?, home.root().canonicalize().on("read", home.root())?);
    dir.starts_with(root).then(|| home.owner().on("read", home.root())).transpose()
}

fn remove(context: &Context, spec: &Spec, keep: Option<u64>, max_age: Option<Duration>) -> Result<()> {
    let home = &context.home;
    let limits = if keep.is_some() || max_age.is_some() {
        Limits { keep, max_age, min_free: None, all: true }
    } else {
        Limits::of(&context.config)
    };
    let protect = match look::read_journal(home)? {
        Some(journal) => list::of_upgrade(spec, &journal.id)?,
        None => None,
    };
    let removed = prune(home, spec, &limits, protect.as_deref())?;
    if context.json {
        let all: Vec<Value> = removed.iter().map(|r| json!({"name": r.name, "freed": r.freed})).collect();
        return answer(&format!("{:#}", json!({ "removed": all })));
    }
    if removed.is_empty() {
        return answer("nothing to remove");
    }
    let text: String = removed.iter().fold(String::new(), |mut text, one| {
        let _ = writeln!(text, "removed {one}");
        text
    });
    // What a half-made one took was not counted.
    let counted: Vec<u64> = removed.iter().filter_map(|one| one.freed).collect();
    let total = if counted.is_empty() { String::new() } else { format!("{} freed", show_size(counted.iter().sum())) };
    answer(format!("{text}{total}").trim_end())
}
