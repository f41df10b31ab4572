//! Results for people: tables as text, Markdown and CSV, and charts as SVG.

pub mod chart;
pub mod table;
