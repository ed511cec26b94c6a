//! Our own log: stderr, written without ever waiting for its reader. What the reader does not take is dropped and counted.

use std::io::{IoSlice, Write};
use std::os::fd::AsFd;

use env_logger::{Builder, Target, WriteStyle};
use log::LevelFilter;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::config::Config;

/// A stderr that never blocks on a pipe, a socket or a terminal that nobody reads.
struct NeverWaits {
    dropped: u64,
}

impl NeverWaits {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let stderr = std::io::stderr();
        match pwritev2(stderr.as_fd(), &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
            // A file system that cannot promise not to wait: a file in the page cache, in practice it does not.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => stderr.lock().write_all(bytes),
            Err(e) => Err(e.into()),
            Ok(_) => Ok(()),
        }
    }
}

impl Write for NeverWaits {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.dropped > 0
            && self.put(format!("({} log lines were lost: nobody read them)\n", self.dropped).as_bytes()).is_ok()
        {
            self.dropped = 0;
        }
        if self.dropped > 0 || self.put(bytes).is_err() {
            self.dropped += 1;
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
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colour = config.color_logs
        && std::env::var_os("NO_COLOR").is_none()
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    builder.target(Target::Pipe(Box::new(NeverWaits { dropped: 0 }))).write_style(WriteStyle::Never);
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
