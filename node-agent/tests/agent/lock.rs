//! A model that is not the one it was is not served, until somebody accepts it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::settings::node::TierSettings;
use config::tier::Tier;
use node_agent::models::lock::{Keeper, Lock};
use node_agent::tiers::{Phase, Tiers};
use tokio::time::timeout;

use crate::support::{PATIENCE, launcher, model, tiny_fast};

fn put(name: &str, path: &Path) {
    std::fs::copy(model(&format!("tiny-{name}-q8_0.gguf")), path).expect("copies");
    // The time of a file may be coarse; another one is another time.
    let later = SystemTime::now() + Duration::from_secs(u64::try_from(name.len()).unwrap_or(1));
    let file = std::fs::File::options()
        .write(true)
        .open(path)
        .expect("opens");
    file.set_modified(later).expect("sets");
}

async fn settled(tiers: &Tiers) -> Phase {
    let room = tiers.room(Tier::Fast).expect("there");
    let mut phases = room.phases();
    let settled = phases.wait_for(|phase| matches!(phase, Phase::Ready(_) | Phase::Down { .. }));
    let settled = timeout(PATIENCE, settled).await.expect("in time");
    settled.expect("lives").clone()
}

#[tokio::test]
async fn a_changed_file_is_refused_with_both_hashes_until_it_is_accepted() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("m.gguf");
    put("fast", &path);
    let settings = TierSettings {
        model: path.clone(),
        ..tiny_fast()
    };
    let start = || {
        let keeper = Arc::new(Keeper::new(folder.path()));
        Tiers::locked(vec![settings.clone()], None, &launcher(), &keeper)
    };

    let tiers = start();
    assert!(matches!(settled(&tiers).await, Phase::Ready(_)));
    let room = tiers.room(Tier::Fast).expect("there").clone();
    let pinned = Lock::read(folder.path()).expect("reads").models["tiny-fast"].clone();
    let report = room.report().model.expect("ready");
    assert_eq!(
        report.file_sha256, pinned.sha256,
        "the report says what was pinned"
    );
    let before = room.fingerprint(false).expect("known");
    assert!(before.starts_with("fp_"), "{before}");
    tiers.shutdown().await;

    put("primary", &path);
    let tiers = start();
    let Phase::Down { reason } = settled(&tiers).await else {
        panic!("a changed model was served");
    };
    let room = tiers.room(Tier::Fast).expect("there").clone();
    assert_eq!(room.starts(), 0, "no worker saw it");
    assert!(reason.contains(&pinned.sha256), "{reason}");
    assert!(
        reason.contains("hearth-node models lock --update tiny-fast"),
        "{reason}"
    );

    let keeper = Keeper::new(folder.path());
    let run = tokio_util::sync::CancellationToken::new();
    let (old, new) = keeper.update("tiny-fast", &path, &run).expect("accepts");
    assert_eq!(old, Some(pinned));
    assert!(reason.contains(&new.sha256), "{reason}");
    // The supervisor tries again by itself.
    let mut phases = room.phases();
    let ready = phases.wait_for(|phase| matches!(phase, Phase::Ready(_)));
    drop(
        timeout(PATIENCE, ready)
            .await
            .expect("in time")
            .expect("lives"),
    );
    assert_ne!(
        room.fingerprint(false),
        Some(before),
        "another model answers"
    );
    assert_eq!(room.report().model.expect("ready").file_sha256, new.sha256);
    tiers.shutdown().await;
}
