//! Downloads against a hub that cuts, lies, stalls, sends other bytes and says no.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::hub::{COMMIT, Hub, Mood, sha256};
use super::*;
use crate::models::net::Patience;

const QUICK: Patience = Patience {
    stall: Duration::from_secs(1),
    pause: Duration::from_millis(2),
    pause_max: Duration::from_millis(10),
    tries: 4,
};

fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/models")
        .join(name)
}

/// A real header, and so many bytes after it that several pieces are needed.
fn large() -> Vec<u8> {
    let mut bytes = fs::read(model("tiny-fast-q8_0.gguf")).expect("the model is there");
    let more = 20 * 1024 * 1024;
    bytes.extend((0..more).map(|place: u32| place.wrapping_mul(2_654_435_761).to_le_bytes()[3]));
    bytes
}

struct House {
    folder: tempfile::TempDir,
    hub: Hub,
}

impl House {
    async fn new(mood: Mood, files: &[(&str, Vec<u8>)]) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        Self {
            folder: tempfile::tempdir().expect("folder"),
            hub: Hub::start(mood, files).await,
        }
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        match name {
            "HF_HOME" | "HOME" => Some(self.folder.path().into()),
            "HF_ENDPOINT" | "OLLAMA_REGISTRY" => {
                Some(format!("http://{}", self.hub.address).into())
            }
            "HF_TOKEN" => Some("hf_secret".into()),
            _ => None,
        }
    }

    async fn pull_as(&self, name: &str, offline: bool) -> Result<Pulled, PullError> {
        let variable = |name: &str| self.variable(name);
        let puller = Puller::new(&variable, offline)
            .expect("has a cache")
            .with_patience(QUICK);
        puller.pull(&Source::parse(name)?).await
    }

    async fn pull(&self, name: &str) -> Result<Pulled, PullError> {
        self.pull_as(name, false).await
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let blobs = self.folder.path().join("hub/models--me--m/blobs");
        let files = fs::read_dir(blobs)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        files
            .filter(|path| path.to_string_lossy().contains(".hearth-"))
            .collect()
    }
}

#[tokio::test]
async fn a_model_lands_in_the_shared_layout_and_is_not_fetched_twice() {
    let bytes = large();
    let house = House::new(
        Mood::Fair,
        &[
            ("m-Q8_0.gguf", bytes.clone()),
            ("mmproj-F16.gguf", b"p".to_vec()),
        ],
    )
    .await;
    let pulled = house.pull("hf:me/m").await.expect("pulls");
    let root = house.folder.path().join("hub/models--me--m");
    assert_eq!(
        pulled.model,
        root.join("snapshots").join(COMMIT).join("m-Q8_0.gguf")
    );
    assert!(
        pulled
            .projector
            .as_ref()
            .is_some_and(|path| path.ends_with("mmproj-F16.gguf"))
    );
    assert_eq!(fs::read(&pulled.model).expect("reads"), bytes);
    assert!(root.join("blobs").join(sha256(&bytes)).is_file());
    assert_eq!(
        fs::read_to_string(root.join("refs/main")).expect("reads"),
        COMMIT
    );
    assert!(house.leftovers().is_empty());
    let before = house.hub.downloads();
    assert!(before >= 3, "in ranges: {before}");
    house.pull("hf:me/m:q8_0").await.expect("is there");
    assert_eq!(house.hub.downloads(), before);
    assert_eq!(
        house
            .pull_as("hf:me/m", true)
            .await
            .expect("is there")
            .model,
        pulled.model
    );
    let state = house.hub.state.lock().expect("works");
    assert!(
        state
            .asked
            .iter()
            .all(|asked| asked.token.as_deref() == Some("Bearer hf_secret"))
    );
}

#[tokio::test]
async fn cuts_stalls_busy_answers_and_missing_ranges_are_got_over() {
    let bytes = large();
    for mood in [
        Mood::Cuts,
        Mood::Stalls,
        Mood::Busy,
        Mood::IgnoresRanges,
        Mood::Redirects,
    ] {
        let house = House::new(mood, &[("m-Q8_0.gguf", bytes.clone())]).await;
        let pulled = house
            .pull("hf:me/m")
            .await
            .unwrap_or_else(|error| panic!("{mood:?}: {error}"));
        assert_eq!(
            sha256(&fs::read(&pulled.model).expect("reads")),
            sha256(&bytes),
            "{mood:?}"
        );
        assert!(house.leftovers().is_empty(), "{mood:?}");
    }
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_not_where_it_redirects() {
    let house = House::new(Mood::Redirects, &[("m-Q8_0.gguf", large())]).await;
    house.pull("hf:me/m").await.expect("pulls");
    let state = house.hub.state.lock().expect("works");
    let (cdn, hub): (Vec<_>, Vec<_>) = state
        .asked
        .iter()
        .partition(|asked| asked.path.starts_with("/cdn"));
    assert!(
        !cdn.is_empty()
            && cdn
                .iter()
                .all(|asked| asked.token.is_none() && asked.range.is_some())
    );
    assert!(hub.iter().all(|asked| asked.token.is_some()));
}

#[tokio::test]
async fn other_bytes_are_refused_and_not_kept() {
    let house = House::new(Mood::OtherBytes, &[("m-Q8_0.gguf", large())]).await;
    let error = house
        .pull("hf:me/m")
        .await
        .expect_err("is wrong")
        .to_string();
    assert!(
        error.contains(&sha256(&large())) && error.contains("was deleted"),
        "{error}"
    );
    assert!(house.leftovers().is_empty());
    assert!(
        house.pull_as("hf:me/m", true).await.is_err(),
        "nothing has its name"
    );
    let lying = House::new(Mood::WrongPlace, &[("m-Q8_0.gguf", large())]).await;
    let pulled = lying
        .pull("hf:me/m")
        .await
        .expect("asks for the whole file instead");
    assert_eq!(
        sha256(&fs::read(pulled.model).expect("reads")),
        sha256(&large())
    );
}

#[tokio::test]
async fn a_download_that_died_goes_on_where_it_was() {
    let bytes = large();
    let house = House::new(Mood::Dies, &[("m-Q8_0.gguf", bytes.clone())]).await;
    let error = house.pull("hf:me/m").await.expect_err("dies").to_string();
    assert!(error.contains("busy (HTTP 503)"), "{error}");
    assert_eq!(house.leftovers().len(), 2, "bytes and map are kept");
    house.hub.set(Mood::Fair);
    let before = house.hub.state.lock().expect("works").asked.len();
    let pulled = house.pull("hf:me/m").await.expect("goes on");
    assert_eq!(fs::read(&pulled.model).expect("reads"), bytes);
    let state = house.hub.state.lock().expect("works");
    let ranges: Vec<_> = state
        .asked
        .iter()
        .skip(before)
        .filter_map(|asked| asked.range)
        .collect();
    assert!(
        ranges.iter().any(|(from, _to)| *from == 100_000),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_spoilt_part_is_fetched_anew_once() {
    let bytes = large();
    let house = House::new(Mood::Dies, &[("m-Q8_0.gguf", bytes.clone())]).await;
    assert!(house.pull("hf:me/m").await.is_err());
    let data = house
        .leftovers()
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with("incomplete"))
        .expect("kept");
    let mut spoilt = fs::read(&data).expect("reads");
    spoilt.iter_mut().take(10).for_each(|byte| *byte ^= 1);
    fs::write(&data, spoilt).expect("writes");
    house.hub.set(Mood::Fair);
    let pulled = house.pull("hf:me/m").await.expect("pulls");
    assert_eq!(fs::read(&pulled.model).expect("reads"), bytes);
}

#[tokio::test]
async fn what_cannot_be_had_says_what_to_do() {
    let house = House::new(Mood::Gated, &[("m-Q8_0.gguf", large())]).await;
    let text = house.pull("hf:me/m").await.expect_err("gated").to_string();
    assert!(
        text.contains("HF_TOKEN") && text.contains("terms") && !text.contains("hf_secret"),
        "{text}"
    );
    let text = house
        .pull_as("hf:me/none", true)
        .await
        .expect_err("not there")
        .to_string();
    assert!(
        text.contains("hf:me/none") && text.contains("--offline"),
        "{text}"
    );
    house.hub.set(Mood::Fair);
    let text = house
        .pull("hf:me/m:Q2_K")
        .await
        .expect_err("none")
        .to_string();
    assert_eq!(text, "me/m holds no Q2_K; it holds Q8_0");
}

#[tokio::test]
async fn an_address_and_a_file_become_models_too() {
    let house = House::new(Mood::Cuts, &[("a model.gguf", large())]).await;
    let url = format!("http://{}/x/a%20model.gguf", house.hub.address);
    let pulled = house.pull(&url).await.expect("pulls");
    assert_eq!(fs::read(&pulled.model).expect("reads"), large());
    let file = model("tiny-heavy-q8_0.gguf");
    let imported = house.pull(&file.to_string_lossy()).await.expect("imports");
    assert_eq!(
        fs::read(&imported.model).expect("reads"),
        fs::read(&file).expect("reads")
    );
    assert!(imported.model.starts_with(house.folder.path()));
    let text = house
        .pull("/dev/null")
        .await
        .expect_err("no model")
        .to_string();
    assert!(text.contains("is not a file"), "{text}");
}

#[tokio::test]
async fn what_ollama_has_on_this_machine_is_linked_not_fetched() {
    let house = House::new(Mood::Fair, &[]).await;
    let models = house.folder.path().join(".ollama/models");
    let bytes = fs::read(model("tiny-fast-q8_0.gguf")).expect("reads");
    let digest = sha256(&bytes);
    let manifest = models.join("manifests/registry.ollama.ai/library/tiny/1b");
    fs::create_dir_all(manifest.parent().expect("has one")).expect("makes");
    fs::create_dir_all(models.join("blobs")).expect("makes");
    let blob = models.join(format!("blobs/sha256-{digest}"));
    fs::write(&blob, &bytes).expect("writes");
    let layers = serde_json::json!({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{digest}"), "size": 1}]});
    fs::write(manifest, layers.to_string()).expect("writes");
    let pulled = house
        .pull_as("ollama:tiny:1b", true)
        .await
        .expect("is there");
    let ino = |path: &Path| fs::metadata(path).expect("exists").ino();
    assert_eq!(ino(&pulled.model), ino(&blob), "one file, two names");
}
