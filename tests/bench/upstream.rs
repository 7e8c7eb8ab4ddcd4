//! The upstream of the edge benchmark: one fixed answer, as a node behind the tunnel and over plain TCP at once, so that Hearth and
//! a plain proxy are measured before the same process.

use std::sync::Arc;

use bytes::Bytes;
use config::wire::node::ModelReport;
use http_body_util::Full;
use hyper::Response;
use tests::fake::{Answer, Failure, FakeNode, serve};
use tokio::net::TcpListener;

const ANSWER: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"The capital of France is Paris.","refusal":null},"finish_reason":"stop","logprobs":null}],"usage":{"prompt_tokens":12,"completion_tokens":8,"total_tokens":20}}"#;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut arguments = std::env::args().skip(1);
    let (Some(link), Some(certificate), Some(port)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: bench-upstream JOIN_LINK CERTIFICATE_FILE TCP_PORT".into());
    };
    let answer: Answer = Arc::new(|_| {
        let mut response = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
        response.headers_mut().insert(
            "content-type",
            http::HeaderValue::from_static("application/json"),
        );
        response
    });
    let model = ModelReport {
        id: "bench".to_owned(),
        aliases: Vec::new(),
        file_sha256: String::new(),
        size_bytes: 1,
        n_ctx: 4096,
        n_ctx_train: 4096,
        parameters: 1,
        quantization: "Q8_0".to_owned(),
        architecture: "llama".to_owned(),
        modalities: Vec::new(),
    };
    let _node = FakeNode::join(
        &link,
        &std::fs::read_to_string(certificate)?,
        model,
        Arc::clone(&answer),
    )
    .await?;
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, Arc::clone(&answer)));
    }
}
