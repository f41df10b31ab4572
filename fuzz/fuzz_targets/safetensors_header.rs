#![no_main]
use countdown::{formats::safetensors, kernels::Bytes};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = safetensors::parse(Path::new("fuzz"), Bytes::from(file.to_vec()));
});
