//! The command: see the library.

#![forbid(unsafe_code)]

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use postern_conformance::{Gaps, Options, Profile, requirements, requirements_in, run};

/// Judges an SMTP server by the RFCs, from outside.
#[derive(Debug, Parser)]
#[command(name = "postern-conformance", version)]
struct Arguments {
    /// Where the server is: HOST:PORT
    #[arg(value_name = "HOST:PORT", required_unless_present = "list")]
    at: Option<String>,
    /// What the suite must know about the server
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    profile: Option<PathBuf>,
    /// Requirements that the server is known not to meet, each with the reason
    #[arg(long, value_name = "FILE")]
    gaps: Option<PathBuf>,
    /// Only requirements with this in their id; may be given more than once
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// The scripts in this directory instead of those that are built in
    #[arg(long, value_name = "DIRECTORY")]
    suite: Option<PathBuf>,
    /// So many tests at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Report as one JSON object
    #[arg(long)]
    json: bool,
    /// Show the requirements and test nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match judge(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("postern-conformance: {why}");
            ExitCode::from(2)
        }
    }
}

fn judge(arguments: &Arguments) -> Result<bool, String> {
    let suite = arguments.suite.as_deref().map_or_else(requirements, requirements_in)?;
    let (Some(at), Some(profile), false) = (&arguments.at, &arguments.profile, arguments.list) else {
        for requirement in &suite {
            say(&format!(
                "{:<6} {}\n       {}: {}\n",
                requirement.level.to_string(),
                requirement.id,
                requirement.reference,
                requirement.says
            ));
        }
        return Ok(true);
    };
    let ids: Vec<&str> = suite.iter().map(|requirement| requirement.id.as_str()).collect();
    let gaps = arguments.gaps.as_deref().map_or(Ok(Gaps::default()), |path| Gaps::read(path, &ids))?;
    let options = Options { at: resolve(at)?, jobs: arguments.jobs, only: arguments.only.clone() };
    let report = run(&suite, &Profile::read(profile)?, &gaps, &options)?;
    if arguments.json {
        say(&format!("{:#}\n", report.json()));
    } else {
        say(&report.text());
    }
    Ok(report.is_good())
}

fn resolve(at: &str) -> Result<SocketAddr, String> {
    let mut found = at.to_socket_addrs().map_err(|e| format!("{at}: {e}"))?;
    found.next().ok_or_else(|| format!("{at}: no address"))
}

/// Who does not want to read on closes the pipe, and that is no error.
fn say(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
}
