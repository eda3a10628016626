//! postern-lookup

#![forbid(unsafe_code)]

fn main() {}
