//! Walks a tree by directory descriptors, never by paths, and takes it over file by file. It holds one buffer a level in
//! memory, however many files there are, and follows no link.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::BufWriter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    Access, AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Uid, accessat, chownat, fchmod, fstat, futimens,
    linkat, mkdirat, openat, readlinkat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::Tell;
use super::copy::{self, Copier};
use crate::error::{Error, OnFile, Result};
use crate::job::Progress;
use crate::manifest::{Entry, How, Writer, encode};

/// What one read of a directory may bring.
const LISTING: usize = 32 << 10;

/// Deeper trees are refused: each level holds two descriptors and a listing.
const DEPTH_MAX: usize = 100;

/// What the top of an ext4 file system has, and only root may read: it is the file system's, not the node's.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A file changed so lately may change again without its time telling.
const YOUNG: Duration = Duration::from_secs(1);

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// To know what the others would do. The node may run.
    Forecast,
    /// To copy what must be copied and never changes again. The node may run.
    Ahead,
    /// To take over everything. No node runs.
    Whole,
    /// To list everything that lies there, without exception.
    List,
}

/// What is taken over, and by what means.
pub struct Rules {
    /// What for.
    pub aim: Aim,
    /// The means for what never changes again.
    pub means: How,
    /// Directories of our own, by device and inode: left out.
    pub own: Vec<(u64, u64)>,
    /// Names at the top that are left out besides.
    pub kept: Vec<Vec<u8>>,
    /// Names at the top that do not make a directory a node's: plan files.
    pub plans: Vec<Vec<u8>>,
}

/// Whether a stopped node, or a running one, changes a file again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// It never does.
    Fixed,
    /// It does only when it goes back far: the last but one file of a freezer table.
    Nearly,
    /// It may at any time.
    Other,
}

/// What a walk saw and did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Files and links.
    pub files: u64,
    /// Their sizes.
    pub bytes: u64,
    /// Files and links that are the node's own.
    pub of_node: u64,
    /// What must still be copied, in bytes on disk.
    pub to_copy: u64,
    /// What of that can be copied only when no node runs.
    pub down_copy: u64,
    /// New inodes.
    pub inodes: u64,
    /// About the length of the manifest.
    pub manifest: u64,
    /// Bytes that were copied.
    pub copied: u64,
}

/// A directory that is being made or added to.
pub struct Target {
    /// The directory.
    pub fd: OwnedFd,
    /// Whether it was made just now: nothing can be in the way.
    pub fresh: bool,
}

/// Tells progress now and then.
struct Teller<'a> {
    tell: Tell<'a>,
    last: Instant,
    progress: Progress,
}

impl Teller<'_> {
    fn add(&mut self, bytes: u64) {
        self.progress.bytes += bytes;
        self.now_and_then();
    }

    fn now_and_then(&mut self) {
        if self.last.elapsed() >= TELL_EVERY {
            self.last = Instant::now();
            (self.tell)(self.progress);
        }
    }
}

/// A walk through one tree.
pub struct Walk<'a> {
    rules: Rules,
    manifest: Option<Writer<BufWriter<File>>>,
    copier: Copier,
    teller: Teller<'a>,
    tally: Tally,
    root: PathBuf,
    into: PathBuf,
    path: Vec<u8>,
    device: u64,
}

impl<'a> Walk<'a> {
    /// One that begins at the directory `root`; `into` is where its files go.
    pub fn new(rules: Rules, root: &Path, into: &Path, tell: Tell<'a>) -> Walk<'a> {
        let teller = Teller { tell, last: Instant::now(), progress: Progress::default() };
        Walk {
            rules,
            manifest: None,
            copier: Copier::new(),
            teller,
            tally: Tally::default(),
            root: root.to_owned(),
            into: into.to_owned(),
            path: Vec::new(),
            device: 0,
        }
    }

    /// Says how many bytes there are in all, when that is known.
    pub fn of(mut self, bytes: Option<u64>) -> Walk<'a> {
        self.teller.progress.of = bytes;
        self
    }

    /// Lets it write down what it takes over.
    pub fn with_manifest(mut self, manifest: Writer<BufWriter<File>>) -> Walk<'a> {
        self.manifest = Some(manifest);
        self
    }

    /// Walks through the whole tree. What was copied is on disk when this returns; names and links are not yet.
    pub fn run(mut self, to: Option<&Target>) -> Result<(Tally, Option<Writer<BufWriter<File>>>)> {
        let from = open_dir(rustix::fs::CWD, self.root.as_path()).on("read", &self.root)?;
        let like = fstat(&from).on("read", &self.root)?;
        self.device = like.st_dev;
        self.tally.inodes += 1;
        self.directory(&from, to, 0)?;
        if let (Some(to), Aim::Whole) = (to, self.rules.aim) {
            self.finish(&to.fd, &like)?;
        }
        self.copier.settle().on("write below", &self.into)?;
        (self.teller.tell)(self.teller.progress);
        Ok((self.tally, self.manifest))
    }

    fn directory(&mut self, from: &OwnedFd, to: Option<&Target>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::failed(format!(
                "{} lies too deep in {}: {DEPTH_MAX} levels are the most",
                encode(&self.path),
                self.root.display()
            )));
        }
        let mut tables = Tables::default();
        if let Some(to) = to.filter(|to| !to.fresh && matches!(self.rules.aim, Aim::Ahead | Aim::Whole)) {
            self.sweep(from, to, &mut tables, depth)?;
        }
        let mut space = Vec::with_capacity(LISTING);
        let mut listing = RawDir::new(from, space.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Err(Errno::NOENT) if self.live() => break,
                entry => entry.on("read", &self.source())?,
            };
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            let done = self.entry(from, name, to, &mut tables, depth);
            done?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        name: &CStr,
        to: Option<&Target>,
        tables: &mut Tables,
        depth: usize,
    ) -> Result<()> {
        let like = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if self.live() => return Ok(()),
            like => like.on("read", &self.source())?,
        };
        let kind = FileType::from_raw_mode(like.st_mode);
        if self.left_out(name, kind, depth) {
            return Ok(());
        }
        match kind {
            FileType::Directory => self.enter(from, name, to, depth),
            FileType::RegularFile => {
                let class = tables.class(from, name).on("read", &self.source())?;
                self.file(from, name, &like, to, class)
            }
            FileType::Symlink => self.link(from, name, &like, to),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Ok(()),
        }
    }

    fn enter(&mut self, from: &OwnedFd, name: &CStr, to: Option<&Target>, depth: usize) -> Result<()> {
        let inner = match open_dir(from, name) {
            Err(Errno::NOENT) if self.live() => return Ok(()),
            inner => inner.on("read", &self.source())?,
        };
        let like = fstat(&inner).on("read", &self.source())?;
        if self.rules.own.contains(&(like.st_dev, like.st_ino)) && self.rules.aim != Aim::List {
            return Ok(());
        }
        self.tally.inodes += 1;
        let target = match (to, self.rules.aim) {
            (None, _) | (_, Aim::List) => None,
            (Some(to), Aim::Forecast) => open_dir(&to.fd, name).ok().map(|fd| Target { fd, fresh: false }),
            (Some(to), Aim::Ahead | Aim::Whole) => {
                Some(make_dir(to.fd.as_fd(), name).on("create the directory", &self.target())?)
            }
        };
        self.directory(&inner, target.as_ref(), depth + 1)?;
        match (target, self.rules.aim) {
            (Some(target), Aim::Whole) => self.finish(&target.fd, &like),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Mode, owner and times of a directory, after everything in it.
    fn finish(&self, target: &OwnedFd, like: &Stat) -> Result<()> {
        self.copier
            .dress(target.as_fd(), like)
            .and_then(|()| futimens(target, &copy::times(like)))
            .on("set mode and times of", &self.target())
    }

    fn file(&mut self, from: &OwnedFd, name: &CStr, like: &Stat, to: Option<&Target>, class: Class) -> Result<()> {
        let how = self.means(like, class);
        let ahead = how == How::Copy && class != Class::Other;
        match (self.rules.aim, to) {
            (Aim::Forecast, _) => {
                match self.readable(from, name, like, how) {
                    Err(Errno::NOENT) => return Ok(()),
                    readable => readable.on("copy", &self.source())?,
                }
                let there = to.is_some_and(|to| self.there(to, name, like, how).is_some());
                if how == How::Copy && !there {
                    self.tally.to_copy += room(like);
                    self.tally.down_copy += if ahead { 0 } else { room(like) };
                }
                self.tally.inodes += u64::from(how != How::Link && !there);
                self.count(like, None)
            }
            (Aim::List, _) | (Aim::Ahead | Aim::Whole, None) => {
                self.count(like, Some(if like.st_nlink > 1 { How::Link } else { How::Copy }))
            }
            (Aim::Ahead, Some(to)) if ahead && !young(like) => {
                if self.there(to, name, like, how).is_some() {
                    return self.count(like, None);
                }
                self.clear(to, name)?;
                match self.copy_ahead(from, name, like, to) {
                    Err(Errno::NOENT | Errno::STALE) => {
                        remove_tree(to.fd.as_fd(), name).on("remove the leftover", &self.target())
                    }
                    done => done.on("copy", &self.source()).and_then(|()| self.count(like, None)),
                }
            }
            (Aim::Ahead, Some(_)) => Ok(()),
            (Aim::Whole, Some(to)) => {
                let how = match self.there(to, name, like, how) {
                    Some(how) => how,
                    None => {
                        self.clear(to, name)?;
                        self.take(from, name, like, to, how).on("copy", &self.source())?
                    }
                };
                self.count(like, Some(how))
            }
        }
    }

    /// Whether it could be taken over, which root always can.
    fn readable(&self, from: &OwnedFd, name: &CStr, like: &Stat, how: How) -> rustix::io::Result<()> {
        let linked = how == How::Link && like.st_uid == rustix::process::geteuid().as_raw();
        if self.copier.owners() || linked { Ok(()) } else { accessat(from, name, Access::READ_OK, AtFlags::empty()) }
    }

    /// How what lies in the target already came there, if it is what belongs there.
    fn there(&self, to: &Target, name: &CStr, like: &Stat, how: How) -> Option<How> {
        if to.fresh {
            return None;
        }
        let there = statat(&to.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if (there.st_dev, there.st_ino) == (like.st_dev, like.st_ino) {
            return (how == How::Link).then_some(How::Link);
        }
        let same = there.st_size == like.st_size
            && copy::mtime_ns(&there) == copy::mtime_ns(like)
            && there.st_mode == like.st_mode
            && (!self.copier.owners() || (there.st_uid, there.st_gid) == (like.st_uid, like.st_gid));
        same.then_some(if how == How::Link { How::Copy } else { how })
    }

    /// Makes room for a name in a target that was there before.
    fn clear(&self, to: &Target, name: &CStr) -> Result<()> {
        if to.fresh {
            return Ok(());
        }
        remove_tree(to.fd.as_fd(), name).on("remove the leftover", &self.target())
    }

    fn take(&mut self, from: &OwnedFd, name: &CStr, like: &Stat, to: &Target, how: How) -> rustix::io::Result<How> {
        match how {
            How::Link => match linkat(from, name, &to.fd, name, AtFlags::empty()) {
                Ok(()) => return Ok(How::Link),
                Err(e @ (Errno::NOENT | Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS)) => return Err(e),
                // Too many links, or not allowed for this one: a copy does.
                Err(_) => {}
            },
            How::Reflink => {
                let source = copy::open(from.as_fd(), name, like)?;
                if self.copier.clone(source.as_fd(), like, to.fd.as_fd(), name)? {
                    return Ok(How::Reflink);
                }
            }
            How::Copy => {}
        }
        let source = copy::open(from.as_fd(), name, like)?;
        self.copy(&source, like, name, to)?;
        Ok(How::Copy)
    }

    fn copy(&mut self, source: &OwnedFd, like: &Stat, name: &CStr, to: &Target) -> rustix::io::Result<()> {
        let before = self.teller.progress;
        let teller = &mut self.teller;
        let length = self.copier.copy(source.as_fd(), like, to.fd.as_fd(), name, &mut |bytes| teller.add(bytes));
        self.teller.progress = before;
        self.tally.copied += length?;
        Ok(())
    }

    /// Copies a file of a living node: only as long as it stands still.
    fn copy_ahead(&mut self, from: &OwnedFd, name: &CStr, like: &Stat, to: &Target) -> rustix::io::Result<()> {
        let source = copy::open(from.as_fd(), name, like)?;
        let like = fstat(&source)?;
        self.copy(&source, &like, name, to)?;
        let now = fstat(&source)?;
        let moved = young(&like) || (now.st_size, copy::mtime_ns(&now)) != (like.st_size, copy::mtime_ns(&like));
        if moved { Err(Errno::STALE) } else { Ok(()) }
    }

    fn link(&mut self, from: &OwnedFd, name: &CStr, like: &Stat, to: Option<&Target>) -> Result<()> {
        self.tally.inodes += 1;
        // Asked of the data while the node runs; in a backup that is put back a link is only a link.
        if self.rules.aim == Aim::Forecast {
            self.no_database_behind(from, name)?;
        }
        match (self.rules.aim, to) {
            (Aim::Ahead, _) => return Ok(()),
            (Aim::Whole, Some(to)) => {
                self.clear(to, name)?;
                self.take_link(from, name, like, to).on("copy the link", &self.source())?;
            }
            (Aim::Forecast | Aim::List | Aim::Whole, _) => {}
        }
        self.count(like, Some(How::Copy))
    }

    /// A database that a link out of the data leads to would be missing in the backup, which keeps the link as it is.
    fn no_database_behind(&self, from: &OwnedFd, name: &CStr) -> Result<()> {
        let behind = openat(from, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let Ok(behind) = behind else { return Ok(()) };
        // What geth's databases and its freezer have in them, or the folder that holds them.
        let marks = ["CURRENT", "FLOCK", "chain/FLOCK", "chaindata"];
        if !marks.iter().any(|mark| statat(&behind, *mark, AtFlags::empty()).is_ok()) {
            return Ok(());
        }
        let source = self.source();
        match source.canonicalize() {
            Ok(real) if !real.starts_with(&self.root) => Err(Error::failed(format!(
                "{} leads to {}, outside of {}: no backup covers the database there (UNSAFE_SKIP_BACKUP=true goes without a backup)",
                encode(&self.path),
                encode(real.as_os_str().as_bytes()),
                self.root.display()
            ))),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn take_link(&self, from: &OwnedFd, name: &CStr, like: &Stat, to: &Target) -> rustix::io::Result<()> {
        let goal = readlinkat(from, name, Vec::new())?;
        symlinkat(goal.as_c_str(), &to.fd, name)?;
        if self.copier.owners() {
            let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
            chownat(&to.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        utimensat(&to.fd, name, &copy::times(like), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn count(&mut self, like: &Stat, how: Option<How>) -> Result<()> {
        let size = u64::try_from(like.st_size).unwrap_or(0);
        self.tally.files += 1;
        self.tally.bytes += size;
        self.tally.manifest += self.path.len() as u64 + 96;
        let top = self.path.split(|byte| *byte == b'/').next().unwrap_or_default();
        self.tally.of_node += u64::from(!self.rules.plans.iter().any(|plan| plan == top));
        if let (Some(manifest), Some(how)) = (&mut self.manifest, how) {
            let entry = Entry { path: encode(&self.path), size, mtime_ns: copy::mtime_ns(like), how };
            manifest.entry(&entry).on("write the manifest in", &self.into)?;
        }
        self.teller.progress.files = self.tally.files;
        self.teller.progress.bytes = self.tally.bytes;
        self.teller.now_and_then();
        Ok(())
    }

    /// Removes from a target that was there before what does not belong there.
    fn sweep(&mut self, from: &OwnedFd, to: &Target, tables: &mut Tables, depth: usize) -> Result<()> {
        let listed = open_dir(&to.fd, c".").on("read", &self.target())?;
        let mut space = Vec::with_capacity(LISTING);
        let mut listing = RawDir::new(&listed, space.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry.on("read", &self.target())?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let belongs = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(like) => {
                    let kind = FileType::from_raw_mode(like.st_mode);
                    let wanted = match (self.rules.aim, kind) {
                        (Aim::Ahead, FileType::RegularFile) => {
                            let class = tables.class(from, name).on("read", &self.source())?;
                            class != Class::Other && self.means(&like, class) == How::Copy
                        }
                        (Aim::Ahead, kind) => kind == FileType::Directory,
                        (Aim::Forecast | Aim::Whole | Aim::List, _) => true,
                    };
                    wanted && !self.left_out(name, kind, depth)
                }
                Err(Errno::NOENT) => false,
                Err(e) => Err(e).on("read", &self.source())?,
            };
            if !belongs {
                remove_tree(to.fd.as_fd(), name).on("remove the leftover in", &self.target())?;
            }
        }
        Ok(())
    }

    fn means(&self, like: &Stat, class: Class) -> How {
        match self.rules.means {
            // Another file system is mounted there.
            How::Reflink | How::Link if like.st_dev != self.device => How::Copy,
            How::Link if class != Class::Fixed => How::Copy,
            means @ (How::Reflink | How::Link | How::Copy) => means,
        }
    }

    fn left_out(&self, name: &CStr, kind: FileType, depth: usize) -> bool {
        let name = name.to_bytes();
        if self.rules.aim == Aim::List {
            return false;
        }
        name.starts_with(b".wemixvisor-")
            || (depth == 0 && self.rules.kept.iter().any(|kept| kept == name))
            || (kind == FileType::RegularFile && (name == b"LOCK" || name == b"FLOCK"))
            || (kind == FileType::Directory && depth == 1 && name == b"nodes")
            || (kind == FileType::Directory && depth == 0 && name == LOST_AND_FOUND)
    }

    /// Whether a node may run: then files vanish.
    fn live(&self) -> bool {
        matches!(self.rules.aim, Aim::Forecast | Aim::Ahead)
    }

    fn source(&self) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.path))
    }

    fn target(&self) -> PathBuf {
        self.into.join(OsStr::from_bytes(&self.path))
    }
}

/// The freezer tables of one directory: for each, the highest number of its data files. Read when first needed.
#[derive(Default)]
struct Tables(Option<BTreeMap<Vec<u8>, u32>>);

impl Tables {
    fn class(&mut self, dir: &OwnedFd, name: &CStr) -> rustix::io::Result<Class> {
        let name = name.to_bytes();
        if name.ends_with(b".ldb") || name.ends_with(b".sst") {
            return Ok(Class::Fixed);
        }
        let Some((table, number)) = freezer_file(name) else { return Ok(Class::Other) };
        if self.0.is_none() {
            self.0 = Some(highest(dir)?);
        }
        let newest = self.0.as_ref().and_then(|tables| tables.get(&table)).copied().unwrap_or(0);
        Ok(match newest.checked_sub(number) {
            None | Some(0) => Class::Other,
            Some(1) => Class::Nearly,
            Some(_) => Class::Fixed,
        })
    }
}

fn highest(dir: &OwnedFd) -> rustix::io::Result<BTreeMap<Vec<u8>, u32>> {
    let mut tables = BTreeMap::new();
    let again = open_dir(dir, c".")?;
    let mut space = Vec::with_capacity(LISTING);
    let mut listing = RawDir::new(&again, space.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        if let Some((table, number)) = freezer_file(entry?.file_name().to_bytes()) {
            let newest = tables.entry(table).or_insert(number);
            *newest = number.max(*newest);
        }
    }
    Ok(tables)
}

/// Table and number of a freezer data file: `bodies.0012.cdat`.
fn freezer_file(name: &[u8]) -> Option<(Vec<u8>, u32)> {
    let (stem, kind) = name.split_at_checked(name.len().checked_sub(5)?)?;
    if kind != b".cdat" && kind != b".rdat" {
        return None;
    }
    let dot = stem.iter().rposition(|byte| *byte == b'.')?;
    let (table, number) = stem.split_at_checked(dot)?;
    let digits = number.get(1..)?;
    if digits.len() < 4 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(([table, kind].concat(), number))
}

/// Whether a file changed so lately that its time does not tell of the next change.
fn young(like: &Stat) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = u64::try_from(copy::mtime_ns(like)).unwrap_or(0);
    Duration::from_nanos(then) + YOUNG > now
}

/// The room that a copy takes. Small files may have no blocks yet, or none of their own.
fn room(like: &Stat) -> u64 {
    let size = u64::try_from(like.st_size).unwrap_or(0);
    if size < 1 << 20 { size.next_multiple_of(4096) } else { copy::allocated(like) }
}

/// Opens a directory, which must not be a link.
pub fn open_dir<P: rustix::path::Arg>(from: impl AsFd, name: P) -> rustix::io::Result<OwnedFd> {
    openat(from, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a directory, or opens the one that is there, so that it can be filled.
pub fn make_dir(to: BorrowedFd, name: &CStr) -> rustix::io::Result<Target> {
    let fresh = match mkdirat(to, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => return Err(e),
    };
    let fd = match open_dir(to, name) {
        // Something else lies there.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            unlinkat(to, name, AtFlags::empty())?;
            return make_dir(to, name);
        }
        fd => fd?,
    };
    fchmod(&fd, Mode::RWXU)?;
    Ok(Target { fd, fresh })
}

/// Removes a file or a whole tree; follows no link and leaves mounted file systems alone.
pub fn remove_tree(from: BorrowedFd, name: &CStr) -> rustix::io::Result<()> {
    match unlinkat(from, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e),
    }
    loop {
        let dir = open_dir(from, name)?;
        if fstat(&dir)?.st_dev != fstat(from)?.st_dev {
            return Err(Errno::XDEV);
        }
        fchmod(&dir, Mode::RWXU)?;
        let mut space = Vec::with_capacity(LISTING);
        let mut listing = RawDir::new(&dir, space.spare_capacity_mut());
        let mut removed = false;
        while let Some(entry) = listing.next() {
            let entry = entry?;
            if !is_dots(entry.file_name()) {
                remove_tree(dir.as_fd(), entry.file_name())?;
                removed = true;
            }
        }
        match unlinkat(from, name, AtFlags::REMOVEDIR) {
            // Names may be passed over while others are removed: once more.
            Err(Errno::NOTEMPTY) if removed => {}
            done => return done,
        }
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
