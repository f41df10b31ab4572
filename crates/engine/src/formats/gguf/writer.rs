//! Writing, tensor by tensor.

use super::{Array, DEFAULT_ALIGNMENT, Strings, Value, types};
use crate::error::Result;
use crate::files::atomic_write;
use crate::kernels::DType;
use std::{
    io::{self, Write},
    path::Path,
};

/// A tensor to write: everything about it but its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// How its elements are stored.
    pub dtype: DType,
    /// Outermost dimension first, one to four.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes of the tensor's data.
    ///
    /// # Errors
    /// If the format cannot hold such a tensor.
    pub fn bytes(&self) -> io::Result<usize> {
        let refused = |why| Err(self.refused(why));
        self.number()?;
        let Some((&cols, outer)) = self.shape.split_last() else {
            return refused("has no dimension");
        };
        if self.shape.len() > 4 || self.shape.contains(&0) {
            return refused("needs one to four dimensions, none of them 0");
        }
        let Some(row) = self.dtype.row_bytes(cols) else {
            return refused("its rows are no whole number of blocks");
        };
        match outer.iter().try_fold(row, |n, &dim| n.checked_mul(dim)) {
            Some(bytes) => Ok(bytes),
            None => refused("overflows"),
        }
    }

    /// GGUF's number for its type.
    fn number(&self) -> io::Result<u32> {
        types::number(self.dtype).ok_or_else(|| self.refused("no GGUF type"))
    }

    fn refused(&self, why: &str) -> io::Error {
        let message = format!(
            "tensor `{}` {:?} as {}: {why}",
            self.name, self.shape, self.dtype
        );
        io::Error::new(io::ErrorKind::InvalidInput, message)
    }
}

/// Writes the GGUF file `path`; see [`encode`]. The file appears when it is complete, see
/// [`atomic_write`].
///
/// # Errors
/// [`crate::Error::Write`] if the disk or `fill` fails, or the parts do not fit together.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorInfo],
    fill: impl FnMut(&TensorInfo, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    atomic_write(path, |out| encode(out, metadata, tensors, fill))
}

/// Writes a GGUF file, version 3, in one pass: the metadata in the order given, the tensors'
/// descriptions, then the data of each tensor as `fill` writes it.
///
/// # Errors
/// Whatever `out` or `fill` gives; `InvalidInput` if a tensor has a shape the format cannot hold, an
/// alignment in the metadata is unusable, or `fill` writes more or fewer bytes than the tensor has.
pub fn encode(
    out: &mut dyn Write,
    metadata: &[(String, Value)],
    tensors: &[TensorInfo],
    mut fill: impl FnMut(&TensorInfo, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let alignment = alignment(metadata)?;
    let mut out = Counted { out, written: 0 };
    out.write_all(b"GGUF")?;
    out.write_all(&3u32.to_le_bytes())?;
    write_len(&mut out, tensors.len())?;
    write_len(&mut out, metadata.len())?;
    for (key, value) in metadata {
        write_str(&mut out, key)?;
        write_value(&mut out, value)?;
    }
    let mut offset = 0usize;
    for tensor in tensors {
        write_str(&mut out, &tensor.name)?;
        out.write_all(&(tensor.shape.len() as u32).to_le_bytes())?;
        for &dim in tensor.shape.iter().rev() {
            write_len(&mut out, dim)?;
        }
        out.write_all(&tensor.number()?.to_le_bytes())?;
        write_len(&mut out, offset)?;
        offset += tensor.bytes()?.next_multiple_of(alignment);
    }
    out.pad(alignment)?;
    for tensor in tensors {
        let (start, expected) = (out.written, tensor.bytes()?);
        fill(tensor, &mut out)?;
        let got = out.written - start;
        if got != expected {
            let message = format!(
                "tensor `{}` has {expected} bytes, {got} were written",
                tensor.name
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        out.pad(alignment)?;
    }
    Ok(())
}

fn alignment(metadata: &[(String, Value)]) -> io::Result<usize> {
    let given = metadata.iter().find(|(key, _)| key == "general.alignment");
    match given {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(n))) if n.is_power_of_two() && *n >= 8 => Ok(*n as usize),
        Some((_, other)) => {
            let message = format!(
                "general.alignment is {other:?}, a u32 that is a power of two from 8 is needed"
            );
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

/// Counts what passes through.
struct Counted<'a> {
    out: &'a mut dyn Write,
    written: usize,
}

impl Counted<'_> {
    fn pad(&mut self, alignment: usize) -> io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        io::copy(&mut io::Read::take(io::repeat(0), missing as u64), self).map(|_| ())
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_len(out: &mut impl Write, n: usize) -> io::Result<()> {
    out.write_all(&(n as u64).to_le_bytes())
}

fn write_str(out: &mut impl Write, s: &str) -> io::Result<()> {
    write_len(out, s.len())?;
    out.write_all(s.as_bytes())
}

fn write_type(out: &mut impl Write, number: u32) -> io::Result<()> {
    out.write_all(&number.to_le_bytes())
}

fn write_value(out: &mut impl Write, value: &Value) -> io::Result<()> {
    let (number, bytes): (u32, &[u8]) = match value {
        Value::U8(v) => (0, &v.to_le_bytes()),
        Value::I8(v) => (1, &v.to_le_bytes()),
        Value::U16(v) => (2, &v.to_le_bytes()),
        Value::I16(v) => (3, &v.to_le_bytes()),
        Value::U32(v) => (4, &v.to_le_bytes()),
        Value::I32(v) => (5, &v.to_le_bytes()),
        Value::F32(v) => (6, &v.to_le_bytes()),
        Value::Bool(v) => (7, &[u8::from(*v)]),
        Value::U64(v) => (10, &v.to_le_bytes()),
        Value::I64(v) => (11, &v.to_le_bytes()),
        Value::F64(v) => (12, &v.to_le_bytes()),
        Value::String(v) => {
            write_type(out, 8)?;
            return write_str(out, v);
        }
        Value::Array(v) => {
            write_type(out, 9)?;
            return write_array(out, v);
        }
    };
    write_type(out, number)?;
    out.write_all(bytes)
}

fn write_array(out: &mut impl Write, array: &Array) -> io::Result<()> {
    match array {
        Array::U8(v) => write_numbers(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => write_numbers(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => write_numbers(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => write_numbers(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => write_numbers(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => write_numbers(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => write_numbers(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => write_numbers(out, 7, v, |b| [u8::from(b)]),
        Array::String(v) => write_strings(out, v),
        Array::Array(v) => {
            write_type(out, 9)?;
            write_len(out, v.len())?;
            v.iter().try_for_each(|inner| write_array(out, inner))
        }
        Array::U64(v) => write_numbers(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => write_numbers(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => write_numbers(out, 12, v, f64::to_le_bytes),
    }
}

fn write_numbers<const N: usize, T: Copy>(
    out: &mut impl Write,
    number: u32,
    values: &[T],
    bytes: fn(T) -> [u8; N],
) -> io::Result<()> {
    write_type(out, number)?;
    write_len(out, values.len())?;
    values.iter().try_for_each(|&v| out.write_all(&bytes(v)))
}

fn write_strings(out: &mut impl Write, strings: &Strings) -> io::Result<()> {
    write_type(out, 8)?;
    write_len(out, strings.len())?;
    strings.iter().try_for_each(|s| write_str(out, s))
}
