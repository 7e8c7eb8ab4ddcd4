//! Serves the chat page's own files, built into the program. Holds no page logic and reads no file while running.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};

/// Own files only, nothing inline, nothing from elsewhere: text of a model that turned into markup could load nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const FILES: [File; 6] = [
    File {
        path: "/",
        kind: "text/html; charset=utf-8",
        bytes: include_bytes!("../../web/index.html"),
    },
    File {
        path: "/chat.css",
        kind: "text/css; charset=utf-8",
        bytes: include_bytes!("../../web/chat.css"),
    },
    File {
        path: "/chat.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../web/chat.js"),
    },
    File {
        path: "/icon.svg",
        kind: "image/svg+xml",
        bytes: include_bytes!("../../web/icon.svg"),
    },
    File {
        path: "/markdown.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../web/markdown.js"),
    },
    File {
        path: "/sse.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../web/sse.js"),
    },
];

/// One tag per file: the first 16 bytes of its SHA-256.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| FILES.iter().map(tag).collect());

/// Whether a path is a file of the page, so that it needs no credential.
pub fn is_page(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The file at `path`, or 304 if the client has it already.
pub fn page(path: &str, request: &HeaderMap) -> Option<(StatusCode, HeaderMap, Bytes)> {
    let (file, tag) = FILES
        .iter()
        .zip(TAGS.iter())
        .find(|entry| entry.0.path == path)?;
    let mut headers = HeaderMap::new();
    headers.insert(ETAG, tag.clone());
    // always asked again, nearly always answered 304: a new version is there at once
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    let known = request
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let fresh = known
        .split(',')
        .any(|known| known.trim().trim_start_matches("W/").as_bytes() == tag.as_bytes());
    if fresh {
        return Some((StatusCode::NOT_MODIFIED, headers, Bytes::new()));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
    Some((StatusCode::OK, headers, Bytes::from_static(file.bytes)))
}

fn tag(file: &File) -> HeaderValue {
    let digest = ring::digest::digest(&ring::digest::SHA256, file.bytes);
    let text = hex::encode(
        digest
            .as_ref()
            .iter()
            .take(16)
            .copied()
            .collect::<Vec<u8>>(),
    );
    HeaderValue::from_str(&format!("\"{text}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = if name == "index.html" {
                "/".to_owned()
            } else {
                format!("/{name}")
            };
            assert!(is_page(&path), "{path} lies in web/ but is not served");
        }
    }

    #[test]
    fn a_known_version_is_not_sent_again() {
        let (status, headers, body) = page("/", &HeaderMap::new()).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(
            !body.is_empty()
                && headers[CONTENT_TYPE]
                    .to_str()
                    .unwrap()
                    .starts_with("text/html")
        );
        let mut request = HeaderMap::new();
        let known = format!("\"other\", W/{}", headers[ETAG].to_str().unwrap());
        request.insert(IF_NONE_MATCH, HeaderValue::from_str(&known).unwrap());
        let (status, _, body) = page("/", &request).unwrap();
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert!(page("/../Cargo.toml", &request).is_none());
    }

    #[test]
    fn the_page_obeys_its_own_policy() {
        assert!(!POLICY.contains("unsafe"));
        let (_, _, html) = page("/", &HeaderMap::new()).unwrap();
        let html = String::from_utf8(html.to_vec()).unwrap();
        for forbidden in [
            "style=",
            "onclick=",
            "onload=",
            "<style",
            "javascript:",
            "http://",
        ] {
            assert!(!html.contains(forbidden), "index.html contains {forbidden}");
        }
    }
}
