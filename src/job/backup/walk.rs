//! Walks a tree of files by descriptors: no symbolic link is followed and nothing outside is ever reached, whatever the
//! tree turns into meanwhile. Needs as many descriptors as the tree is deep, and no memory for names.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};

use super::tree::open_dir;
use crate::error::{OnFile, Result};

/// One thing in a tree.
pub struct Seen<'a> {
    /// The directory that it lies in.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// Its path from the top of the tree.
    pub path: &'a [u8],
    /// What it is.
    pub stat: &'a Stat,
}

impl Seen<'_> {
    /// What kind of thing it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Opens a regular file for reading.
    pub fn open(&self) -> Result<File> {
        open_in(self.dir, self.name).on("read", shown(self.path))
    }
}

/// Opens a directory as the top of a tree.
pub fn top(dir: &Path) -> Result<OwnedFd> {
    open_dir(rustix::fs::CWD, dir).on("read", dir)
}

/// Shows everything below `dir` to `see`: directories before what they hold. `path` is where `dir` lies.
pub fn walk(dir: OwnedFd, path: &mut Vec<u8>, see: &mut dyn FnMut(&Seen) -> Result<()>) -> Result<()> {
    let mut entries = Dir::read_from(&dir).on("read", shown(path))?;
    let above = path.len();
    while let Some(entry) = entries.read() {
        let entry = entry.on("read", shown(path))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if above > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).on("read", shown(path))?;
        see(&Seen { dir: dir.as_fd(), name, path, stat: &stat })?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let inner = open_dir(&dir, name).on("read", shown(path))?;
            walk(inner, path, see)?;
        }
        path.truncate(above);
    }
    Ok(())
}

/// What lies at this path from the top, which is `dir`; none when nothing does. A link on the way is followed, so nothing may be opened
/// because of the answer.
pub fn stat_below(top: BorrowedFd, dir: &Path, path: &[u8]) -> Result<Option<Stat>> {
    let gone = |e: rustix::io::Errno| e == rustix::io::Errno::NOENT || e == rustix::io::Errno::NOTDIR;
    match statat(top, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(e) if gone(e) => Ok(None),
        Err(e) => Err(e).on("read", &dir.join(shown(path))),
    }
}

fn open_in(dir: BorrowedFd, name: &CStr) -> rustix::io::Result<File> {
    // NONBLOCK: what has become a FIFO must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// A path for a message.
pub fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(if path.is_empty() { b"." } else { path }))
}
