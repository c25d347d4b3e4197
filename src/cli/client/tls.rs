//! TLS to a daemon behind a proxy that speaks it: who is trusted, and what to do when nobody is.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// There is no trusted connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the certificates of NESTBOX_CA in {}", path.display())]
    Authority { path: PathBuf, source: pem::Error },
    #[error("{}, which NESTBOX_CA names, holds no certificate in PEM", path.display())]
    NoAuthority { path: PathBuf },
    #[error("a certificate of NESTBOX_CA in {} is malformed", path.display())]
    BadAuthority { path: PathBuf, source: rustls::Error },
    #[error("cannot set up TLS")]
    SetUp(#[source] rustls::Error),
    #[error(
        "the certificate of {url} is of an authority that this machine does not trust: set \
         NESTBOX_CA to a file with the authority's certificate, in PEM"
    )]
    UnknownIssuer { url: String },
    #[error("the certificate of {url} cannot be trusted")]
    Certificate { url: String, source: rustls::Error },
    #[error("{url} does not speak TLS: is it meant to be http://?")]
    NoTls { url: String },
    #[error("cannot speak TLS with {url}")]
    Protocol { url: String, source: rustls::Error },
}

impl TlsError {
    /// What TLS has to do with it that `error` happened, if it has.
    pub(super) fn in_chain(error: &(dyn Error + 'static), url: &str) -> Option<Self> {
        let url = url.to_owned();
        let mut next = Some(error);
        while let Some(error) = next {
            // An I/O error is not the source of its own cause.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let error = inner.map_or(error, |inner| inner);
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Some(match error.clone() {
                    rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                        Self::UnknownIssuer { url }
                    }
                    source @ rustls::Error::InvalidCertificate(_) => {
                        Self::Certificate { url, source }
                    }
                    rustls::Error::InvalidMessage(_) => Self::NoTls { url },
                    source => Self::Protocol { url, source },
                });
            }
            next = error.source();
        }
        None
    }
}

/// Trusts whom this machine trusts, and the authorities in the file `extra`.
///
/// # Errors
///
/// That `extra` cannot be read.
pub(super) fn config(extra: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    // One that this machine has and that cannot be read trusts nobody.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = extra {
        add(&mut roots, path)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::SetUp)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let unreadable = |source| TlsError::Authority { path: path.to_owned(), source };
    let before = roots.len();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let malformed = |source| TlsError::BadAuthority { path: path.to_owned(), source };
        roots.add(certificate.map_err(unreadable)?).map_err(malformed)?;
    }
    match roots.len() > before {
        true => Ok(()),
        false => Err(TlsError::NoAuthority { path: path.to_owned() }),
    }
}

/// Begins TLS with the server of this name, or address.
pub(super) async fn connect(
    config: Arc<ClientConfig>,
    host: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = config(Some(file.path())).unwrap_err();
        assert!(matches!(&error, TlsError::NoAuthority { path } if path == file.path()), "{error}");
        let error = config(Some(Path::new("/nowhere.pem"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere.pem"), "{error}");
    }
}
