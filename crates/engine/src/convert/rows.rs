//! Rows on their way: copied where nothing changes, else unpacked, changed and packed.

use super::{Job, tensors::Piece};
use crate::{
    error::{Error, Result},
    formats::gguf::TensorInfo,
    kernels::{
        DType,
        quant::{pack_row, unpack_row},
    },
    rows,
};
use std::{
    io::{self, Write},
    ops::Range,
    sync::Mutex,
};

/// Rows of a job, written tensor by tensor. Keeps the engine's own reason where the writing fails for one.
pub(super) struct Stream<'a> {
    job: &'a Job<'a>,
    progress: &'a mut dyn FnMut(u64, u64) -> io::Result<()>,
    done: u64,
    all: u64,
    failure: Mutex<Option<Error>>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        job: &'a Job<'a>,
        progress: &'a mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> Stream<'a> {
        Stream {
            job,
            progress,
            done: 0,
            all: job.pieces.iter().map(|p| p.bytes as u64).sum(),
            failure: Mutex::new(None),
        }
    }

    /// Writes the tensor that is described as `info`.
    pub(super) fn write(&mut self, info: &TensorInfo, out: &mut dyn Write) -> io::Result<()> {
        let found = self.job.pieces.iter().find(|p| p.info.name == info.name);
        let piece = found.ok_or_else(|| io::Error::other("a tensor that was not planned"))?;
        // A vector is a column, so that its elements have an order as rows have.
        let cols = info.shape.get(1).copied().unwrap_or(1);
        let rows = info.shape[0];
        let make = |_, range: Range<usize>| {
            piece.rows(range, [rows, cols]).map_err(|e| {
                let cause = io::Error::other(e.to_string());
                *self.failure.lock().unwrap_or_else(|p| p.into_inner()) = Some(e);
                cause
            })
        };
        let (done, all, progress) = (&mut self.done, self.all, &mut self.progress);
        rows::write([rows, cols], self.job.request.threads, make, &mut |bytes| {
            out.write_all(bytes)?;
            *done += bytes.len() as u64;
            progress(*done, all)
        })
    }

    /// The engine's own reason for `written`'s failure, if there is one.
    pub(super) fn finish<T>(self, written: Result<T>) -> Result<T> {
        match self.failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
            Some(reason) => Err(reason),
            None => written,
        }
    }
}

impl Piece {
    /// The bytes of some rows of the output.
    fn rows(&self, range: Range<usize>, [rows, cols]: [usize; 2]) -> Result<Vec<u8>> {
        let (from, to) = (self.source.dtype, self.info.dtype);
        let (row_from, row_to) = (self.source.data.len() / rows, self.bytes / rows);
        let mut bytes = vec![0; range.len() * row_to];
        let mut row = vec![0.0; cols];
        let order = |row| {
            let engine = self.orders[1].in_engine(row, self.head_dim);
            self.orders[0].in_file(engine, self.head_dim)
        };
        let turned = self.orders[0] != self.orders[1];
        for (r, out) in range.clone().zip(bytes.chunks_exact_mut(row_to)) {
            let at = if turned { order(r) } else { r };
            let stored = &self.source.data[at * row_from..][..row_from];
            if from == to && self.shift == 0.0 {
                out.copy_from_slice(stored);
                continue;
            }
            unpack_row(from, stored, &mut row);
            row.iter_mut().for_each(|w| *w += self.shift);
            self.check(&row)?;
            pack_row(to, &row, out);
        }
        // What was read from the file will hardly be read again.
        let place = range.start * row_from..range.end * row_from;
        self.source.data.slice(place).release();
        Ok(bytes)
    }

    /// Refuses numbers that the output cannot hold.
    fn check(&self, row: &[f32]) -> Result<()> {
        const LARGEST_F16: f32 = 65504.0;
        let holds = |x: f32| match self.info.dtype {
            DType::F16 => x.abs() <= LARGEST_F16,
            _ => x.is_finite(),
        };
        if row.iter().all(|&x| holds(x)) {
            return Ok(());
        }
        match row.iter().find(|x| !x.is_finite()) {
            Some(_) => Err(Error::NotFinite(format!("tensor {}", self.source.name))),
            None => Err(Error::Input {
                cause: format!(
                    "tensor {} has elements beyond {LARGEST_F16}, the largest of F16",
                    self.source.name
                ),
                remedy: "choose --type BF16 or F32".into(),
            }),
        }
    }
}
