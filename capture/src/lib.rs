//! varve-capture
