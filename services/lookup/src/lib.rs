//! postern-lookup

#![forbid(unsafe_code)]
