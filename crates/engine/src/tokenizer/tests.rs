//! Hand-made vocabularies, small enough to check by eye.
