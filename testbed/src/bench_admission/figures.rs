//! The table, the bars, and the comparison with an earlier run.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// How much worse a figure may be than the best that was seen before.
const TOLERANCE: f64 = 1.2;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub bar: Option<Bar>,
    /// How far apart the rounds were: the median's quarter below and above.
    pub spread: Option<(f64, f64)>,
    /// Whether runs on one machine can be compared: all but what its other guests have a say in.
    pub is_steady: bool,
    pub note: String,
}

#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, bar: None, spread: None, is_steady: false, note: String::new() }
    }

    /// The median of the rounds' ratios.
    pub fn ratio(name: impl Into<String>, rounds: Vec<f64>) -> Self {
        let (low, median, high) = quartiles(rounds);
        Self { spread: Some((low, high)), is_steady: true, ..Self::new(name, median, "x") }
    }

    /// One that runs can be compared by.
    #[must_use]
    pub fn steady(mut self) -> Self {
        self.is_steady = true;
        self
    }

    #[must_use]
    pub fn at_most(mut self, bar: f64) -> Self {
        self.bar = Some(Bar::AtMost(bar));
        self
    }

    #[must_use]
    pub fn at_least(mut self, bar: f64) -> Self {
        self.bar = Some(Bar::AtLeast(bar));
        self
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn is_met(&self) -> bool {
        match self.bar {
            None => true,
            Some(Bar::AtMost(bar)) => self.value <= bar,
            Some(Bar::AtLeast(bar)) => self.value >= bar,
        }
    }

    /// How much worse than `before`, as a factor.
    fn worse_than(&self, before: f64) -> f64 {
        match self.bar {
            Some(Bar::AtLeast(_)) => before / self.value,
            _ => self.value / before,
        }
    }
}

/// Lower quartile, median and upper quartile.
pub fn quartiles(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| values.get(values.len() * part / 4).copied().unwrap_or(f64::NAN);
    (at(1), at(2), at(3))
}

/// Prints the table; whether every bar is met and no figure is much worse than the best `before`.
pub fn report(figures: &[Figure], before: Option<&Value>) -> bool {
    println!("\n{:<46} {:>9}  {:<13} {:<11} {:<9}", "", "measured", "quartiles", "bar", "best yet");
    let mut good = true;
    for figure in figures {
        let spread = figure.spread.map(|(low, high)| format!("{low:.2}-{high:.2}")).unwrap_or_default();
        let bar = match figure.bar {
            None => String::new(),
            Some(Bar::AtMost(bar)) => format!("<= {bar}"),
            Some(Bar::AtLeast(bar)) => format!(">= {bar}"),
        };
        let known = before.and_then(|before| before[&figure.name].as_f64());
        let worse = known.filter(|known| figure.is_steady && figure.worse_than(*known) > TOLERANCE);
        let verdict = match (figure.is_met(), worse) {
            (false, _) => "MISSED",
            (true, Some(_)) => "WORSE",
            (true, None) if figure.bar.is_some() => "met",
            (true, None) => "",
        };
        good &= figure.is_met() && worse.is_none();
        let known = known.map(|known| format!("{known:.2}")).unwrap_or_default();
        let value = format!("{:.2}{}", figure.value, figure.unit);
        println!("{:<46} {value:>9}  {spread:<13} {bar:<11} {known:<9} {verdict:<7} {}", figure.name, figure.note);
    }
    good
}

/// The best figures of earlier runs.
pub fn read(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Keeps the best of each figure, so that what grows a little with each run shows in the end.
pub fn write(path: &Path, figures: &[Figure], before: Option<&Value>) -> Result<()> {
    let best = |figure: &Figure| {
        let known = before.and_then(|before| before[&figure.name].as_f64());
        known.filter(|known| figure.worse_than(*known) > 1.0).unwrap_or(figure.value)
    };
    let all: serde_json::Map<String, Value> =
        figures.iter().map(|figure| (figure.name.clone(), json!(best(figure)))).collect();
    let text = serde_json::to_string_pretty(&Value::Object(all))?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_kept_and_compared_with() {
        let figures = |ratio: f64, rate: f64, noise: f64| {
            vec![
                Figure::ratio("ratio", vec![ratio]),
                Figure::new("rate", rate, "").at_least(0.1).steady(),
                Figure::new("noise", noise, ""),
            ]
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.json");
        let check = |ratio, rate, noise, good: bool, kept: [f64; 3]| {
            let (figures, before) = (figures(ratio, rate, noise), read(&path).unwrap());
            assert_eq!(report(&figures, before.as_ref()), good, "{figures:?} after {before:?}");
            write(&path, &figures, before.as_ref()).unwrap();
            let [ratio, rate, noise] = kept;
            assert_eq!(read(&path).unwrap(), Some(json!({"ratio": ratio, "rate": rate, "noise": noise})));
        };
        check(1.0, 1.0, 5.0, true, [1.0, 1.0, 5.0]);
        check(1.15, 0.9, 50.0, true, [1.0, 1.0, 5.0]);
        check(1.15, 1.1, 5.0, true, [1.0, 1.1, 5.0]);
        check(1.25, 1.1, 5.0, false, [1.0, 1.1, 5.0]);
        check(1.0, 0.9, 4.0, false, [1.0, 1.1, 4.0]);
        check(0.9, 1.0, 4.0, true, [0.9, 1.1, 4.0]);
    }
}
