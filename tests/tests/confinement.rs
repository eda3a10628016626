//! What each program may not do, tried by the program itself from inside its sandbox, in the running system,
//! as root with the system users and as an ordinary user without them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::TcpListener;

use nix::errno::Errno;
use postern_ipc::ask;
use postern_ipc::control::{Reply, Request};
use postern_ipc::supervise::Attempt;
use postern_tests::{Builder, System, have, have_root};

type Outcome = Result<(), Errno>;

/// Lets every program try, and calls `judge` with each program, its attempt, and what came of it.
fn probe(system: &System, attempts: Vec<Attempt>, mut judge: impl FnMut(&str, &Attempt, Outcome)) {
    let mut programs = 0;
    ask(&system.runtime(), &Request::Probe(attempts.clone()), |reply| match reply {
        Reply::Probed { program, attempts: outcomes } => {
            programs += 1;
            assert_eq!(outcomes.len(), attempts.len());
            for (attempt, outcome) in outcomes {
                judge(&program, &attempt, outcome.map_err(Errno::from_raw));
            }
        }
        other => panic!("{other:?}"),
    })
    .unwrap();
    assert_eq!(programs, system.pids().len(), "every program was asked");
}

/// No program may: the sandbox says so, and not chance (a missing file would be ENOENT).
fn denied(program: &str, attempt: &Attempt, outcome: Outcome) {
    let forbidden = matches!(outcome, Err(Errno::EACCES | Errno::EPERM));
    assert!(forbidden, "{program}: {attempt:?}: {outcome:?}");
}

/// A system with secrets: a TLS key for keys, password hashes for auth. Everybody may read them, as far as
/// the file system knows: it would let every program read them when all run as one user.
fn with_secrets(builder: Builder) -> System {
    let mut system = builder.certificate().set("auth", "users", "\"{directory}/users\"").prepare();
    std::fs::write(system.directory().join("users"), "u@v.test:$6$saltsalt$none\n").unwrap();
    system.start_again();
    system
}

fn each_kind_of_system(test: impl Fn(&System)) {
    if !have(&["openssl"]) {
        return;
    }
    test(&with_secrets(System::builder()));
    if nix::unistd::geteuid().is_root() {
        test(&with_secrets(System::builder().unprivileged()));
    }
}

#[test]
fn no_program_reads_what_is_not_its_own() {
    each_kind_of_system(|system| {
        let path = |name: &str| system.directory().join(name).display().to_string();
        let attempts = vec![
            Attempt::Read("/etc/shadow".into()),
            Attempt::Read(path("key.pem")),
            Attempt::Read(path("users")),
            Attempt::Read(system.config().display().to_string()),
            Attempt::Read(format!("/proc/{}/environ", std::process::id())),
            Attempt::Read(system.directory().join("log").display().to_string()),
            Attempt::Read("/usr/bin/env".into()),
        ];
        probe(system, attempts, |program, attempt, outcome| {
            let own = program == "auth" && *attempt == Attempt::Read(path("users"));
            if own {
                assert_eq!(outcome, Ok(()), "auth reads its users");
            } else {
                denied(program, attempt, outcome);
            }
        });
    });
}

#[test]
fn no_program_writes_where_it_has_no_business() {
    each_kind_of_system(|system| {
        let below = |path: &str| Attempt::Create(system.directory().join(path).display().to_string());
        let attempts = vec![
            below("planted"),
            below("run/planted"),
            below("spool/cur/planted"),
            below("spool/corrupt/planted"),
            below("spool/new/planted"),
            below("mail/planted"),
            Attempt::Create("/tmp/postern-planted".into()),
            Attempt::Create("/dev/shm/postern-planted".into()),
        ];
        probe(system, attempts, |program, attempt, outcome| {
            let Attempt::Create(path) = attempt else { return };
            let business = match program {
                "queue-manager" => path.contains("/spool/"),
                "delivery-local" => path.contains("/mail/"),
                program if program.starts_with("smtpd/") => path.contains("/spool/new/"),
                _ => false,
            };
            if !business {
                denied(program, attempt, outcome);
            }
        });
    });
}

#[test]
fn only_those_who_speak_to_the_network_reach_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    each_kind_of_system(|system| {
        let attempts = vec![Attempt::Connect(address), Attempt::InternetSocket];
        let mut reached = BTreeMap::new();
        probe(system, attempts, |program, attempt, outcome| match program {
            "delivery-remote" | "lmtp" => drop(reached.insert(format!("{program} {attempt:?}"), outcome)),
            "resolver" => {}
            _ => denied(program, attempt, outcome),
        });
        // That the probe is worth something: those whose job it is, can.
        assert!(reached.len() == 4 && reached.values().all(|outcome| *outcome == Ok(())), "{reached:?}");
    });
}

#[test]
fn no_program_executes_traces_or_becomes_another() {
    each_kind_of_system(|system| {
        let rooted = nix::unistd::geteuid().is_root() && system.pids().len() > 1 && runs_as_root(system);
        let attempts = vec![
            Attempt::Execute("/bin/true".into()),
            Attempt::Execute("/bin/sh".into()),
            Attempt::Trace(std::process::id() as i32),
            Attempt::BecomeRoot,
        ];
        probe(system, attempts, |program, attempt, outcome| {
            // delivery-local is root's, with the two capabilities that become somebody else and no others.
            let is_root = rooted && program == "delivery-local" && *attempt == Attempt::BecomeRoot;
            if !is_root {
                denied(program, attempt, outcome);
            }
        });
    });
}

/// What the kernel says of each program: its user, its capabilities, no_new_privs, seccomp.
#[test]
fn the_kernel_says_so_too() {
    if !have_root() {
        return;
    }
    let system = System::start();
    for (program, pid) in system.pids() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
        };
        if program == "master" {
            continue;
        }
        assert_eq!(of("NoNewPrivs"), "1", "{program}");
        assert_eq!(of("Seccomp"), "2", "{program}");
        let role = program.split('/').next().unwrap();
        let (effective, bounding) = (of("CapEff"), of("CapBnd"));
        if role == "delivery-local" {
            // CAP_SETGID is bit 6, CAP_SETUID bit 7.
            assert_eq!(effective, "00000000000000c0", "{program}");
            continue;
        }
        assert_eq!(effective, "0000000000000000", "{program}");
        assert_eq!(of("CapPrm"), "0000000000000000", "{program}");
        assert_eq!(bounding, "0000000000000000", "{program}");
        let uid: u32 = of("Uid").split_whitespace().next().unwrap().parse().unwrap();
        let user = nix::unistd::User::from_uid(uid.into()).unwrap().unwrap().name;
        let expected = match role {
            "queue-manager" => "postern-queue".to_owned(),
            "delivery-remote" => "postern-remote".to_owned(),
            role => format!("postern-{role}"),
        };
        assert_eq!(user, expected);
    }
}

/// An ordinary user may look at the status and no more.
#[test]
fn the_control_socket_asks_who_is_calling() {
    if !have_root() {
        return;
    }
    let system = System::start();
    let id = system.smtp().send("a@x.test", &["u@v.test"], &postern_tests::message("secret")).unwrap();
    system.finished(&id);
    let as_nobody = |arguments: &[&str]| {
        let mut command = system.command_of_nobody("postern");
        command.args(arguments).arg("--config").arg(system.config()).output().unwrap()
    };
    assert!(as_nobody(&["status"]).status.success());
    for refused in [&["stop"][..], &["reload"], &["queue", "flush"], &["queue", "list"], &["probe"]] {
        let output = as_nobody(refused);
        assert_eq!(output.status.code(), Some(1), "{refused:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(system.postern(&["status"]).status.success(), "it still runs");
}

fn runs_as_root(system: &System) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", system.master())).unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}
