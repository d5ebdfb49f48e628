//! TLS to a PostgreSQL server on rustls, with libpq's meaning of each `sslmode`:
//!
//! | mode | encrypted | certificate |
//! |---|---|---|
//! | `disable` | never | |
//! | `allow` | if the server refuses otherwise | not checked |
//! | `prefer` | if the server can | not checked |
//! | `require` | always | not checked; with a root certificate as `verify-ca` (libpq's compatibility rule) |
//! | `verify-ca` | always | chain to the root certificate |
//! | `verify-full` | always | chain, and the host's name |
//!
//! Two differences, both stricter: a host's name must stand in the certificate's alternative names (a mere common name is
//! not enough), and TLS is 1.2 or 1.3. A self-signed server certificate that is itself named as `sslrootcert` is
//! accepted, as with OpenSSL. On unix sockets libpq ignores `sslmode`, and so do we.

use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{SslMode, SslRoot, SslSettings};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error(
        "sslmode={mode} needs a root certificate, but {} does not exist; name one with sslrootcert, or sslrootcert=system",
        .path.as_deref().unwrap_or(Path::new("~/.postgresql/root.crt")).display()
    )]
    NoRoot { mode: &'static str, path: Option<PathBuf> },
    #[error("{what} {} cannot be used: {reason}", .path.display())]
    File { what: &'static str, path: PathBuf, reason: String },
    #[error("the system has no root certificates: {0}")]
    System(String),
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// The connector for one connection string, or `None` when TLS is never used.
pub fn connector(settings: &SslSettings) -> Result<Option<MakeRustlsConnect>, TlsError> {
    if settings.mode == SslMode::Disable {
        return Ok(None);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let check = match settings.mode {
        SslMode::VerifyFull => Check::ChainAndName,
        SslMode::VerifyCa => Check::Chain,
        // A root certificate that is there turns `require` into `verify-ca`.
        SslMode::Require if root_file(settings).is_some() => Check::Chain,
        _ => Check::Nothing,
    };
    let (verifier, roots) = if check == Check::Nothing {
        (None, Vec::new())
    } else {
        let roots = roots(settings)?;
        let mut store = RootCertStore::empty();
        // The system's bundle may hold oddities that rustls cannot read; one good certificate must remain.
        store.add_parsable_certificates(roots.iter().cloned());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
            .build()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        (Some(verifier), roots)
    };
    let verifier = Verifier { check, inner: verifier, roots, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match client_certificate(settings)? {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Setup(error.to_string()))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Some(MakeRustlsConnect::new(config)))
}

fn root_file(settings: &SslSettings) -> Option<&Path> {
    match &settings.root {
        SslRoot::System => None,
        SslRoot::File(path) => Some(path),
        SslRoot::Default(path) => path.as_deref().filter(|path| path.exists()),
    }
}

fn roots(settings: &SslSettings) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    if settings.root == SslRoot::System {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(TlsError::System(reasons.join("; ")));
        }
        return Ok(found.certs);
    }
    let path = root_file(settings).ok_or_else(|| TlsError::NoRoot {
        mode: settings.mode.as_str(),
        path: match &settings.root {
            SslRoot::Default(path) => path.clone(),
            _ => None,
        },
    })?;
    certificates("the root certificate", path)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::File { what, path: path.to_owned(), reason };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error: rustls::pki_types::pem::Error| fail(error.to_string()))?;
    if found.is_empty() { Err(fail("it holds no PEM certificate".to_owned())) } else { Ok(found) }
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(settings: &SslSettings) -> Result<Option<ClientCertificate>, TlsError> {
    // As libpq: a file that is not there, named or not, means no certificate.
    let Some(path) = settings.certificate.as_deref().filter(|path| path.exists()) else {
        return Ok(None);
    };
    let chain = certificates("the client certificate", path)?;
    let key = settings.key.as_deref().unwrap_or(path);
    let fail = |reason: String| TlsError::File { what: "the client's private key", path: key.to_owned(), reason };
    let metadata = std::fs::metadata(key).map_err(|error| fail(error.to_string()))?;
    // As libpq: 0600, or 0640 when root owns it.
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.permissions().mode() & forbidden != 0 {
        return Err(fail("others may read it; chmod 0600".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| fail(format!("{error} (a key under a passphrase is not supported)")))?;
    Ok(Some((chain, key)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

struct Verifier {
    check: Check,
    /// There unless nothing is checked.
    inner: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verifier").field(&self.check).finish()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        let verdict = inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(rustls::Error::InvalidCertificate(reason)) = &verdict else { return verdict };
        match reason {
            // The chain was found good before the name was looked at.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                if self.check == Check::Chain =>
            {
                Ok(ServerCertVerified::assertion())
            }
            // A self-signed certificate is its own authority, which webpki refuses after it checked the dates.
            CertificateError::Other(other)
                if other.to_string().contains("CaUsedAsEndEntity")
                    && self.roots.iter().any(|root| root == end_entity) =>
            {
                if self.check == Check::ChainAndName {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            _ => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
