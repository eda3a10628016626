//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use postern_spool::QueueId;

use crate::explain::ExplainArguments;

/// Runs, checks, asks and stops the mail system.
#[derive(Debug, Parser)]
#[command(name = "postern", version, about)]
pub(crate) struct Arguments {
    /// The configuration file
    #[arg(short, long, global = true, default_value = "/etc/postern/postern.toml", env = "POSTERN_CONFIG")]
    pub(crate) config: PathBuf,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the system in the foreground
    Run,
    /// Start the system in the background; returns when it serves
    Start,
    /// Explain the configuration, or what is wrong with it, without starting anything
    Check,
    /// Show the running programs
    Status,
    /// Let every running program try what it must not be able to do
    Probe,
    /// Look into the queue and change it
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Verify the queue's files, repair them, or take the messages away
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Tell what the rules do with a client and its mail, rule by rule
    Explain(ExplainArguments),
    /// Read the configuration anew
    Reload,
    /// Stop the system; returns when it is down
    Stop,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// List every message
    List,
    /// Show one message: envelope, what became of each recipient, header section
    Show {
        #[arg(value_parser = queue_id)]
        id: QueueId,
    },
    /// Try deferred messages now: all, or one
    Flush {
        #[arg(value_parser = queue_id)]
        id: Option<QueueId>,
    },
    /// Keep a message without delivering it
    Hold {
        #[arg(value_parser = queue_id)]
        id: QueueId,
    },
    /// Deliver a held message after all
    Release {
        #[arg(value_parser = queue_id)]
        id: QueueId,
    },
    /// Remove a message without telling its sender
    Remove {
        #[arg(value_parser = queue_id)]
        id: QueueId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SpoolCommand {
    /// Read every file and tell what is damaged
    Check,
    /// With the system stopped: set damaged files aside, take in what a crash left
    Repair,
    /// Write every message to a directory as ID.eml and ID.envelope.json
    Export { directory: PathBuf },
}

fn queue_id(text: &str) -> Result<QueueId, String> {
    QueueId::parse(text)
        .ok_or_else(|| "a queue id has 13 letters and digits, as `postern queue list` shows it".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["postern", "queue", "hold", "nonsense"]).is_err());
        let parsed = Arguments::try_parse_from(["postern", "queue", "list", "--json", "-c", "/x"]).unwrap();
        assert!(parsed.json && parsed.config == *"/x");
    }
}
