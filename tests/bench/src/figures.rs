//! What came out of a round: numbers by name.

use std::collections::BTreeMap;

use serde_json::Value;

/// Messages a second until the generator had its last reply.
pub(crate) const ACCEPTED: &str = "accepted_per_second";
/// Messages (or recipients) a second until the last was delivered.
pub(crate) const DELIVERED: &str = "delivered_per_second";
/// CPU seconds of the whole system for 1,000 messages: see [`crate::cgroup`].
pub(crate) const CPU: &str = "cpu_seconds_per_1000";
/// Most resident memory of all processes together; pages that are shared count in each.
pub(crate) const RSS: &str = "peak_rss_mib";
/// The final reply, in milliseconds.
pub(crate) const P50: &str = "final_reply_p50_ms";
pub(crate) const P99: &str = "final_reply_p99_ms";
pub(crate) const MOST: &str = "final_reply_max_ms";
/// Messages a second that our own generator got accepted.
pub(crate) const OWN: &str = "own_generator_per_second";
/// System calls of the tree for a message: those that wait for the disk, and the others.
pub(crate) const SYNCS: &str = "syncs_per_message";
pub(crate) const SYSCALLS: &str = "syscalls_per_message";
pub(crate) const SWITCHES: &str = "context_switches_per_message";
/// Clients a second that were greeted.
pub(crate) const GREETED: &str = "greeted_per_second";
/// Memory of the tree in which a page that n processes share counts a n-th in each.
pub(crate) const PSS: &str = "pss_mib";
/// From the start to the first 250 for a message, and until it was delivered.
pub(crate) const STARTED: &str = "start_to_accepted_s";
pub(crate) const STARTED_DELIVERED: &str = "start_to_delivered_s";

/// Numbers by name.
pub(crate) type Figures = BTreeMap<String, f64>;

/// From what a round printed.
pub(crate) fn from_json(text: &str) -> Option<Figures> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
    object.into_iter().map(|(name, value)| Some((name, value.as_f64()?))).collect()
}

/// Messages a second that are a load for a system which did this. Where delivering is much slower than
/// accepting it counts, so that a round comes to its end.
pub(crate) fn rate(figures: &Figures) -> Option<f64> {
    let accepted = *figures.get(ACCEPTED)?;
    Some(figures.get(DELIVERED).map_or(accepted, |delivered| accepted.min(3.0 * delivered)))
}

/// The value below which that part of the sorted values lies; none when there are none.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}

/// Least, median and most of a figure over rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

pub(crate) fn spread(rounds: &[Figures], name: &str) -> Option<Spread> {
    let mut values: Vec<f64> = rounds.iter().filter_map(|figures| figures.get(name).copied()).collect();
    values.sort_by(f64::total_cmp);
    Some(Spread { least: *values.first()?, median: quantile(&values, 0.5)?, most: *values.last()? })
}
