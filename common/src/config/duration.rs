//! Lengths of time as people write them.

use std::time::Duration;

/// Reads a number of seconds, or a number with one of the units PostgreSQL's settings know: `ms s min h d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || "expected a length of time above zero, such as 60, \"60s\" or \"5min\"".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| problem())?;
    let milliseconds = match unit.trim_start() {
        "ms" => 1,
        "" | "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(problem()),
    };
    match number.checked_mul(milliseconds) {
        Some(total @ 1..=31_536_000_000) => Ok(Duration::from_millis(total)),
        _ => Err(problem()),
    }
}
