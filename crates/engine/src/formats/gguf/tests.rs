//! One test per way of lying: a small valid file, one thing in it changed.

use super::*;
use crate::error::Error;
use crate::formats::Tensor;
use crate::kernels::{Bytes, DType};
use proptest::prelude::*;
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

/// Where `needle` ends in `bytes`; it must occur once.
fn after(bytes: &[u8], needle: &str) -> usize {
    let found: Vec<usize> = bytes
        .windows(needle.len())
        .enumerate()
        .filter_map(|(i, w)| (w == needle.as_bytes()).then_some(i + needle.len()))
        .collect();
    assert_eq!(found.len(), 1, "{needle}");
    found[0]
}

/// The valid file with `new` written `skip` bytes behind `needle`.
fn patched(needle: &str, skip: isize, new: &[u8]) -> Vec<u8> {
    let mut bytes = valid();
    let at = after(&bytes, needle).strict_add_signed(skip);
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[track_caller]
fn malformed_with(bytes: Vec<u8>, parts: &[&str]) {
    match read(bytes) {
        Err(Error::Malformed { cause, .. }) => {
            for part in parts {
                assert!(cause.contains(part), "{cause:?} lacks {part:?}");
            }
        }
        other => panic!("{other:?} instead of Malformed"),
    }
}

#[track_caller]
fn unsupported_with(bytes: Vec<u8>, parts: &[&str]) {
    match read(bytes) {
        Err(Error::Unsupported { cause, remedy, .. }) => {
            for part in parts {
                assert!(cause.contains(part), "{cause:?} lacks {part:?}");
            }
            assert!(!remedy.is_empty());
        }
        other => panic!("{other:?} instead of Unsupported"),
    }
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
fn every_truncation_is_noticed_and_the_missing_bytes_counted() {
    let bytes = valid();
    let padding = 32 - (2 * 3 * 2); // behind the last tensor; not part of it
    let needed = bytes.len() - padding;
    for length in 0..needed {
        let error = read(bytes[..length].to_vec()).unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{length}: {error}"
        );
    }
    assert!(read(bytes[..needed].to_vec()).is_ok());
    malformed_with(
        bytes[..needed - 5].to_vec(),
        &["the file ends 5 bytes early", "1 of 3 tensors", "tensor.c"],
    );
}

#[test]
fn truncated_in_the_header() {
    malformed_with(
        valid()[..10].to_vec(),
        &["the header", "ends 6 bytes early"],
    );
}

#[test]
fn truncated_in_the_metadata() {
    let bytes = valid();
    let at = after(&bytes, "a.array") + 4 + 4 + 2;
    malformed_with(bytes[..at].to_vec(), &["`a.array`", "ends 6 bytes early"]);
}

#[test]
fn truncated_in_the_tensor_infos() {
    let bytes = valid();
    let at = after(&bytes, "tensor.c") + 2;
    malformed_with(bytes[..at].to_vec(), &["`tensor.c`", "ends 2 bytes early"]);
}

#[test]
fn wrong_magic() {
    malformed_with(
        b"GGUX............".to_vec(),
        &["not a GGUF file", "[47, 47, 55, 58]"],
    );
    malformed_with(b"G".to_vec(), &["not a GGUF file"]);
    malformed_with(vec![], &["not a GGUF file"]);
}

#[test]
fn other_formats_are_called_by_their_names() {
    let mut safetensors = 20u64.to_le_bytes().to_vec();
    safetensors.extend(b"{\"a\":1}                     ");
    let cases: [(&[u8], &str); 8] = [
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "git-lfs pointer",
        ),
        (b"PK\x03\x04\x00\x00\x08\x08", "zip archive"),
        (b"\x80\x02\x8a\x0al\xfc\x9c", "pickle"),
        (b"tjgg\x03\x00\x00\x00", "before GGUF"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\n <!DOCTYPE html>", "web page"),
        (&safetensors, "safetensors"),
    ];
    for (bytes, name) in cases {
        unsupported_with(bytes.to_vec(), &[name]);
    }
}

#[test]
fn other_versions() {
    for (version, part) in [
        (1u32, "version 1"),
        (4, "version 4"),
        (0, "version 0"),
        (3u32.swap_bytes(), "version 3 in big-endian"),
    ] {
        let mut bytes = valid();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        unsupported_with(bytes, &[part]);
    }
}

#[test]
fn huge_counts() {
    for count in [1u64 << 20, 1 << 40, u64::MAX] {
        let mut bytes = valid();
        bytes[8..16].copy_from_slice(&count.to_le_bytes());
        malformed_with(bytes, &[&format!("{count} tensors cannot fit")]);
        let mut bytes = valid();
        bytes[16..24].copy_from_slice(&count.to_le_bytes());
        malformed_with(bytes, &[&format!("{count} key-value pairs cannot fit")]);
    }
}

#[test]
fn huge_string() {
    let huge = (1u64 << 50).to_le_bytes();
    malformed_with(
        patched("general.architecture", 4, &huge),
        &[
            "`general.architecture`",
            "1125899906842624 bytes of a string cannot fit",
        ],
    );
}

#[test]
fn huge_array() {
    let huge = (1u64 << 60).to_le_bytes();
    for (key, things) in [
        ("a.f32", "elements"),
        ("a.bool", "elements"),
        ("a.string", "strings"),
        ("a.array", "elements"),
    ] {
        malformed_with(patched(key, 8, &huge), &[key, things, "cannot fit"]);
    }
}

#[test]
fn huge_string_in_an_array() {
    let huge = (1u64 << 33).to_le_bytes();
    malformed_with(patched("a.string", 16, &huge), &["a.string", "cannot fit"]);
}

#[test]
fn nested_arrays_bomb() {
    let mut bomb = Array::U8(vec![]);
    for _ in 0..100_000 {
        bomb = Array::Array(vec![bomb]);
    }
    let bytes = encode_bomb(&bomb);
    malformed_with(bytes, &["`bomb`", "nested deeper than 4"]);
    // Taken apart from the outside, so that dropping it does not recurse either.
    while let Array::Array(mut inner) = bomb {
        bomb = inner.pop().unwrap();
    }
}

/// `encode` would recurse as deep as the bomb; so this writes it by hand.
fn encode_bomb(bomb: &Array) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(4u64.to_le_bytes());
    bytes.extend(b"bomb");
    bytes.extend(9u32.to_le_bytes());
    let mut array = bomb;
    while let Array::Array(inner) = array {
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        array = &inner[0];
    }
    bytes.extend([0; 12]);
    bytes
}

#[test]
fn many_empty_arrays_in_one() {
    // Cheap in the file, so they must not be dear in memory: bounded by the bytes that follow.
    malformed_with(
        patched("a.array", 8, &30_000u64.to_le_bytes()),
        &["30000 elements"],
    );
}

#[test]
fn unknown_value_types() {
    malformed_with(
        patched("v.u32", 0, &13u32.to_le_bytes()),
        &["`v.u32`", "no value type 13"],
    );
    malformed_with(
        patched("a.u8", 4, &77u32.to_le_bytes()),
        &["`a.u8`", "no element type 77"],
    );
}

#[test]
fn a_bool_of_two() {
    malformed_with(patched("v.bool", 4, &[2]), &["`v.bool`", "2 is no bool"]);
    malformed_with(patched("a.bool", 16, &[9]), &["`a.bool`", "9 is no bool"]);
}

#[test]
fn a_string_that_is_no_text() {
    malformed_with(
        patched("general.architecture", 12, &[0xff]),
        &["architecture", "utf-8"],
    );
    malformed_with(
        patched("tensor.a", -8, b"\xff"),
        &["description 1 of 3", "utf-8"],
    );
}

#[test]
fn empty_and_overlong_keys() {
    let named = |key: String| encoded(&[(key, Value::Bool(true)), ("x".into(), Value::U8(0))], &[]);
    malformed_with(named(String::new()), &["pair 1 of 2", "a key of 0 bytes"]);
    malformed_with(named("k".repeat(65_536)), &["a key of 65536 bytes"]);
    assert!(read(named("k".repeat(65_535))).is_ok());
}

#[test]
fn duplicate_keys() {
    malformed_with(patched("v.i8", -2, b"u"), &["`v.u8` occurs twice"]);
}

#[test]
fn duplicate_tensor_names() {
    let twice = [info("t", DType::F32, &[1]), info("t", DType::F32, &[2])];
    malformed_with(encoded(&[], &twice), &["two tensors are named `t`"]);
}

#[test]
fn no_dimension_and_five() {
    malformed_with(
        patched("tensor.a", 0, &0u32.to_le_bytes()),
        &["`tensor.a`", "0 dimensions"],
    );
    malformed_with(
        patched("tensor.a", 0, &5u32.to_le_bytes()),
        &["`tensor.a`", "5 dimensions"],
    );
}

#[test]
fn zero_dimension() {
    malformed_with(
        patched("tensor.a", 4, &0u64.to_le_bytes()),
        &["`tensor.a`", "dimension of 0"],
    );
}

#[test]
fn dimensions_that_overflow() {
    for dim in [u64::MAX, 1 << 63, 1 << 62] {
        malformed_with(
            patched("tensor.a", 4, &dim.to_le_bytes()),
            &["`tensor.a`", "overflows"],
        );
        malformed_with(
            patched("tensor.a", 12, &dim.to_le_bytes()),
            &["`tensor.a`", "overflows"],
        );
    }
}

#[test]
fn rows_that_are_no_whole_number_of_blocks() {
    malformed_with(
        patched("tensor.b", 4, &48u64.to_le_bytes()),
        &["`tensor.b`", "rows of 48", "Q8_0 blocks of 32"],
    );
}

#[test]
fn types_that_cannot_be_loaded() {
    for (number, name) in [
        (10u32, "Q2_K"),
        (16, "IQ2_XXS"),
        (34, "TQ1_0"),
        (39, "MXFP4"),
        (5000, "number 5000"),
    ] {
        let mut bytes = valid();
        let at = after(&bytes, "tensor.a") + 4 + 16;
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        unsupported_with(bytes, &["`tensor.a`", name, "not supported"]);
    }
}

#[test]
fn unaligned_offset() {
    let offset = 4 + 16 + 4;
    malformed_with(
        patched("tensor.b", offset, &65u64.to_le_bytes()),
        &["`tensor.b`", "offset 65 is no multiple of 32"],
    );
}

#[test]
fn an_offset_beyond_the_file() {
    let offset = 4 + 16 + 4;
    malformed_with(
        patched("tensor.b", offset, &(1u64 << 40).to_le_bytes()),
        &["`tensor.b`", "early"],
    );
    malformed_with(
        patched("tensor.b", offset, &(u64::MAX - 31).to_le_bytes()),
        &["`tensor.b`", "overflows"],
    );
}

#[test]
fn overlapping_tensors() {
    let offset = 4 + 16 + 4;
    malformed_with(
        patched("tensor.b", offset, &32u64.to_le_bytes()),
        &["`tensor.a` and `tensor.b` overlap"],
    );
}

#[test]
fn bad_alignments() {
    for alignment in [0u32, 1, 4, 48, 1 << 30] {
        let mut bytes = encoded(&[("general.alignment".into(), Value::U32(64))], &tensors());
        let at = after(&bytes, "general.alignment") + 4;
        bytes[at..at + 4].copy_from_slice(&alignment.to_le_bytes());
        malformed_with(bytes, &[&format!("general.alignment is {alignment}")]);
    }
    let text = Value::String("32".into());
    let mut bytes = Vec::new();
    assert!(
        encode(
            &mut bytes,
            &[("general.alignment".into(), text)],
            &[],
            |_, _| Ok(())
        )
        .is_err()
    );
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the bytes, an error at worst; and tensors that are read are whole.
    #[test]
    fn damaged_files_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        cut_it in any::<bool>(),
    ) {
        let mut bytes = valid();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut_it {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        if let Ok((_, tensors)) = read(bytes) {
            for tensor in tensors {
                let elements: usize = tensor.shape.iter().product();
                prop_assert_eq!(tensor.dtype.row_bytes(elements), Some(tensor.data.len()));
            }
        }
    }
}
