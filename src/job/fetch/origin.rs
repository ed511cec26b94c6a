//! What a release was fetched as, beside its binary: a plan that wants another file by now is not served by it.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{OnFile, Result};
use crate::home::{Home, Owner, Release};
use crate::job::{check, durable};
use crate::source::{Checksum, Link, Source};

/// Its name in the release's directory.
const FILE: &str = "fetched.json";

/// The largest that is read.
const BYTES_MAX: u64 = 4 << 20;

/// Where a release's binary came from. It speaks of no other one that was put there since.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    /// From where, as it may be shown.
    from: String,
    /// What the fetched file, an archive maybe, was proven to be.
    checksum: Option<Checksum>,
    /// The same of the index that named the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<Checksum>,
    /// Size of the binary, in bytes.
    bytes: u64,
    /// When it was written last, in nanoseconds since 1970.
    modified: u64,
    /// The files that came with it, below the release's directory; the rest there is the operator's.
    files: BTreeSet<String>,
}

/// Writes it into the tree of a release that is complete else.
pub fn write(tree: &Path, binary: &Path, source: &Source, link: &Link, owner: Owner) -> Result<()> {
    let (bytes, modified) = looks(binary).on("look at", binary)?;
    let index = if let Source::Index(index) = source { index.checksum.clone() } else { None };
    let path = tree.join(FILE);
    // An archive may have brought something of that name.
    super::remove_any(&path)?;
    let mut files = BTreeSet::new();
    list(tree, Path::new(""), &mut files)?;
    let origin = Origin { from: link.to_string(), checksum: link.checksum.clone(), index, bytes, modified, files };
    put(tree, &origin, owner)
}

fn put(tree: &Path, origin: &Origin, owner: Owner) -> Result<()> {
    let path = tree.join(FILE);
    let text = serde_json::to_vec_pretty(origin).on("write", &path)?;
    durable::replace_file(&path, &text, 0o644, owner)
}

/// All files below a directory, by their paths from there.
fn list(dir: &Path, below: &Path, files: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).on("read", dir)? {
        let entry = entry.on("read", dir)?;
        let path = below.join(entry.file_name());
        if entry.file_type().on("read", &entry.path())?.is_dir() {
            list(&entry.path(), &path, files)?;
        } else {
            files.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Notes that these files in the tree are the operator's.
pub fn disown(tree: &Path, theirs: &[PathBuf], owner: Owner) -> Result<()> {
    let Some(mut origin) = read(tree) else { return Ok(()) };
    let before = origin.files.len();
    for path in theirs {
        origin.files.remove(&*path.to_string_lossy());
    }
    if origin.files.len() == before { Ok(()) } else { put(tree, &origin, owner) }
}

/// Removes it, where the release is somebody else's by now.
pub fn forget(release: &Path) -> Result<()> {
    super::remove_any(&release.join(FILE))
}

/// What came with a release that was fetched.
pub struct Fetched {
    /// The binary, which is what is replaced.
    binary: PathBuf,
    files: BTreeSet<String>,
    noted: SystemTime,
}

impl Fetched {
    /// As it is noted in the release's directory; nothing, where it is not.
    pub fn of(home: &Home, release: &Release) -> Fetched {
        let dir = home.release(release);
        let noted = dir.join(FILE).metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let binary = Path::new("bin").join(home.binary_name());
        Fetched { binary, files: read(&dir).map(|origin| origin.files).unwrap_or_default(), noted }
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a file came with it and is as it came; else it is the operator's.
    pub fn brought(&self, path: &Path, meta: &Metadata) -> bool {
        path == Path::new(FILE)
            || path == self.binary
            || (self.files.contains(&*path.to_string_lossy()) && meta.modified().is_ok_and(|at| at <= self.noted))
    }
}

fn read(release: &Path) -> Option<Origin> {
    let (file, meta) = check::plain_file(&release.join(FILE)).ok()?;
    serde_json::from_reader(std::io::Read::take(file, BYTES_MAX.min(meta.len()))).ok()
}

/// Why the release that is there is not what this source has; none: it is, or nobody can tell.
pub fn contradiction(home: &Home, release: &Release, source: &Source) -> Option<String> {
    let origin = read(&home.release(release))?;
    let its_own = looks(&home.binary(release)).is_ok_and(|looks| looks == (origin.bytes, origin.modified));
    let before = match source {
        Source::Binary(_) => origin.checksum,
        Source::Index(_) => origin.index,
    };
    let (before, wanted) = (before?, source.link().checksum.as_ref()?);
    if !its_own || before == *wanted || !before.is_like(wanted) {
        return None;
    }
    let from = crate::error::printable(&origin.from);
    Some(format!("the release that is there was fetched from {from} as {before}, and the plan wants {wanted}"))
}

fn looks(binary: &Path) -> std::io::Result<(u64, u64)> {
    let meta = binary.metadata()?;
    let since = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok((meta.len(), u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}
