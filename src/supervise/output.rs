//! What a hook writes, taken line by line into our log. Bounded in every way: a line is cut, the log gets so much of it and no
//! more, and of the rest only the last line and the number of bytes are kept.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

/// How much is read in one turn of the loop.
const READ_MAX: usize = 16 << 10;

/// The longest line that is shown whole.
const LINE_MAX: usize = 1000;

/// How much of one run of a hook goes to the log.
const LOG_MAX: u64 = 256 << 10;

/// What a line costs besides its own length: its time stamp, and the work of writing it.
const LINE_COST: u64 = 80;

/// The output of a hook.
pub struct Output {
    /// None once its end was reached.
    pipe: Option<File>,
    line: Vec<u8>,
    /// How many bytes of the present line were left out.
    cut: u64,
    logged: u64,
    left_out: u64,
    /// The last line that was not empty, as it came: decoded only when somebody asks.
    last: Vec<u8>,
}

impl Output {
    /// Reads from this pipe.
    pub fn new(pipe: File) -> Output {
        let _ = rustix::io::ioctl_fionbio(&pipe, true);
        Output { pipe: Some(pipe), line: Vec::new(), cut: 0, logged: 0, left_out: 0, last: Vec::new() }
    }

    /// What to wait on.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes what is there and gives each whole line to `show`.
    pub fn take(&mut self, show: &mut dyn FnMut(&str)) {
        let mut chunk = [0; 16 << 10];
        let mut taken = 0;
        while taken < READ_MAX {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    taken += n;
                    self.add(chunk.get(..n).unwrap_or_default(), show);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    /// The hook has ended: takes what is left, and returns its last line.
    pub fn end(mut self, show: &mut dyn FnMut(&str)) -> Option<String> {
        self.take(show);
        if !self.line.is_empty() {
            self.finish_line(show);
        }
        if self.left_out > 0 {
            show(&format!("… and {} more", crate::config::show_size(self.left_out)));
        }
        Some(decoded(&self.last)).filter(|last| !last.is_empty())
    }

    fn add(&mut self, bytes: &[u8], show: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_MAX.saturating_sub(self.line.len()).min(text.len());
            self.line.extend_from_slice(text.get(..room).unwrap_or_default());
            self.cut += (text.len() - room) as u64;
            if piece.len() > text.len() {
                self.finish_line(show);
            }
        }
    }

    fn finish_line(&mut self, show: &mut dyn FnMut(&str)) {
        let cut = std::mem::take(&mut self.cut);
        if self.logged < LOG_MAX {
            self.logged += self.line.len() as u64 + LINE_COST;
            self.left_out += cut;
            let more = if cut > 0 { format!("… ({cut} bytes more)") } else { String::new() };
            show(&format!("{}{more}", decoded(&self.line)));
        } else {
            self.left_out += self.line.len() as u64 + cut + 1;
        }
        if !self.line.trim_ascii().is_empty() {
            std::mem::swap(&mut self.last, &mut self.line);
        }
        self.line.clear();
    }
}

/// A line as it can be shown: nothing in it that a terminal would obey.
fn decoded(line: &[u8]) -> String {
    let shown = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    String::from_utf8_lossy(line.trim_ascii_end()).chars().map(shown).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    fn shown(parts: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let (read, mut write) = std::io::pipe().unwrap();
        let mut output = Output::new(File::from(OwnedFd::from(read)));
        let mut lines = Vec::new();
        let mut show = |line: &str| lines.push(line.to_owned());
        for part in parts.iter().flat_map(|part| part.chunks(READ_MAX)) {
            write.write_all(part).unwrap();
            output.take(&mut show);
        }
        drop(write);
        let last = output.end(&mut show);
        (lines, last)
    }

    #[test]
    fn lines_come_whole_however_they_were_written_and_the_last_one_is_kept() {
        let (lines, last) = shown(&[b"one\ntw", b"o\n\nthree"]);
        assert_eq!(lines, ["one", "two", "", "three"]);
        assert_eq!(last.as_deref(), Some("three"));
        assert_eq!(shown(&[]), (Vec::new(), None));
    }

    #[test]
    fn a_line_without_end_is_cut_and_a_flood_is_counted() {
        let long = vec![b'x'; 30_000];
        let (lines, _) = shown(&[&long, b"\nshort\n"]);
        assert_eq!(lines[0].chars().count(), 1000 + "… (29000 bytes more)".chars().count());
        assert_eq!(lines[1], "short");
        let flood = "y".repeat(99) + "\n";
        let parts: Vec<Vec<u8>> = vec![flood.repeat(500).into_bytes(); 20];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let (lines, last) = shown(&parts);
        assert!(lines.len() < 3000, "{}", lines.len());
        assert!(lines.last().unwrap().contains("more"), "{:?}", lines.last());
        assert_eq!(last.unwrap().len(), 99);
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_passed_on() {
        let (lines, _) = shown(&[b"\x1b[2Jred\r\n"]);
        assert_eq!(lines, ["\u{fffd}[2Jred"]);
    }
}
