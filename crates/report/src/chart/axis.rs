//! Axes: from values to places, and round numbers as ticks.

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What stands beside it.
    pub label: String,
    /// How its values are spread.
    pub scale: Scale,
    /// Values beyond are cut off; otherwise the axis shows all there are.
    pub limits: (Option<f64>, Option<f64>),
}

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithms. Values of 0 and less are not shown.
    Log,
}

/// An axis that has found its range.
pub(super) struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    pub(super) ticks: Vec<f64>,
}

/// Ticks that fit side by side, about.
const TICKS: f64 = 6.0;

impl Axis {
    /// An axis over all values there are.
    pub fn new(label: impl Into<String>, scale: Scale) -> Axis {
        Axis {
            label: label.into(),
            scale,
            limits: (None, None),
        }
    }

    /// Whether a value has a place.
    pub(super) fn shows(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }

    /// The range of the values, up to round numbers where the axis is linear.
    pub(super) fn range(&self, values: impl Iterator<Item = f64>) -> Range {
        let shown = values.filter(|v| self.shows(*v));
        let (mut low, mut high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        if low > high {
            (low, high) = (1.0, 2.0);
        }
        low = self.limits.0.unwrap_or(low);
        high = self.limits.1.map_or(high, |limit| limit.min(high));
        if high <= low {
            let around = if low == 0.0 { 1.0 } else { low.abs() * 0.05 };
            (low, high) = (low - around, high.max(low) + around);
        }
        let (ticks, pad) = match self.scale {
            Scale::Linear => {
                let ticks = linear_ticks(low, high);
                let step = ticks.get(1).map_or(0.0, |second| second - ticks[0]);
                let ends = ((low / step).floor() * step, (high / step).ceil() * step);
                (linear_ticks(ends.0, ends.1), ends)
            }
            Scale::Log => {
                let pad = (high / low).powf(0.03);
                let ends = (
                    self.limits.0.unwrap_or(low / pad),
                    self.limits.1.filter(|l| *l == high).unwrap_or(high * pad),
                );
                (log_ticks(ends.0, ends.1), ends)
            }
        };
        Range {
            scale: self.scale,
            low: pad.0,
            high: pad.1,
            ticks,
        }
    }
}

impl Range {
    /// Where a value lies: 0 at the low end, 1 at the high one.
    pub(super) fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }
}

/// Multiples of 1, 2 or 5 times a power of ten within the range.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= rough * 0.999)
        .unwrap_or(power * 10.0);
    let first = (low / step - 1e-6).ceil() as i64;
    let last = (high / step + 1e-6).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Powers of ten, with 2 and 5 times them where there are few; round numbers where the range is within a factor of some.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    if high / low < 4.0 {
        return linear_ticks(low, high);
    }
    let decades = (high / low).log10();
    let of_decade: &[f64] = match decades {
        d if d < 3.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let every = ((decades / TICKS) as usize).max(1);
    powers
        .step_by(every)
        .flat_map(|p| of_decade.iter().map(move |m| m * 10f64.powi(p)))
        .filter(|t| (low * 0.999..=high * 1.001).contains(t))
        .collect()
}

/// A tick's number, without digits that say nothing.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", (value / 1e4).round() / 100.0),
        v if v != 0.0 && v < 1e-4 => format!("{value:.0e}"),
        _ => format!("{}", (value * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, values: [f64; 2]) -> Vec<String> {
        let range = Axis::new("", scale).range(values.into_iter());
        range.ticks.iter().map(|t| number(*t)).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            ticks(Scale::Linear, [0.0, 0.93]),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(
            ticks(Scale::Linear, [-30.0, 70.0]),
            ["-40", "-20", "0", "20", "40", "60", "80"]
        );
        assert_eq!(
            ticks(Scale::Log, [1.0, 80.0]),
            ["1", "2", "5", "10", "20", "50"]
        );
        assert_eq!(
            ticks(Scale::Log, [1.0, 1.42]),
            ["1", "1.1", "1.2", "1.3", "1.4"]
        );
        assert_eq!(
            ticks(Scale::Log, [0.001, 50.0]),
            ["0.001", "0.01", "0.1", "1", "10"]
        );
    }

    #[test]
    fn every_value_has_a_place_on_the_axis() {
        for scale in [Scale::Linear, Scale::Log] {
            for (low, high) in [(1.0, 1.0), (0.5, 1e7), (3.0, 3.001)] {
                let range = Axis::new("", scale).range([low, high].into_iter());
                let [a, b] = [low, high].map(|v| range.place(v));
                assert!(
                    (0.0..=1.0).contains(&a) && a <= b && b <= 1.0,
                    "{low} {high}"
                );
                assert!(!range.ticks.is_empty() && range.ticks.len() < 12);
            }
        }
        let none = Axis::new("", Scale::Log).range(std::iter::empty());
        assert!(none.place(1.5).is_finite());
    }

    #[test]
    fn limits_cut_off_what_is_beyond() {
        let mut axis = Axis::new("", Scale::Log);
        axis.limits = (Some(1.0), Some(4.0));
        let range = axis.range([1.2, 900.0].into_iter());
        assert!((range.place(4.0) - 1.0).abs() < 1e-9 && range.place(1.0) == 0.0);
        // A limit far off does not waste room.
        let range = axis.range([1.2, 1.5].into_iter());
        assert!(range.place(1.5) > 0.9);
    }
}
