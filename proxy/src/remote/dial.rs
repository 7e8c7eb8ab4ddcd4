//! The way to servers outside the tunnel: TCP, and TLS with the system's authorities or those of the settings. A plain connection is only
//! made to an address of a private network, whatever the name says, unless the settings allow it: names can be made to point anywhere.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use config::settings::proxy::Remote as Settings;
use config::settings::remote::is_private;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Remote, RemoteError};
use crate::nodes::upstream::{Dial, Wire};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// The tunnel, and beside it the roads to servers outside.
pub struct Roads {
    tunnel: Arc<dyn Dial>,
    remotes: RwLock<HashMap<Ipv6Addr, Arc<Remote>>>,
}

impl Roads {
    /// Leads to the nodes of the tunnel and to these servers.
    pub fn new(tunnel: Arc<dyn Dial>, remotes: &[Arc<Remote>]) -> Self {
        let by_address = |remote: &Arc<Remote>| (remote.address, Arc::clone(remote));
        Self {
            tunnel,
            remotes: RwLock::new(remotes.iter().map(by_address).collect()),
        }
    }

    /// Leads to one more.
    pub fn lead_to(&self, remote: Arc<Remote>) {
        let mut remotes = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        remotes.insert(remote.address, remote);
    }

    /// Leads there no more.
    pub fn lead_no_more(&self, address: Ipv6Addr) {
        let mut remotes = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        remotes.remove(&address);
    }

    fn remote(&self, address: Ipv6Addr) -> Option<Arc<Remote>> {
        let remotes = self.remotes.read().unwrap_or_else(PoisonError::into_inner);
        remotes.get(&address).cloned()
    }
}

#[async_trait]
impl Dial for Roads {
    async fn dial(&self, address: Ipv6Addr, deadline: Duration) -> io::Result<Box<dyn Wire>> {
        match self.remote(address) {
            Some(remote) if remote.is_in_tunnel() => {
                let to = (address, remote.settings.url.port);
                self.tunnel.dial_port(to, deadline).await
            }
            Some(remote) => remote.dial(deadline).await,
            None => self.tunnel.dial(address, deadline).await,
        }
    }

    fn hears(&self, address: Ipv6Addr) -> bool {
        // A server of somebody else has no /health of ours to ask; a silent stream of it ends with the idle timeout.
        self.remote(address).is_some() || self.tunnel.hears(address)
    }
}

impl Remote {
    async fn dial(&self, deadline: Duration) -> io::Result<Box<dyn Wire>> {
        timeout(deadline, self.connect())
            .await
            .unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect(&self) -> io::Result<Box<dyn Wire>> {
        let url = &self.settings.url;
        let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await?;
        let may_be_public = url.tls || self.settings.plain_http;
        let stream = open(found, may_be_public).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(tls.connect(name, stream).await?))
    }
}

async fn open(
    found: impl Iterator<Item = SocketAddr>,
    may_be_public: bool,
) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in found.take(ADDRESSES_MAX) {
        if !may_be_public && !is_private(address.ip()) {
            last = io::Error::new(
                io::ErrorKind::PermissionDenied,
                "a plain connection may only lead to a private address",
            );
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// TLS as this server needs it; `None`: it speaks plain HTTP.
pub(super) fn tls(settings: &Settings) -> Result<Option<TlsConnector>, RemoteError> {
    if !settings.url.tls {
        return Ok(None);
    }
    let roots = roots(settings)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    // ring has every version that is safe.
    let mut config = config
        .map_err(|error| wrong(settings, &error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

fn roots(settings: &Settings) -> Result<RootCertStore, RemoteError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &settings.ca_file else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                remote = settings.name,
                "the system names no certificate authority: install ca-certificates or set ca_file"
            );
        }
        return Ok(roots);
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(settings, &error.to_string()))?;
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(wrong(settings, "holds no certificate: it wants PEM"));
    }
    Ok(roots)
}

fn wrong(settings: &Settings, reason: &str) -> RemoteError {
    let path = settings.ca_file.as_ref();
    RemoteError::Authorities {
        name: settings.name.clone(),
        path: path.map_or_else(|| "TLS".to_owned(), |path| path.display().to_string()),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_plain_connection_never_leaves_private_networks() {
        let public: SocketAddr = ([192, 0, 2, 1], 9).into();
        let refused = open(std::iter::once(public), false).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(!is_private(public.ip()));
    }
}
