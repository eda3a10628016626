//! NAME
//!     postern-conformance: does an SMTP server do what the RFCs say?
//!
//! WHAT IT DOES
//!     Plays the scripts of `suite/` to a server, one requirement each, and reports which are met. It knows the
//!     server only by its address and a small [`Profile`]. Every script is text (`script.rs`), played by a pure
//!     machine (`machine.rs`) that a blocking connection with deadlines is wrapped around (`connection.rs`).
//!     The README in this folder is for who wants to use it; it has the language of the scripts.
//!
//! TALKS TO
//!     The server, as any client would; and reads the directories in which the profile says that the server
//!     delivers.
//!
//! TRUST
//!     Nothing the server says is believed further than a reply is: what is no reply fails the test. Its
//!     certificate is not verified.
//!
//! FAILURE
//!     A failed requirement that is not listed as known, or a listed one that is met, fails the run.
//!
//! BUGS
//!     Servers that greylist, delay or count errors across connections are judged by what they answer at the
//!     moment: switch such things off for the suite's address. Time limits of RFC 5321 §4.5.3.2 are not tested,
//!     since that takes minutes each.

#![forbid(unsafe_code)]

mod checks;
mod connection;
mod delivered;
mod gaps;
mod machine;
mod profile;
mod reply;
mod report;
mod run;
mod script;
mod suite;
mod text;

pub use checks::check;
pub use gaps::Gaps;
pub use machine::{Action, Event, Machine, Verdict};
pub use profile::{Delivered, Lines, Profile};
pub use reply::{Read, Reply, enhanced};
pub use report::{Finding, Outcome, Report, suspects};
pub use run::{Options, run};
pub use script::{Level, One, Pattern, Requirement, Step, SyntaxError, Want, parse, pattern};
pub use suite::{requirements, requirements_in};
pub use text::{base64, expand, show};
