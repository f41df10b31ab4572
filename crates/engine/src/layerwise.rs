//! A forward pass layer by layer over a whole text: all windows go through layer 0, then all through layer 1, and so on.
//!
//! What a layer saw can thus be looked at (and its rule fitted, its predictor trained) before the layers above it run, in
//! memory bounded by the residual streams, `tokens * hidden` floats.

use crate::{
    backend::FfnTrace,
    error::{Error, Result},
    session::Session,
    sparsity::Rule,
};

/// Windows of a text on their way through the layers.
pub struct Layerwise<'a> {
    session: &'a mut Session,
    /// The residual stream of each window, `[tokens, hidden]`.
    residuals: Vec<Vec<f32>>,
    next: usize,
}

impl<'a> Layerwise<'a> {
    /// Embeds the windows, each of at least one token and fitting the session's context. The session is left empty and dense.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn new(session: &'a mut Session, windows: &[Vec<u32>]) -> Result<Self> {
        session.reset();
        session.set_plan(None)?;
        windows.iter().try_for_each(|w| session.check(w))?;
        let hidden = session.model().config.hidden;
        let embedded = |w: &Vec<u32>| {
            let mut residual = vec![0.0; w.len() * hidden];
            session.embed(w, &mut residual);
            residual
        };
        Ok(Layerwise {
            residuals: windows.iter().map(embedded).collect(),
            session,
            next: 0,
        })
    }

    /// The session that computes.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// The layer that runs next; the number of layers when all have run.
    pub fn next_layer(&self) -> usize {
        self.next
    }

    /// The windows' residual streams in front of the next layer, each `[tokens, hidden]`.
    pub fn residuals(&self) -> &[Vec<f32>] {
        &self.residuals
    }

    /// Goes on from `layer` with these residual streams.
    pub fn restart(&mut self, layer: usize, residuals: Vec<Vec<f32>>) {
        self.residuals = residuals;
        self.next = layer;
    }

    /// Shows `each(window, trace)` what the next layer's FFN sees when all neurons are computed, and leaves the windows
    /// in front of the layer.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for activations that are no numbers.
    pub fn look(&mut self, mut each: impl FnMut(usize, FfnTrace<'_>)) -> Result<()> {
        let mut residual = Vec::new();
        for window in 0..self.residuals.len() {
            residual.clone_from(&self.residuals[window]);
            run(self.session, self.next, &mut residual, (0, None), |t| {
                each(window, t);
            })?;
        }
        Ok(())
    }

    /// Runs the next layer on all windows, densely for the first `prompt` tokens of each and by `rule` beyond them.
    /// Shows `each` as [`Layerwise::look`] does. Returns the neurons computed beyond the prompts.
    ///
    /// # Errors
    /// As [`Layerwise::look`].
    pub fn advance(
        &mut self,
        prompt: usize,
        rule: Option<&Rule>,
        mut each: impl FnMut(usize, FfnTrace<'_>),
    ) -> Result<usize> {
        let mut kept = 0;
        for (window, residual) in self.residuals.iter_mut().enumerate() {
            kept += run(self.session, self.next, residual, (prompt, rule), |t| {
                each(window, t);
            })?;
        }
        self.next += 1;
        Ok(kept)
    }
}

fn run(
    session: &mut Session,
    layer: usize,
    residual: &mut [f32],
    how: (usize, Option<&Rule>),
    mut each: impl FnMut(FfnTrace<'_>),
) -> Result<usize> {
    let kept = session.run_layer(layer, residual, how, &mut each)?;
    if residual.iter().sum::<f32>().is_finite() {
        return Ok(kept);
    }
    Err(Error::NotFinite(format!("an activation of layer {layer}")))
}
