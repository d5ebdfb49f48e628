//! What a monitoring system reads: `--metrics FILE`, in the OpenMetrics text format, as node_exporter's textfile collector takes it. Written at the end of a
//! command, however it ended, so that a file that is old is an alarm too.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use prometheus_client::encoding::text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::exit::Exit;

type Labels = Vec<(String, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// The file of one of several stores: `restante.prom` is `restante-NAME.prom`.
pub fn of(path: &Path, store: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{store}{ending}"))
}

/// Collects while a command runs.
#[derive(Default)]
pub struct Metrics(Mutex<Vec<(&'static str, &'static str, Gauges)>>);

impl Metrics {
    /// The value of a gauge. `name` without `restante_`.
    pub fn set(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        if !all.iter().any(|(known, ..)| *known == name) {
            all.push((name, help, Gauges::default()));
        }
        if let Some((.., gauges)) = all.iter().find(|(known, ..)| *known == name) {
            gauges.get_or_create(&labels).set(value);
        }
    }

    /// The same of an instant.
    pub fn at(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)], at: Timestamp) {
        self.set(name, help, labels, at.as_second() as f64);
    }

    /// Adds how the command ended, and replaces the file.
    pub fn write(&self, path: &Path, command: &str, exit: Exit, took: Duration) -> anyhow::Result<()> {
        let labels = [("command", command)];
        self.at("last_run_timestamp_seconds", "When the command ended", &labels, Timestamp::now());
        self.set("last_run_exit_code", "0 done, 3 done with findings, else it failed", &labels, exit.code().into());
        self.set("last_run_duration_seconds", "How long the command took", &labels, took.as_secs_f64());
        let mut registry = Registry::with_prefix("restante");
        for (name, help, gauges) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            registry.register(*name, *help, gauges.clone());
        }
        let mut shown = String::new();
        text::encode(&mut shown, &registry)?;
        let fail = || format!("--metrics: cannot write {}", path.display());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(fail)?;
        file.write_all(shown.as_bytes()).with_context(fail)?;
        // The collector is somebody else.
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).with_context(fail)?;
        file.persist(path).with_context(fail)?;
        Ok(())
    }
}
