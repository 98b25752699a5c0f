//! The table of counts: read, written, compared. Pure; called by `main.rs`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// A count may grow by so much, in percent, before somebody must say that it is meant.
const LIMIT: u64 = 5;
/// What is counted, in the order of the table's columns.
const COLUMNS: [&str; 4] = ["instructions", "allocations", "bytes", "peak"];
const HEADER: &str = "\
# What the pure core takes with 10,000 leases: instructions, allocations, bytes allocated, most bytes in use at once.
# Compared by `make check-perf`, written by `make check-perf RECORD=1`. docs/benchmarks.md tells what the rows are.
";

/// The counts of one operation, one for each column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts(pub(crate) [u64; 4]);

/// Counts, and what they were taken with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Instruction set and C library.
    pub(crate) platform: String,
    /// `rustc --version`
    pub(crate) compiler: String,
    /// By operation.
    pub(crate) rows: Vec<(String, Counts)>,
}

/// One count beside the recorded one.
#[derive(Debug)]
struct Line {
    operation: String,
    column: &'static str,
    recorded: Option<u64>,
    now: Option<u64>,
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No count grew too much.
    Holds,
    /// One did, or is not in the table.
    Grew,
    /// The table is of another platform.
    NotComparable,
}

/// How the counts have changed.
#[derive(Debug)]
pub(crate) struct Comparison {
    lines: Vec<Line>,
    /// What else differs, for people.
    remarks: Vec<String>,
    /// Whether the counts can be compared at all.
    comparable: bool,
}

impl Table {
    /// Reads what [`Table::to_text`] writes.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut table = Self { platform: String::new(), compiler: String::new(), rows: Vec::new() };
        for line in text.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [] | ["#", ..] | ["operation", ..] => {}
                ["platform", platform] => table.platform = platform.into(),
                ["compiler", ..] => table.compiler = line["compiler".len()..].trim().into(),
                [operation, ref numbers @ ..] => {
                    let numbers: Result<Vec<u64>, _> = numbers.iter().map(|n| n.parse()).collect();
                    let numbers = numbers.ok().and_then(|n| n.try_into().ok());
                    let numbers = numbers.with_context(|| format!("{line:?} is no row of {COLUMNS:?}"))?;
                    table.rows.push((operation.into(), Counts(numbers)));
                }
            }
        }
        if table.platform.is_empty() {
            bail!("there is no line with the platform");
        }
        Ok(table)
    }

    /// For the file.
    pub(crate) fn to_text(&self) -> String {
        let mut text = HEADER.to_owned();
        let _ = writeln!(text, "platform {}\ncompiler {}\n", self.platform, self.compiler);
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("operation".len());
        let _ = write!(text, "{:<width$}", "operation");
        text.extend(COLUMNS.map(|column| format!("  {column:>12}")));
        for (operation, Counts(counts)) in &self.rows {
            let _ = write!(text, "\n{operation:<width$}");
            text.extend(counts.map(|count| format!("  {count:>12}")));
        }
        text + "\n"
    }

    /// Beside counts of now.
    pub(crate) fn compare(&self, now: &Table) -> Comparison {
        let mut lines = Vec::new();
        let find = |rows: &[(String, Counts)], name: &str| {
            rows.iter().find(|(other, _)| other == name).map(|(_, counts)| *counts)
        };
        let gone = self.rows.iter().filter(|(name, _)| find(&now.rows, name).is_none());
        for (operation, _) in now.rows.iter().chain(gone) {
            let (recorded, now) = (find(&self.rows, operation), find(&now.rows, operation));
            for (place, column) in COLUMNS.into_iter().enumerate() {
                let at = |counts: Option<Counts>| counts.map(|Counts(all)| all[place]);
                lines.push(Line {
                    operation: operation.clone(),
                    column,
                    recorded: at(recorded),
                    now: at(now),
                });
            }
        }
        let mut remarks = Vec::new();
        let comparable = self.platform == now.platform;
        if !comparable {
            remarks.push(format!(
                "NOT COMPARED: the table is of {}, this is {}, where the same code has other counts",
                self.platform, now.platform
            ));
        } else if self.compiler != now.compiler {
            remarks.push(format!("the table is of {}, this is {}", self.compiler, now.compiler));
        }
        Comparison { lines, remarks, comparable }
    }
}

impl Line {
    /// In percent, for people.
    fn change(&self) -> Option<f64> {
        match (self.recorded?, self.now?) {
            (recorded, now) if recorded == now => Some(0.0),
            (recorded, now) => Some((now as f64 / recorded as f64 - 1.0) * 100.0),
        }
    }

    /// In whole numbers: exactly the limit is within it, and from nothing to something is not.
    fn breaks(&self) -> bool {
        let (Some(recorded), Some(now)) = (self.recorded, self.now) else { return true };
        now * 100 > recorded * (100 + LIMIT)
    }

    fn shrank(&self) -> bool {
        let (Some(recorded), Some(now)) = (self.recorded, self.now) else { return false };
        now * 100 < recorded * (100 - LIMIT)
    }

    fn verdict(&self) -> &'static str {
        match (self.recorded, self.now) {
            (None, _) => "NOT RECORDED",
            (_, None) => "GONE",
            _ if self.breaks() => "GREW",
            _ => "",
        }
    }
}

impl Comparison {
    pub(crate) fn verdict(&self) -> Verdict {
        match (self.comparable, self.lines.iter().any(Line::breaks)) {
            (false, _) => Verdict::NotComparable,
            (true, true) => Verdict::Grew,
            (true, false) => Verdict::Holds,
        }
    }

    /// For people. `folder` has callgrind's files.
    pub(crate) fn text(&self, folder: &Path) -> String {
        let width = self.lines.iter().map(|line| line.operation.len()).max().unwrap_or(0);
        let mut text = format!(
            "{:<width$}  {:<12}  {:>11}  {:>11}  {:>8}\n",
            "operation", "count", "recorded", "now", "change"
        );
        for line in &self.lines {
            let number = |count: Option<u64>| count.map(|c| c.to_string()).unwrap_or_default();
            let change = line.change().map(|change| format!("{change:+.1} %")).unwrap_or_default();
            let verdict = if self.comparable { line.verdict() } else { "" };
            let row = format!(
                "{:<width$}  {:<12}  {:>11}  {:>11}  {change:>8}  {verdict}",
                line.operation,
                line.column,
                number(line.recorded),
                number(line.now)
            );
            let _ = writeln!(text, "{}", row.trim_end());
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "{remark}");
        }
        let broken: Vec<&Line> = self.lines.iter().filter(|line| line.breaks()).collect();
        if let (Some(first), true) = (broken.first(), self.comparable) {
            let _ = writeln!(
                text,
                "{} of {} counts grew by more than {LIMIT} %, or are not recorded. Where the instructions go: \
                 callgrind_annotate {}\nIf it is meant, record them with `make check-perf RECORD=1`, and say in \
                 the commit what they buy.",
                broken.len(),
                self.lines.len(),
                folder.join(format!("{}.callgrind", first.operation)).display(),
            );
        }
        let shrank = self.lines.iter().filter(|line| line.shrank()).count();
        if shrank > 0 && self.comparable {
            let _ = writeln!(
                text,
                "{shrank} counts shrank by more than {LIMIT} %: record them with `make check-perf RECORD=1`, or \
                 growing back will not be seen."
            );
        }
        text
    }
}

/// The sum in a file of callgrind's, which counts instructions alone unless told otherwise.
pub(crate) fn callgrind_total(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, [u64; 4])]) -> Table {
        let rows = rows.iter().map(|(name, counts)| ((*name).to_owned(), Counts(*counts))).collect();
        Table { platform: "x86_64-musl".into(), compiler: "rustc 1.95.0 (abc)".into(), rows }
    }

    #[test]
    fn what_is_written_is_read() {
        let all = table(&[("decode", [1_000_000_000, 2, 3, 4]), ("b", [0; 4])]);
        assert_eq!(Table::parse(&all.to_text()).expect("own text"), all);
        for broken in ["", "platform x\ndecode 1 2 3", "platform x\ndecode 1 2 3 four"] {
            Table::parse(broken).expect_err(broken);
        }
    }

    #[test]
    fn growth_above_the_limit_is_named() {
        let recorded = table(&[("decode", [1000, 100, 0, 100]), ("diff", [10; 4])]);
        let within = recorded.compare(&table(&[("decode", [1050, 105, 0, 50]), ("diff", [10; 4])]));
        assert_eq!(within.verdict(), Verdict::Holds);
        assert!(within.text(Path::new("t")).contains("1 counts shrank"));
        for grown in [[1051, 100, 0, 100], [1000, 106, 0, 100], [1000, 100, 1, 100], [1000, 100, 0, 110]] {
            let comparison = recorded.compare(&table(&[("decode", grown), ("diff", [10; 4])]));
            assert_eq!(comparison.verdict(), Verdict::Grew, "{grown:?}");
            let text = comparison.text(Path::new("t"));
            assert_eq!(text.matches("GREW").count(), 1, "{text}");
            assert!(text.contains("t/decode.callgrind"), "{text}");
        }
    }

    #[test]
    fn new_and_vanished_operations_must_be_recorded() {
        let recorded = table(&[("a", [1; 4])]);
        let more = recorded.compare(&table(&[("a", [1; 4]), ("b", [1; 4])]));
        assert_eq!(more.verdict(), Verdict::Grew);
        assert_eq!(recorded.compare(&table(&[])).verdict(), Verdict::Grew);
    }

    #[test]
    fn counts_of_another_platform_are_shown_and_not_judged() {
        let recorded = table(&[("a", [1; 4])]);
        let elsewhere = Table { platform: "aarch64-musl".into(), ..table(&[("a", [9; 4])]) };
        let comparison = recorded.compare(&elsewhere);
        assert_eq!(comparison.verdict(), Verdict::NotComparable);
        assert!(comparison.text(Path::new("t")).contains("NOT COMPARED"));
    }

    #[test]
    fn callgrinds_total_is_found() {
        assert_eq!(callgrind_total("events: Ir\nfn=(1)\n1 2\n\ntotals: 81340\n"), Some(81340));
        assert_eq!(callgrind_total("events: Ir\n"), None);
    }
}
