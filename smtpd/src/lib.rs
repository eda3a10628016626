//! postern-smtpd

#![forbid(unsafe_code)]
