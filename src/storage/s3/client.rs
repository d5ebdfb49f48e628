//! How the S3 client is set up: credentials, region, TLS roots, proxies, timeouts and retries.

use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction, RetryConfig};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::ExposeSecret;

use crate::storage::{S3Location, StorageError};

pub(super) async fn client(location: &S3Location) -> Result<Client, StorageError> {
    let failed = |message: String| StorageError::Failed {
        address: location.to_string(),
        doing: "set up the connection".into(),
        message,
    };
    let retries =
        RetryConfig::standard().with_max_attempts(location.attempts).with_initial_backoff(Duration::from_millis(250));
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client(location).map_err(failed)?)
        .retry_config(retries)
        .timeout_config(timeouts())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(profile) = &location.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(keys) = &location.credentials {
        let secret = keys.secret_key.expose_secret();
        loader = loader.credentials_provider(Credentials::new(&keys.access_key, secret, None, None, "restante"));
    }
    if let Some(region) = &location.region {
        loader = loader.region(Region::new(region.clone()));
    } else if location.endpoint.is_some() {
        // Most servers do not care. Asking the instance for its region, as the chain would, only costs time there.
        let mut profile = ProfileFileRegionProvider::builder();
        if let Some(name) = &location.profile {
            profile = profile.profile_name(name);
        }
        let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new());
        loader = loader.region(chain.or_else(profile.build()).or_else("us-east-1"));
    }
    let shared = loader.load().await;
    if shared.region().is_none() {
        return Err(failed("no region is known: add region=… to the address, or set AWS_REGION".into()));
    }
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(location.path_style)
        .retry_classifier(ConflictIsTransient);
    if let Some(endpoint) = &location.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// For requests that send nothing large. A body that stalls while it is read is the SDK's own concern: it gives
/// up below one byte a second.
fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60))
        .operation_attempt_timeout(Duration::from_secs(90))
        .build()
}

/// The time to the first byte of the answer includes sending 64 MiB here: 20 minutes are a link of 0.45 Mbit/s. A stalled
/// upload is noticed long before.
pub(super) fn put_timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(1200))
        .operation_attempt_timeout(Duration::from_secs(1230))
        .build()
}

/// 409 ConditionalRequestConflict: another creation of the same name is under way, and Amazon asks to try again.
#[derive(Debug)]
struct ConflictIsTransient;

impl ClassifyRetry for ConflictIsTransient {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response() {
            Some(response) if response.status().as_u16() == 409 => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "conflict is transient"
    }
}

/// The HTTP client for S3 and for the credential chain: proxies from the environment (`HTTPS_PROXY`, `NO_PROXY`), roots of
/// the system and of the CA bundle.
fn http_client(location: &S3Location) -> Result<SharedHttpClient, String> {
    let context =
        TlsContext::builder().with_trust_store(trust_store(location)?).build().map_err(|error| error.to_string())?;
    // Hidden from the crate's documentation, but the only way to get a proxy *and* one pool of connections per set of
    // timeouts; `Builder::build_https` knows no proxies (aws-smithy-http-client 1.5).
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder().proxy_config(ProxyConfig::from_env());
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context.clone()).build()
    }))
}

/// May be empty for plain HTTP.
fn trust_store(location: &S3Location) -> Result<TrustStore, String> {
    // The client asserts that the system has some, so it is looked at here first.
    let system = !rustls_native_certs::load_native_certs().certs.is_empty();
    let mut store = TrustStore::empty().with_native_roots(system);
    let bundle = location.ca_bundle.clone().or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(Into::into));
    let Some(bundle) = bundle.filter(|path| !path.as_os_str().is_empty()) else {
        if !system && location.endpoint.as_ref().is_none_or(|endpoint| endpoint.starts_with("https:")) {
            return Err(
                "this host has no certificate authorities: install ca-certificates or add ca_bundle=FILE".into()
            );
        }
        return Ok(store);
    };
    let pem = std::fs::read(&bundle)
        .map_err(|error| format!("the CA bundle {} cannot be read: {error}", bundle.display()))?;
    // The client panics on a bundle that it cannot parse, so every certificate is parsed here first.
    let mut parsed = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| parsed.add(certificate).map_err(|error| error.to_string()))
            .map_err(|error| {
                format!("the CA bundle {} has a certificate that cannot be read: {error}", bundle.display())
            })?;
    }
    if parsed.is_empty() {
        return Err(format!("the CA bundle {} holds no certificate in PEM form", bundle.display()));
    }
    store.add_pem_certificate(pem);
    Ok(store)
}
