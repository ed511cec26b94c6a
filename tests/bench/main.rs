//! The figures of the program, each beside that of a peer taken in the same run: `cargo bench --bench figures`, best with
//! `--target x86_64-unknown-linux-musl`, since the static program is what is installed. It judges figures against their
//! targets and fails for none of them: on a loaded machine they say little.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench may fail by panic, block, start processes and write files"
)]

mod answers;
mod backup;
mod fetch;
mod idle;
mod place;
mod speed;

use std::time::Duration;

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Our figure and the peer's, as text.
    pub ours: String,
    /// The peer's name and figure.
    pub peer: String,
    /// Ours by the peer's.
    pub ratio: Option<f64>,
    /// What was aimed at, and whether that was met.
    pub target: Option<(String, bool)>,
}

/// A name, and what measures.
type Part = (&'static str, fn() -> Vec<Row>);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == speed::AS_NODE) {
        return speed::be_node(&words[1..]);
    }
    // `cargo test --all-targets` starts it, too, and wants no figures.
    if !words.iter().any(|word| word == "--bench") {
        return println!("figures: only by `cargo bench`");
    }
    println!("figures of {}", place::PROGRAM);
    // `cargo bench --bench figures -- backup`: only these.
    let named: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|word| *word == name);
    let parts: [Part; 5] = [
        ("answers", answers::rows),
        ("speed", speed::rows),
        ("idle", idle::rows),
        ("fetch", fetch::rows),
        ("backup", backup::rows),
    ];
    let rows: Vec<Row> = parts.into_iter().filter(|(name, _)| wanted(name)).flat_map(|(_, rows)| rows()).collect();
    print_table(&rows);
}

fn print_table(rows: &[Row]) {
    let head = ["what", "ours", "peer", "ratio", "target", ""].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let ratio = match row.ratio {
            Some(ratio) if ratio < 0.1 => format!("1/{:.0}", 1.0 / ratio),
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        let (target, met) = match &row.target {
            Some((target, met)) => (target.clone(), if *met { "met" } else { "NOT MET" }),
            None => ("-".to_owned(), ""),
        };
        lines.push([row.what.clone(), row.ours.clone(), row.peer.clone(), ratio, target, met.to_owned()]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap();
    let widths: Vec<usize> = (0..6).map(width).collect();
    println!();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// `1.234 ms`.
pub fn ms(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// The one in the middle.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How many times the other it is.
pub fn ratio(ours: Duration, peer: Duration) -> Option<f64> {
    Some(ours.as_secs_f64() / peer.as_secs_f64())
}
