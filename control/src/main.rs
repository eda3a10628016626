//! postern-control

#![forbid(unsafe_code)]

fn main() {}
