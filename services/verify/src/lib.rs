//! postern-verify

#![forbid(unsafe_code)]
