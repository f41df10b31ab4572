//! Bars of several parts, lying.

use super::{
    CHARACTER,
    axis::{Axis, Scale, number},
    colour, drawing, escape, heading, line, text,
};
use std::fmt::Write;

/// Bars under each other.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Its heading.
    pub title: String,
    /// What their length means.
    pub label: String,
    /// What the parts mean: the first is drawn full, those behind it paler and paler.
    pub parts: Vec<String>,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// Pixels.
    pub width: f64,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands beside it.
    pub name: String,
    /// Number in the palette.
    pub colour: usize,
    /// The lengths of its parts.
    pub parts: Vec<f64>,
}

const BAR: f64 = 16.0;
const ABOVE: f64 = 30.0;

impl Bars {
    /// The drawing.
    pub fn svg(&self) -> String {
        let longest = self.bars.iter().map(|b| b.name.chars().count()).max();
        let left = 16.0 + longest.unwrap_or(0) as f64 * CHARACTER;
        let w = self.width - left - 20.0;
        let h = self.bars.len() as f64 * (BAR + 6.0);
        let mut axis = Axis::new("", Scale::Linear);
        axis.limits.0 = Some(0.0);
        let range = axis.range(self.bars.iter().map(|b| b.parts.iter().sum()));
        let opacity = |part: usize| 1.0 / (1.0 + part as f64 * 1.5);

        let mut out = heading(&self.title);
        for t in &range.ticks {
            let at = left + range.place(*t) * w;
            out += &line("g", [at, ABOVE, at, ABOVE + h]);
            out += &text(at, ABOVE + h + 15.0, "middle", number(*t));
        }
        for (i, bar) in self.bars.iter().enumerate() {
            let y = ABOVE + 3.0 + i as f64 * (BAR + 6.0);
            out += &text(left - 8.0, y + 12.0, "end", &bar.name);
            let mut from = 0.0;
            for (part, length) in bar.parts.iter().enumerate() {
                let (x, end) = (range.place(from) * w, range.place(from + length) * w);
                let meaning = self.parts.get(part).map_or("", String::as_str);
                let _ = write!(
                    out,
                    "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\" opacity=\"{:.2}\"><title>{}</title></rect>",
                    left + x,
                    end - x,
                    colour(bar.colour),
                    opacity(part),
                    escape(&format!("{}: {meaning} {length:.3}", bar.name)),
                );
                from += length;
            }
        }
        let below = ABOVE + h;
        out += &line("a", [left, ABOVE, left, below]);
        out += &text(left + w / 2.0, below + 31.0, "middle", &self.label);
        let mut x = left;
        for (part, meaning) in self.parts.iter().enumerate() {
            let _ = write!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\" opacity=\"{:.2}\"/>{}",
                below + 40.0,
                colour(0),
                opacity(part),
                text(x + 18.0, below + 50.0, "start", meaning)
            );
            x += 36.0 + meaning.chars().count() as f64 * CHARACTER;
        }
        drawing(self.width, below + 58.0, &self.title, &out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_bar_follow_each_other() {
        let svg = Bars {
            title: "wrong".into(),
            label: "share".into(),
            parts: vec!["a".into(), "b".into()],
            bars: vec![Bar {
                name: "one".into(),
                colour: 1,
                parts: vec![0.25, 0.75],
            }],
            width: 16.0 + 3.0 * CHARACTER + 100.0 + 20.0,
        }
        .svg();
        assert!(
            svg.contains("width=\"25.0\"") && svg.contains("width=\"75.0\""),
            "{svg}"
        );
        assert_eq!(svg.matches("<title>").count(), 2);
        assert!(!svg.contains("NaN"));
    }
}
