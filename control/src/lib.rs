//! postern-control

#![forbid(unsafe_code)]
