//! `postern run` and `postern start`.

use std::io::IsTerminal;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postern_config::{Config, LogTarget};

use crate::{Failure, table};

/// How long the system may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);

/// Becomes postern-master. Comes back only when it could not.
pub(crate) fn run(config: &Path) -> Failure {
    let mut command = match master(config) {
        Ok(command) => command,
        Err(failure) => return failure,
    };
    let error = command.exec();
    Failure::new(69, format!("cannot execute {}: {error}", command.get_program().display()))
}

/// Starts postern-master in a session of its own and waits until it says that it serves.
pub(crate) fn start(path: &Path, config: &Config) -> Result<(), Failure> {
    if matches!(config.log, LogTarget::TextStderr | LogTarget::JsonStderr) {
        let text =
            "log goes to stderr, which nobody reads in the background: `postern run` stays in the foreground";
        return Err(Failure::new(78, text));
    }
    let failed = |e: std::io::Error| Failure::new(71, format!("cannot start: {e}"));
    let address = format!("/postern-start-{}", std::process::id());
    let socket = {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&address).map_err(failed)?;
        UnixDatagram::bind_addr(&address).map_err(failed)?
    };
    socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(failed)?;
    let mut command = master(path)?;
    command.env("NOTIFY_SOCKET", format!("@{address}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    // A script that reads what we say would wait for the end of the system: it holds that pipe as well.
    if !std::io::stderr().is_terminal() {
        command.stderr(Stdio::null());
    }
    let mut child = command.spawn().map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let mut said = [0; 64];
    while Instant::now() < deadline {
        // The master tells; the short timeout lets us see its death meanwhile.
        if let Ok(length) = socket.recv(&mut said)
            && said[..length].starts_with(b"READY=1")
        {
            table::say(false, &format!("started, process {}; `postern status` shows it", child.id()));
            return Ok(());
        }
        if let Some(status) = child.try_wait().map_err(failed)? {
            let mut said = String::new();
            if let Some(stderr) = child.stderr.take() {
                // As far as it is text: it is for a human.
                let _ = stderr.take(64 * 1024).read_to_string(&mut said);
            }
            return Err(Failure::new(1, format!("the system ended at once ({status})\n{}", said.trim_end())));
        }
    }
    Err(Failure::new(
        1,
        format!("the system (process {}) does not serve after {PATIENCE:?}: see the log", child.id()),
    ))
}

/// The command that becomes postern-master: it lies beside this program, or in `../lib/postern`. The
/// configuration's path is made absolute, for a later reload.
fn master(config: &Path) -> Result<Command, Failure> {
    let own = std::env::current_exe().map_err(|e| Failure::new(71, e))?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let places: [PathBuf; 2] = [beside.join("postern-master"), beside.join("../lib/postern/postern-master")];
    let Some(master) = places.iter().find(|place| place.exists()) else {
        return Err(Failure::new(
            69,
            format!("postern-master is neither beside {} nor in ../lib/postern", own.display()),
        ));
    };
    let config = std::path::absolute(config).map_err(|e| Failure::new(66, e))?;
    let mut command = Command::new(master);
    command.arg("--config").arg(config);
    Ok(command)
}
