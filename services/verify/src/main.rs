//! postern-verify

#![forbid(unsafe_code)]

fn main() {}
