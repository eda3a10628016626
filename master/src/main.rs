//! postern-master

#![forbid(unsafe_code)]

fn main() {}
