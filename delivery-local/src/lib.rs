//! postern-delivery-local

#![forbid(unsafe_code)]
