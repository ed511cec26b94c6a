//! Archives of releases: which are taken and what becomes of them, and which are refused. They come from files, for how a
//! file comes is not what this is about.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::download::{installed, prepare, refused, sum};
use crate::support::Home;
use crate::tarball::{
    ATTRIBUTES, ATTRIBUTES_OF_ALL, DEVICE, DIRECTORY, FIFO, FILE, HARD_LINK, LONG_LINK, LONG_NAME, SPARSE, SYMLINK,
    Tar, gzip, gzip_tight,
};

/// A release that is quickly had: a script, which is a program too.
const SCRIPT: &str = "#!/bin/sh\necho v2.0.0\n";

/// No backup, so that the checks after a download need no data.
const PLAIN: &[&str] = &["--set", "unsafe_skip_backup=true"];

fn put(home: &Home, archive: &[u8]) -> PathBuf {
    let path = home.dir.join("release.tar.gz");
    fs::write(&path, archive).unwrap();
    path
}

/// What is in the release that becomes of an archive: paths with their modes, directories with a slash behind.
#[track_caller]
fn becomes(home: &Home, archive: &[u8]) -> Vec<String> {
    let path = put(home, archive);
    prepare(home, PLAIN, path.to_str().unwrap(), &sum(archive)).code(0);
    installed(home, "v2", SCRIPT);
    let release = home.own("upgrades/v2");
    let mut find = Command::new("find");
    let found = find.arg(&release).args(["-mindepth", "1", "-printf", "%m %P%y\\n"]).output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut all: Vec<String> = text
        .lines()
        .map(|line| match line.strip_suffix('f') {
            Some(file) => file.to_owned(),
            None => format!("{}/", line.strip_suffix('d').unwrap()),
        })
        .collect();
    all.sort();
    fs::remove_dir_all(release).unwrap();
    // Where it came from is written beside it.
    let ours = all.iter().position(|path| path == "644 fetched.json").unwrap();
    all.remove(ours);
    all
}

/// An archive that is refused with a line that says this.
#[track_caller]
fn is_refused(home: &Home, archive: &[u8], why: &str) {
    let path = put(home, archive);
    let path = path.to_str().unwrap();
    refused(home, prepare(home, PLAIN, path, &sum(archive)), path, why);
    assert!(!home.dir.join("outside").exists() && !home.own("x").exists(), "it wrote elsewhere");
}

#[test]
fn an_archive_becomes_a_release_whatever_its_shape() {
    let home = Home::new();
    let only = ["755 bin/", "755 bin/node"];
    // The whole tree, where the binary is in its place.
    let tree = Tar::new()
        .dir("bin/")
        .file("bin/node", 0o700, SCRIPT)
        .file("bin/tool", 0o4755, SCRIPT)
        .file("node-args", 0o600, "%{args}\n")
        .file("pre-upgrade", 0o711, SCRIPT)
        .file("upgrade-info.json", 0o644, "{}")
        .entry(DIRECTORY, b"lib", 0o700, b"")
        .file("./share/doc//COPYING", 0o6666, "text");
    assert_eq!(
        becomes(&home, &tree.clone().gz()),
        [
            "644 node-args",
            "644 share/doc/COPYING",
            "755 bin/",
            "755 bin/node",
            "755 bin/tool",
            "755 lib/",
            "755 pre-upgrade",
            "755 share/",
            "755 share/doc/"
        ]
    );
    // In a place of its own, with whatever beside it.
    let elsewhere = [
        Tar::new().file("./node", 0o755, SCRIPT),
        Tar::new().file("node", 0o644, SCRIPT),
        Tar::new().dir("geth-linux-amd64-x/").file("geth-linux-amd64-x/geth", 0o755, SCRIPT).file(
            "geth-linux-amd64-x/COPYING",
            0o644,
            "text",
        ),
        Tar::new().file("geth", 0o755, SCRIPT).file("install.sh", 0o644, "#!/bin/sh\n").file("COPYING", 0o755, "text"),
        Tar::new().file("geth", 0o644, SCRIPT),
        Tar::new().file("x/geth", 0o755, "#!/bin/sh\n").file("x/node", 0o755, SCRIPT),
        // What only has the name is no program.
        Tar::new().file("completions/node", 0o644, "complete -F _node node").file("x/node", 0o755, SCRIPT),
        Tar::new().file("bin/bin/node", 0o755, SCRIPT),
        Tar::new().dir("node/").file("node/geth", 0o755, SCRIPT),
        Tar::new().dir("bin/node/").file("bin/node/geth", 0o755, SCRIPT),
        // The forms of other programs: a directory by its slash, attributes, long names.
        Tar::new().header(0, b"old/", b"", 0o755, 0).entry(0, b"old/geth", 0o755, SCRIPT.as_bytes()),
        Tar::new()
            .attributes(ATTRIBUTES_OF_ALL, "comment", "0123")
            .attributes(ATTRIBUTES, "path", "long/geth")
            .file("x", 0o755, SCRIPT),
        Tar::new().attributes(ATTRIBUTES, "mtime", "1700000000.5").file("geth", 0o755, SCRIPT),
        Tar::new()
            .entry(LONG_NAME, b"././@LongLink", 0o644, format!("{}/geth\0", "d".repeat(200)).as_bytes())
            .file("d", 0o755, SCRIPT),
        Tar::new().entry(b'7', b"geth", 0o755, SCRIPT.as_bytes()),
        Tar::new().entry(FILE, b"\xff\xfe/geth", 0o755, SCRIPT.as_bytes()),
    ];
    for tar in elsewhere {
        assert_eq!(becomes(&home, &tar.gz()), only);
    }
    // Names of another time stay as they are, and packed in several pieces is packed.
    let odd = Tar::new().file("bin/node", 0o755, SCRIPT).entry(FILE, b"\xff\x1b[2J", 0o644, b"x").bytes();
    let (first, rest) = odd.split_at(700);
    let packed = [gzip(first), gzip(rest)].concat();
    assert_eq!(becomes(&home, &packed).len(), 3);
    // No end but the end.
    assert_eq!(becomes(&home, &gzip(&Tar::new().file("geth", 0o755, SCRIPT).open_end())), only);
    // As the common programs make it.
    let dir = home.dir.join("made");
    fs::create_dir_all(dir.join("geth-x")).unwrap();
    fs::write(dir.join("geth-x/node"), SCRIPT).unwrap();
    for format in ["gnu", "pax", "ustar", "v7"] {
        let mut tar = Command::new("tar");
        let archive = home.dir.join("made.tar.gz");
        tar.args(["--format", format, "-czf"]).arg(&archive).arg("-C").arg(&dir).arg("geth-x");
        assert!(tar.status().unwrap().success());
        assert_eq!(becomes(&home, &fs::read(&archive).unwrap()), only, "{format}");
    }
    // The operator's files win over the archive's.
    fs::create_dir_all(home.own("upgrades/v2/share")).unwrap();
    fs::write(home.own("upgrades/v2/node-args"), "mine").unwrap();
    fs::write(home.own("upgrades/v2/share/mine"), "mine").unwrap();
    let path = put(&home, &tree.clone().gz());
    prepare(&home, PLAIN, path.to_str().unwrap(), &sum(tree.gz())).code(0);
    installed(&home, "v2", SCRIPT);
    for (path, text) in [("node-args", "mine"), ("share/mine", "mine"), ("share/doc/COPYING", "text")] {
        assert_eq!(fs::read_to_string(home.own("upgrades/v2").join(path)).unwrap(), text, "{path}");
    }
}

#[test]
fn an_archive_that_does_not_say_which_program_is_meant_is_refused() {
    let home = Home::new();
    let two = Tar::new().file("geth", 0o755, SCRIPT).file("tools/bootnode", 0o755, SCRIPT);
    is_refused(&home, &two.gz(), "which of its 2 programs is node? (geth, tools/bootnode)");
    let twice = Tar::new().file("a/node", 0o755, SCRIPT).file("b/node", 0o755, SCRIPT);
    is_refused(&home, &twice.gz(), "which of its 2 programs is node? (a/node, b/node)");
    let none = Tar::new().file("README", 0o644, "text").file("geth.exe", 0o755, "MZ");
    is_refused(&home, &none.gz(), "no file in it is node, and none can be executed here");
    is_refused(&home, &Tar::new().file("node", 0o755, "text").gz(), "neither a program for Linux (ELF) nor a script");
    is_refused(
        &home,
        &Tar::new().file("bin/node", 0o755, "text").gz(),
        "neither a program for Linux (ELF) nor a script",
    );
    is_refused(&home, &Tar::new().dir("bin/").gz(), "no file in it is node");
}

#[test]
fn an_archive_that_would_write_elsewhere_is_refused() {
    let home = Home::new();
    let good = || Tar::new().file("bin/node", 0o755, SCRIPT);
    let outside = home.dir.join("outside");
    let shown = outside.to_str().unwrap();
    let file = |name: &[u8]| good().entry(FILE, name, 0o755, b"x").gz();
    for name in [&b"../x"[..], b"bin/../../x", b"..", b"bin/..", b"../../../outside"] {
        is_refused(&home, &file(name), "leads out of it");
    }
    is_refused(&home, &file(shown.as_bytes()), "is an absolute path");
    is_refused(&home, &good().dir("../x/").gz(), "leads out of it");
    is_refused(&home, &good().dir("/x/").gz(), "is an absolute path");
    let through = good().header(SYMLINK, b"door", home.dir.to_str().unwrap().as_bytes(), 0o777, 0).file(
        "door/outside",
        0o644,
        "x",
    );
    is_refused(&home, &through.gz(), "door is a link; only files and directories are taken");
    is_refused(&home, &good().header(SYMLINK, b"lib", b"bin", 0o777, 0).gz(), "lib is a link");
    is_refused(&home, &good().header(HARD_LINK, b"out", b"/etc/hostname", 0o644, 0).gz(), "out is a link");
    is_refused(&home, &good().header(HARD_LINK, b"in", b"bin/node", 0o644, 0).gz(), "in is a link");
    is_refused(&home, &good().entry(LONG_LINK, b"././@LongLink", 0o644, b"../x\0").gz(), "is a link");
    for kind in [DEVICE, b'4', FIFO] {
        is_refused(&home, &good().header(kind, b"odd", b"", 0o666, 0).gz(), "odd is a device or a FIFO");
    }
    is_refused(&home, &good().header(b'V', b"volume", b"", 0o666, 0).gz(), "volume is of an unknown kind");
    is_refused(&home, &good().entry(SPARSE, b"holes", 0o644, b"").gz(), "holes is a sparse file");
    is_refused(
        &home,
        &good().attributes(ATTRIBUTES, "GNU.sparse.major", "1").file("holes", 0o644, "x").gz(),
        "is not taken",
    );
    is_refused(&home, &good().attributes(ATTRIBUTES, "size", "1024").file("larger", 0o644, "x").gz(), "is not taken");
    is_refused(
        &home,
        &good().attributes(ATTRIBUTES_OF_ALL, "size", "1024").file("larger", 0o644, "x").gz(),
        "is not taken",
    );
    // Said in another place than the header: it is the name that counts which is used.
    let long = |name: &str| {
        good().entry(LONG_NAME, b"././@LongLink", 0o644, name.as_bytes()).file("harmless", 0o644, "x").gz()
    };
    is_refused(&home, &long("../x\0"), "leads out of it");
    is_refused(&home, &long(&format!("{shown}\0")), "is an absolute path");
    let attribute = |name: &str| good().attributes(ATTRIBUTES, "path", name).file("harmless", 0o644, "x").gz();
    is_refused(&home, &attribute("../x"), "leads out of it");
    is_refused(&home, &attribute(shown), "is an absolute path");
    is_refused(&home, &attribute("a\0b"), "a%00b is no path");
    is_refused(&home, &attribute("\x1b[2J/../x"), "%1B[2J/../x leads out of it");
}

#[test]
fn an_archive_that_contradicts_itself_or_is_too_much_is_refused() {
    let home = Home::new();
    let good = || Tar::new().file("bin/node", 0o755, SCRIPT);
    is_refused(&home, &good().file("bin/node", 0o755, "x").gz(), "bin/node is in it twice");
    is_refused(&home, &good().file("./bin//node", 0o755, "x").gz(), "bin/node is in it twice");
    is_refused(&home, &good().file("bin/node/x", 0o755, "x").gz(), "bin/node is both a file and a directory");
    is_refused(&home, &good().dir("bin/node/").gz(), "bin/node is both a file and a directory");
    is_refused(&home, &good().file("bin", 0o755, "x").gz(), "bin is both a file and a directory");
    let (long, deep) = ("x".repeat(256), "x/".repeat(600));
    let named = |name: &str| good().attributes(ATTRIBUTES, "path", name).file("x", 0o644, "x").gz();
    is_refused(&home, &named(&long), "is no path");
    is_refused(&home, &named(&deep), "a path in it is longer than 1024 bytes");
    let vast = vec![b'x'; 70 << 10];
    is_refused(
        &home,
        &good().entry(LONG_NAME, b"././@LongLink", 0o644, &vast).gz(),
        "a name in it is longer than 64KiB",
    );
    let vast = good().header(LONG_NAME, b"././@LongLink", b"", 0o644, 7 << 30).gz();
    is_refused(&home, &vast, "a name in it is longer than 64KiB");
    let many = (0..10_001).fold(good(), |tar, n| tar.dir(&format!("{:x}", n * 0x9E37_79B1_u64)));
    is_refused(&home, &many.gz(), "it holds more than 10000 things");
    // Each piece is 4 MiB of nothing in a thousandth of it: 4 GiB in all.
    let (head, piece) = (good().header(FILE, b"bomb", b"", 0o644, 4 << 30).open_end(), gzip_tight(&vec![0; 4 << 20]));
    let bomb = [vec![gzip(&head)], vec![piece; 1024]].concat().concat();
    is_refused(&home, &bomb, "its content is more than 200 times its own size");
    let archive = good().gz();
    is_refused(&home, &archive[..archive.len() - 4], "it is cut short");
    is_refused(&home, &archive[..archive.len() / 2], "it is cut short");
    is_refused(&home, &archive[..2], "it is cut short");
    is_refused(&home, &[&archive[..], b"rubbish rubbish"].concat(), "behind its end");
    let mut flipped = archive.clone();
    let sum_at = flipped.len() - 8;
    flipped[sum_at] ^= 1;
    is_refused(&home, &flipped, "corrupt");
    // The archive inside is cut, and what it is packed in is not.
    is_refused(&home, &gzip(&good().header(FILE, b"x", b"", 0o644, 1000).open_end()), "it is cut short");
    is_refused(&home, &gzip(&good().header(FILE, b"x", b"", 0o644, 1000).data(b"half").open_end()), "it is cut short");
    let whole = good().open_end();
    is_refused(&home, &gzip(&whole[..whole.len() - 100]), "it is cut short");
    is_refused(&home, &gzip(&[&whole[..], &[b'x'; 100]].concat()), "it is cut short");
    is_refused(&home, &gzip(&[&whole[..], &[b'x'; 512]].concat()), "it is damaged behind its entry 1");
    let noise: Vec<u8> = (0..4000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    is_refused(&home, &gzip(b"no archive"), "it is cut short");
    is_refused(&home, &gzip(SCRIPT.repeat(100).as_bytes()), "is no tar archive");
    is_refused(&home, &gzip(&good().file("x", 0o644, &noise).gz()), "is no tar archive");
    is_refused(&home, &Tar::new().gz(), "it holds nothing");
    is_refused(&home, &gzip(b""), "it holds nothing");
    is_refused(
        &home,
        &Tar::new().file("bin/node", 0o755, SCRIPT).bytes(),
        "is a tar archive without gzip, which is not taken: give the binary itself or a .tar.gz",
    );
}
