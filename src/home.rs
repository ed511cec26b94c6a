//! The names of things under `$DAEMON_HOME`, and [`Release`]: a name that cannot escape it.
//! It reads the home; it never writes (that is `job::durable`'s).

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The longest name of an upgrade, in bytes.
const NAME_MAX: usize = 64;

/// The name of an upgrade: `[A-Za-z0-9][A-Za-z0-9._+-]{0,63}`, not `genesis` nor `current`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks a name; the error says what is allowed.
    pub fn parse(text: &str) -> Result<Name, String> {
        let shown: String = text.chars().take(NAME_MAX + 8).collect();
        let allowed = "a name is 1 to 64 of A-Z a-z 0-9 . _ + - and begins with a letter or digit";
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric())
            || text.len() > NAME_MAX
            || !text.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
        {
            return Err(format!("{shown:?} is no name of an upgrade: {allowed}"));
        }
        if text.eq_ignore_ascii_case("genesis") || text.eq_ignore_ascii_case("current") {
            return Err(format!("{text:?} cannot name an upgrade: the home uses that name itself"));
        }
        Ok(Name(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Name, String> {
        Name::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// A directory with `bin/$DAEMON_NAME`: `genesis`, or `upgrades/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Release {
    /// What `init` installed.
    Genesis,
    /// What an upgrade brought; the name is that of its directory.
    Upgrade(Name),
}

impl Release {
    /// `genesis`, or the name of an upgrade.
    pub fn parse(text: &str) -> Result<Release, String> {
        if text == "genesis" { Ok(Release::Genesis) } else { Name::parse(text).map(Release::Upgrade) }
    }

    /// Its directory, relative to `wemixvisor/`: what `current` points at.
    pub fn target(&self) -> PathBuf {
        match self {
            Release::Genesis => PathBuf::from("genesis"),
            Release::Upgrade(name) => Path::new("upgrades").join(name.as_str()),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Release::Genesis => f.write_str("genesis"),
            Release::Upgrade(name) => name.fmt(f),
        }
    }
}

impl TryFrom<String> for Release {
    type Error = String;
    fn try_from(text: String) -> Result<Release, String> {
        Release::parse(&text)
    }
}

impl From<Release> for String {
    fn from(release: Release) -> String {
        release.to_string()
    }
}

/// Who owns what is made in a home: its owner, also when root made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id of the home directory.
    pub uid: u32,
    /// Group id of the home directory.
    pub gid: u32,
}

/// A home directory and the file name of the node's binary in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    root: PathBuf,
    name: String,
}

impl Home {
    /// The home at this absolute path, for a binary of this file name.
    pub fn new(root: impl Into<PathBuf>, name: impl Into<String>) -> Home {
        Home { root: root.into(), name: name.into() }
    }

    /// `$DAEMON_HOME` itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `$DAEMON_NAME`: the file name of the node's binary in every release.
    pub fn binary_name(&self) -> &str {
        &self.name
    }

    /// Our own folder.
    pub fn dir(&self) -> PathBuf {
        self.root.join("wemixvisor")
    }

    /// The link to the release in use.
    pub fn current(&self) -> PathBuf {
        self.dir().join("current")
    }

    /// The directory of a release.
    pub fn release(&self, release: &Release) -> PathBuf {
        self.dir().join(release.target())
    }

    /// The binary of a release.
    pub fn binary(&self, release: &Release) -> PathBuf {
        self.release(release).join("bin").join(&self.name)
    }

    /// The binary as the node is started: through `current`.
    pub fn current_binary(&self) -> PathBuf {
        self.current().join("bin").join(&self.name)
    }

    /// All upgrades' releases.
    pub fn upgrades(&self) -> PathBuf {
        self.dir().join("upgrades")
    }

    /// Batch plans.
    pub fn plans(&self) -> PathBuf {
        self.dir().join("plans")
    }

    /// Downloads in progress; nothing in it is ever executed.
    pub fn staging(&self) -> PathBuf {
        self.dir().join("staging")
    }

    /// Where an upgrade stands.
    pub fn journal(&self) -> PathBuf {
        self.dir().join("journal.json")
    }

    /// There as long as a restore exchanges the data: nobody may start meanwhile.
    pub fn restore(&self) -> PathBuf {
        self.dir().join("restore.json")
    }

    /// The last known state: head, identity, how the last supervisor ended.
    pub fn state(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    /// One line per finished upgrade.
    pub fn history(&self) -> PathBuf {
        self.dir().join("history.jsonl")
    }

    /// The home's settings.
    pub fn config(&self) -> PathBuf {
        self.dir().join("config.toml")
    }

    /// Held by who supervises this home.
    pub fn lock(&self) -> PathBuf {
        self.dir().join("lock")
    }

    /// Held by who may touch the data: the node and all that it started, a job, a hook. Its content is the run record.
    pub fn data_lock(&self) -> PathBuf {
        self.dir().join("data.lock")
    }

    /// Where requests to the supervisor go.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("control.sock")
    }

    /// The directory that plan files are read under, whatever DAEMON_DATA_DIR is.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Node output under `start`.
    pub fn node_log(&self) -> PathBuf {
        self.root.join("logs/node.log")
    }

    /// The supervisor's own log under `start`.
    pub fn own_log(&self) -> PathBuf {
        self.root.join("logs/wemixvisor.log")
    }

    /// The plan file of a height.
    pub fn plan_file(&self, height: u64) -> PathBuf {
        self.data().join("upgrades").join(height.to_string()).join("upgrade-info.json")
    }

    /// The owner of the home directory.
    pub fn owner(&self) -> std::io::Result<Owner> {
        let meta = fs::metadata(&self.root)?;
        Ok(Owner { uid: meta.uid(), gid: meta.gid() })
    }

    /// The release of an upgrade: the directory of the exact name, else of its lower-case form, else the exact name
    /// (where its binary is then expected).
    pub fn find(&self, name: &Name) -> Release {
        let lower = Name(name.as_str().to_ascii_lowercase());
        if !self.upgrades().join(name.as_str()).is_dir() && self.upgrades().join(lower.as_str()).is_dir() {
            return Release::Upgrade(lower);
        }
        Release::Upgrade(name.clone())
    }

    /// The release that `current` points at. The error is a line for the operator: a link that is missing, dangles, points
    /// outside or is no link is never repaired by a guess.
    pub fn current_release(&self) -> Result<Release, String> {
        let link = self.current();
        let shown = link.display();
        let meta = match fs::symlink_metadata(&link) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(format!(
                    "{shown} is missing: set it to the release that ran last with `ln -sfn upgrades/NAME {shown}` (in a new home `wemixvisor init` makes it point at genesis)"
                ));
            }
            Err(e) => return Err(format!("cannot read {shown}: {e}")),
        };
        if !meta.is_symlink() {
            return Err(format!("{shown} is not a link: move it away, then `wemixvisor init` makes the link"));
        }
        let target = fs::read_link(&link).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let inside = target.strip_prefix(self.dir()).unwrap_or(&target);
        let parts: Vec<&str> = inside
            .components()
            .filter(|part| !matches!(part, Component::CurDir))
            .map(|part| part.as_os_str().to_str().unwrap_or(""))
            .collect();
        let release = match parts.as_slice() {
            ["genesis"] => Release::Genesis,
            ["upgrades", name] => {
                Release::Upgrade(Name::parse(name).map_err(|e| format!("{shown} -> {}: {e}", target.display()))?)
            }
            _ => {
                return Err(format!(
                    "{shown} -> {} is neither genesis nor upgrades/<name>: set it to one of them with `ln -sfn`",
                    target.display()
                ));
            }
        };
        if !self.release(&release).is_dir() {
            return Err(format!(
                "{shown} -> {} dangles: put the release back, or set the link to another one with `ln -sfn`",
                target.display()
            ));
        }
        Ok(release)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for good in ["v2", "v2.0.0", "2", "a_b+c-d.e", &"x".repeat(64)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-x",
            ".x",
            "a b",
            "ä",
            "a\0",
            "genesis",
            "Current",
            &"x".repeat(65),
            &"x".repeat(300),
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_release_is_read_from_a_relative_or_an_absolute_link_and_from_nothing_else() {
        let root = std::env::temp_dir().join(format!("wemixvisor-home-{}", std::process::id()));
        let home = Home::new(&root, "geth");
        fs::create_dir_all(root.join("wemixvisor/genesis")).unwrap();
        fs::create_dir_all(root.join("wemixvisor/upgrades/v2")).unwrap();
        let point = |target: &Path| {
            let _ = fs::remove_file(home.current());
            std::os::unix::fs::symlink(target, home.current()).unwrap();
            home.current_release()
        };
        let v2 = Release::parse("v2").unwrap();
        assert_eq!(point(Path::new("genesis")), Ok(Release::Genesis));
        assert_eq!(point(Path::new("upgrades/v2")), Ok(v2.clone()));
        assert_eq!(point(&root.join("wemixvisor/upgrades/v2")), Ok(v2));
        assert!(point(Path::new("upgrades/v3")).unwrap_err().contains("dangles"));
        assert!(point(Path::new("/bin")).unwrap_err().contains("neither"));
        assert!(point(Path::new("../../x")).unwrap_err().contains("neither"));
        fs::remove_file(home.current()).unwrap();
        assert!(home.current_release().unwrap_err().contains("missing"));
        fs::write(home.current(), "").unwrap();
        assert!(home.current_release().unwrap_err().contains("not a link"));
        assert_eq!(home.find(&Name::parse("V2").unwrap()).to_string(), "v2");
        assert_eq!(home.find(&Name::parse("V3").unwrap()).to_string(), "V3");
        fs::remove_dir_all(&root).unwrap();
    }
}
