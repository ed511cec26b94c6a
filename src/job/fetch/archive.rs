//! Archives of releases: `.tar.gz`, of which nothing is trusted. Only regular files and directories are taken, only below the
//! directory that they are unpacked into, and only so many and so large. An archive is read through once before anything of
//! it is written, so that what is too much is found for the price of reading it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

use crate::config::show_size;
use crate::error::{Error, OnFile, Result, printable};
use crate::job::{check, durable};
use crate::manifest::encode;

/// The most that an archive may hold, in bytes.
const BYTES_MAX: u64 = 4 << 30;

/// The most things that it may hold.
const ENTRIES_MAX: u64 = 10_000;

/// How many times larger than itself its content may be; the first of it is not counted, for little text packs well.
const RATIO_MAX: u64 = 200;
const RATIO_FREE: u64 = 1 << 20;

/// The most that is said of one name: what longer names and other attributes are kept in.
const NOTE_MAX: u64 = 64 << 10;

/// The longest path in it, in bytes.
const PATH_MAX: usize = 1024;

/// What an archive of a release must not bring: who installs it writes this.
const STORED_PLAN: &str = "upgrade-info.json";

/// Whether a file is compressed as `.tar.gz` is: its first two bytes tell (RFC 1952).
pub fn is_one(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    file.rewind()?;
    file.take(2).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic == [0x1f, 0x8b])
}

/// Unpacks an archive that was surveyed into a new directory, synced, so that it is a release with `bin/<name>`: the
/// archive's own tree where that has it, else only the one binary that it holds. Whatever fails, the caller removes the
/// directory.
pub fn unpack(file: &mut File, into: &Path, name: &str) -> std::result::Result<(), Fault> {
    file.rewind().on("read", into)?;
    take(file, into)?;
    let binary = into.join("bin").join(name);
    if !is_file(&binary) {
        let chosen = choose(into, name)?.map_err(Fault::Archive)?;
        let aside = into.join(".chosen");
        fs::rename(&chosen, &aside).on("move", &chosen)?;
        for path in listed(into)?.into_iter().filter(|path| *path != aside) {
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.on("remove", &path)?;
        }
        make_dir(&into.join("bin"))?;
        fs::rename(&aside, &binary).on("move", &aside)?;
    }
    set_mode(&binary, 0o755)?;
    Ok(sync(into)?)
}

/// What is wrong.
pub enum Fault {
    /// The archive.
    Archive(String),
    /// The disk that it is written to.
    Disk(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Disk(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Archive(told(&error))
    }
}

fn told(error: &io::Error) -> String {
    let text = error.to_string();
    // In the words of who reads the tar form.
    let cut = ["unexpected EOF during skip", "failed to read entire block"].contains(&text.as_str());
    if cut || error.kind() == ErrorKind::UnexpectedEof {
        return "it is cut short".to_owned();
    }
    // They may quote the archive.
    printable(&text)
}

/// The content of an archive, as long as it is not too much for its size.
struct Content<'a> {
    inner: MultiGzDecoder<Counted<BufReader<&'a mut File>>>,
    packed: Rc<Cell<u64>>,
    bytes: u64,
}

struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }
}

impl<'a> Content<'a> {
    fn of(file: &'a mut File) -> Content<'a> {
        let packed = Rc::new(Cell::new(0));
        let counted = Counted { inner: BufReader::new(file), bytes: Rc::clone(&packed) };
        Content { inner: MultiGzDecoder::new(counted), packed, bytes: 0 }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.bytes += n as u64;
        if self.bytes > BYTES_MAX {
            return Err(io::Error::other(format!("it holds more than {}", show_size(BYTES_MAX))));
        }
        if self.bytes > self.packed.get().saturating_mul(RATIO_MAX).saturating_add(RATIO_FREE) {
            return Err(io::Error::other(format!("its content is more than {RATIO_MAX} times its own size")));
        }
        Ok(n)
    }
}

/// Reads the whole archive and writes nothing: kinds, numbers and sizes of what it holds. Nothing is believed yet that one
/// entry says of the next. Tells how many bytes come out of it.
pub fn survey(file: &mut File) -> io::Result<u64> {
    let other = |why: String| Err(io::Error::other(why));
    file.rewind()?;
    let mut archive = Archive::new(Content::of(file));
    let mut count = 0;
    for entry in archive.entries().map_err(|e| io::Error::other(told(&e)))?.raw(true) {
        let mut entry = entry.map_err(|e| {
            let told = told(&e);
            let strange = told.contains("when getting cksum") || told.contains("checksum mismatch");
            io::Error::other(match (strange, count) {
                (false, _) => told,
                (true, 0) => "what is packed in it is no tar archive".to_owned(),
                (true, _) => format!("it is damaged behind its entry {count}"),
            })
        })?;
        count += 1;
        if count > ENTRIES_MAX {
            return other(format!("it holds more than {ENTRIES_MAX} things"));
        }
        let name = encode(&entry.path_bytes());
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader => {
                if entry.size() > NOTE_MAX {
                    return other(format!("a name in it is longer than {}", show_size(NOTE_MAX)));
                }
                let mut note = Vec::new();
                entry.read_to_end(&mut note).map_err(|e| io::Error::other(told(&e)))?;
                let says = |key: &[u8]| note.windows(key.len()).any(|part| part == key);
                // Either would make the next entry another one than the one that was looked at here.
                if kind != EntryType::GNULongName && (says(b" size=") || says(b" GNU.sparse.")) {
                    return other(format!("{name} gives a size in a way that is not taken"));
                }
            }
            EntryType::Symlink | EntryType::Link | EntryType::GNULongLink => {
                return other(format!("{name} is a link; only files and directories are taken"));
            }
            EntryType::GNUSparse => return other(format!("{name} is a sparse file; only plain files are taken")),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return other(format!("{name} is a device or a FIFO; only files and directories are taken"));
            }
            _ => return other(format!("{name} is of an unknown kind; only files and directories are taken")),
        }
    }
    if count == 0 {
        return other("it holds nothing".to_owned());
    }
    // To the end: there stands the sum of all that was read.
    let mut content = archive.into_inner();
    match io::copy(&mut content, &mut io::sink()) {
        Ok(_) => Ok(content.bytes),
        Err(e) if e.to_string() == "invalid gzip header" => other("there is something behind its end".to_owned()),
        Err(e) => other(told(&e)),
    }
}

/// Writes what an archive holds below a new directory.
fn take(file: &mut File, into: &Path) -> std::result::Result<(), Fault> {
    make_dir(into)?;
    let mut archive = Archive::new(Content::of(file));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let header = entry.header();
        let kind = header.entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        // A directory's name may end in a slash where its kind says file: the oldest form of tar.
        let is_dir = kind == EntryType::Directory || entry.path_bytes().ends_with(b"/");
        let inside = inside(&entry.path_bytes()).map_err(Fault::Archive)?;
        if inside.as_os_str().is_empty() || inside == Path::new(STORED_PLAN) {
            continue;
        }
        let path = into.join(&inside);
        if is_dir {
            make_dirs(into, &path)?;
            continue;
        }
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            return Err(Fault::Archive(format!("{} is no plain file", encode(inside.as_os_str().as_bytes()))));
        }
        let mode = if header.mode()? & 0o111 == 0 { 0o644 } else { 0o755 };
        if let Some(above) = path.parent() {
            make_dirs(into, above)?;
        }
        let mut out = match File::options().write(true).create_new(true).mode(mode).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => return Err(both(&inside)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(Fault::Archive(format!("{} is in it twice", encode(inside.as_os_str().as_bytes()))));
            }
            made => made.on("create", &path)?,
        };
        let mut chunk = vec![0; 64 << 10];
        loop {
            let n = entry.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            io::Write::write_all(&mut out, chunk.get(..n).unwrap_or_default()).on("write", &path)?;
        }
        set_mode(&path, mode)?;
    }
    Ok(())
}

/// A path that stays below where it is put.
fn inside(path: &[u8]) -> std::result::Result<PathBuf, String> {
    let shown = || encode(path.get(..path.len().min(100)).unwrap_or_default());
    if path.len() > PATH_MAX {
        return Err(format!("a path in it is longer than {PATH_MAX} bytes: {}…", shown()));
    }
    if path.starts_with(b"/") {
        return Err(format!("{} is an absolute path", shown()));
    }
    let mut inside = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(format!("{} leads out of it", shown())),
            part if part.contains(&0) || part.len() > 255 => return Err(format!("{} is no path", shown())),
            part => inside.push(std::ffi::OsStr::from_bytes(part)),
        }
    }
    Ok(inside)
}

/// The binary in a tree that has none at its place: the one of this name, else the only one that can be executed.
fn choose(tree: &Path, name: &str) -> Result<std::result::Result<PathBuf, String>> {
    let mut files = Vec::new();
    all_files(tree, &mut files)?;
    let named: Vec<&PathBuf> = files.iter().filter(|path| path.file_name().is_some_and(|n| n == name)).collect();
    let can = |path: &&PathBuf| check::executable_file(path).is_ok();
    let marked = |path: &&PathBuf| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
    // None may have the name, or more than one: those that can be executed, and of them those that are marked for it.
    let nameless = named.is_empty();
    let mut chosen = if nameless { files.iter().filter(can).collect() } else { named };
    if !nameless && chosen.len() > 1 && chosen.iter().any(can) {
        chosen.retain(can);
    }
    if chosen.len() > 1 && chosen.iter().any(marked) {
        chosen.retain(marked);
    }
    Ok(match chosen.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(format!("no file in it is {name}, and none can be executed here")),
        many => {
            let shown = |path: &&PathBuf| encode(path.strip_prefix(tree).unwrap_or(path).as_os_str().as_bytes());
            let some: Vec<String> = many.iter().take(5).map(shown).collect();
            Err(format!("which of its {} programs is {name}? ({})", many.len(), some.join(", ")))
        }
    })
}

fn all_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in listed(dir)? {
        if path.is_dir() { all_files(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).on("read", dir)?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry.on("read", dir)?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

/// Makes a directory and those above it, below the top; a file in the way is the archive's fault.
fn make_dirs(top: &Path, path: &Path) -> std::result::Result<(), Fault> {
    if path == top || path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_dirs(top, above)?;
    }
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotADirectory) => {
            Err(both(path.strip_prefix(top).unwrap_or(path)))
        }
        made => Ok(made.on("create the directory", path).and_then(|()| set_mode(path, 0o755))?),
    }
}

fn both(path: &Path) -> Fault {
    Fault::Archive(format!("{} is both a file and a directory", encode(path.as_os_str().as_bytes())))
}

/// Makes a directory of a release.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path).on("create the directory", path)?;
    set_mode(path, 0o755)
}

/// The umask must not take what everybody may do with a release.
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).on("set the mode of", path)
}

/// Syncs a whole tree.
pub fn sync(dir: &Path) -> Result<()> {
    for path in listed(dir)? {
        if path.is_dir() {
            sync(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).on("sync", &path)?;
        }
    }
    durable::sync_dir(dir)
}
