//! postern-keys

#![forbid(unsafe_code)]
