//! Our own log: stderr, written without ever waiting for its reader. What the reader does not take is dropped and counted.

use std::fs::{File, FileType};
use std::io::{IoSlice, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use env_logger::{Builder, Target, WriteStyle};
use log::LevelFilter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::config::Config;

/// Lines that were lost since the program began.
static LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines of our own log were lost so far, because they could not be written at once.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// A stderr that never blocks on a pipe, a socket or a terminal that nobody reads.
struct NeverWaits {
    /// The terminal or named pipe that stderr is, opened once more so that only we do not wait: the flag belongs to the open
    /// file, which others write to as well.
    own: Option<File>,
    /// Whether stderr is a regular file: there a plain write goes into the page cache, while one that must not wait is refused
    /// by XFS and btrfs, always.
    is_file: bool,
    dropped: u64,
    /// Whether the last line went out in part.
    torn: bool,
}

impl NeverWaits {
    fn new() -> NeverWaits {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let reopen = || File::options().write(true).custom_flags(flags).open("/proc/self/fd/2").ok();
        let kind = std::fs::metadata("/proc/self/fd/2").map(|meta| meta.file_type());
        let is = |what: fn(&FileType) -> bool| kind.as_ref().is_ok_and(what);
        let waits = std::io::stderr().is_terminal() || is(FileType::is_fifo);
        NeverWaits { own: if waits { reopen() } else { None }, is_file: is(FileType::is_file), dropped: 0, torn: false }
    }

    /// Writes as much as goes at once.
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(own) = &mut self.own {
            return own.write(bytes);
        }
        let stderr = std::io::stderr();
        if self.is_file {
            return stderr.lock().write(bytes);
        }
        match pwritev2(stderr.as_fd(), &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
            // Not where one cannot promise not to wait, such as a terminal that cannot be opened again.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
                match poll(&mut fds, Some(&Timespec::default())) {
                    Ok(0) => Err(std::io::ErrorKind::WouldBlock.into()),
                    Ok(_) | Err(_) => stderr.lock().write(bytes),
                }
            }
            written => Ok(written?),
        }
    }

    /// Writes a line, whole or not at all, as far as it is in our hands.
    fn line(&mut self, bytes: &[u8]) -> bool {
        if self.torn && !matches!(self.put(b"\n"), Ok(1)) {
            return false;
        }
        self.torn = false;
        match self.put(bytes) {
            Ok(n) => {
                self.torn = n > 0 && n < bytes.len();
                n == bytes.len()
            }
            Err(_) => false,
        }
    }
}

impl Write for NeverWaits {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.dropped > 0
            && self
                .line(format!("({} log lines were lost: they could not be written at once)\n", self.dropped).as_bytes())
        {
            self.dropped = 0;
        }
        if self.dropped > 0 || !self.line(bytes) {
            self.dropped += 1;
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Begins to log: level from `RUST_LOG`, else info; colours only on a terminal that may have them; under systemd with its
/// priority prefixes and without time stamps, which the journal has itself.
pub fn begin(config: &Config, quiet: bool) {
    let mut builder = Builder::new();
    let level = match (config.disable_logs, quiet) {
        (true, _) => LevelFilter::Off,
        (false, true) => LevelFilter::Warn,
        (false, false) => LevelFilter::Info,
    };
    builder.filter_level(level);
    if !config.disable_logs && !quiet {
        builder.parse_env("RUST_LOG");
    }
    let journal = is_journal();
    let colour = config.color_logs && std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal();
    builder.target(Target::Pipe(Box::new(NeverWaits::new()))).write_style(WriteStyle::Never);
    builder.format(move |out, record| {
        let (priority, word, paint) = match record.level() {
            log::Level::Error => ("<3>", "ERROR", "\x1b[31m"),
            log::Level::Warn => ("<4>", "WARN ", "\x1b[33m"),
            log::Level::Info => ("<6>", "INFO ", "\x1b[32m"),
            log::Level::Debug | log::Level::Trace => ("<7>", "DEBUG", "\x1b[2m"),
        };
        // One write a line: what is dropped is dropped whole.
        let line = if journal {
            format!("{priority}wemixvisor: {}\n", record.args())
        } else if colour {
            format!("{} {paint}{word}\x1b[0m {}\n", out.timestamp_millis(), record.args())
        } else {
            format!("{} {word} {}\n", out.timestamp_millis(), record.args())
        };
        out.write_all(line.as_bytes())
    });
    // A second call finds the first one's logger in place, which is as good.
    let _ = builder.try_init();
}

/// Whether our stderr is systemd's journal: the variable alone may be inherited from somebody whose stderr was.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|meta| stream == format!("{}:{}", meta.dev(), meta.ino()))
}
