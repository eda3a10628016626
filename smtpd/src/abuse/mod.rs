//! Abuse: what slows down or sends away those who do not behave, before and beside the rules.
//!
//! [`guard`] is what is known of one client, [`overload`] and [`tarpit`] decide by numbers alone, all without
//! I/O. [`shell`] asks verify and does what they say.

pub(crate) mod guard;
pub(crate) mod overload;
pub(crate) mod shell;
pub(crate) mod tarpit;
pub(crate) mod words;
