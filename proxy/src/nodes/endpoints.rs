//! Where the nodes were last heard from and under which public key, kept in a file of this proxy: after a restart the hub itself calls
//! them instead of waiting until a node notices. A hint only: WireGuard authenticates whoever answers. Never holds a secret, never fails
//! a request.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use config::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::kept;

/// A file that is larger is not ours: 10,000 nodes take a tenth of it.
const FILE_MAX: u64 = 8 << 20;

/// How a node was last reached.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Heard {
    /// Where its packets came from.
    pub endpoint: SocketAddr,
    /// Base64 of its WireGuard public key then.
    pub wireguard_key: String,
}

/// Last known endpoint of every node that this hub has heard.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// `None`: nothing outlives the process.
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<NodeId, Heard>>,
}

impl Endpoints {
    /// Reads what an earlier run has left. A file that cannot be read is the same as none: nodes come back by themselves, later.
    pub fn open(file: PathBuf) -> Self {
        let known = match kept::read(&file, FILE_MAX) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "last known endpoints of the nodes cannot be read; nodes must call first");
                BTreeMap::new()
            }
        };
        Self {
            file: Some(file),
            known: Mutex::new(known),
        }
    }

    /// Where a node was last heard from.
    pub fn of(&self, node: &NodeId) -> Option<Heard> {
        self.known().get(node).cloned()
    }

    /// Replaces what is known by what `told` says of each node: `None` keeps what was known, nodes not named are forgotten. Writes
    /// the file if anything changed.
    pub async fn note(&self, told: Vec<(NodeId, Option<Heard>)>) {
        let text = {
            let mut known = self.known();
            let next: BTreeMap<_, _> = told
                .into_iter()
                .filter_map(|(node, heard)| {
                    let endpoint = heard.or_else(|| known.get(&node).cloned())?;
                    Some((node, endpoint))
                })
                .collect();
            if next == *known {
                return;
            }
            *known = next;
            serde_json::to_vec(&*known)
        };
        let (Some(file), Ok(text)) = (self.file.clone(), text) else {
            return;
        };
        let shown = file.display().to_string();
        let written = tokio::task::spawn_blocking(move || kept::write(&file, &text)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(file = shown, %error, "endpoints of the nodes cannot be kept; after a restart nodes must call first");
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Heard {
        Heard {
            endpoint: SocketAddr::from(([192, 0, 2, 1], port)),
            wireguard_key: format!("key {port}"),
        }
    }

    #[tokio::test]
    async fn endpoints_outlive_the_process_and_forgotten_nodes_leave() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("endpoints.json");
        let (one, two) = (NodeId::new("node_1"), NodeId::new("node_2"));
        let endpoints = Endpoints::open(file.clone());
        let told = vec![(one.clone(), Some(at(1))), (two.clone(), Some(at(2)))];
        endpoints.note(told).await;
        let again = Endpoints::open(file.clone());
        assert_eq!((again.of(&one), again.of(&two)), (Some(at(1)), Some(at(2))));
        again.note(vec![(one.clone(), None)]).await;
        let last = Endpoints::open(file);
        assert_eq!((last.of(&one), last.of(&two)), (Some(at(1)), None));
    }

    #[test]
    fn a_broken_file_is_the_same_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("endpoints.json");
        std::fs::write(&file, "{\"node_1\": \"nowhere\"").unwrap();
        assert_eq!(Endpoints::open(file).of(&NodeId::new("node_1")), None);
    }
}
