//! Writes a backup as one tar.gz. It streams: a file goes through it in pieces, and no list of files is held.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{AtFlags, CWD, FileType, OFlags, RenameFlags, Stat, readlinkat, renameat_with, statat};
use tar::{Builder, EntryType, Header};

use super::copy::mtime_ns;
use super::list::Found;
use super::place::MANIFEST;
use super::reader::Manifest;
use super::{Tell, walk};
use crate::error::{Error, OnFile, Result};
use crate::home::Owner;
use crate::job::Progress;
use crate::job::durable;

/// Writes the archive to a new file, which has its name only when it is complete and synced.
pub fn to_file(found: &Found, file: &Path, owner: Option<Owner>, tell: Tell) -> Result<()> {
    let Some(name) = file.file_name() else {
        return Err(Error::usage(format!("{} is no name of a file", file.display())));
    };
    let exists = || Error::refused(format!("{} is there already: it is kept; give another name", file.display()));
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let tmp = file.with_file_name([".".as_ref(), name, ".tmp".as_ref()].join("".as_ref()));
    let (mut out, _left) = begin(&tmp)?;
    let made = (|| {
        if let Some(owner) = owner {
            durable::give(&tmp, owner)?;
        }
        write(found, &mut out, &tmp, tell)?;
        out.sync_all().on("sync", &tmp)?;
        match renameat_with(CWD, &tmp, CWD, file, RenameFlags::NOREPLACE) {
            // A file system that does not know the flag: the look above must do.
            Err(rustix::io::Errno::INVAL) => std::fs::rename(&tmp, file).on("rename to", file),
            Err(rustix::io::Errno::EXIST) => Err(exists()),
            renamed => renamed.on("rename to", file),
        }
    })();
    if let Err(e) = made {
        // Its room is given back at once, whatever was full.
        let _ = std::fs::remove_file(&tmp);
        return Err(e);
    }
    durable::sync_dir(file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes the temporary file, for one export at a time. What lies there is never written to: whoever made it may have it
/// open. It is locked before it is removed, and as long as its successor lives, so that nobody takes that for a leftover.
fn begin(tmp: &Path) -> Result<(File, Option<File>)> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let busy = || Error::refused(format!("{} is being written by another export", tmp.display()));
    let left = File::options().read(true).custom_flags(flags).open(tmp).ok();
    if left.as_ref().is_some_and(|left| left.try_lock().is_err()) {
        return Err(busy());
    }
    match std::fs::remove_file(tmp) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).on("replace", tmp),
        Ok(()) | Err(_) => {}
    }
    let out = File::options().write(true).create_new(true).mode(0o600).custom_flags(flags).open(tmp);
    let out = match out {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(busy()),
        out => out.on("create", tmp)?,
    };
    let ours =
        |meta: std::fs::Metadata| out.metadata().is_ok_and(|out| (out.dev(), out.ino()) == (meta.dev(), meta.ino()));
    if out.try_lock().is_err() || !tmp.symlink_metadata().is_ok_and(ours) {
        return Err(busy());
    }
    Ok((out, left))
}

/// Writes the archive to `out`, which `shown` names in errors.
pub fn write<'a>(found: &Found, out: &'a mut (dyn Write + 'a), shown: &'a Path, tell: Tell) -> Result<()> {
    let top = walk::top(&found.dir)?;
    // Read to its end first: what is not whole is not exported.
    let mut manifest = Manifest::open(&found.dir)?;
    while manifest.next()?.is_some() {}
    let progress = Progress { of: Some(manifest.totals().bytes), ..Progress::default() };
    let zip = GzEncoder::new(out, Compression::fast());
    let mut archive = Archive { tar: Builder::new(zip), shown, progress, tell };
    let written = (|| {
        let of = |name: &str| statat(&top, name, AtFlags::SYMLINK_NOFOLLOW).on("read", &found.dir.join(name));
        archive.add_directory(Path::new(&found.name), &of(".")?)?;
        let manifest = super::reader::open(&found.dir)?;
        archive.add_file(&Path::new(&found.name).join(MANIFEST), &of(MANIFEST)?, manifest)?;
        archive.progress.bytes = 0;
        let data = Path::new(&found.name).join("data");
        archive.add_directory(&data, &of("data")?)?;
        walk::walk(walk::top(&found.dir.join("data"))?, &mut Vec::new(), &mut |seen| {
            archive.add(&data.join(walk::shown(seen.path)), seen)
        })
    })();
    match written {
        Ok(()) => archive.end(),
        Err(e) => {
            // Dropped, it would write the end of an archive, and what is half would look whole.
            std::mem::forget(archive.tar);
            Err(e)
        }
    }
}

/// An archive that is being written.
struct Archive<'a, 'b> {
    tar: Builder<GzEncoder<&'a mut (dyn Write + 'a)>>,
    shown: &'a Path,
    progress: Progress,
    tell: Tell<'b>,
}

impl Archive<'_, '_> {
    fn add(&mut self, path: &Path, seen: &walk::Seen) -> Result<()> {
        match seen.kind() {
            FileType::Directory => self.add_directory(path, seen.stat),
            FileType::Symlink => {
                let target = readlinkat(seen.dir, seen.name, Vec::new()).on("read", path)?;
                self.add_link(path, seen.stat, target.as_bytes())
            }
            FileType::RegularFile => self.add_file(path, seen.stat, seen.open()?),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            // Sockets and the like are in no backup; those that a node left go along with what a restore replaces.
            | FileType::Unknown => Ok(()),
        }
    }

    fn add_directory(&mut self, path: &Path, stat: &Stat) -> Result<()> {
        self.times(stat)?;
        let mut header = header(EntryType::Directory, stat, 0);
        // With a slash behind it, as tar itself writes it.
        self.tar.append_data(&mut header, path.join(""), io::empty()).on("write", self.shown)
    }

    fn add_link(&mut self, path: &Path, stat: &Stat, target: &[u8]) -> Result<()> {
        self.times(stat)?;
        let mut header = header(EntryType::Symlink, stat, 0);
        // As it is, letter for letter, where it fits.
        let added = match header.set_link_name_literal(target) {
            Ok(()) => self.tar.append_data(&mut header, path, io::empty()),
            Err(_) => self.tar.append_link(&mut header, path, walk::shown(target)),
        };
        self.progress.files += 1;
        added.on("write", self.shown)
    }

    fn add_file(&mut self, path: &Path, stat: &Stat, file: File) -> Result<()> {
        self.times(stat)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header(EntryType::Regular, stat, size);
        let exactly =
            Exactly { file, left: size, path: path.to_owned(), progress: &mut self.progress, tell: &mut *self.tell };
        self.tar.append_data(&mut header, path, exactly).on("write", self.shown)?;
        self.progress.files += 1;
        Ok(())
    }

    /// What a header has no place for: the part of a second. Without it what is unpacked would not be as the manifest says.
    fn times(&mut self, stat: &Stat) -> Result<()> {
        let (seconds, nanos) = (mtime_ns(stat).div_euclid(1_000_000_000), mtime_ns(stat).rem_euclid(1_000_000_000));
        if nanos == 0 || seconds < 0 {
            return Ok(());
        }
        let mtime = format!("{seconds}.{nanos:09}");
        self.tar.append_pax_extensions([("mtime", mtime.as_bytes())]).on("write", self.shown)
    }

    fn end(self) -> Result<()> {
        let zip = self.tar.into_inner().on("write", self.shown)?;
        zip.finish().and_then(Write::flush).on("write", self.shown)
    }
}

fn header(kind: EntryType, stat: &Stat, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

/// As many bytes of a file as its header has promised, or an error.
struct Exactly<'a, 'b> {
    file: File,
    left: u64,
    path: PathBuf,
    progress: &'a mut Progress,
    tell: Tell<'b>,
}

impl Read for Exactly<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = match self.file.read(buffer.get_mut(..most).unwrap_or_default()) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it was cut short meanwhile")),
            got => got,
        };
        let n = got.map_err(|e| io::Error::other(format!("cannot read {}: {e}", self.path.display())))?;
        self.left -= n as u64;
        self.progress.bytes += n as u64;
        (self.tell)(*self.progress);
        Ok(n)
    }
}
