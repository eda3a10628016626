//! postern-message

#![forbid(unsafe_code)]
