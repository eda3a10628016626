//! Where mailboxes may lie: what the sandbox lets this program and its workers write to at all.

use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// Where no home is: the system's own places. A worker is kept from most of these by being the user; this
/// keeps it from the rest.
const NO_HOMES: &[&str] = &[
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/lost+found",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/backups",
    "/var/cache",
    "/var/lock",
    "/var/log",
    "/var/run",
    "/var/spool/cron",
    "/var/spool/postern",
];

/// The directories that mailboxes of system users may be in. `base` is the constant part of the mailbox
/// template: `~/` for homes.
pub fn of_local(base: Option<&Path>) -> Vec<PathBuf> {
    let Some(base) = base else { return Vec::new() };
    if !base.starts_with("~") {
        return vec![base.to_owned()];
    }
    match Uid::effective().is_root() {
        true => all_but(Path::new("/"), NO_HOMES),
        false => User::from_uid(Uid::current()).ok().flatten().map(|user| user.dir).into_iter().collect(),
    }
}

/// The topmost directories beneath `root` that hold everything but `excluded`. Symbolic links are left
/// out: what they lead to is found by its own name.
fn all_but(root: &Path, excluded: &[&str]) -> Vec<PathBuf> {
    // A directory that cannot be listed holds no home we could reach.
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut trees = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || excluded.iter().any(|e| path == Path::new(e))
        {
            continue;
        }
        match excluded.iter().any(|e| Path::new(e).starts_with(&path)) {
            true => trees.extend(all_but(&path, excluded)),
            false => trees.push(path),
        }
    }
    trees
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spool_is_no_home() {
        let directory = tempfile::tempdir().unwrap();
        for sub in ["home/u", "etc", "var/mail", "var/spool/postern", "var/spool/mail"] {
            std::fs::create_dir_all(directory.path().join(sub)).unwrap();
        }
        let absolute = |sub: &str| directory.path().join(sub);
        let excluded = [absolute("etc"), absolute("var/spool/postern")];
        let excluded: Vec<&str> = excluded.iter().map(|p| p.to_str().unwrap()).collect();
        let mut trees = all_but(directory.path(), &excluded);
        trees.sort();
        assert_eq!(trees, [absolute("home"), absolute("var/mail"), absolute("var/spool/mail")]);
    }
}
