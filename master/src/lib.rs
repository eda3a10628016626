//! postern-master

#![forbid(unsafe_code)]
