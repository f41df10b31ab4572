//! Charts as SVG that stands by itself: no scripts, no files from elsewhere, colours for light and dark pages.

mod axis;
mod bars;
mod lines;

pub use axis::{Axis, Scale};
pub use bars::{Bar, Bars};
pub use lines::{Chart, Legend, Mark, Point, Series, Stroke, Style, legend};

use std::fmt::{Display, Write};

/// Colours that can be told apart, on light and on dark pages.
const PALETTE: [(&str, &str); 12] = [
    ("#555555", "#bdbdbd"),
    ("#c8500a", "#ff9a52"),
    ("#1266ad", "#6ab4f5"),
    ("#0b8a63", "#3fd0a0"),
    ("#6f9a16", "#b4dc5a"),
    ("#a87900", "#f0c445"),
    ("#b3348c", "#f08bd0"),
    ("#6a4bb8", "#b39cf5"),
    ("#c22a2a", "#ff7f7f"),
    ("#108a9c", "#52d3e4"),
    ("#8a5a38", "#d8a47c"),
    ("#44607c", "#9cb8d4"),
];
/// Width of a character of the labels, nearly.
const CHARACTER: f64 = 6.3;

/// Charts as one document, `columns` side by side, on paper of its own: a file that a browser opens by itself.
pub fn document(title: &str, charts: &[Chart], columns: usize) -> String {
    let mut out = String::from("<rect width=\"100%\" height=\"100%\" fill=\"var(--paper)\"/>");
    let (mut width, mut height) = (0f64, 0f64);
    for row in charts.chunks(columns.max(1)) {
        let (mut x, mut tallest) = (0.0, 0f64);
        for chart in row {
            let (h, content) = chart.content();
            let _ = write!(
                out,
                "<g transform=\"translate({x} {height})\">{content}</g>"
            );
            x += chart.size.0;
            tallest = tallest.max(h);
        }
        width = width.max(x);
        height += tallest;
    }
    drawing(width, height, title, &out)
}

/// A drawing of some size; it shrinks with the page.
fn drawing(width: f64, height: f64, title: &str, content: &str) -> String {
    let [light, dark] = [0, 1].map(|theme| {
        let ink = [
            "#222222;--soft:#dddddd;--paper:#ffffff",
            "#dddddd;--soft:#444444;--paper:#181818",
        ][theme];
        let colours = PALETTE.iter().enumerate().map(|(i, pair)| {
            let colour = [pair.0, pair.1][theme];
            format!(";--c{i}:{colour}")
        });
        format!(".chart{{--ink:{ink}{}}}", colours.collect::<String>())
    });
    format!(
        "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\" \
         aria-label=\"{title}\"><style>{light}@media(prefers-color-scheme:dark){{{dark}}}\
         .chart{{max-width:100%;height:auto;font:11px system-ui,sans-serif}}.chart text{{fill:var(--ink)}}\
         .chart .t{{font-weight:600;font-size:13px}}.chart .g{{stroke:var(--soft)}}.chart .a{{stroke:var(--ink)}}</style>\
         {content}</svg>\n",
        title = escape(title)
    )
}

/// A label.
fn text(x: f64, y: f64, anchor: &str, content: impl Display) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(&content.to_string())
    )
}

/// The heading of a drawing.
fn heading(content: &str) -> String {
    format!(
        "<text class=\"t\" x=\"8\" y=\"16\">{}</text>",
        escape(content)
    )
}

/// A straight line of a class.
fn line(class: &str, [x1, y1, x2, y2]: [f64; 4]) -> String {
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>")
}

/// The palette's colour number `i`; there is no end of them.
fn colour(i: usize) -> String {
    format!("var(--c{})", i % PALETTE.len())
}

/// Text as HTML and SVG take it, in content and attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_every_chart_at_a_place_of_its_own() {
        let chart = |title: &str| Chart {
            title: title.into(),
            x: Axis::new("layer", Scale::Linear),
            y: Axis::new("", Scale::Linear),
            series: Vec::new(),
            size: (300.0, 200.0),
            legend: Legend::Apart,
        };
        let charts = ["a", "b", "c"].map(chart);
        let svg = document("three & more", &charts, 2);
        assert!(svg.contains("viewBox=\"0 0 600 400\"") && svg.contains("three &amp; more"));
        assert_eq!(svg.matches("xmlns").count(), 1);
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        for (place, title) in [("0 0", "a"), ("300 0", "b"), ("0 200", "c")] {
            let panel = format!("<g transform=\"translate({place})\">{}", heading(title));
            assert!(svg.contains(&panel), "{panel}");
        }
        assert!(!document("none", &[], 2).contains("NaN"));
    }
}
