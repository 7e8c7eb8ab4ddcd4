//! What is kept about a person, what is forgotten, and who may do what only this machine may.

use config::ids::Tenant;
use config::settings::plan::Zone;
use policy::calendar::Today;

use super::super::server::now_unix_ms;
use super::super::words::{Erased, UserExport};
use super::*;
use crate::store::UserRecord;

fn person(id: &str) -> UserRecord {
    UserRecord {
        id: UserId::new(id),
        tenant: Tenant::default(),
        issuer: "https://issuer.example".into(),
        email: None,
        groups: vec!["family".into()],
        plan: None,
        overrides: Plan::default(),
        disabled_unix: None,
        first_seen_unix: 100,
        last_seen_unix: 100,
    }
}

#[tokio::test]
async fn a_person_is_exported_whole_and_forgotten_but_for_the_audit_log() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let key: KeyMade = client
        .post(
            "/admin/v1/keys",
            &KeyOrder {
                owner: Some("ada".into()),
                ..order("laptop")
            },
        )
        .await
        .unwrap();
    desk.store.create_user(&person("ada")).await.unwrap();
    let changes = [JSON, ("if-match", "*")];
    let patch = r#"{"overrides":{"text_per_day":7}}"#;
    let at = ("PATCH", "/admin/v1/users/ada");
    assert_eq!(ask(&mut client, at, &changes, patch).await.0, 200);
    let at = ("POST", "/admin/v1/denials");
    let denial = r#"{"whom":"user:ada","reason":"lost phone"}"#;
    assert_eq!(ask(&mut client, at, &[JSON], denial).await.0, 201);
    let now_ms = now_unix_ms();
    let entry = LedgerEntry {
        at_unix_ms: now_ms,
        day: Today::at(Zone::default(), now_ms)
            .day
            .label
            .to_string()
            .into(),
        ..LedgerEntry::new(
            format!("{:032}", 1),
            RequestId::new("req_1"),
            UserId::new("ada"),
        )
    };
    desk.store
        .append(std::slice::from_ref(&entry))
        .await
        .unwrap();

    let all: UserExport = client.get("/admin/v1/users/ada/export").await.unwrap();
    assert_eq!(all.user.overrides.text_per_day, Some(7));
    assert_eq!(all.keys[0].id, key.record.id);
    assert_eq!(all.records, [entry]);
    assert_eq!(all.usage[0].totals.requests, 1);
    assert_eq!(all.denials[0].reason, "lost phone");
    let acts: Vec<&str> = all.audit.iter().map(|line| &*line.act.action).collect();
    assert_eq!(acts, ["key.create", "user.patch", "denial.put"]);

    let erased: Erased = delete(&mut client, "/admin/v1/users/ada").await.unwrap();
    assert!(erased.account);
    assert_eq!((erased.keys_revoked, erased.denials), (1, 1));
    // The entry; of a day and of its month, the sum of the person.
    assert_eq!(erased.usage_rows, 1 + 2);
    let status = ask(&mut client, ("GET", "/admin/v1/users/ada"), &[], "").await;
    assert_eq!(status.0, 404);
    assert_eq!(desk.store.denials().await.unwrap(), []);
    let last = desk.store.last_audit().await.unwrap().unwrap().act;
    assert_eq!(last.action, "user.erase");
    for line in desk.store.audit(0, 100).await.unwrap() {
        let line = serde_json::to_string(&line.act).unwrap();
        // The letters alone may stand in any number that is written in hex.
        let is_named = line.contains("\"ada\"") || line.contains(":ada");
        assert!(!is_named, "the hashed name alone: {line}");
    }
    let check: AuditCheck = client.get("/admin/v1/audit/verify").await.unwrap();
    assert!(check.is_whole);
}

#[tokio::test]
async fn a_backup_is_a_store_of_its_own_and_replaces_nothing() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let made: KeyMade = client
        .post("/admin/v1/keys", &order("laptop"))
        .await
        .unwrap();
    assert_eq!(made.record.name, "laptop");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(crate::store::embedded::FILE_NAME);
    let wanted = json!({ "file": file }).to_string();
    let at = ("POST", "/admin/v1/backups");
    let (status, _, made) = ask(&mut client, at, &[JSON], &wanted).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(ask(&mut client, at, &[JSON], &wanted).await.0, 409);
    let beside = r#"{"file":"hearth.redb"}"#;
    assert_eq!(ask(&mut client, at, &[JSON], beside).await.0, 400);
    let copy = Embedded::open(folder.path()).unwrap();
    assert_eq!(crate::store::Records::keys(&copy).await.unwrap().len(), 1);
}

fn asked(actor: &str, from: &str, path: &str, body: &str) -> Asked {
    let mut headers = http::HeaderMap::new();
    let json = http::HeaderValue::from_static("application/json");
    headers.insert(http::header::CONTENT_TYPE, json);
    headers.insert("idempotency-key", http::HeaderValue::from_static("first"));
    Asked {
        method: http::Method::POST,
        path: path.into(),
        query: None,
        headers,
        body: Bytes::copy_from_slice(body.as_bytes()),
        actor: actor.into(),
        from: from.into(),
        request_id: RequestId::new("req_1"),
        now_unix_ms: now_unix_ms(),
    }
}

#[tokio::test]
async fn two_callers_may_use_one_idempotency_key_and_strangers_write_no_file() {
    let desk = Desk::open().await;
    let operations = Operations::new(
        Arc::clone(&desk.store),
        "https://llm.example.org".into(),
        None,
        None,
    );
    let api = Api::new(operations, ApiFacts::for_tests());
    let mut made = Vec::new();
    for actor in ["key:a", "key:b", "key:a"] {
        let asked = asked(actor, "192.0.2.7", "/admin/v1/keys", r#"{"name":"same"}"#);
        let answer = api.answer(&asked).await;
        assert_eq!(answer.status, http::StatusCode::CREATED);
        let key: KeyMade = serde_json::from_slice(&answer.body).unwrap();
        made.push(key.key);
    }
    assert_eq!(made[0], made[2], "the same caller gets the same key");
    assert_ne!(made[0], made[1], "another caller gets another one");

    let mut long = asked("key:a", "192.0.2.7", "/admin/v1/keys", r#"{"name":"a"}"#);
    let name = http::HeaderValue::from_str(&"x".repeat(256)).unwrap();
    long.headers.insert("idempotency-key", name);
    let refused = api.answer(&long).await.status;
    assert_eq!(refused, http::StatusCode::BAD_REQUEST);

    let folder = tempfile::tempdir().unwrap();
    let body = json!({ "file": folder.path().join("copy.redb") }).to_string();
    let far = asked("key:a", "192.0.2.7", "/admin/v1/backups", &body);
    assert_eq!(api.answer(&far).await.status, http::StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_join_link_that_leads_nowhere_says_so_and_another_says_nothing() {
    let desk = Desk::open().await;
    for warning in [None, Some("set public_url".to_owned())] {
        let url = "https://localhost:8443".into();
        let operations = Operations::new(Arc::clone(&desk.store), url, None, None);
        let api = Api::new(operations.warning(warning.clone()), ApiFacts::for_tests());
        let mut wanted = asked("key:a", "192.0.2.7", "/admin/v1/join-tokens", "{}");
        wanted.headers.remove("idempotency-key");
        let answer = api.answer(&wanted).await;
        assert_eq!(answer.status, http::StatusCode::CREATED);
        let invite: Invite = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(invite.warning, warning);
    }
}

#[tokio::test]
async fn a_key_is_found_by_its_name_and_its_owner_has_an_account_before_the_first_request() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let order = |name: &str| KeyOrder {
        owner: Some("ada".into()),
        ..order(name)
    };
    for name in ["laptop", "phone", "phone"] {
        let made: KeyMade = client.post("/admin/v1/keys", &order(name)).await.unwrap();
        assert_eq!(made.record.owner.as_str(), "ada");
    }
    let users = ask(&mut client, ("GET", "/admin/v1/users"), &[], "")
        .await
        .2;
    assert_eq!(users["data"][0]["id"], "ada", "{users}");
    let changes = [JSON, ("if-match", "*")];
    let patch = r#"{"overrides":{"text_per_day":7}}"#;
    let at = ("PATCH", "/admin/v1/users/ada");
    assert_eq!(ask(&mut client, at, &changes, patch).await.0, 200);
    let show = ("GET", "/admin/v1/keys/laptop");
    assert_eq!(ask(&mut client, show, &[], "").await.0, 200);
    let rotated = ask(
        &mut client,
        ("POST", "/admin/v1/keys/laptop/rotate"),
        &[],
        "",
    )
    .await;
    assert_eq!(rotated.0, 200, "{}", rotated.2);
    let ambiguous = ask(&mut client, ("DELETE", "/admin/v1/keys/phone"), &[], "").await;
    assert_eq!(ambiguous.0, 409, "{}", ambiguous.2);
    let revoked = ask(&mut client, ("DELETE", "/admin/v1/keys/laptop"), &[], "").await;
    assert_eq!(revoked.0, 200);
    let gone = ask(&mut client, show, &[], "").await.0;
    assert_eq!(gone, 404, "a name that ended is free");
}
