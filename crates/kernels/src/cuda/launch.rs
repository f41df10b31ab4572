//! Launching kernels, and recording what is launched.

use super::{Cuda, CudaError, driver, jit};
use cudarc::driver::{
    CudaFunction, CudaGraph, CudaModule, CudaSlice, DevicePtr,
    sys::{
        CUfunction_attribute, CUgraphInstantiate_flags, CUlaunchAttribute, CUlaunchAttributeID,
        CUlaunchAttributeValue, CUlaunchConfig, CUstreamCaptureMode, cuLaunchKernelEx,
    },
};
use std::{
    ffi::{c_char, c_void},
    sync::Arc,
};

/// A file of device code: its name and its text.
pub(super) type Source = (&'static str, &'static str);

/// The files of device code named, in the order in which they are one translation unit.
macro_rules! sources {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("src/", $name)))),*] };
}
pub(super) use sources;

/// How many blocks of how many threads, and bytes of dynamic shared memory of each.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (usize, usize),
    pub(super) threads: usize,
    pub(super) shared: usize,
}

impl Grid {
    /// Without dynamic shared memory.
    pub(super) fn of(blocks: usize, threads: usize) -> Grid {
        Grid {
            blocks: (blocks, 1),
            threads,
            shared: 0,
        }
    }
}

/// What was launched while recording, to be launched again as a whole.
pub struct Recording(CudaGraph);

// SAFETY: a graph may be used by any one thread at a time, and only `&mut` callers and drop reach it.
unsafe impl Send for Recording {}

impl Cuda {
    /// Compiles files, with `NAME=value` definitions, or takes what was compiled before.
    pub(super) fn module(
        &self,
        files: &[Source],
        definitions: &[(&str, usize)],
    ) -> Result<Arc<CudaModule>, CudaError> {
        self.module_of(files, None, definitions)
    }

    /// The same with so many registers a thread at most.
    pub(super) fn module_of(
        &self,
        files: &[Source],
        registers: Option<usize>,
        definitions: &[(&str, usize)],
    ) -> Result<Arc<CudaModule>, CudaError> {
        let (major, minor) = self.card.capability;
        let mut options = vec![
            format!("--gpu-architecture=sm_{major}{minor}"),
            "-std=c++17".into(),
        ];
        options.extend(registers.map(|n| format!("--maxrregcount={n}")));
        let defines = definitions.iter();
        options.extend(defines.map(|(name, value)| format!("-D{name}={value}")));
        // To look for mistakes with (tools/cuda_checks.sh).
        if let Ok(more) = std::env::var("COUNTDOWN_NVRTC") {
            options.extend(more.split_whitespace().map(String::from));
        }
        let source: String = files
            .iter()
            .map(|(name, text)| format!("#line 1 \"{name}\"\n{text}"))
            .collect();
        let context = self.stream.context();
        jit::module(context, &source, &options, self.cache.as_deref())
    }

    /// A kernel that may have so many bytes of dynamic shared memory.
    pub(super) fn function(
        module: &Arc<CudaModule>,
        name: &str,
        shared: usize,
    ) -> Result<CudaFunction, CudaError> {
        let find = || {
            let f = module.load_function(name)?;
            let set = |attribute, value| f.set_attribute(attribute, value);
            if shared > 0 {
                set(
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )?;
                set(
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                    100,
                )?;
            }
            Ok(f)
        };
        find().map_err(|e| driver("looking for a kernel", e))
    }

    /// Launches a kernel behind what was launched before; its beginning overlaps the end of that.
    ///
    /// # Safety
    /// The kernel takes one structure by value, which `A` is laid out as; what that points to is on the card, is as long as the kernel takes it to be, and
    /// lives until the kernel has ended.
    pub(super) unsafe fn launch<A>(
        &self,
        function: &CudaFunction,
        grid: Grid,
        mut arguments: A,
    ) -> Result<(), CudaError> {
        let mut overlap = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0 as c_char; 4],
            value: CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = CUlaunchConfig {
            gridDimX: grid.blocks.0 as u32,
            gridDimY: grid.blocks.1 as u32,
            gridDimZ: 1,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared as u32,
            hStream: self.stream.cu_stream(),
            attrs: &mut overlap,
            numAttrs: 1,
        };
        let mut parameters = [std::ptr::from_mut(&mut arguments).cast::<c_void>()];
        let mut launch = || {
            self.stream.context().bind_to_thread()?;
            // SAFETY: the caller's promise.
            let launched = unsafe {
                cuLaunchKernelEx(
                    &config,
                    function.cu_function(),
                    parameters.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            };
            launched.result()
        };
        launch().map_err(|e| driver("launching a kernel", e))
    }

    /// Where data is on the card.
    pub(super) fn address<T>(&self, data: &CudaSlice<T>) -> u64 {
        data.device_ptr(&self.stream).0
    }

    /// From now on launches are recorded and not run.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self) -> Result<(), CudaError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begun = self.stream.begin_capture(mode);
        begun.map_err(|e| driver("recording", e))
    }

    /// What was launched since [`Cuda::record`]. All buffers that it uses must live as long as it is replayed.
    ///
    /// # Errors
    /// What the driver says.
    pub fn recorded(&self) -> Result<Option<Recording>, CudaError> {
        let ended = self.stream.end_capture(CUgraphInstantiate_flags(0));
        let graph = ended.map_err(|e| driver("recording", e))?;
        Ok(graph.map(Recording))
    }

    /// Launches what was recorded.
    ///
    /// # Errors
    /// What the driver says.
    pub fn replay(&self, recording: &mut Recording) -> Result<(), CudaError> {
        let launched = recording.0.launch();
        launched.map_err(|e| driver("replaying a step", e))
    }
}
