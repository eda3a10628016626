//! postern-resolver

#![forbid(unsafe_code)]

fn main() {}
