//! Makes backups: the forecast, the copying ahead and the backup itself are one walk with three aims.

use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::place::{AHEAD, Partial, Site, base_name, mode, names, room};
use super::restore::fixed_in_place;
use super::tree::{Aim, Tally, Walk};
use super::{About, Forecast, Spec, Tell, restore_pending};
use crate::error::{Error, OnFile, Result};
use crate::home::Home;
use crate::journal::{rfc3339, unix_now};
use crate::manifest::{Header, How, VERSION, Writer};

/// What to do when there is no room.
const HELP: &str = "make room, or set DAEMON_DATA_BACKUP_DIR (UNSAFE_SKIP_BACKUP=true goes without a backup)";

/// The data, and where and how it is taken over.
struct Chosen {
    site: Site,
    place: PathBuf,
    means: How,
}

/// What would be done, and whether there is room. The node may run. An error says what stands in the way.
pub fn forecast(home: &Home, spec: &Spec) -> Result<Forecast> {
    let chosen = choose(home, spec)?;
    let (tally, free) = look(&chosen)?;
    Ok(Forecast {
        mode: mode(chosen.means),
        how: chosen.means,
        place: chosen.place,
        files: tally.files,
        bytes: tally.bytes,
        to_copy: tally.to_copy,
        down_copy: tally.down_copy,
        free,
        fixed: fixed(&chosen.site)?,
    })
}

/// What in the data could not be put back by a restore, whose exchange cannot move it.
fn fixed(site: &Site) -> Result<Option<PathBuf>> {
    let ours = |name: &[u8]| name.starts_with(b".wemixvisor-") || site.own_names.iter().any(|own| own == name);
    let moved = names(&site.data)?.into_iter().filter(|name| !ours(name.as_bytes()));
    fixed_in_place(&site.data, &moved.map(|name| site.data.join(name)).collect::<Vec<_>>())
}

/// Copies beforehand what must be copied and never changes again, while the node runs. `create` goes on from there.
/// Returns the bytes that it copied. What changed within the last second is left for later.
pub fn copy_ahead(home: &Home, spec: &Spec, tell: Tell) -> Result<u64> {
    let chosen = choose(home, spec)?;
    let (forecast, _) = look(&chosen)?;
    chosen.site.clear(Some((&chosen.place, AHEAD)))?;
    if forecast.to_copy == forecast.down_copy {
        return Ok(0);
    }
    let partial = Partial::open(&chosen.place, AHEAD, chosen.site.owner)?;
    let (_partial, tally) = partial.fill(|partial| {
        let rules = chosen.site.rules(Aim::Ahead, chosen.means);
        let target = partial.data()?;
        let (tally, _) = Walk::new(rules, &chosen.site.data, &partial.path, tell).run(Some(&target))?;
        Ok(tally)
    })?;
    Ok(tally.copied)
}

/// Makes a backup; the caller holds `data.lock` and no node lives. Returns its name. One with this id is adopted.
pub fn create(home: &Home, spec: &Spec, about: &About, tell: Tell) -> Result<String> {
    let chosen = choose(home, spec)?;
    let site = &chosen.site;
    if about.id.is_some() {
        let made = site.backups()?.into_iter().find(|(_, _, header)| header.id == about.id);
        if let Some((name, _, _)) = made {
            return Ok(name);
        }
    }
    let now = rfc3339(unix_now());
    let base = base_name(&about.upgrade, &now)?;
    site.clear(Some((&chosen.place, AHEAD)))?;
    let of = match chosen.means {
        // Hours of copying shall not end at a full disk.
        How::Copy => Some(look(&chosen)?.0.bytes),
        How::Reflink | How::Link => None,
    };
    let header = Header {
        version: VERSION,
        id: about.id.clone(),
        upgrade: about.upgrade.clone(),
        created: now,
        head: about.head,
        release: about.release.clone(),
        mode: mode(chosen.means),
        restore: None,
    };
    let partial = Partial::open(&chosen.place, AHEAD, site.owner)?;
    let (partial, ()) = partial.fill(|partial| {
        let path = partial.path.join(super::place::MANIFEST);
        let manifest = Writer::new(BufWriter::new(partial.manifest(site.owner)?), &header).on("write", &path)?;
        let target = partial.data()?;
        let rules = site.rules(Aim::Whole, chosen.means);
        let walk = Walk::new(rules, &site.data, &partial.path, tell).of(of).with_manifest(manifest);
        let (tally, manifest) = walk.run(Some(&target))?;
        not_empty(&tally, &site.data)?;
        super::end_manifest(manifest, &path)
    })?;
    partial.commit(site, &base)
}

fn choose(home: &Home, spec: &Spec) -> Result<Chosen> {
    if restore_pending(home) {
        return Err(Error::refused("a restore was interrupted: it must be finished before anything else"));
    }
    let site = Site::find(home, spec)?;
    covered(&site, spec)?;
    let (place, means) = site.choose(spec.mode)?;
    // Earlier backups are looked for in both places, whichever is chosen: that it cannot be done is better known now than when
    // the node is down.
    for place in site.places() {
        names(&place).map_err(|e| {
            Error::failed(format!("{e}: set DAEMON_DATA_BACKUP_DIR to a directory that can be read and written"))
        })?;
    }
    Ok(Chosen { site, place, means })
}

/// Walks through the data without touching it, and looks for room.
fn look(chosen: &Chosen) -> Result<(Tally, u64)> {
    let site = &chosen.site;
    let ahead = super::tree::open_dir(rustix::fs::CWD, chosen.place.join(AHEAD).join("data"));
    let ahead = ahead.ok().map(|fd| super::tree::Target { fd, fresh: false });
    let mut quiet = |_| ();
    let walk = Walk::new(site.rules(Aim::Forecast, chosen.means), &site.data, &chosen.place, &mut quiet);
    let (tally, _) = walk.run(ahead.as_ref())?;
    not_empty(&tally, &site.data)?;
    let free = room(&chosen.place, &tally, "the backup", HELP)?;
    Ok((tally, free))
}

fn not_empty(tally: &Tally, data: &Path) -> Result<()> {
    if tally.of_node == 0 {
        return Err(Error::failed(format!(
            "there is nothing to back up in {}: is it mounted? (UNSAFE_SKIP_BACKUP=true goes without a backup)",
            data.display()
        )));
    }
    Ok(())
}

/// An ancient store elsewhere would be missing in the backup.
fn covered(site: &Site, spec: &Spec) -> Result<()> {
    let Some(ancient) = spec.ancient.as_deref() else { return Ok(()) };
    // The node takes a relative one as below its own folder at the top of the data; `..` may lead out of there.
    let mut depth = Some(1_usize);
    for part in ancient.components() {
        depth = match part {
            Component::ParentDir => depth.and_then(|depth| depth.checked_sub(1)),
            Component::Normal(_) => depth.map(|depth| depth + 1),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => depth,
        };
    }
    let inside = match std::fs::canonicalize(ancient) {
        Ok(_) | Err(_) if ancient.is_relative() => depth.is_some(),
        Ok(real) => real.starts_with(&site.data),
        Err(_) => ancient.starts_with(&spec.data_dir) || ancient.starts_with(&site.data),
    };
    if inside {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the node keeps its ancient blocks in {}, outside of {}: no backup covers them (UNSAFE_SKIP_BACKUP=true goes without a backup)",
        ancient.display(),
        site.data.display()
    )))
}
