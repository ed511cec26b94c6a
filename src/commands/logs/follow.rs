//! Shows what a log gets, as it comes: across trimming, truncation, and another file in its place.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Result, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::Context;
use super::line::Lines;
use super::reader::{CHUNK, Read, Reader};
use super::{Shower, is_missing, open};
use crate::error;
use crate::job::trim;

/// How long nothing is looked at when there was nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// Goes on until nobody reads what is shown.
pub fn follow(context: &Context, path: &Path, mut reader: Reader, mut lines: Lines, shower: &mut Shower) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut replaced = false;
    loop {
        match reader.read(&mut buffer)? {
            Read::Bytes(n) => {
                lines.add(buffer.get(..n).unwrap_or_default(), &mut |line, cut| shower.line(line, cut))?;
            }
            Read::Lost => {
                lines.rest(&mut |line, cut| shower.line(line, cut))?;
                tell_lost(context, path);
            }
            // The other file is gone on with when this one was read to its end.
            Read::Nothing if replaced => {
                lines.rest(&mut |line, cut| shower.line(line, cut))?;
                let file = open(path).map_err(|e| IoError::other(e.message))?;
                let begin = trim::begin(&file)?;
                reader = Reader::new(file, begin, begin)?;
                replaced = false;
            }
            Read::Nothing => {
                shower.out.flush()?;
                replaced = is_another(path, &reader.file)?;
                if !replaced {
                    pause()?;
                }
            }
        }
    }
}

/// Waits for a log that is not there yet.
pub fn wait_for(context: &Context, path: &Path) -> error::Result<File> {
    context.note(&format!("waiting for {}", path.display()));
    while is_missing(path) {
        if pause().is_err() {
            // Nobody would read it.
            std::process::exit(0);
        }
    }
    open(path)
}

/// Says that lines are missing.
pub fn tell_lost(context: &Context, path: &Path) {
    context.note(&format!(
        "{} was trimmed or truncated before all of it was read: going on with what is left",
        path.display()
    ));
}

/// Whether the path leads to another file by now.
fn is_another(path: &Path, file: &File) -> Result<bool> {
    let ours = file.metadata()?;
    Ok(path.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) != (ours.dev(), ours.ino())))
}

/// Waits a little; an error when the reader of stdout is gone.
fn pause() -> Result<()> {
    let out = std::io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let _ = poll(&mut fds, Timespec::try_from(PAUSE).ok().as_ref());
    let [out] = fds;
    if out.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
        return Err(ErrorKind::BrokenPipe.into());
    }
    Ok(())
}
