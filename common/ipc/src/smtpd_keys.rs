//! smtpd asks keys to sign a TLS handshake: the private key stays there.

use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// smtpd asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The certificate chain, DER, the host's first.
    Certificate {
        /// Comes back in the answer.
        id: RequestId,
    },
    /// Sign a handshake.
    Sign {
        /// Comes back in the answer.
        id: RequestId,
        /// TLS SignatureScheme (RFC 8446 §4.2.3).
        scheme: u16,
        /// What TLS signs, unhashed. keys signs nothing that is not of TLS's shape.
        message: Vec<u8>,
    },
}

/// keys answers, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The chain and the schemes the key can sign with.
    Certificate {
        /// Of the question.
        id: RequestId,
        /// DER certificates; empty when none is configured.
        chain: Vec<Vec<u8>>,
        /// SignatureScheme numbers, best first.
        schemes: Vec<u16>,
    },
    /// The signature, or why there is none.
    Signature {
        /// Of the question.
        id: RequestId,
        /// The signature's bytes.
        signature: Result<Vec<u8>, String>,
    },
}
