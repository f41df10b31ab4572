//! Device code is compiled for the card at hand when it is needed, and kept on disk.

use super::{CudaError, driver};
use cudarc::{
    driver::{CudaContext, CudaModule},
    nvrtc::{
        Ptx,
        result::{self, NvrtcError},
        sys,
    },
};
use std::{
    ffi::{CStr, CString, c_char},
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes of the checksum that a kept file begins with.
const CHECKSUM: usize = blake3::OUT_LEN;

/// The kernels of `source` with the options given, compiled or as they were kept in the folder `cache`.
pub(super) fn module(
    context: &Arc<CudaContext>,
    source: &str,
    options: &[String],
    cache: Option<&Path>,
) -> Result<Arc<CudaModule>, CudaError> {
    // SAFETY: loading the compiler's library runs nothing but its own initialisation.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoCompiler);
    }
    let file = match cache {
        Some(folder) => Some(folder.join(name(source, options)?)),
        None => None,
    };
    let kept = file.as_deref().and_then(read);
    let code = match kept {
        Some(code) => code,
        None => {
            let code = compile(source, options)?;
            if let Some(file) = &file {
                // Without it the next start takes a moment longer, which is no reason to fail.
                let _ = write(file, &code);
            }
            code
        }
    };
    let module = context.load_module(Ptx::from_binary(code));
    module.map_err(|e| driver("loading kernels", e))
}

/// The name of the file for such code: it depends on all that compiled code depends on.
fn name(source: &str, options: &[String]) -> Result<String, CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are written to.
    let version = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    version
        .result()
        .map_err(|e| compiler("asking its version", e))?;
    let mut hash = blake3::Hasher::new();
    for part in [source, &format!("{major}.{minor}")] {
        hash.update(part.as_bytes()).update(&[0]);
    }
    for option in options {
        hash.update(option.as_bytes()).update(&[0]);
    }
    Ok(format!("{}.cubin", hash.finalize().to_hex()))
}

/// What was kept, if it is whole.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (sum, code) = bytes.split_first_chunk::<CHECKSUM>()?;
    (blake3::hash(code).as_bytes() == sum).then(|| code.to_vec())
}

fn write(file: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Beside, then renamed: nobody sees half a file, nor writes to another's.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = file.with_extension(format!("{}.{count}.tmp", std::process::id()));
    let bytes = [blake3::hash(code).as_bytes(), code].concat();
    let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, file));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn compiler(doing: &'static str, source: NvrtcError) -> CudaError {
    CudaError::Compiler { doing, source }
}

/// A program that the compiler has in hand, given back in the end.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program` and destroyed once. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(source: &str, options: &[String]) -> Result<Vec<u8>, CudaError> {
    let source = CString::new(source).expect("the project's own code has no zeros");
    let program = result::create_program(&source, None);
    let program = Program(program.map_err(|e| compiler("taking the code", e))?);
    // SAFETY: the program is there until the end of this function, and so is its source.
    if unsafe { result::compile_program(program.0, options) }.is_err() {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) };
        let log = log.map_err(|e| compiler("asking what is wrong", e))?;
        // SAFETY: the log ends with a zero.
        let log = unsafe { CStr::from_ptr(log.as_ptr()) };
        return Err(CudaError::Code {
            options: options.join(" "),
            log: log.to_string_lossy().into_owned(),
        });
    }
    let mut len = 0;
    // SAFETY: as above; `len` is written to.
    let asked = unsafe { sys::nvrtcGetCUBINSize(program.0, &mut len) };
    asked
        .result()
        .map_err(|e| compiler("asking for the size", e))?;
    let mut code = vec![0u8; len];
    // SAFETY: as above; there is as much room as was asked for.
    let taken = unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast::<c_char>()) };
    taken
        .result()
        .map_err(|e| compiler("giving compiled code", e))?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new").join("code.cubin");
        assert_eq!(read(&file), None);
        write(&file, b"some code").unwrap();
        assert_eq!(read(&file).unwrap(), b"some code");
        let bytes = fs::read(&file).unwrap();
        for cut in [0, 10, bytes.len() - 1] {
            fs::write(&file, &bytes[..cut]).unwrap();
            assert_eq!(read(&file), None, "{cut} bytes");
        }
        let mut flipped = bytes;
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&file, flipped).unwrap();
        assert_eq!(read(&file), None);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
