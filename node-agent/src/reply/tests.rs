use config::wire::valid::InvalidCode;

use super::*;

/// The contract with the proxy, in one table: whatever changes here changes there.
#[test]
fn every_refusal_has_its_status_and_code() {
    let context = engine::Refusal::ContextLengthExceeded {
        prompt_tokens: 3_000,
        max_tokens: Some(10),
        n_ctx: 2_048,
    };
    let fault = engine::Refusal::EngineFault {
        reason: "secret inner words".to_owned(),
    };
    let gone = engine::Refusal::WorkerGone {
        reason: "signal 11".to_owned(),
    };
    let grammar = engine::Refusal::BadGrammar {
        reason: "no root".to_owned(),
    };
    let invalid = Invalid {
        param: Some("n".to_owned()),
        code: InvalidCode::InvalidValue,
        message: "too many".to_owned(),
    };
    let all = [
        Refused::Unauthorised,
        Refused::NotFound,
        Refused::Method("POST"),
        Refused::BodyTooLarge { max: 1 },
        Refused::BodyLost,
        Refused::Crowded,
        Refused::Header("x-hearth-tier"),
        Refused::Body(invalid),
        Refused::Unsupported {
            param: "tools".to_owned(),
            message: "no".to_owned(),
        },
        Refused::Template(TemplateError::Refused("roles".to_owned())),
        Refused::Template(TemplateError::Broken("line 1".to_owned())),
        Refused::TierUnavailable {
            tier: Tier::Fast,
            reason: "its worker is down",
        },
        Refused::Draining,
        Refused::NotWoken(NotSent::Unwilling),
        Refused::Engine(context),
        Refused::Engine(engine::Refusal::QueueFull { waiting: 8 }),
        Refused::Engine(engine::Refusal::DeadlineExceeded),
        Refused::Engine(grammar.clone()),
        Refused::Engine(grammar).about_form("grammar"),
        Refused::Engine(fault),
        Refused::Engine(gone),
        Refused::Deadline,
    ];
    let lines: Vec<String> = all
        .iter()
        .map(|refused| {
            let response = refused.response();
            let retry = response.headers().get(RETRY_AFTER);
            let retry = retry.map_or("-", |value| value.to_str().unwrap_or("?"));
            let body = String::from_utf8_lossy(response.body()).into_owned();
            format!("{} {retry} {body}", response.status().as_u16())
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}
