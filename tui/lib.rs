//! The `varve` library.
