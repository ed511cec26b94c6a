//! `init`: what it lays out, what it leaves alone, what it refuses.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use crate::crash::strace;
use crate::support::{Home, mocknode, said, under};

/// A copy of the mock node beside the home, under this name and with this mode.
fn binary(home: &Home, name: &str, mode: u32) -> PathBuf {
    let path = home.dir.join(name);
    assert!(Command::new("cp").arg(mocknode()).arg(&path).status().unwrap().success());
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn init(home: &Home, binary: &std::path::Path) -> crate::support::Said {
    home.run(&["init", binary.to_str().unwrap()])
}

#[test]
fn init_lays_out_a_home_that_can_run_at_once() {
    let home = Home::empty();
    let source = binary(&home, "geth-wbft", 0o644);
    init(&home, &source).code(0);
    let installed = home.own("genesis/bin/geth-wbft");
    let meta = fs::symlink_metadata(&installed).unwrap();
    assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o755);
    assert_eq!(fs::read(&installed).unwrap(), fs::read(&source).unwrap());
    assert_eq!(fs::read_link(home.own("current")).unwrap().to_str(), Some("genesis"), "a relative link");
    for dir in ["wemixvisor/upgrades", "data", "logs"] {
        assert!(home.root().join(dir).is_dir(), "{dir}");
    }
    let config = fs::read_to_string(home.own("config.toml")).unwrap();
    assert!(config.lines().any(|line| line == "daemon_name = \"geth-wbft\""), "its name is recorded");
    assert_eq!(config.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count(), 1, "{config}");
    home.run(&["config", "validate"]).code(0);
    home.run(&["run", "version"]).code(0);
}

#[test]
fn a_name_that_is_set_is_the_name_of_the_installed_binary() {
    let home = Home::empty();
    let source = binary(&home, "some-build", 0o755);
    let mut command = home.command(&["init", source.to_str().unwrap()]);
    command.env("DAEMON_NAME", "node");
    said(command).code(0);
    assert!(home.own("genesis/bin/node").is_file());
    let config = fs::read_to_string(home.own("config.toml")).unwrap();
    assert!(!config.lines().any(|line| line.starts_with("daemon_name")), "the environment goes on to say it");
}

#[test]
fn a_name_that_a_flag_says_is_recorded_for_the_commands_after_it() {
    let home = Home::empty();
    let source = binary(&home, "some-build", 0o755);
    home.run(&["--name", "node", "init", source.to_str().unwrap()]).code(0);
    assert!(home.own("genesis/bin/node").is_file());
    home.run(&["run", "version"]).code(0);
    // What a file says already stays.
    let before = home.tree();
    home.run(&["--name", "other", "init"]).code(0);
    assert_eq!(home.tree(), before);
    // Without a binary, too.
    let home = Home::empty();
    let told = home.run(&["--name", "node", "init"]).code(0);
    assert!(told.out.contains("genesis/bin/node"), "{told:?}");
    assert!(home.run(&["config", "show"]).code(0).out.contains("node"));
    let config = fs::read_to_string(home.own("config.toml")).unwrap();
    assert!(config.lines().any(|line| line == "daemon_name = \"node\""), "{config}");
}

#[test]
fn init_without_a_binary_lays_out_and_says_where_it_belongs() {
    let home = Home::empty();
    let said = home.run(&["init"]).code(0);
    assert!(said.out.contains("genesis/bin/wemixd"), "{said:?}");
    assert_eq!(home.current(), "genesis");
    // The binary may come later.
    let source = binary(&home, "wemixd", 0o755);
    init(&home, &source).code(0);
    assert!(home.own("genesis/bin/wemixd").is_file());
}

#[test]
fn init_again_with_the_same_binary_changes_nothing() {
    let home = Home::empty();
    let source = binary(&home, "node", 0o755);
    init(&home, &source).code(0);
    fs::write(home.own("config.toml"), "# mine\ndaemon_name = \"node\"\n").unwrap();
    let before = home.tree();
    init(&home, &source).code(0);
    home.run(&["init"]).code(0);
    assert_eq!(home.tree(), before);
}

#[test]
fn init_never_overwrites_a_release() {
    let home = Home::empty();
    let source = binary(&home, "node", 0o755);
    init(&home, &source).code(0);
    let before = home.tree();
    let mut other = fs::read(&source).unwrap();
    other.push(0);
    fs::write(&source, other).unwrap();
    init(&home, &source).code(4).one_error("differs");
    assert_eq!(home.tree(), before);
}

#[test]
fn init_never_moves_a_current_that_exists() {
    let home = Home::new();
    home.release("v2", "");
    let link = home.own("current");
    for target in ["upgrades/v2", "upgrades/gone"] {
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(target, &link).unwrap();
        home.run(&["init"]).code(0);
        assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(target));
    }
}

#[test]
fn init_completes_a_home_that_lost_its_link() {
    let home = Home::new();
    for name in ["v1", "v2", "v3", "v4", "v5"] {
        home.release(name, "");
    }
    fs::remove_file(home.own("current")).unwrap();
    let node = home.dir.join("node");
    init(&home, &node).code(0);
    assert_eq!(home.current(), "genesis");
    assert_eq!(fs::read_dir(home.own("upgrades")).unwrap().count(), 5);
}

#[test]
fn what_is_no_binary_is_refused_and_nothing_is_made() {
    let home = Home::empty();
    let text = home.dir.join("text");
    fs::write(&text, "hello").unwrap();
    let half = binary(&home, "half", 0o755);
    fs::File::options().write(true).open(&half).unwrap().set_len(1000).unwrap();
    let rows = [
        ("/no/such/binary", "/no/such/binary is not there"),
        ("", ""),
        ("/usr", "is a directory"),
        ("/dev/null", "is not a regular file"),
        (text.to_str().unwrap(), "neither a program"),
        (half.to_str().unwrap(), "cut short"),
    ];
    for (path, part) in rows {
        home.run(&["init", path]).code(2).one_error(part);
        assert!(!home.root().exists(), "{path}");
    }
    home.run(&["--home", "relative/home", "init"]).code(2).one_error("not an absolute path");
    assert!(!home.dir.join("relative").exists());
}

#[test]
fn what_is_in_the_way_is_named_and_kept() {
    let home = Home::empty();
    let source = binary(&home, "node", 0o755);
    fs::create_dir_all(home.own("genesis")).unwrap();
    fs::write(home.own("genesis/bin"), "a file").unwrap();
    let said = init(&home, &source);
    assert!(said.code != 0 && said.err.contains("genesis/bin"), "{said:?}");
    assert_eq!(fs::read_to_string(home.own("genesis/bin")).unwrap(), "a file");
    fs::remove_file(home.own("genesis/bin")).unwrap();
    fs::create_dir_all(home.own("genesis/bin/node")).unwrap();
    init(&home, &source).code(4).one_error("is not a regular file");
    assert!(home.own("current").symlink_metadata().is_err(), "the link was not made");
}

#[test]
fn what_root_makes_belongs_to_the_owner_of_the_home() {
    // Only root can give files away; elsewhere there is nothing to see.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let home = Home::empty();
    fs::create_dir(home.root()).unwrap();
    std::os::unix::fs::chown(home.root(), Some(4242), Some(4343)).unwrap();
    let source = binary(&home, "node", 0o755);
    init(&home, &source).code(0);
    // Also what a run makes.
    home.run(&["run", "version"]).code(0);
    home.run(&["start", "--", "--die-at-start", "--datadir", home.datadir().to_str().unwrap()]).code(5);
    let mut left = vec![home.root()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (4242, 4343), "{}", path.display());
        if meta.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn a_file_system_that_locks_nothing_that_cannot_be_written_will_do() {
    if !strace::available() {
        eprintln!("SKIPPED: strace cannot trace here");
        return;
    }
    // As NFS does.
    let no_locks = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=EBADF"];
    let home = Home::empty();
    let node = binary(&home, "node", 0o755);
    for words in [&["init", node.to_str().unwrap()][..], &["upgrade", "schedule", "v2", "100"]] {
        said(under(&no_locks, &home.command(words))).code(0);
    }
    assert!(!home.tree().iter().any(|line| line.contains(".tmp")), "{:?}", home.tree());
}
