//! `postern status` and `postern probe`.

use std::net::SocketAddr;

use postern_config::Config;
use postern_ipc::ask;
use postern_ipc::control::{ProgramStatus, Reply, Request};
use postern_ipc::supervise::Attempt;
use postern_spool::Timestamp;
use serde_json::json;

use crate::Failure;
use crate::table;

/// The running programs and their counters.
pub(crate) fn status(config: &Config, as_json: bool) -> Result<(), Failure> {
    let mut programs: Vec<ProgramStatus> = Vec::new();
    ask(&config.runtime, &Request::Status, |reply| {
        if let Reply::Programs(some) = reply {
            programs.extend(some);
        }
    })?;
    if as_json {
        programs.iter().for_each(|p| {
            let counters: serde_json::Map<_, _> = p.counters.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let (started, restarts) = (p.started.0, p.restarts);
            let (program, pid) = (&p.program, p.pid);
            table::print_json(&json!({
                "program": program, "pid": pid, "started": started, "restarts": restarts, "counters": counters,
            }));
        });
        return Ok(());
    }
    let now = Timestamp::now();
    let rows: Vec<_> = programs
        .iter()
        .map(|p| {
            let counters: Vec<_> = p.counters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            vec![
                p.program.clone(),
                p.pid.map_or("waiting".into(), |pid| pid.to_string()),
                p.pid.map_or("-".into(), |_| table::span(now.0.saturating_sub(p.started.0))),
                p.restarts.to_string(),
                counters.join(" "),
            ]
        })
        .collect();
    table::print(&["PROGRAM", "PID", "UP", "RESTARTS", "COUNTERS"], &rows);
    Ok(())
}

/// Asks every program to try what its sandbox must prevent, and fails when one could.
pub(crate) fn probe(config: &Config, as_json: bool) -> Result<(), Failure> {
    let mut holes = 0;
    let mut rows = Vec::new();
    let mut refused = None;
    ask(&config.runtime, &Request::Probe(attempts(config)), |reply| match reply {
        Reply::Probed { program, attempts } => {
            for (attempt, outcome) in attempts {
                let result = match outcome {
                    Err(errno) => nix::errno::Errno::from_raw(errno).to_string(),
                    Ok(()) if is_its_job(&program, &attempt) => "allowed: it is its job".into(),
                    Ok(()) => {
                        holes += 1;
                        "ALLOWED".into()
                    }
                };
                rows.push(vec![program.clone(), describe(&attempt), result]);
            }
        }
        Reply::Refused(why) => refused = Some(why),
        _ => {}
    })?;
    if let Some(why) = refused {
        return Err(Failure::new(1, why));
    }
    if as_json {
        for row in &rows {
            let [program, attempt, result] = row.as_slice() else { continue };
            table::print_json(&json!({ "program": program, "attempt": attempt, "result": result }));
        }
    } else {
        table::print(&["PROGRAM", "ATTEMPT", "RESULT"], &rows);
    }
    match holes {
        0 => Ok(()),
        n => Err(Failure::new(1, format!("{n} attempts were not prevented"))),
    }
}

fn attempts(config: &Config) -> Vec<Attempt> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut attempts = vec![
        Attempt::Read("/etc/shadow".into()),
        Attempt::Read("/proc/1/environ".into()),
        Attempt::Create("/tmp/postern-probe".into()),
        Attempt::Connect(loopback),
        Attempt::Execute("/nonexistent/program".into()),
        Attempt::BecomeRoot,
        Attempt::InternetSocket,
        Attempt::Trace(std::process::id() as i32),
        Attempt::Read(config.spool.join("corrupt").display().to_string()),
    ];
    attempts.extend(config.tls.iter().map(|tls| Attempt::Read(tls.key.display().to_string())));
    attempts.extend(config.auth_users.iter().map(|users| Attempt::Read(users.display().to_string())));
    attempts
}

/// Some programs are there to do what others must not.
fn is_its_job(program: &str, attempt: &Attempt) -> bool {
    match attempt {
        Attempt::InternetSocket => matches!(program, "delivery-remote" | "lmtp" | "resolver"),
        // Nobody listens on the discard port, so a refusal by the network comes here as well.
        Attempt::Connect(_) => matches!(program, "delivery-remote" | "lmtp" | "resolver"),
        Attempt::Read(path) => match program {
            "auth" => !path.ends_with("/corrupt") && path != "/etc/shadow" && !path.starts_with("/proc"),
            "queue-manager" => path.ends_with("/corrupt"),
            _ => false,
        },
        _ => false,
    }
}

fn describe(attempt: &Attempt) -> String {
    match attempt {
        Attempt::Read(path) => format!("read {path}"),
        Attempt::Create(path) => format!("create {path}"),
        Attempt::Connect(address) => format!("connect to {address}"),
        Attempt::Execute(_) => "execute a program".into(),
        Attempt::BecomeRoot => "become root".into(),
        Attempt::InternetSocket => "make an internet socket".into(),
        Attempt::Trace(_) => "trace another process".into(),
    }
}
