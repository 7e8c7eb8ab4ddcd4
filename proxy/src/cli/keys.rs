//! `key create`, `key list`, `key revoke`.

use config::settings::proxy::{Plan, Settings};

use super::CliError;
use super::args::{KeyCreate, Output};
use super::print::{self, Table};
use super::reach::{Need, Reach};
use crate::admin::words::{KeyMade, KeyOrder, KeyView};

pub(super) async fn create(
    settings: &Settings,
    wanted: KeyCreate,
    output: Output,
) -> Result<(), CliError> {
    let order = order(settings, wanted)?;
    let made: KeyMade = match Reach::open(settings, Need::Records).await? {
        Reach::Running(mut proxy) => proxy.post("/v1/keys", &order).await?,
        Reach::Alone(operations) => operations.create_key(order).await?,
    };
    if output == Output::Json {
        return print::json(&made);
    }
    let KeyMade { key, record } = made;
    let expires = print::date_or(record.expires_unix, "never");
    print::line(&format!(
        "{key}

  The key is shown this once. Keep it where secrets belong.
  id        {}
  owner     {}
  expires   {expires}
  base URL  {}/v1",
        record.id, record.owner, settings.server.public_url
    ))
}

pub(super) async fn list(settings: &Settings, output: Output) -> Result<(), CliError> {
    let keys: Vec<KeyView> = match Reach::open(settings, Need::Records).await? {
        Reach::Running(mut proxy) => proxy.get("/v1/keys").await?,
        Reach::Alone(operations) => operations.keys().await?,
    };
    if output == Output::Json {
        return print::json(&keys);
    }
    if keys.is_empty() {
        return print::line("no keys yet: hearth-proxy key create --name laptop");
    }
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "OWNER",
        "MAY",
        "CREATED",
        "LAST USED",
        "STATE",
    ]);
    for key in &keys {
        table.row(vec![
            key.id.to_string(),
            key.name.clone(),
            key.owner.to_string(),
            may(key),
            print::date(key.created_unix),
            print::date_or(key.last_used_unix, "never"),
            state(key),
        ]);
    }
    print::line(&table.to_string())
}

pub(super) async fn revoke(settings: &Settings, key: &str, output: Output) -> Result<(), CliError> {
    let revoked: KeyView = match Reach::open(settings, Need::Records).await? {
        Reach::Running(mut proxy) => proxy.post("/v1/keys/revoke", &key).await?,
        Reach::Alone(operations) => operations.revoke_key(key).await?,
    };
    if output == Output::Json {
        return print::json(&revoked);
    }
    print::line(&format!("revoked {} ({})", revoked.id, revoked.name))
}

fn order(settings: &Settings, wanted: KeyCreate) -> Result<KeyOrder, CliError> {
    let named = match &wanted.plan {
        None => Plan::default(),
        Some(name) => *settings.limits.plans.get(name).ok_or_else(|| {
            CliError::Failed(format!(
                "the settings have no plan {name}: add [limits.plans.{name}] or leave out --plan"
            ))
        })?,
    };
    let plan = Plan {
        text_per_minute: wanted.text_per_minute.or(named.text_per_minute),
        media_per_minute: wanted.media_per_minute.or(named.media_per_minute),
        text_per_day: wanted.text_per_day.or(named.text_per_day),
        media_per_day: wanted.media_per_day.or(named.media_per_day),
        concurrent: wanted.concurrent.or(named.concurrent),
    };
    Ok(KeyOrder {
        name: wanted.name,
        owner: wanted.owner,
        admin: wanted.admin,
        scopes: wanted.scope,
        tiers: Some(wanted.tier).filter(|tiers| !tiers.is_empty()),
        models: Some(wanted.model).filter(|models| !models.is_empty()),
        plan,
        expires_secs: wanted.expires.map(|life| life.as_secs()),
    })
}

fn may(key: &KeyView) -> String {
    let mut words: Vec<String> = if key.admin {
        vec!["everything".to_owned()]
    } else {
        key.scopes.iter().map(ToString::to_string).collect()
    };
    let tiers = key.tiers.iter().flatten().map(ToString::to_string);
    words.extend(tiers);
    words.extend(key.models.iter().flatten().cloned());
    words.join(" ")
}

fn state(key: &KeyView) -> String {
    if let Some(revoked) = key.revoked_unix {
        return format!("revoked {}", print::date(revoked));
    }
    match key.expires_unix {
        Some(end) if end <= print::now_unix() => format!("expired {}", print::date(end)),
        Some(end) => format!("good until {}", print::date(end)),
        None => "good".to_owned(),
    }
}
