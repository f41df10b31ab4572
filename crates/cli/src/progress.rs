//! Progress on standard error, on a terminal only.

use crate::console::Console;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar or a spinner; it disappears when dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar for work whose amount is known once it begins.
    pub(crate) fn bar(console: &Console, what: &str) -> Progress {
        Progress::new(console, what, "{msg} [{bar:32}] {percent:>3}% {eta}")
    }

    /// For work whose amount is not known.
    pub(crate) fn spinner(console: &Console, what: &str) -> Progress {
        let progress = Progress::new(console, what, "{msg} {spinner}");
        if console.shows_progress() {
            progress.0.enable_steady_tick(Duration::from_millis(100));
        }
        progress
    }

    fn new(console: &Console, what: &str, template: &str) -> Progress {
        if !console.shows_progress() {
            return Progress(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::new(1)
            .with_style(style)
            .with_message(what.to_owned());
        Progress(bar)
    }

    /// `done` of `all` is done.
    pub(crate) fn update(&self, done: usize, all: usize) {
        self.0.set_length(all as u64);
        self.0.set_position(done as u64);
    }

    /// Changes what stands in front of it.
    pub(crate) fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
