//! What the many ways in which S3 says no mean to us.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::S3;
use crate::storage::{ObjectName, Storage, StorageError};

pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// The code that the server gave, such as `NoSuchKey`. Answers to HEAD have none.
pub(super) fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

/// 416 tells the size of the object: `Content-Range: bytes */42`.
pub(super) fn size_of_unsatisfied_range<E>(error: &SdkError<E, HttpResponse>) -> Option<u64> {
    error.raw_response()?.headers().get("content-range")?.strip_prefix("bytes */")?.parse().ok()
}

/// The error and its causes in one line, each once. Only `Display`: what `Debug` would show may hold headers.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    // Some causes have lines of their own; the SDK's name for "nothing came back" tells nobody anything.
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("dispatch failure: ").map(str::to_owned).unwrap_or(line)
}

impl S3 {
    pub(super) fn error<E>(
        &self,
        doing: String,
        name: Option<&ObjectName>,
        error: &SdkError<E, HttpResponse>,
    ) -> StorageError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let address = self.address();
        let Some(response) = error.raw_response() else { return unanswered(address, doing, error) };
        let status = response.status().as_u16();
        let region = response.headers().get("x-amz-bucket-region");
        let code = code(error).unwrap_or_default();
        let said = error.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or_default();
        let answer = format!("{status} {code} {said}").trim_end().to_owned();
        let message = |advice: &str| if advice.is_empty() { answer.clone() } else { format!("{advice} ({answer})") };

        // A region in the answer with a redirect or a refused signature: the bucket lives elsewhere.
        if matches!(
            code,
            "PermanentRedirect"
                | "TemporaryRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
        ) || matches!(status, 301 | 302 | 307 | 308)
            || (status == 400 && code.is_empty() && region.is_some())
        {
            let advice = match region {
                Some(region) => format!("the bucket is in region {region}: put region={region} into the address"),
                None => {
                    "the bucket is in another region or at another endpoint: correct region= or endpoint=".to_owned()
                }
            };
            return StorageError::Failed { address, doing, message: message(&advice) };
        }
        match (status, code) {
            (_, "NoSuchBucket") => {
                let advice = "the bucket does not exist: create it, or correct the address";
                StorageError::Failed { address, doing, message: message(advice) }
            }
            (_, "NoSuchKey") | (404, _) => match name {
                Some(name) => StorageError::NotFound { name: name.clone(), address },
                None => StorageError::Failed { address, doing, message: message("") },
            },
            (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded" | "InsufficientStorage" | "XAmzStorageFull") => {
                StorageError::Full { address }
            }
            (_, "SignatureDoesNotMatch") => {
                let advice = "the secret key is wrong, or a proxy changes the requests";
                StorageError::Denied { address, doing, message: message(advice) }
            }
            (_, "InvalidAccessKeyId" | "InvalidToken") => {
                StorageError::Denied { address, doing, message: message("the server does not know the access key") }
            }
            (_, "ExpiredToken") => {
                StorageError::Denied { address, doing, message: message("the credentials have expired: get new ones") }
            }
            (_, "RequestTimeTooSkewed") => {
                let advice = "the clocks of this host and of the server differ: correct them";
                StorageError::Denied { address, doing, message: message(advice) }
            }
            (401 | 403, "") => {
                let advice =
                    "the keys are wrong or lack a right (without s3:ListBucket a missing object is answered so, too)";
                StorageError::Denied { address, doing, message: message(advice) }
            }
            (401 | 403, _) => StorageError::Denied { address, doing, message: message("") },
            // What the SDK tried again in vain: throttling, a server in trouble, a rival that creates the same name.
            (408 | 409 | 412 | 429 | 500..=506 | 508..=599, _) if code != "NotImplemented" => {
                StorageError::Unreachable { address, doing, message: message("the server asked to try again later") }
            }
            _ => StorageError::Failed { address, doing, message: message("") },
        }
    }
}

/// A refused deletion because of retention. There is no code for it that all servers share, only words: Amazon's "protected by object
/// lock", MinIO's "WORM protected", others' "retention".
pub(super) fn is_locked<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let said =
        error.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or_default().to_ascii_lowercase();
    matches!(status(error), Some(400 | 403))
        && ["object lock", "locked", "worm", "retention"].iter().any(|words| said.contains(words))
}

/// No answer came: the request could not be made, or nobody was there.
fn unanswered<E: Error + 'static>(address: String, doing: String, error: &SdkError<E, HttpResponse>) -> StorageError {
    let message = chain(error);
    let lower = message.to_ascii_lowercase();
    if lower.contains("certificate") {
        let message =
            format!("the server's certificate is not trusted; for a private authority add ca_bundle=FILE ({message})");
        return StorageError::Failed { address, doing, message };
    }
    if lower.contains("credential") || lower.contains("identity") {
        let advice =
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or add profile=NAME, or give the instance a role";
        return StorageError::Denied { address, doing, message: format!("no credentials: {advice} ({message})") };
    }
    match error {
        SdkError::ConstructionFailure(_) => StorageError::Failed { address, doing, message },
        _ => StorageError::Unreachable { address, doing, message },
    }
}
