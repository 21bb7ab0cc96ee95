//! Text in columns, as kubectl writes it. Pure.

/// Blanks between two columns of a table.
const GAP: usize = 3;
/// Narrowest column of a table, its gap included.
const NARROWEST: usize = 6;

/// Prints rows; remembers widths, so that rows that a watch adds stay in line.
#[derive(Debug, Default)]
pub(super) struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// Lays out rows; the last column is not padded.
    pub(super) fn rows(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        for row in &rows {
            self.widths.resize(self.widths.len().max(row.len()), NARROWEST);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count() + GAP);
            }
        }
        let mut out = String::new();
        for row in &rows {
            for (index, cell) in row.iter().enumerate() {
                out.push_str(cell);
                if index + 1 < row.len() {
                    pad(&mut out, self.widths[index] - cell.chars().count());
                }
            }
            out.push('\n');
        }
        out
    }
}

/// One line without control characters: text of containers and manifests must not drive the terminal.
pub(super) fn printable(text: &str) -> String {
    let (line, cut) = match text.find(['\n', '\r', '\u{c}']) {
        Some(end) => (&text[..end], "..."),
        None => (text, ""),
    };
    let mut out: String = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    out.push_str(cut);
    out
}

/// Aligns tab-separated cells: neighbouring lines that have a cell in a column share its width, as Go's tabwriter.
pub(super) fn align(text: &str, gap: usize) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|line| vec![0; line.len()]).collect();
    for column in 0..columns {
        let mut start = 0;
        while start < lines.len() {
            // A cell belongs to a column when a tab ends it.
            let run = lines[start..].iter().take_while(|line| line.len() > column + 1).count();
            let block = start..start + run;
            let width = lines[block.clone()].iter().map(|line| line[column].chars().count() + gap).max().unwrap_or(0);
            for line in &mut widths[block] {
                line[column] = width;
            }
            start += run.max(1);
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        for (column, cell) in line.iter().enumerate() {
            out.push_str(cell);
            pad(&mut out, widths[index][column].saturating_sub(cell.chars().count()));
        }
    }
    out
}

fn pad(out: &mut String, blanks: usize) {
    out.extend(std::iter::repeat_n(' ', blanks));
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let mut table = Table::default();
        let text = table.rows(&[row(&["NAME", "R", "AGE"]), row(&["a-long-name", "1", "5s"])]);
        expect![[r#"
            NAME          R     AGE
            a-long-name   1     5s
        "#]]
        .assert_eq(&text);
        assert_eq!(table.rows(&[row(&["b", "\u{1b}[2J", "x\ny"])]), "b             \u{fffd}[2J   x...\n");
    }

    #[test]
    fn neighbouring_lines_share_a_column() {
        expect![[r#"
            Name:       a
            Namespace:  b
            Containers:
              x:
                Image:  c
                ID:     d"#]]
        .assert_eq(&align("Name:\ta\nNamespace:\tb\nContainers:\n  x:\n    Image:\tc\n    ID:\td", 2));
    }

    proptest! {
        #[test]
        fn aligning_only_adds_blanks(text in "[a-z\t\n ]{0,80}") {
            let squeeze = |text: &str| text.replace(['\t', ' '], "");
            prop_assert_eq!(squeeze(&align(&text, 2)), squeeze(&text));
        }
    }
}
