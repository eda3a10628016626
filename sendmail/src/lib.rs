//! postern-sendmail

#![forbid(unsafe_code)]
