//! The largest of many logits, and what is known of the others.

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its logit.
    pub logit: f32,
    /// Its number.
    pub id: u32,
}

/// The largest of many logits, as many as a device found it convenient to list, and what is known of the others.
#[derive(Clone, Debug, Default)]
pub struct Shortlist {
    pub(crate) candidates: Vec<Candidate>,
    /// Of parts of all logits the largest, and the sum of `exp(logit - largest)`.
    pub(crate) sums: Vec<(f32, f32)>,
}

impl Shortlist {
    /// How far [`Shortlist::mass`] may be off, as a share of it. A term is off by what its exponent's two differences are rounded by (its own, and that of who compares), on
    /// average over all terms by 2 u ln(n), which is 44 u for the longest vocabulary; by 4 u of the exponential; and by 20 u of the sum, whose depth that is. u is 2^-24.
    pub const MASS_ERROR: f64 = 68.0 / (1u64 << 24) as f64;

    /// The largest logits, in no order: none that is missing is as large as any of them. There may be none, where equals that are too many to be listed lead.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Whether all logits are finite, those that are not listed included. If not, nothing else here means anything.
    pub fn is_finite(&self) -> bool {
        self.sums
            .iter()
            .map(|(_, sum)| sum)
            .sum::<f32>()
            .is_finite()
    }

    /// The sum of `exp(logit - largest)` over all logits, [`Shortlist::MASS_ERROR`] of it more or less.
    pub fn mass(&self) -> f64 {
        let largest = self
            .sums
            .iter()
            .map(|(l, _)| *l)
            .fold(f32::NEG_INFINITY, f32::max);
        let part =
            |&(l, sum): &(f32, f32)| f64::from(sum) * (f64::from(l) - f64::from(largest)).exp();
        self.sums.iter().map(part).sum()
    }
}
