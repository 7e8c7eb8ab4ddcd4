//! The commands for a new machine: the guided start, the measurement, a Modelfile.

use std::path::Path;

use serde_json::Value;

use crate::program::run;
use crate::support::model;

const GOLDEN: &str = r#"{"id": "greet", "prompt": "Hello", "equals": "Hello! How can I help you today?"}
{"id": "capital", "prompt": "What is the capital of France?", "expect": "(?i)paris", "contains": ["France"]}
{"id": "never", "prompt": "Hello", "expect": "^no such answer$"}
"#;

async fn set_up(config: &Path, state: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut arguments = vec!["setup", "--yes", "--no-join", "--config"];
    arguments.push(config.to_str().expect("text"));
    arguments.extend(["--state-dir", state.to_str().expect("text")]);
    arguments.extend(more);
    run(&arguments).await
}

#[tokio::test]
async fn a_machine_is_set_up_once_and_the_same_command_finds_it_done() {
    let folder = tempfile::tempdir().expect("folder");
    let (config, state) = (folder.path().join("node.toml"), folder.path().join("state"));
    let file = model("tiny-fast-q8_0.gguf");
    let file = file.to_str().expect("text");
    let (code, said) = set_up(&config, &state, &["--model", file]).await;
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "machine ",
        "pull ",
        "advice ",
        "lock ",
        "bench ",
        "settings ",
        "ready: ",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let text = std::fs::read_to_string(&config).expect("was written");
    let config_text = config.to_str().expect("text");
    let (code, checked) = run(&["config", "check", config_text]).await;
    assert_eq!(code, Some(0), "{checked}");
    assert!(state.join("models.lock").exists());

    let (code, again) = set_up(&config, &state, &["--model", file, "--no-bench"]).await;
    assert_eq!(code, Some(0), "{again}");
    assert!(again.contains("already"), "{again}");
    assert_eq!(std::fs::read_to_string(&config).expect("reads"), text);

    let other = model("tiny-heavy-q8_0.gguf");
    let other = other.to_str().expect("text");
    let (code, refused) = set_up(&config, &state, &["--model", other, "--no-bench"]).await;
    assert_eq!(code, Some(1), "{refused}");
    assert!(refused.contains("choose another --tier"), "{refused}");
    let more = ["--model", other, "--tier", "heavy", "--no-bench"];
    let (code, added) = set_up(&config, &state, &more).await;
    assert_eq!(code, Some(0), "{added}");
    assert_eq!(run(&["config", "check", config_text]).await.0, Some(0));
}

#[tokio::test]
async fn nobody_is_asked_where_nobody_can_answer() {
    let (code, said) = run(&["setup", "--no-join"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--yes"), "{said}");
}

#[tokio::test]
async fn a_tier_is_measured_and_its_answers_are_judged() {
    let folder = tempfile::tempdir().expect("folder");
    let config = crate::program::write_settings(folder.path());
    let config = config.to_str().expect("text");
    let short = ["--tokens", "16", "--rounds", "2", "--config", config];
    let (code, said) = run(&[&["bench", "--json"][..], &short[..]].concat()).await;
    assert_eq!(code, Some(0), "{said}");
    let told: Value = serde_json::from_str(&said).expect("JSON");
    let tier = &told["tiers"][0];
    assert_eq!(tier["name"], "fast");
    for figure in [
        "tokens_per_second",
        "tokens_per_second_4",
        "token_p50_ms",
        "token_p99_ms",
        "ttft_p50_ms",
        "prompt_tokens_per_second",
    ] {
        assert!(
            tier[figure].as_f64().is_some_and(|value| value > 0.0),
            "{figure} in {told}"
        );
    }
    assert!(
        tier["memory_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 1_000_000),
        "{told}"
    );
    assert_eq!(tier["n_ctx"], 2_048);

    let golden = folder.path().join("golden.jsonl");
    std::fs::write(&golden, GOLDEN).expect("writes");
    let golden = golden.to_str().expect("text");
    let judged = [
        "bench", "--golden", golden, "--tier", "fast", "--config", config,
    ];
    let (code, said) = run(&[&judged[..], &["--min-accuracy", "0.6"][..]].concat()).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("2 of 3 right") && said.contains("never: does not match"),
        "{said}"
    );
    let (code, said) = run(&[&judged[..], &["--min-accuracy", "0.9"][..]].concat()).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--min-accuracy asks for 90.0 %"), "{said}");
}

#[tokio::test]
async fn an_imported_modelfile_passes_the_check_of_the_settings() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("Modelfile");
    let from = model("tiny-primary-q8_0.gguf");
    let text = format!(
        "FROM {}\nPARAMETER num_ctx 1024\nPARAMETER num_thread 2\nPARAMETER temperature 0.2\nPARAMETER top_k 20\nSYSTEM \"\"\"You are \"tiny\".\nBe brief.\"\"\"\n",
        from.display()
    );
    std::fs::write(&file, text).expect("writes");
    let output = crate::program::command(&["models", "import", file.to_str().expect("text")])
        .env("HF_HOME", folder.path().join("hub"))
        .output()
        .await
        .expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let section = String::from_utf8(output.stdout).expect("text");
    assert!(
        section.contains("system = ") && section.contains("temperature = 0.2"),
        "{section}"
    );
    let config = folder.path().join("node.toml");
    let state = folder.path().join("state");
    let settings = format!("[node]\nstate_dir = \"{}\"\n\n{section}", state.display());
    std::fs::write(&config, settings).expect("writes");
    let (code, said) = run(&["config", "check", config.to_str().expect("text")]).await;
    assert_eq!(code, Some(0), "{said}\n{section}");
}
