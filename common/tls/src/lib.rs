//! postern-tls

#![forbid(unsafe_code)]
