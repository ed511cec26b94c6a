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
    /// Since when it goes on, and what was there then: the speed is of what came since.
    since: Option<(Instant, u64)>,
    next: Instant,
    drawn: bool,
}

impl Meter<'_> {
    /// One for what is being done, such as `restoring`.
    pub fn new<'a>(context: &'a Context, doing: impl Into<String>) -> Meter<'a> {
        let bar = std::io::stderr().is_terminal();
        let next = Instant::now() + if bar { DRAW_EVERY } else { TELL_EVERY };
        Meter { context, doing: doing.into(), bar, since: None, next, drawn: false }
    }

    /// Takes in how far it is, and shows it now and then.
    pub fn tell(&mut self, progress: Progress) {
        let now = Instant::now();
        // What begins anew has less than it had.
        let (since, had) = *self.since.take_if(|(_, had)| *had <= progress.bytes).get_or_insert((now, progress.bytes));
        self.since = Some((since, had));
        if self.context.quiet || now < self.next {
            return;
        }
        self.next = now + if self.bar { DRAW_EVERY } else { TELL_EVERY };
        let seconds = now.duration_since(since).as_secs_f64();
        // Only for people: what a float loses here nobody sees.
        let speed = show_size(((progress.bytes - had) as f64 / seconds.max(0.001)) as u64);
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
        let line = line(&self.doing, &far, share, width());
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        self.drawn = true;
    }

    /// Says something in between, on a line of its own.
    pub fn interrupt(&mut self, text: &str) {
        self.end();
        self.drawn = false;
        self.context.note(text);
    }

    /// Takes the bar away: what follows begins on a line of its own.
    pub fn end(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// How many columns the terminal has; one that does not say has the usual ones.
fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { 80 } else { columns }
}

/// What is drawn: a bar as long as fits, else none. A line that does not fit would stay when the next one is drawn.
fn line(doing: &str, far: &str, share: Option<(u64, u64)>, width: usize) -> String {
    // The last column stays free: some terminals go on to the next line when it is filled.
    let most = width.saturating_sub(1);
    let bar = BAR.min(most.saturating_sub(format!("{doing} [] {far}").chars().count()));
    let Some((bytes, of)) = share.filter(|_| bar > 0) else {
        return format!("{doing} {far}").chars().take(most).collect();
    };
    let filled = usize::try_from(u128::from(bytes) * bar as u128 / u128::from(of)).unwrap_or(bar).min(bar);
    format!("{doing} [{}{}] {far}", "#".repeat(filled), "-".repeat(bar - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_its_terminal_with_as_much_of_a_bar_as_there_is_room_for() {
        let far = " 50 %, 1.5GiB of 3GiB, 120.4MiB/s";
        let full = line("fetching upgrades/v2", far, Some((1, 2)), 200);
        assert_eq!(full, format!("fetching upgrades/v2 [{}{}] {far}", "#".repeat(15), "-".repeat(15)));
        for width in 0..200 {
            let line = line("fetching upgrades/v2", far, Some((1, 2)), width);
            assert!(line.chars().count() <= width.saturating_sub(1), "{width}: {line}");
            assert!(width <= full.len() || line == full, "{width}: {line}");
        }
        assert_eq!(line("a", "b", Some((1, 2)), 11), "a [##--] b");
        assert_eq!(line("restoring", "7B, 1 files", None, 80), "restoring 7B, 1 files");
        assert_eq!(line("x", "y", Some((3, 3)), 80), format!("x [{}] y", "#".repeat(BAR)));
    }
}
