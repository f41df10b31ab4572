//! Where the time of forward passes goes: a stopwatch that the passes press after every part.
//!
//! It always runs: reading the clock takes some tens of nanoseconds, a part some tens of microseconds.

use std::time::{Duration, Instant};

/// A part of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Looking tokens up.
    Embedding,
    /// Queries, keys, values, and attention's output projection.
    Projections,
    /// Norms of queries and keys, rotating, storing keys and values, attending.
    Attention,
    /// Gated FFNs, what decides about neurons included.
    Ffn,
    /// Logits.
    Head,
}

impl Part {
    /// All parts, in the order of a pass.
    pub const ALL: [Part; 5] = [
        Part::Embedding,
        Part::Projections,
        Part::Attention,
        Part::Ffn,
        Part::Head,
    ];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Embedding => "embedding",
            Part::Projections => "projections",
            Part::Attention => "attention",
            Part::Ffn => "ffn",
            Part::Head => "head",
        }
    }
}

/// Calls of each part and the time they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    parts: [(u64, Duration); Part::ALL.len()],
}

impl Profile {
    /// How often a part ran.
    pub fn calls(&self, part: Part) -> u64 {
        self.parts[part as usize].0
    }

    /// The time it took.
    pub fn time(&self, part: Part) -> Duration {
        self.parts[part as usize].1
    }

    /// The time of all parts.
    pub fn total(&self) -> Duration {
        self.parts.iter().map(|(_, time)| time).sum()
    }
}

impl std::ops::AddAssign for Profile {
    fn add_assign(&mut self, other: Profile) {
        for ((calls, time), (more, longer)) in self.parts.iter_mut().zip(other.parts) {
            *calls += more;
            *time += longer;
        }
    }
}

/// Times the parts of a pass as they end.
pub(crate) struct Stopwatch<'a> {
    profile: &'a mut Profile,
    last: Instant,
}

impl<'a> Stopwatch<'a> {
    pub(crate) fn start(profile: &'a mut Profile) -> Stopwatch<'a> {
        Stopwatch {
            profile,
            last: Instant::now(),
        }
    }

    /// What ran since the last call, or the start, was this part.
    pub(crate) fn was(&mut self, part: Part) {
        let now = Instant::now();
        let (calls, time) = &mut self.profile.parts[part as usize];
        *calls += 1;
        *time += now - self.last;
        self.last = now;
    }
}
