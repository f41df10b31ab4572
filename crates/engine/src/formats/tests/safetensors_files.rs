use super::*;

#[test]
fn tensors_are_read_in_place() {
    let mut tensors = parse(valid()).unwrap();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let [a, b, c] = &tensors[..] else { panic!() };
    assert_eq!(
        (a.dtype, &a.shape[..], &a.data[..]),
        (DType::F32, &[2, 1][..], &[0, 1, 2, 3, 4, 5, 6, 7][..])
    );
    assert_eq!(
        (b.dtype, &b.shape[..], b.data[0]),
        (DType::F16, &[3][..], 8)
    );
    assert_eq!(
        (c.dtype, c.elements(), &c.data[..]),
        (DType::BF16, 1, &[14, 15][..])
    );
    assert!(a.matrix().is_some() && b.matrix().is_none() && c.matrix().is_none());
}

#[test]
fn elements_as_f32() {
    let data = [1.0f32, -2.5].map(f32::to_le_bytes).concat();
    let tensor = |dtype, data: Vec<u8>| Tensor {
        name: "t".into(),
        dtype,
        shape: vec![2, 1],
        data: Bytes::from(data),
    };
    assert_eq!(tensor(DType::F32, data).to_f32(), [1.0, -2.5]);
    let half = [0x3c00u16, 0xc100].map(u16::to_le_bytes).concat();
    assert_eq!(tensor(DType::F16, half).to_f32(), [1.0, -2.5]);
    let mut block = Tensor {
        shape: vec![1, 32],
        ..tensor(DType::Q8_0, vec![3; 34])
    };
    block.data = Bytes::from([&0x3800u16.to_le_bytes()[..], &[3; 32]].concat());
    assert_eq!(block.to_f32(), [1.5; 32]);
}

#[test]
fn every_truncation() {
    let bytes = valid();
    for length in 0..bytes.len() {
        fails_with(parse(bytes[..length].to_vec()), &[]);
    }
    fails_with(parse(bytes[..4].to_vec()), &["no room for a header"]);
    fails_with(parse(bytes[..30].to_vec()), &["early, within its header"]);
    fails_with(
        parse(bytes[..bytes.len() - 3].to_vec()),
        &["ends 3 bytes early"],
    );
}

#[test]
fn bytes_behind_the_last_tensor() {
    let mut bytes = valid();
    bytes.push(0);
    fails_with(parse(bytes), &["1 bytes follow the last tensor"]);
}

#[test]
fn a_huge_header() {
    for length in [100_000_001u64, u64::MAX] {
        let mut bytes = valid();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fails_with(parse(bytes), &[&length.to_string()]);
    }
}

#[test]
fn a_header_that_is_no_json() {
    fails_with(parse(with_header(&json!([1]), &[])), &["header"]);
    let mut bytes = valid();
    bytes[9] = 0xff;
    fails_with(parse(bytes), &["header"]);
}

fn one(
    dtype: &str,
    shape: serde_json::Value,
    offsets: [u64; 2],
    data: usize,
) -> Result<Vec<Tensor>> {
    let header = json!({"x.qweight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
    parse(with_header(&header, &vec![0; data]))
}

#[test]
fn offsets_and_shapes_that_disagree() {
    fails_with(one("F32", json!([2]), [0, 4], 4), &["header"]);
    fails_with(one("F32", json!([1]), [4, 8], 8), &["header", "x.qweight"]);
    fails_with(one("F32", json!([1]), [4, 0], 4), &["header"]);
    fails_with(one("F32", json!([-1]), [0, 4], 4), &["header"]);
}

#[test]
fn shapes_that_overflow() {
    fails_with(
        one("F32", json!([1u64 << 62, 16]), [0, 4], 4),
        &["header", "overflow"],
    );
    let end = u64::MAX - 3;
    fails_with(one("F32", json!([1u64 << 62]), [0, end], 4), &["header"]);
    let most = 1u64 << 60;
    fails_with(one("U8", json!([most]), [0, most], 4), &["early"]);
}

#[test]
fn zero_dimension() {
    fails_with(one("F32", json!([0, 5]), [0, 0], 0), &["dimension of 0"]);
}

#[test]
fn overlapping_tensors() {
    let header = json!({
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    });
    fails_with(parse(with_header(&header, &[0; 12])), &["header", "`b`"]);
}

#[test]
fn types_that_cannot_be_loaded() {
    fails_with(
        one("I32", json!([1]), [0, 4], 4),
        &["`x.qweight`", "I32", "GPTQ or AWQ"],
    );
    fails_with(one("F8_E4M3", json!([4]), [0, 4], 4), &["F8_E4M3"]);
    fails_with(one("X3", json!([4]), [0, 4], 4), &["header"]);
}

#[test]
fn a_file_of_another_kind() {
    fails_with(parse(gguf_file("t")), &["GGUF"]);
    fails_with(
        parse(b"version https://git-lfs.github.com/spec/v1\n".to_vec()),
        &["git-lfs"],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

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
        if let Ok(tensors) = parse(bytes) {
            for tensor in tensors {
                prop_assert_eq!(tensor.dtype.row_bytes(tensor.elements()), Some(tensor.data.len()));
            }
        }
    }
}
