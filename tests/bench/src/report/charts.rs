//! Bar charts of the figures that people ask for first, as SVG: `docs/charts`.

use std::fmt::Write as _;

use crate::cell::{Cell, Workload};
use crate::figures::{ACCEPTED, CPU, DELIVERED, P99, RSS};
use crate::machine::project;
use crate::peers::Name;
use crate::rounds::Results;

struct Chart {
    file: &'static str,
    title: &'static str,
    figure: &'static str,
    of: fn(Cell) -> bool,
}

const CHARTS: [Chart; 5] = [
    Chart { file: "accepted", title: "Accepted, messages/s", figure: ACCEPTED, of: held },
    Chart {
        file: "delivered",
        title: "Until the last is delivered, recipients/s",
        figure: DELIVERED,
        of: some,
    },
    Chart { file: "p99", title: "Final reply, p99 in ms (less is better)", figure: P99, of: some },
    Chart { file: "cpu", title: "CPU seconds for 1,000 deliveries (less is better)", figure: CPU, of: some },
    Chart { file: "memory", title: "Memory under load, MiB (less is better)", figure: RSS, of: some },
];

/// Writes them, and returns the lines that show them.
pub(crate) fn write(results: &Results, systems: &[Name]) -> String {
    let directory = project("docs/charts");
    std::fs::create_dir_all(&directory).unwrap();
    let mut text = String::new();
    for chart in CHARTS {
        let groups = groups(&chart, results, systems);
        if !groups.is_empty() {
            std::fs::write(directory.join(format!("{}.svg", chart.file)), svg(chart.title, &groups)).unwrap();
            writeln!(text, "![{}](charts/{}.svg)\n", chart.title, chart.file).unwrap();
        }
    }
    text
}

/// Bars that belong together.
struct Group {
    title: String,
    bars: Vec<(Name, f64)>,
}

fn held(cell: Cell) -> bool {
    cell.workload == Workload::Hold && cell.long && cell.size == 4096
}

fn some(cell: Cell) -> bool {
    let usual = matches!(cell.workload, Workload::Relay | Workload::Maildir) && cell.sessions != 200;
    let also = matches!(
        cell.workload,
        Workload::LmtpSink | Workload::LmtpDovecot | Workload::Far | Workload::FarChunks
    ) && cell.sessions == 10
        || matches!(cell.workload, Workload::Fanout | Workload::Sendmail);
    (usual || also) && cell.long && cell.size == 4096
}

fn groups(chart: &Chart, results: &Results, systems: &[Name]) -> Vec<Group> {
    let cells = results.cells.iter().filter(|measured| (chart.of)(measured.cell));
    let group = cells.map(|measured| {
        let bar = |name: &Name| Some((*name, measured.median(*name, chart.figure)?));
        Group { title: measured.cell.title(), bars: systems.iter().filter_map(bar).collect() }
    });
    group.filter(|group| !group.bars.is_empty()).collect()
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const LENGTH: f64 = 500.0;
const BAR: f64 = 16.0;
const GAP: f64 = 10.0;

fn svg(title: &str, groups: &[Group]) -> String {
    let most = groups.iter().flat_map(|g| &g.bars).map(|(_, value)| *value).fold(0.0, f64::max);
    let bars: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = 40.0 + bars as f64 * BAR + groups.len() as f64 * GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n"
    );
    let mut y = 40.0;
    for group in groups {
        for (n, (name, value)) in group.bars.iter().enumerate() {
            let base = y + BAR - 4.0;
            if n == 0 {
                let x = LEFT - 75.0;
                writeln!(svg, "<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{}</text>", group.title)
                    .unwrap();
            }
            let length = (value / most * LENGTH).max(1.0);
            let (of, ends, color) = (LEFT - 6.0, LEFT + length + 5.0, color(*name));
            let shown = if *value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
            writeln!(
                svg,
                "<text x=\"{of}\" y=\"{base}\" text-anchor=\"end\" fill=\"#555555\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/>\
                 <text x=\"{ends:.1}\" y=\"{base}\">{shown}</text>",
                name.title(),
                BAR - 3.0,
            )
            .unwrap();
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn color(name: Name) -> &'static str {
    match name {
        Name::Postern => "#b5482a",
        Name::Postfix => "#4a6fa5",
        Name::Exim => "#5f8a5a",
        Name::OpenSmtpd => "#8d6aa8",
        Name::Chasquid => "#a89a4a",
    }
}
