//! A Grafana dashboard, made of the table: one panel for each panel that a metric names, so that no query can name what is
//! not there.

use serde_json::{Value, json};

use super::{Kind, METRICS, Metric};

/// How many columns a dashboard has (Grafana's grid), and how large a panel is.
const COLUMNS: usize = 24;
const WIDTH: usize = 8;
const HEIGHT: usize = 7;

/// The version of the dashboard's form that is written here: Grafana 9 to 12 read it.
const SCHEMA: u32 = 38;

/// The dashboard as JSON, to be imported.
pub fn dashboard() -> Value {
    let mut titles: Vec<&str> = Vec::new();
    for metric in METRICS {
        if !titles.contains(&metric.panel) {
            titles.push(metric.panel);
        }
    }
    let panels: Vec<Value> = titles.iter().enumerate().map(|(index, title)| panel(index, title)).collect();
    let source = json!({"type": "prometheus", "uid": "${source}"});
    json!({
        "title": "wemixvisor",
        "uid": "wemixvisor",
        "tags": ["wemixvisor"],
        "schemaVersion": SCHEMA,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [
            {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
            {
                "name": "instance",
                "label": "Host",
                "type": "query",
                "datasource": source,
                "query": format!("label_values({}, instance)", METRICS.iter().find(|m| m.name == "up").map_or_else(String::new, Metric::full_name)),
                "refresh": 2,
                "multi": true,
                "includeAll": true,
            },
        ]},
        "panels": panels,
    })
}

fn panel(index: usize, title: &str) -> Value {
    let shown: Vec<&Metric> = METRICS.iter().filter(|metric| metric.panel == title).collect();
    let infos = shown.iter().all(|metric| metric.name.ends_with("_info"));
    let times = shown.iter().all(|metric| metric.name.ends_with("_timestamp_seconds"));
    let targets: Vec<Value> = shown
        .iter()
        .zip('A'..='Z')
        .map(|(metric, letter)| {
            json!({
                "refId": letter.to_string(),
                "datasource": {"type": "prometheus", "uid": "${source}"},
                "expr": query(metric),
                "legendFormat": legend(metric),
                "instant": infos,
                "format": if infos { "table" } else { "time_series" },
            })
        })
        .collect();
    let columns = COLUMNS / WIDTH;
    json!({
        "id": index + 1,
        "title": title,
        "description": shown.iter().map(|metric| metric.help).collect::<Vec<_>>().join("\n"),
        "type": if infos { "table" } else if times { "stat" } else { "timeseries" },
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": {"x": index % columns * WIDTH, "y": index / columns * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": shown.first().map_or("short", |metric| unit(metric))}, "overrides": []},
        "options": {},
        "targets": targets,
    })
}

/// What of a metric is shown: of what only grows, how fast it does, or for rare things how often lately.
fn query(metric: &Metric) -> String {
    let series = format!("{}{{instance=~\"$instance\"}}", metric.full_name());
    match (metric.kind, metric.name) {
        (Kind::Gauge, name) if name.ends_with("_timestamp_seconds") => format!("{series} * 1000"),
        (Kind::Gauge, _) => series,
        (Kind::Counter, name) if name.contains("_seconds") || name.contains("_bytes") => {
            format!("rate({series}[$__rate_interval])")
        }
        (Kind::Counter, _) => format!("increase({series}[1h])"),
    }
}

fn legend(metric: &Metric) -> String {
    let labels: String = metric.labels.iter().map(|label| format!(" {{{{{label}}}}}")).collect();
    format!("{{{{instance}}}} {}{labels}", metric.name)
}

/// Grafana's name of a metric's unit.
fn unit(metric: &Metric) -> &'static str {
    match metric.name {
        name if name.ends_with("_timestamp_seconds") => "dateTimeAsIso",
        name if name.ends_with("_bytes") => "bytes",
        name if name.ends_with("_bytes_total") => "Bps",
        name if name.ends_with("_seconds") => "s",
        name if name.ends_with("_seconds_total") => "percentunit",
        _ => "short",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The names of ours in a query.
    fn names(query: &str) -> Vec<String> {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        query.split(|c| !part(c)).filter(|word| word.starts_with(super::super::PREFIX)).map(str::to_owned).collect()
    }

    #[test]
    fn every_query_names_an_existing_metric_and_every_metric_is_shown() {
        let dashboard = dashboard();
        let mut shown: Vec<String> = Vec::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let named = names(target["expr"].as_str().unwrap());
                assert_eq!(named.len(), 1, "{target}");
                shown.extend(named);
            }
        }
        let variable = dashboard["templating"]["list"][1]["query"].as_str().unwrap();
        shown.extend(names(variable));
        let all: Vec<String> = METRICS.iter().map(Metric::full_name).collect();
        assert!(shown.iter().all(|name| all.contains(name)), "{shown:?}");
        assert!(all.iter().all(|name| shown.contains(name)), "{all:?}");
        // The control: a query that is wrong is seen.
        assert!(!all.contains(&names("rate(wemixvisor_heads{instance=~\"x\"}[5m])")[0]));
    }

    #[test]
    fn panels_do_not_overlap_and_have_one_unit_each() {
        let dashboard = dashboard();
        let mut places: Vec<(u64, u64)> = Vec::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let at = (panel["gridPos"]["x"].as_u64().unwrap(), panel["gridPos"]["y"].as_u64().unwrap());
            assert!(!places.contains(&at), "{panel}");
            places.push(at);
            let title = panel["title"].as_str().unwrap();
            let units: std::collections::BTreeSet<&str> =
                METRICS.iter().filter(|metric| metric.panel == title).map(unit).collect();
            assert_eq!(units.len(), 1, "{title}: {units:?}");
        }
    }
}
