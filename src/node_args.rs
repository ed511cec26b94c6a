//! What the node's arguments imply for its supervisor: data directory, IPC socket, HTTP port. Read only; arguments are
//! never changed or added. Facts per client: instance names and default directories of go-wemix, go-wbft and go-stablenet.

use std::path::{Path, PathBuf};

use crate::config::Address;
use crate::geth;

/// The socket names of the clients that we know, in the data directory.
const SOCKETS: &[&str] = &["geth.ipc", "gwemix.ipc", "gstable.ipc"];

/// The value of a flag in Go's spelling (`-x v`, `--x v`, `--x=v`); the last one counts, as it does for the node.
pub fn value<'a>(args: &'a [String], flag: &str) -> Option<&'a str> {
    geth::flags(args).into_iter().rev().find(|(name, _)| *name == flag).and_then(|(_, value)| value)
}

/// Whether a boolean flag is set.
pub fn is_set(args: &[String], flag: &str) -> bool {
    let last = geth::flags(args).into_iter().rev().find(|(name, _)| *name == flag);
    last.is_some_and(|(_, value)| value.is_none_or(|value| matches!(value, "true" | "1" | "t" | "T" | "TRUE" | "True")))
}

/// The node's data directory, if its arguments name one.
pub fn data_dir(args: &[String]) -> Option<PathBuf> {
    value(args, "datadir").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The IPC sockets that the node may open with these arguments.
pub fn ipc_paths(args: &[String], binary_name: &str) -> Vec<PathBuf> {
    if is_set(args, "ipcdisable") {
        return Vec::new();
    }
    let dir = data_dir(args);
    match (value(args, "ipcpath").filter(|path| !path.is_empty()).map(Path::new), dir) {
        // A plain name lies in the data directory, a path is taken as it is: so does geth.
        (Some(path), Some(dir)) if path.components().count() == 1 => vec![dir.join(path)],
        (Some(path), _) => vec![path.to_path_buf()],
        (None, Some(dir)) => {
            let own = format!("{binary_name}.ipc");
            let known = SOCKETS.iter().map(|name| (*name).to_owned()).filter(|name| *name != own);
            std::iter::once(own.clone()).chain(known).map(|name| dir.join(name)).collect()
        }
        (None, None) => Vec::new(),
    }
}

/// Where to ask this node: its IPC sockets, then the configured addresses; when none was configured and the arguments
/// name an HTTP port, that port instead of the default.
pub fn addresses(args: &[String], binary_name: &str, configured: &[Address], given: bool) -> Vec<Address> {
    let mut all: Vec<Address> = ipc_paths(args, binary_name).into_iter().map(Address::Ipc).collect();
    match value(args, "http.port").filter(|_| !given) {
        Some(port) => all.push(Address::Http(format!("http://127.0.0.1:{port}"))),
        None => all.extend_from_slice(configured),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_flag_is_found_in_every_spelling_and_the_last_one_counts() {
        for (line, expected) in [
            ("--datadir /d", Some("/d")),
            ("-datadir /d", Some("/d")),
            ("--datadir=/d", Some("/d")),
            ("--datadir /a --mine --datadir=/b", Some("/b")),
            ("--datadirx /d", None),
            ("-- --datadir /d", None),
            ("--datadir", None),
            ("start --datadir /d", Some("/d")),
        ] {
            assert_eq!(value(&words(line), "datadir"), expected, "{line}");
        }
        assert!(
            is_set(&words("--ipcdisable"), "ipcdisable")
                && !is_set(&words("--ipcdisable --ipcdisable=false"), "ipcdisable")
        );
    }

    #[test]
    fn the_sockets_follow_data_directory_and_ipcpath() {
        let paths = |line: &str| ipc_paths(&words(line), "gwemix");
        assert_eq!(paths("--datadir /d")[0], Path::new("/d/gwemix.ipc"));
        assert_eq!(paths("--datadir /d").len(), 3);
        assert_eq!(paths("--datadir /d --ipcpath x.ipc"), [Path::new("/d/x.ipc")]);
        assert_eq!(paths("--datadir /d --ipcpath /run/x.ipc"), [Path::new("/run/x.ipc")]);
        assert!(paths("--datadir /d --ipcdisable").is_empty());
        assert!(paths("--mine").is_empty());
    }

    #[test]
    fn the_http_port_of_the_arguments_replaces_only_the_default() {
        let default = [Address::Http("http://127.0.0.1:8545".into())];
        let line = words("--http --http.port 8588");
        assert_eq!(addresses(&line, "geth", &default, false), [Address::Http("http://127.0.0.1:8588".into())]);
        assert_eq!(addresses(&line, "geth", &default, true), default);
    }
}
