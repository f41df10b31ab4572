//! Reading: a cursor that never leaves the file, and the checks on what it reads.

use super::{Array, DEFAULT_ALIGNMENT, Metadata, Strings, Value, malformed, types, unsupported};
use crate::error::{Error, Result};
use crate::formats::{Tensor, sniff};
use crate::kernels::{Bytes, DType};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

/// Longest key or tensor name, in bytes; the format's own limit for keys.
const MAX_NAME: usize = 65_535;
/// Deepest arrays of arrays. No known file has any.
const MAX_NESTING: usize = 4;
/// Smallest key-value pair: a key of one byte and a value of one byte.
const MIN_PAIR: usize = 8 + 1 + 4 + 1;
/// Smallest tensor description: a name of one byte and one dimension.
const MIN_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads a whole GGUF file: its metadata, and its tensors as parts of `file`. `path` is for messages.
///
/// # Errors
/// [`Error::Malformed`] if the bytes contradict the format, [`Error::Unsupported`] for another
/// version, byte order or tensor type.
pub fn parse(path: &Path, file: Bytes) -> Result<(Metadata, Vec<Tensor>)> {
    if !file.starts_with(b"GGUF") {
        return Err(sniff::not_gguf(path, &file));
    }
    let mut cursor = Cursor {
        path,
        bytes: &file,
        at: 4,
        place: "the header".into(),
    };
    check_version(path, cursor.u32()?)?;
    let tensors = cursor.count(MIN_TENSOR, "tensors")?;
    // The tensors' descriptions follow the pairs; both have to fit.
    let pairs = cursor.count(MIN_PAIR, "key-value pairs")?;

    let mut values = BTreeMap::new();
    for i in 0..pairs {
        cursor.place = format!("metadata pair {} of {pairs}", i + 1);
        let key = cursor.name("key")?;
        cursor.place = format!("metadata key `{key}`");
        let value = cursor.value()?;
        if values.insert(key.to_string(), value).is_some() {
            return Err(malformed(
                path,
                format!("metadata key `{key}` occurs twice"),
            ));
        }
    }
    let metadata = Metadata::new(path, values);
    let alignment = alignment(path, &metadata)?;

    let mut infos = Vec::with_capacity(tensors);
    for i in 0..tensors {
        cursor.place = format!("description {} of {tensors} tensors", i + 1);
        infos.push(cursor.tensor_info()?);
    }
    let data_start = cursor.at.next_multiple_of(alignment);
    check_names(path, &infos)?;
    check_layout(
        path,
        &infos,
        alignment,
        file.len().saturating_sub(data_start),
        file.len(),
    )?;
    let cut = |info: Info<'_>| {
        let start = data_start + info.offset;
        Tensor {
            name: info.name.into(),
            dtype: info.dtype,
            shape: info.shape,
            data: file.slice(start..start + info.bytes),
        }
    };
    Ok((metadata, infos.into_iter().map(cut).collect()))
}

fn check_version(path: &Path, version: u32) -> Result<()> {
    match version {
        2 | 3 => Ok(()),
        1 => Err(unsupported(
            path,
            "GGUF version 1 is not supported".into(),
            "convert the model again with a current converter (versions 2 and 3 are read)",
        )),
        v if v.swap_bytes() < 256 && v != 0 => Err(unsupported(
            path,
            format!(
                "GGUF version {} in big-endian byte order is not supported",
                v.swap_bytes()
            ),
            "fetch or convert the model in little-endian byte order",
        )),
        v => Err(unsupported(
            path,
            format!("GGUF version {v} is not supported"),
            "fetch the model in GGUF version 3",
        )),
    }
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<usize> {
    let Some(alignment) = metadata.opt_u32("general.alignment")? else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    // The format asks for a multiple of 8; beyond a page size a value is no longer plausible.
    if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
        return Err(malformed(
            path,
            format!(
                "general.alignment is {alignment}, not a power of two from 8 to {}",
                1 << 20
            ),
        ));
    }
    Ok(alignment as usize)
}

/// A tensor's description, its shape already outermost first.
struct Info<'a> {
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
    /// From the start of the data.
    offset: usize,
    bytes: usize,
}

fn check_names(path: &Path, infos: &[Info<'_>]) -> Result<()> {
    let mut seen = HashSet::with_capacity(infos.len());
    match infos.iter().find(|info| !seen.insert(info.name)) {
        Some(twice) => Err(malformed(
            path,
            format!("two tensors are named `{}`", twice.name),
        )),
        None => Ok(()),
    }
}

/// Every tensor aligned, inside the `available` bytes of data, and apart from all others.
fn check_layout(
    path: &Path,
    infos: &[Info<'_>],
    alignment: usize,
    available: usize,
    file: usize,
) -> Result<()> {
    let mut in_order: Vec<&Info> = infos.iter().collect();
    in_order.sort_by_key(|info| info.offset);
    let mut before: Option<(&Info, usize)> = None;
    for info in in_order {
        let name = info.name;
        if !info.offset.is_multiple_of(alignment) {
            let cause = format!(
                "tensor `{name}`: offset {} is no multiple of {alignment}",
                info.offset
            );
            return Err(malformed(path, cause));
        }
        let Some(end) = info.offset.checked_add(info.bytes) else {
            let cause = format!("tensor `{name}`: offset {} overflows", info.offset);
            return Err(malformed(path, cause));
        };
        if let Some((earlier, earlier_end)) = before
            && earlier_end > info.offset
        {
            let cause = format!("tensors `{}` and `{name}` overlap", earlier.name);
            return Err(malformed(path, cause));
        }
        before = Some((info, end));
    }
    // The last tensor ends last, since none overlap: it tells how much is missing in all.
    if let Some((info, end)) = before
        && end > available
    {
        let cut_off = infos
            .iter()
            .filter(|i| i.offset + i.bytes > available)
            .count();
        let cause = format!(
            "the file ends {} bytes early: it has {file} bytes, {cut_off} of {} tensors up to `{}` lie beyond its end",
            end - available,
            infos.len(),
            info.name,
        );
        return Err(malformed(path, cause));
    }
    Ok(())
}

/// A position in the file. Every read is checked against the end.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// What is being read, for messages.
    place: String,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn malformed(&self, cause: impl std::fmt::Display) -> Error {
        malformed(self.path, format!("{}: {cause}", self.place))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let taken = self.bytes[self.at..].get(..count).ok_or_else(|| {
            let missing = count - self.remaining();
            self.malformed(format_args!("the file ends {missing} bytes early"))
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of at least `each` bytes, which the rest of the file must be able to hold.
    fn count(&mut self, each: usize, things: &str) -> Result<usize> {
        let count = self.u64()?;
        let room = self.remaining() / each;
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => Err(self.malformed(format_args!(
                "{count} {things} cannot fit the {} bytes that follow",
                self.remaining()
            ))),
        }
    }

    fn string(&mut self) -> Result<&'a str> {
        let length = self.count(1, "bytes of a string")?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|e| self.malformed(format_args!("a string is {e}")))
    }

    /// A key or a tensor's name.
    fn name(&mut self, what: &str) -> Result<&'a str> {
        let name = self.string()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(self.malformed(format_args!(
                "a {what} of {} bytes, 1 to {MAX_NAME} are allowed",
                name.len()
            )));
        }
        Ok(name)
    }

    fn bool(&mut self) -> Result<bool> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            other => Err(self.malformed(format_args!("{} is no bool", other[0]))),
        }
    }

    fn value(&mut self) -> Result<Value> {
        Ok(match self.u32()? {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string()?.into()),
            9 => Value::Array(self.array_value(1)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.malformed(format_args!("there is no value type {other}"))),
        })
    }

    fn array_value(&mut self, depth: usize) -> Result<Array> {
        if depth > MAX_NESTING {
            return Err(self.malformed(format_args!("arrays nested deeper than {MAX_NESTING}")));
        }
        Ok(match self.u32()? {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let count = self.count(1, "elements of an array")?;
                Array::Bool((0..count).map(|_| self.bool()).collect::<Result<_>>()?)
            }
            8 => Array::String(self.strings()?),
            9 => {
                // An inner array takes a type and a count at least.
                let count = self.count(4 + 8, "elements of an array")?;
                let inner = (0..count).map(|_| self.array_value(depth + 1));
                Array::Array(inner.collect::<Result<_>>()?)
            }
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            other => return Err(self.malformed(format_args!("there is no element type {other}"))),
        })
    }

    fn numbers<const N: usize, T>(&mut self, from: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.count(N, "elements of an array")?;
        let bytes = self.take(count * N)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|&b| from(b)).collect())
    }

    fn strings(&mut self) -> Result<Strings> {
        let count = self.count(8, "strings of an array")?;
        let mut strings = Strings::with_capacity(count, 0);
        for _ in 0..count {
            strings.push(self.string()?);
        }
        Ok(strings)
    }

    fn tensor_info(&mut self) -> Result<Info<'a>> {
        let name = self.name("tensor name")?;
        self.place = format!("tensor `{name}`");
        let dims = self.u32()?;
        if !(1..=4).contains(&dims) {
            return Err(self.malformed(format_args!("{dims} dimensions, 1 to 4 are allowed")));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            let dim = self.u64()?;
            match usize::try_from(dim) {
                Ok(dim) if dim > 0 => shape.push(dim),
                _ => return Err(self.malformed(format_args!("a dimension of {dim}"))),
            }
        }
        // The file counts from the innermost dimension.
        shape.reverse();
        let dtype = types::from_number(self.u32()?).map_err(|found| {
            unsupported(
                self.path,
                format!("{}: type {found} is not supported", self.place),
                &format!(
                    "use a file of the model in one of these types: {}",
                    types::loadable()
                ),
            )
        })?;
        let offset = self.u64()?;
        let offset = usize::try_from(offset)
            .map_err(|_| self.malformed(format_args!("offset {offset} is beyond any file")))?;
        let bytes = self.tensor_bytes(dtype, &shape)?;
        Ok(Info {
            name,
            dtype,
            shape,
            offset,
            bytes,
        })
    }

    fn tensor_bytes(&self, dtype: DType, shape: &[usize]) -> Result<usize> {
        let cols = shape.last().copied().unwrap_or(1);
        if !cols.is_multiple_of(dtype.block_len()) {
            return Err(self.malformed(format_args!(
                "rows of {cols} are no whole number of {dtype} blocks of {}",
                dtype.block_len()
            )));
        }
        let rows = shape[..shape.len() - 1]
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d));
        // The number of elements must be countable too, not only that of packed bytes.
        rows.and_then(|rows| {
            rows.checked_mul(cols)?
                .checked_mul(4)
                .and(rows.checked_mul(dtype.row_bytes(cols)?))
        })
        .ok_or_else(|| self.malformed(format_args!("the shape {shape:?} overflows")))
    }
}
