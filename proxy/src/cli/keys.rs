//! `key ...` and `plan list`.

use std::time::Duration;

use config::settings::proxy::Plan;
use http::Method;

use super::CliError;
use super::args::{Figures, KeyCommand, KeyCreate, KeySet, Output};
use super::print::{self, Table};
use super::reach::Reach;
use crate::admin::routes::encoded;
use crate::admin::words::{KeyMade, KeyOrder, KeyPatch, KeyView, Page, PlanView, RotateOrder};

const KEYS: &str = "/admin/v1/keys";

pub(super) async fn run(
    reach: &mut Reach,
    command: KeyCommand,
    output: Output,
) -> Result<(), CliError> {
    match command {
        KeyCommand::Create(wanted) => create(reach, wanted, output).await,
        KeyCommand::List => list(reach, output).await,
        KeyCommand::Show { key } => {
            let key: KeyView = reach.get(&path(&key)).await?;
            print::json(&key)
        }
        KeyCommand::Set(wanted) => set(reach, wanted, output).await,
        KeyCommand::Rotate { key, grace } => rotate(reach, (&key, grace), output).await,
        KeyCommand::Revoke { key } => revoke(reach, &key, output).await,
    }
}

/// People paste whole keys; what goes into a path is the public part.
fn path(key: &str) -> String {
    let id = config::token::Token::parse(key.trim())
        .map_or_else(|_| key.trim().to_owned(), |token| token.id().to_owned());
    format!("{KEYS}/{}", encoded(&id))
}

async fn create(reach: &mut Reach, wanted: KeyCreate, output: Output) -> Result<(), CliError> {
    let plan = match &wanted.plan {
        None => Plan::default(),
        Some(name) => figures_of(reach, name).await?,
    };
    let once = wanted.idempotency_key.clone();
    let order = order(wanted, plan);
    let made: KeyMade = reach.create(KEYS, &order, once.as_deref()).await?;
    shown(&made, output)
}

fn shown(made: &KeyMade, output: Output) -> Result<(), CliError> {
    if output == Output::Json {
        return print::json(made);
    }
    let KeyMade { key, record } = made;
    let expires = print::date_or(record.expires_unix, "never");
    let mut text = format!(
        "{key}

  The key is shown this once. Keep it where secrets belong.
  id        {}
  owner     {}
  expires   {expires}",
        record.id, record.owner
    );
    if let Some(until) = record.previous_until_unix {
        text.push_str("\n  old key   good until ");
        text.push_str(&print::date(until));
    }
    print::line(&text)
}

async fn list(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let keys: Vec<KeyView> = reach.all(KEYS).await?;
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

async fn set(reach: &mut Reach, wanted: KeySet, output: Output) -> Result<(), CliError> {
    let some = |all: bool, given: bool| all || given;
    let figures = wanted.figures.over(Plan::default());
    let given = (figures != Plan::default()).then_some(figures);
    let patch = KeyPatch {
        name: wanted.name,
        scopes: (!wanted.scope.is_empty()).then_some(wanted.scope),
        tiers: some(wanted.all_tiers, !wanted.tier.is_empty())
            .then(|| Some(wanted.tier).filter(|tiers| !tiers.is_empty())),
        models: some(wanted.all_models, !wanted.model.is_empty())
            .then(|| Some(wanted.model).filter(|models| !models.is_empty())),
        plan: given.filter(|_| !wanted.key_alone),
        limits: given.filter(|_| wanted.key_alone).map(Some),
        groups: (!wanted.group.is_empty()).then_some(wanted.group),
        act_as: wanted.act_as,
        local_only: wanted.local_only,
        expires_unix: wanted.expires_unix.map(Some),
    };
    let key: KeyView = reach.patch(&path(&wanted.key), &patch).await?;
    if output == Output::Json {
        return print::json(&key);
    }
    print::line(&format!("changed {} ({}): {}", key.id, key.name, may(&key)))
}

async fn rotate(
    reach: &mut Reach,
    (key, grace): (&str, Duration),
    output: Output,
) -> Result<(), CliError> {
    let order = RotateOrder {
        grace_secs: Some(grace.as_secs()),
    };
    let path = format!("{}/rotate", path(key));
    let made: KeyMade = reach.send(Method::POST, &path, Some(&order)).await?;
    shown(&made, output)
}

async fn revoke(reach: &mut Reach, key: &str, output: Output) -> Result<(), CliError> {
    let revoked: KeyView = reach.delete(&path(key)).await?;
    if output == Output::Json {
        return print::json(&revoked);
    }
    print::line(&format!("revoked {} ({})", revoked.id, revoked.name))
}

async fn plans(reach: &mut Reach) -> Result<Vec<PlanView>, CliError> {
    let plans: Page<PlanView> = reach.get("/admin/v1/plans").await?;
    Ok(plans.data)
}

async fn figures_of(reach: &mut Reach, name: &str) -> Result<Plan, CliError> {
    let plans = plans(reach).await?;
    let known = plans.iter().find(|plan| plan.name == name);
    known.map(|plan| plan.figures).ok_or_else(|| {
        CliError::Failed(format!(
            "the settings have no plan {name}: add [limits.plans.{name}] or leave out --plan"
        ))
    })
}

/// `plan list`
pub(super) async fn list_plans(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let plans = plans(reach).await?;
    if output == Output::Json {
        return print::json(&plans);
    }
    if plans.is_empty() {
        return print::line("no plans: add [limits.plans.NAME] to the settings");
    }
    let mut table = Table::new(&["PLAN", "FIGURES"]);
    for plan in &plans {
        table.row(vec![plan.name.clone(), print::figures(&plan.figures)]);
    }
    print::line(&table.to_string())
}

fn order(wanted: KeyCreate, plan: Plan) -> KeyOrder {
    let figures: Figures = wanted.figures;
    KeyOrder {
        name: wanted.name,
        owner: wanted.owner,
        admin: wanted.admin,
        scopes: wanted.scope,
        tiers: Some(wanted.tier).filter(|tiers| !tiers.is_empty()),
        models: Some(wanted.model).filter(|models| !models.is_empty()),
        plan: if wanted.key_alone {
            plan
        } else {
            figures.over(plan)
        },
        limits: wanted
            .key_alone
            .then(|| figures.over(Plan::default()))
            .filter(|figures| *figures != Plan::default()),
        tenant: wanted.tenant,
        groups: wanted.group,
        act_as: wanted.act_as,
        local_only: wanted.local_only,
        expires_secs: wanted.expires.map(|life| life.as_secs()),
    }
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
    if key.local_only {
        words.push("(local only)".to_owned());
    }
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
