//! The kinds of place that the suite runs against. Each call makes a fresh one.

use std::sync::Arc;

use restante::storage::{Location, Storage, open};

pub struct Place {
    pub storage: Arc<dyn Storage>,
    _directory: Option<tempfile::TempDir>,
}

#[cfg(feature = "s3")]
impl Place {
    pub fn of(storage: Arc<dyn Storage>) -> Self {
        Self { storage, _directory: None }
    }
}

pub async fn directory() -> Option<Place> {
    let above = tempfile::tempdir().unwrap();
    let storage = open(&Location::Directory(above.path().join("repository"))).await.unwrap();
    Some(Place { storage, _directory: Some(above) })
}

/// The whole bucket, with small pages so that listings have several.
#[cfg(feature = "s3")]
pub async fn in_process_s3() -> Option<Place> {
    let server = crate::s3_server::server();
    let location = server.fresh_bucket();
    server.bucket(&location, |bucket| bucket.page_size = 3);
    Some(Place::of(open(&Location::S3(location)).await.unwrap()))
}

/// A prefix of a bucket.
#[cfg(feature = "s3")]
pub async fn seaweedfs() -> Option<Place> {
    let location = crate::seaweedfs::fresh_prefix().await?;
    Some(Place::of(open(&Location::S3(location)).await.unwrap()))
}
