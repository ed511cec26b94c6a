//! `run`, `start`, `stop`, `restart`: the supervisor's beginning and end, as seen from the shell.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Context, client};
use crate::error::{Code, Error, OnFile, Result};
use crate::geth;
use crate::home::Home;
use crate::job::shim::{last_lines, read_record};
use crate::job::{self, Flags, check, clear, durable, look};
use crate::journal::{Last, rfc3339, unix_now};
use crate::node_args;
use crate::proc;
use crate::supervise::control::Request;
use crate::supervise::{self, Setup, notify};

/// How long the last steps of a supervisor that was killed may hold its lock.
const LEFTOVER_TIME: Duration = Duration::from_secs(15);

/// Who only asks holds the lock for less.
const SHARED_TIME: Duration = Duration::from_secs(1);

/// How many of the node's last lines an error shows.
const LAST_LINES: usize = 10;

/// Supervises in the foreground.
pub fn run(context: Context, args: Vec<String>) -> Result<ExitCode> {
    context.laid_out()?;
    check_node(&context.home)?;
    let args = if args.is_empty() { context.config.node_args.clone() } else { args };
    supervise(context, args, false)
}

/// The supervisor that `start` started: its stdout is read by `start` until the node is up.
pub fn background(context: Context, args: Vec<String>) -> Result<ExitCode> {
    let _ = rustix::process::setsid();
    supervise(context, args, true).inspect_err(|e| {
        let _ = writeln!(std::io::stdout(), "{e}");
    })
}

fn supervise(context: Context, args: Vec<String>, background: bool) -> Result<ExitCode> {
    supervise::log::begin(&context.config, context.quiet);
    let lock = take_lock(&context.home)?;
    // Held until the end is on record: who finds it free may start at once. (A duplicate shares the lock.)
    let held = lock.try_clone().on("keep", &context.home.lock())?;
    let home = context.home.clone();
    log::info!("wemixvisor {} supervises {}", env!("CARGO_PKG_VERSION"), home.root().display());
    let as_flags: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| geth::is_flag_variable(name))
        .collect();
    if !as_flags.is_empty() {
        // Their values may be secrets.
        log::warn!("the node takes these variables of the environment for flags: {}", as_flags.join(", "));
    }
    for caution in cautions(&home, &args) {
        log::warn!("{caution}");
    }
    let backup = job::backup::Spec::new(&context.config, &home, &args);
    let setup = Setup { config: context.config, flags: context.flags, home: context.home, lock, background, args };
    let leave = supervise::supervise(setup)?;
    remember_end(&home, leave.state, &leave.reason);
    if let Some(file) = leave.metrics_textfile {
        let spec = job::metrics::Spec { file: Some(file), retired: None, live: None, backup };
        // Else the file would tell of a node that runs until somebody starts the next one.
        job::metrics::write(&home, &spec).unwrap_or_else(|e| log::warn!("{e}"));
    }
    drop(held);
    if leave.code != 0 {
        // Of a node that ran and failed; else they would be an earlier one's.
        let failed = leave.node_log.filter(|_| leave.code == Code::Node as u8);
        let lines = failed.map(|path| last_lines(&path, LAST_LINES)).unwrap_or_default();
        for line in &lines {
            log::error!("the node's last lines: {line}");
        }
        if background {
            let mut out = std::io::stdout();
            let _ = writeln!(out, "{}", leave.reason);
            for line in lines {
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    Ok(ExitCode::from(leave.code))
}

/// What can be told before anything is started.
fn check_node(home: &Home) -> Result<()> {
    let release = home.current_release().map_err(Error::refused)?;
    check::executable(&home.binary(&release)).map_err(Error::usage)
}

/// What goes well here and now, and not when the node is started in another way.
fn cautions(home: &Home, args: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    if rustix::process::geteuid().is_root()
        && let Ok(owner) = home.owner()
        && owner.uid != 0
    {
        all.push(format!(
            "the node runs as root, and what it makes is root's: uid {}, who owns {}, may not be able to run it any more; start it as that user (its unit does)",
            owner.uid,
            home.root().display()
        ));
    }
    if let Some(dir) = node_args::data_dir(args).filter(|dir| dir.is_relative())
        && let Ok(here) = std::path::absolute(&dir)
        && here != home.root().join(&dir)
    {
        all.push(format!(
            "--datadir {} is {} here, and another directory where the node is started elsewhere: give the whole path",
            dir.display(),
            here.display()
        ));
    }
    all
}

/// Becomes the only supervisor of this home.
fn take_lock(home: &Home) -> Result<File> {
    let path = home.lock();
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .on("open", &path)?;
    durable::give(&path, home.owner().on("read", home.root())?)?;
    let until = Instant::now() + LEFTOVER_TIME;
    let mut told = false;
    let mut shared_since = None;
    while lock.try_lock().is_err() {
        // Shared it is held by those who only ask, for a moment, and by who works on the data of a stopped node.
        if lock.try_lock_shared().is_ok() {
            lock.unlock().on("unlock", &path)?;
            if shared_since.get_or_insert_with(Instant::now).elapsed() > SHARED_TIME {
                return Err(Error::refused("a backup is being made or put back: start when that is over"));
            }
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        shared_since = None;
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut words = text.split_whitespace().map(str::parse::<u64>);
        let (pid, start) =
            (words.next().and_then(std::result::Result::ok), words.next().and_then(std::result::Result::ok));
        let alive = pid.and_then(|pid| u32::try_from(pid).ok()).and_then(proc::start_time);
        if alive.is_some() && alive == start {
            return Err(already_runs(home, pid.unwrap_or(0)));
        }
        if Instant::now() > until {
            return Err(Error::refused(format!(
                "{} is still held by {}",
                path.display(),
                clear::list(&proc::holders(&path))
            )));
        }
        if !told {
            log::warn!(
                "no supervisor runs, but {} works on this home: waiting for its end",
                clear::list(&proc::holders(&path))
            );
            told = true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = std::process::id();
    // Always as long, and in its place: so nobody reads half of it, and a full disk has room for it.
    let text = format!("{pid:<10} {:<20}\n", proc::start_time(pid).unwrap_or(0));
    if let Err(e) = (&lock).write_all(text.as_bytes()) {
        // It is the lock that counts; this only tells whose it is.
        log::warn!("cannot write {}: {e}", path.display());
    }
    Ok(lock)
}

fn already_runs(home: &Home, pid: u64) -> Error {
    Error::refused(format!("{} is supervised already, by pid {pid}: see `wemixvisor status`", home.root().display()))
}

/// The loop is over: now the disk may be written to.
fn remember_end(home: &Home, state: &str, reason: &str) {
    let mut known = look::read_known(home);
    known.last = Some(Last {
        state: state.to_owned(),
        reason: reason.to_owned(),
        time: rfc3339(unix_now()),
        node: read_record(home).map(|record| record.key()),
    });
    let written = serde_json::to_vec(&known)
        .ok()
        .zip(home.owner().ok())
        .map(|(text, owner)| durable::replace_file(&home.state(), &text, 0o600, owner));
    if let Some(Err(e)) = written {
        log::warn!("{e}");
    }
}

/// Supervises in the background; returns when the node is up, or says why not.
pub fn start(context: &Context, args: Vec<String>) -> Result<ExitCode> {
    context.laid_out()?;
    check_node(&context.home)?;
    let home = &context.home;
    // One that was just killed does not answer, and lets go in a moment.
    if let Some(pid) = client::supervisor(home)
        && !matches!(client::ask(home, &Request::Status), Ok(None))
    {
        return Err(already_runs(home, pid.into()));
    }
    let args = match (args.is_empty(), context.config.node_args.is_empty(), read_record(home)) {
        (false, _, _) => args,
        (true, false, _) => context.config.node_args.clone(),
        (true, true, Some(record)) => {
            context.note(&format!("with the arguments of the last run: {}", record.args.join(" ")));
            record.args
        }
        (true, true, None) => args,
    };
    cautions(home, &args).iter().for_each(|caution| context.note(&format!("warning: {caution}")));
    let owner = home.owner().on("read", home.root())?;
    let log = home.own_log();
    durable::make_dirs(&home.root().join("logs"), 0o755, owner)?;
    let errors = OpenOptions::new().append(true).create(true).mode(0o640).open(&log).on("open", &log)?;
    durable::give(&log, owner)?;
    let flags = serde_json::to_string(&context.flags).map_err(|e| Error::failed(e.to_string()))?;
    let mut command = Command::new("/proc/self/exe");
    // Who started us by `start` is no service manager of the supervisor.
    for variable in notify::VARIABLES {
        command.env_remove(variable);
    }
    let mut child = command
        .arg0("wemixvisor")
        .args(["supervise", &flags])
        .args(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|e| Error::failed(format!("cannot start the supervisor: {e}")))?;
    let mut told = String::new();
    let mut pipe = child.stdout.take();
    if let Some(pipe) = &mut pipe {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        while !bytes.starts_with(b"up\n") {
            match pipe.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(n) => bytes.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            }
        }
        told = String::from_utf8_lossy(&bytes).into_owned();
    }
    if told.starts_with("up\n") {
        let status = client::ask(home, &Request::Status)?.unwrap_or_default();
        let pid = status.get("pid").and_then(Value::as_u64).unwrap_or(0);
        let log = context.config.log_file.clone().unwrap_or_else(|| home.node_log());
        let text =
            format!("the node runs (pid {pid}), supervised by pid {}; its output is in {}", child.id(), log.display());
        context.done(&text, json!({"pid": pid, "supervisor_pid": child.id(), "log": log}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().map_err(|e| Error::failed(format!("cannot wait for the supervisor: {e}")))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Code::Failed as u8);
    let told = told.trim_end();
    let why = if told.is_empty() {
        format!("the supervisor ended: {status}; see {}", log.display())
    } else {
        told.to_owned()
    };
    eprintln!("wemixvisor: {why}");
    Ok(ExitCode::from(if code == 0 { Code::Node as u8 } else { code }))
}

/// Ends node and supervisor and waits for it.
pub fn stop(context: &Context, now: bool) -> Result<ExitCode> {
    context.laid_out()?;
    let home = &context.home;
    let who = client::supervisor(home);
    let asked = client::ask(home, &Request::Stop { now })?.is_some();
    let mut progress = Progress { context, began: Instant::now(), next: Duration::from_secs(3) };
    // One that another starts right after it is not meant.
    while asked && client::supervisor(home).is_some_and(|pid| Some(pid) == who) {
        std::thread::sleep(Duration::from_millis(20));
        progress.tell(|| {
            let status = client::ask(home, &Request::Status).ok().flatten();
            status.and_then(|s| Some(s.get("waits_for")?.as_str()?.to_owned()))
        });
    }
    let left = client::supervisor(home).is_none() && wait_for_the_data(home, now, &mut progress)?;
    let was_running = asked || left;
    context.done(if was_running { "stopped" } else { "nothing runs" }, json!({"was_running": was_running}))?;
    Ok(ExitCode::SUCCESS)
}

/// Says from time to time what is waited for.
struct Progress<'a> {
    context: &'a Context,
    began: Instant,
    next: Duration,
}

impl Progress<'_> {
    fn tell(&mut self, what: impl FnOnce() -> Option<String>) {
        let waited = self.began.elapsed();
        if waited >= self.next {
            self.next += Duration::from_secs(5);
            let what = what().unwrap_or_else(|| "the supervisor to end".to_owned());
            self.context.note(&format!("waiting for {what}, {} s", waited.as_secs()));
        }
    }
}

/// A supervisor that was killed leaves its node, which got TERM by that: nothing is stopped before it is gone. True when
/// there was one to wait for.
fn wait_for_the_data(home: &Home, now: bool, progress: &mut Progress) -> Result<bool> {
    let Ok(lock) = File::open(home.data_lock()) else { return Ok(false) };
    let mut waited = false;
    while lock.try_lock_shared().is_err() {
        if at_work(home) {
            progress.context.note("no node runs; a backup is being made or put back");
            return Ok(false);
        }
        let holders = clear::holders(home);
        if now {
            holders.iter().for_each(|holder| clear::send(holder, rustix::process::Signal::KILL));
        } else if !waited && !holders.is_empty() {
            progress.context.note(&format!(
                "no supervisor runs, but {} holds the data: it was told to end when its supervisor died (`stop --now` ends it at once)",
                clear::list(&holders)
            ));
        }
        waited = true;
        if progress.began.elapsed() > progress.context.config.shutdown_limit {
            return Err(Error::failed(format!("{} still holds the data: `stop --now` ends it", clear::list(&holders))));
        }
        std::thread::sleep(Duration::from_millis(20));
        progress.tell(|| Some(format!("{} to end", clear::list(&holders))));
    }
    Ok(waited)
}

/// Whether somebody works on the data of a stopped node: the one who holds the supervisors' lock shared.
fn at_work(home: &Home) -> bool {
    File::open(home.lock()).is_ok_and(|lock| lock.try_lock().is_err() && lock.try_lock_shared().is_ok())
}

/// Restarts the node gently; where nothing runs, starts it.
pub fn restart(context: &Context, args: Option<Vec<String>>) -> Result<ExitCode> {
    context.laid_out()?;
    if client::supervisor(&context.home).is_none() || client::ask(&context.home, &Request::Status)?.is_none() {
        return start(context, args.unwrap_or_default());
    }
    let flags: Vec<(String, String)> = own_flags(&context.flags);
    if !flags.is_empty() {
        client::demand(&context.home, &Request::Reload { flags })?;
    }
    let reply = client::demand(&context.home, &Request::Restart { args })?;
    let pid = reply.get("pid").and_then(Value::as_u64).unwrap_or(0);
    context.done(&format!("the node runs again (pid {pid})"), json!({"pid": pid}))?;
    Ok(ExitCode::SUCCESS)
}

/// The typed settings but those that only say which home is meant.
fn own_flags(flags: &Flags) -> Vec<(String, String)> {
    let which = ["daemon_home", "home", "daemon_name", "name"];
    flags.settings.iter().filter(|(key, _)| !which.contains(&key.to_ascii_lowercase().as_str())).cloned().collect()
}
