//! Ctrl+C: the first one stops the answer that is being given; otherwise, and the second time, the program ends.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPED: u8 = 2;
/// What shells report for a program that Ctrl+C ended: 128 + SIGINT.
const EXIT_CODE: i32 = 130;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// While it lives, Ctrl+C stops the answer instead of the program.
pub(crate) struct Answering(());

impl Answering {
    pub(crate) fn begin() -> Answering {
        STATE.store(ANSWERING, SeqCst);
        Answering(())
    }

    /// Whether the answer is to end.
    pub(crate) fn is_stopped(&self) -> bool {
        STATE.load(SeqCst) == STOPPED
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        STATE.store(IDLE, SeqCst);
    }
}

/// Takes over Ctrl+C. Where that is not possible it keeps ending the program, as it always does.
pub(crate) fn listen() {
    let _ = ctrlc::set_handler(|| {
        if STATE
            .compare_exchange(ANSWERING, STOPPED, SeqCst, SeqCst)
            .is_err()
        {
            std::process::exit(EXIT_CODE);
        }
    });
}
