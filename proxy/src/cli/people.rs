//! `user ...`

use config::settings::proxy::Plan;
use http::Method;
use serde_json::Value;

use super::CliError;
use super::args::{Output, UserCommand, UserSet};
use super::print::{self, Table};
use super::reach::Reach;
use crate::admin::routes::encoded;
use crate::admin::words::{DenialOrder, DenialView, Erased, Page, UserPatch, UserView};

const USERS: &str = "/admin/v1/users";
const DENIALS: &str = "/admin/v1/denials";

pub(super) async fn run(
    reach: &mut Reach,
    command: UserCommand,
    output: Output,
) -> Result<(), CliError> {
    match command {
        UserCommand::List => list(reach, output).await,
        UserCommand::Show { user } => {
            let user: UserView = reach.get(&path(&user)).await?;
            print::json(&user)
        }
        UserCommand::Set(wanted) => set(reach, wanted, output).await,
        UserCommand::Deny {
            user,
            reason,
            sessions,
            expires,
        } => {
            let order = DenialOrder {
                whom: format!("user:{user}"),
                not_before_unix: sessions.then(print::now_unix),
                reason,
                expires_secs: expires.map(|life| life.as_secs()),
            };
            let denied: DenialView = reach.send(Method::POST, DENIALS, Some(&order)).await?;
            told(&denied, output, &format!("{} is shut out", denied.whom))
        }
        UserCommand::Undeny { user } => {
            let path = format!("{DENIALS}/{}", encoded(&format!("user:{user}")));
            let denied: DenialView = reach.delete(&path).await?;
            told(&denied, output, &format!("{} may enter again", denied.whom))
        }
        UserCommand::Denials => denials(reach, output).await,
        UserCommand::Export { user } => {
            let all: Value = reach.get(&format!("{}/export", path(&user))).await?;
            print::json(&all)
        }
        UserCommand::Erase { user, yes: _ } => {
            let erased: Erased = reach.delete(&path(&user)).await?;
            let text = format!(
                "forgot {}: {} keys ended, {} rows of usage are gone",
                erased.id, erased.keys_revoked, erased.usage_rows
            );
            told(&erased, output, &text)
        }
    }
}

fn path(user: &str) -> String {
    format!("{USERS}/{}", encoded(user))
}

fn told(value: &impl serde::Serialize, output: Output, text: &str) -> Result<(), CliError> {
    if output == Output::Json {
        return print::json(value);
    }
    print::line(text)
}

async fn list(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let users: Vec<UserView> = reach.all(USERS).await?;
    if output == Output::Json {
        return print::json(&users);
    }
    if users.is_empty() {
        return print::line("nobody was here yet");
    }
    let mut table = Table::new(&["ID", "TENANT", "PLAN", "FIGURES", "LAST SEEN", "STATE"]);
    for user in &users {
        table.row(vec![
            user.id.to_string(),
            user.tenant.clone(),
            user.plan.clone().unwrap_or_else(|| "-".to_owned()),
            print::figures(&user.overrides),
            print::date(user.last_seen_unix),
            user.disabled_unix.map_or_else(
                || "welcome".to_owned(),
                |since| format!("closed {}", print::date(since)),
            ),
        ]);
    }
    print::line(&table.to_string())
}

async fn set(reach: &mut Reach, wanted: UserSet, output: Output) -> Result<(), CliError> {
    let figures = wanted.figures.over(Plan::default());
    let new = wanted.no_figures || figures != Plan::default();
    let patch = UserPatch {
        plan: (wanted.no_plan || wanted.plan.is_some()).then_some(wanted.plan),
        overrides: new.then_some(figures),
        groups: (!wanted.group.is_empty()).then_some(wanted.group),
        disabled: (wanted.disable || wanted.enable).then_some(wanted.disable),
        local_only: wanted.local_only,
    };
    let user: UserView = reach.patch(&path(&wanted.user), &patch).await?;
    told(&user, output, &format!("changed {}", user.id))
}

async fn denials(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let denials: Page<DenialView> = reach.get(DENIALS).await?;
    if output == Output::Json {
        return print::json(&denials.data);
    }
    if denials.data.is_empty() {
        return print::line("nobody is shut out");
    }
    let mut table = Table::new(&["WHOM", "SINCE", "UNTIL", "REASON"]);
    for denial in &denials.data {
        table.row(vec![
            denial.whom.clone(),
            print::date(denial.created_unix),
            print::date_or(denial.expires_unix, "for ever"),
            denial.reason.clone(),
        ]);
    }
    print::line(&table.to_string())
}
