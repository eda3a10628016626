//! Tells whoever started us that we serve: sd_notify(3), which `postern start` listens to as well.

use std::os::unix::net::UnixDatagram;

/// Says `state` (`READY=1`, `STOPPING=1`) to `NOTIFY_SOCKET`, when there is one.
pub(crate) fn notify(state: &str) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)?;
        }
        None => drop(socket.send_to(state.as_bytes(), &path)?),
    }
    Ok(())
}
