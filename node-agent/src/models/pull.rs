//! `hearth-node pull`: from a name to files in the cache, whole and checked, each with its header read. What is there already is not fetched
//! again, and nothing that is not whole ever has a model's name.

#[cfg(test)]
mod hub;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::FileProblem;
use super::cache::{Cache, Cached, Environment};
use super::choose::{Choice, ChoiceError, Listed, choose};
use super::fetch::{BlobLock, FetchError, Wanted, fetch};
use super::gguf::Gguf;
use super::net::{Net, NetError};
use super::progress::{EVENT_EVERY, Progress, end_line, size, tell};
use super::registry;
use super::source::{Source, SourceError};

/// Beside the repositories: what came from elsewhere.
const ELSEWHERE: &str = "hearth/files";

/// What was fetched.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Pulled {
    /// The model, its first part.
    pub model: PathBuf,
    /// The projector for images and audio.
    pub projector: Option<PathBuf>,
    /// `user/repo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Of all files.
    pub bytes: u64,
}

/// Why a model was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The hub.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The download.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The repository.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The file.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// No cache folder.
    #[error("no folder for models: set HF_HOME, or HOME")]
    NoCache,
    /// `--offline` and not there.
    #[error("{name} is not in {}, and --offline asks nobody; fetch it once without --offline, or import a file", cache.display())]
    Offline {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The cache cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Fetches models.
pub struct Puller<'a> {
    cache: Cache,
    net: Option<Net>,
    variable: Environment<'a>,
    /// Between two events about a download.
    every: Duration,
}

impl std::fmt::Debug for Puller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller")
            .field("cache", &self.cache)
            .field("net", &self.net)
            .finish_non_exhaustive()
    }
}

impl<'a> Puller<'a> {
    /// With the cache, mirror and token of an environment; `offline` asks nobody.
    pub fn new(variable: Environment<'a>, offline: bool) -> Result<Self, PullError> {
        let quiet = |name: &str| {
            variable(name).is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
        };
        let offline = offline || quiet("HF_HUB_OFFLINE");
        Ok(Self {
            cache: Cache::find(variable).ok_or(PullError::NoCache)?,
            net: if offline {
                None
            } else {
                Some(Net::new(variable)?)
            },
            variable,
            every: EVENT_EVERY,
        })
    }

    /// Tells of downloads so often where nobody watches.
    #[must_use]
    pub const fn with_events(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// Another patience; for tests.
    #[must_use]
    pub fn with_patience(mut self, patience: super::net::Patience) -> Self {
        if let Some(net) = &mut self.net {
            net.patience = patience;
        }
        self
    }

    /// The cache it fills.
    pub const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Fetches what `source` names, unless it is there.
    pub async fn pull(&self, source: &Source) -> Result<Pulled, PullError> {
        let pulled = match source {
            Source::Hub { repo, quant } => self.hub(repo, quant.as_deref()).await?,
            Source::Url(url) => self.url(url).await?,
            Source::Ollama {
                namespace,
                name,
                tag,
            } => self.ollama(&format!("{namespace}/{name}"), tag).await?,
            Source::File(path) => self.import(path).await?,
        };
        Gguf::open(&pulled.model)?;
        Ok(pulled)
    }

    async fn hub(&self, repo: &str, quant: Option<&str>) -> Result<Pulled, PullError> {
        let Some(net) = &self.net else {
            return self.cached(repo, quant);
        };
        let listing = async {
            let commit = registry::commit(net, repo).await?;
            let files = registry::files(net, repo, &commit).await?;
            Ok::<_, NetError>((commit, files))
        };
        let (commit, files) = match listing.await {
            Ok(listing) => listing,
            // What is on the disk serves when the hub cannot be reached.
            Err(error) if error.is_passing() => {
                let there = self
                    .cached(repo, quant)
                    .map_err(|_missing| PullError::Net(error.clone()))?;
                tell(&format!(
                    "{error}; using what is in {}\n",
                    self.cache.root().display()
                ));
                return Ok(there);
            }
            Err(error) => return Err(error.into()),
        };
        let choice = choose(repo, quant, &files)?;
        let mut paths = Vec::new();
        let mut bytes = 0;
        for listed in choice.parts.iter().chain(&choice.projector) {
            let url = registry::address(net, repo, &commit, &listed.file)?;
            let path = self.blob(net, (repo, &commit), listed, url).await?;
            bytes += listed.bytes.unwrap_or(0);
            paths.push(path);
        }
        self.cache
            .set_main(repo, &commit)
            .map_err(|source| self.unwritable(source))?;
        let projector = choice.projector.and_then(|_listed| paths.pop());
        Ok(Pulled {
            model: paths.into_iter().next().unwrap_or_default(),
            projector,
            repo: Some(repo.to_owned()),
            revision: Some(commit),
            bytes,
        })
    }

    /// What is there already, without a network.
    fn cached(&self, repo: &str, quant: Option<&str>) -> Result<Pulled, PullError> {
        let there = self.cache.files(repo);
        let missing = || PullError::Offline {
            name: format!(
                "hf:{repo}{}",
                quant.map(|quant| format!(":{quant}")).unwrap_or_default()
            ),
            cache: self.cache.root().to_owned(),
        };
        let mut revisions: Vec<&str> = there
            .iter()
            .map(|cached| cached.revision.as_str())
            .collect();
        revisions.dedup();
        for revision in revisions {
            let of: Vec<&Cached> = there
                .iter()
                .filter(|cached| cached.revision == revision)
                .collect();
            let files: Vec<Listed> = of.iter().map(|cached| listed_of(cached)).collect();
            let Ok(choice) = choose(repo, quant, &files) else {
                continue;
            };
            let path = |listed: &Listed| {
                of.iter()
                    .find(|cached| cached.file == listed.file)
                    .map(|cached| cached.path.clone())
            };
            let Choice { parts, projector } = choice;
            let all = parts
                .iter()
                .chain(&projector)
                .filter_map(|listed| listed.bytes)
                .sum();
            return Ok(Pulled {
                model: parts.first().and_then(path).ok_or_else(missing)?,
                projector: projector.as_ref().and_then(path),
                repo: Some(repo.to_owned()),
                revision: Some(revision.to_owned()),
                bytes: all,
            });
        }
        Err(missing())
    }

    /// One file of a repository: fetched unless its content is there, then named.
    async fn blob(
        &self,
        net: &Net,
        (repo, commit): (&str, &str),
        listed: &Listed,
        url: reqwest::Url,
    ) -> Result<PathBuf, PullError> {
        let name = self.cache.snapshot(repo, commit, &listed.file);
        let size_fits = |meta: fs::Metadata| listed.bytes.is_none_or(|bytes| meta.len() == bytes);
        if fs::metadata(&name).is_ok_and(size_fits) {
            return Ok(name);
        }
        let Some(sha256) = &listed.sha256 else {
            // Small files carry no SHA-256; theirs is computed, which names the blob.
            let place = self.cache.blob(
                repo,
                &format!("{commit}-{}", listed.file.replace('/', "--")),
            );
            let hash = self.fetch(net, listed, url, &place).await?;
            let blob = self.cache.blob(repo, &hash);
            fs::rename(&place, &blob).map_err(|source| PullError::Write { path: blob, source })?;
            return self.named(repo, commit, &listed.file, &hash);
        };
        let blob = self.cache.blob(repo, sha256);
        let _lock = self.lock(repo, sha256, &listed.file).await?;
        if !fs::metadata(&blob).is_ok_and(size_fits) {
            self.fetch(net, listed, url, &blob).await?;
        }
        self.named(repo, commit, &listed.file, sha256)
    }

    fn named(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        hash: &str,
    ) -> Result<PathBuf, PullError> {
        self.cache
            .link(repo, commit, file, hash)
            .map_err(|source| self.unwritable(source))
    }

    async fn lock(&self, repo: &str, hash: &str, file: &str) -> Result<BlobLock, PullError> {
        let path = self.cache.lock(repo, hash);
        let waiting = || {
            tell(&format!(
                "{file}: another process downloads it; waiting for that\n"
            ));
        };
        BlobLock::take(&path, waiting)
            .await
            .map_err(|source| PullError::Write { path, source })
    }

    async fn fetch(
        &self,
        net: &Net,
        listed: &Listed,
        url: reqwest::Url,
        target: &Path,
    ) -> Result<String, PullError> {
        let wanted = Wanted {
            url,
            bytes: listed.bytes,
            sha256: listed.sha256.clone(),
        };
        let progress = Progress::default();
        let name = listed.file.rsplit('/').next().unwrap_or_default();
        if let Some(bytes) = listed.bytes {
            tell(&format!("downloading {name} ({})\n", size(bytes)));
        }
        let done = tokio::select! {
            done = fetch(net, &wanted, target, &progress) => done,
            () = progress.show(name, self.every) => Err(FetchError::Stopped),
        };
        end_line();
        Ok(done?)
    }

    async fn url(&self, url: &reqwest::Url) -> Result<Pulled, PullError> {
        let file = url
            .path_segments()
            .and_then(|mut parts| parts.next_back())
            .unwrap_or_default()
            .to_owned();
        if !super::cache::is_safe_name(&file) || !file.to_ascii_lowercase().ends_with(".gguf") {
            return Err(SourceError::Address(url.to_string()).into());
        }
        let folder = self
            .cache
            .root()
            .join(ELSEWHERE)
            .join(super::net::host(url));
        let target = folder.join(&file);
        if target.is_file() {
            return Ok(single(target));
        }
        let net = self.net.as_ref().ok_or_else(|| PullError::Offline {
            name: url.to_string(),
            cache: folder.clone(),
        })?;
        let _lock = self.lock("hearth/files", &file, &file).await?;
        let listed = Listed {
            file,
            bytes: None,
            sha256: None,
        };
        if !target.is_file() {
            self.fetch(net, &listed, url.clone(), &target).await?;
        }
        Ok(single(target))
    }

    async fn ollama(&self, path: &str, tag: &str) -> Result<Pulled, PullError> {
        let file = format!("{}-{tag}.gguf", path.replace('/', "--"));
        let folder = self.cache.root().join(ELSEWHERE).join("ollama");
        if let Some((model, projector)) = self.ollama_blobs(path, tag) {
            let model = place(&model, &folder.join(&file))?;
            let projector = projector
                .map(|blob| place(&blob, &folder.join(format!("mmproj-{file}"))))
                .transpose()?;
            return Ok(Pulled {
                projector,
                ..single(model)
            });
        }
        let offline = || PullError::Offline {
            name: format!("ollama:{path}:{tag}"),
            cache: folder.clone(),
        };
        let net = self.net.as_ref().ok_or_else(offline)?;
        let endpoint = registry::ollama_endpoint(self.variable)?;
        let found = registry::ollama(net, &endpoint, path, tag).await?;
        let mut paths = Vec::new();
        for (url, listed) in std::iter::once(found.model).chain(found.projector) {
            let target = folder.join(&listed.file);
            let _lock = self
                .lock("hearth/ollama", &listed.file, &listed.file)
                .await?;
            if !target.is_file() {
                self.fetch(net, &listed, url, &target).await?;
            }
            paths.push(target);
        }
        let mut paths = paths.into_iter();
        Ok(Pulled {
            projector: None,
            ..single(paths.next().unwrap_or_default())
        }
        .with_projector(paths.next()))
    }

    /// The blobs that Ollama itself keeps on this machine.
    fn ollama_blobs(&self, path: &str, tag: &str) -> Option<(PathBuf, Option<PathBuf>)> {
        let home = (self.variable)("HOME").map(|home| PathBuf::from(home).join(".ollama/models"));
        let root = (self.variable)("OLLAMA_MODELS")
            .map(PathBuf::from)
            .or(home)?;
        let manifest = fs::read(
            root.join("manifests/registry.ollama.ai")
                .join(path)
                .join(tag),
        )
        .ok()?;
        let (model, projector) = registry::ollama_local(&manifest)?;
        let blob = |sha256: String| root.join("blobs").join(format!("sha256-{sha256}"));
        let model = blob(model);
        model
            .is_file()
            .then(|| (model, projector.map(blob).filter(|path| path.is_file())))
    }

    /// A file of this machine or of a stick: linked into the cache where that is possible, else copied, whole or not at all.
    async fn import(&self, path: &Path) -> Result<Pulled, PullError> {
        Gguf::open(path)?;
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let folder = self.cache.root().join(ELSEWHERE).join("imported");
        let mut model = None;
        for part in super::parts(path) {
            let target = folder.join(part.file_name().map_or_else(|| name.clone(), PathBuf::from));
            let placed = tokio::task::spawn_blocking(move || place(&part, &target)).await;
            let placed = placed.map_err(|error| self.unwritable(io::Error::other(error)))??;
            model.get_or_insert(placed);
        }
        Ok(single(model.unwrap_or_default()))
    }

    fn unwritable(&self, source: io::Error) -> PullError {
        PullError::Write {
            path: self.cache.root().to_owned(),
            source,
        }
    }
}

impl Pulled {
    fn with_projector(mut self, projector: Option<PathBuf>) -> Self {
        self.projector = projector;
        self
    }
}

fn single(model: PathBuf) -> Pulled {
    Pulled {
        bytes: fs::metadata(&model).map_or(0, |meta| meta.len()),
        model,
        projector: None,
        repo: None,
        revision: None,
    }
}

fn listed_of(cached: &Cached) -> Listed {
    Listed {
        file: cached.file.clone(),
        bytes: Some(cached.bytes),
        sha256: None,
    }
}

/// Gives a file a second name, or copies it to a disk of its own.
fn place(from: &Path, to: &Path) -> Result<PathBuf, PullError> {
    let write = |source| PullError::Write {
        path: to.to_owned(),
        source,
    };
    let unreadable = |source| FileProblem::Unreadable {
        path: from.to_owned(),
        source,
    };
    let from = fs::canonicalize(from).map_err(unreadable)?;
    let meta = fs::metadata(&from).map_err(unreadable)?;
    if let Ok(there) = fs::metadata(to)
        && (there.ino(), there.dev()) == (meta.ino(), meta.dev())
    {
        return Ok(to.to_owned());
    }
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).map_err(write)?;
    let mut fresh = to.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _stale = fs::remove_file(&fresh);
    if fs::hard_link(&from, &fresh).is_err() {
        if let Some(free) = super::fetch::free_bytes(folder)
            && free < meta.len()
        {
            return Err(FetchError::Space {
                folder: folder.to_owned(),
                free,
                needed: meta.len(),
                done: 0,
            }
            .into());
        }
        let copied = fs::copy(&from, &fresh).and_then(|_bytes| fs::File::open(&fresh)?.sync_all());
        if let Err(source) = copied {
            let _half = fs::remove_file(&fresh);
            return Err(write(source));
        }
    }
    fs::rename(&fresh, to).map_err(write)?;
    Ok(to.to_owned())
}
