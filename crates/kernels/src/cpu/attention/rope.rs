//! Rotary embedding.

/// Cosines and sines of rotary embedding for every position of a context.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    /// Per position `half` cosines, then `half` sines.
    table: Vec<f32>,
}

impl RopeTable {
    /// For `positions` positions and heads of `head_dim` elements: angle(p, i) = p / scale * base^(-2i / head_dim).
    /// Frequencies and angles are rounded to f32, as the original frameworks do.
    pub fn new(positions: usize, head_dim: usize, base: f32, scale: f32) -> RopeTable {
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| (f64::from(base).powf(-((2 * i) as f64) / head_dim as f64)) as f32 / scale)
            .collect();
        let mut table = Vec::with_capacity(positions * head_dim);
        for p in 0..positions {
            let angles = frequencies.iter().map(|f| f64::from(p as f32 * f));
            table.extend(angles.clone().map(|a| a.cos() as f32));
            table.extend(angles.map(|a| a.sin() as f32));
        }
        RopeTable { half, table }
    }

    /// Rotates every head of `x` (`[heads, head_dim]`, pairs (i, i + head_dim/2)) to `position`.
    ///
    /// # Panics
    /// If `position` is beyond the table.
    pub fn rotate(&self, x: &mut [f32], position: usize) {
        let at = &self.table[position * 2 * self.half..][..2 * self.half];
        let (cos, sin) = at.split_at(self.half);
        for head in x.chunks_exact_mut(2 * self.half) {
            let (a, b) = head.split_at_mut(self.half);
            for i in 0..self.half {
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
    fn rope_turns_pairs_by_position_over_wavelength() {
        let table = RopeTable::new(8, 4, 100.0, 2.0);
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
}
