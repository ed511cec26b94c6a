//! Puts a complete, synced tree in its place as a release, by one rename.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::origin;
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
        if home.binary(release).symlink_metadata().is_err() {
            origin::forget(&goal)?;
            adopt(&goal, tree, owner, &[])?;
        } else if origin::contradiction(home, release, source).is_some() {
            idle(home, release)?;
            adopt(&goal, tree, owner, &origin::fetched_entries(&goal))?;
        } else {
            // Somebody else was faster.
            return Ok(false);
        }
        super::archive::sync(tree)?;
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
    let in_use = home.current_release().as_ref() == Ok(release)
        || journal.is_some_and(|journal| journal.to == *release || journal.from == *release);
    if in_use { Err(Error::refused(format!("release {release} is in use and is not replaced"))) } else { Ok(()) }
}

/// Takes what lies in one tree into the other, by links, but for these names; the first one's files win.
fn adopt(from: &Path, into: &Path, owner: Owner, without: &[String]) -> Result<()> {
    for entry in fs::read_dir(from).on("read", from)? {
        let entry = entry.on("read", from)?;
        if without.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        let (path, goal) = (entry.path(), into.join(entry.file_name()));
        let kind = entry.file_type().on("read", &path)?;
        if kind.is_dir() {
            match fs::create_dir(&goal) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e).on("create", &goal),
                Ok(()) => {
                    let mode = entry.metadata().on("read", &path)?.permissions();
                    fs::set_permissions(&goal, mode).on("set the mode of", &goal)?;
                    durable::give(&goal, owner)?;
                }
                Err(_) => {}
            }
            adopt(&path, &goal, owner, &[])?;
            continue;
        }
        match fs::remove_file(&goal) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).on("replace", &goal),
            Ok(()) | Err(_) => {}
        }
        if kind.is_symlink() {
            let target = fs::read_link(&path).on("read", &path)?;
            std::os::unix::fs::symlink(target, &goal).on("create", &goal)?;
        } else {
            fs::hard_link(&path, &goal).on("link", &goal)?;
        }
    }
    Ok(())
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
