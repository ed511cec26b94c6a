//! How far something long is, for who waits for it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::Context;
use crate::config::show_size;
use crate::job::Progress;

/// How often progress is told where nobody looks at a terminal.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// How often a bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// How many characters a bar has.
const BAR: usize = 30;

/// Shows how far something is, on stderr: a bar on a terminal, else a line now and then.
pub struct Meter<'a> {
    context: &'a Context,
    doing: String,
    bar: bool,
    began: Instant,
    next: Instant,
    drawn: bool,
}

impl Meter<'_> {
    /// One for what is being done, such as `restoring`.
    pub fn new<'a>(context: &'a Context, doing: impl Into<String>) -> Meter<'a> {
        let bar = std::io::stderr().is_terminal();
        let began = Instant::now();
        Meter {
            context,
            doing: doing.into(),
            bar,
            began,
            next: began + if bar { DRAW_EVERY } else { TELL_EVERY },
            drawn: false,
        }
    }

    /// Takes in how far it is, and shows it now and then.
    pub fn tell(&mut self, progress: Progress) {
        let now = Instant::now();
        if self.context.quiet || now < self.next {
            return;
        }
        self.next = now + if self.bar { DRAW_EVERY } else { TELL_EVERY };
        let seconds = now.duration_since(self.began).as_secs_f64();
        // Only for people: what a float loses here nobody sees.
        let speed = show_size((progress.bytes as f64 / seconds.max(0.001)) as u64);
        let done = show_size(progress.bytes);
        let share = progress.of.filter(|of| *of > 0).map(|of| (progress.bytes.min(of), of));
        let far = match share {
            Some((bytes, of)) => {
                format!("{:3} %, {done} of {}, {speed}/s", u128::from(bytes) * 100 / u128::from(of), show_size(of))
            }
            None if progress.files == 0 => format!("{done}, {speed}/s"),
            None => format!("{done}, {} files, {speed}/s", progress.files),
        };
        if !self.bar {
            self.context.note(&format!("{}: {}", self.doing, far.trim_start()));
            return;
        }
        let filled = share.map_or(0, |(bytes, of)| (u128::from(bytes) * BAR as u128 / u128::from(of)) as usize);
        let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR - filled.min(BAR)));
        let _ = write!(std::io::stderr(), "\r{} [{bar}] {far}\x1b[K", self.doing);
        self.drawn = true;
    }

    /// Takes the bar away: what follows begins on a line of its own.
    pub fn end(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
