//! A server that is far away: a proxy that holds back what goes through it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::listen;

/// From one end to the other; there and back is twice this.
const DELAY: Duration = Duration::from_millis(25);

/// Runs as long as this process.
pub(crate) fn start(address: SocketAddr, to: SocketAddr) {
    listen(address, move |client| {
        // The handshake went there and back, too.
        std::thread::sleep(2 * DELAY);
        let server = TcpStream::connect(to).unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        carry(client.try_clone().unwrap(), server.try_clone().unwrap());
        carry(server, client);
    });
}

/// Takes octets from one to the other, each piece so much later than it came.
fn carry(mut from: TcpStream, to: TcpStream) {
    let (sender, receiver) = channel();
    std::thread::spawn(move || bring(&receiver, to));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        // An end, and a reset, are an end.
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + DELAY, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
}

fn bring(receiver: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    for (at, piece) in receiver {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            return;
        }
    }
    std::thread::sleep(DELAY);
    // It may be closed already.
    let _ = to.shutdown(Shutdown::Write);
}
