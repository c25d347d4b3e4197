//! Lines of the results: how they are computed, shown and written.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// One line of the results.
#[derive(Debug, Serialize)]
pub struct Measurement {
    name: &'static str,
    unit: &'static str,
    n: usize,
    p50: f64,
    p95: f64,
    floor_p50: Option<f64>,
    /// p50 over the floor's.
    ratio: Option<f64>,
    /// What p50 is to be at most.
    bar: Option<f64>,
    met: Option<bool>,
    /// What has to be known to read the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Measurement {
    /// A line of samples, of which there is at least one.
    pub fn new(name: &'static str, unit: &'static str, samples: &[f64]) -> Self {
        let (p50, p95) = (percentile(samples, 50), percentile(samples, 95));
        let (floor_p50, ratio, bar, met) = (None, None, None, None);
        Self { name, unit, n: samples.len(), p50, p95, floor_p50, ratio, bar, met, note: None }
    }

    /// Compares with the least that could do the same.
    pub fn over(mut self, floor: &[f64]) -> Self {
        let floor = percentile(floor, 50);
        (self.floor_p50, self.ratio) = (Some(floor), Some(rounded(self.p50 / floor)));
        self
    }

    /// Holds p50 against a bar.
    pub fn bar(mut self, bar: f64) -> Self {
        (self.bar, self.met) = (Some(bar), Some(self.p50 <= bar));
        self
    }

    /// Adds a remark.
    pub fn note(mut self, note: Option<String>) -> Self {
        self.note = note;
        self
    }
}

/// The smallest sample that is not exceeded by so many percent of them.
pub fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len());
    rounded(sorted[rank - 1])
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Milliseconds since then.
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Writes `bench/results.json`.
pub fn write(results: &[Measurement]) -> Result<()> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/bench");
    std::fs::create_dir_all(dir)?;
    let mut text = serde_json::to_string_pretty(results)?;
    text.push('\n');
    Ok(std::fs::write(format!("{dir}/results.json"), text)?)
}

/// Prints a table.
pub fn print(results: &[Measurement]) {
    let name = |result: &Measurement| format!("{} ({})", result.name, result.unit);
    let width = results.iter().map(|result| name(result).len()).max().unwrap_or(0);
    println!(
        "\n{:<width$} {:>4} {:>9} {:>9} {:>9} {:>6} {:>7} met",
        "", "n", "p50", "p95", "floor", "ratio", "bar"
    );
    for result in results {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let (floor, ratio, bar) = (show(result.floor_p50), show(result.ratio), show(result.bar));
        let met = match result.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let (n, p50, p95) = (result.n, result.p50, result.p95);
        println!(
            "{:<width$} {n:>4} {p50:>9.2} {p95:>9.2} {floor:>9} {ratio:>6} {bar:>7} {met}",
            name(result)
        );
        if let Some(note) = &result.note {
            println!("{:<width$}      {note}", "");
        }
    }
}
