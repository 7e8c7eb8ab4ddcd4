//! The certificate of the public listeners: from files that may change while running, or made once by ourselves. New
//! connections see a new certificate at once, running ones keep theirs; bad new files never replace a good certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use config::settings::proxy::Tls;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tracing::{info, warn};

mod self_signed;

/// How often the files are looked at: renewals happen days before expiry, so seconds do not matter.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// Why there is no certificate to use.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The certificate or its key is unusable.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

/// The certificate in use.
#[derive(Debug)]
pub struct Certificates {
    files: Option<Files>,
    current: ArcSwap<CertifiedKey>,
}

#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    /// Of the last attempt, good or bad, so that one bad pair is reported once.
    seen: Mutex<Option<Stamp>>,
}

type Stamp = [Option<(SystemTime, u64)>; 2];

impl Certificates {
    /// Loads the files, or makes and keeps a self-signed certificate in `state_dir`.
    pub fn from_settings(tls: &Tls, state_dir: &Path) -> Result<Arc<Self>, CertificateError> {
        let (files, loaded) = match tls {
            Tls::Files {
                cert_file,
                key_file,
            } => {
                let files = Files {
                    cert: cert_file.clone(),
                    key: key_file.clone(),
                    seen: Mutex::default(),
                };
                files.is_new();
                let loaded = load(cert_file, key_file)?;
                (Some(files), loaded)
            }
            Tls::SelfSigned { names } => (None, self_signed::obtain(names, state_dir)?),
        };
        Ok(Arc::new(Self {
            files,
            current: ArcSwap::from_pointee(loaded),
        }))
    }

    /// Reads the files again, whether they changed or not. Self-signed: nothing to do.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        files.is_new();
        let loaded = load(&files.cert, &files.key)?;
        self.current.store(Arc::new(loaded));
        Ok(())
    }

    /// [`Self::reload`] for signals and the watch: says in the log what came of it.
    pub fn reload_and_log(&self) {
        match self.reload() {
            Ok(()) => info!(self_signed = self.files.is_none(), "certificate reloaded"),
            Err(error) => warn!(%error, "certificate not reloaded, the old one stays in use"),
        }
    }

    /// The pin that nodes check instead of a CA, if the certificate is our own.
    pub fn pin(&self) -> Option<String> {
        if self.files.is_some() {
            return None;
        }
        spki_pin(self.current.load().cert.first()?).ok()
    }

    /// When the certificate in use ends, Unix time.
    pub fn expires_unix(&self) -> Option<i64> {
        let certificate = self.current.load();
        let (_, leaf) = x509_parser::parse_x509_certificate(certificate.cert.first()?).ok()?;
        Some(leaf.validity().not_after.timestamp())
    }

    /// The leaf certificate in use.
    #[cfg(test)]
    pub(crate) fn leaf(&self) -> CertificateDer<'static> {
        self.current.load().cert[0].clone()
    }

    /// Whether browsers can trust the certificate, so that HSTS is safe to send.
    pub(crate) fn is_from_authority(&self) -> bool {
        self.files.is_some()
    }

    /// Looks at the files for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        if self.files.is_none() {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(WATCH_EVERY);
        loop {
            ticks.tick().await;
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || this.reload_if_changed()).await;
            if let Err(error) = looked {
                warn!(%error, "certificate files could not be looked at");
            }
        }
    }

    fn reload_if_changed(&self) {
        if self.files.as_ref().is_some_and(Files::is_new) {
            self.reload_and_log();
        }
    }
}

impl Files {
    /// Whether the files differ from the last time this was asked.
    fn is_new(&self) -> bool {
        let now = [&self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.replace(now) != Some(now)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// SHA-256 over the DER of the certificate's `SubjectPublicKeyInfo`, as it stands in join links: `sha256-…`.
pub fn spki_pin(certificate: &CertificateDer<'_>) -> Result<String, CertificateError> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(unusable)?;
    let spki = parsed.subject_public_key_info();
    let digest = ring::digest::digest(&ring::digest::SHA256, spki.as_ref());
    Ok(format!("sha256-{}", URL_SAFE_NO_PAD.encode(digest)))
}

fn load(cert: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let pem = |path: &Path, error: rustls::pki_types::pem::Error| CertificateError::File {
        path: path.to_owned(),
        why: error.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem(cert, error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| pem(key, error))?;
    certified(chain, private)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, CertificateError> {
    if chain.is_empty() {
        return Err(CertificateError::Unusable(
            "the file holds no certificate".to_owned(),
        ));
    }
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(unusable)
}

fn unusable(error: impl std::fmt::Display) -> CertificateError {
    CertificateError::Unusable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(folder: &Path, name: &str) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    #[test]
    fn new_files_are_taken_and_bad_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let old = write_pair(folder.path(), "old.example");
        let tls = Tls::Files {
            cert_file: folder.path().join("cert.pem"),
            key_file: folder.path().join("key.pem"),
        };
        let certificates = Certificates::from_settings(&tls, folder.path()).unwrap();
        assert_eq!(
            (certificates.leaf(), certificates.pin()),
            (old.clone(), None)
        );

        std::fs::write(folder.path().join("cert.pem"), "not a certificate").unwrap();
        certificates.reload_if_changed();
        assert_eq!(
            certificates.leaf(),
            old,
            "a bad file leaves the good certificate in use"
        );

        let other = rcgen::generate_simple_self_signed(vec!["half.example".to_owned()]).unwrap();
        std::fs::write(folder.path().join("cert.pem"), other.cert.pem()).unwrap();
        assert!(
            certificates.reload().is_err(),
            "a certificate without its key is not used"
        );
        assert_eq!(certificates.leaf(), old);

        let new = write_pair(folder.path(), "new.example");
        certificates.reload_if_changed();
        assert_eq!(certificates.leaf(), new);
    }

    #[test]
    fn our_own_certificate_is_made_once_and_its_pin_survives_new_names() {
        let folder = tempfile::tempdir().unwrap();
        let obtain = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            Certificates::from_settings(&Tls::SelfSigned { names }, folder.path()).unwrap()
        };
        let first = obtain(&["localhost", "127.0.0.1"]);
        let again = obtain(&["localhost", "127.0.0.1"]);
        assert_eq!(first.leaf(), again.leaf(), "kept on disk");
        assert_eq!(
            first.expires_unix(),
            Some(2_524_521_600),
            "midnight of 2049-12-31"
        );
        let renamed = obtain(&["localhost", "192.0.2.1", "llm.example.org"]);
        assert_ne!(first.leaf(), renamed.leaf());
        assert_eq!(
            first.pin(),
            renamed.pin(),
            "nodes pinned the key, not the names"
        );
        assert!(
            first
                .pin()
                .is_some_and(|pin| pin.starts_with("sha256-") && pin.len() == 7 + 43)
        );
    }
}
