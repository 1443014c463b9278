//! varve-analyze
