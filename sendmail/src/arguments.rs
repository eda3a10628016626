//! The command line. Pure.
//!
//! sendmail's options follow no library's rules: a value may be glued to its letter or stand alone, some
//! take a value only when glued, and programs pass dozens that have meant nothing for decades. What a
//! program in the field was seen to pass is taken; what means nothing here is taken and ignored.

use postern_smtp::parameters::{Notify, Ret};
use postern_spool::QueueId;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub mode: Mode,
    /// `-C`: another configuration.
    pub config: Option<String>,
    /// `-f`, `-r`: the envelope's sender as given; empty or `<>` is the null reverse-path.
    pub sender: Option<String>,
    /// `-F`: the full name for a From line that is made.
    pub full_name: Option<String>,
    /// `-i`, `-oi`: a dot alone does not end the message.
    pub ignore_dots: bool,
    /// `-t`: recipients from the header section.
    pub from_header: bool,
    /// `-v`: say what happened.
    pub verbose: bool,
    /// `-N`: of what the sender wants to hear (RFC 3461 §4.1).
    pub notify: Option<Notify>,
    /// `-R`: how much of a failed message comes back.
    pub ret: Option<Ret>,
    /// `-V`: the sender's own name for the envelope.
    pub envid: Option<String>,
    /// Recipients.
    pub operands: Vec<String>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `-bm`: take a message; the default.
    Submit,
    /// `-bs`: speak SMTP.
    Dialogue,
    /// `-bp`, mailq: show the queue.
    List,
    /// `-bi`, `-I`, newaliases.
    Aliases,
    /// `-bv`: look at addresses.
    Verify,
    /// `-q`: try deferred messages, or one.
    Flush(Option<QueueId>),
    /// `-bd`: start the system.
    Start,
    /// `-bD`: run it in the foreground.
    Run,
}

/// A command line that makes no sense (exit status 64).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage(pub String);

/// Take a value, glued or the next argument.
const WITH_VALUE: &str = "ABCDFLNORVXbefhopr";
/// Take a value only when it is glued.
const GLUED: &str = "Mdq";
/// Take none.
const ALONE: &str = "EGIUTcimnstvx";

/// Parses what follows the program's name; `name` is that name.
pub fn parse(name: &str, arguments: &[String]) -> Result<Arguments, Usage> {
    let mode = match name {
        "mailq" => Mode::List,
        "newaliases" => Mode::Aliases,
        _ => Mode::Submit,
    };
    let mut parsed = Arguments {
        mode,
        config: None,
        sender: None,
        full_name: None,
        ignore_dots: false,
        from_header: false,
        verbose: false,
        notify: None,
        ret: None,
        envid: None,
        operands: Vec::new(),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.strip_prefix('-') {
            Some("-") => parsed.operands.extend(rest.by_ref().cloned()),
            Some(letters) if !letters.is_empty() => cluster(&mut parsed, letters, &mut rest)?,
            // Options may follow recipients, as with GNU's getopt.
            _ => parsed.operands.push(argument.clone()),
        }
    }
    Ok(parsed)
}

/// The letters behind one dash.
fn cluster<'a>(
    parsed: &mut Arguments,
    letters: &str,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<(), Usage> {
    let mut letters = letters.chars();
    while let Some(letter) = letters.next() {
        let glued = letters.as_str();
        if ALONE.contains(letter) {
            flag(parsed, letter);
        } else if GLUED.contains(letter) || (WITH_VALUE.contains(letter) && !glued.is_empty()) {
            return with_value(parsed, letter, glued);
        } else if WITH_VALUE.contains(letter) {
            let value = rest.next().ok_or_else(|| Usage(format!("option -{letter} needs a value")))?;
            return with_value(parsed, letter, value);
        } else {
            return Err(Usage(format!("unknown option -{letter}")));
        }
    }
    Ok(())
}

fn flag(parsed: &mut Arguments, letter: char) {
    match letter {
        'I' => parsed.mode = Mode::Aliases,
        'i' => parsed.ignore_dots = true,
        't' => parsed.from_header = true,
        'v' => parsed.verbose = true,
        _ => {}
    }
}

fn with_value(parsed: &mut Arguments, letter: char, value: &str) -> Result<(), Usage> {
    match letter {
        'C' => parsed.config = Some(value.to_owned()),
        'F' => parsed.full_name = Some(value.to_owned()),
        'f' | 'r' => parsed.sender = Some(value.to_owned()),
        'N' => parsed.notify = Some(notify(value)?),
        'R' => parsed.ret = Some(ret(value)?),
        'V' => parsed.envid = Some(envid(value)?),
        'b' => parsed.mode = mode(value)?,
        'q' => queue(parsed, value)?,
        'o' => match value {
            "i" => parsed.ignore_dots = true,
            "t" => parsed.from_header = true,
            "v" => parsed.verbose = true,
            _ => {}
        },
        _ => {}
    }
    Ok(())
}

fn notify(value: &str) -> Result<Notify, Usage> {
    let mut notify = Notify::default();
    if value.eq_ignore_ascii_case("never") {
        return Ok(notify);
    }
    for word in value.split(',') {
        match word.trim().to_ascii_lowercase().as_str() {
            "success" => notify.success = true,
            "failure" => notify.failure = true,
            "delay" => notify.delay = true,
            _ => return Err(Usage(format!("-N {value}: `never`, or some of `success,failure,delay`"))),
        }
    }
    Ok(notify)
}

fn ret(value: &str) -> Result<Ret, Usage> {
    match value.to_ascii_lowercase().as_str() {
        "full" => Ok(Ret::Full),
        "hdrs" => Ok(Ret::Headers),
        _ => Err(Usage(format!("-R {value}: `full` or `hdrs`"))),
    }
}

/// RFC 3461 §4.4, decoded.
fn envid(value: &str) -> Result<String, Usage> {
    let fits = !value.is_empty() && value.len() <= 100 && value.bytes().all(|b| matches!(b, b' '..=b'~'));
    match fits {
        true => Ok(value.to_owned()),
        false => Err(Usage(format!("-V {value}: 1 to 100 printable ASCII characters"))),
    }
}

fn mode(letter: &str) -> Result<Mode, Usage> {
    Ok(match letter {
        "m" => Mode::Submit,
        "s" => Mode::Dialogue,
        "p" => Mode::List,
        "i" => Mode::Aliases,
        "v" => Mode::Verify,
        "d" | "l" => Mode::Start,
        "D" => Mode::Run,
        other => return Err(Usage(format!("-b{other} is not supported: -bm -bs -bp -bi -bv -bd -bD are"))),
    })
}

fn queue(parsed: &mut Arguments, value: &str) -> Result<(), Usage> {
    let is_time = value.starts_with(|c: char| c.is_ascii_digit()) || value.is_empty();
    match value.strip_prefix('I') {
        // `-bd -q30m` is how sendmail was started: the interval is the queue-manager's own business.
        _ if is_time && matches!(parsed.mode, Mode::Start | Mode::Run) => {}
        _ if is_time => parsed.mode = Mode::Flush(None),
        Some(id) => {
            let id = QueueId::parse(id).ok_or_else(|| Usage(format!("-qI: {id} is no queue id")))?;
            parsed.mode = Mode::Flush(Some(id));
        }
        None => return Err(Usage(format!("-q{value} is not supported: -q and -qI with a queue id are"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(line: &str) -> Arguments {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse("sendmail", &words).unwrap_or_else(|error| panic!("{line}: {error:?}"))
    }

    /// Recorded from the programs named; shims stood in sendmail's place.
    const RECORDED: [&str; 16] = [
        "-FCronDaemon -i -B8BITMIME -oem USER",        // cron
        "-i -t",                                       // bsd-mailx
        "-i -t -f B",                                  // bsd-mailx -r
        "-i -- R1 R2",                                 // s-nail
        "-i -f B -- R",                                // s-nail -r
        "-oi -f user@host -t",                         // mailutils
        "-oem -oi -- R",                               // mutt
        "-oem -oi -f B -N failure,delay -R hdrs -- R", // mutt with dsn_notify
        "-t -i",                                       // php mail()
        "-t -i -fB",                                   // php mail(), fifth argument
        "-i R1 R2",                                    // git send-email
        "-f B -i R1 R2",                               // git send-email --envelope-sender
        "-t",                                          // mdadm, logwatch
        "-t -oi -oem",                                 // MIME::Lite
        "-f SENDER DEST",                              // fail2ban
        "-oi -oem -odb -oMs foo -B8BITMIME -Fxx -h 3 -v -L tag -O a=b -Ac -d0.1 -M1 -N never -R hdrs -V id x@y",
    ];

    #[test]
    fn what_programs_pass() {
        for line in RECORDED {
            let parsed = of(line);
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(parsed.mode, Mode::Submit, "{line}");
            assert_eq!(parsed.from_header, words.contains(&"-t"), "{line}");
            assert_eq!(parsed.ignore_dots, words.contains(&"-i") || words.contains(&"-oi"), "{line}");
            assert_eq!(parsed.from_header, parsed.operands.is_empty(), "{line}");
        }
        assert_eq!(of(RECORDED[0]).full_name.as_deref(), Some("CronDaemon"));
        assert_eq!(of(RECORDED[7]).sender.as_deref(), Some("B"));
        assert_eq!(of(RECORDED[9]).sender.as_deref(), Some("B"));
        assert_eq!(of(RECORDED[10]).operands, ["R1", "R2"]);
        assert_eq!(of(RECORDED[14]).operands, ["DEST"]);
        assert_eq!(of(RECORDED[15]).operands, ["foo", "x@y"]);
        assert_eq!(of(RECORDED[7]).notify, Some(Notify { success: false, failure: true, delay: true }));
        let all = of(RECORDED[15]);
        assert_eq!(all.notify, Some(Notify::default()));
        assert_eq!((all.ret, all.envid.as_deref()), (Some(Ret::Headers), Some("id")));
    }

    #[test]
    fn modes() {
        for (line, mode) in [
            ("-bm x", Mode::Submit),
            ("-bs", Mode::Dialogue),
            ("-bp", Mode::List),
            ("-bi", Mode::Aliases),
            ("-I", Mode::Aliases),
            ("-bv x", Mode::Verify),
            ("-q", Mode::Flush(None)),
            ("-q30m", Mode::Flush(None)),
            ("-bd -q30m", Mode::Start),
            ("-bD", Mode::Run),
        ] {
            assert_eq!(of(line).mode, mode, "{line}");
        }
        assert_eq!(parse("mailq", &[]).unwrap().mode, Mode::List);
        assert_eq!(parse("newaliases", &[]).unwrap().mode, Mode::Aliases);
        let id = QueueId::from_u64(7);
        assert_eq!(of(&format!("-qI{id}")).mode, Mode::Flush(Some(id)));
        for line in [
            &["-bt"][..],
            &["-Z"],
            &["-f"],
            &["-qRx.test"],
            &["-Nsometimes"],
            &["-R", "half"],
            &["-V", ""],
            &["-qInonsense"],
        ] {
            let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
            assert!(parse("sendmail", &words).is_err(), "{line:?}");
        }
    }

    #[test]
    fn clusters_values_and_the_end_of_options() {
        let parsed = of("-ti root -fann -F Ann -- -x -");
        assert!(parsed.from_header && parsed.ignore_dots);
        assert_eq!(parsed.sender.as_deref(), Some("ann"));
        assert_eq!(parsed.operands, ["root", "-x", "-"]);
        let empty = parse("sendmail", &["-f".into(), String::new()]).unwrap();
        assert_eq!(empty.sender.as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn never_panics(words in proptest::collection::vec("-?\\PC{0,6}", 0..6)) {
            let _ = parse("sendmail", &words);
        }
    }
}
