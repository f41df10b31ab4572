#![no_main]
use countdown::{formats::gguf, kernels::Bytes};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = gguf::parse(Path::new("fuzz"), Bytes::from(file.to_vec()));
});
