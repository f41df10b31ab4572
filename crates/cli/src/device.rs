//! Which device runs a model.

use crate::{
    args::{DeviceArgs, DeviceChoice},
    console::Console,
    failure::Result,
    plans::cache_folder,
};
use countdown::{
    Device, Model, Session, SessionOptions, SparsityPlan,
    kernels::cuda::{Card, CudaError},
};
use std::{path::PathBuf, sync::Arc};

/// Folder where device code is kept once it is compiled.
pub(crate) fn kernel_cache() -> Option<PathBuf> {
    cache_folder().map(|f| f.join("kernels"))
}

impl DeviceArgs {
    /// A session without plans, on a card if that is asked for or possible.
    pub(crate) fn session(
        self,
        console: &Console,
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<Session> {
        match self.on_card(console, model, &[], options)? {
            Some(session) => Ok(session),
            None => Ok(Session::new(model.clone(), options)?),
        }
    }

    /// A session on a card, if that is asked for or possible; `None` is for the CPU.
    ///
    /// What keeps a card from running the model is an error where a card is asked for, and otherwise said.
    pub(crate) fn on_card(
        self,
        console: &Console,
        model: &Arc<Model>,
        plans: &[Arc<SparsityPlan>],
        options: &SessionOptions,
    ) -> Result<Option<Session>> {
        let device = match self.device {
            Some(DeviceChoice::Only(Device::Cpu)) => return Ok(None),
            Some(DeviceChoice::Only(device)) => device,
            None | Some(DeviceChoice::Auto) => match Card::all() {
                Ok(cards) if !cards.is_empty() => Device::Cuda(0),
                // Most machines have none, which is nothing to be told of each time.
                Ok(_) | Err(CudaError::NoDriver) if self.device.is_none() => return Ok(None),
                Ok(_) => return Ok(on_cpu(console, &"no CUDA card on this machine")),
                Err(e) => return Ok(on_cpu(console, &e)),
            },
        };
        let options = SessionOptions {
            device,
            kernel_cache: kernel_cache(),
            ..options.clone()
        };
        let made = Session::new(model.clone(), &options).and_then(|mut session| {
            // All of them fit, or none is begun with.
            for plan in plans {
                session.set_plan(Some(plan.clone()))?;
            }
            Ok(session)
        });
        match (made, self.device) {
            (Ok(session), _) => Ok(Some(session)),
            (Err(e), Some(DeviceChoice::Only(_))) => Err(e.into()),
            (Err(e), _) => Ok(on_cpu(console, &e)),
        }
    }
}

fn on_cpu(console: &Console, cause: &dyn std::fmt::Display) -> Option<Session> {
    console.note(format_args!("{cause}: running on the CPU"));
    None
}
