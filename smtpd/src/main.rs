//! postern-smtpd

#![forbid(unsafe_code)]

fn main() {}
