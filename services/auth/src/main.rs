//! postern-auth

#![forbid(unsafe_code)]

fn main() {}
