//! `logs`: the node's output, its last lines first.

mod follow;
mod line;
mod place;
mod reader;
mod stamp;
mod tail;
mod words;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, StdoutLock, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::OFlags;

use self::line::{Lines, shown};
use self::place::Place;
use self::reader::{Anchor, CHUNK, Read, Reader};
use self::stamp::Clock;
use self::words::Words;
use super::Context;
use crate::cli::Logs;
use crate::error::{Error, OnFile, Result};
use crate::job::trim;

/// How many lines are shown where nobody says it.
const LINES: u64 = 100;

/// Which lines are wanted.
pub struct Filter {
    clock: Clock,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    words: Option<Words>,
}

impl Filter {
    fn new(wanted: &Logs) -> Result<Filter> {
        let clock = Clock::new();
        let time = |option, text: &Option<String>| text.as_ref().map(|text| clock.typed(option, text)).transpose();
        let (since, until) = (time("--since", &wanted.since)?, time("--until", &wanted.until)?);
        if let (Some(begin), Some(end)) = (since, until)
            && begin > end
        {
            return Err(Error::usage(format!("--since is later than --until: no line is between {begin} and {end}")));
        }
        let words = wanted.grep.as_deref().map(Words::new).transpose()?;
        Ok(Filter { since, until, words, clock })
    }

    fn is_empty(&self) -> bool {
        !self.is_timed() && self.words.is_none()
    }

    fn is_timed(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// Each line by its own stamp, so that a clock that was set hides none.
    fn is_in_time(&self, stamp: Option<Timestamp>) -> bool {
        let early = self.since.is_some_and(|since| stamp.is_none_or(|stamp| stamp < since));
        let late = self.until.is_some_and(|until| stamp.is_none_or(|stamp| stamp > until));
        !early && !late
    }

    fn has_words(&self, text: &str) -> bool {
        self.words.as_ref().is_none_or(|words| words.are_in(text))
    }
}

/// Shows lines on stdout.
struct Shower<'a> {
    filter: &'a Filter,
    /// How many are to be left out first.
    skip: u64,
    /// Whether the stamps still count: what is written from now on is new, whatever its stamp says.
    timed: bool,
    /// Whether the last stamp was in time. A line without one belongs to the line before.
    in_time: bool,
    /// Whether there was any stamp.
    stamped: bool,
    out: BufWriter<StdoutLock<'static>>,
}

impl Shower<'_> {
    fn line(&mut self, line: &[u8], cut: u64) -> std::io::Result<()> {
        let text = shown(line, cut);
        if self.timed
            && let Some(stamp) = self.filter.clock.of_line(&text)
        {
            self.in_time = self.filter.is_in_time(Some(stamp));
            self.stamped = true;
        }
        if (self.timed && !self.in_time) || !self.filter.has_words(&text) {
            return Ok(());
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(());
        }
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }
}

/// Shows the node's output.
pub fn logs(context: &Context, wanted: &Logs) -> Result<()> {
    if context.json {
        return Err(Error::usage("logs: --json is not for lines of a log: leave it out"));
    }
    if wanted.follow && wanted.until.is_some() {
        return Err(Error::usage("logs: --follow goes on without end, --until ends: give one of them"));
    }
    let filter = Filter::new(wanted)?;
    context.laid_out()?;
    let path = match place::find(context) {
        Place::File(path) => path,
        Place::Journal(unit) => {
            let command = journalctl(&unit, wanted, &filter);
            return Err(Error::failed(format!("the node's output is in systemd's journal: {command}")));
        }
        Place::Elsewhere(why) => return Err(Error::failed(why)),
    };
    let file = match open(&path) {
        Ok(file) => file,
        Err(_) if wanted.follow && is_missing(&path) => follow::wait_for(context, &path)?,
        Err(e) => return Err(e),
    };
    match show(context, wanted, &filter, &path, file) {
        // A reader that is gone needs no more lines.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        shown => shown.on("show", &path),
    }
}

fn show(context: &Context, wanted: &Logs, filter: &Filter, path: &Path, file: File) -> std::io::Result<()> {
    let lines = wanted.lines.unwrap_or(LINES);
    let (mut reader, skip, mut left) = place_at_last(file, lines, filter)?;
    let out = BufWriter::with_capacity(64 << 10, std::io::stdout().lock());
    let timed = filter.is_timed();
    let mut shower = Shower { filter, skip, timed, in_time: false, stamped: false, out };
    let mut lines = Lines::default();
    let mut buffer = vec![0; CHUNK];
    // What was there when it was asked for; who writes faster than we show is not run after.
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        match reader.read(buffer)? {
            Read::Bytes(n) => {
                left -= n as u64;
                lines.add(buffer.get(..n).unwrap_or_default(), &mut |line, cut| shower.line(line, cut))?;
            }
            Read::Nothing => break,
            Read::Lost => {
                lines.rest(&mut |line, cut| shower.line(line, cut))?;
                left = reader.file.metadata()?.len();
                follow::tell_lost(context, path);
            }
        }
    }
    if timed && !shower.stamped {
        context
            .note("no line that was looked at has a time stamp that is understood, so --since and --until show none");
    }
    if wanted.follow {
        shower.timed = false;
        return follow::follow(context, path, reader, lines, &mut shower);
    }
    lines.rest(&mut |line, cut| shower.line(line, cut))?;
    shower.out.flush()
}

/// A reader where the last lines begin, how many of those are still to be left out, and how many bytes there are from there.
fn place_at_last(file: File, lines: u64, filter: &Filter) -> std::io::Result<(Reader, u64, u64)> {
    loop {
        let begin = trim::begin(&file)?;
        let end = file.metadata()?.len();
        let anchor = Anchor::before(&file, begin, end)?;
        let start = tail::start(&file, begin, end, lines, filter)?;
        if let Some(start) = start {
            let reader = Reader::new(file.try_clone()?, begin, start.offset)?;
            // Trimmed in the middle of it: all is elsewhere now.
            if anchor.holds(&file)? {
                return Ok((reader, start.skip, end - start.offset));
            }
        }
    }
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

/// Opens a log. What is no file would keep us waiting.
fn open(path: &Path) -> Result<File> {
    let shown = path.display();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::failed(format!(
                "there is no log {shown}: the node has written none yet, or its output goes elsewhere (DAEMON_LOG_FILE)"
            )));
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            return Err(Error::failed(format!("cannot read {shown}: {e}: do it as root, or as the owner of the home")));
        }
        Err(e) => return Err(e).on("read", path),
    };
    if !file.metadata().on("read", path)?.is_file() {
        return Err(Error::failed(format!("{shown} is no regular file: what went through it cannot be shown")));
    }
    Ok(file)
}

/// The command that shows the same from systemd's journal.
fn journalctl(unit: &str, wanted: &Logs, filter: &Filter) -> String {
    let mut command = format!(
        "journalctl {unit} -n {}",
        match wanted.lines.unwrap_or(LINES) {
            u64::MAX => "all".to_owned(),
            lines => lines.to_string(),
        }
    );
    let seconds = |time: Timestamp| time.as_second();
    if wanted.follow {
        command += " -f";
    }
    if let Some(since) = filter.since {
        command += &format!(" --since=@{}", seconds(since));
    }
    if let Some(until) = filter.until {
        command += &format!(" --until=@{}", seconds(until));
    }
    if let Some(words) = &wanted.grep {
        command += &format!(" --grep='{}'", words.replace('\'', "'\\''"));
    }
    command
}
