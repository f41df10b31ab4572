//! What is written is read again; what a small valid file is, that others change.

mod lies;

use super::*;
use crate::formats::Tensor;
use crate::kernels::{Bytes, DType};
use std::collections::BTreeMap;

fn info(name: &str, dtype: DType, shape: &[usize]) -> TensorInfo {
    TensorInfo {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    }
}

fn tensors() -> Vec<TensorInfo> {
    vec![
        info("tensor.a", DType::F32, &[2, 5]),
        info("tensor.b", DType::Q8_0, &[4, 64]),
        info("tensor.c", DType::F16, &[2, 1, 3]),
    ]
}

/// Every type of value once, alone and in an array.
fn metadata() -> Vec<(String, Value)> {
    let strings: Strings = ["", "t", "ä€𝄞"].into_iter().collect();
    let values = [
        ("general.architecture", Value::String("llama".into())),
        ("v.u8", Value::U8(200)),
        ("v.i8", Value::I8(-100)),
        ("v.u16", Value::U16(60_000)),
        ("v.i16", Value::I16(-30_000)),
        ("v.u32", Value::U32(4_000_000_000)),
        ("v.i32", Value::I32(-2_000_000_000)),
        ("v.f32", Value::F32(1.5)),
        ("v.bool", Value::Bool(true)),
        ("v.u64", Value::U64(u64::MAX)),
        ("v.i64", Value::I64(i64::MIN)),
        ("v.f64", Value::F64(-2.5)),
        ("a.u8", Value::Array(Array::U8(vec![1, 2]))),
        ("a.i8", Value::Array(Array::I8(vec![-1]))),
        ("a.u16", Value::Array(Array::U16(vec![3]))),
        ("a.i16", Value::Array(Array::I16(vec![-3]))),
        ("a.u32", Value::Array(Array::U32(vec![]))),
        ("a.i32", Value::Array(Array::I32(vec![4, 5, 6]))),
        ("a.f32", Value::Array(Array::F32(vec![0.25; 9]))),
        ("a.bool", Value::Array(Array::Bool(vec![true, false]))),
        ("a.string", Value::Array(Array::String(strings))),
        ("a.u64", Value::Array(Array::U64(vec![7]))),
        ("a.i64", Value::Array(Array::I64(vec![-7]))),
        ("a.f64", Value::Array(Array::F64(vec![0.5]))),
        (
            "a.array",
            Value::Array(Array::Array(vec![
                Array::U8(vec![1]),
                Array::Array(vec![Array::F32(vec![2.0])]),
            ])),
        ),
    ];
    values.map(|(key, value)| (key.into(), value)).into()
}

fn encoded(metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, metadata, tensors, |tensor, out| {
        let first = tensor.name.as_bytes()[tensor.name.len() - 1];
        let data: Vec<u8> = (0..tensor.bytes()?)
            .map(|i| first.wrapping_add(i as u8))
            .collect();
        out.write_all(&data)
    })
    .unwrap();
    bytes
}

fn valid() -> Vec<u8> {
    encoded(&metadata(), &tensors())
}

fn read(bytes: Vec<u8>) -> Result<(Metadata, Vec<Tensor>)> {
    parse(Path::new("m.gguf"), Bytes::from(bytes))
}

#[test]
fn what_was_written_is_read() {
    let (read_metadata, read_tensors) = read(valid()).unwrap();
    let written: BTreeMap<String, Value> = metadata().into_iter().collect();
    for (key, value) in &written {
        assert_eq!(read_metadata.get(key), Some(value), "{key}");
    }
    assert_eq!(read_metadata.iter().len(), written.len());
    assert_eq!(read_tensors.len(), 3);
    for (read, written) in read_tensors.iter().zip(tensors()) {
        assert_eq!(
            (&read.name, read.dtype, &read.shape),
            (&written.name, written.dtype, &written.shape)
        );
        assert_eq!(read.data.len(), written.bytes().unwrap());
        let first = read.name.as_bytes()[7];
        assert!(
            read.data
                .iter()
                .enumerate()
                .all(|(i, &b)| b == first.wrapping_add(i as u8))
        );
    }
}

#[test]
fn the_alignment_of_the_metadata_is_kept() {
    let mut metadata = metadata();
    metadata.push(("general.alignment".into(), Value::U32(256)));
    let bytes = encoded(&metadata, &tensors());
    let start = bytes.windows(4).position(|w| w == b"abcd").unwrap();
    assert!(start.is_multiple_of(256));
    assert_eq!(read(bytes).unwrap().1[2].data[0], b'c');
}

#[test]
fn version_2_is_read_too() {
    let mut bytes = valid();
    bytes[4] = 2;
    assert_eq!(read(bytes).unwrap().1.len(), 3);
}

#[test]
fn a_file_without_tensors_is_read() {
    // Vocabulary files are like that, and end without padding.
    let mut bytes = encoded(&metadata(), &[]);
    assert!(read(bytes.clone()).unwrap().1.is_empty());
    while bytes.last() == Some(&0) && bytes.len() % 32 != 1 {
        bytes.pop();
    }
    assert!(read(bytes).unwrap().1.is_empty());
}

#[test]
fn getters_name_key_and_both_types() {
    let (metadata, _) = read(valid()).unwrap();
    assert_eq!(metadata.get_u32("v.u8").unwrap(), 200);
    assert_eq!(metadata.get_u64("v.u64").unwrap(), u64::MAX);
    assert_eq!(metadata.get_f32("v.f64").unwrap(), -2.5);
    assert_eq!(metadata.get_str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.get_u32s("a.i32").unwrap(), [4, 5, 6]);
    assert_eq!(
        metadata.get_strings("a.string").unwrap().get(2),
        Some("ä€𝄞")
    );
    assert_eq!(metadata.get_array("a.f32").unwrap().len(), 9);
    assert!(metadata.get_bool("v.bool").unwrap());
    assert!(metadata.opt_u32("absent").unwrap().is_none());

    let message = |r: Result<u32>| r.unwrap_err().to_string();
    let missing = message(metadata.get_u32("absent"));
    assert!(
        missing.contains("`absent` is missing (u32 expected)"),
        "{missing}"
    );
    let negative = message(metadata.get_u32("v.i32"));
    assert!(
        negative.contains("`v.i32`: u32 expected, found i32 -2000000000"),
        "{negative}"
    );
    let large = message(metadata.get_u32("v.u64"));
    assert!(large.contains("found u64 18446744073709551615"), "{large}");
    let other = message(metadata.get_u32("a.f32"));
    assert!(other.contains("found array of 9 f32"), "{other}");
    let text = message(metadata.get_u32("general.architecture"));
    assert!(text.contains("found string \"llama\""), "{text}");
    assert!(metadata.opt_u32("general.architecture").is_err());
}

#[test]
fn strings_in_one_allocation_come_apart_again() {
    let words = ["", "a", "", "ß", "bc", ""];
    let strings: Strings = words.into_iter().collect();
    assert_eq!(strings.iter().collect::<Vec<_>>(), words);
    for (i, word) in words.into_iter().enumerate() {
        assert_eq!(strings.get(i), Some(word));
    }
    assert_eq!(strings.get(words.len()), None);
}

#[test]
fn a_writer_that_fills_too_little_or_too_much_is_refused() {
    for bytes in [3, 5] {
        let one = [info("t", DType::F32, &[1])];
        let error = encode(&mut Vec::new(), &[], &one, |_, out| {
            out.write_all(&vec![0; bytes])
        });
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains(&format!("{bytes} were written"))
        );
    }
}

#[test]
fn a_writer_refuses_what_cannot_be_read() {
    let cases = [
        info("t", DType::F32, &[]),
        info("t", DType::F32, &[2, 0]),
        info("t", DType::F32, &[1; 5]),
        info("t", DType::Q4_K, &[1, 100]),
        info("t", DType::F32, &[usize::MAX, 2]),
        info("t", DType::Q3_0, &[2, 64]),
    ];
    for case in cases {
        assert!(case.bytes().is_err(), "{case:?}");
        let written = encode(&mut Vec::new(), &[], &[case], |_, _| Ok(()));
        assert!(written.is_err());
    }
}
