//! Tables: aligned columns for people, Markdown and CSV for documents and spreadsheets.

use std::fmt::Write;

/// Rows of text under a header.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet.
    pub fn new(header: &[&str]) -> Table {
        Table {
            header: header.iter().map(|&h| h.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; as many cells as the header has.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.header.len(), "{row:?}");
        self.rows.push(row);
    }

    /// Columns two blanks apart: the first to the left, the others to the right.
    pub fn columns(&self) -> String {
        let mut out = String::new();
        for row in self.padded() {
            out.push_str(row.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// A Markdown table that is readable as it stands.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for (i, row) in self.padded().iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "| {} |", row.join(" | "));
            if i == 0 {
                let rule = |(column, cell): (usize, &String)| {
                    let dashes = "-".repeat(cell.chars().count() + 1);
                    if column == 0 {
                        format!("{dashes}-")
                    } else {
                        format!("{dashes}:")
                    }
                };
                let rules: Vec<String> = row.iter().enumerate().map(rule).collect();
                let _ = writeln!(out, "|{}|", rules.join("|"));
            }
        }
        out
    }

    /// All rows, the header first, with every cell as wide as its column.
    fn padded(&self) -> Vec<Vec<String>> {
        let rows = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| {
            let cells = rows().filter_map(|r| r.get(column));
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let pad = |(column, cell): (usize, &String)| {
            let width = width(column);
            if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        };
        rows()
            .map(|row| row.iter().enumerate().map(pad).collect())
            .collect()
    }
}

/// A line of comma-separated values, every text quoted as llama-bench does.
pub fn csv_line(cells: impl IntoIterator<Item = String>) -> String {
    let quoted: Vec<String> = cells
        .into_iter()
        .map(|c| format!("\"{}\"", c.replace('"', "\"\"")))
        .collect();
    quoted.join(",") + "\n"
}

/// Bytes as people read them: 1 GiB is 2^30 bytes.
pub fn bytes(n: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value:.0} B")
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// A number of parameters as people read it: 134.52 M.
pub fn parameters(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n => format!("{:.2} K", n / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_line_up_in_columns_and_in_markdown() {
        let mut t = Table::new(&["name", "n"]);
        t.row(["a".into(), "10".into()]);
        t.row(["long name".into(), "7".into()]);
        assert_eq!(t.columns(), "name        n\na          10\nlong name   7\n");
        assert_eq!(
            t.markdown(),
            "| name      |  n |\n|-----------|---:|\n| a         | 10 |\n| long name |  7 |\n"
        );
    }

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(csv_line(["a\"b".into(), "1".into()]), "\"a\"\"b\",\"1\"\n");
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(1536.0), "1.50 KiB");
        assert_eq!(parameters(134_515_008), "134.52 M");
    }
}
