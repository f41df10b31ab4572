//! Line charts.

use super::{
    CHARACTER,
    axis::{Axis, number},
    colour, drawing, escape, heading, line, text,
};
use std::fmt::Write;

/// Series of points over two axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Its heading.
    pub title: String,
    /// The axis across.
    pub x: Axis,
    /// The axis up.
    pub y: Axis,
    /// In the order of the legend.
    pub series: Vec<Series>,
    /// Width and height in pixels, without the legend.
    pub size: (f64, f64),
    /// Where their names stand.
    pub legend: Legend,
}

/// Where the series' names stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legend {
    /// Under the chart.
    Below,
    /// In a drawing of its own, for several charts; see [`legend`].
    Apart,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// What it looks like.
    pub style: Style,
    /// In the order of the line.
    pub points: Vec<Point>,
}

/// A point; those that an axis cannot show interrupt the line.
#[derive(Clone, Debug)]
pub struct Point {
    /// Value on the axis across.
    pub x: f64,
    /// Value on the axis up.
    pub y: f64,
    /// Shown where the pointer rests; may be empty.
    pub note: String,
}

/// What a series looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Number in the palette.
    pub colour: usize,
    /// Its line.
    pub stroke: Stroke,
    /// What stands at its points.
    pub mark: Mark,
}

/// A series' line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// Without gaps.
    Solid,
    /// With gaps.
    Dashed,
}

/// What stands at a series' points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A full circle.
    Disc,
    /// An empty circle.
    Ring,
    /// A full square.
    Square,
}

/// Room left, right, above and below of the plot.
const MARGINS: [f64; 4] = [52.0, 20.0, 30.0, 42.0];
const LEGEND_LINE: f64 = 18.0;
const SAMPLE: f64 = 30.0;

impl Chart {
    /// The drawing.
    pub fn svg(&self) -> String {
        let (height, content) = self.content();
        drawing(self.size.0, height, &self.title, &content)
    }

    /// What is drawn, and how high it is with the legend.
    pub(super) fn content(&self) -> (f64, String) {
        let (width, height) = self.size;
        let [left, right, above, below] = MARGINS;
        let (w, h) = (width - left - right, height - above - below);
        let points = || self.series.iter().flat_map(|s| &s.points);
        let x = self.x.range(points().map(|p| p.x));
        let y = self.y.range(points().map(|p| p.y));
        let place = |p: &Point| (x.place(p.x) * w, (1.0 - y.place(p.y)) * h);

        let mut out = heading(&self.title);
        for t in &x.ticks {
            let at = left + x.place(*t) * w;
            out += &line("g", [at, above, at, above + h]);
            out += &text(at, above + h + 15.0, "middle", number(*t));
        }
        for t in &y.ticks {
            let at = above + (1.0 - y.place(*t)) * h;
            out += &line("g", [left, at, left + w, at]);
            out += &text(left - 6.0, at + 4.0, "end", number(*t));
        }
        out += &line("a", [left, above + h, left + w, above + h]);
        out += &line("a", [left, above, left, above + h]);
        out += &text(left + w / 2.0, height - 8.0, "middle", &self.x.label);
        let (at, middle) = (13.0, above + h / 2.0);
        let _ = write!(
            out,
            "<g transform=\"rotate(-90 {at} {middle:.1})\">{}</g>",
            text(at, middle, "middle", &self.y.label)
        );
        // An inner drawing cuts off what lies beyond the axes, but for half a mark.
        let _ = write!(
            out,
            "<svg x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" viewBox=\"-4 -4 {} {}\">",
            left - 4.0,
            above - 4.0,
            w + 8.0,
            h + 8.0,
            w + 8.0,
            h + 8.0
        );
        for s in &self.series {
            out += &self.drawn(s, place);
        }
        out += "</svg>";
        let mut full = height;
        if self.legend == Legend::Below {
            let (names, rows) = entries(&self.series, width);
            let _ = write!(out, "<g transform=\"translate(0 {height})\">{names}</g>");
            full += rows as f64 * LEGEND_LINE + 4.0;
        }
        (full, out)
    }

    fn drawn(&self, s: &Series, place: impl Fn(&Point) -> (f64, f64)) -> String {
        let shown = |p: &&Point| self.x.shows(p.x) && self.y.shows(p.y);
        let mut out = String::new();
        let parts = s.points.split(|p| !shown(&p));
        for part in parts.filter(|part| part.len() > 1) {
            let path: Vec<String> = part
                .iter()
                .map(|p| {
                    let (x, y) = place(p);
                    format!("{x:.1},{y:.1}")
                })
                .collect();
            let _ = write!(
                out,
                "<polyline fill=\"none\" points=\"{}\" {}/>",
                path.join(" "),
                stroke(s.style)
            );
        }
        for p in s.points.iter().filter(shown) {
            let (x, y) = place(p);
            out += &mark(s.style, (x, y), &p.note);
        }
        out
    }
}

/// The names of some series as a drawing of their own.
pub fn legend(series: &[Series], width: f64) -> String {
    let (names, rows) = entries(series, width);
    drawing(width, rows as f64 * LEGEND_LINE + 4.0, "Legend", &names)
}

/// The names side by side, and how many rows they need.
fn entries(series: &[Series], width: f64) -> (String, usize) {
    let longest = series.iter().map(|s| s.name.chars().count()).max();
    let column = SAMPLE + 14.0 + longest.unwrap_or(0) as f64 * CHARACTER;
    let columns = ((width - 8.0) / column).floor().max(1.0) as usize;
    let mut out = String::new();
    for (i, s) in series.iter().enumerate() {
        let x = 8.0 + (i % columns) as f64 * column;
        let y = (i / columns) as f64 * LEGEND_LINE + 9.0;
        let _ = write!(
            out,
            "<path d=\"M{x:.1} {y:.1}h{SAMPLE}\" {}/>{}{}",
            stroke(s.style),
            mark(s.style, (x + SAMPLE / 2.0, y), ""),
            text(x + SAMPLE + 6.0, y + 4.0, "start", &s.name)
        );
    }
    (out, series.len().div_ceil(columns))
}

fn stroke(style: Style) -> String {
    let dash = match style.stroke {
        Stroke::Solid => "",
        Stroke::Dashed => " stroke-dasharray=\"5 4\"",
    };
    format!(
        "stroke=\"{}\" stroke-width=\"1.6\"{dash}",
        colour(style.colour)
    )
}

fn mark(style: Style, (x, y): (f64, f64), note: &str) -> String {
    let colour = colour(style.colour);
    let title = match note {
        "" => String::new(),
        note => format!("<title>{}</title>", escape(note)),
    };
    match style.mark {
        Mark::Disc => {
            format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\">{title}</circle>"
            )
        }
        Mark::Ring => format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"Canvas\" stroke=\"{colour}\" stroke-width=\"1.4\">{title}</circle>"
        ),
        Mark::Square => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\" fill=\"{colour}\">{title}</rect>",
            x - 3.0,
            y - 3.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::Scale;

    fn chart(points: &[(f64, f64)]) -> Chart {
        let point = |&(x, y): &(f64, f64)| Point {
            x,
            y,
            note: format!("{x} < {y}"),
        };
        Chart {
            title: "loss & more".into(),
            x: Axis::new("step", Scale::Linear),
            y: Axis::new("loss", Scale::Log),
            series: vec![Series {
                name: "a \"b\"".into(),
                style: Style {
                    colour: 13,
                    stroke: Stroke::Dashed,
                    mark: Mark::Ring,
                },
                points: points.iter().map(point).collect(),
            }],
            size: (300.0, 200.0),
            legend: Legend::Below,
        }
    }

    #[test]
    fn a_chart_is_one_sound_drawing() {
        let svg = chart(&[(0.0, 1.0), (1.0, 0.1), (2.0, 0.01)]).svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("loss &amp; more") && svg.contains("a &quot;b&quot;"));
        assert!(svg.contains("1 &lt; 0.1") && svg.contains("var(--c1)"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn what_cannot_be_shown_interrupts_the_line() {
        let svg = chart(&[
            (0.0, 1.0),
            (1.0, 2.0),
            (2.0, 0.0),
            (3.0, f64::NAN),
            (4.0, 1.0),
            (5.0, 2.0),
        ])
        .svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(!svg.contains("NaN"));
        assert!(chart(&[]).svg().contains("step"));
    }
}
