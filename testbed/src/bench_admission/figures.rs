//! The table, the bars, and the comparison with an earlier run.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// How much worse a ratio may be than in the run before.
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
    /// Whether it says the same on every machine, so that runs can be compared.
    pub is_ratio: bool,
    pub note: String,
}

#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, bar: None, spread: None, is_ratio: false, note: String::new() }
    }

    /// The median of the rounds' ratios.
    pub fn ratio(name: impl Into<String>, rounds: Vec<f64>) -> Self {
        let (low, median, high) = quartiles(rounds);
        Self { spread: Some((low, high)), is_ratio: true, ..Self::new(name, median, "x") }
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

/// Prints the table; whether every bar is met and no ratio is much worse than `before`.
pub fn report(figures: &[Figure], before: Option<&Value>) -> bool {
    println!("\n{:<46} {:>9}  {:<13} {:<11} {:<9}", "", "measured", "quartiles", "bar", "before");
    let mut good = true;
    for figure in figures {
        let spread = figure.spread.map(|(low, high)| format!("{low:.2}-{high:.2}")).unwrap_or_default();
        let bar = match figure.bar {
            None => String::new(),
            Some(Bar::AtMost(bar)) => format!("<= {bar}"),
            Some(Bar::AtLeast(bar)) => format!(">= {bar}"),
        };
        let known = before.and_then(|before| before[&figure.name].as_f64());
        let worse = known.filter(|known| figure.is_ratio && figure.worse_than(*known) > TOLERANCE);
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

/// The figures of an earlier run.
pub fn read(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

pub fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let all: serde_json::Map<String, Value> =
        figures.iter().map(|figure| (figure.name.clone(), json!(figure.value))).collect();
    let text = serde_json::to_string_pretty(&Value::Object(all))?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}
