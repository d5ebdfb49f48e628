//! Checkpoints of a run, for the run that comes after it should this one be cut short.

use std::time::Duration;

use super::layout::Layout;
use super::pipeline::{Finished, describe};
use crate::monitor::SharedMonitor;
use crate::postgres::catalog::Catalog;
use crate::repository::RepositoryError;
use crate::repository::checkpoint::{Checkpoint, CheckpointTable, CheckpointWriter};
use crate::repository::reader::run_blocking;
use crate::repository::writer::ChunkSink;

pub struct Progress<'a> {
    pub writer: CheckpointWriter<'a>,
    /// Without tables.
    pub next: Checkpoint,
}

/// What is done.
pub struct Done<'a> {
    pub catalog: &'a Catalog,
    pub layout: &'a Layout,
    pub finished: &'a Finished,
}

impl Progress<'_> {
    /// Writes a checkpoint now and then, for ever. That one cannot be written is no reason to stop.
    pub async fn keep(&mut self, every: Duration, done: &Done<'_>, sink: &ChunkSink, monitor: &SharedMonitor) {
        loop {
            tokio::time::sleep(every).await;
            let flushing = sink.clone();
            let written = async {
                // What is finished now is on its way before the checkpoint is.
                let tables = done.tables();
                run_blocking(move || flushing.flush()).await?;
                self.write(tables).await
            };
            if let Err(error) = written.await {
                monitor.warn(&format!("no checkpoint could be written: {error}"));
            }
        }
    }

    /// Writes one with what was finished since the last.
    pub async fn end(&mut self, done: &Done<'_>) -> Result<(), RepositoryError> {
        self.write(done.tables()).await
    }

    async fn write(&mut self, tables: Vec<CheckpointTable>) -> Result<(), RepositoryError> {
        // Without a marker nobody could believe it.
        if tables.is_empty() || self.next.server.marker.is_none() {
            return Ok(());
        }
        self.next.tables = tables;
        self.writer.write(&self.next).await
    }
}

impl Done<'_> {
    /// The segments that were finished since the last call, by table.
    fn tables(&self) -> Vec<CheckpointTable> {
        let mut tables: Vec<CheckpointTable> = Vec::new();
        let mut done = self.finished.take();
        done.sort_by_key(|(position, number, _)| (*position, *number));
        for same in done.chunk_by(|one, other| one.0 == other.0) {
            let Some((position, ..)) = same.first() else { continue };
            let table = describe(self.catalog, &self.layout.tables[*position], self.layout.block_size);
            let segments = same.iter().map(|(_, number, entry)| (*number, entry.clone())).collect();
            tables.push(CheckpointTable { table, segments });
        }
        tables
    }
}
