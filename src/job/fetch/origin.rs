//! What a release was fetched as, beside its binary: a plan that wants another file by now is not served by it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{OnFile, Result};
use crate::home::{Home, Owner, Release};
use crate::job::{check, durable};
use crate::source::{Checksum, Link, Source};

/// Its name in the release's directory.
const FILE: &str = "fetched.json";

/// The largest that is read.
const BYTES_MAX: u64 = 64 << 10;

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
    /// What came with it, by the names in the release's directory; the rest there is the operator's.
    entries: Vec<String>,
}

/// Writes it into the tree of a release that is complete else.
pub fn write(tree: &Path, binary: &Path, source: &Source, link: &Link, owner: Owner) -> Result<()> {
    let (bytes, modified) = looks(binary).on("look at", binary)?;
    let index = if let Source::Index(index) = source { index.checksum.clone() } else { None };
    let path = tree.join(FILE);
    // An archive may have brought something of that name.
    super::remove_any(&path)?;
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(tree).on("read", tree)? {
        entries.push(entry.on("read", tree)?.file_name().to_string_lossy().into_owned());
    }
    let origin = Origin { from: link.to_string(), checksum: link.checksum.clone(), index, bytes, modified, entries };
    let text = serde_json::to_vec_pretty(&origin).on("write", &path)?;
    durable::replace_file(&path, &text, 0o644, owner)
}

/// Removes it, where the release is somebody else's by now.
pub fn forget(release: &Path) -> Result<()> {
    super::remove_any(&release.join(FILE))
}

/// What came with a release that was fetched, and the note of that itself, by name; the rest beside it is the operator's.
pub fn fetched_entries(release: &Path) -> Vec<String> {
    let mut entries = read(release).map_or_else(Vec::new, |origin| origin.entries);
    entries.push(FILE.to_owned());
    entries
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
