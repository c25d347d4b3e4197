//! Where the time of an operation went: `--trace`, and the table that it prints.

use clap::Args;

use super::client::{Span, Tracing};
use super::output::{Format, printable, table, tell};

/// Columns that the longest bar has, where there is room.
const LONGEST_BAR: usize = 40;
/// Columns of a terminal that does not say how many it has.
const TERMINAL: usize = 80;

/// The flag of every verb that takes its time.
#[derive(Debug, Clone, Copy, Args)]
pub struct TraceArgs {
    /// Tell on stderr where the time went
    #[arg(long)]
    trace: bool,
}

impl TraceArgs {
    pub(super) fn tracing(self) -> Tracing {
        if self.trace { Tracing::On } else { Tracing::Off }
    }
}

/// Tells where the time went, if the daemon said so. On stderr, so that a script which reads the
/// result does not read this; JSON has it within.
pub(super) fn tell_trace(format: Format, trace: Option<&[Span]>) {
    if let (Format::Text, Some(spans)) = (format, trace) {
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        tell(render(spans, columns.unwrap_or(TERMINAL)).trim_end());
    }
}

/// One line a span, in the order of their beginnings; one that holds others stands above them.
fn render(spans: &[Span], columns: usize) -> String {
    let mut spans: Vec<_> = spans.iter().collect();
    spans.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms).then(b.took_ms.total_cmp(&a.took_ms)));
    let names: Vec<_> = spans.iter().map(|span| printable(&span.span).replace('\n', " ")).collect();
    let starts = right("START MS", spans.iter().map(|span| span.start_ms));
    let times = right("TOOK MS", spans.iter().map(|span| span.took_ms));
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("SPAN".len());
    let taken = widest + starts[0].len() + times[0].len() + 3 * "  ".len();
    let scale = Scale {
        columns: columns.saturating_sub(taken).min(LONGEST_BAR),
        end_ms: spans.iter().map(|span| span.start_ms + span.took_ms).fold(0.0, f64::max),
    };
    let rows: Vec<_> = spans
        .iter()
        .zip(names)
        .zip(starts.iter().zip(&times).skip(1))
        .map(|((span, name), (start, took))| [name, start.clone(), took.clone(), scale.bar(span)])
        .collect();
    table(["SPAN", &starts[0], &times[0], ""], &rows)
}

/// A heading and the numbers below it, all of one width.
fn right(heading: &str, numbers: impl Iterator<Item = f64>) -> Vec<String> {
    let cells: Vec<_> = std::iter::once(heading.to_owned())
        .chain(numbers.map(|number| format!("{number:.1}")))
        .collect();
    let width = cells.iter().map(String::len).max().unwrap_or(0);
    cells.into_iter().map(|cell| format!("{cell:>width$}")).collect()
}

/// How long a bar is.
struct Scale {
    /// Of the whole operation.
    columns: usize,
    /// When the operation ended.
    end_ms: f64,
}

impl Scale {
    /// The bar of a span, where it lies in time. One that is too short for the scale is a stroke.
    fn bar(&self, span: &Span) -> String {
        if self.columns == 0 {
            return String::new();
        }
        let at =
            |ms: f64| if self.end_ms > 0.0 { ms / self.end_ms * self.columns as f64 } else { 0.0 };
        // A float becomes 0 at least, and no more columns than there are.
        let begin = (at(span.start_ms).round() as usize).min(self.columns - 1);
        let length = (at(span.took_ms).round() as usize).min(self.columns - begin);
        let bar = if length == 0 { "|".to_owned() } else { "#".repeat(length) };
        format!("{}{bar}", " ".repeat(begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, start_ms: f64, took_ms: f64) -> Span {
        Span { span: name.to_owned(), start_ms, took_ms }
    }

    #[test]
    fn a_bar_lies_where_its_span_lies_in_time() {
        let spans = [span("network", 0.0, 10.0), span("boot", 10.0, 30.0), span("ü", 29.96, 10.04)];
        let want = "\
SPAN     START MS  TOOK MS
network       0.0     10.0  ##########
boot         10.0     30.0            ##############################
ü            30.0     10.0                                ##########
";
        assert_eq!(render(&spans, 200), want);
    }

    #[test]
    fn a_span_stands_above_those_that_it_holds() {
        let spans = [span("in", 0.0, 1.0), span("late", 5.0, 1.0), span("all", 0.0, 6.0)];
        let text = render(&spans, 80);
        let names: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["SPAN", "all", "in", "late"]);
    }

    #[test]
    fn a_span_without_length_is_a_stroke_within_the_scale() {
        let spans = [span("all", 0.0, 100.0), span("none", 50.0, 0.0), span("end", 100.0, 0.0)];
        let text = render(&spans, 80);
        let bars: Vec<_> = text.lines().skip(1).map(|line| &line[25..]).collect();
        assert_eq!(bars[1], format!("{}|", " ".repeat(20)));
        assert_eq!(bars[2], format!("{}|", " ".repeat(39)));
    }

    #[test]
    fn an_operation_that_took_no_time_has_a_table() {
        let want = "SPAN  START MS  TOOK MS\nnone       0.0      0.0  |\n";
        assert_eq!(render(&[span("none", 0.0, 0.0)], 80), want);
        assert_eq!(render(&[], 80), "SPAN  START MS  TOOK MS\n");
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_has_columns() {
        let spans = [span("restore the memory", 0.0, 1234.5), span("b", 1000.0, 234.5)];
        for columns in [50, 60, 80, 120] {
            let text = render(&spans, columns);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert_eq!(widest, columns.min(79), "{text}");
        }
        // Too narrow for any bar: the numbers stay.
        assert!(render(&spans, 10).ends_with("1000.0    234.5\n"));
    }

    #[test]
    fn numbers_that_make_no_sense_break_no_table() {
        let spans =
            [span("before", -5.0, 1.0), span("long", 0.0, 1e300), span("a\x1b\nb", 1.0, -1.0)];
        let text = render(&spans, 80);
        assert!(text.contains("a\\u{1b} b"), "{text}");
        assert_eq!(text.lines().count(), 4);
    }
}
