//! varve-store
