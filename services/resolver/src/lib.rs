//! postern-resolver

#![forbid(unsafe_code)]
