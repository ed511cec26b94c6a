//! What the process tests share: a home in a directory of its own, the program under test, the mock node, and `until`,
//! the only way to wait. A failure prints the tree, the status and the logs of its home.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long `until` waits: far longer than anything takes, so that only a real fault ends it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub fn wemixvisor() -> &'static str {
    env!("CARGO_BIN_EXE_wemixvisor")
}

/// The mock node, built once when `cargo test --test it` has not built it.
pub fn mocknode() -> &'static Path {
    static MOCK: OnceLock<PathBuf> = OnceLock::new();
    MOCK.get_or_init(|| {
        let path = Path::new(wemixvisor()).with_file_name("examples").join("mocknode");
        let newer = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
        let sources = ["mocknode.rs", "mocknode/consensus.rs", "mocknode/ledger.rs"].map(|name| examples.join(name));
        if newer(&path).is_none() || sources.iter().any(|source| newer(&path) < newer(source)) {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--quiet", "--example", "mocknode"]);
            if !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            assert!(cargo.status().unwrap().success(), "the mock node cannot be built");
        }
        path
    })
}

/// Waits until `what` gives something; panics with `why` and nothing else after [`PATIENCE`].
#[track_caller]
pub fn until<T>(why: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain until {why}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same for what takes long: it waits as long as `moved` tells something else at least once in `patience`. It looks less
/// often, because many processes are at work then.
#[track_caller]
pub fn until_stuck<T, P: PartialEq>(
    why: &str,
    patience: Duration,
    mut moved: impl FnMut() -> P,
    mut what: impl FnMut() -> Option<T>,
) -> T {
    let mut last = (moved(), Instant::now());
    loop {
        if let Some(found) = what() {
            return found;
        }
        let now = moved();
        if now != last.0 {
            last = (now, Instant::now());
        }
        assert!(last.1.elapsed() < patience, "waited in vain until {why}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a one-shot command said.
#[derive(Debug)]
pub struct Said {
    /// Exit status; 128 + n for a signal.
    pub code: i32,
    /// Its answer.
    pub out: String,
    /// Its notes and errors.
    pub err: String,
}

impl Said {
    /// Fails unless the command ended with this status.
    #[track_caller]
    pub fn code(self, code: i32) -> Said {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Fails unless stderr is one line (beside warnings) that holds this text.
    #[track_caller]
    pub fn one_error(self, part: &str) -> Said {
        let lines: Vec<&str> = self.err.lines().filter(|line| !line.starts_with("warning:")).collect();
        assert_eq!(lines.len(), 1, "stderr: {}", self.err);
        assert!(lines[0].starts_with("wemixvisor: ") && lines[0].contains(part), "stderr: {}", self.err);
        self
    }

    /// The answer as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|e| panic!("{e}: {}\nexit status {}, stderr: {}", self.out, self.code, self.err))
    }
}

/// A home of the test's own, with the mock node as genesis release. It is removed at the end, unless the test failed.
pub struct Home {
    /// The directory that holds it all.
    pub dir: PathBuf,
    supervisors: std::cell::RefCell<Vec<u32>>,
}

impl Home {
    /// An empty directory; no home in it yet.
    pub fn empty() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: the mock's IPC socket lies below it.
        let dir = std::env::temp_dir().join(format!("wv-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Home { dir, supervisors: Default::default() }
    }

    /// A home laid out by `init`, with the mock node as genesis release under the name `node`.
    pub fn new() -> Home {
        let home = Home::empty();
        let node = home.dir.join("node");
        link_or_copy(mocknode(), &node);
        home.run(&["init", node.to_str().unwrap()]).code(0);
        home
    }

    /// `$DAEMON_HOME`.
    pub fn root(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// A path in our own folder.
    pub fn own(&self, path: &str) -> PathBuf {
        self.root().join("wemixvisor").join(path)
    }

    /// The node's data directory (outside of `$DAEMON_HOME/data`, where plans lie).
    pub fn datadir(&self) -> PathBuf {
        self.dir.join("d")
    }

    /// A command of ours, with a clean environment but for the home.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(wemixvisor());
        command
            .args(args)
            .env_clear()
            .env("DAEMON_HOME", self.root())
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.dir);
        // Where `.ci/run --coverage` gathers which lines were reached.
        command.envs(std::env::var_os("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a one-shot command.
    pub fn run(&self, args: &[&str]) -> Said {
        said(self.command(args))
    }

    /// Installs the mock node as release `name`, with these flags of its own (`mock-flags`).
    pub fn release(&self, name: &str, flags: &str) -> PathBuf {
        let dir = if name == "genesis" { self.own("genesis") } else { self.own("upgrades").join(name) };
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::write(dir.join("mock-flags"), flags).unwrap();
        let binary = dir.join("bin/node");
        if !binary.exists() {
            // Made elsewhere and moved in whole: a supervisor looks at it at once.
            let tmp = self.dir.join(format!("node-{name}"));
            link_or_copy(mocknode(), &tmp);
            fs::rename(&tmp, &binary).unwrap();
        }
        binary
    }

    /// Makes a shell script the binary of a release.
    pub fn script(&self, release: &str, text: &str) {
        let dir = if release == "genesis" { self.own("genesis") } else { self.own("upgrades").join(release) };
        let (draft, binary) = (self.dir.join("script"), dir.join("bin/node"));
        fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
        // Written by another process: what this one writes may be "busy" in a child of a test beside it.
        let mut install = Command::new("install");
        assert!(install.args(["-D", "-m", "755"]).arg(draft).arg(binary).status().unwrap().success());
    }

    /// The arguments that make a quick mock node: 50 ms blocks, IPC only.
    pub fn node_args(&self) -> Vec<String> {
        ["--datadir", self.datadir().to_str().unwrap(), "--period", "50ms"].map(str::to_owned).to_vec()
    }

    /// Starts `run` with quick settings and the mock's arguments; more of our options and of the node's may be given.
    pub fn supervise(&self, ours: &[&str], node: &[&str]) -> Visor<'_> {
        let args = self.node_args();
        let words: Vec<&str> = args.iter().map(String::as_str).chain(node.iter().copied()).collect();
        self.supervise_with(ours, &words)
    }

    /// The same with exactly these arguments for the node.
    pub fn supervise_with(&self, ours: &[&str], node: &[&str]) -> Visor<'_> {
        let quick = [
            "trial_time=300ms",
            "trial_blocks=3",
            "restart_backoff=50ms",
            "height_poll_interval=200ms",
            "health_check_interval=200ms",
        ];
        let mut args: Vec<&str> = quick.iter().flat_map(|setting| ["--set", *setting]).collect();
        args.extend_from_slice(ours);
        args.push("run");
        args.extend_from_slice(node);
        self.spawn(self.command(&args))
    }

    /// Starts a supervisor by a command line made elsewhere, with its output where `log` reads it.
    pub fn spawn(&self, mut command: Command) -> Visor<'_> {
        let log = |name: &str| File::options().append(true).create(true).open(self.dir.join(name)).unwrap();
        let child = command.stdout(log("out")).stderr(log("err")).spawn().unwrap();
        self.supervisors.borrow_mut().push(child.id());
        Visor { home: self, child }
    }

    /// The answer to `status --json`, also when nothing runs.
    pub fn status(&self) -> Value {
        self.run(&["status", "--json"]).json()
    }

    /// The public state.
    pub fn state(&self) -> String {
        text(&self.status(), "state")
    }

    /// What `current` points at.
    pub fn current(&self) -> String {
        let link = fs::read_link(self.own("current")).unwrap();
        assert!(self.own("current").is_dir(), "current dangles: {}", link.display());
        link.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// The supervisor's log and the node's stderr under `run`.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("err")).unwrap_or_default()
    }

    /// The mock node's own journal: one event a line.
    pub fn journal(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.datadir().join("mock.journal")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    /// The events of one kind in the mock's journal.
    pub fn events(&self, kind: &str) -> Vec<Vec<String>> {
        self.journal().into_iter().filter(|event| event[0] == kind).collect()
    }

    /// The finished upgrades.
    pub fn history(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.own("history.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Writes a plan file at its height.
    pub fn plan(&self, name: &str, height: u64) {
        let dir = self.root().join("data/upgrades").join(height.to_string());
        fs::create_dir_all(&dir).unwrap();
        let text = format!("{{\"name\": \"{name}\", \"height\": {height}}}");
        let tmp = dir.join("tmp");
        fs::write(&tmp, text).unwrap();
        fs::rename(&tmp, dir.join("upgrade-info.json")).unwrap();
    }

    /// Waits for something that the status shows.
    #[track_caller]
    pub fn until_status(&self, why: &str, what: impl Fn(&Value) -> bool) -> Value {
        until(why, || Some(self.status()).filter(|status| what(status)))
    }

    /// Waits for a line in the log.
    #[track_caller]
    pub fn until_log(&self, part: &str) -> String {
        until(&format!("the log says {part:?}"), || {
            self.log().lines().find(|line| line.contains(part)).map(str::to_owned)
        })
    }

    /// Every process that has the data lock open.
    pub fn holders(&self) -> Vec<u32> {
        let Ok(lock) = fs::canonicalize(self.own("data.lock")) else { return Vec::new() };
        let holds = |pid: &u32| {
            fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
                .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == lock))
        };
        pids().into_iter().filter(holds).collect()
    }

    /// The node processes that live on this data directory (by their command line).
    pub fn nodes(&self) -> Vec<u32> {
        let datadir = self.datadir().to_str().unwrap().to_owned();
        let is_node = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
            words[0].ends_with("/bin/node") && words.contains(&datadir)
        };
        pids().into_iter().filter(is_node).collect()
    }

    /// All that is in the home: path, kind, mode, and what it holds or points at; sockets are left out.
    pub fn tree(&self) -> Vec<String> {
        let mut all = Vec::new();
        list_tree(&self.root(), &mut all);
        all
    }

    /// Puts a file under `data/`, whole.
    pub fn put(&self, path: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root().join("data").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let tmp = path.with_extension("tmp");
        fs::write(&tmp, text).unwrap();
        fs::rename(tmp, &path).unwrap();
        path
    }

    /// How many lines of the log hold this text.
    pub fn logged(&self, part: &str) -> usize {
        self.log().lines().filter(|line| line.contains(part)).count()
    }

    /// The head as the node has it on disk: known also where its RPC is not.
    pub fn head_on_disk(&self) -> u64 {
        let text = fs::read_to_string(self.datadir().join("geth/chaindata/head")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Waits until the last finished upgrade is this one, ended like this.
    #[track_caller]
    pub fn until_finished(&self, name: &str, result: &str) -> Value {
        self.until_status(&format!("{name} is {result}"), |s| {
            s["last_upgrade"]["name"] == name && s["last_upgrade"]["result"] == result
        })
    }

    /// Waits until the upgrade shown is in this phase.
    #[track_caller]
    pub fn until_phase(&self, phase: &str) -> Value {
        self.until_status(&format!("the phase is {phase}"), |s| s["upgrade"]["phase"] == phase)
    }

    /// The releases that were started, in order.
    pub fn started(&self) -> Vec<String> {
        self.events("start").into_iter().map(|event| event[2].clone()).collect()
    }

    /// All that a person needs to understand a failure.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let tree =
            Command::new("find").args([self.dir.to_str().unwrap(), "-printf", "%M %s %p %l\n"]).output().unwrap();
        let _ = writeln!(text, "--- tree\n{}", String::from_utf8_lossy(&tree.stdout));
        let _ = writeln!(text, "--- status\n{}", self.run(&["status"]).out);
        for file in [
            "err",
            "out",
            "home/logs/wemixvisor.log",
            "home/logs/node.log",
            "d/mock.journal",
            "home/wemixvisor/history.jsonl",
        ] {
            if let Ok(content) = fs::read_to_string(self.dir.join(file)) {
                let lines: Vec<&str> = content.lines().filter(|l| !l.contains("Imported new chain segment")).collect();
                let _ = writeln!(text, "--- {file}\n{}", lines[lines.len().saturating_sub(80)..].join("\n"));
            }
        }
        text
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("{}", self.report());
        }
        // Nothing may outlive its test: first who supervises, then who holds the data.
        let mut left = self.supervisors.borrow().clone();
        left.extend(
            fs::read_to_string(self.own("lock")).ok().and_then(|t| t.split_whitespace().next()?.parse::<u32>().ok()),
        );
        for pid in left.into_iter().filter(|pid| is_ours(*pid)) {
            kill(pid, Signal::KILL);
        }
        // What never had the lock, as under a script instead of us, is known by its command line.
        for pid in self.holders().into_iter().chain(self.nodes()) {
            kill(pid, Signal::KILL);
        }
        if !failed {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A supervisor in the foreground.
pub struct Visor<'a> {
    /// Its home.
    pub home: &'a Home,
    child: Child,
}

impl Visor<'_> {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the node runs and answers.
    #[track_caller]
    pub fn until_up(&self) -> Value {
        self.home.until_status("the node answers", |s| s["state"] == "running" && s["head_known"] == true)
    }

    /// Waits until this release runs and its RPC answers.
    #[track_caller]
    pub fn until_release(&self, release: &str) -> Value {
        self.home.until_status(&format!("release {release} answers"), |s| {
            s["release"] == release && s["state"] == "running" && s["head_known"] == true
        })
    }

    /// Signals it.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Whether it still lives.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end and tells its exit status (128 + n for a signal).
    #[track_caller]
    pub fn end(&mut self) -> i32 {
        until("the supervisor ends", || self.child.try_wait().unwrap().map(code))
    }

    /// Asks it to stop and expects a good end.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.end(), 0);
        assert_eq!(self.home.nodes(), Vec::<u32>::new());
    }
}

impl Drop for Visor<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same command started by another one (`env`, `nohup`, `unshare`, …).
pub fn under(starter: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(starter[0]);
    command.args(&starter[1..]).arg(inner.get_program()).args(inner.get_args());
    take_env(&mut command, inner);
    if let Some(dir) = inner.get_current_dir() {
        command.current_dir(dir);
    }
    command.stdin(Stdio::null());
    command
}

/// Gives a command the environment of one of ours.
pub fn take_env(command: &mut Command, ours: &Command) {
    command.env_clear().envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
}

/// Runs a command to its end. One that never ends is killed, so that its test fails and no other waits for it.
pub fn said(mut command: Command) -> Said {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(2 * PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            kill(pid, Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: code(output.status), out: text(&output.stdout), err: text(&output.stderr) }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// Signals a process, if it lives.
pub fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(i32::try_from(pid).unwrap()) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process lives (a zombie does not).
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
}

fn is_ours(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(wemixvisor()))
}

fn pids() -> Vec<u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A text field of an answer.
pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}")).to_owned()
}

/// A hard link where that works: a binary that is written by who then runs it may be "text file busy".
fn link_or_copy(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        let mut copy = Command::new("cp");
        assert!(copy.arg(from).arg(to).status().unwrap().success());
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

fn list_tree(dir: &Path, all: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        use std::os::unix::fs::FileTypeExt;
        let meta = fs::symlink_metadata(&path).unwrap();
        let mode = meta.permissions().mode();
        let shown = path.display();
        if meta.is_dir() {
            all.push(format!("{mode:o} {shown}/"));
            list_tree(&path, all);
        } else if meta.is_symlink() {
            all.push(format!("{shown} -> {}", fs::read_link(&path).unwrap().display()));
        } else if meta.is_file() && meta.len() < 1 << 20 {
            all.push(format!("{mode:o} {shown}: {}", String::from_utf8_lossy(&fs::read(&path).unwrap())));
        } else if !meta.file_type().is_socket() {
            all.push(format!("{mode:o} {shown} {} bytes {:?}", meta.len(), meta.modified()));
        }
    }
}

/// A TCP port that nobody listens on right now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A small file system in memory, which can be full; it is gone with this.
pub struct Tmpfs(pub PathBuf);

/// Mounts one of this size there; none, and a line, where nothing may be mounted.
pub fn tmpfs(dir: &Path, size: &str) -> Option<Tmpfs> {
    fs::create_dir_all(dir).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(dir).stderr(Stdio::null());
    let mounted = mount.status().is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("SKIPPED: no tmpfs can be mounted here");
    }
    mounted.then(|| Tmpfs(dir.to_owned()))
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
