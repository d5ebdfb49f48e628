//! Progress on standard error: a bar on a terminal, a line every few seconds elsewhere, JSON lines with `--json`.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{self, inert};
use super::units;
use crate::monitor::{Monitor, Unit};
use crate::report::inert::inert_json;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// A bar on a terminal, plain lines elsewhere
    Auto,
    /// A line every few seconds
    Plain,
    /// Nothing
    None,
}

/// Between two plain or JSON lines.
const EVERY: Duration = Duration::from_secs(5);

enum Form {
    Bar,
    Plain,
    Json,
    Silent,
}

/// Draws what the library tells.
pub struct Progress {
    form: Form,
    bar: Mutex<ProgressBar>,
    done: AtomicU64,
    state: Mutex<State>,
}

struct State {
    stage: &'static str,
    unit: Unit,
    total: Option<u64>,
    said: Instant,
}

impl Progress {
    pub fn new(style: Style, json: bool, quiet: bool) -> Self {
        let form = match style {
            _ if json => Form::Json,
            Style::None => Form::Silent,
            _ if quiet => Form::Silent,
            Style::Plain => Form::Plain,
            Style::Auto if std::io::stderr().is_terminal() => Form::Bar,
            Style::Auto => Form::Plain,
        };
        let state = State { stage: "", unit: Unit::Objects, total: None, said: Instant::now() };
        Self { form, bar: Mutex::new(ProgressBar::hidden()), done: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn say(&self, state: &State) {
        let done = self.done.load(Ordering::Relaxed);
        match self.form {
            Form::Json => {
                let line = serde_json::json!({ "type": "progress", "stage": state.stage, "unit": unit(state.unit),
                    "done": done, "total": state.total });
                output::print(inert_json(&line));
            }
            Form::Plain => {
                let amount = |n| if state.unit == Unit::Bytes { units::bytes(n) } else { units::count(n) };
                let of = state.total.map(|total| format!(" of {}", amount(total))).unwrap_or_default();
                output::complain(format!("{}: {}{of}", state.stage, amount(done)));
            }
            Form::Bar | Form::Silent => {}
        }
    }

    /// Takes the bar away before results are printed.
    pub fn finish(&self) {
        if let Ok(bar) = self.bar.lock() {
            bar.finish_and_clear();
        }
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "bytes",
        Unit::Rows => "rows",
        Unit::Objects => "objects",
    }
}

impl Monitor for Progress {
    fn stage(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        self.done.store(0, Ordering::Relaxed);
        if let Ok(mut state) = self.state.lock() {
            *state = State { stage: name, unit, total, said: Instant::now() };
        }
        if matches!(self.form, Form::Bar)
            && let Ok(mut bar) = self.bar.lock()
        {
            bar.finish_and_clear();
            let template = match unit {
                Unit::Bytes => "{prefix:10} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                Unit::Rows | Unit::Objects => "{prefix:10} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}",
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            *bar = ProgressBar::new(total.unwrap_or(0)).with_style(style).with_prefix(name);
        }
    }

    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
        match self.form {
            Form::Bar => {
                if let Ok(bar) = self.bar.lock() {
                    bar.inc(amount);
                }
            }
            Form::Plain | Form::Json => {
                if let Ok(mut state) = self.state.try_lock()
                    && state.said.elapsed() >= EVERY
                {
                    state.said = Instant::now();
                    self.say(&state);
                }
            }
            Form::Silent => {}
        }
    }

    fn warn(&self, message: &str) {
        match self.form {
            Form::Json => output::print(inert_json(&serde_json::json!({ "type": "warning", "message": message }))),
            _ => {
                let line = format!("restante: warning: {}", inert(message));
                if let Ok(bar) = self.bar.lock() {
                    bar.suspend(|| output::complain(&line));
                }
            }
        }
    }
}

/// `-v` shows Restante's own steps, `-vv` those of its libraries too. Never the content of a message.
pub fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "off",
        1 => "restante=info",
        2 => "restante=debug,info",
        _ => "restante=trace,debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("RESTANTE_LOG").unwrap_or_else(|_| default.into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
