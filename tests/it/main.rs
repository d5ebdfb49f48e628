#[cfg(feature = "s3")]
mod s3_server;
#[cfg(feature = "s3")]
mod seaweedfs;
mod storage;
