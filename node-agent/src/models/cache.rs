//! The folder of downloaded models, laid out as Hugging Face's own tools and llama.cpp lay it out, so that a model is on the disk once:
//! `models--USER--REPO/{refs/main, blobs/SHA256, snapshots/COMMIT/FILE -> ../../blobs/SHA256}`. Never talks to a network.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

const DEPTH_MAX: usize = 8;
const FILES_MAX: usize = 10_000;

/// Reads a variable of the environment; empty ones count as unset.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variables of this process.
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The cache's folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cache {
    root: PathBuf,
}

/// A file that is there.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Cached {
    /// `user/repo`.
    pub repo: String,
    /// The commit it belongs to.
    pub revision: String,
    /// Its name in the repository.
    pub file: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

impl Cache {
    /// The cache in `root`.
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where llama.cpp and Hugging Face's tools look, in their order; `None` without any of the variables and without HOME.
    pub fn find(variable: Environment<'_>) -> Option<Self> {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let below = |name: &str, rest: &str| path(name).map(|folder| folder.join(rest));
        let root = path("LLAMA_CACHE")
            .or_else(|| path("HF_HUB_CACHE"))
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| below("HF_HOME", "hub"))
            .or_else(|| below("XDG_CACHE_HOME", "huggingface/hub"))
            .or_else(|| below("HOME", ".cache/huggingface/hub"))?;
        Some(Self { root })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a repository.
    pub fn repo(&self, repo: &str) -> PathBuf {
        self.root
            .join(format!("models--{}", repo.replace('/', "--")))
    }

    /// Where the content with this hash lies.
    pub fn blob(&self, repo: &str, hash: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(hash)
    }

    /// What is locked while one process downloads a blob; beside the repositories, where Hugging Face's tools put theirs.
    pub fn lock(&self, repo: &str, hash: &str) -> PathBuf {
        let folder = self.root.join(".locks");
        folder
            .join(format!("models--{}", repo.replace('/', "--")))
            .join(format!("{hash}.lock"))
    }

    /// The name of a file in a commit.
    pub fn snapshot(&self, repo: &str, commit: &str, file: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit).join(file)
    }

    /// Gives a blob its name in a commit: by a relative link, or, where links cannot be made, by moving the blob.
    pub fn link(&self, repo: &str, commit: &str, file: &str, hash: &str) -> io::Result<PathBuf> {
        let name = self.snapshot(repo, commit, file);
        let blob = self.blob(repo, hash);
        if fs::canonicalize(&name)
            .ok()
            .is_some_and(|there| fs::canonicalize(&blob).ok() == Some(there))
        {
            return Ok(name);
        }
        if let Some(folder) = name.parent() {
            fs::create_dir_all(folder)?;
        }
        let ups = Path::new(file).components().count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", ups)
            .collect::<PathBuf>()
            .join("blobs")
            .join(hash);
        let fresh = name.with_file_name(format!(".{hash}.new"));
        let _stale = fs::remove_file(&fresh);
        if std::os::unix::fs::symlink(&target, &fresh).is_ok() {
            fs::rename(&fresh, &name)?;
        } else {
            fs::rename(&blob, &name)?;
        }
        Ok(name)
    }

    /// Notes which commit `main` is.
    pub fn set_main(&self, repo: &str, commit: &str) -> io::Result<()> {
        let refs = self.repo(repo).join("refs");
        fs::create_dir_all(&refs)?;
        crate::files::replace(&refs.join("main"), commit.as_bytes())
    }

    /// Which commit `main` was when it was last asked for.
    pub fn main(&self, repo: &str) -> Option<String> {
        let text = fs::read_to_string(self.repo(repo).join("refs/main")).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// The GGUF files of one repository, of `main`'s commit first.
    pub fn files(&self, repo: &str) -> Vec<Cached> {
        let snapshots = self.repo(repo).join("snapshots");
        let mut found = Vec::new();
        for commit in names(&snapshots) {
            let folder = snapshots.join(&commit);
            walk(&folder, &folder, 0, &mut |file, path, bytes| {
                found.push(Cached {
                    repo: repo.to_owned(),
                    revision: commit.clone(),
                    file,
                    path,
                    bytes,
                });
            });
        }
        let main = self.main(repo);
        found.sort_by(|a, b| {
            let other = |cached: &Cached| Some(&cached.revision) != main.as_ref();
            (other(a), &a.file).cmp(&(other(b), &b.file))
        });
        found
    }

    /// All GGUF files.
    pub fn all(&self) -> Vec<Cached> {
        let mut found = Vec::new();
        for folder in names(&self.root) {
            let Some(repo) = folder.strip_prefix("models--") else {
                continue;
            };
            found.extend(self.files(&repo.replacen("--", "/", 1)));
            if found.len() > FILES_MAX {
                break;
            }
        }
        found
    }
}

/// Repository, commit and file name of a path in any cache of this layout.
pub fn origin(path: &Path) -> Option<BTreeMap<&'static str, String>> {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        })
        .collect();
    let place = parts.iter().position(|part| part.starts_with("models--"))?;
    let repo = parts
        .get(place)?
        .strip_prefix("models--")?
        .replacen("--", "/", 1);
    let ("snapshots", commit) = (*parts.get(place + 1)?, *parts.get(place + 2)?) else {
        return None;
    };
    let file = parts.get(place + 3..)?.join("/");
    is_commit(commit).then(|| {
        BTreeMap::from([
            ("repo", repo),
            ("revision", commit.to_owned()),
            ("file", file),
        ])
    })
}

/// 40 hexadecimal digits.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a name from a listing stays in its folder.
pub fn is_safe_name(file: &str) -> bool {
    let path = Path::new(file);
    !file.is_empty()
        && file.len() <= 1024
        && !file.chars().any(char::is_control)
        && path.components().count() <= DEPTH_MAX
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

fn names(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort();
    found
}

fn walk(root: &Path, folder: &Path, depth: usize, found: &mut dyn FnMut(String, PathBuf, u64)) {
    for name in names(folder) {
        let path = folder.join(&name);
        // A link to a blob that is not there is a download that was not finished.
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        if meta.is_dir() && depth < DEPTH_MAX {
            walk(root, &path, depth + 1, found);
        } else if meta.is_file()
            && Path::new(&name)
                .extension()
                .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
        {
            let file = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            found(file, path, meta.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_folder_is_found_in_the_order_of_the_other_tools() {
        let order = [
            "LLAMA_CACHE",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HOME",
            "XDG_CACHE_HOME",
            "HOME",
        ];
        let want = [
            "/x",
            "/x",
            "/x",
            "/x/hub",
            "/x/huggingface/hub",
            "/x/.cache/huggingface/hub",
        ];
        for (first, want) in order.iter().zip(want).rev() {
            let set = |name: &str| {
                let place = |wanted: &str| order.iter().position(|name| *name == wanted);
                (place(name) >= place(first)).then(|| OsString::from("/x"))
            };
            assert_eq!(
                Cache::find(&set).expect("found").root(),
                Path::new(want),
                "{first}"
            );
        }
        assert_eq!(Cache::find(&|_name| None), None);
    }

    #[test]
    fn a_linked_blob_is_found_again_by_its_name() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::at(folder.path().to_owned());
        let blob = cache.blob("a/b", "00ff");
        fs::create_dir_all(blob.parent().expect("has one")).expect("makes");
        fs::write(&blob, b"content").expect("writes");
        let name = cache
            .link("a/b", COMMIT, "sub/m.gguf", "00ff")
            .expect("links");
        assert_eq!(fs::read(&name).expect("reads"), b"content");
        assert_eq!(
            fs::read_link(&name).expect("is a link"),
            Path::new("../../../blobs/00ff")
        );
        cache
            .link("a/b", COMMIT, "sub/m.gguf", "00ff")
            .expect("again");
        cache.set_main("a/b", COMMIT).expect("writes");
        let files = cache.all();
        assert_eq!(files.len(), 1);
        let first = files.first().expect("one");
        assert_eq!(
            (first.repo.as_str(), first.file.as_str(), first.bytes),
            ("a/b", "sub/m.gguf", 7)
        );
        let origin = origin(&name).expect("of a repository");
        assert_eq!(origin.get("file").map(String::as_str), Some("sub/m.gguf"));
        fs::remove_file(blob).expect("removes");
        assert!(cache.all().is_empty(), "an unfinished one is not listed");
    }

    #[test]
    fn names_that_leave_their_folder_are_not_safe() {
        assert!(is_safe_name("a/b.gguf"));
        for name in ["", "../a", "/a", "a/../b", "a\n", "a/b/c/d/e/f/g/h/i"] {
            assert!(!is_safe_name(name), "{name}");
        }
    }
}
