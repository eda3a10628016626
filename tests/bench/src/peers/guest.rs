//! A mail system that is unpacked (`tests/bench/unpack-peers`) and not installed. In the namespaces of a round
//! it is shown as if it were: its programs beside ours, its users beside ours, an empty `/run`.

use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use postern_tests::Process;

use crate::machine::said;

const PLACE: &str = "/usr/local/lib/postern-peers";

/// `Exim 4.96-15`, as the package list has it.
pub(super) fn version(title: &str, package: &str) -> String {
    let known = said("apt-cache", &["show", "--no-all-versions", package]);
    let version = known.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("?");
    format!("{title} {version}")
}

/// A program of it belongs to a group and is set-gid, as its package would have it when it is installed.
pub(super) fn set_gid(package: &str, program: &str, group: u32) {
    let path = Path::new(PLACE).join(package).join(program);
    chown(&path, Some(0), Some(group)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o2755)).unwrap();
}

/// Shows it. `users` are names and ids, each with a group of its own; `var` are directories that it wants
/// below `/var`, which lie in the round's.
pub(super) fn show(
    package: &str,
    directory: &Path,
    users: &[(&str, u32)],
    var: &[&str],
    name_server: IpAddr,
) {
    for name in ["etc", "var"] {
        std::fs::create_dir(directory.join(name)).unwrap();
    }
    let with = |file: &str, lines: &[String]| {
        let text = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap();
        std::fs::write(directory.join("etc").join(file), format!("{text}\n{}\n", lines.join("\n"))).unwrap();
    };
    let lines: Vec<_> = users.iter().map(|(name, id)| format!("{name}:x:{id}:{id}::/:/bin/false")).collect();
    with("passwd", &lines);
    let servers = format!("lookup file\nnameserver {name_server}\n");
    std::fs::write(directory.join("etc/resolv.conf"), servers).unwrap();
    let lines: Vec<_> = users.iter().map(|(name, id)| format!("{name}:x:{id}:")).collect();
    with("group", &lines);
    // Not /usr as a whole: the place is below it, and no layer may be part of another.
    let mut script = "set -e; for place in usr/sbin usr/bin usr/libexec; do if [ -d \"$2/$place\" ]; then \
                      mount -t overlay overlay -o \"lowerdir=$2/$place:/$place\" \"/$place\"; fi; done; \
                      mount -t overlay overlay -o \"lowerdir=$1/etc:/etc\" /etc; mount -t tmpfs tmpfs /run; "
        .to_owned();
    for place in var {
        let ours = place.replace('/', "-");
        script.push_str(&format!("mkdir -p \"$1/var/{place}\" \"$1/{ours}\"; chmod 711 \"$1/{ours}\"; "));
    }
    if !var.is_empty() {
        script.push_str("mount -t overlay overlay -o \"lowerdir=$1/var:/var\" /var; ");
    }
    for place in var {
        script.push_str(&format!("mount --bind \"$1/{}\" \"/var/{place}\"; ", place.replace('/', "-")));
    }
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(directory).arg(Path::new(PLACE).join(package));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{package}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Starts it as the first process of a namespace, so that it is the parent of those it forked twice: what
/// they use is counted as its own.
pub(super) fn start(directory: &Path, words: &[&str]) -> Process {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).args(words).current_dir("/");
    let errors = std::fs::File::create(directory.join("stderr")).unwrap();
    Process::start(command.stdout(errors.try_clone().unwrap()).stderr(errors))
}
