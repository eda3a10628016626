//! A rustls key whose private half is elsewhere.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::CertificateDer;

/// Sessions that one process can resume. Each takes about 2 KiB.
const SESSIONS_KEPT: usize = 256;

/// Signs what TLS signs. It may block, shortly.
pub trait Sign: fmt::Debug + Send + Sync {
    /// Signs `message`, unhashed, with the SignatureScheme of this number (RFC 8446 §4.2.3).
    fn sign(&self, scheme: u16, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// Why there is no signature; the handshake fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The keys program is not there, or was lost under way.
    #[error("the keys program is not there: {0}")]
    Gone(String),
    /// It did not answer in time.
    #[error("the keys program does not answer")]
    Timeout,
    /// It refused, in its words.
    #[error("the keys program refused: {0}")]
    Refused(String),
}

/// Why there is no TLS.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// No certificate is configured.
    #[error("no certificate")]
    NoCertificate,
    /// None of the key's signature schemes is one of TLS's.
    #[error("the key cannot sign for TLS")]
    NoScheme,
    /// rustls does not take it.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The public half of a key and the way to its private half.
#[derive(Clone, Debug)]
pub struct RemoteKey {
    schemes: Vec<SignatureScheme>,
    algorithm: SignatureAlgorithm,
    signer: Arc<dyn Sign>,
}

impl RemoteKey {
    /// A key that can sign by these schemes, best first. None when there are none, or of several kinds.
    pub fn new(schemes: &[u16], signer: Arc<dyn Sign>) -> Option<Self> {
        let schemes: Vec<SignatureScheme> = schemes.iter().map(|n| SignatureScheme::from(*n)).collect();
        let algorithm = algorithm(*schemes.first()?)?;
        let all_alike = schemes.iter().all(|scheme| self::algorithm(*scheme) == Some(algorithm));
        all_alike.then_some(Self { schemes, algorithm, signer })
    }
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.schemes.iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(RemoteSigner { scheme, signer: Arc::clone(&self.signer) }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

#[derive(Debug)]
struct RemoteSigner {
    scheme: SignatureScheme,
    signer: Arc<dyn Sign>,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.signer
            .sign(self.scheme.into(), message)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// A server's configuration: TLS 1.2 and 1.3 (RFC 8996 forbids older ones), no client certificates.
pub fn server_config(
    chain: Vec<Vec<u8>>,
    schemes: &[u16],
    signer: Arc<dyn Sign>,
) -> Result<Arc<ServerConfig>, TlsError> {
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = RemoteKey::new(schemes, signer).ok_or(TlsError::NoScheme)?;
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let certified = CertifiedKey::new(chain, Arc::new(key));
    // Parses the certificate now rather than in the first handshake.
    certified.end_entity_cert()?;
    // The provider is given, not found: a process-wide default would depend on what else is linked in.
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS_KEPT);
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// Which kind of key makes this signature.
fn algorithm(scheme: SignatureScheme) -> Option<SignatureAlgorithm> {
    use SignatureScheme as S;
    match scheme {
        S::RSA_PKCS1_SHA256
        | S::RSA_PKCS1_SHA384
        | S::RSA_PKCS1_SHA512
        | S::RSA_PSS_SHA256
        | S::RSA_PSS_SHA384
        | S::RSA_PSS_SHA512 => Some(SignatureAlgorithm::RSA),
        S::ECDSA_NISTP256_SHA256 | S::ECDSA_NISTP384_SHA384 | S::ECDSA_NISTP521_SHA512 => {
            Some(SignatureAlgorithm::ECDSA)
        }
        S::ED25519 => Some(SignatureAlgorithm::ED25519),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl Sign for Nobody {
        fn sign(&self, _: u16, _: &[u8]) -> Result<Vec<u8>, SignError> {
            Err(SignError::Timeout)
        }
    }

    #[test]
    fn refused() {
        let config = |chain: Vec<Vec<u8>>, schemes: &[u16]| server_config(chain, schemes, Arc::new(Nobody));
        assert_eq!(config(Vec::new(), &[0x0403]).unwrap_err(), TlsError::NoCertificate);
        assert_eq!(config(vec![vec![1]], &[]).unwrap_err(), TlsError::NoScheme);
        assert_eq!(config(vec![vec![1]], &[0x0403, 0x0804]).unwrap_err(), TlsError::NoScheme);
        assert_eq!(config(vec![vec![1]], &[0x0201]).unwrap_err(), TlsError::NoScheme);
    }
}
