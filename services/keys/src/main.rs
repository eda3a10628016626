//! postern-keys

#![forbid(unsafe_code)]

fn main() {}
