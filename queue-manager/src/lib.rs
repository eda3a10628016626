//! postern-queue-manager

#![forbid(unsafe_code)]

pub mod scheduler;
