//! Rotary embedding.

/// Cosines and sines of rotary embedding for every position of a context.
#[derive(Clone, Debug)]
pub struct RopeTable {
    head_dim: usize,
    /// Pairs of elements that are rotated.
    pairs: usize,
    /// Per position `pairs` cosines, then `pairs` sines.
    table: Vec<f32>,
}

impl RopeTable {
    /// For `positions` positions and heads of `head_dim` elements, of which element i and element i + pairs are rotated by the angle
    /// position * `frequencies[i]` (in radians), `frequencies` having as many elements as there are pairs, and scaled by
    /// `magnitude`. Elements beyond the pairs stay as they are. Angles are rounded to f32, as the original frameworks do.
    ///
    /// # Panics
    /// If there are more pairs than a head has.
    pub fn new(
        positions: usize,
        head_dim: usize,
        frequencies: &[f32],
        magnitude: f32,
    ) -> RopeTable {
        let pairs = frequencies.len();
        assert!(2 * pairs <= head_dim, "rope: pairs");
        let mut table = Vec::with_capacity(positions * 2 * pairs);
        for p in 0..positions {
            let angles = frequencies.iter().map(|f| f64::from(p as f32 * f));
            table.extend(angles.clone().map(|a| a.cos() as f32 * magnitude));
            table.extend(angles.map(|a| a.sin() as f32 * magnitude));
        }
        RopeTable {
            head_dim,
            pairs,
            table,
        }
    }

    /// Rotates every head of `x` (`[heads, head_dim]`) to `position`.
    ///
    /// # Panics
    /// If `position` is beyond the table.
    pub fn rotate(&self, x: &mut [f32], position: usize) {
        let at = &self.table[position * 2 * self.pairs..][..2 * self.pairs];
        let (cos, sin) = at.split_at(self.pairs);
        for head in x.chunks_exact_mut(self.head_dim) {
            let (a, b) = head[..2 * self.pairs].split_at_mut(self.pairs);
            for i in 0..self.pairs {
                let (re, im) = (a[i], b[i]);
                a[i] = re * cos[i] - im * sin[i];
                b[i] = im * cos[i] + re * sin[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_turns_pairs_by_position_times_frequency() {
        let table = RopeTable::new(8, 4, &[0.5, 0.05], 1.0);
        let mut x = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0];
        table.rotate(&mut x, 6);
        let (a, b) = (3.0f32, 0.3f32);
        let expected = [
            a.cos(),
            b.cos(),
            a.sin(),
            b.sin(),
            -a.sin(),
            -b.sin(),
            a.cos(),
            b.cos(),
        ];
        for (x, e) in x.iter().zip(expected) {
            assert!((x - e).abs() < 1e-6);
        }
    }

    #[test]
    fn elements_beyond_the_pairs_stay_and_magnitude_scales_the_others() {
        let table = RopeTable::new(3, 4, &[0.5], 2.0);
        let mut x = [1.0, 0.0, 5.0, 7.0];
        table.rotate(&mut x, 2);
        let expected = [2.0 * 1f32.cos(), 2.0 * 1f32.sin(), 5.0, 7.0];
        for (x, e) in x.iter().zip(expected) {
            assert!((x - e).abs() < 1e-6);
        }
    }
}
