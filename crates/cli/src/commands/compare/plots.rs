//! The charts of a report.

use super::results::{Pair, Results, Row};
use crate::{
    chart::{Axis, Bar, Bars, Chart, Legend, Mark, Point, Scale, Series, Stroke, Style, legend},
    load::form_name,
};
use countdown::{
    eval::{LayerAgreement, Side},
    sparsity::{Cut, Form, Method},
};

/// Perplexity ratios beyond this are off the charts.
const WORST: f64 = 4.0;
/// Width of the page's charts in pixels.
const WIDTH: f64 = 1080.0;

/// Rows that differ in their target alone.
pub(super) struct Line<'a> {
    pub(super) name: String,
    style: Style,
    /// By rising target.
    pub(super) rows: Vec<&'a Row>,
}

/// A type of weights: its name, and the share of FFN bytes that a row reads of it.
pub(super) type WeightType = (&'static str, fn(&Row) -> f64);

/// The file's own types, and others by arithmetic.
pub(super) const WEIGHT_TYPES: [WeightType; 3] = [
    ("the file's weights", |r| r.ffn_share.file),
    ("16-bit weights", |r| r.ffn_share.bits16),
    ("8-bit weights", |r| r.ffn_share.bits8),
];

/// All lines but dense and those that are others'.
pub(super) fn lines(results: &Results) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut labels: Vec<String> = Vec::new();
    for row in &results.rows {
        let (Some(cut), Some(form), None) = (row.key.cut, row.key.form, &row.same_as) else {
            continue;
        };
        let label = row.key.label();
        let place = labels.iter().position(|l| *l == label);
        let colour = 1 + place.unwrap_or_else(|| {
            labels.push(label.clone());
            labels.len() - 1
        });
        let name = match row.key.plan {
            Some(_) => format!("{label}, {}, {}, file", cut.name(), form_name(form)),
            None => format!("{label}, {}, {}", cut.name(), form_name(form)),
        };
        let follows = |l: &&mut Line<'_>| {
            let last = l.rows.last().map(|r| r.key.target);
            l.name == name && last < Some(row.key.target)
        };
        match lines.iter_mut().find(follows) {
            Some(line) => line.rows.push(row),
            None => lines.push(Line {
                name,
                style: style(row, colour, cut, form),
                rows: vec![row],
            }),
        }
    }
    lines
}

/// The method and predictor by colour, the form by the stroke, the paper's cut by rings where the method has others, plans from
/// files by squares.
fn style(row: &Row, colour: usize, cut: Cut, form: Form) -> Style {
    let has_better = Method::by_name(&row.key.method).is_ok_and(|m| m.cut(None) != cut);
    Style {
        colour,
        stroke: match form {
            Form::Practical => Stroke::Solid,
            Form::Ideal => Stroke::Dashed,
        },
        mark: match (&row.key.plan, has_better) {
            (Some(_), _) => Mark::Square,
            (None, true) => Mark::Ring,
            (None, false) => Mark::Disc,
        },
    }
}

fn is_practical(line: &&Line<'_>) -> bool {
    let first = line.rows.first();
    first.is_some_and(|r| r.key.form == Some(Form::Practical))
}

/// Whether a line's plans know the coefficients.
fn is_bound(line: &&Line<'_>) -> bool {
    line.rows.first().is_some_and(|r| {
        let method = Method::by_name(&r.key.method);
        r.key.predictor.is_none() && method.is_ok_and(Method::decides_by_coefficients)
    })
}

fn series(line: &Line<'_>, point: impl Fn(&Row) -> Option<(f64, f64)>) -> Series {
    let points = line.rows.iter().filter_map(|r| {
        let (x, y) = point(r)?;
        let note = format!(
            "{}, target {}, realised {:.3}: {y:.3} at {x:.3}",
            line.name, r.key.target, r.realised
        );
        Some(Point { x, y, note })
    });
    Series {
        name: line.name.clone(),
        style: line.style,
        points: points.collect(),
    }
}

fn quality_axis() -> Axis {
    Axis {
        limits: (None, Some(WORST)),
        ..Axis::new("perplexity / dense", Scale::Log)
    }
}

/// Dense as a point.
fn dense(x: f64) -> Series {
    Series {
        name: "dense".into(),
        style: Style {
            colour: 0,
            stroke: Stroke::Solid,
            mark: Mark::Disc,
        },
        points: vec![Point {
            x,
            y: 1.0,
            note: "dense".into(),
        }],
    }
}

/// Quality against bytes, a panel a type of weights, and the legend they share.
pub(super) fn bytes(lines: &[Line<'_>]) -> String {
    let panel = |(name, share): &WeightType| {
        let point = |r: &Row| Some((share(r) * 100.0, r.ratio));
        let all = lines.iter().map(|l| series(l, point));
        Chart {
            title: (*name).into(),
            x: Axis::new("FFN bytes a token, % of dense", Scale::Linear),
            y: quality_axis(),
            series: all.chain([dense(100.0)]).collect(),
            size: (WIDTH / 3.0 - 10.0, 360.0),
            legend: Legend::Apart,
        }
        .svg()
    };
    let panels: Vec<String> = WEIGHT_TYPES.iter().map(panel).collect();
    let names: Vec<Series> = lines.iter().map(|l| series(l, |_| None)).collect();
    format!(
        "<div class=\"row\">{}</div>{}",
        panels.concat(),
        legend(&names, WIDTH)
    )
}

/// Quality against speed; nothing where no speed was measured.
pub(super) fn speed(lines: &[Line<'_>]) -> Option<String> {
    let point = |r: &Row| Some((r.speed?.ratio, r.ratio));
    let all = lines.iter().filter(is_practical).map(|l| series(l, point));
    let mut all: Vec<Series> = all.filter(|s| !s.points.is_empty()).collect();
    if all.is_empty() {
        return None;
    }
    all.push(dense(1.0));
    let chart = Chart {
        title: "Quality against speed".into(),
        x: Axis::new("tokens a second / dense", Scale::Linear),
        y: quality_axis(),
        series: all,
        size: (WIDTH * 0.7, 400.0),
        legend: Legend::Below,
    };
    Some(chart.svg())
}

/// A figure of a layer: its name and value.
type LayerFigure = (&'static str, fn(&LayerAgreement) -> f64);

/// Recall, mass and error, layer by layer, of practical rows and of those that know the coefficients; nothing where they were not compared.
pub(super) fn layers(lines: &[Line<'_>]) -> Option<String> {
    const FIGURES: [LayerFigure; 4] = [
        ("recall of the exact choice", |l| l.recall),
        ("share of the sum of |s| kept", |l| l.mass),
        ("relative error of the FFN's output", |l| l.error),
        ("realised sparsity", |l| l.sparsity),
    ];
    let of_line = |line: &Line<'_>, figure: fn(&LayerAgreement) -> f64| {
        let row = line.rows.iter().find(|r| r.layers.is_some())?;
        let layers = row.layers.as_ref()?.iter().enumerate();
        let point = |(i, l): (usize, &LayerAgreement)| Point {
            x: i as f64,
            y: figure(l),
            note: format!("{}, layer {i}: {:.3}", line.name, figure(l)),
        };
        Some(Series {
            name: line.name.clone(),
            style: line.style,
            points: layers.map(point).collect(),
        })
    };
    let shown: Vec<&Line<'_>> = lines
        .iter()
        .filter(|l| is_practical(l) || is_bound(l))
        .collect();
    let chart = |(title, figure): &LayerFigure| {
        let all = shown.iter().filter_map(|l| of_line(l, *figure));
        Chart {
            title: (*title).into(),
            x: Axis::new("layer", Scale::Linear),
            y: Axis::new("", Scale::Linear),
            series: all.collect(),
            size: (WIDTH / 2.0 - 10.0, 320.0),
            legend: Legend::Apart,
        }
    };
    let charts: Vec<Chart> = FIGURES.iter().map(chart).collect();
    let names = &charts.first()?.series;
    if names.is_empty() {
        return None;
    }
    let drawn: Vec<String> = charts.iter().map(Chart::svg).collect();
    Some(format!(
        "<div class=\"row\">{}</div>{}",
        drawn.concat(),
        legend(names, WIDTH)
    ))
}

/// Where two methods choose otherwise than the exact choice, and how much of that the other gets right.
pub(super) fn agreement(pairs: &[Pair]) -> Option<String> {
    if pairs.is_empty() {
        return None;
    }
    let side = |title: &str, of: fn(&Pair) -> Side| {
        let bars = pairs.iter().flat_map(|p| {
            let side = of(p);
            [(&p.first, 0), (&p.second, 1)].map(|(name, i)| {
                let rescued = side.wrong[i] * side.other_right[i];
                Bar {
                    name: format!("{name}, {}, {}", p.cut.name(), form_name(p.form)),
                    colour: i + 1,
                    parts: vec![side.wrong[i] - rescued, rescued],
                }
            })
        });
        Bars {
            title: title.into(),
            label: "share decided otherwise than the exact choice".into(),
            parts: vec!["wrong by both".into(), "the other is right".into()],
            bars: bars.collect(),
            width: WIDTH / 2.0 - 10.0,
        }
        .svg()
    };
    Some(format!(
        "<div class=\"row\">{}{}</div>",
        side("Of the neurons that the exact choice keeps", |p| p
            .agreement
            .kept),
        side("Of the neurons that the exact choice drops", |p| p
            .agreement
            .dropped)
    ))
}

/// The perplexity ratio of a line where it reads this share of dense FFN bytes, between the rows that read less and more.
pub(super) fn at_share(line: &Line<'_>, share: fn(&Row) -> f64, wanted: f64) -> Option<f64> {
    let between = |pair: &&[&Row]| {
        let [a, b] = [share(pair[0]), share(pair[1])];
        (a.min(b)..=a.max(b)).contains(&wanted)
    };
    let pair = line.rows.windows(2).find(between)?;
    let [a, b] = [share(pair[0]), share(pair[1])];
    let part = if a == b { 0.0 } else { (wanted - a) / (b - a) };
    let [low, high] = [pair[0].ratio.ln(), pair[1].ratio.ln()];
    Some((low + part * (high - low)).exp())
}

/// Whether a line's plans can be run for speed.
pub(super) fn practical<'a>(lines: &'a [Line<'a>]) -> impl Iterator<Item = &'a Line<'a>> {
    lines.iter().filter(is_practical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::compare::{bytes::Shares, results::Key};
    use countdown::{
        eval::{PerplexityRow, Subject},
        sparsity::PREDICTED,
    };

    fn row(target: f64, share: f64, ratio: f64) -> Row {
        let measured = PerplexityRow {
            task: "perplexity",
            subject: Subject {
                method: String::new(),
                predictor: None,
                cut: None,
                form: None,
                target,
            },
            realised: target,
            tokens: 1,
            perplexity: ratio,
            stderr: 0.0,
            kl: 0.0,
            top1: 1.0,
        };
        let key = Key {
            method: PREDICTED.name.into(),
            cut: Some(Cut::Layer),
            form: Some(Form::Practical),
            target,
            ..Key::dense()
        };
        let [file, bits16, bits8] = [share; 3];
        Row {
            ffn_share: Shares {
                file,
                bits16,
                bits8,
            },
            ..Row::new(key, &measured, 1.0)
        }
    }

    #[test]
    fn ratios_between_targets_are_interpolated_by_their_logarithms() {
        let rows = [row(0.5, 0.6, 1.0), row(0.7, 0.4, 1.21), row(0.9, 0.3, 4.0)];
        let line = Line {
            name: "m".into(),
            style: style(&rows[0], 1, Cut::Layer, Form::Practical),
            rows: rows.iter().collect(),
        };
        let at = |wanted| at_share(&line, WEIGHT_TYPES[1].1, wanted);
        assert!((at(0.5).unwrap() - 1.1).abs() < 1e-9);
        assert!((at(0.4).unwrap() - 1.21).abs() < 1e-9);
        assert_eq!((at(0.2), at(0.61)), (None, None));
        assert_eq!(line.style.mark, Mark::Ring);
    }
}
