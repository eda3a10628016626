//! postern-lmtp

#![forbid(unsafe_code)]

fn main() {}
