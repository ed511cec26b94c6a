//! Whether a file can be executed here: regular, executable, ELF for this machine with its loader there, or a script.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The ELF machine number of the processor that this program was built for (`e_machine` of elf(5)).
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// The type of the program header that names the loader (`PT_INTERP` of elf(5)).
const PT_INTERP: u32 = 3;

/// The longest loader path that is read.
const PATH_MAX: u64 = 4096;

/// Says in a line why this file cannot be executed here.
pub fn executable(path: &Path) -> Result<(), String> {
    check(path, true)
}

/// The same for a file that is to be installed, which will get its execute bit.
pub fn executable_file(path: &Path) -> Result<(), String> {
    check(path, false)
}

/// Opens a file to be read, and nothing else than a file.
pub fn plain_file(path: &Path) -> std::io::Result<(File, Metadata)> {
    let file = open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok((file, meta)) } else { Err(std::io::Error::other("not a regular file")) }
}

fn open(path: &Path) -> std::io::Result<File> {
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

fn check(path: &Path, needs_bit: bool) -> Result<(), String> {
    let shown = path.display();
    let mut file = open(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            format!("{shown} is not there: put the release's binary there")
        } else {
            format!("cannot read {shown}: {e}")
        }
    })?;
    let meta = file.metadata().map_err(|e| format!("cannot read {shown}: {e}"))?;
    if meta.is_dir() {
        return Err(format!("{shown} is a directory, not a binary"));
    }
    if !meta.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if needs_bit && meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable: chmod +x it"));
    }
    let mut start = Vec::new();
    file.by_ref().take(64).read_to_end(&mut start).map_err(|e| format!("cannot read {shown}: {e}"))?;
    if start.starts_with(b"#!") {
        return Ok(());
    }
    if !start.starts_with(b"\x7fELF") {
        return Err(format!("{shown} is neither a program for Linux (ELF) nor a script"));
    }
    elf(&mut file, &start, meta.len()).map_err(|e| format!("{shown} {e}"))
}

fn elf(file: &mut File, header: &[u8], len: u64) -> Result<(), String> {
    let short = || "is cut short: copy it again".to_owned();
    let number = |at: usize, size: usize| little_endian(header, at, size).ok_or_else(short);
    // Class 2 is 64 bit, data 1 is little-endian: all machines that we are built for.
    if number(4, 1)? != 2 || number(5, 1)? != 1 || number(18, 2)? != u64::from(MACHINE) {
        return Err(format!("is for another machine (ELF machine {}), this one needs {MACHINE}", number(18, 2)?));
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    if table.saturating_add(size * count) > len {
        return Err(short());
    }
    let mut headers = vec![0; usize::try_from(size * count).map_err(|_| short())?];
    file.seek(SeekFrom::Start(table)).and_then(|_| file.read_exact(&mut headers)).map_err(|_| short())?;
    for entry in headers.chunks_exact(usize::try_from(size.max(1)).map_err(|_| short())?) {
        let field = |at: usize, size: usize| little_endian(entry, at, size).ok_or_else(short);
        let (offset, bytes) = (field(8, 8)?, field(32, 8)?);
        if offset.saturating_add(bytes) > len {
            return Err(short());
        }
        if field(0, 4)? == u64::from(PT_INTERP) {
            let mut loader = Vec::new();
            file.seek(SeekFrom::Start(offset)).map_err(|_| short())?;
            file.by_ref().take(bytes.min(PATH_MAX)).read_to_end(&mut loader).map_err(|_| short())?;
            let loader = String::from_utf8_lossy(&loader).trim_end_matches('\0').to_owned();
            if !Path::new(&loader).exists() {
                return Err(format!(
                    "needs the loader {loader}, which this host does not have: it was built for another system"
                ));
            }
        }
    }
    Ok(())
}

fn little_endian(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    Some(bytes.get(at..at + size)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_cannot_be_executed_is_told_with_its_reason() {
        let dir = std::env::temp_dir().join(format!("wemixvisor-check-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let me = fs::read("/proc/self/exe").unwrap();
        let put = |name: &str, bytes: &[u8], mode: u32| {
            let path = dir.join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            executable(&path)
        };
        assert_eq!(put("good", &me, 0o755), Ok(()));
        assert_eq!(put("script", b"#!/bin/sh\n", 0o755), Ok(()));
        assert!(put("no-x", &me, 0o644).unwrap_err().contains("not executable"));
        assert!(put("text", b"hello", 0o755).unwrap_err().contains("neither"));
        assert!(put("empty", b"", 0o755).unwrap_err().contains("neither"));
        assert!(put("cut", &me[..40], 0o755).unwrap_err().contains("cut short"));
        assert!(put("half", &me[..4096], 0o755).unwrap_err().contains("cut short"));
        let mut other = me.clone();
        other[18] = 243;
        assert!(put("other", &other, 0o755).unwrap_err().contains("another machine"));
        assert!(executable(&dir).unwrap_err().contains("directory"));
        assert!(executable(&dir.join("none")).unwrap_err().contains("not there"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
