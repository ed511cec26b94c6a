//! `init`: lays out a home. Nothing that exists is overwritten, and a `current` that exists is not moved.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use super::Context;
use crate::config::{Origin, file};
use crate::error::{Code, Error, OnFile, Result};
use crate::home::{Home, Owner, Release};
use crate::job::shim::read_record;
use crate::job::{check, durable, look};
use crate::journal::Outcome;

/// Lays out the home; with a binary, installs it as the genesis release.
pub fn init(context: &Context, binary: Option<&Path>) -> Result<()> {
    // Everything that can be wrong is looked at before anything is made.
    let said = context.flags.resolve()?.get("DAEMON_NAME").origin.clone();
    let (name, record) = match (said, binary) {
        (Origin::Default, Some(binary)) => (file_name(binary)?, true),
        // What a flag says here, no later command would know.
        (said, _) => (context.config.name.clone(), matches!(said, Origin::Flag(_))),
    };
    let home = Home::new(context.home.root(), name);
    if let Some(binary) = binary {
        check::executable_file(binary).map_err(Error::usage)?;
        installable(&home, binary)?;
    }
    if home.current().symlink_metadata().is_err()
        && let Some(last) = ran_last(&home).filter(|last| *last != Release::Genesis)
    {
        return Err(Error::refused(format!(
            "{} is missing, but release {last} ran here last: `ln -sfn upgrades/{last} {}` brings it back",
            home.current().display(),
            home.current().display()
        )));
    }
    let owner = owner(&home)?;
    for dir in [home.root().to_path_buf(), home.data()] {
        durable::make_dirs(&dir, 0o755, owner)?;
    }
    for dir in [home.dir(), home.release(&Release::Genesis).join("bin"), home.upgrades(), home.root().join("logs")] {
        durable::make_dirs(&dir, 0o755, owner)?;
    }
    if let Some(binary) = binary {
        let target = home.binary(&Release::Genesis);
        if !target.exists() {
            durable::install_file(binary, &target, 0o755, owner)?;
            context.note(&format!("installed {} as the genesis release", target.display()));
        }
    }
    let recorded = record.then(|| ("daemon_name", file::literal(home.binary_name())));
    if home.config().exists() {
        if recorded.is_some() && super::config::record(&home.config(), "daemon_name", home.binary_name())? {
            context.note(&format!("daemon_name = {:?} in {}", home.binary_name(), home.config().display()));
        }
    } else {
        let text = file::commented(file::INTRO, recorded.as_slice());
        durable::replace_file(&home.config(), text.as_bytes(), 0o644, owner)?;
        context.note(&format!("wrote {}", home.config().display()));
    }
    if home.current().symlink_metadata().is_err() {
        durable::replace_link(&home.current(), &Release::Genesis.target(), owner)?;
        context.note(&format!("{} points at genesis", home.current().display()));
    }
    let genesis = home.binary(&Release::Genesis);
    let next = if genesis.exists() {
        "`wemixvisor run NODE-ARGS…` starts the node".to_owned()
    } else if home.root().join("cosmovisor").is_dir() {
        "`wemixvisor config migrate` takes over what cosmovisor was told, and lists what is left to do".to_owned()
    } else {
        format!("put the node's binary at {}", genesis.display())
    };
    context.done(&format!("{} is ready: {next}", home.root().display()), json!({"home": home.root()}))
}

/// The release that ran in this home last, as far as anything tells.
fn ran_last(home: &Home) -> Option<Release> {
    let record = read_record(home).map(|record| record.release);
    let known = || look::read_known(home).head.map(|head| head.release);
    let history = || look::read_history(home).into_iter().rev().find(|h| h.result == Outcome::Committed).map(|h| h.to);
    record.or_else(known).or_else(history)
}

fn file_name(binary: &Path) -> Result<String> {
    let name = binary.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Error::usage(format!("{} has no file name that could be used", binary.display())))
}

/// A genesis release that is there already is kept; only the same content may be installed again.
fn installable(home: &Home, binary: &Path) -> Result<()> {
    let target = home.binary(&Release::Genesis);
    match fs::metadata(&target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).on("read", &target),
        Ok(meta) if !meta.is_file() => {
            Err(Error::refused(format!("{} is not a regular file: move it away", target.display())))
        }
        Ok(_) if same_content(&target, binary)? => Ok(()),
        Ok(_) => Err(Error::new(
            Code::Refused,
            format!("{} is there already and differs from {}: it is kept", target.display(), binary.display()),
        )),
    }
}

fn same_content(one: &Path, other: &Path) -> Result<bool> {
    use std::io::Read;
    let open = |path: &Path| fs::File::open(path).on("read", path);
    let (mut a, mut b) = (std::io::BufReader::new(open(one)?).bytes(), std::io::BufReader::new(open(other)?).bytes());
    loop {
        match (a.next().transpose().on("read", one)?, b.next().transpose().on("read", other)?) {
            (None, None) => return Ok(true),
            (x, y) if x != y => return Ok(false),
            (Some(_) | None, Some(_) | None) => {}
        }
    }
}

/// The owner of the home, or of the directory that it is made in.
fn owner(home: &Home) -> Result<Owner> {
    let mut dir = home.root();
    while !dir.exists() {
        dir = dir.parent().ok_or_else(|| Error::usage(format!("{} has no parent", home.root().display())))?;
    }
    let meta = fs::metadata(dir).on("read", dir)?;
    // A new home belongs to who makes it.
    let made = dir == home.root();
    Ok(if made {
        Owner { uid: meta.uid(), gid: meta.gid() }
    } else {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    })
}
