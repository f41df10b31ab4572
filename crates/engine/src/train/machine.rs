//! Where training computes: the host's threads, and a card where the model runs on one. And the products of host matrices that
//! initialisation and measuring take.

use super::{
    card::{Card, CardMatrix},
    host::Host,
};
use crate::{backend::Device, error::Result, session::Session};
use countdown_kernels::{
    MatRef,
    cpu::Team,
    cuda::{Orientation, train::Transposed},
};

/// Where a run computes.
pub(super) struct Machine {
    pub(super) threads: usize,
    pub(super) card: Option<Card>,
}

impl Machine {
    /// So many threads.
    pub(super) fn host(threads: usize) -> Machine {
        Machine {
            threads,
            card: None,
        }
    }

    /// Where a session computes.
    ///
    /// # Errors
    /// [`Error::Machine`](crate::Error::Machine) where the card does not do (so below).
    pub(super) fn like(session: &Session) -> Result<Machine> {
        let mut machine = Machine::host(session.threads());
        if let Device::Cuda(ordinal) = session.runs_on() {
            machine.card = Some(Card::open(ordinal, session.kernel_cache())?);
        }
        Ok(machine)
    }

    /// Products of `f32` matrices.
    pub(super) fn products(&self) -> Result<Products> {
        Ok(Products {
            host: Host::new(self.threads)?,
            card: self.card.clone(),
        })
    }

    /// Products of a packed matrix with up to `rows` rows at a time.
    pub(super) fn packed<'a>(&self, w: MatRef<'a>, rows: usize) -> Result<Packed<'a>> {
        let on = match &self.card {
            Some(card) => On::Card(CardMatrix::new(card, w, rows)?),
            None => On::Host(Host::new(self.threads)?),
        };
        Ok(Packed { w, on })
    }
}

/// Products of row-major `f32` matrices in host memory, on the card if there is one.
pub(super) struct Products {
    host: Host,
    card: Option<Card>,
}

impl Products {
    /// `out = x w^T`: `x` `[n, k]`, `w` `[m, k]`, `out` `[n, m]`.
    ///
    /// # Errors
    /// What a card says (so below).
    ///
    /// # Panics
    /// If lengths do not fit (so below).
    pub(super) fn times_transposed(
        &mut self,
        x: &[f32],
        w: &[f32],
        k: usize,
        out: &mut [f32],
    ) -> Result<()> {
        match &self.card {
            Some(card) => {
                let shape = [x.len() / k, k, w.len() / k];
                card.product(Transposed::Right, (x, w), shape, out)
            }
            None => {
                self.host.product_transposed(x, w, k, out);
                Ok(())
            }
        }
    }

    /// `out = x w`: `x` `[n, k]`, `w` `[k, m]`, `out` `[n, m]`.
    pub(super) fn times(&mut self, x: &[f32], w: &[f32], k: usize, out: &mut [f32]) -> Result<()> {
        match &self.card {
            Some(card) => {
                let shape = [x.len() / k, k, w.len() / k];
                card.product(Transposed::Neither, (x, w), shape, out)
            }
            None => {
                self.host.product(x, w, k, out);
                Ok(())
            }
        }
    }

    /// The host's own.
    pub(super) fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    /// The host's threads.
    pub(super) fn team(&mut self) -> &mut Team {
        &mut self.host.team
    }
}

/// Products of one packed matrix, `[rows, cols]`, with matrices in host memory.
pub(super) struct Packed<'a> {
    w: MatRef<'a>,
    on: On,
}

enum On {
    Host(Host),
    Card(CardMatrix),
}

impl Packed<'_> {
    /// Rows of the matrix.
    pub(super) fn rows(&self) -> usize {
        self.w.rows()
    }

    /// Its columns.
    pub(super) fn cols(&self) -> usize {
        self.w.cols()
    }

    /// `out = x w`: `x` `[n, rows]`, `out` `[n, cols]`.
    ///
    /// # Errors
    /// What a card says (so below).
    pub(super) fn times(&mut self, x: &[f32], out: &mut [f32]) -> Result<()> {
        match &mut self.on {
            On::Host(host) => {
                host.packed(x, self.w, out);
                Ok(())
            }
            On::Card(matrix) => matrix.times(Orientation::RowPerInput, x, out),
        }
    }

    /// `out = x w^T`: `x` `[n, cols]`, `out` `[n, rows]`.
    pub(super) fn times_transposed(&mut self, x: &[f32], out: &mut [f32]) -> Result<()> {
        match &mut self.on {
            On::Host(host) => {
                host.packed_transposed(x, self.w, out);
                Ok(())
            }
            On::Card(matrix) => matrix.times(Orientation::RowPerOutput, x, out),
        }
    }
}
