//! postern-queue-manager

#![forbid(unsafe_code)]
