//! Where the last lines of a log begin, found from its end: what is not asked for is not read.

use std::fs::File;
use std::io::Result;

use jiff::{SignedDuration, Timestamp};

use super::Filter;
use super::line::{LINE_MAX, shown};
use super::reader::fill;

/// How much is read at once.
const CHUNK: u64 = 1 << 20;

/// Stamps go back when a clock is set, or a node is started again with another idea of local time. So one that is too early
/// is no reason to look no further, but this much of a log in which all are too early by more than this is.
const STRETCH: u64 = 64 << 20;
const SLACK: SignedDuration = SignedDuration::from_hours(25);

/// Where to begin to read forward.
#[derive(Debug, PartialEq, Eq)]
pub struct Start {
    /// The beginning of a line.
    pub offset: u64,
    /// How many lines that would be shown are to be left out first.
    pub skip: u64,
}

/// Counts lines backward until there are enough.
struct Count<'a> {
    filter: &'a Filter,
    wanted: u64,
    found: u64,
    /// Lines whose stamp, which is that of a line before them, has not come yet.
    pending: u64,
    /// Where the stretch begins, seen from the end, in which all stamps are too early.
    early: Option<u64>,
}

impl Count<'_> {
    /// Takes the line that begins there.
    fn line(&mut self, offset: u64, text: &str) -> Option<Start> {
        self.pending += u64::from(self.filter.has_words(text));
        if self.filter.is_timed() {
            let stamp = self.filter.clock.of_line(text)?;
            if !self.filter.is_in_time(Some(stamp)) {
                self.pending = 0;
                return self.is_far_too_early(offset, stamp).then_some(Start { offset, skip: 0 });
            }
            self.early = None;
        }
        self.found += std::mem::take(&mut self.pending);
        (self.found >= self.wanted).then(|| Start { offset, skip: self.found - self.wanted })
    }

    fn is_far_too_early(&mut self, offset: u64, stamp: Timestamp) -> bool {
        let limit = self.filter.since.and_then(|since| since.checked_sub(SLACK).ok());
        if limit.is_none_or(|limit| stamp >= limit) {
            self.early = None;
            return false;
        }
        *self.early.get_or_insert(offset) - offset >= STRETCH
    }
}

/// Looks for the last `wanted` lines that pass the filter. None: the file became shorter meanwhile.
pub fn start(file: &File, begin: u64, end: u64, wanted: u64, filter: &Filter) -> Result<Option<Start>> {
    if wanted == 0 {
        return Ok(Some(Start { offset: end, skip: 0 }));
    }
    if wanted == u64::MAX {
        return Ok(Some(Start { offset: begin, skip: 0 }));
    }
    let mut count = Count { filter, wanted, found: 0, pending: 0, early: None };
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let (mut upper, mut line_end) = (end, end);
    while upper > begin {
        let lower = begin.max(upper.saturating_sub(CHUNK));
        let chunk = buffer.get_mut(..usize::try_from(upper - lower).unwrap_or(0)).unwrap_or_default();
        if fill(file, chunk, lower)? < chunk.len() {
            return Ok(None);
        }
        let chunk = &*chunk;
        let breaks =
            chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(i, _)| lower + i as u64 + 1);
        // The first line has no break before it.
        for offset in breaks.chain((lower == begin).then_some(begin)) {
            if offset == line_end {
                continue;
            }
            let text = if filter.is_empty() { String::new() } else { text(file, chunk, lower, offset, line_end)? };
            if let Some(start) = count.line(offset, &text) {
                return Ok(Some(start));
            }
            line_end = offset;
        }
        upper = lower;
    }
    Ok(Some(Start { offset: begin, skip: 0 }))
}

/// The text of a line that begins in a chunk and may end behind it.
fn text(file: &File, chunk: &[u8], lower: u64, offset: u64, end: u64) -> Result<String> {
    let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(LINE_MAX);
    let first = usize::try_from(offset - lower).unwrap_or(0);
    let line = match chunk.get(first..first + length) {
        Some(line) => line.to_vec(),
        None => {
            let mut line = vec![0; length];
            let n = fill(file, &mut line, offset)?;
            line.truncate(n);
            line
        }
    };
    Ok(shown(line.strip_suffix(b"\n").unwrap_or(&line), 0))
}
