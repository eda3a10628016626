//! The key and what it answers.

use std::fmt;
use std::sync::Arc;

use postern_ipc::smtpd_keys::{Answer, Question};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::shape::{Shape, shape};

/// The chain must fit a frame with room to spare.
const CHAIN_MOST: usize = 48 * 1024;

/// What a key may sign with, best first: the short signatures, then RSA-PSS, then what only TLS 1.2 takes.
const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// One private key and its certificates, or nothing.
pub struct Holder {
    chain: Vec<Vec<u8>>,
    key: Option<Arc<dyn SigningKey>>,
    schemes: Vec<u16>,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The certificate file holds none, or something unreadable.
    #[error("the certificate file is not a PEM chain: {0}")]
    Certificate(String),
    /// The chain is too long.
    #[error("the certificate chain has more than {CHAIN_MOST} octets")]
    ChainTooLong,
    /// The key file holds none, or something unreadable.
    #[error("the key file is not a PEM private key: {0}")]
    Key(String),
    /// No kind of key that we know: RSA from 2048 bits, ECDSA P-256, P-384, P-521, Ed25519.
    #[error("the private key is of no supported kind (RSA of 2048 bits or more, ECDSA, Ed25519): {0}")]
    Kind(String),
    /// It is another certificate's.
    #[error("the private key does not belong to the first certificate of the chain")]
    Mismatch,
}

impl Holder {
    /// No key: every signature is refused, and the chain is empty.
    pub fn empty() -> Self {
        Self { chain: Vec::new(), key: None, schemes: Vec::new() }
    }

    /// Reads a chain and its key, both PEM.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, KeyError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| KeyError::Certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(KeyError::Certificate("it holds no certificate".into()));
        }
        if chain.iter().map(|certificate| certificate.len()).sum::<usize>() > CHAIN_MOST {
            return Err(KeyError::ChainTooLong);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| KeyError::Key(error.to_string()))?;
        let key = any_supported_type(&key).map_err(|error| KeyError::Kind(error.to_string()))?;
        match CertifiedKey::new(chain.clone(), Arc::clone(&key)).keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(KeyError::Mismatch),
            Err(error) => return Err(KeyError::Certificate(error.to_string())),
        }
        let schemes = SCHEMES.iter().filter(|scheme| key.choose_scheme(&[**scheme]).is_some());
        let schemes = schemes.map(|scheme| u16::from(*scheme)).collect();
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Self { chain, key: Some(key), schemes })
    }

    /// There is a key.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Answers.
    pub fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Certificate { id } => {
                Answer::Certificate { id, chain: self.chain.clone(), schemes: self.schemes.clone() }
            }
            Question::Sign { id, scheme, message } => {
                Answer::Signature { id, signature: self.sign(scheme, &message) }
            }
        }
    }

    fn sign(&self, scheme: u16, message: &[u8]) -> Result<Vec<u8>, String> {
        let key = self.key.as_ref().ok_or("no key is configured")?;
        let shape = shape(message).ok_or("this is not what TLS signs")?;
        let scheme = SignatureScheme::from(scheme);
        if shape == Shape::Tls13 && is_pkcs1(scheme) {
            return Err("TLS 1.3 does not sign with PKCS #1 v1.5 (RFC 8446 §4.2.3)".into());
        }
        let signer = key.choose_scheme(&[scheme]).ok_or("the key does not sign with this scheme")?;
        signer.sign(message).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key, whatever its own Debug shows.
        f.debug_struct("Holder").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

fn is_pkcs1(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::RSA_PKCS1_SHA256
            | SignatureScheme::RSA_PKCS1_SHA384
            | SignatureScheme::RSA_PKCS1_SHA512
    )
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};

    use super::*;

    fn generate() -> Generated<rcgen::KeyPair> {
        generate_simple_self_signed(["mx.test".to_owned()]).unwrap()
    }

    #[test]
    fn files() {
        let (one, other) = (generate(), generate());
        let (chain, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        let holder = Holder::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert!(holder.has_key());
        assert_eq!(holder.schemes, [0x0403]);
        let refused =
            |chain: &str, key: &str| Holder::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(matches!(refused("", &key), KeyError::Certificate(_)));
        assert!(matches!(refused(&chain, "nonsense"), KeyError::Key(_)));
        assert!(matches!(refused(&chain, &chain), KeyError::Key(_)));
        assert!(matches!(refused(&chain, &other.signing_key.serialize_pem()), KeyError::Mismatch));
        assert!(matches!(refused(&chain.repeat(200), &key), KeyError::ChainTooLong));
        assert!(!format!("{holder:?}").contains("key"));
    }

    #[test]
    fn signs_nothing_but_handshakes() {
        let one = generate();
        let holder =
            Holder::from_pem(one.cert.pem().as_bytes(), one.signing_key.serialize_pem().as_bytes()).unwrap();
        let handshake = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[1; 32]].concat();
        assert!(holder.sign(0x0403, &handshake).is_ok());
        assert!(holder.sign(0x0804, &handshake).is_err());
        assert!(holder.sign(0x0403, b"I owe you everything").is_err());
        assert!(Holder::empty().sign(0x0403, &handshake).is_err());
        let question = Question::Certificate { id: 3 };
        let expected = Answer::Certificate { id: 3, chain: Vec::new(), schemes: Vec::new() };
        assert_eq!(Holder::empty().answer(question), expected);
    }
}
