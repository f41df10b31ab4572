use super::*;

fn fingerprint(tensors: &[(&str, DType, &[usize], Vec<u8>)]) -> String {
    let tensors = tensors.iter().map(|(name, dtype, shape, data)| Tensor {
        name: (*name).into(),
        dtype: *dtype,
        shape: shape.to_vec(),
        data: Bytes::from(data.clone()),
    });
    let metadata = gguf::Metadata::new(Path::new("m"), BTreeMap::new());
    let checkpoint = Checkpoint::new(Path::new("m"), Metadata::Gguf(metadata), tensors.collect());
    checkpoint.unwrap().fingerprint()
}

#[test]
fn the_same_for_the_same_weights_in_any_order() {
    let (a, b) = (
        ("a", DType::F32, &[1][..], vec![1; 4]),
        ("b", DType::F16, &[2][..], vec![2; 4]),
    );
    let one = fingerprint(&[a.clone(), b.clone()]);
    assert_eq!(one, fingerprint(&[b, a]));
    assert!(one.len() == 32 && one.bytes().all(|c| c.is_ascii_hexdigit()));
}

#[test]
fn another_for_every_other_name_type_shape_or_sampled_byte() {
    let large = 40_000;
    let data = |at: usize| {
        let mut data = vec![0u8; large];
        if at < large {
            data[at] = 1;
        }
        data
    };
    let n = large / 4;
    let all = [
        fingerprint(&[]),
        fingerprint(&[("a", DType::F32, &[n], data(large))]),
        fingerprint(&[("b", DType::F32, &[n], data(large))]),
        fingerprint(&[("a", DType::F16, &[2 * n], data(large))]),
        fingerprint(&[("a", DType::BF16, &[2 * n], data(large))]),
        fingerprint(&[("a", DType::F32, &[2, n / 2], data(large))]),
        fingerprint(&[("a", DType::F32, &[n], data(0))]),
        fingerprint(&[("a", DType::F32, &[n], data(large / 2))]),
        fingerprint(&[("a", DType::F32, &[n], data(large - 1))]),
    ];
    let different: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
}
