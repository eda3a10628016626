//! postern-auth

#![forbid(unsafe_code)]
