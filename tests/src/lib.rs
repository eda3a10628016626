//! postern-tests

#![forbid(unsafe_code)]
