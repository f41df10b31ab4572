//! The CPU: inner loops per instruction set behind one table, and the team of threads that runs them.

mod team;

pub use team::Team;
