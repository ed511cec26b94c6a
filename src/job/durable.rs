//! The only writer of things that matter. Each function returns after file and directory are synced, and leaves either
//! the old thing or the whole new one under the final name, whatever is killed and whenever.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, OnFile, Result};
use crate::home::Owner;

/// Syncs a directory, so that a name made or removed in it survives a power loss. A failed sync is an error, never retried:
/// after one the kernel may have dropped what was not written.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).on("sync", dir)
}

/// Gives a file to the home's owner when we may (only root can, and only root needs to).
pub fn give(path: &Path, owner: Owner) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).on("give to the home's owner", path)?;
    }
    Ok(())
}

/// Replaces a file's content atomically: a temporary file beside it, synced, renamed over it, directory synced.
pub fn replace_file(path: &Path, content: &[u8], mode: u32, owner: Owner) -> Result<()> {
    Prepared::new(path, content, mode, owner)?.commit()
}

/// Replaces the content of a file that is there, in the same way; its owner, group and mode stay.
pub fn rewrite_file(path: &Path, content: &[u8]) -> Result<()> {
    let meta = fs::metadata(path).on("read", path)?;
    let tmp = temporary(path)?;
    remove_leftover(&tmp)?;
    clearing(&tmp, || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp).on("create", &tmp)?;
        // Before the mode, which a change of owner may cut.
        std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid())).on("keep the owner and group of", path)?;
        file.set_permissions(meta.permissions()).on("keep the mode of", path)?;
        file.write_all(content).and_then(|()| file.sync_all()).on("write", &tmp)?;
        drop(file);
        rename(&tmp, path)
    })
}

/// Does what makes a temporary file; when that fails, the room that it took is given back.
fn clearing(tmp: &Path, make: impl FnOnce() -> Result<()>) -> Result<()> {
    make().inspect_err(|_| {
        let _ = fs::remove_file(tmp);
    })
}

/// A file that is written and synced under its temporary name: only its rename is left, which needs no room.
pub struct Prepared {
    tmp: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Writes and syncs the content beside the file that it will replace.
    pub fn new(path: &Path, content: &[u8], mode: u32, owner: Owner) -> Result<Prepared> {
        let tmp = temporary(path)?;
        remove_leftover(&tmp)?;
        clearing(&tmp, || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp).on("create", &tmp)?;
            give(&tmp, owner)?;
            file.write_all(content).and_then(|()| file.sync_all()).on("write", &tmp)
        })?;
        Ok(Prepared { tmp, path: path.to_owned() })
    }

    /// Gives it its final name.
    pub fn commit(self) -> Result<()> {
        clearing(&self.tmp, || rename(&self.tmp, &self.path))
    }
}

/// The same without any sync: for what nobody reads half while the machine runs, but may be older after a power loss, or on
/// some file systems torn.
pub fn replace_file_unsynced(path: &Path, content: &[u8], mode: u32, owner: Owner) -> Result<()> {
    let tmp = temporary(path)?;
    remove_leftover(&tmp)?;
    clearing(&tmp, || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp).on("create", &tmp)?;
        give(&tmp, owner)?;
        // The umask must not take what others may read.
        file.set_permissions(PermissionsExt::from_mode(mode)).on("set the mode of", &tmp)?;
        file.write_all(content).on("write", &tmp)?;
        fs::rename(&tmp, path).on("replace", path)
    })
}

/// Replaces a symbolic link atomically.
pub fn replace_link(path: &Path, target: &Path, owner: Owner) -> Result<()> {
    let tmp = temporary(path)?;
    remove_leftover(&tmp)?;
    std::os::unix::fs::symlink(target, &tmp).on("create", &tmp)?;
    give(&tmp, owner)?;
    rename(&tmp, path)
}

/// Copies a file under a name that appears only when the copy is complete and synced.
pub fn install_file(from: &Path, path: &Path, mode: u32, owner: Owner) -> Result<()> {
    let tmp = temporary(path)?;
    remove_leftover(&tmp)?;
    let mut source = File::open(from).on("read", from)?;
    clearing(&tmp, || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp).on("create", &tmp)?;
        give(&tmp, owner)?;
        // The umask must not take the execute bit from a release.
        fs::set_permissions(&tmp, PermissionsExt::from_mode(mode)).on("set the mode of", &tmp)?;
        std::io::copy(&mut source, &mut file).and_then(|_| file.sync_all()).on("write", &tmp)?;
        drop(file);
        rename(&tmp, path)
    })
}

/// Removes a file, if there is one, and syncs its directory.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).on("remove", path),
    }
}

/// Appends one line and syncs it. A last line that a power loss cut short is closed first, so that it spoils nothing.
pub fn append_line(path: &Path, line: &str, owner: Owner) -> Result<()> {
    let fresh = !path.exists();
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).on("open", path)?;
    let mut text = String::new();
    if file.seek(SeekFrom::End(0)).on("read", path)? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).on("read", path)?;
        if last != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(line);
    text.push('\n');
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).on("write", path)?;
    if fresh {
        give(path, owner)?;
        sync_dir(parent(path)?)?;
    }
    Ok(())
}

/// Makes a directory and its missing parents, each given to the owner and synced.
pub fn make_dirs(path: &Path, mode: u32, owner: Owner) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path)?;
    make_dirs(above, mode, owner)?;
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => give(path, owner)?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::refused(format!(
                "{} already exists but is not a directory: move it away",
                path.display()
            )));
        }
        Err(e) => return Err(e).on("create the directory", path),
    }
    sync_dir(above)
}

fn rename(tmp: &Path, path: &Path) -> Result<()> {
    fs::rename(tmp, path).on("replace", path)?;
    sync_dir(parent(path)?)
}

/// What an earlier try left is replaced, never trusted and never in the way.
fn remove_leftover(tmp: &Path) -> Result<()> {
    match fs::remove_file(tmp) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).on("remove the leftover", tmp),
    }
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent().ok_or_else(|| Error::failed(format!("{} has no directory", path.display())))
}

fn temporary(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::failed(format!("{} has no file name", path.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    Ok(path.with_file_name(hidden))
}
