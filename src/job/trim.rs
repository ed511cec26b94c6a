//! Keeps a log bounded that another process appends to: cut from the front, in place, without losing a byte of what stays.
//! The writer notices nothing. The cut is at whole blocks, so the first line that is left may be the end of a longer one.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, OnFile, Result};

/// A cut this long is a multiple of it: whole blocks, clusters and extents wherever there are such.
const UNIT: u64 = 1 << 20;

/// A log that is to be kept bounded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The file.
    pub path: PathBuf,
    /// Above this many bytes it is cut to half of it.
    pub max: u64,
    /// Who has it open as its standard output, if that is known: it goes on writing to it where the file is removed.
    pub writer: Option<u32>,
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trimmed {
    /// Each log: its bytes before, and after.
    pub sizes: Vec<(u64, u64)>,
    /// What could not be trimmed, and why.
    pub problems: Vec<String>,
}

/// Looks at each log and cuts those that outgrew their maximum.
pub fn trim(logs: &[Log]) -> Trimmed {
    let mut trimmed = Trimmed::default();
    for log in logs {
        let removed = removed(log);
        if removed.is_some() {
            trimmed.problems.push(format!(
                "{} was removed while the node writes to it: what it writes is found with `wemixvisor logs` and takes room until the node's next start",
                log.path.display()
            ));
        }
        match cut(removed.as_ref().unwrap_or(&log.path), log.max) {
            Ok(sizes) => trimmed.sizes.push(sizes),
            Err(e) => {
                trimmed.sizes.push((0, 0));
                trimmed.problems.push(e.message);
            }
        }
    }
    trimmed
}

/// Where the log is that was removed, or that another file has taken the place of, while its writer goes on.
fn removed(log: &Log) -> Option<PathBuf> {
    let open = PathBuf::from(format!("/proc/{}/fd/1", log.writer?));
    let shown = std::fs::read_link(&open).ok()?;
    let gone = shown.as_os_str().as_bytes().strip_suffix(b" (deleted)")?;
    (gone == log.path.as_os_str().as_bytes()).then_some(open)
}

fn cut(path: &Path, max: u64) -> Result<(u64, u64)> {
    // What a process has open is no link to follow, but the file itself.
    let open = path.starts_with("/proc");
    let meta = match if open { path.metadata() } else { path.symlink_metadata() } {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((0, 0)),
        Err(e) => return Err(e).on("look at", path),
    };
    if !meta.is_file() {
        let what = if meta.is_symlink() { "a link" } else { "no regular file" };
        return Err(Error::failed(format!("{} is {what}: it is not trimmed", path.display())));
    }
    if meta.len() <= max {
        return Ok((meta.len(), meta.len()));
    }
    let follow = if open { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = (follow | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path).on("trim", path)?;
    let begin = begin(&file).on("trim", path)?;
    let meta = file.metadata().on("trim", path)?;
    let have = meta.len().saturating_sub(begin);
    if !meta.is_file() || have <= max {
        return Ok((have, have));
    }
    let unit = if have - max / 2 >= UNIT { UNIT } else { meta.blksize() };
    let end = (begin + have - max / 2) / unit * unit;
    if end <= begin {
        return Ok((have, have));
    }
    // What is to be written anyway is written while the writer can go on: the cut itself makes it wait.
    file.sync_data().on("trim", path)?;
    drop_front(&file, end, meta.len()).on("trim", path)?;
    Ok((have, have - (end - begin)))
}

/// Where the data begins: behind the hole that an earlier trim has left, if it did.
pub fn begin(file: &File) -> std::io::Result<u64> {
    match seek(file, SeekFrom::Data(0)) {
        Ok(begin) => Ok(begin),
        // There is nothing but a hole.
        Err(Errno::NXIO) => Ok(file.metadata()?.len()),
        // It cannot tell of holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// Takes the first bytes away. `len` is how long the file was just before: one that somebody truncated meanwhile is left.
fn drop_front(file: &File, end: u64, len: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::COLLAPSE_RANGE, 0, end) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if file.metadata()?.len() >= len => {
            Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, end)?)
        }
        Err(Errno::INVAL) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn place(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wemixvisor-trim-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn numbers(path: &Path, count: u32) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        let text: String = (0..count).map(|n| format!("{n:07}\n")).collect();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn sizes(path: &Path, max: u64) -> (u64, u64) {
        let trimmed = trim(&[Log { path: path.to_owned(), max, writer: None }]);
        assert_eq!(trimmed.problems, Vec::<String>::new());
        trimmed.sizes[0]
    }

    #[test]
    fn a_log_above_its_maximum_is_cut_to_about_half_of_it_and_keeps_its_end() {
        let dir = place("half");
        let path = dir.join("log");
        numbers(&path, 100_000);
        let whole = fs::read(&path).unwrap();
        assert_eq!(sizes(&path, 800_000), (800_000, 800_000), "not above it");
        assert_eq!(fs::read(&path).unwrap(), whole);
        let (before, after) = sizes(&path, 799_999);
        assert_eq!(before, 800_000);
        assert!((400_000..400_000 + 65_536).contains(&after), "{after}");
        let left = fs::read(&path).unwrap();
        let begin = begin(&File::open(&path).unwrap()).unwrap();
        assert!(left.ends_with(&whole[whole.len() - usize::try_from(after).unwrap()..]));
        assert_eq!(left.len() as u64 - begin, after);
        // What was cut once is not counted again.
        assert_eq!(sizes(&path, 799_999), (after, after));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_left_alone_and_named() {
        let dir = place("kinds");
        let (target, link, fifo) = (dir.join("target"), dir.join("link"), dir.join("fifo"));
        numbers(&target, 100_000);
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let logs = [&link, &fifo, &dir].map(|path| Log { path: path.clone(), max: 1, writer: None });
        let trimmed = trim(&logs);
        assert_eq!(trimmed.problems.len(), 3, "{trimmed:?}");
        for (problem, log) in trimmed.problems.iter().zip(&logs) {
            assert!(problem.contains(log.path.to_str().unwrap()) && problem.contains("not trimmed"), "{problem}");
        }
        assert_eq!(fs::metadata(&target).unwrap().len(), 800_000);
        assert_eq!(sizes(&dir.join("none"), 1), (0, 0));
        fs::remove_dir_all(dir).unwrap();
    }
}
