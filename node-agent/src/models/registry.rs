//! What hubs say about a repository: the commit of `main`, its files with sizes and SHA-256, and Ollama's manifests. Fetches no weights and
//! believes no name that leaves its folder.

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;

use super::cache::{is_commit, is_safe_name};
use super::choose::Listed;
use super::net::{Ask, Net, NetError, odd};

/// A listing of a thousand files has 300 KB.
const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;
const PAGES_MAX: usize = 20;
const OLLAMA: &str = "https://registry.ollama.ai";
const OLLAMA_MODEL: &str = "application/vnd.ollama.image.model";
const OLLAMA_PROJECTOR: &str = "application/vnd.ollama.image.projector";
const OLLAMA_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Branch>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Branch {
    name: String,
    target_commit: String,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type", default)]
    kind: String,
    path: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
    size: Option<u64>,
}

/// The commit that `main` is now.
pub async fn commit(net: &Net, repo: &str) -> Result<String, NetError> {
    let url = api(net, &format!("api/models/{repo}/refs"))?;
    let (body, _headers) = net.body(&url, Ask::default(), LISTING_BYTES_MAX).await?;
    let refs: Refs = parsed(&url, &body)?;
    let main = refs
        .branches
        .iter()
        .find(|branch| branch.name == "main")
        .or_else(|| refs.branches.first());
    main.map(|branch| branch.target_commit.clone())
        .filter(|commit| is_commit(commit))
        .ok_or_else(|| odd(&url, "it names no commit".to_owned()))
}

/// The files of a commit.
pub async fn files(net: &Net, repo: &str, commit: &str) -> Result<Vec<Listed>, NetError> {
    let mut next = Some(api(
        net,
        &format!("api/models/{repo}/tree/{commit}?recursive=true"),
    )?);
    let mut found = Vec::new();
    for _page in 0..PAGES_MAX {
        let Some(url) = next.take() else { break };
        let (body, headers) = net.body(&url, Ask::default(), LISTING_BYTES_MAX).await?;
        let entries: Vec<Entry> = parsed(&url, &body)?;
        found.extend(entries.into_iter().filter_map(listed));
        next = next_page(&headers, net);
    }
    Ok(found)
}

/// The address of a file in a commit.
pub fn address(net: &Net, repo: &str, commit: &str, file: &str) -> Result<Url, NetError> {
    let mut url = api(net, &format!("{repo}/resolve/{commit}/"))?;
    let added = url.path_segments_mut().map(|mut path| {
        path.pop_if_empty().extend(file.split('/'));
    });
    added.map_err(|()| odd(net.endpoint(), "its address takes no path".to_owned()))?;
    Ok(url)
}

fn api(net: &Net, path: &str) -> Result<Url, NetError> {
    let url = net.endpoint().join(path);
    url.map_err(|error| {
        NetError::Settings(format!("{}{path} is no address: {error}", net.endpoint()))
    })
}

fn parsed<T: serde::de::DeserializeOwned>(url: &Url, body: &[u8]) -> Result<T, NetError> {
    serde_json::from_slice(body).map_err(|error| {
        odd(
            url,
            format!("its answer is not what the hub's interface says: {error}"),
        )
    })
}

fn listed(entry: Entry) -> Option<Listed> {
    let known = entry.kind.is_empty() || entry.kind == "file";
    if !known || !is_safe_name(&entry.path) {
        return None;
    }
    let sha256 = entry
        .lfs
        .as_ref()
        .map(|lfs| lfs.oid.trim_start_matches("sha256:").to_ascii_lowercase());
    Some(Listed {
        file: entry.path,
        bytes: entry.lfs.and_then(|lfs| lfs.size).or(entry.size),
        sha256: sha256.filter(|sha256| is_sha256(sha256)),
    })
}

/// 64 hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `Link: <address>; rel="next"` (RFC 8288), if it stays with the hub.
fn next_page(headers: &HeaderMap, net: &Net) -> Option<Url> {
    let text = headers.get(LINK)?.to_str().ok()?;
    let link = text.split(',').find(|link| link.contains("rel=\"next\""))?;
    let address = link.split_once('<')?.1.split_once('>')?.0;
    let url = net.endpoint().join(address).ok()?;
    (url.origin() == net.endpoint().origin()).then_some(url)
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: Option<u64>,
}

/// What Ollama's registry has under a name: files with the addresses of their blobs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OllamaModel {
    /// The weights.
    pub model: (Url, Listed),
    /// The projector.
    pub projector: Option<(Url, Listed)>,
}

/// The registry's origin: `OLLAMA_REGISTRY`, else Ollama's own.
pub fn ollama_endpoint(variable: super::cache::Environment<'_>) -> Result<Url, NetError> {
    let named = variable("OLLAMA_REGISTRY").and_then(|value| value.into_string().ok());
    let text = named.as_deref().unwrap_or(OLLAMA);
    Url::parse(text)
        .ok()
        .filter(super::source::may_be_asked)
        .ok_or_else(|| {
            NetError::Settings(format!(
                "OLLAMA_REGISTRY is {text}; it must be an https:// address"
            ))
        })
}

/// Reads the manifest of `namespace/name:tag`.
pub async fn ollama(
    net: &Net,
    endpoint: &Url,
    path: &str,
    tag: &str,
) -> Result<OllamaModel, NetError> {
    let place = |rest: &str| {
        let url = endpoint.join(&format!("v2/{path}/{rest}"));
        url.map_err(|error| NetError::Settings(error.to_string()))
    };
    let url = place(&format!("manifests/{tag}"))?;
    let ask = Ask {
        accept: Some(OLLAMA_MANIFEST),
        ..Ask::default()
    };
    let (body, _headers) = net.body(&url, ask, LISTING_BYTES_MAX).await?;
    let manifest: Manifest = parsed(&url, &body)?;
    let find = |kind: &str| -> Result<Option<(Url, Listed)>, NetError> {
        let Some((sha256, bytes)) = manifest_layer(&manifest, kind) else {
            return Ok(None);
        };
        let file = format!(
            "{}-{tag}{}.gguf",
            path.replace('/', "--"),
            if kind == OLLAMA_MODEL { "" } else { "-mmproj" }
        );
        let listed = Listed {
            file,
            bytes,
            sha256: Some(sha256.clone()),
        };
        Ok(Some((place(&format!("blobs/sha256:{sha256}"))?, listed)))
    };
    let model =
        find(OLLAMA_MODEL)?.ok_or_else(|| odd(&url, "the manifest names no model".to_owned()))?;
    Ok(OllamaModel {
        model,
        projector: find(OLLAMA_PROJECTOR)?,
    })
}

/// The digest of the weights in a manifest that Ollama keeps on this machine.
pub fn ollama_local(manifest: &[u8]) -> Option<(String, Option<String>)> {
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    let (model, _bytes) = manifest_layer(&manifest, OLLAMA_MODEL)?;
    Some((
        model,
        manifest_layer(&manifest, OLLAMA_PROJECTOR).map(|(digest, _bytes)| digest),
    ))
}

fn manifest_layer(manifest: &Manifest, kind: &str) -> Option<(String, Option<u64>)> {
    let layer = manifest
        .layers
        .iter()
        .find(|layer| layer.media_type == kind)?;
    let sha256 = layer
        .digest
        .strip_prefix("sha256:")
        .filter(|text| is_sha256(text))?;
    Some((sha256.to_ascii_lowercase(), layer.size))
}
