//! The file in `staging/` that a release comes into: held by who fetches it, hashed as it grows, never more than there is room
//! for; and what is left there of others.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Advice, fadvise};

use super::Spec;
use super::digest::Digest;
use crate::config::show_size;
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Owner, Release};
use crate::job::durable;
use crate::source::{Checksum, Hasher, Link};

/// The largest file that is fetched.
const BYTES_MAX: u64 = 4 << 30;

/// What is left free for the node, which ends itself on a full disk; on a small file system a tenth of it.
const MARGIN: u64 = 2 << 30;

/// What is read at a time.
pub const CHUNK: usize = 128 << 10;

/// How much is left to the kernel before it is told to write it out: what comes is not to drive the node's own files from
/// memory, and is on the disk the sooner.
const WRITE_OUT: u64 = 8 << 20;

/// What others began and nobody goes on with is removed after so long.
const LEFTOVER_AGE: Duration = Duration::from_hours(24);

/// A file that is being fetched. Who fetches it holds it.
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// It, open.
    pub file: File,
    /// Whose it is to be.
    pub owner: Owner,
    /// How many bytes of it are there.
    pub have: u64,
    /// Whether its first bytes came at another time than its last.
    pub resumed: bool,
    /// What its checksum should be.
    pub checksum: Option<Checksum>,
    digest: Option<Digest>,
    /// What of it the kernel was told to write out.
    written_out: u64,
    /// What the server calls the content that is there.
    pub tag: Option<String>,
}

impl Part {
    /// Takes over what an earlier try left of this very file, if somebody can tell in the end whether it was.
    pub fn open(staging: &Path, spec: &Spec, link: &Link, owner: Owner) -> Result<Part> {
        let sum = link.checksum.as_ref().map_or_else(String::new, ToString::to_string);
        let mut key = Hasher::Sha256(Default::default());
        key.update(format!("{:?} {sum}", link.place).as_bytes());
        let key: String = key.sum().to_string().chars().skip("sha256:".len()).take(16).collect();
        let path = staging.join(format!("{}-{key}.part", spec.release));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let (file, meta) = loop {
            // Neither a link to elsewhere nor anything else that only looks like a file of ours is written to.
            if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
                remove_any(&path)?;
            }
            let file = options.open(&path).on("create", &path)?;
            if file.try_lock().is_err() {
                return Err(Error::refused(format!("another process fetches {link} already")));
            }
            let mut meta = file.metadata().on("read", &path)?;
            if meta.nlink() > 1 {
                // Who was killed while it became a release left its other name there.
                remove_any(&path.with_extension("tree"))?;
                meta = file.metadata().on("read", &path)?;
            }
            if meta.nlink() > 1 {
                remove_any(&path)?;
                continue;
            }
            // Who held it until now may have removed it.
            if durable::is_at(&file, &path) {
                break (file, meta);
            }
        };
        durable::give(&path, owner)?;
        let (have, checksum) = (meta.len(), link.checksum.clone());
        let mut part =
            Part { path, file, owner, have, resumed: have > 0, checksum, digest: None, written_out: have, tag: None };
        if part.checksum.is_none() || have > BYTES_MAX {
            part.restart()?;
        } else {
            part.rehash()?;
        }
        Ok(part)
    }

    fn rehash(&mut self) -> Result<()> {
        self.begin_digest()?;
        self.file.rewind().on("read", &self.path)?;
        let mut chunk = vec![0; CHUNK];
        if let Some(digest) = &self.digest {
            loop {
                let n = self.file.read(&mut chunk).on("read", &self.path)?;
                if n == 0 {
                    break;
                }
                chunk = digest.update(chunk, n);
            }
        }
        self.have = self.file.seek(SeekFrom::End(0)).on("read", &self.path)?;
        Ok(())
    }

    fn begin_digest(&mut self) -> Result<()> {
        let hasher = self.checksum.as_ref().map(Checksum::hasher);
        self.digest = hasher.map(|hasher| self.digest_from(hasher)).transpose()?;
        Ok(())
    }

    fn digest_from(&self, hasher: Hasher) -> Result<Digest> {
        Digest::begin(hasher).on("begin to hash", &self.path)
    }

    /// Begins anew.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).on("empty", &self.path)?;
        self.have = 0;
        self.resumed = false;
        self.written_out = 0;
        self.tag = None;
        self.begin_digest()
    }

    /// Takes so many bytes of a buffer, and gives back one for what comes next.
    pub fn add(&mut self, buffer: Vec<u8>, length: usize) -> Result<Vec<u8>> {
        let bytes = buffer.get(..length).unwrap_or_default();
        let more = bytes.len() as u64;
        if self.have + more > BYTES_MAX {
            self.restart()?;
            return Err(Error::failed(format!("it is larger than {}", show_size(BYTES_MAX))));
        }
        if let Err(e) = self.file.write_all_at(bytes, self.have) {
            if e.kind() == ErrorKind::StorageFull || e.kind() == ErrorKind::QuotaExceeded {
                // The node needs it more.
                let _ = self.restart();
            }
            return Err(e).on("write", &self.path);
        }
        self.have += more;
        if self.have - self.written_out >= WRITE_OUT {
            // Once more what was told last: it is on the disk by now, and leaves the memory.
            let from = self.written_out.saturating_sub(WRITE_OUT);
            let _ = fadvise(&self.file, from, NonZeroU64::new(self.have - from), Advice::DontNeed);
            self.written_out = self.have;
        }
        Ok(match &self.digest {
            Some(digest) => digest.update(buffer, length),
            None => buffer,
        })
    }

    /// Syncs it; what its checksum is where that is not what it should be.
    pub fn finish(&mut self) -> Result<Option<Checksum>> {
        self.file.sync_all().on("sync", &self.path)?;
        let Some(digest) = self.digest.take() else { return Ok(None) };
        let hasher = digest.end().ok_or_else(|| Error::failed(format!("{} was not hashed", self.path.display())))?;
        // There may be more to come.
        self.digest = Some(self.digest_from(hasher.clone())?);
        Ok(Some(hasher.sum()).filter(|sum| Some(sum) != self.checksum.as_ref()))
    }

    /// Gives up writing it: as long as somebody may, nobody can execute what it becomes.
    pub fn close(&mut self) -> Result<()> {
        let others = || Error::refused(format!("another process fetches {} already", self.path.display()));
        let file = File::open(&self.path).on("read", &self.path)?;
        self.file.unlock().on("unlock", &self.path)?;
        // Who was faster finds a file that is whole and right, and makes the release.
        match file.try_lock() {
            Ok(()) if durable::is_at(&file, &self.path) => {}
            Ok(()) | Err(TryLockError::WouldBlock) => return Err(others()),
            // As on NFS, which locks nothing that cannot be written.
            Err(TryLockError::Error(_)) => {}
        }
        self.file = file;
        Ok(())
    }

    /// Takes its name away. What it holds may be a release by now, and is left as it is.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Whether a file of this size can be had here: twice, as it comes and as the release that it becomes.
    pub fn takes(&mut self, total: u64) -> Result<()> {
        if total > BYTES_MAX {
            self.restart()?;
            return Err(Error::failed(format!("it is {}, more than {}", show_size(total), show_size(BYTES_MAX))));
        }
        self.room(total.saturating_sub(self.have).saturating_add(total))
    }

    /// What nobody can go on with does not stay.
    pub fn end(self) {
        if self.have == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Whether so many more bytes have room, and the node has too; if not, the node needs the room of these more.
    pub fn room(&mut self, more: u64) -> Result<()> {
        let stat = rustix::fs::fstatvfs(&self.file).on("ask for room", &self.path)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let margin = MARGIN.min(stat.f_blocks.saturating_mul(stat.f_frsize) / 10);
        if free < more.saturating_add(margin) {
            self.restart()?;
            return Err(Error::failed(format!(
                "it needs {}, and {} are left free for the node, but only {} are free at {}: make room",
                show_size(more),
                show_size(margin),
                show_size(free),
                self.path.parent().unwrap_or(&self.path).display()
            )));
        }
        Ok(())
    }
}

/// What nobody goes on with any more. What cannot be removed is in nobody's way.
pub fn clear_leftovers(staging: &Path) {
    for entry in fs::read_dir(staging).into_iter().flatten().flatten() {
        let path = entry.path();
        let old = |meta: &fs::Metadata| {
            let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            SystemTime::now().duration_since(changed).is_ok_and(|age| age > LEFTOVER_AGE)
        };
        let Ok(meta) = entry.metadata() else { continue };
        if old(&meta) && !(meta.is_file() && is_held(&path)) {
            let _ = remove_any(&path);
        }
    }
}

/// Removes what came of a release that is there now: from elsewhere, or left by one who was killed when it was done.
pub fn clear_rest(home: &Home, release: &Release) {
    let staging = home.staging();
    let (start, key) = (format!("{release}-"), "0123456789abcdef.part".len());
    for entry in fs::read_dir(staging).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_its = name.to_str().and_then(|name| name.strip_prefix(&start)).is_some_and(|rest| rest.len() == key);
        if is_its && entry.metadata().is_ok_and(|meta| meta.is_file()) && !is_held(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_held(path: &Path) -> bool {
    !File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// Removes whatever an earlier try, or somebody else, left there.
pub fn remove_any(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).on("remove the leftover", path),
        Ok(()) | Err(_) => Ok(()),
    }
}
