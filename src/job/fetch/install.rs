//! Puts a complete, synced tree in its place as a release, by one rename.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::origin::{self, Fetched};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Owner, Release};
use crate::job::{durable, look};
use crate::source::Source;

/// Makes the tree the release. What the operator put into the release's directory beforehand (hooks, arguments) is kept and
/// wins over what the tree brings, and so does what is beside one that was fetched as another file and is replaced. False:
/// the release is there already, by somebody else.
pub fn install(home: &Home, release: &Release, source: &Source, tree: &Path, owner: Owner) -> Result<bool> {
    let goal = home.release(release);
    let upgrades = home.upgrades();
    durable::make_dirs(&upgrades, 0o755, owner)?;
    give_all(tree, owner)?;
    loop {
        match durable::rename_new(tree, &goal) {
            Ok(()) => return durable::sync_dir(&upgrades).map(|()| true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(Errno::XDEV) => {
                return Err(Error::failed(format!(
                    "{} lies on another file system than {}: a release moves there by one rename, so both must be on one",
                    home.staging().display(),
                    upgrades.display()
                )));
            }
            Err(e) => return Err(e).on("create", &goal),
        }
        let replaces = home.binary(release).symlink_metadata().is_ok();
        if replaces && origin::contradiction(home, release, source).is_none() {
            // Somebody else was faster.
            return Ok(false);
        }
        if !replaces {
            origin::forget(&goal)?;
        }
        let mut adopted = Vec::new();
        Adopt { fetched: &Fetched::of(home, release), owner, adopted: &mut adopted }.all(&goal, tree, Path::new(""))?;
        origin::disown(tree, &adopted, owner)?;
        super::archive::sync(tree)?;
        if replaces {
            idle(home, release)?;
        }
        match renameat_with(CWD, tree, CWD, &goal, RenameFlags::EXCHANGE) {
            Ok(()) => return durable::sync_dir(&upgrades).map(|()| true),
            Err(Errno::NOENT) => {}
            Err(e) => {
                let why = format!("cannot fill {}: {e}; move it away, with what is in it", goal.display());
                return Err(Error::failed(why));
            }
        }
    }
}

/// Refuses where the release runs, or an upgrade has to do with it.
pub fn idle(home: &Home, release: &Release) -> Result<()> {
    let journal = look::read_journal(home)?;
    let in_use = home.current_release().map_or(true, |current| current == *release)
        || journal.is_some_and(|journal| journal.to == *release || journal.from == *release);
    if in_use { Err(Error::refused(format!("release {release} is in use and is not replaced"))) } else { Ok(()) }
}

/// Takes what the operator put into one tree into the other, by links; these files win.
struct Adopt<'a> {
    fetched: &'a Fetched,
    owner: Owner,
    adopted: &'a mut Vec<PathBuf>,
}

impl Adopt<'_> {
    fn all(&mut self, from: &Path, into: &Path, below: &Path) -> Result<()> {
        for entry in fs::read_dir(from).on("read", from)? {
            let entry = entry.on("read", from)?;
            let (path, goal, below) = (entry.path(), into.join(entry.file_name()), below.join(entry.file_name()));
            let meta = entry.metadata().on("read", &path)?;
            if meta.is_dir() {
                self.directory(&path, &goal, &below, &meta)?;
                continue;
            }
            if self.fetched.brought(&below, &meta) {
                continue;
            }
            match fs::remove_file(&goal) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).on("replace", &goal),
                Ok(()) | Err(_) => {}
            }
            if meta.is_symlink() {
                let target = fs::read_link(&path).on("read", &path)?;
                std::os::unix::fs::symlink(target, &goal).on("create", &goal)?;
            } else {
                fs::hard_link(&path, &goal).on("link", &goal)?;
            }
            self.adopted.push(below);
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, goal: &Path, below: &Path, meta: &fs::Metadata) -> Result<()> {
        let made = match fs::create_dir(goal) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e).on("create", goal),
            Ok(()) => {
                fs::set_permissions(goal, meta.permissions()).on("set the mode of", goal)?;
                durable::give(goal, self.owner)?;
                true
            }
            Err(_) => false,
        };
        self.all(path, goal, below)?;
        if made && !self.fetched.is_empty() {
            // One that only had what is left behind.
            let _ = fs::remove_dir(goal);
        }
        Ok(())
    }
}

fn give_all(tree: &Path, owner: Owner) -> Result<()> {
    durable::give(tree, owner)?;
    for entry in fs::read_dir(tree).on("read", tree)? {
        let entry = entry.on("read", tree)?;
        let path = entry.path();
        if entry.file_type().on("read", &path)?.is_dir() {
            give_all(&path, owner)?
        } else {
            durable::give(&path, owner)?
        }
    }
    Ok(())
}
