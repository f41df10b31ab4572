//! NVIDIA GPUs. The driver and its compiler are looked for when a card is opened: nothing of CUDA is needed to build, and a machine
//! without it gets a [`CudaError`] that says what is missing.

mod error;
pub mod ffn;
mod jit;

pub use error::CudaError;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DeviceRepr, DriverError,
    sys::{CUdevice_attribute, is_culib_present},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The least compute capability that has what the kernels are built on: bulk copies and launches that overlap.
const CAPABILITY: (i32, i32) = (9, 0);

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// As the driver calls it.
    pub name: String,
    /// Major and minor.
    pub capability: (i32, i32),
    /// How many there are.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
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
        let count = CudaContext::device_count().map_err(|e| driver("counting cards", e))?;
        let card = |ordinal| Card::of(&*context(ordinal)?);
        (0..count as usize).map(card).collect()
    }

    fn of(context: &CudaContext) -> Result<Card, CudaError> {
        let read = || {
            let processors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            Ok(Card {
                name: context.name()?,
                capability: context.compute_capability()?,
                multiprocessors: context.attribute(processors)? as usize,
                memory: context.total_mem()?,
            })
        };
        read().map_err(|e| driver("asking what card it is", e))
    }
}

fn context(ordinal: usize) -> Result<Arc<CudaContext>, CudaError> {
    CudaContext::new(ordinal).map_err(|e| driver("opening the card", e))
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
        if card.capability < CAPABILITY {
            return Err(CudaError::OldCard { card });
        }
        let context = context(ordinal)?;
        // SAFETY: all memory is used on one stream, whose order is all the order that is needed.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream();
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
}
