//! Fetches a release: from the web or a file, into `staging/`, hashed while it is written, checked, unpacked where it is an
//! archive, and then, whole and synced, by one rename into `upgrades/<name>`. What was cut short goes on where it stopped, or
//! begins anew.

pub mod archive;
mod digest;
mod install;
pub mod origin;
mod part;
pub mod web;

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use self::part::clear_rest;
use self::part::{CHUNK, Part, clear_leftovers, remove_any};
use self::web::{Fault, SILENCE, Web};
use super::{Progress, check, durable};
use crate::config::show_size;
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Release};
use crate::source::{Checksum, Link, Place, Source};

/// The largest index that is read.
const INDEX_MAX: u64 = 1 << 20;

/// The slowest that is put up with, in bytes a second over [`SILENCE`].
const PACE_MIN: u64 = 1 << 10;

/// How often room is looked at again: others take it too, and not everybody says how much will come.
const ROOM_AGAIN: u64 = 1 << 20;

/// By which first bytes archives are known that are not taken, and what they are.
const OTHER_ARCHIVES: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a zip archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
];

/// What is wrong with an empty file.
const NOTHING: &str = "nothing came";

/// Where the tar form has its name, by which an archive without gzip is known.
const TAR_NAME: (usize, &[u8]) = (257, b"ustar");

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// Which release to fetch, and from where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The release that it becomes.
    pub release: Release,
    /// Where it is.
    pub source: Source,
    /// DAEMON_DOWNLOAD_RETRIES.
    pub retries: u32,
    /// UNSAFE_SKIP_CHECKSUM.
    pub skip_checksum: bool,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The release is there now: so many bytes came.
    Installed(u64),
    /// It is there, and somebody else has brought it.
    Present,
    /// What came was something else, and is gone. To try again would bring the same.
    WrongChecksum(String),
    /// What came is what it should be, and no release. To try again would bring the same.
    Unfit(String),
}

/// What is told while it goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum Sign {
    /// How far it is; now and then.
    Progress(Progress),
    /// Why it has to be tried again, and when that is.
    Retry(String),
}

/// Who is told.
pub type Tell<'a> = &'a mut dyn FnMut(Sign);

/// Fetches it. An error is for who tries again later.
pub fn fetch(home: &Home, spec: &Spec, tell: Tell) -> Result<Outcome> {
    let binary = home.binary(&spec.release);
    let other = origin::contradiction(home, &spec.release, &spec.source);
    match (binary.symlink_metadata(), binary.metadata()) {
        (Ok(_), Ok(_)) if other.is_some() => install::idle(home, &spec.release)?,
        (Ok(_), Ok(_)) => return Ok(Outcome::Present),
        (Ok(_), Err(e)) => return Err(e).on("use what is there already,", &binary),
        (Err(_), _) => {}
    }
    let owner = home.owner().on("read", home.root())?;
    let staging = home.staging();
    durable::make_dirs(&staging, 0o700, owner)?;
    let link = match &spec.source {
        Source::Binary(link) => link.clone(),
        Source::Index(link) => match index(link, spec, tell)? {
            Ok(link) => link,
            Err(wrong) => return Ok(Outcome::WrongChecksum(wrong)),
        },
    };
    link.trusted(spec.skip_checksum).map_err(Error::usage)?;
    let mut part = Part::open(&staging, spec, &link, owner)?;
    // What is gone on with is held by now, however old it is.
    clear_leftovers(&staging);
    let outcome = bring(home, spec, &mut part, &link, tell);
    part.end();
    if let Ok(Outcome::Installed(_) | Outcome::Present) = outcome {
        clear_rest(home, &spec.release);
    }
    outcome
}

/// Goes on with a part until it is a release.
fn bring(home: &Home, spec: &Spec, part: &mut Part, link: &Link, tell: Tell) -> Result<Outcome> {
    // All of it may be there already.
    if (part.have == 0 || part.finish()?.is_some())
        && let Some(sum) = obtain(part, link, spec.retries, tell)?
    {
        return Ok(Outcome::WrongChecksum(wrong(link, &sum)));
    }
    let bytes = part.have;
    let made = release(home, spec, part, link)?;
    part.remove();
    match made {
        Made::Here => Ok(Outcome::Installed(bytes)),
        Made::ByOthers => Ok(Outcome::Present),
        Made::Not(why) if part.checksum.is_some() => Ok(Outcome::Unfit(why)),
        Made::Not(why) => Err(Error::failed(why)),
    }
}

/// What became of a file that has come.
enum Made {
    Here,
    ByOthers,
    /// It is no release, for this reason.
    Not(String),
}

fn wrong(link: &Link, sum: &Checksum) -> String {
    let wanted = link.checksum.as_ref().map_or_else(String::new, ToString::to_string);
    format!("{link} is not what it should be: its checksum is {sum}, it should be {wanted}; it was removed")
}

/// Makes a release of a file that has come.
fn release(home: &Home, spec: &Spec, part: &mut Part, link: &Link) -> Result<Made> {
    let tree = part.path.with_extension("tree");
    remove_any(&tree)?;
    let made = match plant(part, &spec.source, link, &tree, home.binary_name()) {
        Ok(()) => install::install(home, &spec.release, &spec.source, &tree, part.owner)
            .map(|ours| if ours { Made::Here } else { Made::ByOthers }),
        Err(archive::Fault::Disk(error)) => Err(error),
        Err(archive::Fault::Archive(why)) => Ok(Made::Not(why)),
    };
    let removed = remove_any(&tree);
    removed.and(made)
}

/// Makes the tree of a release.
fn plant(
    part: &mut Part,
    source: &Source,
    link: &Link,
    tree: &Path,
    name: &str,
) -> std::result::Result<(), archive::Fault> {
    let binary = tree.join("bin").join(name);
    let unfit = |why: String| archive::Fault::Archive(format!("{link} {why}"));
    if archive::is_one(&mut part.file).on("read", &part.path)? {
        let wrong = |why: String| unfit(format!("is no archive of a release: {why}"));
        let bytes = archive::survey(&mut part.file).map_err(|e| wrong(e.to_string()))?;
        part.room(bytes).map_err(|error| about(link, &error.message))?;
        archive::unpack(&mut part.file, tree, name).map_err(|fault| match fault {
            archive::Fault::Archive(why) => wrong(why),
            archive::Fault::Disk(error) => archive::Fault::Disk(error),
        })?;
    } else {
        if let Some(what) = other_archive(&part.file).on("read", &part.path)? {
            return Err(unfit(format!("is {what}, which is not taken: give the binary itself or a .tar.gz")));
        }
        part.room(part.have).map_err(|error| about(link, &error.message))?;
        archive::make_dir(tree)?;
        archive::make_dir(&tree.join("bin"))?;
        part.close()?;
        match fs::hard_link(&part.path, &binary) {
            Ok(()) => {
                fs::set_permissions(&binary, Permissions::from_mode(0o755)).on("set the mode of", &binary)?;
                archive::sync(tree)?;
            }
            Err(_) => durable::install_file(&part.path, &binary, 0o755, part.owner)?,
        }
    }
    let inside = binary.display().to_string();
    check::executable_file(&binary).map_err(|why| archive::Fault::Archive(why.replace(&inside, &link.to_string())))?;
    Ok(origin::write(tree, &binary, source, link, part.owner)?)
}

/// What sort of archive a file is, where it is one that is not taken.
fn other_archive(file: &File) -> std::io::Result<Option<&'static str>> {
    let mut start = vec![0; TAR_NAME.0 + TAR_NAME.1.len()];
    let n = file.read_at(&mut start, 0)?;
    start.truncate(n);
    let known = OTHER_ARCHIVES.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| *what);
    let tar = start.get(TAR_NAME.0..) == Some(TAR_NAME.1);
    Ok(known.or(tar.then_some("a tar archive without gzip")))
}

/// What stops a try: something that a little patience may mend, or the rest.
enum Stop {
    Passing(String),
    Lasting(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Lasting(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        match fault {
            Fault::Passing(why) => Stop::Passing(why),
            Fault::Lasting(why) | Fault::NoPart(why) => Stop::Lasting(Error::failed(why)),
        }
    }
}

fn about(link: &Link, why: &str) -> Error {
    Error::failed(format!("cannot fetch {link}: {why}"))
}

/// Tries as often as the operator wants, with growing pauses.
fn with_retries<T>(
    link: &Link,
    retries: u32,
    tell: Tell,
    mut attempt: impl FnMut(Tell) -> std::result::Result<T, Stop>,
) -> Result<T> {
    let mut tried = 0;
    loop {
        match attempt(tell) {
            Ok(done) => return Ok(done),
            Err(Stop::Lasting(error)) => return Err(about(link, &error.message)),
            Err(Stop::Passing(why)) if tried >= retries => {
                let times = if tried == 0 { String::new() } else { format!(" (tried {} times)", tried + 1) };
                return Err(about(link, &format!("{why}{times}")));
            }
            Err(Stop::Passing(why)) => {
                let pause = Duration::from_secs(1 << tried.min(6)).min(PAUSE_MAX);
                tell(Sign::Retry(format!("{}; another try in {} s", about(link, &why).message, pause.as_secs())));
                std::thread::sleep(pause);
                tried += 1;
            }
        }
    }
}

/// Brings the whole file; its checksum where that is wrong, and would be wrong again.
fn obtain(part: &mut Part, link: &Link, retries: u32, tell: Tell) -> Result<Option<Checksum>> {
    match &link.place {
        Place::File(path) => {
            part.restart()?;
            let (mut source, meta) = check::plain_file(path).on("fetch", path)?;
            let length = meta.len();
            let copied =
                part.takes(length).map_err(Stop::from).and_then(|()| copy(part, &mut source, Some(length), tell));
            copied.map_err(|stop| match stop {
                Stop::Passing(why) => about(link, &why),
                Stop::Lasting(error) => about(link, &error.message),
            })?;
            let sum = part.finish()?;
            if sum.is_some() {
                part.restart()?;
            }
            Ok(sum)
        }
        Place::Web(url) => {
            let web = Web::new().map_err(|fault| stopped(link, fault))?;
            with_retries(link, retries, tell, |tell| {
                loop {
                    let doubt = from_web(part, &web, url, tell)?;
                    let Some(sum) = part.finish()? else { return Ok(None) };
                    let resumed = part.resumed;
                    part.restart()?;
                    match doubt {
                        // Its first bytes may be of another time, or of a disk that failed: once more, from the beginning.
                        _ if resumed => {}
                        Some(doubt) => return Err(in_doubt(doubt, &sum)),
                        None => return Ok(Some(sum)),
                    }
                }
            })
        }
    }
}

fn stopped(link: &Link, fault: Fault) -> Error {
    let (Fault::Passing(why) | Fault::Lasting(why) | Fault::NoPart(why)) = fault;
    about(link, &why)
}

/// One try; why what came may be something else than the file, if it may.
fn from_web(part: &mut Part, web: &Web, url: &str, tell: Tell) -> std::result::Result<Option<&'static str>, Stop> {
    if part.have > 0 && part.checksum.is_none() && part.tag.is_none() {
        // Nobody could tell whether the two halves belong together.
        part.restart()?;
    }
    let reply = match web.get(url, part.have, part.tag.as_deref()) {
        // What is there may be too much, or the server cannot go on: from the beginning.
        Err(Fault::NoPart(_)) if part.have > 0 => {
            part.restart()?;
            web.get(url, 0, None)?
        }
        reply => reply?,
    };
    if reply.from != part.have {
        part.restart()?;
    }
    part.resumed = part.have > 0;
    if let Some(total) = reply.total {
        part.takes(total)?;
    }
    part.tag = reply.tag;
    copy(part, &mut { reply.body }, reply.total, tell)?;
    Ok(if part.have == 0 { Some(NOTHING) } else { reply.doubt })
}

/// One try over this web to go on with a file that has begun: all of it, and its sum when that is not as it should be.
#[cfg(any(test, fuzzing))]
pub fn try_once(
    home: &Home,
    spec: &Spec,
    web: &Web,
    begun: &[u8],
    tag: Option<&str>,
) -> Result<(Vec<u8>, Option<Checksum>)> {
    let link = spec.source.link();
    let Place::Web(url) = &link.place else { return Err(about(link, "it is not on the web")) };
    let owner = home.owner().on("read", home.root())?;
    durable::make_dirs(&home.staging(), 0o700, owner)?;
    let mut part = Part::open(&home.staging(), spec, link, owner)?;
    part.restart()?;
    part.add(begun.to_vec(), begun.len())?;
    part.tag = tag.map(str::to_owned);
    with_retries(link, 0, &mut |_| (), |tell| from_web(&mut part, web, url, tell))?;
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut part.file).and_then(|()| part.file.read_to_end(&mut bytes)).on("read", &part.path)?;
    Ok((bytes, part.finish()?))
}

/// Takes all that comes, as long as that is fast enough.
fn copy(part: &mut Part, from: &mut dyn Read, total: Option<u64>, tell: Tell) -> std::result::Result<(), Stop> {
    let mut chunk = vec![0; CHUNK];
    let mut pace = Pace::new(Instant::now());
    let mut told = None;
    let mut room_at = part.have;
    tell(Sign::Progress(Progress { files: 0, bytes: part.have, of: total }));
    loop {
        let n = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(broken(e)),
        };
        chunk = part.add(chunk, n)?;
        let now = Instant::now();
        if let Err(slow) = pace.add(now, n as u64) {
            return Err(Stop::Passing(slow));
        }
        if told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            told = Some(now);
            tell(Sign::Progress(Progress { files: 0, bytes: part.have, of: total }));
        }
        if part.have >= room_at {
            room_at = part.have + ROOM_AGAIN;
            part.room(total.map_or(ROOM_AGAIN, |total| total.saturating_sub(part.have)))?;
        }
    }
    tell(Sign::Progress(Progress { files: 0, bytes: part.have, of: total }));
    match total {
        Some(total) if part.have != total => {
            let (have, total) = (show_size(part.have), show_size(total));
            Err(Stop::Passing(format!("it ended after {have} of {total}")))
        }
        Some(_) | None => Ok(()),
    }
}

fn in_doubt(doubt: &str, sum: &Checksum) -> Stop {
    Stop::Passing(format!("{doubt} (what came has the checksum {sum})"))
}

/// Why a body ended before its time.
fn broken(error: std::io::Error) -> Stop {
    let fault = match error.downcast::<ureq::Error>() {
        Ok(error) => web::fault(&error),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            Fault::Passing("the connection ended early".to_owned())
        }
        Err(error) => Fault::Passing(error.to_string()),
    };
    fault.into()
}

/// Whether what comes is fast enough.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { since: now, bytes: 0 }
    }

    fn add(&mut self, now: Instant, bytes: u64) -> std::result::Result<(), String> {
        self.bytes += bytes;
        if now.duration_since(self.since) < SILENCE {
            return Ok(());
        }
        if self.bytes < PACE_MIN * SILENCE.as_secs() {
            return Err(format!("only {} came in {} s", show_size(self.bytes), SILENCE.as_secs()));
        }
        *self = Pace::new(now);
        Ok(())
    }
}

/// What an index says; the inner error is that it is not the file that it should be.
fn index(link: &Link, spec: &Spec, tell: Tell) -> Result<std::result::Result<Link, String>> {
    link.trusted(spec.skip_checksum).map_err(Error::usage)?;
    let mut text = Vec::new();
    match &link.place {
        Place::File(path) => {
            let (file, _) = check::plain_file(path).on("fetch", path)?;
            file.take(INDEX_MAX + 1).read_to_end(&mut text).on("read", path)?;
        }
        Place::Web(url) => {
            let web = Web::new().map_err(|fault| stopped(link, fault))?;
            text = with_retries(link, spec.retries, tell, |_| {
                let mut text = Vec::new();
                let reply = web.get(url, 0, None)?;
                let doubt = reply.doubt;
                let mut body = reply.body.take(INDEX_MAX + 1);
                let mut chunk = [0; 4096];
                let mut pace = Pace::new(Instant::now());
                loop {
                    let n = match body.read(&mut chunk) {
                        Ok(0) => break,
                        Ok(n) => n,
                        Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                        Err(e) => return Err(broken(e)),
                    };
                    text.extend_from_slice(chunk.get(..n).unwrap_or_default());
                    pace.add(Instant::now(), n as u64).map_err(Stop::Passing)?;
                }
                let doubt = if text.is_empty() { Some(NOTHING) } else { doubt };
                match (other_sum(link, &text), doubt) {
                    (Some(sum), Some(doubt)) if text.len() as u64 <= INDEX_MAX => Err(in_doubt(doubt, &sum)),
                    _ => Ok(text),
                }
            })?;
        }
    }
    if text.len() as u64 > INDEX_MAX {
        return Err(about(
            link,
            &format!("it is larger than {}, too large for a list of binaries", show_size(INDEX_MAX)),
        ));
    }
    if let Some(sum) = other_sum(link, &text) {
        return Ok(Err(wrong(link, &sum)));
    }
    Source::of_index(&text).map(Ok).map_err(|why| Error::failed(format!("{link} {why}")))
}

/// The checksum of what came, where it is not the one that it should have.
fn other_sum(link: &Link, bytes: &[u8]) -> Option<Checksum> {
    let wanted = link.checksum.as_ref()?;
    let mut hasher = wanted.hasher();
    hasher.update(bytes);
    Some(hasher.sum()).filter(|sum| sum != wanted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_slowly_is_told_after_half_a_minute() {
        let began = Instant::now();
        let at = |s: u64| began + Duration::from_secs(s);
        let mut pace = Pace::new(began);
        assert!((0..30).all(|s| pace.add(at(s), 1).is_ok()), "nothing is judged before its time");
        assert!(pace.add(at(30), 1).unwrap_err().contains("31B came in 30 s"));
        let mut pace = Pace::new(began);
        assert!((0..300).all(|s| pace.add(at(s), 1100).is_ok()), "a kilobyte a second will do");
        assert!((300..340).any(|s| pace.add(at(s), 0).is_err()), "a burst at first does not count for ever");
    }
}
