//! The way to the keys program, used synchronously: rustls has no other form of signing.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postern_ipc::smtpd_keys::{Answer, Question};
use postern_ipc::{Link, LinkError, RequestId, blocking};

use crate::remote::{Sign, SignError};

/// Longest that a handshake waits for the keys program.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A link to the keys program that nobody else uses. It may be empty, and gets a new link when master
/// sends one.
#[derive(Debug, Default)]
pub struct KeysLink {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Link<Question, Answer>>,
    last: RequestId,
}

impl KeysLink {
    /// No link yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a link in, in place of an earlier one.
    pub fn connect(&self, socket: OwnedFd) {
        self.state().link = Some(Link::new(socket));
    }

    /// Somebody is there, as far as known.
    pub fn is_connected(&self) -> bool {
        self.state().link.is_some()
    }

    /// The certificate chain and the key's schemes, for [`crate::server_config`]. The chain is empty when
    /// none is configured.
    pub fn certificate(&self) -> Result<(Vec<Vec<u8>>, Vec<u16>), SignError> {
        match self.ask(|id| Question::Certificate { id })? {
            Answer::Certificate { chain, schemes, .. } => Ok((chain, schemes)),
            Answer::Signature { .. } => Err(SignError::Refused("it answered something else".into())),
        }
    }

    fn ask(&self, question: impl FnOnce(RequestId) -> Question) -> Result<Answer, SignError> {
        let mut state = self.state();
        state.last += 1;
        let id = state.last;
        let link = state.link.as_mut().ok_or_else(|| SignError::Gone("no link".into()))?;
        let answer = exchange(link, id, &question(id));
        // After a timeout the link is still in step: a late answer has an id nobody waits for.
        if matches!(answer, Err(SignError::Gone(_))) {
            state.link = None;
        }
        answer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sign for KeysLink {
    fn sign(&self, scheme: u16, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match self.ask(|id| Question::Sign { id, scheme, message: message.to_vec() })? {
            Answer::Signature { signature, .. } => signature.map_err(SignError::Refused),
            Answer::Certificate { .. } => Err(SignError::Refused("it answered something else".into())),
        }
    }
}

fn exchange(
    link: &mut Link<Question, Answer>,
    id: RequestId,
    question: &Question,
) -> Result<Answer, SignError> {
    let deadline = Instant::now() + PATIENCE;
    link.send(question).map_err(fault)?;
    blocking::flush(link, Some(PATIENCE)).map_err(fault)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SignError::Timeout);
        }
        let (answer, _) = blocking::receive(link, Some(left)).map_err(fault)?;
        let (Answer::Certificate { id: of, .. } | Answer::Signature { id: of, .. }) = &answer;
        if *of == id {
            return Ok(answer);
        }
    }
}

fn fault(error: LinkError) -> SignError {
    match error {
        LinkError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => SignError::Timeout,
        error => SignError::Gone(error.to_string()),
    }
}
