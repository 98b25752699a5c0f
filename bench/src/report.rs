//! What a part found: rows with a number of Loden's, mostly one of a baseline, and a budget; and
//! whether the rounds agree well enough to say so. Filled in by the groups, printed and written
//! by `main.rs`.
//!
//! Nothing is said that another run may contradict. The median's 94 % confidence interval (for
//! five rounds from the lowest to the highest) must lie on one side of 1 for a ratio to be stated,
//! and on one side of the budget for a verdict; else the row says `too noisy`. With fewer rounds
//! than such an interval needs it says `too few rounds`.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Rounds that lie on both sides of 1 and all this close to it show that there is no difference
/// worth the name.
const SAME: f64 = 0.05;
/// How often the true median may lie outside of a [`Range`]: what five rounds give, 2 / 2^5.
const MISS: f64 = 1.0 / 16.0;
/// With fewer, chance alone puts all rounds on one side more often than [`MISS`].
const FEWEST: usize = 5;
const TOO_NOISY: &str = "too noisy";
const TOO_FEW: &str = "too few rounds";

/// One measurement beside one baseline. Goes as JSON from the process that measures to the one that
/// reports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    metric: String,
    unit: Cow<'static, str>,
    /// One a round.
    loden: Vec<f64>,
    baseline: Option<Baseline>,
    budget: Option<Budget>,
    /// Others had the CPUs meanwhile.
    disturbed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    name: String,
    /// One a round, of the same rounds.
    values: Vec<f64>,
}

/// What a number may be.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Budget {
    /// At most so much, in the row's unit.
    Value(f64),
    /// At most so many times the baseline.
    Ratio(f64),
}

/// The JSON's members, whose names stay.
#[derive(Serialize)]
struct Record<'a> {
    metric: &'a str,
    unit: &'a str,
    /// Median over the rounds.
    loden: f64,
    /// The baseline's median over the rounds.
    baseline: Option<f64>,
    baseline_name: Option<&'a str>,
    /// Median of the rounds' own ratios; null if it cannot be told which of the two is larger.
    ratio: Option<f64>,
    budget: Option<String>,
    /// Null without a budget, and if it cannot be told.
    holds: Option<bool>,
    /// Why it cannot be told: `too noisy` or `too few rounds`.
    untold: Option<&'static str>,
    rounds: usize,
    /// Width of the range of the rounds' ratios (without a baseline, of Loden's rounds), as a part
    /// of the median.
    spread: f64,
}

/// Why rows say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untold {
    /// Their rounds do not agree.
    TooNoisy,
    /// There are too few rounds for a verdict.
    TooFew,
}

/// A median with its 94 % confidence interval.
#[derive(Debug, Clone, Copy)]
struct Range {
    low: f64,
    median: f64,
    high: f64,
}

/// What the rounds say.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told<T> {
    /// This.
    Clearly(T),
    /// Nothing: the spread is larger than what it would have to show.
    TooNoisy,
    /// Nothing: so few may all lie on one side by chance, or there are none.
    TooFew,
    /// There was no question.
    Unasked,
}

impl Range {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outer = outliers(sorted.len());
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self { low: at(outer), median: median(values), high: at(last - outer) }
    }

    fn spread(self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median }
    }

    /// Which of two is larger; `false` for a difference that is none.
    fn differs_from_one(self) -> Told<bool> {
        if self.low >= 1.0 || self.high <= 1.0 {
            Told::Clearly(true)
        } else if self.low >= 1.0 - SAME && self.high <= 1.0 + SAME {
            Told::Clearly(false)
        } else {
            Told::TooNoisy
        }
    }

    fn at_most(self, bound: f64) -> Told<bool> {
        match (self.high <= bound, self.low > bound) {
            (true, _) => Told::Clearly(true),
            (_, true) => Told::Clearly(false),
            _ => Told::TooNoisy,
        }
    }
}

/// How many rounds at either end can be left out so that the true median still lies between those
/// that are left, but for a probability of [`MISS`]: none of five, one of nine, two of twelve. Each
/// round is above or below the true median as a coin falls, so they are counted by the binomial
/// distribution, whatever the rounds' own distribution.
fn outliers(rounds: usize) -> usize {
    let mut exactly = 0.5_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX));
    let mut at_most = exactly;
    let mut outer = 0;
    loop {
        exactly *= (rounds - outer) as f64 / (outer + 1) as f64;
        at_most += exactly;
        if 2.0 * at_most > MISS {
            return outer;
        }
        outer += 1;
    }
}

impl<T> Told<T> {
    fn clearly(self) -> Option<T> {
        match self {
            Told::Clearly(value) => Some(value),
            Told::TooNoisy | Told::TooFew | Told::Unasked => None,
        }
    }

    /// Why the question has no answer.
    fn untold(self) -> Option<&'static str> {
        match self {
            Told::TooNoisy => Some(TOO_NOISY),
            Told::TooFew => Some(TOO_FEW),
            Told::Clearly(_) | Told::Unasked => None,
        }
    }
}

impl Budget {
    fn text(self, unit: &str) -> String {
        match self {
            Budget::Value(most) => format!("<= {most} {unit}"),
            Budget::Ratio(most) => format!("<= {most} x"),
        }
    }
}

impl Row {
    /// Loden's values, one a round.
    pub(crate) fn new(metric: impl Into<String>, unit: &'static str, loden: &[f64]) -> Self {
        Self {
            metric: metric.into(),
            unit: unit.into(),
            loden: loden.into(),
            baseline: None,
            budget: None,
            disturbed: false,
        }
    }

    /// Beside a baseline, measured in the same rounds.
    pub(crate) fn beside(mut self, name: &str, values: &[f64]) -> Self {
        self.baseline = Some(Baseline { name: name.into(), values: values.into() });
        self
    }

    /// With a budget.
    pub(crate) fn within(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Says that others had the CPUs meanwhile. What waits for a CPU takes as long whoever it is, which draws ratios
    /// to 1 and the rounds together: no budget of a ratio is judged then.
    pub(crate) fn disturb(&mut self) {
        self.disturbed = true;
    }

    fn range(&self) -> Range {
        Range::of(&self.loden)
    }

    /// Of the rounds' own ratios, Loden to the baseline; `None` where the baseline was zero.
    fn ratios(&self) -> Option<Range> {
        let baseline = self.baseline.as_ref()?;
        let ratios: Vec<f64> = self.loden.iter().zip(&baseline.values).map(|(l, b)| l / b).collect();
        let comparable = !ratios.is_empty() && ratios.iter().all(|ratio| ratio.is_finite());
        comparable.then(|| Range::of(&ratios))
    }

    /// Whether Loden and the baseline differ.
    fn differs(&self) -> Told<bool> {
        self.ratios().map_or(Told::Unasked, |ratios| self.tell(ratios.differs_from_one()))
    }

    /// Whether the budget holds.
    fn holds(&self) -> Told<bool> {
        match (self.budget, self.ratios()) {
            (Some(Budget::Value(most)), _) => self.tell(self.range().at_most(most)),
            (Some(Budget::Ratio(_)), Some(_)) if self.disturbed => Told::TooNoisy,
            (Some(Budget::Ratio(most)), Some(ratios)) => self.tell(ratios.at_most(most)),
            _ => Told::Unasked,
        }
    }

    /// What the rounds say, if they are enough to say anything.
    fn tell(&self, told: Told<bool>) -> Told<bool> {
        if self.loden.len() < FEWEST { Told::TooFew } else { told }
    }

    fn is(&self, told: Told<bool>) -> bool {
        self.differs() == told || self.holds() == told
    }

    fn record(&self) -> Record<'_> {
        let baseline = self.baseline.as_ref();
        Record {
            metric: &self.metric,
            unit: &self.unit,
            loden: self.range().median,
            baseline: baseline.map(|baseline| median(&baseline.values)),
            baseline_name: baseline.map(|baseline| baseline.name.as_str()),
            ratio: self.differs().clearly().and(self.ratios()).map(|ratios| ratios.median),
            budget: self.budget.map(|budget| budget.text(&self.unit)),
            holds: self.holds().clearly(),
            untold: self.differs().untold().or(self.holds().untold()),
            rounds: self.loden.len(),
            spread: self.ratios().unwrap_or(self.range()).spread(),
        }
    }

    fn cells(&self) -> [String; 9] {
        let with_unit = |value: f64| format!("{} {}", number(value), self.unit);
        let baseline = self.baseline.as_ref();
        [
            self.metric.clone(),
            with_unit(self.range().median),
            format!("{:.0} %", self.range().spread() * 100.0),
            baseline.map(|b| with_unit(median(&b.values))).unwrap_or_default(),
            baseline.map(|b| b.name.clone()).unwrap_or_default(),
            match (self.differs(), self.ratios()) {
                (Told::Clearly(true), Some(ratios)) => number(ratios.median),
                (Told::Clearly(false), _) => "same".into(),
                (other, _) => other.untold().unwrap_or_default().into(),
            },
            self.ratios().map(|r| format!("{} to {}", number(r.low), number(r.high))).unwrap_or_default(),
            self.budget.map(|budget| budget.text(&self.unit)).unwrap_or_default(),
            match self.holds() {
                Told::Clearly(true) => "holds",
                Told::Clearly(false) => "ABOVE",
                other => other.untold().unwrap_or_default(),
            }
            .into(),
        ]
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

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// The rows of a part for programs.
pub(crate) fn json(rows: &[Row]) -> serde_json::Result<String> {
    let records: Vec<Record<'_>> = rows.iter().map(Row::record).collect();
    serde_json::to_string_pretty(&records).map(|text| text + "\n")
}

/// Why the rows as a whole say nothing, if more than half of them cannot tell what they are there for.
pub(crate) fn untold(rows: &[Row]) -> Option<Untold> {
    let most = |told| rows.iter().filter(|row| row.is(told)).count() * 2 > rows.len();
    if most(Told::TooNoisy) { Some(Untold::TooNoisy) } else { most(Told::TooFew).then_some(Untold::TooFew) }
}

/// The rows of all parts for people, in one table, and what is to be known of it.
pub(crate) fn table(parts: &[(&str, Vec<Row>)], rounds: u32) -> String {
    let header = ["metric", "loden", "spread", "baseline", "", "ratio", "range", "budget", ""];
    let header = header.map(str::to_owned);
    let rows: Vec<&Row> = parts.iter().flat_map(|(_, rows)| rows).collect();
    let mut widths = header.each_ref().map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row.cells()) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = line(&header, &widths);
    for (part, rows) in parts {
        let _ = writeln!(out, "{part}");
        out.extend(rows.iter().map(|row| line(&row.cells(), &widths)));
    }
    if rows.iter().any(|row| row.differs() == Told::Clearly(false)) {
        let percent = SAME * 100.0;
        let _ = writeln!(out, "same: rounds on both sides of 1, and all within {percent} % of it");
    }
    let noisy = rows.iter().filter(|row| row.is(Told::TooNoisy)).count();
    if noisy > 0 {
        let _ = writeln!(
            out,
            "{TOO_NOISY}: {noisy} of {} rows cannot tell, because their rounds lie on both sides of 1 or of the \
             budget; measure\nwhile nothing else runs, or with more rounds (LODEN_BENCH_ROUNDS={} make bench)",
            rows.len(),
            rounds * 3
        );
    }
    for (part, _) in parts.iter().filter(|(_, rows)| rows.iter().any(|row| row.disturbed)) {
        let _ = writeln!(
            out,
            "{part}: others took CPU time all along, so no budget of a ratio is judged; believe no number of it much"
        );
    }
    if rows.iter().any(|row| row.is(Told::TooFew)) {
        let _ = writeln!(
            out,
            "{TOO_FEW}: with fewer than {FEWEST} all may lie on one side by chance, so nothing is said of them"
        );
    }
    out
}

fn line(cells: &[String; 9], widths: &[usize; 9]) -> String {
    let cells = cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
        1..=3 | 5 => format!("{cell:>width$}"),
        _ => format!("{cell:<width$}"),
    });
    format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests;
