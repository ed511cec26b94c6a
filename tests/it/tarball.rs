//! Archives made byte by byte, so that also those can be made that no program would make.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// The kinds of things in an archive.
pub const FILE: u8 = b'0';
pub const HARD_LINK: u8 = b'1';
pub const SYMLINK: u8 = b'2';
pub const DEVICE: u8 = b'3';
pub const DIRECTORY: u8 = b'5';
pub const FIFO: u8 = b'6';
pub const SPARSE: u8 = b'S';
pub const LONG_NAME: u8 = b'L';
pub const LONG_LINK: u8 = b'K';
pub const ATTRIBUTES: u8 = b'x';
pub const ATTRIBUTES_OF_ALL: u8 = b'g';

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An empty one.
    pub fn new() -> Tar {
        Tar::default()
    }

    /// A header that says what it likes, and nothing behind it.
    pub fn header(mut self, kind: u8, name: &[u8], link: &[u8], mode: u32, size: u64) -> Tar {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0001750");
        put(116, b"0001750");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &link[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self
    }

    /// Bytes as they are, filled up to a whole block.
    pub fn data(mut self, data: &[u8]) -> Tar {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Something with its content.
    pub fn entry(self, kind: u8, name: &[u8], mode: u32, data: &[u8]) -> Tar {
        self.header(kind, name, b"", mode, data.len() as u64).data(data)
    }

    /// A file.
    pub fn file(self, name: &str, mode: u32, data: impl AsRef<[u8]>) -> Tar {
        self.entry(FILE, name.as_bytes(), mode, data.as_ref())
    }

    /// A directory.
    pub fn dir(self, name: &str) -> Tar {
        self.entry(DIRECTORY, name.as_bytes(), 0o755, b"")
    }

    /// What is said of the next entry, or of all.
    pub fn attributes(self, kind: u8, key: &str, value: &str) -> Tar {
        // Each record begins with its own length, those digits included.
        let rest = format!(" {key}={value}\n");
        let length = (1..).find(|n: &usize| n.to_string().len() + rest.len() == *n).unwrap();
        self.entry(kind, b"attributes", 0o644, format!("{length}{rest}").as_bytes())
    }

    /// The archive, without the two empty blocks at its end.
    pub fn open_end(self) -> Vec<u8> {
        self.0
    }

    /// The whole archive.
    pub fn bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// The whole archive, packed.
    pub fn gz(self) -> Vec<u8> {
        gzip(&self.bytes())
    }
}

/// Packs bytes, which takes little time.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    packed(bytes, Compression::fast())
}

/// Packs bytes into as few as there can be.
pub fn gzip_tight(bytes: &[u8]) -> Vec<u8> {
    packed(bytes, Compression::best())
}

fn packed(bytes: &[u8], how: Compression) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), how);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
