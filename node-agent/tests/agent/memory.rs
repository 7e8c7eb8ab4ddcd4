//! What the arithmetic predicts, held against what a worker process takes.

use std::path::{Path, PathBuf};

use engine::{Event, GenerateSpec, KvType, LoadSpec, Worker};
use node_agent::models::Gguf;
use node_agent::models::machine::{program, resident};
use node_agent::models::memory::{Load, Need, Shape};
use tokio::time::timeout;

use crate::support::{PATIENCE, launcher, model};

/// Off by no more than this share.
const TOLERANCE: f64 = 0.10;

struct Case {
    path: PathBuf,
    context: u64,
    slots: u64,
    kv: (KvType, u64),
}

fn predicted(case: &Case, program: Option<u64>) -> Need {
    let gguf = Gguf::open_whole(&case.path).expect("a model");
    let shape = Shape::of(&gguf).expect("a language model");
    let load = Load::plain(case.context, case.slots, case.kv.1, 0);
    shape.need(load.with_program(program))
}

/// Resident memory of a worker after one answer to a prompt that fills a step, and the size of its program.
async fn measured(case: &Case) -> (u64, Option<u64>) {
    let mut spec = LoadSpec::new(&case.path);
    spec.n_ctx = u32::try_from(case.context).expect("small");
    spec.slots = u16::try_from(case.slots).expect("few");
    spec.kv_type = case.kv.0;
    spec.threads = Some(1);
    spec.prompt_cache_bytes = 0;
    let launcher = launcher();
    let spawned = Worker::spawn(&launcher.program, &launcher.args, spec).await;
    let (worker, _card) = spawned.expect("loads");
    let mut ask = GenerateSpec::from_template("the house and its garden are old. ".repeat(40));
    ask.max_tokens = Some(16);
    let mut answer = worker.generate(ask).await.expect("accepted");
    loop {
        match timeout(PATIENCE, answer.next()).await.expect("in time") {
            Some(Event::Done { .. }) => break,
            Some(Event::Refused(refusal)) => panic!("{refusal:?}"),
            Some(_) => {}
            None => panic!("ended without an answer"),
        }
    }
    let bytes = worker.pid().and_then(resident).expect("runs");
    let program = worker.pid().and_then(program);
    worker.shutdown().await;
    (bytes, program)
}

/// Says how far off the prediction is, and whether that is too far.
async fn is_off(case: &Case) -> Option<String> {
    let (measured, program) = measured(case).await;
    let need = predicted(case, program);
    let off = (millions(need.total()) / millions(measured)) - 1.0;
    let name = case
        .path
        .file_name()
        .expect("has one")
        .to_string_lossy()
        .into_owned();
    (off.abs() > TOLERANCE).then(|| {
        format!(
            "{name} {}x{} {:?}: predicted {need:?} = {}, measured {measured}, {:+.1} %",
            case.context,
            case.slots,
            case.kv.0,
            need.total(),
            off * 100.0
        )
    })
}

fn millions(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).expect("below 4 TiB")) / 1024.0
}

async fn all_hold(cases: &[Case]) {
    let mut off = Vec::new();
    for case in cases {
        off.extend(is_off(case).await);
    }
    assert!(off.is_empty(), "{off:?}");
}

fn case(path: &Path, context: u64, slots: u64) -> Case {
    Case {
        path: path.to_owned(),
        context,
        slots,
        kv: (KvType::F16, 64),
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn predictions_for_tiny_models_are_within_a_tenth_of_what_a_worker_takes() {
    let mut cases = Vec::new();
    for name in ["fast", "primary", "heavy"] {
        let path = model(&format!("tiny-{name}-q8_0.gguf"));
        cases.extend([case(&path, 2_048, 4), case(&path, 512, 1)]);
    }
    let heavy = model("tiny-heavy-q8_0.gguf");
    cases.push(case(&heavy, 2_048, 32));
    cases.push(Case {
        kv: (KvType::Q8_0, 34),
        ..case(&heavy, 2_048, 32)
    });
    all_hold(&cases).await;
}

#[tokio::test]
#[ignore = "its model is made by tests/bench.sh engine"]
#[cfg(target_os = "linux")]
async fn predictions_for_a_larger_model_are_within_a_tenth_too() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench/rand150-q8_0.gguf");
    let sizes = [(2_048, 4), (512, 1), (4_096, 8)];
    let mut cases: Vec<Case> = sizes
        .map(|(context, slots)| case(&path, context, slots))
        .into();
    cases.push(Case {
        kv: (KvType::Q8_0, 34),
        ..case(&path, 4_096, 8)
    });
    all_hold(&cases).await;
}
