//! One test per way of lying: a small valid file, one thing in it changed.

use super::*;
use crate::error::Error;
use proptest::prelude::*;

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
