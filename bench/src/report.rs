//! What a group found: rows with a number of Loden's, mostly one of a baseline, and a budget.
//! Filled in by the groups, printed and written by `main.rs`.

use serde::Serialize;

/// One measurement beside one baseline. The member names are those of the JSON and stay.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    metric: String,
    unit: &'static str,
    /// Median over the rounds.
    loden: f64,
    /// The baseline's median over the rounds.
    baseline: Option<f64>,
    baseline_name: Option<String>,
    /// Median of the rounds' own ratios of Loden to the baseline.
    ratio: Option<f64>,
    budget: Option<String>,
    holds: Option<bool>,
    rounds: usize,
    /// Of Loden's rounds: highest less lowest, as a part of the median.
    spread: f64,
}

/// What a number may be at most.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// In the row's unit.
    Value(f64),
    /// Times the baseline.
    Ratio(f64),
}

impl Row {
    /// Loden's values, one a round.
    pub(crate) fn new(metric: impl Into<String>, unit: &'static str, loden: &[f64]) -> Self {
        let middle = median(loden);
        let lowest = loden.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = loden.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self {
            metric: metric.into(),
            unit,
            loden: middle,
            baseline: None,
            baseline_name: None,
            ratio: None,
            budget: None,
            holds: None,
            rounds: loden.len(),
            spread: if middle > 0.0 { (highest - lowest) / middle } else { 0.0 },
        }
    }

    /// Beside a baseline, measured in the same rounds.
    pub(crate) fn beside(mut self, name: &str, loden: &[f64], baseline: &[f64]) -> Self {
        let ratios: Vec<f64> = loden.iter().zip(baseline).map(|(l, b)| l / b).collect();
        self.baseline = Some(median(baseline));
        self.baseline_name = Some(name.into());
        self.ratio = Some(median(&ratios));
        self
    }

    /// With a budget, after the baseline.
    pub(crate) fn within(mut self, budget: Budget) -> Self {
        let (text, holds) = match budget {
            Budget::Value(most) => (format!("<= {most} {}", self.unit), Some(self.loden <= most)),
            Budget::Ratio(most) => (format!("<= {most} x"), self.ratio.map(|ratio| ratio <= most)),
        };
        self.budget = Some(text);
        self.holds = holds;
        self
    }
}

/// The middle value, or the mean of the two middle ones.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 0) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        (middle, _) => sorted[middle],
    }
}

/// The value that `percent` of all values do not exceed (nearest rank).
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The rows for people.
pub(crate) fn table(group: &str, rows: &[Row]) -> String {
    let header = ["metric", "loden", "spread", "baseline", "", "ratio", "budget", ""].map(str::to_owned);
    let mut lines = vec![header];
    for row in rows {
        let number = |value: f64| format!("{value:.2} {}", row.unit);
        lines.push([
            row.metric.clone(),
            number(row.loden),
            format!("{:.0} %", row.spread * 100.0),
            row.baseline.map(number).unwrap_or_default(),
            row.baseline_name.clone().unwrap_or_default(),
            row.ratio.map(|r| format!("{r:.2}")).unwrap_or_default(),
            row.budget.clone().unwrap_or_default(),
            row.holds.map(|holds| if holds { "holds" } else { "ABOVE" }.to_owned()).unwrap_or_default(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut out = format!("{group}\n");
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            1..=3 | 5 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        out += format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 50.0), percentile(&values, 99.0)), (50.0, 99.0));
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_own() {
        let (loden, baseline) = ([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]);
        let row = Row::new("x", "ms", &loden).beside("b", &loden, &baseline).within(Budget::Ratio(1.5));
        assert_eq!((row.loden, row.baseline, row.ratio), (4.0, Some(4.0), Some(2.0)));
        assert_eq!(row.holds, Some(false));
        assert_eq!(Row::new("x", "ms", &loden).within(Budget::Value(4.0)).holds, Some(true));
    }
}
