//! NAME
//!     postern-config: the one configuration file

#![forbid(unsafe_code)]

mod parts;
mod types;

pub use parts::{
    AuthPart, KeysPart, LmtpPart, LocalPart, LookupPart, QueuePart, RemotePart, ResolverPart, SmtpdPart,
    VerifyPart,
};
pub use types::{
    Config, Delivery, EnhancedStatus, Listen, LmtpServer, Local, LogTarget, MailboxTemplate, Nexthop,
    QueueLimits, Relay, Route, RoutePattern, Service, SmtpLimits, Table, Tls, UserSet, Via, Virtual,
};
