//! A picture is sent to the house, and a model at home looks at it; a model that has no eyes is not asked.

#[path = "../models/projector.rs"]
mod projector;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::client::{Client, Reply};
use tests::node::Node;
use tests::proxy::Proxy;

/// A picture in the simplest format there is: 24-bit pixels from the bottom row up.
fn bmp(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let row = (width * 3).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    file.extend((54 + row * height).to_le_bytes());
    file.extend([0, 0, 0, 0]);
    file.extend(54_u32.to_le_bytes());
    file.extend(40_u32.to_le_bytes());
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([1, 0, 24, 0]);
    file.extend([0; 24]);
    let pixels: Vec<u8> = colour.repeat(usize::try_from(width).expect("small"));
    for _row in 0..height {
        file.extend(&pixels);
        file.resize(file.len().next_multiple_of(2), 0);
        let padding = usize::try_from(row - width * 3).expect("below four");
        file.extend(std::iter::repeat_n(0, padding));
    }
    file
}

fn about(model: &str, url: &str) -> Value {
    json!({
        "model": model,
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": true,
        "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is in this picture?"},
        ]}],
    })
}

async fn look(friend: &Client, model: &str, colour: [u8; 3]) -> Reply {
    let data = STANDARD.encode(bmp(64, 64, colour));
    let url = format!("data:image/bmp;base64,{data}");
    friend.complete(about(model, &url)).await
}

fn tokens(reply: &Reply, field: &str) -> u64 {
    let usage = &reply.json()["usage"];
    usage
        .pointer(field)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{field} of {usage}"))
}

#[tokio::test]
async fn a_picture_goes_to_a_model_that_sees() {
    let folder = tempfile::tempdir().expect("a folder");
    let eyes = projector::write_vision(folder.path(), projector::TINY_WIDTH);
    let proxy = Proxy::start().await;
    let _home = Node::named("den")
        .tier("primary")
        .tier("fast")
        .seeing(&eyes)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "primary"]).await;

    let blue = look(&friend, "tiny-fast", [250, 20, 20]).await;
    let same = look(&friend, "tiny-fast", [250, 20, 20]).await;
    let red = look(&friend, "tiny-fast", [20, 20, 250]).await;
    assert_eq!(blue.status, 200, "{}", blue.json());
    let said = |reply: &Reply| reply.json()["choices"][0].clone();
    assert_eq!(
        blue.text(),
        same.text(),
        "the same picture, the same answer"
    );
    assert_ne!(said(&blue), said(&red), "the model sees the colour");
    assert!(tokens(&blue, "/prompt_tokens_details/image_tokens") >= projector::IMAGE_TOKENS);
    assert!(tokens(&same, "/prompt_tokens_details/cached_tokens") > 0);
    assert!(
        tokens(&blue, "/prompt_tokens") > tokens(&blue, "/prompt_tokens_details/image_tokens"),
        "the picture is part of the prompt"
    );
    let automatic = look(&friend, "auto", [1, 2, 3]).await;
    assert_eq!(
        automatic.routing()["tier"],
        "fast",
        "the only one with eyes"
    );
    let models = friend.get("/v1/models").await.json();
    let listed = models["data"].as_array().expect("a list").iter();
    let seeing: Vec<Value> = listed
        .filter(|model| {
            let takes = &model["architecture"]["input_modalities"];
            takes
                .as_array()
                .is_some_and(|takes| takes.contains(&json!("image")))
        })
        .map(|model| model["id"].clone())
        .collect();
    assert!(seeing.contains(&json!("tiny-fast")), "{seeing:?}");
    assert!(!seeing.contains(&json!("tiny-primary")), "{seeing:?}");
}

#[tokio::test]
async fn a_picture_that_nobody_can_look_at_is_refused_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let eyes = projector::write_vision(folder.path(), projector::TINY_WIDTH);
    let proxy = Proxy::start().await;
    let _home = Node::named("den")
        .tier("primary")
        .tier("fast")
        .seeing(&eyes)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "primary"]).await;

    let blind = look(&friend, "tiny-primary", [1, 2, 3]).await;
    assert_eq!(blind.json()["model"], "tiny-fast", "another model has eyes");

    let place = "messages[0].content[0].image_url";
    for (url, status) in [
        ("http://169.254.169.254/latest/meta-data", 400),
        ("file:///etc/passwd", 400),
        ("data:image/png;base64,bm90IGEgcGljdHVyZQ==", 400),
        ("data:text/html;base64,PGI+", 400),
    ] {
        let reply = friend.complete(about("tiny-fast", url)).await;
        let body = reply.json();
        assert_eq!(reply.status, status, "{url}: {body}");
        assert_eq!(body["error"]["param"], place, "{url}: {body}");
    }
    let mut bomb = bmp(1, 1, [0, 0, 0]);
    bomb[18..22].copy_from_slice(&16_000_u32.to_le_bytes());
    bomb[22..26].copy_from_slice(&16_000_u32.to_le_bytes());
    let url = format!("data:image/bmp;base64,{}", STANDARD.encode(bomb));
    let reply = friend.complete(about("tiny-fast", &url)).await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.json()["error"]["message"]
            .to_string()
            .contains("16000"),
        "{}",
        reply.json()
    );

    let heard = json!({"model": "tiny-fast", "messages": [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    ]}]});
    let deaf = friend.complete(heard).await;
    assert_eq!(deaf.status, 400, "{}", deaf.json());
    let fine = look(&friend, "tiny-fast", [9, 9, 9]).await;
    assert_eq!(fine.status, 200, "nothing of this hurt: {}", fine.json());
}

/// Half a second of a square wave in the plainest wav file there is.
fn wav(half_period: usize) -> Vec<u8> {
    const SAMPLES: u32 = 8_000;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + SAMPLES * 2).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(16_000_u32.to_le_bytes());
    file.extend(32_000_u32.to_le_bytes());
    file.extend([2, 0, 16, 0]);
    file.extend(b"data");
    file.extend((SAMPLES * 2).to_le_bytes());
    for sample in (0_usize..).take(8_000) {
        let high = (sample / half_period).is_multiple_of(2);
        let level: i16 = if high { 9_000 } else { -9_000 };
        file.extend(level.to_le_bytes());
    }
    file
}

#[tokio::test]
async fn a_sound_goes_to_a_model_that_hears() {
    let folder = tempfile::tempdir().expect("a folder");
    let ears = projector::write_audio(folder.path(), projector::TINY_WIDTH);
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").seeing(&ears).join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let about = |half_period| {
        let data = STANDARD.encode(wav(half_period));
        json!({"model": "fast", "temperature": 0, "max_tokens": 8, "logprobs": true, "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "What do you hear?"},
                {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            ]},
        ]})
    };
    let low = friend.complete(about(80)).await;
    let high = friend.complete(about(8)).await;
    assert_eq!(low.status, 200, "{}", low.json());
    assert_ne!(low.json()["choices"], high.json()["choices"], "it hears");
    assert_eq!(
        tokens(&low, "/prompt_tokens_details/audio_tokens"),
        projector::AUDIO_TOKENS
    );
    let seen = look(&friend, "fast", [1, 2, 3]).await;
    assert_eq!(seen.status, 400, "it has no eyes: {}", seen.json());
}
