//! `metrics …`: what is measured, in each form, and the dashboard that shows it.

use super::{Context, answer, client};
use crate::cli::Metrics;
use crate::error::{OnFile, Result};
use crate::job::shim::read_record;
use crate::job::{backup, metrics as job};
use crate::metrics::{self, Live, dashboard};
use crate::supervise::control::Request;

/// Does what was asked for.
pub fn metrics(context: &Context, what: &Metrics) -> Result<()> {
    match what {
        Metrics::Dashboard => answer(&format!("{:#}\n", dashboard::dashboard())),
        Metrics::Show { prometheus } => show(context, *prometheus),
    }
}

fn show(context: &Context, prometheus: bool) -> Result<()> {
    context.laid_out()?;
    let home = &context.home;
    let live: Option<Live> = client::ask(home, &Request::Metrics)?
        .map(serde_json::from_value)
        .transpose()
        .on("understand the supervisor at", &home.socket())?;
    let args = read_record(home).map(|record| record.args).unwrap_or_default();
    let facts = job::gather(home, live, &backup::Spec::new(&context.config, home, &args));
    answer(&match (prometheus, context.json) {
        (true, _) => metrics::prometheus(&facts),
        (false, true) => format!("{:#}\n", metrics::to_json(&facts)),
        (false, false) => metrics::text(&facts),
    })
}
