//! GGUF metadata: typed values under unique keys.

use crate::error::{Error, Result};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// A metadata value. The file names its type, so a number keeps the width it was written with.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own names
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own names
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn kind(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::String(_) => "string",
            Array::Array(_) => "array",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }
}

/// Many strings in one allocation: a vocabulary of 250,000 tokens costs two, not 250,000.
#[derive(Clone, Default, PartialEq)]
pub struct Strings {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
}

impl Strings {
    /// No strings yet, with room for `count` of `bytes` bytes together.
    pub fn with_capacity(count: usize, bytes: usize) -> Strings {
        Strings {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(count),
        }
    }

    /// Adds a string at the end.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no string.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `i`, or `None` beyond the last.
    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)?;
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = &self.text[start..end];
            start = end;
            string
        })
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Strings {
        let mut all = Strings::default();
        for string in strings {
            all.push(string.as_ref());
        }
        all
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().take(8)).finish()?;
        write!(f, " ({} strings)", self.len())
    }
}

impl Value {
    /// What the value is, for messages: `u32 7`, `string "llama"`, `array of 3 f32`.
    fn describe(&self) -> String {
        match self {
            Value::U8(v) => format!("u8 {v}"),
            Value::I8(v) => format!("i8 {v}"),
            Value::U16(v) => format!("u16 {v}"),
            Value::I16(v) => format!("i16 {v}"),
            Value::U32(v) => format!("u32 {v}"),
            Value::I32(v) => format!("i32 {v}"),
            Value::F32(v) => format!("f32 {v}"),
            Value::Bool(v) => format!("bool {v}"),
            Value::String(v) => {
                let shown: String = v.chars().take(40).collect();
                let dots = if shown.len() < v.len() { "..." } else { "" };
                format!("string {shown:?}{dots}")
            }
            Value::Array(v) => format!("array of {} {}", v.len(), v.kind()),
            Value::U64(v) => format!("u64 {v}"),
            Value::I64(v) => format!("i64 {v}"),
            Value::F64(v) => format!("f64 {v}"),
        }
    }

    /// The integer, whatever its width and sign.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// The key-value pairs of a GGUF file, with getters whose errors name the key and both types.
///
/// Writers disagree about the width of integers, so a getter for an integer takes any width that
/// holds the value.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

/// Defines `get_x` and `opt_x` in terms of one conversion.
macro_rules! getters {
    ($($get:ident, $opt:ident: $type:ty, $wanted:literal, $convert:expr;)*) => {$(
        #[doc = concat!("The ", $wanted, " under `key`.")]
        ///
        /// # Errors
        /// [`Error::Unsupported`] if there is no such key or it holds something else.
        pub fn $get(&self, key: &str) -> Result<$type> {
            self.$opt(key)?.ok_or_else(|| self.missing(key, $wanted))
        }

        #[doc = concat!("The ", $wanted, " under `key`, or `None` without such a key.")]
        ///
        /// # Errors
        /// [`Error::Unsupported`] if the key holds something else.
        pub fn $opt(&self, key: &str) -> Result<Option<$type>> {
            let Some(value) = self.values.get(key) else {
                return Ok(None);
            };
            let convert: fn(&Value) -> Option<$type> = $convert;
            match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.mistyped(key, $wanted, value)),
            }
        }
    )*};
}

impl Metadata {
    /// Metadata of the file `path`, which error messages name.
    pub fn new(path: &Path, values: BTreeMap<String, Value>) -> Metadata {
        Metadata {
            path: path.to_path_buf(),
            values,
        }
    }

    /// The value under `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All keys and values, ordered by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    getters! {
        get_u32, opt_u32: u32, "u32", |v| v.integer()?.try_into().ok();
        get_u64, opt_u64: u64, "u64", |v| v.integer()?.try_into().ok();
        get_f32, opt_f32: f32, "f32", |v| match *v {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        };
        get_bool, opt_bool: bool, "bool", |v| match *v {
            Value::Bool(x) => Some(x),
            _ => None,
        };
        get_str, opt_str: &str, "string", |v| match v {
            Value::String(x) => Some(x),
            _ => None,
        };
        get_array, opt_array: &Array, "array", |v| match v {
            Value::Array(x) => Some(x),
            _ => None,
        };
        get_strings, opt_strings: &Strings, "array of strings", |v| match v {
            Value::Array(Array::String(x)) => Some(x),
            _ => None,
        };
        get_f32s, opt_f32s: &[f32], "array of f32", |v| match v {
            Value::Array(Array::F32(x)) => Some(x),
            _ => None,
        };
        get_u32s, opt_u32s: Vec<u32>, "array of u32", |v| match v {
            Value::Array(Array::U32(x)) => Some(x.clone()),
            Value::Array(Array::I32(x)) => x.iter().map(|&x| x.try_into().ok()).collect(),
            Value::Array(Array::U64(x)) => x.iter().map(|&x| x.try_into().ok()).collect(),
            Value::Array(Array::I64(x)) => x.iter().map(|&x| x.try_into().ok()).collect(),
            _ => None,
        };
    }

    fn missing(&self, key: &str, wanted: &str) -> Error {
        super::unsupported(
            &self.path,
            format!("metadata key `{key}` is missing ({wanted} expected)"),
            "convert the model again with a current converter, or fetch another file of it",
        )
    }

    fn mistyped(&self, key: &str, wanted: &str, found: &Value) -> Error {
        let found = found.describe();
        super::unsupported(
            &self.path,
            format!("metadata key `{key}`: {wanted} expected, found {found}"),
            "convert the model again with a current converter, or fetch another file of it",
        )
    }
}
