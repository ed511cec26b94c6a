//! What a traced supervisor and its children did to one directory: the output of `strace -f -y -xx` as a list of acts, in
//! the order in which their system calls returned. What it cannot translate it refuses: nothing is left out in silence.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The system calls that change files, names or positions, make them durable, or become a program.
pub const CALLS: &str = "openat,open,creat,write,writev,pwrite64,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,\
    copy_file_range,sendfile,fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,\
    mkdir,mkdirat,rmdir,mknod,mknodat,execve";

/// One act; paths are relative to the directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// A file opened for writing: made when it is not there.
    Open { path: PathBuf, cut: bool },
    /// Bytes written at a place; none: at the end.
    Write { path: PathBuf, at: Option<usize>, data: Vec<u8> },
    /// A file cut, or made longer by zeros.
    Resize { path: PathBuf, len: usize },
    /// A symbolic link made.
    Symlink { path: PathBuf, target: String },
    /// A directory made.
    Mkdir { path: PathBuf },
    /// A name taken away.
    Unlink { path: PathBuf },
    /// A name changed; what was there under the new one is replaced.
    Rename { from: PathBuf, to: PathBuf },
    /// A file or directory synced: all that was done to it before the act with this number.
    Sync { path: PathBuf, before: usize },
    /// A program executed through this name.
    Exec { path: PathBuf },
}

/// A descriptor: where it stands in its file.
struct Open {
    at: usize,
    append: bool,
}

/// Reads the acts below `dir`, which must be an absolute path without symbolic links.
pub fn read(trace: &str, dir: &Path) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut open: HashMap<(&str, String), Open> = HashMap::new();
    let mut begun: HashMap<&str, (String, usize)> = HashMap::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        // A call that others overtook stands in two pieces.
        if let Some(head) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(pid, (head.trim_end().to_owned(), acts.len()));
            continue;
        }
        let (whole, before) = match rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            Some((_, tail)) => {
                let (head, before) = begun.remove(pid).unwrap_or_else(|| panic!("nothing to resume: {line}"));
                (format!("{head}{tail}"), before)
            }
            None => (rest.to_owned(), acts.len()),
        };
        acts.extend(act(&whole, pid, before, dir, &mut open));
    }
    acts
}

fn act<'a>(
    line: &str,
    pid: &'a str,
    before: usize,
    dir: &Path,
    open: &mut HashMap<(&'a str, String), Open>,
) -> Option<Act> {
    let (call, result) = line.rsplit_once(" = ")?;
    let (name, args) = call.trim_end().strip_suffix(')')?.split_once('(')?;
    let args: Vec<&str> = args.split(", ").collect();
    // Failed calls changed nothing.
    let result = result.split([' ', '<']).next()?;
    let result: usize = result.parse().ok()?;
    let below = |path: PathBuf| path.strip_prefix(dir).ok().map(Path::to_path_buf);
    let named = |arg: &str| below(PathBuf::from(String::from_utf8(bytes(arg)).unwrap()));
    // `3<\x2f…>`; behind a file that has no name any more stands `(deleted)`: no crash brings it back.
    let behind = |arg: &str| {
        let path = unhex(arg.split_once('<')?.1.strip_suffix('>')?);
        below(PathBuf::from(String::from_utf8(path).unwrap()))
    };
    // A name, from the directory in front of it.
    let at = |dir: &str, name: &str| {
        let from = unhex(dir.split_once('<')?.1.strip_suffix('>')?);
        let name = String::from_utf8(bytes(name)).unwrap();
        below(PathBuf::from(String::from_utf8(from).unwrap()).join(name))
    };
    let number = |arg: &str| arg.split('<').next().unwrap().to_owned();
    match name {
        "openat" => {
            let flags = args[2];
            let position = Open { at: 0, append: flags.contains("O_APPEND") };
            open.insert((pid, result.to_string()), position);
            let path = at(args[0], args[1])?;
            let writes = flags.contains("O_WRONLY") || flags.contains("O_RDWR");
            (writes || flags.contains("O_CREAT")).then(|| Act::Open { path, cut: flags.contains("O_TRUNC") })
        }
        "lseek" => {
            if let Some(open) = open.get_mut(&(pid, number(args[0]))) {
                open.at = result;
            }
            None
        }
        "write" => {
            let path = behind(args[0])?;
            let open = open.get_mut(&(pid, number(args[0]))).unwrap_or_else(|| panic!("an unknown file: {line}"));
            let data = bytes(args[1]);
            assert!(result <= data.len(), "the trace cut it short: {line}");
            let at = (!open.append).then_some(open.at);
            open.at += result;
            Some(Act::Write { path, at, data: data[..result].to_vec() })
        }
        "ftruncate" => Some(Act::Resize { path: behind(args[0])?, len: args[1].parse().unwrap() }),
        "fsync" | "fdatasync" => Some(Act::Sync { path: behind(args[0])?, before }),
        "rename" => {
            let (from, to) = (named(args[0]), named(args[1]));
            match (from, to) {
                (Some(from), Some(to)) => Some(Act::Rename { from, to }),
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => panic!("a name that comes or goes: {line}"),
            }
        }
        "symlink" => Some(Act::Symlink { path: named(args[1])?, target: String::from_utf8(bytes(args[0])).unwrap() }),
        "mkdir" => Some(Act::Mkdir { path: named(args[0])? }),
        "unlink" | "rmdir" => Some(Act::Unlink { path: named(args[0])? }),
        "unlinkat" => Some(Act::Unlink { path: at(args[0], args[1])? }),
        "execve" => Some(Act::Exec { path: named(args[0])? }),
        _ => {
            let touches = args.iter().any(|arg| behind(arg).is_some() || arg.starts_with('"') && named(arg).is_some());
            assert!(!touches, "not translated: {line}");
            None
        }
    }
}

/// `"\x61\x62"`.
fn bytes(arg: &str) -> Vec<u8> {
    let inner = arg.strip_prefix('"').and_then(|arg| arg.strip_suffix('"'));
    unhex(inner.unwrap_or_else(|| panic!("no text: {arg}")))
}

fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect()
}
