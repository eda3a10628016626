//! postern-delivery-remote

#![forbid(unsafe_code)]

fn main() {}
