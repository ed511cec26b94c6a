//! Where a backup lies and by what means it comes there; the names of backups, and what becomes one: a partial directory
//! that is locked by who builds it and takes its final name only when it is complete.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, FlockOperation, RenameFlags, flock, fstat, fstatvfs, fsync, ioctl_ficlone, linkat, renameat,
    renameat_with, statat,
};
use rustix::io::Errno;

use super::Spec;
use super::reader::Manifest;
use super::tree::{Rules, Tally, Target, make_dir, open_dir, remove_tree};
use crate::config::{BackupMode, show_size};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Owner};
use crate::job::durable;
use crate::manifest::{Header, How, Mode};

/// The place inside the data directory, for data that is a file system of its own.
pub const INSIDE: &str = ".wemixvisor-backups";

/// What the names of unfinished backups begin with.
pub const PARTIAL: &str = ".partial-";

/// The unfinished backup that `copy_ahead` fills and `create` ends.
pub const AHEAD: &str = ".partial-ahead";

/// What the names of backups begin with that a restore made of what it replaced.
pub const BEFORE: &str = "before-restore";

/// The manifest of a backup, in it.
pub const MANIFEST: &str = "manifest.json";

/// The data of a backup, in it.
pub const DATA: &CStr = c"data";

/// How long a half-made backup may be held by who builds on it no more.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Room that is left free in any case.
const MARGIN: u64 = 16 << 20;

/// The data directory as it really is, and what in it is ours.
pub struct Site {
    /// The data directory, without links in its path.
    pub data: PathBuf,
    /// Where backups lie when links work there.
    pub backup_dir: PathBuf,
    /// Directories of ours in the data, by device and inode.
    pub own: Vec<(u64, u64)>,
    /// Their names at the top of the data.
    pub own_names: Vec<Vec<u8>>,
    /// Whether plans are read under this data directory.
    pub plans: bool,
    /// Who owns what is made.
    pub owner: Owner,
}

impl Site {
    /// Looks at the data directory of a home.
    pub fn find(home: &Home, spec: &Spec) -> Result<Site> {
        let owner = home.owner().on("read", home.root())?;
        let data = fs::canonicalize(&spec.data_dir).map_err(|e| {
            Error::failed(format!("cannot back up the data directory {}: {e}", spec.data_dir.display()))
        })?;
        if !data.is_dir() {
            return Err(Error::failed(format!("the data directory {} is not a directory", data.display())));
        }
        if same(&data, &spec.backup_dir) {
            return Err(Error::failed(format!(
                "{} is both the data and the backup directory: set DAEMON_DATA_BACKUP_DIR to another one",
                data.display()
            )));
        }
        // It must be there to be known again by device and inode; where it cannot be made, `choose` says so.
        let _ = durable::make_dirs(&spec.backup_dir, 0o700, owner);
        let root = fs::canonicalize(home.root()).on("read", home.root())?;
        let mut ours = vec![spec.backup_dir.clone()];
        if root != data && root.starts_with(&data) {
            ours.push(root.clone());
        } else {
            ours.extend([home.dir(), home.root().join("logs"), home.data()]);
        }
        let (mut own, mut own_names) = (Vec::new(), vec![INSIDE.as_bytes().to_vec()]);
        for path in ours {
            let (Ok(path), Ok(meta)) = (fs::canonicalize(&path), fs::metadata(&path)) else { continue };
            let Ok(inside) = path.strip_prefix(&data) else { continue };
            let mut parts = inside.components();
            match (parts.next(), parts.next()) {
                (None, _) => {}
                (Some(name), None) => {
                    own.push((meta.dev(), meta.ino()));
                    own_names.push(name.as_os_str().as_bytes().to_vec());
                }
                // It is in the backup directory's or the home's tree already when that is ours.
                (Some(name), Some(_)) if own_names.iter().any(|own| own == name.as_os_str().as_bytes()) => {}
                (Some(_), Some(_)) => {
                    return Err(Error::failed(format!(
                        "{} lies in the middle of the data directory {}: move it to its top or out of it",
                        path.display(),
                        data.display()
                    )));
                }
            }
        }
        let plans = same(&data, &home.data());
        // A link to a larger disk is followed once, here.
        let backup_dir = fs::canonicalize(&spec.backup_dir).unwrap_or_else(|_| spec.backup_dir.clone());
        Ok(Site { data, backup_dir, own, own_names, plans, owner })
    }

    /// The place inside the data.
    pub fn inside(&self) -> PathBuf {
        self.data.join(INSIDE)
    }

    /// Names of plan files at the top of the data.
    pub fn plan_names(&self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = &[b"upgrades", b"upgrade-info.json", b"upgrade-info.json.batch"];
        if self.plans { names.iter().map(|name| name.to_vec()).collect() } else { Vec::new() }
    }

    /// Where a backup would lie and by what means, tried with a real file.
    pub fn choose(&self, mode: BackupMode) -> Result<(PathBuf, How)> {
        let tried = |place: &Path| {
            durable::make_dirs(place, 0o700, self.owner)?;
            trial(&self.data, place)
        };
        if mode != BackupMode::Copy {
            let outside = tried(&self.backup_dir);
            if let Ok(Some(how)) = outside {
                return Ok((self.backup_dir.clone(), how));
            }
            let fresh = !self.inside().exists();
            let inside = tried(&self.inside());
            if let Ok(Some(how)) = inside {
                return Ok((self.inside(), how));
            }
            if fresh {
                let _ = fs::remove_dir(self.inside());
            }
            if mode == BackupMode::Snapshot {
                let why = outside.and(inside).err().map_or(String::new(), |e| format!(": {e}"));
                return Err(Error::failed(format!(
                    "neither links nor clones of {} work in {} or in the data directory{why}: set DAEMON_BACKUP_MODE=copy, or DAEMON_DATA_BACKUP_DIR to the data's file system",
                    self.data.display(),
                    self.backup_dir.display()
                )));
            }
        }
        durable::make_dirs(&self.backup_dir, 0o700, self.owner)?;
        self.try_to_write()?;
        Ok((self.backup_dir.clone(), How::Copy))
    }

    /// Whether what is copied can be written there and given to the home's owner: not where it is mounted to be read only, or
    /// by root where root may do nothing.
    fn try_to_write(&self) -> Result<()> {
        let path = self.backup_dir.join(format!("{TRIAL}{}", std::process::id()));
        let given = new_file(&path).and_then(|_| durable::give(&path, self.owner));
        let _ = fs::remove_file(&path);
        given
    }

    /// The places where backups lie.
    pub fn places(&self) -> [PathBuf; 2] {
        [self.backup_dir.clone(), self.inside()]
    }

    /// The complete backups of both places: name, directory, header.
    pub fn backups(&self) -> Result<Vec<(String, PathBuf, Header)>> {
        let mut found = Vec::new();
        for place in self.places() {
            for name in names(&place)? {
                let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
                let dir = place.join(name);
                if let Ok(header) = header(&dir) {
                    found.push((name.to_owned(), dir, header));
                }
            }
        }
        Ok(found)
    }

    /// Removes what earlier tries left and nobody builds on any more, but for the one of this name in this place. What cannot
    /// be removed stays: it is in nobody's way.
    pub fn clear(&self, but: Option<(&Path, &str)>) -> Result<()> {
        let [outside, inside] = self.places();
        for place in [outside, inside, self.data.clone()] {
            for name in names(&place)? {
                let partial = name.as_bytes().starts_with(PARTIAL.as_bytes()) && place != self.data;
                if !(partial || is_left_trial(&name)) || but.is_some_and(|(dir, but)| dir == place && name == *but) {
                    continue;
                }
                let dir = open_dir(rustix::fs::CWD, place.as_path()).on("read", &place)?;
                let name = c_name(&name)?;
                // Who builds there holds it.
                let held = match open_dir(&dir, name.as_c_str()) {
                    Ok(fd) => Some(fd),
                    Err(Errno::NOTDIR) => None,
                    Err(_) => continue,
                };
                if held.as_ref().is_some_and(|fd| flock(fd, FlockOperation::NonBlockingLockExclusive).is_err()) {
                    continue;
                }
                let _ = remove_tree(dir.as_fd(), &name);
            }
        }
        Ok(())
    }

    /// The rules by which this data is taken over.
    pub fn rules(&self, aim: super::tree::Aim, means: How) -> Rules {
        Rules { aim, means, own: self.own.clone(), kept: Vec::new(), plans: self.plan_names() }
    }
}

/// A backup that is being built: locked as long as this lives.
pub struct Partial {
    /// The directory it lies in.
    pub place: PathBuf,
    /// Its own path.
    pub path: PathBuf,
    /// The directory itself.
    pub fd: OwnedFd,
    at: OwnedFd,
    name: CString,
}

impl Partial {
    /// Makes the directory, or takes over the one that an earlier try left.
    pub fn open(place: &Path, name: &str, owner: Owner) -> Result<Partial> {
        let at = open_dir(rustix::fs::CWD, place).on("read", place)?;
        let path = place.join(name);
        let c_name = c_name(OsStr::new(name))?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            let made = match make_dir(at.as_fd(), &c_name) {
                // Somebody else left it, root for instance. What a restore works on is never put aside.
                Err(Errno::ACCESS | Errno::PERM) if name == AHEAD && set_aside(&at, &c_name).is_ok() => continue,
                made => made.on("create the directory", &path)?,
            };
            if made.fresh {
                durable::give(&path, owner)?;
            }
            match flock(&made.fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                // Who copied ahead was killed a moment ago.
                Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::refused(format!("another process builds {}: wait for it", path.display())));
                }
                Err(e) => return Err(e).on("lock", &path),
            }
            // Somebody who saw it unlocked may have removed it.
            let mine = fstat(&made.fd).on("read", &path)?;
            if statat(&at, &c_name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|there| there.st_ino == mine.st_ino) {
                return Ok(Partial { place: place.to_owned(), path, at, name: c_name, fd: made.fd });
            }
        }
    }

    /// Its data directory, made when it is missing.
    pub fn data(&self) -> Result<Target> {
        make_dir(self.fd.as_fd(), DATA).on("create the directory", &self.path.join("data"))
    }

    /// A new manifest in it.
    pub fn manifest(&self, owner: Owner) -> Result<File> {
        let path = self.path.join(MANIFEST);
        let file = new_file(&path)?;
        durable::give(&path, owner)?;
        Ok(file)
    }

    /// Does what fills it; when that fails, the room that it took is given back.
    pub fn fill<T>(self, fill: impl FnOnce(&Partial) -> Result<T>) -> Result<(Partial, T)> {
        match fill(&self) {
            Ok(filled) => Ok((self, filled)),
            Err(e) => {
                // What is left of it must not be in the way of the next try.
                if remove_tree(self.at.as_fd(), &self.name).is_err() {
                    let _ = set_aside(&self.at, &self.name);
                }
                Err(e)
            }
        }
    }

    /// Gives it its final name.
    pub fn rename(self, name: &str) -> Result<()> {
        rename_new(&self.at, &self.name, &self.at, &c_name(OsStr::new(name))?).on("name", &self.path)?;
        fsync(&self.at).on("sync", &self.place)
    }

    /// Syncs names, links and clones of the whole file system, then gives it the first free name of these. Returns the name.
    pub fn commit(self, site: &Site, base: &str) -> Result<String> {
        rustix::fs::syncfs(&self.fd).on("sync", &self.path)?;
        let name = free_name(&site.places(), base)?;
        self.rename(&name)?;
        Ok(name)
    }
}

/// Takes a leftover that cannot be used out of the way; `backup prune` removes it, or says what keeps it.
fn set_aside(at: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let aside = CString::new(format!("{PARTIAL}left-{unique}")).map_err(|_| Errno::INVAL)?;
    rename_new(at, name, at, &aside)
}

/// Renames to a name that is free; never over anything.
pub fn rename_new(from: impl AsFd, name: &CStr, to: impl AsFd, new: &CStr) -> rustix::io::Result<()> {
    match renameat_with(&from, name, &to, new, RenameFlags::NOREPLACE) {
        // This file system cannot promise it; the name was looked at before.
        Err(Errno::INVAL | Errno::NOSYS) => match statat(&to, new, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => renameat(&from, name, &to, new),
            Ok(_) => Err(Errno::EXIST),
            Err(e) => Err(e),
        },
        done => done,
    }
}

/// The first of `base`, `base-2`, `base-3` that no place has.
pub fn free_name(places: &[PathBuf], base: &str) -> Result<String> {
    let taken = |name: &str| places.iter().any(|place| place.join(name).symlink_metadata().is_ok());
    std::iter::once(base.to_owned())
        .chain((2..10_000).map(|n| format!("{base}-{n}")))
        .find(|name| !taken(name))
        .ok_or_else(|| Error::failed(format!("there are too many backups named {base}")))
}

/// What a name of a backup begins with: the upgrade and the time, UTC.
pub fn base_name(upgrade: &str, created: &str) -> Result<String> {
    if upgrade.is_empty() || upgrade.starts_with('.') || upgrade.contains(['/', '\0']) {
        return Err(Error::failed(format!("{upgrade:?} cannot name a backup")));
    }
    let digits: String = created.chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, time) = digits.split_at_checked(8).unwrap_or((&digits, ""));
    Ok(format!("{upgrade}-{day}-{time}"))
}

/// The header of a complete backup's manifest.
pub fn header(dir: &Path) -> Result<Header> {
    Manifest::open(dir).map(|manifest| manifest.header().clone())
}

/// Whether this is the name of the half-made backup of what a restore replaces: part of it until it is finished.
pub fn is_of_restore(name: &str) -> bool {
    let rest = name.strip_prefix(PARTIAL).and_then(|rest| rest.strip_prefix(BEFORE));
    rest.is_some_and(|rest| rest.starts_with('-'))
}

/// What a means makes of a backup.
pub fn mode(how: How) -> Mode {
    match how {
        How::Reflink | How::Link => Mode::Snapshot,
        How::Copy => Mode::Copy,
    }
}

/// Whether a place has room for what a forecast says; the error has figures, and what would help.
pub fn room(place: &Path, tally: &Tally, what: &str, help: &str) -> Result<u64> {
    let dir = open_dir(rustix::fs::CWD, place).on("read", place)?;
    let stat = fstatvfs(&dir).on("ask for room", place)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = tally.to_copy.saturating_add(tally.manifest).saturating_add(MARGIN);
    if free < needed {
        return Err(Error::failed(format!(
            "{what} needs {}, {} are free at {}: {help}",
            show_size(needed),
            show_size(free),
            place.display()
        )));
    }
    if stat.f_files > 0 && stat.f_favail < tally.inodes {
        return Err(Error::failed(format!(
            "{what} needs {} inodes, {} are free at {}: {help}",
            tally.inodes,
            stat.f_favail,
            place.display()
        )));
    }
    Ok(free)
}

/// What the names of trial files begin with.
const TRIAL: &str = ".wemixvisor-trial-";

/// Whether it is a trial file of a process that is gone, or an earlier one of this process.
fn is_left_trial(name: &OsStr) -> bool {
    let pid = name.to_str().and_then(|name| name.strip_prefix(TRIAL)).and_then(|rest| rest.split('-').next());
    let pid = pid.and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| pid == std::process::id() || crate::proc::start_time(pid).is_none())
}

/// Whether a file can be cloned, else linked, from one directory to another.
pub fn trial(from: &Path, to: &Path) -> Result<Option<How>> {
    let name = format!("{TRIAL}{}", std::process::id());
    // The two directories may be one.
    let (source, target) = (from.join(&name), to.join(format!("{name}-2")));
    let clear = || [&source, &target].into_iter().for_each(|path| drop(fs::remove_file(path)));
    clear();
    let tried = (|| {
        // As long as a block: shorter ones are not cloned everywhere.
        let mut file = new_file(&source)?;
        file.write_all(&[0x77; 4096]).on("write", &source)?;
        let clone = new_file(&target)?;
        if ioctl_ficlone(&clone, &file).is_ok() {
            return Ok(Some(How::Reflink));
        }
        fs::remove_file(&target).on("remove", &target)?;
        let cwd = rustix::fs::CWD;
        Ok(linkat(cwd, &source, cwd, &target, AtFlags::empty()).is_ok().then_some(How::Link))
    })();
    clear();
    tried
}

/// Whether things can be moved from one directory to another by renaming them.
pub fn movable(from: &Path, to: &Path) -> Result<bool> {
    let name = format!("{TRIAL}{}", std::process::id());
    let (source, target) = (from.join(&name), to.join(&name));
    let moved = new_file(&source).map(|_| fs::rename(&source, &target).is_ok());
    [&source, &target].into_iter().for_each(|path| drop(fs::remove_file(path)));
    moved
}

/// A new private file; what lies there is replaced, no link is followed.
fn new_file(path: &Path) -> Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).on("replace", path),
        Ok(()) | Err(_) => {}
    }
    fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).on("create", path)
}

/// The names in a directory of ours; a missing one has none.
pub fn names(dir: &Path) -> Result<Vec<OsString>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name()).on("read", dir)).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).on("read", dir),
    }
}

/// A name for the kernel.
pub fn c_name(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Error::failed(format!("{} is no name of a file", name.display())))
}

/// Whether two paths lead to the same directory.
fn same(one: &Path, other: &Path) -> bool {
    matches!((fs::metadata(one), fs::metadata(other)), (Ok(one), Ok(other)) if (one.dev(), one.ino()) == (other.dev(), other.ino()))
}
