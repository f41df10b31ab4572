//! Rows of a tensor made in parallel, a few at a time, and handed on in order: a tensor is never in memory as a whole.

use std::{io, ops::Range, thread};

/// Elements made at a time by one thread.
pub(crate) const CHUNK: usize = 1 << 20;

/// Hands the bytes of a tensor `[rows, cols]` to `write`, chunk after chunk. `make(number, rows)` makes a chunk's bytes on one
/// of `threads` threads; how rows are cut into chunks depends on `cols` alone.
///
/// # Errors
/// The first that `make` or `write` gives.
pub(crate) fn write(
    [rows, cols]: [usize; 2],
    threads: usize,
    make: impl Fn(usize, Range<usize>) -> io::Result<Vec<u8>> + Sync,
    write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let chunk_rows = (CHUNK / cols).max(1);
    let chunks: Vec<usize> = (0..rows.div_ceil(chunk_rows)).collect();
    for wave in chunks.chunks(threads.max(1)) {
        thread::scope(|scope| {
            let make = &make;
            let start = |&chunk: &usize| {
                let first = chunk * chunk_rows;
                let range = first..rows.min(first + chunk_rows);
                scope.spawn(move || make(chunk, range))
            };
            let workers: Vec<_> = wave.iter().map(start).collect();
            for worker in workers {
                let bytes = worker
                    .join()
                    .map_err(|_| io::Error::other("a worker thread failed"))??;
                write(&bytes)?;
            }
            io::Result::Ok(())
        })?;
    }
    Ok(())
}
