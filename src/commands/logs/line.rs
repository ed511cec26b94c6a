//! Lines of any length and of any bytes: put together with bounded memory, and shown so that none drives a terminal.

/// How much of a line is looked at and shown; of the rest only the length is told.
pub const LINE_MAX: usize = 64 << 10;

/// A line that is put together from pieces.
#[derive(Default)]
pub struct Lines {
    line: Vec<u8>,
    /// How many of its bytes were left out.
    cut: u64,
}

impl Lines {
    /// Takes what was read and gives each whole line to `take`, with the number of bytes that are missing at its end.
    pub fn add<E>(&mut self, bytes: &[u8], take: &mut impl FnMut(&[u8], u64) -> Result<(), E>) -> Result<(), E> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_MAX.saturating_sub(self.line.len()).min(text.len());
            self.line.extend_from_slice(text.get(..room).unwrap_or_default());
            self.cut += (text.len() - room) as u64;
            if piece.len() > text.len() {
                self.end(take)?;
            }
        }
        Ok(())
    }

    /// Nothing more will come: what is left is a line too.
    pub fn rest<E>(&mut self, take: &mut impl FnMut(&[u8], u64) -> Result<(), E>) -> Result<(), E> {
        if self.line.is_empty() { Ok(()) } else { self.end(take) }
    }

    fn end<E>(&mut self, take: &mut impl FnMut(&[u8], u64) -> Result<(), E>) -> Result<(), E> {
        let result = take(&self.line, self.cut);
        self.line.clear();
        self.cut = 0;
        result
    }
}

/// A line as it is shown, and looked for in: without colours, and with nothing in it that a terminal would obey.
pub fn shown(line: &[u8], cut: u64) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let decoded = String::from_utf8_lossy(line);
    let mut text = String::with_capacity(line.len());
    let mut rest = decoded.as_ref();
    // Nearly every line is taken as it is.
    if !rest.chars().any(drives) {
        text.push_str(rest);
        rest = "";
    }
    while let Some(c) = rest.chars().next() {
        if let Some(after) = behind_colour(rest) {
            rest = after;
            continue;
        }
        text.push(if drives(c) { '\u{fffd}' } else { c });
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    if cut > 0 {
        text.push_str(&format!("… ({cut} bytes more)"));
    }
    text
}

/// What stands behind the colour that a text begins with: `ESC [ 32 m`.
fn behind_colour(text: &str) -> Option<&str> {
    text.strip_prefix("\x1b[")?.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').strip_prefix('m')
}

/// Whether a terminal would do something else with it than show it in its place.
fn drives(c: char) -> bool {
    (c.is_control() && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_they_are_cut_into_pieces() {
        let text = b"one\n\ntwo three\nfour";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut all = Vec::new();
            let mut take = |line: &[u8], cut| {
                all.push((String::from_utf8(line.to_vec()).unwrap(), cut));
                Ok::<(), ()>(())
            };
            for piece in text.chunks(size) {
                lines.add(piece, &mut take).unwrap();
            }
            lines.rest(&mut take).unwrap();
            assert_eq!(all.iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>(), ["one", "", "two three", "four"]);
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        let mut take = |line: &[u8], cut| {
            all.push((line.len(), cut));
            Ok::<(), ()>(())
        };
        for _ in 0..1000 {
            lines.add(&[b'x'; 10_000], &mut take).unwrap();
        }
        assert!(lines.line.capacity() <= 2 * LINE_MAX);
        lines.add(b"\nnext\n", &mut take).unwrap();
        assert_eq!(all, [(LINE_MAX, 10_000_000 - LINE_MAX as u64), (4, 0)]);
        assert_eq!(shown(b"xxx", 5), "xxx… (5 bytes more)");
    }

    #[test]
    fn nothing_that_drives_a_terminal_is_shown() {
        assert_eq!(shown(b"\x1b[32mINFO \x1b[0m[11-26] \ta=1\r", 0), "INFO [11-26] \ta=1");
        assert_eq!(
            shown(b"a\0b\x07\x1b]0;title\x07\x1b[2J\x9b\x7f", 0),
            "a\u{fffd}b\u{fffd}\u{fffd}]0;title\u{fffd}\u{fffd}[2J\u{fffd}\u{fffd}"
        );
        assert_eq!(shown("é\u{9b}1\u{202e}x".as_bytes(), 0), "é\u{fffd}1\u{fffd}x");
        assert_eq!(shown(b"\x1b[\x1b[1;31", 0), "\u{fffd}[\u{fffd}[1;31");
    }
}
