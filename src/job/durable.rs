//! The only writer of things that matter. Each function returns after file and directory are synced, and leaves either
//! the old thing or the whole new one under the final name, whatever is killed and whenever.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, OnFile, Result};
use crate::home::Owner;

/// How long another one who writes the same file is waited for, and how often it is looked whether that is over.
const OTHERS_TIME: Duration = Duration::from_secs(5);
const OTHERS_LOOK: Duration = Duration::from_millis(5);

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
    let (draft, mut file) = Draft::begin(path, 0o600)?;
    // Before the mode, which a change of owner may cut.
    std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid())).on("keep the owner and group of", path)?;
    file.set_permissions(meta.permissions()).on("keep the mode of", path)?;
    file.write_all(content).and_then(|()| file.sync_all()).on("write", &draft.tmp)?;
    drop(file);
    draft.commit()
}

/// A file under a temporary name, beside the one whose place it takes. Who writes it holds a lock on it: two who write the
/// same file at once follow one another, and what nobody holds was left by one who was killed. It goes unless it is
/// committed, and gives back the room that it took.
struct Draft {
    tmp: PathBuf,
    path: PathBuf,
    held: File,
}

impl Draft {
    /// A new one, and the descriptor that writes it.
    fn begin(path: &Path, mode: u32) -> Result<(Draft, File)> {
        let tmp = temporary(path)?;
        let until = Instant::now() + OTHERS_TIME;
        loop {
            let file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    remove_leftover(&tmp, until)?;
                    continue;
                }
                file => file.on("create", &tmp)?,
            };
            // By another descriptor: as long as one may write it, nobody can execute the file.
            let held = match File::open(&tmp) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                held => held.on("open", &tmp).inspect_err(|_| _ = fs::remove_file(&tmp))?,
            };
            match held.try_lock() {
                Ok(()) if is_at(&held, &tmp) && is_at(&file, &tmp) => {
                    return Ok((Draft { tmp, path: path.to_owned(), held }, file));
                }
                // Another one took it for a leftover, in between.
                Ok(()) | Err(TryLockError::WouldBlock) if Instant::now() < until => {}
                Ok(()) | Err(TryLockError::WouldBlock) => {
                    return Err(Error::failed(format!("cannot write {}: others do all the time", tmp.display())));
                }
                // A file system without such locks: two at once may get in each other's way there.
                Err(TryLockError::Error(_)) => return Ok((Draft { tmp, path: path.to_owned(), held }, file)),
            }
        }
    }

    /// Gives it its final name.
    fn commit(self) -> Result<()> {
        rename(&self.tmp, &self.path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if is_at(&self.held, &self.tmp) {
            let _ = fs::remove_file(&self.tmp);
        }
    }
}

/// A file that is written and synced under its temporary name: only its rename is left, which needs no room.
pub struct Prepared(Draft);

impl Prepared {
    /// Writes and syncs the content beside the file that it will replace.
    pub fn new(path: &Path, content: &[u8], mode: u32, owner: Owner) -> Result<Prepared> {
        let (draft, mut file) = Draft::begin(path, mode)?;
        give(&draft.tmp, owner)?;
        file.write_all(content).and_then(|()| file.sync_all()).on("write", &draft.tmp)?;
        Ok(Prepared(draft))
    }

    /// Gives it its final name.
    pub fn commit(self) -> Result<()> {
        self.0.commit()
    }
}

/// The same without any sync: for what nobody reads half while the machine runs, but may be older after a power loss, or on
/// some file systems torn.
pub fn replace_file_unsynced(path: &Path, content: &[u8], mode: u32, owner: Owner) -> Result<()> {
    let (draft, mut file) = Draft::begin(path, mode)?;
    give(&draft.tmp, owner)?;
    // The umask must not take what others may read.
    file.set_permissions(PermissionsExt::from_mode(mode)).on("set the mode of", &draft.tmp)?;
    file.write_all(content).on("write", &draft.tmp)?;
    fs::rename(&draft.tmp, path).on("replace", path)
}

/// Replaces a symbolic link atomically.
pub fn replace_link(path: &Path, target: &Path, owner: Owner) -> Result<()> {
    let tmp = temporary(path)?;
    remove_leftover(&tmp, Instant::now())?;
    std::os::unix::fs::symlink(target, &tmp).on("create", &tmp)?;
    give(&tmp, owner)?;
    rename(&tmp, path)
}

/// Copies a file under a name that appears only when the copy is complete and synced; it takes the place of what is there.
pub fn install_file(from: &Path, path: &Path, mode: u32, owner: Owner) -> Result<()> {
    copied(from, path, mode, owner)?.commit()
}

/// The same where nothing is there: what somebody else has put there meanwhile is left alone, and the answer is false.
pub fn install_new_file(from: &Path, path: &Path, mode: u32, owner: Owner) -> Result<bool> {
    let draft = copied(from, path, mode, owner)?;
    match rename_new(&draft.tmp, path) {
        Ok(()) => sync_dir(parent(path)?).map(|()| true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(e).on("create", path),
    }
}

fn copied(from: &Path, path: &Path, mode: u32, owner: Owner) -> Result<Draft> {
    let mut source = File::open(from).on("read", from)?;
    let (draft, mut file) = Draft::begin(path, mode)?;
    give(&draft.tmp, owner)?;
    // The umask must not take the execute bit from a release.
    file.set_permissions(PermissionsExt::from_mode(mode)).on("set the mode of", &draft.tmp)?;
    std::io::copy(&mut source, &mut file).and_then(|_| file.sync_all()).on("write", &draft.tmp)?;
    Ok(draft)
}

/// Removes a file, if there is one, and syncs its directory.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
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
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::refused(format!(
                "{} already exists but is not a directory: move it away",
                path.display()
            )));
        }
        Err(e) => return Err(e).on("create the directory", path),
    }
    sync_dir(above)
}

/// Renames a file or a directory where nothing has the new name; else that is an error.
pub fn rename_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise to replace nothing.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => rustix::fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(Errno::EXIST),
        renamed => renamed,
    }
}

fn rename(tmp: &Path, path: &Path) -> Result<()> {
    fs::rename(tmp, path).on("replace", path)?;
    sync_dir(parent(path)?)
}

/// What an earlier try left is replaced, never trusted and never in the way. Who still writes it is waited for.
fn remove_leftover(tmp: &Path, until: Instant) -> Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let there = OpenOptions::new().read(true).custom_flags(flags).open(tmp);
    // What cannot be opened, such as a link, is written by none of us.
    if let Ok(held) = &there {
        while let Err(TryLockError::WouldBlock) = held.try_lock() {
            if Instant::now() > until {
                return Err(Error::refused(format!("another process writes {}: try again", tmp.display())));
            }
            std::thread::sleep(OTHERS_LOOK);
        }
        if !is_at(held, tmp) {
            return Ok(());
        }
    }
    match fs::remove_file(tmp) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).on("remove the leftover", tmp),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether this very file has that name now.
pub fn is_at(file: &File, path: &Path) -> bool {
    let id = |meta: Metadata| (meta.dev(), meta.ino());
    let (ours, there) = (file.metadata().map(id), path.symlink_metadata().map(id));
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("wemixvisor-durable-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn names(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn owner() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    #[test]
    fn who_writes_the_same_file_waits_and_what_a_killed_one_left_does_not_count() {
        let folder = Folder::new("waits");
        let path = folder.0.join("file");
        let (draft, mut file) = Draft::begin(&path, 0o600).unwrap();
        file.write_all(b"half").unwrap();
        let mut other = None;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| replace_file(&path, b"second", 0o600, owner()));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!thread.is_finished() && draft.tmp.exists(), "it waits and leaves alone what is written");
            file.write_all(b" and half").unwrap();
            draft.commit().unwrap();
            other = Some(thread.join().unwrap());
        });
        other.unwrap().unwrap();
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"second".to_vec(), 1));
        // Nobody holds these.
        let tmp = temporary(&path).unwrap();
        fs::write(&tmp, "left").unwrap();
        replace_file(&path, b"third", 0o600, owner()).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &tmp).unwrap();
        replace_file(&path, b"fourth", 0o600, owner()).unwrap();
        assert!(rustix::fs::mknodat(CWD, &tmp, rustix::fs::FileType::Fifo, 0o600.into(), 0).is_ok());
        replace_file(&path, b"fifth", 0o600, owner()).unwrap();
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"fifth".to_vec(), 1));
    }

    #[test]
    fn a_file_that_many_replace_at_once_is_always_one_of_theirs_and_whole() {
        let folder = Folder::new("many");
        let path = folder.0.join("file");
        let sources: Vec<PathBuf> = (0..4_u8).map(|n| folder.0.join(format!("source{n}"))).collect();
        for (n, source) in (0_u8..).zip(&sources) {
            fs::write(source, vec![b'a' + n; 300_000 + usize::from(n)]).unwrap();
        }
        replace_file(&path, &[b'a'; 300_000], 0o600, owner()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let bytes = fs::read(&path).unwrap();
                    let first = bytes[0];
                    assert_eq!(bytes.len(), 300_000 + usize::from(first - b'a'));
                    assert!(bytes.iter().all(|byte| *byte == first));
                }
            });
            let write = |source: &PathBuf| {
                (0..25).for_each(|_| install_file(source, &path, 0o600, owner()).unwrap());
            };
            let threads: Vec<_> = sources.iter().map(|source| scope.spawn(move || write(source))).collect();
            // Whatever became of them, who looks must end.
            let wrote: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            done.store(true, Ordering::Relaxed);
            looks.join().unwrap();
            assert!(wrote.iter().all(|wrote| wrote.is_ok()));
        });
        assert_eq!(folder.names(), 5);
    }

    #[test]
    fn a_new_file_never_takes_the_place_of_another() {
        let folder = Folder::new("new");
        let (source, path) = (folder.0.join("source"), folder.0.join("file"));
        fs::write(&source, "mine").unwrap();
        assert!(install_new_file(&source, &path, 0o700, owner()).unwrap());
        fs::write(&path, "theirs").unwrap();
        assert!(!install_new_file(&source, &path, 0o700, owner()).unwrap());
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"theirs".to_vec(), 2));
    }
}
