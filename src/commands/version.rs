//! `version`: ours, and the current release's, as the running node or its binary tells it.

use serde_json::{Value, json};

use super::{Context, answer, client};
use crate::error::Result;
use crate::job::stage;
use crate::supervise::control::Request;

/// Prints both versions.
pub fn version(context: &Context) -> Result<()> {
    let ours = env!("CARGO_PKG_VERSION");
    let release = context.home.current_release();
    let running = client::ask(&context.home, &Request::Status).ok().flatten();
    let running = running
        .filter(|s| s.get("head_known") == Some(&Value::Bool(true)))
        .and_then(|s| Some(s.get("version")?.as_str()?.to_owned()));
    let told = match (&running, &release) {
        (Some(version), _) => Ok(version.clone()),
        (None, Ok(release)) => stage::version(&context.home.binary(release)),
        (None, Err(why)) => Err(why.clone()),
    };
    if context.json {
        return answer(&format!(
            "{:#}",
            json!({"wemixvisor": ours, "release": release.as_ref().ok(), "version": told.as_ref().ok(), "error": told.as_ref().err()})
        ));
    }
    let node = match (&release, &told) {
        (Ok(release), Ok(version)) => format!("{} {version} (release {release})", context.home.binary_name()),
        (Ok(_) | Err(_), Err(why)) => format!("{}: {why}", context.home.binary_name()),
        (Err(_), Ok(version)) => format!("{} {version}", context.home.binary_name()),
    };
    answer(&format!("wemixvisor {ours}\n{node}"))
}
