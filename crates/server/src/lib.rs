//! An OpenAI-compatible HTTP server over a countdown engine.
