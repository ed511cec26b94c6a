//! Reads a log that others write to, trim from the front and truncate meanwhile. Where its bytes are moves with a trim, so the
//! last bytes that were read are kept: while they stand where they stood, nothing moved; else they are looked for.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt;

use crate::job::trim;

/// How many bytes are kept: enough to be found in one place only.
const KEPT: usize = 4096;

/// By what multiples a log is moved when it is trimmed, and how far at most by these.
const STEPS: [(u64, u64); 2] = [(1 << 20, u64::MAX), (1 << 10, 64 << 20)];

/// How much is read at once.
pub const CHUNK: usize = 256 << 10;

/// Bytes that stood in a file at some place, to tell whether they still do.
#[derive(Default)]
pub struct Anchor {
    at: u64,
    bytes: Vec<u8>,
}

impl Anchor {
    /// Those before an offset, from `begin` on at the earliest.
    pub fn before(file: &File, begin: u64, offset: u64) -> Result<Anchor> {
        let at = begin.max(offset.saturating_sub(KEPT as u64));
        let mut bytes = vec![0; usize::try_from(offset.saturating_sub(at)).unwrap_or(0)];
        let n = fill(file, &mut bytes, at)?;
        bytes.truncate(n);
        Ok(Anchor { at, bytes })
    }

    /// Whether they stand where they stood.
    pub fn holds(&self, file: &File) -> Result<bool> {
        self.stands_at(file, self.at)
    }

    fn stands_at(&self, file: &File, at: u64) -> Result<bool> {
        let mut there = [0; KEPT];
        // Mostly the first few tell.
        for upto in [self.bytes.len().min(64), self.bytes.len()] {
            let there = there.get_mut(..upto).unwrap_or_default();
            if fill(file, there, at)? < upto || self.bytes.get(..upto) != Some(there) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// By how much they have moved to the front, if they are still there.
    fn moved(&self, file: &File) -> Result<Option<u64>> {
        let begin = trim::begin(file)?;
        let last = file.metadata()?.len().saturating_sub(self.bytes.len() as u64);
        for (step, most) in STEPS {
            let mut shift = self.at.saturating_sub(last).max(1).div_ceil(step) * step;
            while shift <= most && self.at >= begin.saturating_add(shift) {
                if self.stands_at(file, self.at - shift)? {
                    return Ok(Some(shift));
                }
                shift += step;
            }
        }
        Ok(None)
    }
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// There is nothing more for now.
    Nothing,
    /// What came next is gone: the log was cut further than it was read. The next read begins with what is left.
    Lost,
}

/// A place in a log up to which it was read.
pub struct Reader {
    /// The log.
    pub file: File,
    offset: u64,
    anchor: Anchor,
}

impl Reader {
    /// Begins there; `begin` is where the log's data begins.
    pub fn new(file: File, begin: u64, offset: u64) -> Result<Reader> {
        let anchor = Anchor::before(&file, begin, offset)?;
        Ok(Reader { file, offset, anchor })
    }

    /// Reads on.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Read> {
        for _ in 0..3 {
            let n = fill(&self.file, buffer, self.offset)?;
            let got = buffer.get(..n).unwrap_or_default();
            if self.anchor.bytes.is_empty() {
                // Nothing was read yet: the first bytes of this read must still be there after it.
                self.anchor = Anchor { at: self.offset, bytes: got.get(..KEPT.min(n)).unwrap_or_default().to_vec() };
            }
            // Looked at after the read: had anything moved before or in the middle of it, it would not hold any more.
            if self.anchor.holds(&self.file)? {
                self.accept(n, got);
                return Ok(if n == 0 { Read::Nothing } else { Read::Bytes(n) });
            }
            if let Some(shift) = self.anchor.moved(&self.file)? {
                self.offset -= shift;
                self.anchor.at -= shift;
            }
        }
        self.offset = trim::begin(&self.file)?;
        self.anchor = Anchor::default();
        Ok(Read::Lost)
    }

    fn accept(&mut self, n: usize, got: &[u8]) {
        if self.anchor.at == self.offset {
            self.anchor.bytes.clear();
        }
        self.anchor.bytes.extend_from_slice(got.get(n.saturating_sub(KEPT)..).unwrap_or_default());
        let surplus = self.anchor.bytes.len().saturating_sub(KEPT);
        self.anchor.bytes.drain(..surplus);
        self.offset += n as u64;
        self.anchor.at = self.offset - self.anchor.bytes.len() as u64;
    }
}

/// Reads from this offset until the buffer is full or the file ends.
pub fn fill(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut n = 0;
    while let Some(rest) = buffer.get_mut(n..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}
