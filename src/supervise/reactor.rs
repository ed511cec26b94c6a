//! The one place that waits. It turns what the kernel tells into events for the machine, and carries out its effects. It
//! decides nothing, and it neither writes to a disk nor reads one outside /proc.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, waitpid};

use super::child::Child;
use super::control::{Control, Happening};
use super::machine::{Effect, Event, Exit, Machine, Now, Role, Sig};
use super::notify::Notify;
use super::signals::Signals;
use crate::home::Home;
use crate::job::shim::{Node, Program, Spec as ShimSpec};
use crate::job::{Job, Line, Note, Report, Spec};
use crate::proc;

/// What in a watched directory matters: names that come, go or change, and the directory itself.
const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// How long jobs are waited for at the end.
const JOBS_TIME: Duration = Duration::from_secs(2);

/// How the program leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// The exit status.
    pub code: u8,
    /// The public state that is remembered.
    pub state: &'static str,
    /// Why, in a line.
    pub reason: String,
    /// Where the metrics were written last.
    pub metrics_textfile: Option<PathBuf>,
    /// Where the output is of the node that ran last; none: it never came to run, or writes where we do.
    pub node_log: Option<PathBuf>,
}

/// All that the loop has in its hands.
pub struct Reactor {
    /// Decides.
    pub machine: Machine,
    /// The home.
    pub home: Home,
    /// Started by `start`: the node's output goes to a file, its stdin is empty.
    pub background: bool,
    /// Who holds this supervises the home; steps inherit it.
    pub lock: File,
    /// Clients.
    pub control: Control,
    /// Signals.
    pub signals: Signals,
    /// The service manager, where there is one.
    pub notify: Notify,
    /// Children by role.
    pub children: BTreeMap<Role, Child>,
    /// Tells of changed files, where that works.
    pub inotify: Option<OwnedFd>,
    /// The watches that were set last.
    pub watches: BTreeSet<i32>,
    /// When the loop began: the machine's zero.
    pub began: Instant,
}

impl Reactor {
    /// Runs until the machine leaves.
    pub fn run(mut self) -> Leave {
        self.inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok();
        if let Some(leave) = self.feed(Event::Booted) {
            return self.end(leave);
        }
        loop {
            self.wait();
            let began = Instant::now();
            if let Some(leave) = self.turn() {
                return self.end(leave);
            }
            self.machine.turned(began.elapsed(), super::log::lost());
        }
    }

    fn now(&self) -> Now {
        self.began.elapsed()
    }

    fn wait(&self) {
        let notify = if self.notify.listens() { self.notify.wake_at(&self.machine.notice()) } else { None };
        let ours = [self.machine.wake_at(), notify].into_iter().flatten().min();
        let machine = ours.map(|at| at.saturating_sub(self.now()));
        let clients = self.control.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        // A millisecond more: a wait that ends too early would be made again.
        let timeout = [machine, clients].into_iter().flatten().min().map(|left| left + Duration::from_millis(1));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let mut fds: Vec<PollFd> = vec![PollFd::new(self.signals.descriptor(), PollFlags::IN)];
        let plain = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        fds.extend(self.inotify.iter().map(AsFd::as_fd).map(plain));
        fds.extend(self.children.values().flat_map(Child::descriptors).map(plain));
        fds.extend(self.control.listener().map(AsFd::as_fd).map(plain));
        for (_, stream, writes) in self.control.clients() {
            let flags = if writes { PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(stream.as_fd(), flags));
        }
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// One turn: signals, changed files, reports, deaths, clients, listener, time. All reads are non-blocking, so that
    /// which descriptor woke the loop does not matter.
    fn turn(&mut self) -> Option<Leave> {
        let came = self.signals.take();
        if came.stop
            && let Some(leave) = self.feed(Event::Signal(Sig::Stop))
        {
            return Some(leave);
        }
        if came.reload {
            self.notify.reloading();
            if let Some(leave) = self.feed(Event::Signal(Sig::Reload)) {
                return Some(leave);
            }
        }
        if came.reopen {
            self.reopen_log();
        }
        let roles: Vec<Role> = self.children.keys().copied().collect();
        for role in roles {
            if let Some(leave) = self.hear(role) {
                return Some(leave);
            }
        }
        while let Some((pid, status)) = self.reap() {
            // A process that is not ours is an orphan that was left to us as process 1: it is reaped, that is all.
            let Some(role) = self.children.iter().find(|(_, child)| child.pid() == pid).map(|(role, _)| *role) else {
                continue;
            };
            // What was written before the end is seen before it is decided upon.
            if let Some(leave) = self.changed_files() {
                return Some(leave);
            }
            if let Some(leave) = self.hear(role) {
                return Some(leave);
            }
            if let Some(child) = self.children.remove(&role)
                && let Some(leave) = self.buried(role, child, exit(status))
            {
                return Some(leave);
            }
        }
        if let Some(leave) = self.changed_files() {
            return Some(leave);
        }
        let ids: Vec<u64> = self.control.clients().map(|(id, ..)| id).collect();
        for id in ids {
            let event = match self.control.serve(id) {
                Some(Happening::Asked(id, request)) => Event::Asked(id, request),
                Some(Happening::Left(id)) => Event::Left(id),
                None => continue,
            };
            if let Some(leave) = self.feed(event) {
                return Some(leave);
            }
        }
        let now = Instant::now();
        self.control.expire(now);
        if self.control.listener().is_some() {
            self.control.accept(now);
        }
        self.feed(Event::Tick)
    }

    /// Buries one child that has ended. What a hook leaves in its group is told to end while its leader is not reaped, for so
    /// long the group is its own; so as long as one runs, only the others are looked for by name.
    fn reap(&self) -> Option<(Pid, WaitStatus)> {
        match self.children.get(&Role::Hook) {
            Some(hook) if !hook.has_ended() => {
                let others = self.children.values().map(Child::pid).filter(|pid| *pid != hook.pid());
                others.into_iter().find_map(|pid| waitpid(Some(pid), WaitOptions::NOHANG).ok().flatten())
            }
            hook => {
                if let Some(hook) = hook {
                    hook.signal_group(Signal::TERM);
                }
                rustix::process::wait(WaitOptions::NOHANG).ok().flatten()
            }
        }
    }

    /// What a child reported.
    fn hear(&mut self, role: Role) -> Option<Leave> {
        if let Some(output) = self.children.get_mut(&role).and_then(|child| child.output.as_mut()) {
            output.take(&mut log_hook);
        }
        let heard = self.children.get_mut(&role)?.hear();
        let recorded = heard.lines.iter().any(|line| matches!(line, Line::Note(Note::Recorded(_))));
        for line in heard.lines {
            match line {
                Line::Note(note) => {
                    if let Some(leave) = self.feed(Event::Note(role, note)) {
                        return Some(leave);
                    }
                }
                line @ (Line::Done(_) | Line::Failed(_)) => {
                    if let Some(child) = self.children.get_mut(&role) {
                        child.result = Some(line);
                    }
                }
            }
        }
        if role == Role::Node
            && let Some(child) = self.children.get_mut(&role)
        {
            child.recorded |= recorded;
            if heard.closed && child.recorded {
                return self.feed(Event::Executed);
            }
        }
        None
    }

    fn buried(&mut self, role: Role, child: Child, exit: Exit) -> Option<Leave> {
        match role {
            Role::Node => self.feed(Event::Ended(exit)),
            Role::Hook => {
                let words = child.output.and_then(|output| output.end(&mut log_hook));
                self.feed(Event::HookEnded(exit, words))
            }
            // It became the operator's command, which reports by its exit status alone.
            Role::Event => {
                let result = match (child.result, exit) {
                    (Some(Line::Failed(why)), _) => Err(why),
                    (_, Exit::Code(0)) => Ok(Report::Told),
                    _ => Err(format!("the command ended with {exit}")),
                };
                self.feed(Event::Done(role, result))
            }
            Role::Look
            | Role::Probe
            | Role::Measure
            | Role::Reference
            | Role::Proposal
            | Role::Stage
            | Role::Fetch
            | Role::Step
            | Role::Ahead
            | Role::Prune
            | Role::Metrics
            | Role::Trim
            | Role::Clear
            | Role::Reload => {
                let result = match child.result {
                    Some(Line::Done(report)) => Ok(report),
                    Some(Line::Failed(why)) => Err(why),
                    Some(Line::Note(_)) | None => Err(format!("the job ended without a report: {exit}")),
                };
                self.feed(Event::Done(role, result))
            }
        }
    }

    fn changed_files(&mut self) -> Option<Leave> {
        let fd = self.inotify.as_ref()?;
        let mut events = [0; 4096];
        let mut changed = false;
        // What changed does not matter: a look reads it all.
        while matches!(rustix::io::read(fd, &mut events), Ok(n) if n > 0) {
            changed = true;
        }
        if changed { self.feed(Event::FilesChanged) } else { None }
    }

    /// Gives the machine an event and carries out what it says; what comes of that is an event again.
    fn feed(&mut self, event: Event) -> Option<Leave> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut effects = Vec::new();
            let now = self.now();
            self.machine.step(now, event, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Launch(args) => events.extend(self.launch(&args)),
                    Effect::RunHook => events.extend(self.run_hook()),
                    Effect::Start(role, job) => events.extend(self.start(role, job)),
                    Effect::Terminate(role) => self.signal(role, Signal::TERM),
                    Effect::Kill(role) => self.signal(role, Signal::KILL),
                    Effect::Sample(pids) => events.push_back(Event::Sample(self.sample(pids))),
                    Effect::Watch(dirs) => events.extend(self.watch(&dirs)),
                    Effect::Reply(client, reply) => self.control.reply(client, &reply),
                    Effect::Ready => self.tell_who_started_us(),
                    Effect::Log(level, text) => log::log!(level, "{text}"),
                    Effect::Exit(code, state, reason) => {
                        let metrics_textfile = self.machine.config().metrics_textfile.clone();
                        let node_log = self.machine.written_log().filter(|_| self.machine.has_run());
                        return Some(Leave { code, state, reason, metrics_textfile, node_log });
                    }
                }
            }
        }
        self.tell_service_manager();
        None
    }

    fn tell_service_manager(&mut self) {
        if self.notify.listens() {
            self.notify.tell(self.now(), &self.machine.notice());
        }
    }

    fn launch(&mut self, args: &[String]) -> Option<Event> {
        let config = self.machine.config();
        let node = Node {
            log: self.machine.written_log(),
            stdin: !self.background,
            data_dir: config.data_dir.clone(),
            allow_empty_data: config.allow_empty_data,
        };
        match Child::node(&self.shim(Program::Node(node)), args) {
            Ok(child) => {
                self.machine.launched(child.number());
                self.children.insert(Role::Node, child);
                None
            }
            Err(e) => Some(Event::Ended(Exit::NotStarted(e.raw_os_error().unwrap_or(0)))),
        }
    }

    fn shim(&self, program: Program) -> ShimSpec {
        ShimSpec { supervisor: std::process::id(), home: self.home.clone(), program }
    }

    fn run_hook(&mut self) -> Option<Event> {
        match Child::hook(&self.shim(Program::Hook)) {
            Ok(child) => {
                self.children.insert(Role::Hook, child);
                None
            }
            Err(e) => Some(Event::HookEnded(Exit::NotStarted(e.raw_os_error().unwrap_or(0)), None)),
        }
    }

    fn start(&mut self, role: Role, job: Job) -> Option<Event> {
        if self.children.contains_key(&role) {
            // A reload asked for twice: the one under way reads the newest settings or the next one will.
            return None;
        }
        let lock = (role == Role::Step).then_some(&self.lock);
        let spec = Spec { supervisor: std::process::id(), home: self.home.clone(), job };
        match Child::job(&spec, lock) {
            Ok(child) => {
                self.children.insert(role, child);
                None
            }
            Err(e) => Some(Event::Done(role, Err(format!("no process could be made: {e}")))),
        }
    }

    fn signal(&self, role: Role, signal: Signal) {
        match self.children.get(&role) {
            Some(child) if matches!(role, Role::Hook | Role::Event) => child.signal_group(signal),
            Some(child) => child.signal(signal),
            None => {}
        }
    }

    fn sample(&self, pids: BTreeSet<u32>) -> proc::Counters {
        let pids = if pids.is_empty() {
            [Role::Node, Role::Hook].iter().filter_map(|role| self.children.get(role)).map(Child::number).collect()
        } else {
            pids
        };
        proc::sample(&pids)
    }

    /// Sets the watches. A directory that is new may have changed before it was watched: then it is looked at once more.
    fn watch(&mut self, dirs: &[PathBuf]) -> Vec<Event> {
        let Some(fd) = &self.inotify else { return vec![Event::Watching(false)] };
        let set: Vec<_> = dirs.iter().map(|dir| inotify::add_watch(fd, dir.as_path(), WATCHED)).collect();
        let refused = |e: &rustix::io::Errno| *e != rustix::io::Errno::NOENT && *e != rustix::io::Errno::NOTDIR;
        let works = !dirs.is_empty() && !set.iter().any(|result| result.as_ref().is_err_and(refused));
        let watches: BTreeSet<i32> = set.into_iter().flatten().collect();
        let mut events = vec![Event::Watching(works)];
        if watches != self.watches {
            for gone in self.watches.difference(&watches) {
                let _ = inotify::remove_watch(fd, *gone);
            }
            self.watches = watches;
            events.push(Event::FilesChanged);
        }
        events
    }

    /// The service manager; or `start`, which reads our stdout until the node is up; then nobody does any more.
    fn tell_who_started_us(&mut self) {
        self.notify.up();
        if !self.background {
            return;
        }
        let _ = rustix::io::write(std::io::stdout(), b"up\n");
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(null);
        }
    }

    fn reopen_log(&self) {
        if !self.background {
            return;
        }
        match File::options().append(true).create(true).open(self.home.own_log()) {
            Ok(file) => {
                let _ = rustix::stdio::dup2_stderr(file);
            }
            Err(e) => log::warn!("cannot open {} again: {e}", self.home.own_log().display()),
        }
    }

    /// No node lives. Jobs are ended and waited for a little: one that waits for a dead disk is left to its death signal.
    fn end(mut self, leave: Leave) -> Leave {
        self.tell_service_manager();
        for role in self.children.keys() {
            self.signal(*role, Signal::KILL);
        }
        let until = Instant::now() + JOBS_TIME;
        while !self.children.is_empty() && Instant::now() < until {
            let fds: Vec<BorrowedFd> = self.children.values().flat_map(Child::descriptors).collect();
            let mut polls: Vec<PollFd> =
                fds.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            let _ = poll(&mut polls, Timespec::try_from(Duration::from_millis(20)).ok().as_ref());
            while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
                self.children.retain(|_, child| child.pid() != pid);
            }
        }
        self.control.flush();
        self.control.close();
        leave
    }
}

fn log_hook(line: &str) {
    log::info!("hook: {line}");
}

fn exit(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}
