//! NVIDIA GPUs. The driver and its compiler are looked for when a card is opened: nothing of CUDA is needed to build, and a machine
//! without it gets a [`CudaError`] that says what is missing.

mod attention;
mod blas;
mod blocks;
mod error;
pub mod ffn;
mod jit;
mod joined;
mod launch;
mod predictor;
mod products;
mod prompt;
mod read;
mod shortlist;
mod step;
pub mod train;
mod weights;

pub use attention::{AttentionCall, AttentionKernels, AttentionShape, Footprint, KvCache};
pub use cudarc::driver::CudaSlice;
pub use error::CudaError;
pub use joined::{FfnLaunch, Joints};
pub use launch::Recording;
pub use predictor::{Form, Predictor, PredictorShape};
pub use products::{Product, ProductsLaunch};
pub use prompt::{Orientation, PromptKernels};
pub use read::ReadProbe;
pub use shortlist::ShortlistKernels;
pub use step::{NormAddLaunch, Output, StepKernels};
pub use weights::Weights;

use cudarc::driver::{
    CudaContext, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, ValidAsZeroBits,
    result::{self, device},
    sys::{CUdevice_attribute, culib, is_culib_present},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// The least compute capability that has what the kernels are built on: bulk copies and launches that overlap.
const CAPABILITY: (i32, i32) = (9, 0);

/// What the driver takes of a multiprocessor's shared memory for each block.
const RESERVED: usize = 1024;

/// What the memory that blocks of a launch speak through holds between launches.
const EMPTY: u32 = u32::MAX;

/// How a vector is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Taken {
    /// As it is.
    AsIs,
    /// Divided by its root mean square, and multiplied by a weight.
    Normed,
}

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// As the driver calls it.
    pub name: String,
    /// Major and minor.
    pub capability: (i32, i32),
    /// How many there are.
    pub multiprocessors: usize,
    /// Bytes of shared memory of each.
    pub shared: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes a second that its memory could give by its clock and width; 0 where the driver does not say.
    pub bandwidth: usize,
}

impl Card {
    /// The cards of this machine, those that kernels cannot run on included.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], or what the driver says.
    pub fn all() -> Result<Vec<Card>, CudaError> {
        // SAFETY: loading the driver's library runs nothing but its own initialisation.
        if !unsafe { is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        check_driver()?;
        let count = result::init().and_then(|()| device::get_count());
        let count = count.map_err(|e| driver("counting cards", e))?;
        let card = |ordinal| Card::of(ordinal).map_err(|e| driver("asking what card it is", e));
        (0..count).map(card).collect()
    }

    /// Whether it has what the kernels need.
    pub fn runs_kernels(&self) -> bool {
        self.capability >= CAPABILITY
    }

    /// Shared memory of a block that finds room beside another of the same.
    fn shared_of_two(&self) -> usize {
        (self.shared / 2).saturating_sub(RESERVED) / 128 * 128
    }

    /// Asks the driver, which opens no card for that.
    fn of(ordinal: i32) -> Result<Card, DriverError> {
        use CUdevice_attribute::*;
        let card = device::get(ordinal)?;
        // SAFETY: the driver has just given the card.
        let number = |what| unsafe { device::get_attribute(card, what) };
        let count = |what| number(what).map(|v| v as usize);
        // Kilohertz, two words a tick, and bits. A card can do without.
        let clock = count(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0);
        let width = count(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0);
        Ok(Card {
            name: device::get_name(card)?,
            capability: (
                number(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                number(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: count(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: count(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            // SAFETY: as above.
            memory: unsafe { device::total_mem(card)? },
            bandwidth: 2000 * clock * width / 8,
        })
    }
}

/// Functions of the driver's that are newer than the oldest drivers about; the binding would panic where one is missing.
const NEWEST_FUNCTIONS: [&str; 4] = [
    "cuLaunchKernelEx",
    "cuGraphInstantiateWithFlags",
    "cuStreamBeginCapture_v2",
    "cuMemAllocAsync",
];

fn check_driver() -> Result<(), CudaError> {
    for function in NEWEST_FUNCTIONS {
        // SAFETY: the library is there, and the function is looked for only.
        if unsafe { culib().get::<*const ()>(function.as_bytes()) }.is_err() {
            return Err(CudaError::OldDriver { function });
        }
    }
    Ok(())
}

/// The context of a card, of which all that use the card at a time have the same: to make or to end one takes a good part of a second, and others meanwhile.
fn context(ordinal: usize) -> Result<Arc<CudaContext>, CudaError> {
    static CONTEXTS: Mutex<BTreeMap<usize, Weak<CudaContext>>> = Mutex::new(BTreeMap::new());
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = contexts.get(&ordinal).and_then(Weak::upgrade) {
        return Ok(context);
    }
    let context = CudaContext::new(ordinal).map_err(|e| driver("opening the card", e))?;
    // SAFETY: what is made on a stream is used on that stream, whose order is all the order that is needed.
    unsafe { context.disable_event_tracking() };
    contexts.insert(ordinal, Arc::downgrade(&context));
    Ok(context)
}

fn driver(doing: &'static str, source: DriverError) -> CudaError {
    CudaError::Driver { doing, source }
}

/// A card that runs kernels.
pub struct Cuda {
    stream: Arc<CudaStream>,
    card: Card,
    cache: Option<PathBuf>,
}

impl Cuda {
    /// Opens a card. Compiled kernels are kept in the folder `cache`, if there is one.
    ///
    /// # Errors
    /// [`CudaError`], where there is no driver, no such card, or one that is too old.
    pub fn open(ordinal: usize, cache: Option<&Path>) -> Result<Cuda, CudaError> {
        let cards = Card::all()?;
        let count = cards.len();
        let card = cards.into_iter().nth(ordinal);
        let card = card.ok_or(CudaError::NoCard { ordinal, count })?;
        if !card.runs_kernels() {
            return Err(CudaError::OldCard { card });
        }
        let stream = context(ordinal)?.new_stream();
        Ok(Cuda {
            stream: stream.map_err(|e| driver("making a stream", e))?,
            card,
            cache: cache.map(Path::to_path_buf),
        })
    }

    /// What card it is.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// A copy on the card, there when this returns: launches begin before what comes before them has ended, to read ahead.
    ///
    /// # Errors
    /// [`CudaError::Driver`], where there is no room for it, above all.
    pub fn upload<T: DeviceRepr>(&self, data: &[T]) -> Result<CudaSlice<T>, CudaError> {
        let copy = || {
            let copied = self.stream.clone_htod(data)?;
            self.stream.synchronize()?;
            Ok(copied)
        };
        copy().map_err(|e| driver("copying to the card", e))
    }

    /// A copy on the host, of what all calls before have computed.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in those calls.
    pub fn download<T: DeviceRepr>(&self, data: &CudaSlice<T>) -> Result<Vec<T>, CudaError> {
        let copied = self.stream.clone_dtoh(data);
        copied.map_err(|e| driver("copying from the card", e))
    }

    /// Memory on the card, all zeros.
    ///
    /// # Errors
    /// [`CudaError::Driver`], where there is no room for it, above all.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        len: usize,
    ) -> Result<CudaSlice<T>, CudaError> {
        let zeros = self.stream.alloc_zeros(len);
        zeros.map_err(|e| driver("taking memory", e))
    }

    /// Overwrites the beginning of `to`, in the order of calls.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If `to` is shorter than `from`.
    pub fn write<T: DeviceRepr>(&self, from: &[T], to: &mut CudaSlice<T>) -> Result<(), CudaError> {
        self.write_at(from, to, 0)
    }

    /// Overwrites `to` from element `at` on, in the order of calls.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If `to` is shorter than that.
    pub fn write_at<T: DeviceRepr>(
        &self,
        from: &[T],
        to: &mut CudaSlice<T>,
        at: usize,
    ) -> Result<(), CudaError> {
        let mut to = to.slice_mut(at..at + from.len());
        let copied = self.stream.memcpy_htod(from, &mut to);
        copied.map_err(|e| driver("copying to the card", e))
    }

    /// The beginning of `from`, as all calls before have left it.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in those calls.
    ///
    /// # Panics
    /// If `from` is shorter than `to`.
    pub fn read<T: DeviceRepr>(&self, from: &CudaSlice<T>, to: &mut [T]) -> Result<(), CudaError> {
        let mut copy = || {
            self.stream.memcpy_dtoh(&from.slice(..to.len()), to)?;
            self.stream.synchronize()
        };
        copy().map_err(|e| driver("copying from the card", e))
    }

    /// Waits for all calls before.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in those calls.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let ended = self.stream.synchronize();
        ended.map_err(|e| driver("waiting for kernels", e))
    }

    /// Bytes of memory that are free.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn free_memory(&self) -> Result<usize, CudaError> {
        let info = self.stream.context().mem_get_info();
        info.map(|(free, _)| free)
            .map_err(|e| driver("asking for free memory", e))
    }

    /// Host memory that the card writes to by itself.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn host_buffer<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        len: usize,
    ) -> Result<HostBuffer<T>, CudaError> {
        // SAFETY: every bit pattern is a value, and it is overwritten before it is read.
        let buffer = unsafe { self.stream.context().alloc_pinned_with_flags(len, 0) };
        buffer
            .map(HostBuffer)
            .map_err(|e| driver("taking host memory", e))
    }

    /// Copies the first `n` elements of `from` to `to`, in the order of calls and without waiting for it.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If either is shorter.
    pub fn fetch<T: DeviceRepr>(
        &self,
        from: &CudaSlice<T>,
        n: usize,
        to: &mut HostBuffer<T>,
    ) -> Result<(), CudaError> {
        let copied = self.stream.memcpy_dtoh(&from.slice(..n), &mut to.0);
        copied.map_err(|e| driver("copying from the card", e))
    }

    /// Copies the first `n` elements of `from` to `to`, in the order of calls.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If either is shorter.
    pub fn copy<T: DeviceRepr>(
        &self,
        from: &CudaSlice<T>,
        n: usize,
        to: &mut CudaSlice<T>,
    ) -> Result<(), CudaError> {
        let copied = self
            .stream
            .memcpy_dtod(&from.slice(..n), &mut to.slice_mut(..n));
        copied.map_err(|e| driver("copying on the card", e))
    }
}

/// Host memory that a card writes to by itself.
pub struct HostBuffer<T>(PinnedHostSlice<T>);

impl<T: DeviceRepr + ValidAsZeroBits> HostBuffer<T> {
    /// What is there; waits for what is fetched ([`Cuda::fetch`]).
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong before.
    pub fn get(&self) -> Result<&[T], CudaError> {
        let slice = self.0.as_slice();
        slice.map_err(|e| driver("copying from the card", e))
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// As [`HostBuffer::get`].
    pub fn get_mut(&mut self) -> Result<&mut [T], CudaError> {
        let slice = self.0.as_mut_slice();
        slice.map_err(|e| driver("copying from the card", e))
    }

    /// Where it is for kernels: cards with one address space for all memory, which is any that runs them, see it where the host does.
    fn address(&mut self) -> Result<u64, CudaError> {
        let at = self.0.as_mut_ptr();
        at.map(|p| p as u64)
            .map_err(|e| driver("taking host memory", e))
    }
}
