//! Puts a backup in the data's place. The new tree is built beside the data, then both are exchanged; `restore.json` is there
//! from before the first exchange until what was replaced is a backup itself, and says what belongs where.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, OFlags, RenameFlags, accessat, fstat, fsync, openat, renameat, renameat_with, statat, syncfs,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::list::{is_name, is_same};
use super::place::{
    BEFORE, DATA, MANIFEST, PARTIAL, Partial, Site, base_name, c_name, free_name, header, is_of_restore, movable,
    names, rename_new, room, trial,
};
use super::reader::Manifest;
use super::tree::{Aim, LOST_AND_FOUND, Rules, Walk, make_dir, open_dir};
use super::{Spec, Tell, end_manifest, walk};
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Owner, Release};
use crate::job::{durable, look, shim};
use crate::journal::{Head, rfc3339, unix_now};
use crate::manifest::{Header, How, Mode, VERSION, Writer, decode, encode};

/// Where a file system that cannot exchange two names keeps what it takes away first.
const OLD: &CStr = c"old";

/// An exchange under way: `restore.json`. Paths are relative when they lie in the home, and written as in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Version of this form: 1.
    version: u32,
    /// The backup that is put back.
    backup: String,
    /// Whose restore it is.
    id: String,
    /// When it began, RFC 3339.
    created: String,
    /// The data directory.
    data: String,
    /// The unfinished backup: its `data` is the new tree before the exchange, the replaced one after it.
    partial: String,
    /// The backup that it becomes.
    displaced: String,
    /// The head of the replaced data.
    head: Option<u64>,
    /// The release that ran on them.
    release: Option<Release>,
    /// The head of the data that take their place.
    #[serde(default)]
    becomes: Option<u64>,
    /// Whether what was replaced could not be listed once: a second time it is kept without a manifest.
    #[serde(default)]
    unlisted: bool,
    /// What is exchanged.
    exchange: Exchange,
}

/// What is exchanged. Inode numbers tell on which side a thing is: a second exchange would swap it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Exchange {
    /// The data directory itself.
    Whole {
        /// Inode of the new tree.
        inode: u64,
    },
    /// Each name in it.
    Entries {
        /// What the new tree has.
        new: Vec<Named>,
        /// What stays in the data.
        kept: Vec<String>,
    },
}

/// A name at the top of the new tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    /// As in a manifest.
    name: String,
    /// Its inode.
    inode: u64,
}

/// Puts a backup in the data's place; the caller holds `data.lock` and no node lives. Returns the name of the backup that
/// what it replaced became. Can be killed at any instant and called again with the same backup and `id`; another restore
/// has another `id`. A data directory without data is refused: nobody is there to say that its disk is mounted.
pub fn restore(home: &Home, spec: &Spec, name: &str, id: &str, tell: Tell) -> Result<String> {
    put_back(home, spec, name, id, false, tell)
}

/// The same for an operator, who says that the data are lost.
pub fn restore_lost(home: &Home, spec: &Spec, name: &str, id: &str, tell: Tell) -> Result<String> {
    put_back(home, spec, name, id, true, tell)
}

fn put_back(home: &Home, spec: &Spec, name: &str, id: &str, lost: bool, tell: Tell) -> Result<String> {
    if let Some(intent) = read_intent(home)? {
        finish_restore(home)?;
        if (intent.backup.as_str(), intent.id.as_str()) == (name, id) {
            return Ok(intent.displaced);
        }
    }
    if lost {
        durable::make_dirs(&spec.data_dir, 0o700, home.owner().on("read", home.root())?)?;
    } else if !spec.data_dir.exists() {
        return Err(unmounted(&spec.data_dir));
    }
    let site = Site::find(home, spec)?;
    let backups = site.backups()?;
    if let Some((done, _, _)) = backups.iter().find(|(_, _, header)| header.restore.as_deref() == Some(id)) {
        return Ok(done.clone());
    }
    let is_node_s = |name: &OsString| {
        !look::is_ours_in_data(Path::new(name)) && !site.own_names.iter().any(|own| own == name.as_bytes())
    };
    if !lost && !names(&site.data)?.iter().any(is_node_s) {
        return Err(unmounted(&site.data));
    }
    let backup = backups
        .iter()
        .find(|(found, _, _)| found == name)
        .map(|(_, dir, _)| dir)
        .ok_or_else(|| Error::failed(format!("there is no complete backup named {name}")))?;
    let intent = prepare(home, &site, backup, name, id, tell)?;
    finish_restore(home)?;
    Ok(intent.displaced)
}

fn unmounted(data: &Path) -> Error {
    Error::failed(format!(
        "nothing of a node is in the data directory {}: mount it (or, when its data are lost indeed, make a directory geth in it), and the backup is put back",
        data.display()
    ))
}

/// Builds the new tree beside the data and writes down what is to happen. Nothing in the data is touched.
pub(super) fn prepare(home: &Home, site: &Site, backup: &Path, name: &str, id: &str, tell: Tell) -> Result<Intent> {
    let bytes = unchanged(backup, name)?;
    let kept = kept(site);
    let place = beside(site)?;
    let means = backup.parent().and_then(|from| trial(from, &place).ok().flatten()).unwrap_or(How::Copy);
    let source = backup.join("data");
    let rules = |aim| Rules { aim, means, own: Vec::new(), kept: kept.clone(), plans: Vec::new() };
    let (tally, _) = Walk::new(rules(Aim::Forecast), &source, &place, &mut |_| ()).run(None)?;
    room(&place, &tally, "the restore", "make room")?;
    let partial = Partial::open(&place, &format!("{PARTIAL}{BEFORE}-{}", file_name(id)), site.owner)?;
    let (_partial, intent) = partial.fill(|partial| {
        let target = partial.data()?;
        Walk::new(rules(Aim::Whole), &source, &partial.path, tell).of(Some(bytes)).run(Some(&target))?;
        syncfs(&target.fd).on("sync", &partial.path)?;
        owned(&[&site.data, &partial.path, &partial.path.join("data")], site.owner)?;
        let created = rfc3339(unix_now());
        Ok(Intent {
            version: 1,
            backup: name.to_owned(),
            id: id.to_owned(),
            displaced: free_name(&site.places(), &base_name(BEFORE, &created)?)?,
            created,
            data: shown(home, &site.data),
            partial: shown(home, &partial.path),
            head: look::read_known(home).head.map(|head| head.number),
            release: home.current_release().ok(),
            becomes: header(backup)?.head,
            unlisted: false,
            exchange: exchange(site, partial, &target.fd, kept.clone())?,
        })
    })?;
    write_intent(home, &intent, site.owner)?;
    Ok(intent)
}

/// Ends an interrupted exchange, wherever it was cut short; nothing to do is success.
pub fn finish_restore(home: &Home) -> Result<()> {
    let Some(mut intent) = read_intent(home)? else { return Ok(()) };
    let owner = home.owner().on("read", home.root())?;
    let data = path(home, &intent.data)?;
    let partial = path(home, &intent.partial)?;
    let place = partial.parent().unwrap_or(Path::new("/")).to_owned();
    // It lies where who runs the node can write, and root may follow it.
    let broken = |text: &str, why: &str| Err(Error::failed(format!("restore.json is broken: {text:?} is {why}")));
    if !is_name(&intent.displaced) {
        return broken(&intent.displaced, "no name of a backup");
    }
    let Some(name) = partial.file_name().and_then(|name| name.to_str()).filter(|name| is_of_restore(name)) else {
        return broken(&intent.partial, "no unfinished backup of a restore");
    };
    let displaced = place.join(&intent.displaced);
    if partial.symlink_metadata().is_ok() {
        owned(&[&data, &partial, &partial.join("data")], owner)?;
        let partial = Partial::open(&place, name, owner)?;
        if let Exchange::Whole { inode } = intent.exchange
            && !exchange_whole(&data, &partial, inode)?
        {
            // The kernel refused and nothing has changed: name by name instead. Where that cannot be, every try would end
            // here: the restore is given up.
            if let Err(e) = writable(&data, &partial.path.join("data"), |_| false) {
                durable::remove_file(&home.restore())?;
                return partial.fill(|_| Err::<(), _>(e)).map(drop);
            }
            let target = open_dir(&partial.fd, DATA).on("read", &partial.path)?;
            intent.exchange = Exchange::Entries { new: inodes(&target, &partial.path.join("data"))?, kept: Vec::new() };
            write_intent(home, &intent, owner)?;
        }
        if let Exchange::Entries { new, kept } = &intent.exchange {
            exchange_entries(&data, &partial, new, kept)?;
        }
        // The data are right by now: a manifest that cannot be written must not cost the node. But it is tried twice.
        if let Err(e) = list(&partial, &intent, owner) {
            let again = Intent { unlisted: true, ..intent.clone() };
            if !intent.unlisted && write_intent(home, &again, owner).is_ok() {
                return Err(e);
            }
            let _ = fs::remove_file(partial.path.join(MANIFEST));
            let _ = writeln!(
                std::io::stderr(),
                "wemixvisor: warning: {e}: what was replaced is kept as {} without a manifest, and is no backup",
                displaced.display()
            );
        }
        fsync(&partial.fd).on("sync", &partial.path)?;
        partial.rename(&intent.displaced)?;
    } else if displaced.symlink_metadata().is_err() {
        return Err(Error::failed(format!(
            "the restore of {} cannot be finished: neither {} nor {} is there, is its file system mounted?",
            intent.backup,
            partial.display(),
            displaced.display()
        )));
    }
    note_in_record(home)?;
    know(home, &intent, owner)?;
    durable::remove_file(&home.restore())
}

/// The backup and the data directory of the exchange that was interrupted, if one was.
pub fn interrupted(home: &Home) -> Result<Option<(String, PathBuf)>> {
    let Some(intent) = read_intent(home)? else { return Ok(None) };
    Ok(Some((intent.backup, path(home, &intent.data)?)))
}

/// The last known head is that of the data: a higher one would make plans due that are not.
fn know(home: &Home, intent: &Intent, owner: Owner) -> Result<()> {
    let mut known = look::read_known(home);
    // A backup that does not know its head is no reason to forget that there was one.
    let Some(number) = intent.becomes else { return Ok(()) };
    let release =
        intent.release.clone().or(known.head.as_ref().map(|head| head.release.clone())).unwrap_or(Release::Genesis);
    // When the chain was there, the backup does not say; lower than what was told before, it takes nothing back.
    known.highest = known.highest_with(&Head { number, seen: 0, release: release.clone() });
    known.head = Some(Head { number, seen: unix_now(), release });
    let text = serde_json::to_vec(&known).on("write", &home.state())?;
    durable::replace_file(&home.state(), &text, 0o600, owner)
}

/// However cleanly the last node ended: these are not the data that it ended with, and a validator's next start is held as
/// after an end that nobody saw.
fn note_in_record(home: &Home) -> Result<()> {
    const NOTE: &str = "; then its data were replaced";
    let Some(mut record) = shim::read_record(home) else { return Ok(()) };
    match &mut record.ended {
        Some(ended) if !ended.ends_with(NOTE) => ended.push_str(NOTE),
        Some(_) | None => return Ok(()),
    }
    shim::write_record(&shim::open_lock(home)?, &home.data_lock(), &record, true)
}

/// Finds out whether a backup is as it was when it was made, as far as names, sizes and times tell. Returns its bytes.
fn unchanged(backup: &Path, name: &str) -> Result<u64> {
    let mut manifest = Manifest::open(backup)?;
    let dir = backup.join("data");
    let data = walk::top(&dir)?;
    let fault = |what: &str| Err(Error::failed(format!("backup {name} cannot be restored: {what}")));
    while let Some((entry, path)) = manifest.next()? {
        let Some(there) = walk::stat_below(data.as_fd(), &dir, &path)? else {
            return fault(&format!("{} is gone", entry.path));
        };
        let same = match entry.how {
            // A node that wrote to a linked file wrote to the backup.
            How::Link => is_same(&entry, &there),
            How::Reflink | How::Copy => u64::try_from(there.st_size) == Ok(entry.size),
        };
        if !same {
            return fault(&format!("{} was changed since it was made", entry.path));
        }
    }
    Ok(manifest.totals().bytes)
}

/// Root moves only what belongs to the owner of the home, or to itself: what is said in a file that the owner writes is not
/// enough. In a home of its own it has said so itself.
fn owned(paths: &[&Path], owner: Owner) -> Result<()> {
    if !rustix::process::geteuid().is_root() || owner.uid == 0 {
        return Ok(());
    }
    for path in paths {
        let uid = match fs::symlink_metadata(path) {
            Ok(meta) => meta.uid(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).on("read", path),
        };
        if uid != 0 && uid != owner.uid {
            return Err(Error::failed(format!(
                "{} belongs to user {uid}, the home to user {}: nothing is exchanged; chown one of them",
                path.display(),
                owner.uid
            )));
        }
    }
    Ok(())
}

/// Whether everything at the top of both trees can be moved to the other: a directory that is moved gets another parent
/// written into it, which needs a write permission on it, too.
fn writable(data: &Path, new: &Path, stays: impl Fn(&[u8]) -> bool) -> Result<()> {
    for tree in [data, new] {
        let top = names(tree)?.into_iter().filter(|name| !stays(name.as_bytes())).map(|name| tree.join(name));
        for path in std::iter::once(tree.to_owned()).chain(top) {
            let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
            if is_dir
                && let Err(e @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) =
                    accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS)
            {
                return Err(Error::failed(format!(
                    "{} cannot be moved: {e}; nothing was changed, chmod u+w it",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// What stays in the data, whatever the backup has: our own folders, the plans that are known now, what is the file system's,
/// and a live etcd, whose log must not go back behind what it told the other members.
fn kept(site: &Site) -> Vec<Vec<u8>> {
    let mut kept = site.own_names.clone();
    kept.extend(site.plan_names());
    for name in [b"etcd", LOST_AND_FOUND] {
        if site.data.join(OsStr::from_bytes(name)).symlink_metadata().is_ok() {
            kept.push(name.to_vec());
        }
    }
    kept
}

/// A place from which trees can be moved into the data.
fn beside(site: &Site) -> Result<PathBuf> {
    for place in site.places() {
        durable::make_dirs(&place, 0o700, site.owner)?;
        if movable(&site.data, &place)? {
            return Ok(place);
        }
    }
    Err(Error::failed(format!("nothing can be moved into {} from a directory in it", site.data.display())))
}

/// How the new tree gets into the data's place.
fn exchange(site: &Site, partial: &Partial, new: &OwnedFd, kept: Vec<Vec<u8>>) -> Result<Exchange> {
    let here = names(&site.data)?;
    let stays = |name: &[u8]| name.starts_with(b".wemixvisor-") || kept.iter().any(|kept| kept == name);
    let moved = || here.iter().filter(|name| !stays(name.as_bytes())).map(|name| site.data.join(name));
    if let Some(other) = fixed_in_place(&site.data, &moved().collect::<Vec<_>>())? {
        return Err(Error::failed(format!(
            "{} is a file system of its own inside the data directory and cannot be exchanged: copy the backup there by hand",
            other.display()
        )));
    }
    let inside = partial.path.starts_with(&site.data);
    if !inside && site.data.parent().is_some() && !here.iter().any(|name| stays(name.as_bytes())) {
        return Ok(Exchange::Whole { inode: fstat(new).on("read", &partial.path)?.st_ino });
    }
    writable(&site.data, &partial.path.join("data"), stays)?;
    Ok(Exchange::Entries {
        new: inodes(new, &partial.path.join("data"))?,
        kept: kept.iter().map(|name| encode(name)).collect(),
    })
}

/// The first of what is to be moved out of the data that cannot be: a mounted file system would go with what is moved, and come
/// back elsewhere at the next boot.
pub fn fixed_in_place(data: &Path, moved: &[PathBuf]) -> Result<Option<PathBuf>> {
    let device = fs::metadata(data).on("read", data)?.dev();
    let subvolume = moved.iter().find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.dev() != device));
    let mounts = fs::read("/proc/self/mountinfo").on("read", Path::new("/proc/self/mountinfo"))?;
    let mount = mount_points(&mounts).into_iter().find(|mount| moved.iter().any(|path| mount.starts_with(path)));
    Ok(subvolume.cloned().or(mount))
}

/// The mount points that the kernel lists: the fifth word of each line, where odd bytes stand as three octal digits.
fn mount_points(text: &[u8]) -> Vec<PathBuf> {
    let word = |line: &[u8]| {
        let mut parts = line.split(|byte| *byte == b' ').nth(4)?.split(|byte| *byte == b'\\');
        let mut path = parts.next()?.to_vec();
        for part in parts {
            let (octal, rest) = part.split_at_checked(3)?;
            path.push(
                octal.iter().fold(0_u8, |byte, digit| byte.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0'))),
            );
            path.extend_from_slice(rest);
        }
        Some(PathBuf::from(OsString::from_vec(path)))
    };
    text.split(|byte| *byte == b'\n').filter_map(word).collect()
}

fn inodes(dir: &OwnedFd, shown: &Path) -> Result<Vec<Named>> {
    let mut found = Vec::new();
    for name in names(shown)? {
        let stat = statat(dir, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW).on("read", &shown.join(&name))?;
        found.push(Named { name: encode(name.as_bytes()), inode: stat.st_ino });
    }
    Ok(found)
}

/// Exchanges the data directory itself. `false`: the kernel does not allow it here, and nothing has changed.
fn exchange_whole(data: &Path, partial: &Partial, inode: u64) -> Result<bool> {
    let parent = data.parent().unwrap_or(Path::new("/"));
    // Only to be passed through: it need not be readable.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = openat(CWD, parent, flags, rustix::fs::Mode::empty()).on("open", parent)?;
    let name = c_name(data.file_name().unwrap_or_default())?;
    if inode_of(&above, &name).on("read", data)? != Some(inode) {
        if inode_of(&partial.fd, DATA).on("read", &partial.path)? != Some(inode) {
            return Err(lost(data));
        }
        match renameat_with(&above, &name, &partial.fd, DATA, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(
                Errno::XDEV | Errno::BUSY | Errno::INVAL | Errno::NOSYS | Errno::ACCESS | Errno::PERM | Errno::ROFS,
            ) => {
                return Ok(false);
            }
            Err(e) => return Err(e).on("exchange", data),
        }
    }
    // Both sides, which are on one file system; also when an earlier try exchanged them, killed before this.
    syncfs(&partial.fd).on("sync", &partial.path)?;
    Ok(true)
}

/// Exchanges name by name; what only the data have is moved out.
fn exchange_entries(data: &Path, partial: &Partial, new: &[Named], kept: &[String]) -> Result<()> {
    let live = open_dir(CWD, data).on("read", data)?;
    let other = open_dir(&partial.fd, DATA).on("read", &partial.path)?;
    let old = make_dir(partial.fd.as_fd(), OLD).on("create the directory", &partial.path.join("old"))?.fd;
    let sync = || fsync(&live).and_then(|()| fsync(&other)).on("sync", data);
    for Named { name, inode } in new {
        let name = entry_name(name)?;
        let shown = data.join(OsStr::from_bytes(name.to_bytes()));
        let here = inode_of(&live, &name).on("read", &shown)?;
        if here != Some(*inode) {
            if inode_of(&other, &name).on("read", &shown)? != Some(*inode) {
                return Err(lost(&shown));
            }
            let exchanged = match here {
                None => rename_new(&other, &name, &live, &name),
                Some(_) => match renameat_with(&live, &name, &other, &name, RenameFlags::EXCHANGE) {
                    // It cannot exchange; the old one goes out of the way first.
                    Err(Errno::INVAL | Errno::NOSYS) => renameat(&live, &name, &old, &name)
                        .and_then(|()| fsync(&old))
                        .and_then(|()| renameat(&other, &name, &live, &name)),
                    done => done,
                },
            };
            exchanged.on("exchange", &shown)?;
        }
        sync()?;
        if inode_of(&old, &name).on("read", &shown)?.is_some() {
            rename_new(&old, &name, &other, &name).on("move", &shown)?;
            sync()?;
        }
    }
    for name in names(data)? {
        let written = encode(name.as_bytes());
        if name.as_bytes().starts_with(b".wemixvisor-")
            || kept.contains(&written)
            || new.iter().any(|new| new.name == written)
        {
            continue;
        }
        rename_new(&live, &c_name(&name)?, &other, &c_name(&name)?).on("move", &data.join(&name))?;
        sync()?;
    }
    drop(old);
    rustix::fs::unlinkat(&partial.fd, OLD, AtFlags::REMOVEDIR).on("remove", &partial.path.join("old"))
}

/// Writes the manifest of what was replaced.
fn list(partial: &Partial, intent: &Intent, owner: Owner) -> Result<()> {
    let header = Header {
        version: VERSION,
        id: None,
        upgrade: BEFORE.to_owned(),
        created: intent.created.clone(),
        head: intent.head,
        release: intent.release.clone(),
        mode: Mode::Snapshot,
        restore: Some(intent.id.clone()),
    };
    let path = partial.path.join(MANIFEST);
    let manifest = Writer::new(BufWriter::new(partial.manifest(owner)?), &header).on("write", &path)?;
    let rules = Rules { aim: Aim::List, means: How::Copy, own: Vec::new(), kept: Vec::new(), plans: Vec::new() };
    let mut quiet = |_| ();
    let walk = Walk::new(rules, &partial.path.join("data"), &partial.path, &mut quiet).with_manifest(manifest);
    end_manifest(walk.run(None)?.1, &path)
}

fn read_intent(home: &Home) -> Result<Option<Intent>> {
    let path = home.restore();
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).on("understand", &path).map_err(|e| {
            let advice =
                "it says which data take whose place: if the data directory holds the data to run on, move it away";
            Error::failed(format!("{e}; {advice}"))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).on("read", &path),
    }
}

fn write_intent(home: &Home, intent: &Intent, owner: Owner) -> Result<()> {
    let path = home.restore();
    let text = serde_json::to_string(intent).on("write", &path)?;
    durable::replace_file(&path, text.as_bytes(), 0o600, owner)
}

/// The inode of a name, if there is such a name.
fn inode_of(dir: &OwnedFd, name: &CStr) -> rustix::io::Result<Option<u64>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn lost(path: &Path) -> Error {
    Error::failed(format!(
        "the restore cannot be finished: what belongs at {} is on neither side, somebody moved it",
        path.display()
    ))
}

/// A name at the top of the data, from `restore.json`.
fn entry_name(text: &str) -> Result<CString> {
    let name = decode(text).filter(|name| !name.contains(&b'/') && !matches!(name.as_slice(), b"" | b"." | b".."));
    let name = name.ok_or_else(|| Error::failed(format!("restore.json is broken: {text:?} is no name")))?;
    c_name(OsStr::from_bytes(&name))
}

/// A path as `restore.json` has it: a home may be moved.
fn shown(home: &Home, path: &Path) -> String {
    let root = fs::canonicalize(home.root()).unwrap_or_else(|_| home.root().to_owned());
    let inside = path.strip_prefix(home.root()).or_else(|_| path.strip_prefix(&root)).unwrap_or(path);
    encode(inside.as_os_str().as_bytes())
}

fn path(home: &Home, text: &str) -> Result<PathBuf> {
    let path = decode(text).ok_or_else(|| Error::failed(format!("restore.json is broken: {text:?} is no path")))?;
    Ok(home.root().join(OsStr::from_bytes(&path)))
}

/// An id as part of a file name.
fn file_name(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' }).take(100).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_an_interrupted_restore_is_frozen() {
        let whole = Intent {
            version: 1,
            backup: "v2-20260101-000000".to_owned(),
            id: "v2-1767225600".to_owned(),
            created: "2026-01-01T00:10:00Z".to_owned(),
            data: "/srv/chain%25".to_owned(),
            partial: "backups/.partial-before-restore-v2-1767225600".to_owned(),
            displaced: "before-restore-20260101-001000".to_owned(),
            head: Some(99),
            release: Some(Release::Genesis),
            becomes: Some(90),
            unlisted: false,
            exchange: Exchange::Whole { inode: 4711 },
        };
        let new = vec![Named { name: "geth".to_owned(), inode: 12 }, Named { name: "%FF".to_owned(), inode: 13 }];
        let kept = vec![".wemixvisor-backups".to_owned(), "etcd".to_owned()];
        let entries = Intent { data: "data".to_owned(), exchange: Exchange::Entries { new, kept }, ..whole.clone() };
        let frozen: Vec<&str> = include_str!("../../../fixtures/restore.json").lines().collect();
        for (intent, line) in [whole, entries].iter().zip(&frozen) {
            assert_eq!(serde_json::to_string(intent).unwrap(), *line);
            assert_eq!(&serde_json::from_slice::<Intent>(line.as_bytes()).unwrap(), intent);
        }
        assert_eq!(frozen.len(), 2);
    }

    #[test]
    fn mount_points_are_read_with_their_odd_bytes() {
        let text =
            b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n22 1 0:2 / / rw - tmpfs x rw\n";
        assert_eq!(mount_points(text), [PathBuf::from("/mnt/a b"), PathBuf::from("/")]);
    }
}
