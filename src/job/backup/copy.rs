//! One file: cloned, linked or copied, with its times and its owner; and when what was copied is on disk.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, copy_file_range, fchmod, fchown,
    fstat, fstatfs, fsync, ftruncate, futimens, ioctl_ficlone, openat, seek, syncfs,
};
use rustix::io::Errno;
use rustix::system::uname;

/// How much is copied between two looks at the time.
const CHUNK: u64 = 16 << 20;

/// What is held in memory when the kernel cannot copy by itself.
const BUFFER: usize = 256 << 10;

/// So many copies are synced together at most; one after the other would cost a commit of the file system each. They are
/// open until then, and 1024 open files are the usual limit.
const BATCH_FILES: usize = 512;

/// File systems that keep all on disks of this machine, by their magic: ext4, XFS, Btrfs, F2FS, tmpfs. Others may have
/// somebody behind them who is only told of a sync of one file.
const LOCAL: &[u64] = &[0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// So many bytes are synced together at most.
const BATCH_BYTES: u64 = 64 << 20;

/// Copies files, and counts what is not on disk yet.
///
/// The time of a copy is set only after its content was synced. A copy with the time of its source is therefore whole,
/// whatever was killed and whenever the power failed: a later run can trust it.
pub struct Copier {
    pending: Vec<(OwnedFd, Timestamps)>,
    bytes: u64,
    buffer: Vec<u8>,
    owners: bool,
}

impl Copier {
    /// One with nothing to do yet.
    pub fn new() -> Copier {
        let owners = rustix::process::geteuid().is_root();
        Copier { pending: Vec::new(), bytes: 0, buffer: Vec::new(), owners }
    }

    /// Whether owners are kept: only root can.
    pub fn owners(&self) -> bool {
        self.owners
    }

    /// Clones a file. `false`: that does not work for this one, and nothing is left of the try.
    pub fn clone(&mut self, source: BorrowedFd, like: &Stat, to: BorrowedFd, name: &CStr) -> rustix::io::Result<bool> {
        let target = create(to, name)?;
        if ioctl_ficlone(&target, source).is_err() {
            rustix::fs::unlinkat(to, name, AtFlags::empty())?;
            return Ok(false);
        }
        self.dress(target.as_fd(), like)?;
        futimens(&target, &times(like))?;
        Ok(true)
    }

    /// Copies a file, holes as holes; `going` is told of the bytes as they pass. Returns the bytes that it had. A file that
    /// shrinks meanwhile is `ESTALE`.
    pub fn copy(
        &mut self,
        source: BorrowedFd,
        like: &Stat,
        to: BorrowedFd,
        name: &CStr,
        going: &mut dyn FnMut(u64),
    ) -> rustix::io::Result<u64> {
        let target = create(to, name)?;
        let length = self.content(source, like, target.as_fd(), going)?;
        self.dress(target.as_fd(), like)?;
        self.pending.push((target, times(like)));
        self.bytes += length;
        if self.pending.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES {
            self.settle()?;
        }
        Ok(length)
    }

    /// Syncs what was copied, then sets the times. A failure is final: nothing is synced twice.
    pub fn settle(&mut self) -> rustix::io::Result<()> {
        // Many small files at once are one commit of the file system. It tells of every error since the first one was
        // opened, where it is told of them.
        let mut synced = false;
        if let (Some((first, _)), true) = (self.pending.first(), self.pending.len() > 4) {
            syncfs(first)?;
            synced = tells_all(first.as_fd());
        }
        for (file, times) in self.pending.drain(..) {
            if !synced {
                fsync(&file)?;
            }
            futimens(&file, &times)?;
        }
        self.bytes = 0;
        Ok(())
    }

    /// Owner and mode of a file or directory, in this order: a change of owner takes set-id bits away.
    pub fn dress(&self, target: BorrowedFd, like: &Stat) -> rustix::io::Result<()> {
        if self.owners {
            fchown(target, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))?;
        }
        fchmod(target, Mode::from_raw_mode(like.st_mode))
    }

    fn content(
        &mut self,
        source: BorrowedFd,
        like: &Stat,
        target: BorrowedFd,
        going: &mut dyn FnMut(u64),
    ) -> rustix::io::Result<u64> {
        let size = u64::try_from(like.st_size).unwrap_or(0);
        if allocated(like) >= size {
            self.range(source, target, 0, size, going)?;
        } else {
            let mut at = 0;
            while at < size {
                let (start, end) = match seek(source, SeekFrom::Data(at)) {
                    Ok(start) => (start, seek(source, SeekFrom::Hole(start))?),
                    Err(Errno::NXIO) => break,
                    // It does not tell of holes: all is content.
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
                    Err(e) => return Err(e),
                };
                going(start - at);
                self.range(source, target, start, end.min(size), going)?;
                at = end;
            }
            ftruncate(target, size)?;
        }
        Ok(size)
    }

    fn range(
        &mut self,
        source: BorrowedFd,
        target: BorrowedFd,
        start: u64,
        end: u64,
        going: &mut dyn FnMut(u64),
    ) -> rustix::io::Result<()> {
        let mut at = start;
        while at < end {
            let (mut from, mut to) = (at, at);
            let length = usize::try_from((end - at).min(CHUNK)).unwrap_or(BUFFER);
            let moved = match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
                Ok(moved) if moved > 0 => moved as u64,
                Err(Errno::INTR) => continue,
                Ok(_)
                | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                    self.by_hand(source, target, at, length)?
                }
                Err(e) => return Err(e),
            };
            at += moved;
            going(moved);
        }
        Ok(())
    }

    fn by_hand(&mut self, source: BorrowedFd, target: BorrowedFd, at: u64, length: usize) -> rustix::io::Result<u64> {
        self.buffer.resize(BUFFER, 0);
        let wanted = self.buffer.get_mut(..length.min(BUFFER)).ok_or(Errno::INVAL)?;
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut *wanted, at))?;
        let mut rest = wanted.get(..got).unwrap_or_default();
        if rest.is_empty() {
            return Err(Errno::STALE);
        }
        let mut to = at;
        while !rest.is_empty() {
            let put = rustix::io::retry_on_intr(|| rustix::io::pwrite(target, rest, to))?;
            rest = rest.get(put..).unwrap_or_default();
            to += put as u64;
        }
        Ok(got as u64)
    }
}

/// Whether a sync of this file system is as good as one of each file: since Linux 5.8 it tells of errors in content.
fn tells_all(file: BorrowedFd) -> bool {
    let system = uname();
    let mut version = system.release().to_bytes().split(|byte| !byte.is_ascii_digit());
    let mut number = || std::str::from_utf8(version.next()?).ok()?.parse::<u32>().ok();
    (number(), number()) >= (Some(5), Some(8))
        && fstatfs(file).is_ok_and(|fs| LOCAL.contains(&fs.f_type.cast_unsigned()))
}

/// Opens a file to be copied, the same one that `like` was told of; one that became another, or a FIFO, is `ESTALE`.
pub fn open(from: BorrowedFd, name: &CStr, like: &Stat) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = openat(from, name, flags, Mode::empty())?;
    let now = fstat(&file)?;
    let same = (now.st_dev, now.st_ino) == (like.st_dev, like.st_ino);
    if same && FileType::from_raw_mode(now.st_mode) == FileType::RegularFile { Ok(file) } else { Err(Errno::STALE) }
}

fn create(to: BorrowedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(to, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Bytes on disk.
pub fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// The times of a file, to be set on its copy.
#[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions, reason = "the types differ by machine")]
pub fn times(stat: &Stat) -> Timestamps {
    let time = |sec, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec.try_into().unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime.into(), stat.st_atime_nsec.into()),
        last_modification: time(stat.st_mtime.into(), stat.st_mtime_nsec.into()),
    }
}

/// When a file was changed last, in nanoseconds since 1970.
#[allow(clippy::useless_conversion, reason = "the types differ by machine")]
pub fn mtime_ns(stat: &Stat) -> i64 {
    let nsec: u64 = stat.st_mtime_nsec.into();
    i64::from(stat.st_mtime).saturating_mul(1_000_000_000).saturating_add_unsigned(nsec)
}
