//! The drawings of a report. What is written beside them is HTML, so that it stays readable at any width.

use std::fmt::Write as _;

use super::super::record::{Phase, Record, Verdict, objective, seconds};
use super::{date, escape};
use crate::list::time;

/// Units of a drawing, which is as wide as there is room.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 150.0;
/// The lowest column that can be seen.
const LOWEST: f64 = 4.0;

/// The phases one after the other, as bars on one scale of time.
pub(super) fn phases(phases: &[Phase]) -> String {
    let total: f64 = phases.iter().map(|phase| phase.seconds).sum::<f64>().max(0.001);
    let mut at = 0.0;
    let mut drawn = String::new();
    for phase in phases {
        let width = (phase.seconds / total * WIDTH).max(3.0);
        let x = (at / total * WIDTH).min(WIDTH - width);
        let _ = write!(
            drawn,
            "<span class=\"name\">{name}</span><span class=\"took\">{took}</span><svg viewBox=\"0 0 {WIDTH} 18\" \
             preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}: {took}\"><rect x=\"{x:.1}\" y=\"0\" \
             width=\"{width:.1}\" height=\"18\" fill=\"{fill}\"/></svg>",
            fill = if phase.counts { "var(--bar)" } else { "var(--side)" },
            name = escape(&phase.name),
            took = escape(&seconds(phase.seconds)),
        );
        at += phase.seconds;
    }
    format!(
        "<div class=\"phases\">{drawn}</div><p class=\"legend\"><span><i style=\"background:var(--bar)\"></i>part of the time \
         to recover</span><span><i style=\"background:var(--side)\"></i>checks</span><span>{} in all</span></p>",
        escape(&seconds(total))
    )
}

/// The time to recover of each drill so far, as columns; a failed one is a column of its own colour, however high.
#[expect(clippy::cast_precision_loss, reason = "a drawing")]
pub(super) fn history(drills: &[&Record]) -> String {
    let wanted = drills.last().and_then(|drill| drill.rto_objective_seconds);
    let longest = drills.iter().filter_map(|drill| drill.rto_seconds).fold(0.001, f64::max);
    // One far above all columns would make them as flat as the line they stand on.
    let drawn_objective = wanted.filter(|wanted| *wanted < longest * 3.0);
    let highest = drawn_objective.map_or(longest, |wanted| wanted.max(longest)) * 1.05;
    let step = WIDTH / drills.len().max(10) as f64;
    let mut drawn = String::new();
    for (number, drill) in drills.iter().enumerate() {
        let height = drill.rto_seconds.map_or(LOWEST, |rto| (rto / highest * HEIGHT).max(LOWEST));
        let passed = drill.verdict == Verdict::Passed;
        let _ = write!(
            drawn,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"><title>{title}</title>\
             </rect>",
            x = (number as f64 + 0.15) * step,
            y = HEIGHT - height,
            width = step * 0.7,
            fill = if passed { "var(--good)" } else { "var(--bad)" },
            title = escape(&format!(
                "{}: {}, {}",
                time(drill.started),
                if passed { "passed" } else { "failed" },
                objective(drill.rto_seconds, drill.rto_objective_seconds)
            )),
        );
    }
    if let Some(wanted) = drawn_objective {
        let y = HEIGHT - wanted / highest * HEIGHT;
        let _ = write!(
            drawn,
            "<line x1=\"0\" y1=\"{y:.1}\" x2=\"{WIDTH}\" y2=\"{y:.1}\" stroke=\"var(--ink)\" stroke-dasharray=\"6 4\" \
             vector-effect=\"non-scaling-stroke\"/>"
        );
    }
    let where_it_is = if drawn_objective.is_some() { "dashed: " } else { "" };
    let limit = wanted.map_or_else(String::new, |wanted| {
        format!("<span>{where_it_is}the objective of this drill, {}</span>", escape(&seconds(wanted)))
    });
    let ends = [drills.first(), drills.last()].map(|drill| drill.map_or_else(String::new, |drill| date(drill.started)));
    let last = if drills.len() < 10 { String::new() } else { format!("<span>{}</span>", ends[1]) };
    format!(
        "<div class=\"history\"><div class=\"axis\"><span>{top}</span><span>{half}</span><span>0</span></div>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Time to recover of each \
         drill\"><rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"var(--faint)\"/>{drawn}</svg>\
         <div class=\"dates\"><span>{first}</span>{last}</div></div><p class=\"legend\"><span><i \
         style=\"background:var(--good)\"></i>passed</span><span><i style=\"background:var(--bad)\"></i>failed</span>{limit}\
         </p>",
        top = escape(&seconds(highest)),
        half = escape(&seconds(highest / 2.0)),
        first = ends[0],
    )
}
