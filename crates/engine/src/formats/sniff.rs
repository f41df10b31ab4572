//! What a file is that is no GGUF file: a name for it, and what to do instead.

use super::{malformed, unsupported};
use crate::error::Error;
use std::path::Path;

const FETCH: &str = "fetch the model again: this is not the file itself";
const CONVERT: &str =
    "convert the model to GGUF or safetensors, or fetch it in one of these formats";

/// The error for a file that does not start with the GGUF magic.
pub(super) fn not_gguf(path: &Path, bytes: &[u8]) -> Error {
    let starts = |prefix: &[u8]| bytes.starts_with(prefix);
    let (found, remedy) = if starts(b"version https://git-lfs") {
        (
            "is a git-lfs pointer, a few lines of text in place of the model",
            "run `git lfs pull` in its folder",
        )
    } else if starts(b"PK\x03\x04") {
        (
            "is a zip archive, as PyTorch's .bin and .pt files are",
            CONVERT,
        )
    } else if bytes.len() > 1 && bytes[0] == 0x80 && (2..=5).contains(&bytes[1]) {
        ("is a Python pickle, as old PyTorch files are", CONVERT)
    } else if is_safetensors(bytes) {
        (
            "is a safetensors file under another name",
            "give it the ending .safetensors and put it beside its config.json",
        )
    } else if [b"tjgg", b"lmgg", b"fmgg", b"algg"]
        .iter()
        .any(|magic| starts(*magic))
    {
        ("is a GGML file of the time before GGUF", CONVERT)
    } else if starts(b"\x1f\x8b") {
        ("is a gzip archive", "unpack it first")
    } else if starts(b"\x89HDF") {
        ("is an HDF5 file, as Keras writes them", CONVERT)
    } else if is_web_page(bytes) {
        (
            "is a web page, perhaps an error message that was saved in place of the model",
            FETCH,
        )
    } else {
        let magic = &bytes[..bytes.len().min(4)];
        return malformed(
            path,
            format!("not a GGUF file: starts with {magic:02x?} instead of \"GGUF\""),
        );
    };
    unsupported(path, found.into(), remedy)
}

/// A length that the file can hold, then the brace that opens the header.
fn is_safetensors(bytes: &[u8]) -> bool {
    match bytes.first_chunk::<8>() {
        Some(length) => {
            bytes.get(8) == Some(&b'{') && u64::from_le_bytes(*length) < bytes.len() as u64
        }
        None => false,
    }
}

fn is_web_page(bytes: &[u8]) -> bool {
    let head = bytes[..bytes.len().min(64)]
        .trim_ascii_start()
        .to_ascii_lowercase();
    head.starts_with(b"<!doctype") || head.starts_with(b"<html") || head.starts_with(b"<?xml")
}
