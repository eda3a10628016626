//! postern-lmtp

#![forbid(unsafe_code)]
