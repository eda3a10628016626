//! What came out, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::limits::Limit;
use crate::load::Workload;
use crate::measure::{Figures, median};
use crate::peers::project;
use crate::{Options, Point};

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// A figure: its name, how to take it, whether more is better.
type Column = (&'static str, fn(&Figures) -> f64);

const COLUMNS: [Column; 8] = [
    ("accepted_per_second", |f| f.accepted),
    ("delivered_per_second", |f| f.delivered),
    ("cpu_seconds_per_1000", |f| f.cpu),
    ("peak_rss_mib", |f| f.rss),
    ("final_reply_p50_ms", |f| f.p50),
    ("final_reply_p99_ms", |f| f.p99),
    ("final_reply_max_ms", |f| f.most),
    ("own_generator_per_second", |f| f.own_rate),
];

pub(crate) fn write(
    options: &Options,
    results: &BTreeMap<Point, [Vec<Figures>; 2]>,
    limits: &[Limit],
    load: [&str; 2],
) {
    let machine = machine();
    let date = said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]);
    let workloads: Vec<Value> = results.iter().map(|(point, both)| workload(point, both)).collect();
    let limits_json: Vec<Value> = limits
        .iter()
        .map(|l| {
            json!({"sessions": l.sessions, "files_per_second": l.files,
                   "files_and_directory_per_second": l.files_and_directory, "sink_per_second": l.sink})
        })
        .collect();
    let all = json!({
        "date": date, "machine": machine, "rounds": options.rounds, "quick": options.quick,
        "load_average": load, "limits": limits_json, "workloads": workloads,
    });
    let directory = project("target/bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("results.json"), format!("{all:#}\n")).unwrap();

    let mut text = format!(
        "{date}, {machine}; {} rounds by turns{}; load average before {}, after {}.\n\n",
        options.rounds,
        if options.quick { ", quick" } else { "" },
        load[0].trim(),
        load[1].trim(),
    );
    table(&mut text, results);
    text.push_str("\nWhat the machine allows, in the same run:\n\n");
    text.push_str(
        "| at once | files/s: create, write 4 KiB, fsync, rename | with fsync of the directory | \
         smtp-source straight into smtp-sink, messages/s |\n| ---: | ---: | ---: | ---: |\n",
    );
    for l in limits {
        writeln!(text, "| {} | {:.0} | {:.0} | {:.0} |", l.sessions, l.files, l.files_and_directory, l.sink)
            .unwrap();
    }
    println!("{text}");
    if options.document {
        document(&text);
    }
}

fn workload(point: &Point, both: &[Vec<Figures>; 2]) -> Value {
    let system = |rounds: &Vec<Figures>| {
        let mut object = serde_json::Map::new();
        for (name, take) in COLUMNS {
            let (low, middle, high) = spread(rounds, take);
            object.insert(name.into(), json!({"median": middle, "min": low, "max": high}));
        }
        Value::Object(object)
    };
    let mut ratio = serde_json::Map::new();
    for (name, take) in COLUMNS {
        ratio.insert(name.into(), json!(spread(&both[0], take).1 / spread(&both[1], take).1));
    }
    json!({
        "name": point.workload.name(), "sessions": point.sessions, "size": point.size,
        "messages_per_session": if point.long { "many" } else { "one" },
        "postern": system(&both[0]), "postfix": system(&both[1]), "ratio_to_postfix": ratio,
    })
}

fn table(text: &mut String, results: &BTreeMap<Point, [Vec<Figures>; 2]>) {
    text.push_str(
        "| workload | messages a session | at once | KiB | messages/s accepted: Postern | Postfix | ratio | \
         until the last is delivered: Postern | Postfix | ratio | CPU s per 1000: Postern | Postfix | \
         final reply ms p50/p99: Postern | Postfix | RSS MiB: Postern | Postfix |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
         | ---: |\n",
    );
    for (point, both) in results {
        let of = |n: usize, take: fn(&Figures) -> f64| spread(&both[n], take);
        let rate = |n: usize, take| {
            let (low, middle, high) = of(n, take);
            format!("{middle:.0} ({low:.0}–{high:.0})")
        };
        let ratio = |take| format!("{:.1}", of(0, take).1 / of(1, take).1);
        let held = point.workload == Workload::Hold;
        let timed = !matches!(point.workload, Workload::Fanout | Workload::Sendmail);
        let reply = |n| match timed {
            true => format!("{:.2}/{:.2}", of(n, |f| f.p50).1, of(n, |f| f.p99).1),
            false => "–".into(),
        };
        let delivered = |n| if held { "–".to_owned() } else { rate(n, |f| f.delivered) };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | **{}** | {} | {} | **{}** | {:.2} | {:.2} | {} | {} | {:.0} | {:.0} |",
            point.workload.name(),
            if point.long { "many" } else { "one" },
            point.sessions,
            point.size / 1024,
            rate(0, |f| f.accepted),
            rate(1, |f| f.accepted),
            ratio(|f| f.accepted),
            delivered(0),
            delivered(1),
            if held { "–".to_owned() } else { ratio(|f| f.delivered) },
            of(0, |f| f.cpu).1,
            of(1, |f| f.cpu).1,
            reply(0),
            reply(1),
            of(0, |f| f.rss).1,
            of(1, |f| f.rss).1,
        )
        .unwrap();
    }
}

/// Least, median, most.
fn spread(rounds: &[Figures], take: fn(&Figures) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = rounds.iter().map(take).collect();
    values.sort_by(f64::total_cmp);
    (median(&values, 0.0), median(&values, 0.5), median(&values, 1.0))
}

/// Puts the text between the marks.
fn document(text: &str) {
    let path = project("docs/performance.md");
    let old = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("docs/performance.md has the mark of the table");
    let (_, after) = rest.split_once(END).expect("docs/performance.md has the mark of the table's end");
    std::fs::write(&path, format!("{before}{BEGIN}\n{text}{END}{after}")).unwrap();
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism().unwrap();
    let kernel = said("uname", &["-r"]);
    let postfix = said("postconf", &["-dh", "mail_version"]);
    let directory = std::env::temp_dir();
    let system = said("stat", &["-f", "-c", "%T", &directory.display().to_string()]);
    format!(
        "{cores} cores of {}, Linux {kernel}, {system}, Postfix {postfix}",
        model.trim_matches([':', ' ', '\t'])
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
