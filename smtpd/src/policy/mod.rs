//! Policy: the rules of the configuration, in order.
//!
//! The [`engine`] is pure: facts in, a question or a verdict out. [`access`] reads what tables and policy
//! servers say, [`keys`] knows what is looked up in a table, [`effects`] what becomes of a message beside
//! the replies. Who is asked is the business of [`shell`], and what an operator wants to know that of
//! [`explain`].

pub(crate) mod access;
pub(crate) mod effects;
pub(crate) mod engine;
pub(crate) mod explain;
pub(crate) mod facts;
pub(crate) mod keys;
pub(crate) mod shell;
