//! Why a command was not done: the exit status of sysexits(3) and a sentence.

use postern_config::ConfigError;

use crate::arguments::Usage;
use crate::list::ListError;

/// The statuses that callers know. cron and mail readers keep the message on 75.
pub(crate) mod status {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const DATA: u8 = 65;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const OS: u8 = 71;
    pub(crate) const IO: u8 = 74;
    pub(crate) const TRY_LATER: u8 = 75;
    pub(crate) const NO_PERMISSION: u8 = 77;
    pub(crate) const CONFIGURATION: u8 = 78;
}

/// A failure, for standard error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(status: u8, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl From<Usage> for Failure {
    fn from(Usage(text): Usage) -> Self {
        Self::new(status::USAGE, text)
    }
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        Self::new(status::DATA, format!("bad address: {}: {}", error.address, error.why))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(status::CONFIGURATION, error.to_string())
    }
}
