//! Printing that survives a reader who has gone, and tables that align.

use std::io::{ErrorKind, Write};

/// Writes to standard output. A closed pipe (`loden status | head`) is no error. Control characters
/// are shown, not obeyed: some of what is printed comes from the network.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let text = &shown(text, &['\n', '\t']);
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value as indented JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn shown(text: &str, allowed: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !allowed.contains(&c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Rows with columns as wide as their widest cell, two spaces apart.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|r| r.iter().map(|cell| shown(cell, &[])).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(head.to_vec());
    for row in &rows {
        out.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    out
}

/// `3d4h`, `5m10s`: the two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let units = [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (size, name) in units {
        if left >= size {
            parts.push(format!("{}{name}", left / size));
            left %= size;
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "0s".into() } else { parts.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_trailing_space() {
        let text = table(
            &["SUBNET", "STATE"],
            &[vec!["10.5.1.0/24".into(), "ok".into()], vec!["x".into(), String::new()]],
        );
        assert_eq!(text, "SUBNET       STATE\n10.5.1.0/24  ok\nx\n");
    }

    #[test]
    fn control_characters_neither_forge_rows_nor_reach_the_terminal() {
        let text = table(&["KEY"], &[vec!["a\u{1b}[31m\nb".into()]]);
        assert_eq!(text, "KEY\na\\u{1b}[31m\\nb\n");
    }

    #[test]
    fn a_duration_shows_its_two_largest_units() {
        assert_eq!([0, 59, 3600, 90061].map(duration), ["0s", "59s", "1h", "1d1h"]);
    }
}
