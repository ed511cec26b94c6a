//! The exec shim: takes `data.lock`, puts the start on record, makes its own session, and becomes the node or a hook. The
//! lock is inherited by all that those start, so it is free exactly when the last of them is gone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::FdFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{Line, Note, Recorded, backup, durable, look};
use crate::error::{Code, Error, OnFile, Result};
use crate::home::{Home, Release};
use crate::journal::{Record, Stage, unix_now};
use crate::node_args;
use crate::plan::Plan;
use crate::proc::{self, Holder};

/// The signals whose inherited "ignore" is undone. TERM is among them: a node that ignores it could not be stopped.
const ORDINARY: &[i32] = &[1, 2, 3, 10, 12, 14, 15, 17, 18, 20, 21, 22, 23, 28];

/// What is to be started; its arguments follow on the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The supervisor's process id: who else is our parent means that it died.
    pub supervisor: u32,
    /// The home.
    pub home: Home,
    /// Who we become.
    pub program: Program,
}

/// Who a shim becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Program {
    /// The node.
    Node(Node),
    /// The first of the journal's remaining hooks.
    Hook,
}

/// How the node is to be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Where the node's output goes; ours when none.
    pub log: Option<PathBuf>,
    /// Whether the node gets the supervisor's stdin instead of /dev/null.
    pub stdin: bool,
    /// The data directory, where the settings name one.
    pub data_dir: Option<PathBuf>,
    /// The operator said that it may be empty.
    pub allow_empty_data: bool,
}

/// The longest `info` of a plan that a hook gets in its environment, in bytes; the whole plan is in UPGRADE_INFO_FILE.
const INFO_MAX: usize = 64 << 10;

/// Becomes the node or a hook, or says on the report pipe (its stdin) why not.
pub fn exec(words: &[String]) -> ExitCode {
    let Some((spec, args)) = words.split_first() else { return ExitCode::from(2) };
    let Ok(spec) = serde_json::from_slice::<Spec>(spec.as_bytes()) else { return ExitCode::from(2) };
    let Ok(report) = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3) else { return ExitCode::from(2) };
    let mut report = File::from(report);
    let note = match prepare(&spec, args, &mut report) {
        Ok(Ready { mut command, lock }) => match rustix::io::fcntl_setfd(&lock, FdFlags::empty()) {
            Ok(()) => {
                let error = command.exec();
                Note::NotExecuted(format!("cannot execute {}: {error}", command.get_program().display()))
            }
            Err(e) => Note::NotExecuted(format!("cannot hand on {}: {e}", spec.home.data_lock().display())),
        },
        Err(note) => *note,
    };
    tell(&mut report, note);
    ExitCode::FAILURE
}

/// All that is needed to become the node.
struct Ready {
    command: Command,
    lock: File,
}

fn tell(report: &mut File, note: Note) {
    if let Ok(mut text) = serde_json::to_string(&Line::Note(note)) {
        text.push('\n');
        let _ = report.write_all(text.as_bytes());
    }
}

fn prepare(spec: &Spec, args: &[String], report: &mut File) -> std::result::Result<Ready, Box<Note>> {
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if u32::try_from(parent).ok() != Some(spec.supervisor) {
        return Err(Box::new(Note::Refused("the supervisor is gone".to_owned())));
    }
    let stdin = matches!(&spec.program, Program::Node(node) if node.stdin);
    let why_not = match &spec.program {
        Program::Node(_) => not_started,
        Program::Hook => refused,
    };
    redirect_stdin(spec.supervisor, stdin).map_err(why_not)?;
    let lock = open_lock(&spec.home).map_err(why_not)?;
    if lock.try_lock().is_err() {
        return Err(Box::new(Note::Busy(super::clear::holders(&spec.home))));
    }
    let command = match &spec.program {
        Program::Node(node) => node_command(&spec.home, node, args, &lock, report)?,
        Program::Hook => hook_command(&spec.home, report)?,
    };
    Ok(Ready { command, lock })
}

fn refused(e: Error) -> Box<Note> {
    Box::new(Note::Refused(e.message))
}

/// A disk or a limit that says no right now must not cost the node: it is tried again, as after a crash.
fn not_started(e: Error) -> Box<Note> {
    if e.code == Code::Refused { refused(e) } else { Box::new(Note::NotExecuted(e.message)) }
}

fn node_command(
    home: &Home,
    node: &Node,
    args: &[String],
    lock: &File,
    report: &mut File,
) -> std::result::Result<Command, Box<Note>> {
    if backup::restore_pending(home) {
        let why =
            format!("{} says that the data is being exchanged: that is to be ended first", home.restore().display());
        return Err(refused(Error::refused(why)));
    }
    let release = home.current_release().map_err(|e| not_started(Error::failed(e)))?;
    let binary = home.current_binary();
    let final_args = match with_node_args(home, &release, args) {
        Ok(args) => args,
        Err(e) => {
            // The release's own fault, and so a start of it that failed.
            let starts = count_start(home, &release).unwrap_or(0);
            tell(report, Note::Recorded(Recorded { release, args: Vec::new(), starts }));
            return Err(Box::new(Note::NotExecuted(e.message)));
        }
    };
    let data_dir = node.data_dir.clone().or_else(|| node_args::data_dir(&final_args)).unwrap_or_else(|| home.data());
    if !node.allow_empty_data
        && let Err(e) = guard(home, &data_dir)
    {
        // A new release that looks for the data elsewhere than the old one did has failed; anybody else waits for a disk.
        let trial = look::read_journal(home).ok().flatten().filter(|j| j.stage == Stage::Trial && j.to == release);
        let elsewhere =
            |spec: backup::Spec| std::path::absolute(&data_dir).is_ok_and(|dir| dir != spec.in_home(home).data_dir);
        if !trial.and_then(|journal| journal.data).is_some_and(elsewhere) {
            return Err(not_started(e));
        }
        let starts = count_start(home, &release).unwrap_or(0);
        tell(report, Note::Recorded(Recorded { release, args: final_args, starts }));
        return Err(Box::new(Note::NotExecuted(e.message)));
    }
    if let Some((path, who)) = locked_by_others(&data_dir) {
        let (path, who) = (path.display(), super::clear::list(&who));
        let why = format!(
            "{path} is held by {who}: another node runs on this data, outside of this home; end that one first"
        );
        return Err(refused(Error::refused(why)));
    }
    redirect_output(home, node).map_err(not_started)?;
    // A start that cannot be put on record is still a start: a disk that is full must not cost the node.
    let starts = count_start(home, &release).unwrap_or_else(|e| {
        tell(report, Note::Warning(format!("{e}: this start of {release} is not counted")));
        0
    });
    let death_signal = !has_capabilities(&binary);
    if let Err(e) = record(lock, home, &release, args, death_signal) {
        tell(report, Note::Warning(format!("{e}: this start is not on record")));
    }
    undo_ignored();
    tell(report, Note::Recorded(Recorded { release, args: final_args.clone(), starts }));
    let mut command = Command::new(binary);
    command.args(final_args);
    Ok(command)
}

/// A lock of geth's own in the data that somebody holds, and who has it open. Ours are gone: the data lock is held.
fn locked_by_others(data_dir: &Path) -> Option<(PathBuf, Vec<Holder>)> {
    let inside = fs::read_dir(data_dir).ok()?.flatten().map(|entry| entry.path().join("LOCK"));
    let is_held = |path: &PathBuf| {
        path.symlink_metadata().is_ok_and(|meta| meta.is_file())
            && File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    };
    let path = inside.into_iter().find(is_held)?;
    let who = proc::holders(&path);
    Some((path, who))
}

fn hook_command(home: &Home, report: &mut File) -> std::result::Result<Command, Box<Note>> {
    let journal = look::read_journal(home).map_err(refused)?.filter(|j| j.stage == Stage::Hook);
    let Some((mut journal, path)) = journal.and_then(|j| j.hooks.first().cloned().map(|path| (j, path))) else {
        return Err(Box::new(Note::Refused("the journal names no hook to run".to_owned())));
    };
    // On disk before the exec: from here on the data may be other than it was.
    journal.attempt += 1;
    journal.touched = true;
    super::step::write_journal(home, &journal).map_err(refused)?;
    undo_ignored();
    tell(report, Note::HookStarted { attempt: journal.attempt });
    let mut command = Command::new(home.dir().join(path));
    let height = journal.height.map_or_else(String::new, |height| height.to_string());
    let backup = journal.data.as_ref().zip(journal.backup.as_ref());
    let backup = backup.and_then(|(spec, name)| backup::find(home, &spec.in_home(home), name)).unwrap_or_default();
    let info = journal.plan.as_ref().map_or_else(String::new, Plan::info_text);
    command
        .args([journal.name.as_str(), &height])
        .current_dir(home.root())
        .env("DAEMON_HOME", home.root())
        .env("DAEMON_NAME", home.binary_name())
        .env("UPGRADE_NAME", journal.name.as_str())
        .env("UPGRADE_HEIGHT", height)
        .env("UPGRADE_INFO_FILE", home.release(&journal.to).join("upgrade-info.json"))
        .env("UPGRADE_BACKUP", backup)
        .env("UPGRADE_ATTEMPT", journal.attempt.to_string());
    if info.len() < INFO_MAX {
        command.env("UPGRADE_INFO", info);
    }
    Ok(command)
}

/// Opens the data lock, making it when it is not there.
pub fn open_lock(home: &Home) -> Result<File> {
    let path = home.data_lock();
    let fresh = !path.exists();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = match options.open(&path) {
        // Locked it can be all the same.
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
        opened => opened,
    }
    .on("open", &path)?;
    if fresh && let Ok(owner) = home.owner() {
        durable::give(&path, owner)?;
    }
    Ok(file)
}

/// The record in the data lock, if there is a whole one.
pub fn read_record(home: &Home) -> Option<Record> {
    serde_json::from_slice(&fs::read(home.data_lock()).ok()?).ok()
}

/// Writes the record into the data lock, in place: only its holder does, and a torn one is no record.
pub fn write_record(mut lock: &File, path: &Path, record: &Record, sync: bool) -> Result<()> {
    let text = serde_json::to_string(record).on("write", path)?;
    // Cut after it was written over: a full disk must not cost the old record.
    let len = text.len() as u64;
    lock.rewind().and_then(|()| lock.write_all(text.as_bytes())).and_then(|()| lock.set_len(len)).on("write", path)?;
    if sync { lock.sync_data().on("sync", path) } else { Ok(()) }
}

/// Says of the last end that it tells nothing of what may have been signed: a validator is then held longer. Only told where
/// there is a record, and not worth a step that fails.
pub fn mark_record(home: &Home, lock: &File, ended: &str) {
    if let Some(record) = read_record(home) {
        let record = Record { ended: Some(ended.to_owned()), ..record };
        if let Err(e) = write_record(lock, &home.data_lock(), &record, true) {
            super::say(&Line::Note(Note::Warning(e.message)));
        }
    }
}

fn record(lock: &File, home: &Home, release: &Release, args: &[String], death_signal: bool) -> Result<()> {
    let pid = std::process::id();
    let record = Record {
        pid,
        start_time: proc::start_time(pid).unwrap_or(0),
        boot_id: proc::boot_id(),
        release: release.clone(),
        args: args.to_vec(),
        started: unix_now(),
        death_signal,
        ended: None,
    };
    write_record(lock, &home.data_lock(), &record, true)
}

/// Deaths in a trial are counted on disk, before the exec: three starts are three, whoever died with them.
fn count_start(home: &Home, release: &Release) -> Result<u32> {
    let Some(mut journal) = look::read_journal(home)?.filter(|j| j.on_probation() == Some(release)) else {
        return Ok(0);
    };
    journal.starts += 1;
    super::step::write_journal(home, &journal)?;
    Ok(journal.starts)
}

/// A home that had a head and now has an empty data directory is a disk that was not mounted.
fn guard(home: &Home, data_dir: &Path) -> Result<()> {
    let known = look::read_known(home);
    if known.head.as_ref().is_none_or(|head| head.number == 0) {
        return Ok(());
    }
    let nodes_own = |entries: fs::ReadDir| {
        let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
        Ok(paths?.iter().any(|path| !look::is_ours_in_data(path)))
    };
    let empty = match fs::read_dir(data_dir).and_then(nodes_own) {
        Ok(some) => !some,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        // What cannot be read for once is not empty.
        Err(e) => return Err(e).on("read", data_dir),
    };
    match known.head {
        Some(head) if head.number > 0 && empty => Err(Error::refused(format!(
            "{} is empty, but this node was at block {}: is its disk not mounted? (if it is meant to be empty: --set allow_empty_data=true)",
            std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()).display(),
            head.number
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The release's own `node-args` replace the given ones: one argument a line, `%{args}` stands for the given ones.
pub fn with_node_args(home: &Home, release: &Release, args: &[String]) -> Result<Vec<String>> {
    let path = home.release(release).join("node-args");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(args.to_vec()),
        Err(e) => return Err(e).on("read", &path),
    };
    Ok(expand(&text, args))
}

fn expand(text: &str, args: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for line in text.lines().map(|line| line.strip_suffix('\r').unwrap_or(line)).filter(|line| !line.is_empty()) {
        if line == "%{args}" {
            all.extend_from_slice(args);
        } else {
            all.push(line.to_owned());
        }
    }
    all
}

fn redirect_stdin(supervisor: u32, wanted: bool) -> Result<()> {
    // The supervisor's own stdin, opened anew; a socket cannot be, and gives /dev/null. NOCTTY: it must not become the
    // terminal of the node's session.
    let theirs = PathBuf::from(format!("/proc/{supervisor}/fd/0"));
    let open = |path: &Path| {
        OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed()).open(path)
    };
    let null = Path::new("/dev/null");
    let file = if wanted { open(&theirs).or_else(|_| open(null)) } else { open(null) }.on("open", null)?;
    rustix::stdio::dup2_stdin(file).on("take as stdin", null)
}

fn redirect_output(home: &Home, node: &Node) -> Result<()> {
    let Some(log) = &node.log else { return Ok(()) };
    if *log == home.node_log()
        && let Some(dir) = log.parent()
    {
        // Ours to make; a place that was named has to be there, as what is mounted is.
        durable::make_dirs(dir, 0o755, home.owner().on("read", home.root())?)?;
    }
    let fresh = !log.exists();
    // Opened for append, no pipe: whatever dies, the node keeps writing.
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(log).on("open the node's log", log)?;
    if fresh && let Ok(owner) = home.owner() {
        durable::give(log, owner)?;
    }
    rustix::stdio::dup2_stdout(&file).on("write to", log)?;
    rustix::stdio::dup2_stderr(&file).on("write to", log)
}

/// A signal that was ignored before us stays ignored across exec; one with a handler becomes default. Only those that are
/// really ignored get one: a TERM that comes right now must still end us.
fn undo_ignored() {
    let (_, ignored) = proc::inherited_signals();
    let nothing = Arc::new(AtomicBool::new(false));
    for &signal in ORDINARY.iter().filter(|&&signal| proc::in_mask(ignored, signal)) {
        let _ = signal_hook::flag::register(signal, Arc::clone(&nothing));
    }
}

/// File capabilities clear the death signal at exec.
pub fn has_capabilities(binary: &Path) -> bool {
    rustix::fs::getxattr(binary, "security.capability", &mut [0u8; 64][..]).is_ok_and(|n| n > 0)
}

/// The last words that a reader of a file wants: at most this many lines, from its last 8 KiB.
pub fn last_lines(path: &Path, lines: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(std::io::SeekFrom::Start(len.saturating_sub(8192)))?;
        let mut tail = Vec::new();
        file.take(8192).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.iter()
        .skip(all.len().saturating_sub(lines))
        .map(|line| line.chars().filter(|c| !c.is_control()).take(400).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_args_replace_the_given_ones_and_may_contain_them() {
        let given = ["--datadir".to_owned(), "/d".to_owned()];
        assert_eq!(expand("--a\n\n%{args}\r\n--b c\n", &given), ["--a", "--datadir", "/d", "--b c"]);
        assert_eq!(expand("--only\n", &given), ["--only"]);
    }
}
