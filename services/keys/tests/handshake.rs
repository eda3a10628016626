//! Whole handshakes whose private key is on the other side of a socket.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use postern_ipc::smtpd_keys::{Answer, Question};
use postern_ipc::{Link, LinkError, blocking};
use postern_keys::holder::Holder;
use postern_tls::{KeysLink, Session, Sign, SignError, server_config};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

struct Server {
    keys: Arc<KeysLink>,
    thread: Option<JoinHandle<()>>,
    certificate: rcgen::Certificate,
}

/// Keys' core in a thread behind a socket, as the program has it.
fn server(algorithm: &'static rcgen::SignatureAlgorithm) -> Server {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let certificate =
        rcgen::CertificateParams::new(["mx.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let pem = (certificate.pem(), key.serialize_pem());
    let (ours, theirs) = blocking::pair().unwrap();
    let thread = thread::spawn(move || {
        let holder = Holder::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).unwrap();
        let mut link = Link::<Answer, Question>::new(theirs);
        loop {
            match blocking::receive(&mut link, None) {
                Ok((question, _)) => link.send(&holder.answer(question)).unwrap(),
                Err(LinkError::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let keys = Arc::new(KeysLink::new());
    keys.connect(ours);
    Server { keys, thread: Some(thread), certificate }
}

fn client(server: &Server, version: &'static SupportedProtocolVersion) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), "mx.test".try_into().unwrap()).unwrap()
}

fn session(server: &Server) -> Session {
    let (chain, schemes) = server.keys.certificate().unwrap();
    let signer: Arc<dyn Sign> = Arc::<KeysLink>::clone(&server.keys);
    Session::new(server_config(chain, &schemes, signer).unwrap()).unwrap()
}

/// Carries bytes both ways until nobody has any; returns the plaintext the server heard.
fn converse(client: &mut ClientConnection, server: &mut Session) -> Result<Vec<u8>, String> {
    let mut heard = Vec::new();
    loop {
        let (mut there, mut back) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut there).unwrap();
        }
        // In pieces, as a network would.
        let outcome = there.chunks(700).try_for_each(|piece| server.receive(piece, &mut heard).map(drop));
        server.outgoing(&mut back).unwrap();
        let mut rest = &back[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(|error| error.to_string())?;
        }
        outcome.map_err(|error| error.to_string())?;
        if there.is_empty() && back.is_empty() {
            return Ok(heard);
        }
    }
}

#[test]
fn the_key_stays_where_it_is() {
    use std::io::{Read, Write};
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let mut server = server(algorithm);
            let (mut client, mut session) = (client(&server, version), session(&server));
            assert_eq!(converse(&mut client, &mut session), Ok(Vec::new()));
            assert!(!session.is_handshaking() && session.negotiated().is_some());
            let text = vec![b'x'; 50_000];
            client.writer().write_all(&text).unwrap();
            assert_eq!(session.send(b"220 mx.test\r\n"), Ok(13));
            assert_eq!(converse(&mut client, &mut session), Ok(text));
            let mut greeting = [0; 13];
            client.reader().read_exact(&mut greeting).unwrap();
            assert_eq!(&greeting, b"220 mx.test\r\n");
            client.send_close_notify();
            let mut there = Vec::new();
            client.write_tls(&mut there).unwrap();
            assert_eq!(session.receive(&there, &mut Vec::new()), Ok(true));
            let thread = server.thread.take().unwrap();
            drop((server, session));
            thread.join().unwrap();
        }
    }
}

#[test]
fn anything_else_is_not_signed() {
    let server = server(&rcgen::PKCS_ECDSA_P256_SHA256);
    let refused = server.keys.sign(0x0403, b"a certificate request, say");
    assert!(matches!(refused, Err(SignError::Refused(_))), "{refused:?}");
}

#[test]
fn without_keys_the_handshake_fails_and_nothing_else() {
    let server = server(&rcgen::PKCS_ECDSA_P256_SHA256);
    let (mut client, mut session) = (client(&server, &rustls::version::TLS13), session(&server));
    let (ours, theirs) = blocking::pair().unwrap();
    server.keys.connect(ours);
    drop(theirs);
    let outcome = converse(&mut client, &mut session);
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(!server.keys.is_connected());
}

#[test]
fn silence_and_rubbish_are_errors() {
    let server = server(&rcgen::PKCS_ECDSA_P256_SHA256);
    let mut session = session(&server);
    assert!(session.receive(b"EHLO client.test\r\n", &mut Vec::new()).is_err());
    let (ours, _silent) = blocking::pair().unwrap();
    server.keys.connect(ours);
    assert_eq!(server.keys.certificate(), Err(SignError::Timeout));
    assert!(server.keys.is_connected());
}
