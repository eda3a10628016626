//! postern-sendmail

#![forbid(unsafe_code)]

fn main() {}
