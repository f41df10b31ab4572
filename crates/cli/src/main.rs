//! The countdown command.
fn main() {}
