//! Makes the certificate of a proxy without a domain: P-256, made once, kept readable by its owner only. The key outlives
//! the names, because nodes pin the key.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use super::{CertificateError, certified, unusable};

const KEY_FILE: &str = "self-signed.key.pem";
const CERT_FILE: &str = "self-signed.cert.pem";

/// The kept certificate if it covers all `names`, else a new one with the same key.
pub(super) fn obtain(names: &[String], state_dir: &Path) -> Result<CertifiedKey, CertificateError> {
    let folder = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir);
    folder.map_err(|error| file(state_dir, &error))?;
    let key = key_pair(&state_dir.join(KEY_FILE))?;
    let cert_path = state_dir.join(CERT_FILE);
    if let Ok(kept) = CertificateDer::from_pem_file(&cert_path)
        && covers(&kept, names)
        && let Ok(certified) = pair(kept, &key)
    {
        return Ok(certified);
    }
    let made = params(names)?.self_signed(&key).map_err(unusable)?;
    write_private(&cert_path, &made.pem())?;
    pair(made.der().clone(), &key)
}

fn pair(cert: CertificateDer<'static>, key: &KeyPair) -> Result<CertifiedKey, CertificateError> {
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(unusable)?;
    certified(vec![cert], private)
}

fn key_pair(path: &Path) -> Result<KeyPair, CertificateError> {
    match std::fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|error| CertificateError::File {
            path: path.to_owned(),
            why: format!("{error}; delete it to make a new key, nodes must then join again"),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
            write_private(path, &key.serialize_pem())?;
            Ok(key)
        }
        Err(error) => Err(file(path, &error)),
    }
}

fn params(names: &[String]) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(names).map_err(unusable)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Hearth, self-signed");
    // pinned by nodes and clicked through by people: expiry would protect nobody, so it is far away
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn covers(cert: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(cert) else {
        return false;
    };
    names.iter().all(|name| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    })
}

/// Whole or not at all, never readable by others.
fn write_private(path: &Path, text: &str) -> Result<(), CertificateError> {
    let fresh = path.with_extension("new");
    let written = match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh),
    };
    written
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| file(path, &error))
}

fn file(path: &Path, error: &std::io::Error) -> CertificateError {
    CertificateError::File {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_can_read_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        obtain(&["localhost".to_owned()], &state).unwrap();
        for (path, mode) in [(state.join(KEY_FILE), 0o600), (state, 0o700)] {
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                mode,
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn a_broken_key_file_is_an_error_and_not_a_new_key() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(KEY_FILE), "junk").unwrap();
        assert!(obtain(&["localhost".to_owned()], folder.path()).is_err());
    }
}
