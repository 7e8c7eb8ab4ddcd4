//! Who is counted against what: the tree of one request, from its address and key over the person and the groups to the tenant
//! and the whole service, with the figures of each. All its counters are charged in one step, so a family's budget bounds its
//! members. Counts nothing itself.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use config::ids::Tenant;
use config::settings::plan::{Plan, WhenUsedUp};
use config::settings::proxy::{Limits, PerMinute};
use config::tier::Tier;
use config::wire::wishes::Priority;

use crate::calendar::{Calendar, Today};
use crate::gcra::Rate;
use crate::identity::{Principal, Subject};
use crate::limit::{Counter, Kind, Level, MILLION, Measure, Name, Rule, Span};

mod spend;

pub use spend::{Outcome, Spend, Tiers, Used, micros, spent};

/// Length of the short windows.
const MINUTE_MS: u64 = 60_000;
/// The hash slot of all tenants when one budget spans them.
const ALL: &str = "all";

/// Who asks for what, under which figures.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// From where.
    pub ip: IpAddr,
    /// What it costs from.
    pub kind: Kind,
    /// How much.
    pub spend: Spend,
    /// The figures.
    pub limits: &'a Limits,
    /// The days.
    pub calendar: &'a Calendar,
    /// Unix milliseconds.
    pub now_unix_ms: u64,
}

/// Where all counters of a request lie together: its tenant, or one slot for all tenants when a budget spans them.
pub fn slot(tenant: &Tenant, limits: &Limits) -> Tenant {
    if limits.service.is_some() {
        return Tenant::new(ALL);
    }
    tenant.clone()
}

/// The figures of a person: the override by an administrator, the plan, what everybody has, the defaults.
pub fn of_person(principal: &Principal, limits: &Limits) -> Plan {
    own_figures(principal, limits)
        .over(limits.everyone)
        .over(defaults(limits))
}

/// What an administrator and the plan say about this person.
fn own_figures(principal: &Principal, limits: &Limits) -> Plan {
    let named = principal
        .plan_name
        .as_ref()
        .and_then(|name| limits.plans.get(name.as_ref()))
        .copied()
        .unwrap_or_default();
    principal.overrides.over(principal.plan).over(named)
}

/// Whether what the principal asks must stay at home: one of its plans says so, or its key, or a plan that bounds it together with
/// others. Nobody narrower can take that back.
pub fn is_local_only(principal: &Principal, limits: &Limits) -> bool {
    let says = |plan: &Plan| plan.local_only == Some(true);
    let groups = principal.groups.iter();
    let of_groups = groups.filter_map(|group| limits.groups.get(group.as_ref()));
    let of_tenant = limits.tenants.get(principal.tenant().as_str());
    principal.local_only
        || says(&of_person(principal, limits))
        || principal.key_plan.as_ref().is_some_and(says)
        || of_groups.chain(of_tenant).any(says)
        || limits.service.as_ref().is_some_and(says)
}

/// The class of a request in the queues: what it wishes, and no more than its plans allow.
pub fn priority(principal: &Principal, limits: &Limits, wished: Priority) -> Priority {
    let of_key = principal.key_plan.and_then(|plan| plan.priority);
    let of_person = of_person(principal, limits).priority;
    let groups = principal.groups.iter();
    let of_groups = groups.filter_map(|group| limits.groups.get(group.as_ref())?.priority);
    let allowed = of_key.into_iter().chain(of_person).chain(of_groups);
    allowed.fold(wished, Priority::max)
}

/// The local date for which a person's request counts, `2026-11-21`.
pub fn day(
    principal: &Principal,
    limits: &Limits,
    calendar: &Calendar,
    now_unix_ms: u64,
) -> Arc<str> {
    let zone = of_person(principal, limits).time_zone;
    let zone = zone.unwrap_or(limits.time_zone);
    calendar.today(zone, now_unix_ms).day.label
}

fn defaults(limits: &Limits) -> Plan {
    Plan {
        text_per_minute: Some(limits.per_user.text),
        media_per_minute: Some(limits.per_user.media),
        text_per_day: Some(limits.text_per_day),
        media_per_day: Some(limits.media_per_day),
        concurrent: Some(limits.concurrent_per_user),
        stored_bytes: Some(limits.stored_bytes),
        time_zone: Some(limits.time_zone),
        ..Plan::default()
    }
}

/// The counters of one request, leaf first.
///
/// A plan that raises a person's figure raises the address's too: a key with 300 a minute would otherwise stop at the 30 of
/// the machine it runs on.
pub fn counters(asking: &Asking<'_>) -> Vec<Counter> {
    let Asking {
        principal, limits, ..
    } = *asking;
    let person = of_person(principal, limits);
    let mut tree = Tree::new(principal.tenant(), asking);
    if principal.counts_address() {
        let key = principal.key_plan.unwrap_or_default();
        let own = own_figures(principal, limits);
        let raised = minute_of(&own, asking.kind).max(minute_of(&key, asking.kind));
        tree.address(raised);
    }
    if let (Some(subject), Some(plan)) = (principal.key_subject(), &principal.key_plan) {
        tree.subject(Level::Key, subject.as_str(), plan);
    }
    tree.subject(Level::User, principal.subject().as_str(), &person);
    if asking.kind == Kind::Health {
        return tree.counters;
    }
    for group in &principal.groups {
        if let Some(plan) = limits.groups.get(group.as_ref()) {
            tree.subject(Level::Group, Subject::of_group(group).as_str(), plan);
        }
    }
    if let Some(plan) = limits.tenants.get(principal.tenant().as_str()) {
        tree.subject(Level::Organisation, "o", plan);
    }
    if let Some(plan) = &limits.service {
        tree.service(plan);
    }
    tree.counters
}

/// The counter of an address alone, for what needs no credential.
pub fn ip_counters(ip: IpAddr, kind: Kind, limits: &Limits, tenant: &Tenant) -> Vec<Counter> {
    let measure = requests_a_minute(kind);
    let mut key = Key::new(tenant, limits);
    vec![Counter {
        key: key.of(Subject::of_ip(ip).as_str(), measure, None, None),
        name: Name::new(Level::Address, measure),
        unit: measure.unit(),
        rule: minute(u64::from(per_minute(limits.per_ip, kind))),
        cost: 1,
        per_million: 0,
    }]
}

/// The counters of bytes that a person stores: charged when they are stored, given back when they are deleted.
pub fn stored_counters(principal: &Principal, limits: &Limits, bytes: u64) -> Vec<Counter> {
    let mut key = Key::new(principal.tenant(), limits);
    let mut all = Vec::new();
    let mut add = |level, subject: &str, plan: &Plan| {
        let Some(limit) = plan.stored_bytes else {
            return;
        };
        all.push(Counter {
            key: key.of(subject, Measure::StoredBytes, None, None),
            name: Name::new(level, Measure::StoredBytes),
            unit: Measure::StoredBytes.unit(),
            rule: Rule::Held { limit },
            cost: bytes,
            per_million: 0,
        });
    };
    let person = of_person(principal, limits);
    add(Level::User, principal.subject().as_str(), &person);
    for group in &principal.groups {
        if let Some(plan) = limits.groups.get(group.as_ref()) {
            add(Level::Group, Subject::of_group(group).as_str(), plan);
        }
    }
    if let Some(plan) = limits.tenants.get(principal.tenant().as_str()) {
        add(Level::Organisation, "o", plan);
    }
    all
}

/// How many requests of the person may be in progress.
pub fn concurrent_max(principal: &Principal, limits: &Limits) -> u32 {
    of_person(principal, limits)
        .concurrent
        .unwrap_or(limits.concurrent_per_user)
}

/// The tier with which a request goes on whose own tier's budget refused it; `None`: it does not.
///
/// Only a budget of the tier itself is a reason, and only if the plan of the person says so.
pub fn downgrade(
    principal: &Principal,
    limits: &Limits,
    tier: Tier,
    refused: Name,
) -> Option<Tier> {
    let wished = of_person(principal, limits).when_heavy_is_used_up?;
    if wished != WhenUsedUp::Downgrade || refused.tier != Some(tier) {
        return None;
    }
    let mut smaller = tier.fallback();
    while let Some(tier) = smaller {
        if principal.may_use_tier(tier) {
            return Some(tier);
        }
        smaller = tier.fallback();
    }
    None
}

/// Keys of one request, built in one buffer.
struct Key {
    text: String,
    prefix: usize,
}

impl Key {
    fn new(tenant: &Tenant, limits: &Limits) -> Self {
        let mut text = String::with_capacity(96);
        // Writing to a String cannot fail.
        let _ = match limits.service {
            Some(_) => write!(text, "{{{ALL}}}:{tenant}:"),
            None => write!(text, "{{{tenant}}}:"),
        };
        let prefix = text.len();
        Self { text, prefix }
    }

    fn of(
        &mut self,
        subject: &str,
        measure: Measure,
        tier: Option<Tier>,
        label: Option<&str>,
    ) -> Arc<str> {
        self.text.truncate(self.prefix);
        self.text.push_str(subject);
        self.text.push(':');
        self.text.push_str(measure.as_str());
        if let Some(tier) = tier {
            self.text.push('-');
            self.text.push_str(tier.as_str());
        }
        if let Some(label) = label {
            self.text.push(':');
            self.text.push_str(label);
        }
        Arc::from(self.text.as_str())
    }

    /// A key that all tenants share.
    fn shared(measure: Measure, tier: Option<Tier>, label: Option<&str>) -> Arc<str> {
        let mut text = String::with_capacity(64);
        // Writing to a String cannot fail.
        let _ = write!(text, "{{{ALL}}}:");
        let prefix = text.len();
        Self { text, prefix }.of("s", measure, tier, label)
    }
}

struct Tree<'a> {
    asking: &'a Asking<'a>,
    key: Key,
    /// Days of the last zone; most requests know one.
    today: Today,
    counters: Vec<Counter>,
}

impl<'a> Tree<'a> {
    fn new(tenant: &Tenant, asking: &'a Asking<'a>) -> Self {
        let Asking {
            limits,
            calendar,
            now_unix_ms,
            ..
        } = *asking;
        Self {
            asking,
            key: Key::new(tenant, limits),
            today: calendar.today(limits.time_zone, now_unix_ms),
            counters: Vec::with_capacity(12),
        }
    }

    fn address(&mut self, raised: Option<u32>) {
        let Asking {
            ip, kind, limits, ..
        } = *self.asking;
        let limit = per_minute(limits.per_ip, kind).max(raised.unwrap_or(0));
        let measure = requests_a_minute(kind);
        let key = self
            .key
            .of(Subject::of_ip(ip).as_str(), measure, None, None);
        self.counters.push(Counter {
            key,
            name: Name::new(Level::Address, measure),
            unit: measure.unit(),
            rule: minute(u64::from(limit)),
            cost: 1,
            per_million: 0,
        });
    }

    /// All counters of one plan.
    fn subject(&mut self, level: Level, subject: &str, plan: &Plan) {
        self.plan(level, Some(subject), plan);
    }

    fn service(&mut self, plan: &Plan) {
        self.plan(Level::Service, None, plan);
    }

    fn plan(&mut self, level: Level, subject: Option<&str>, plan: &Plan) {
        let Asking {
            kind,
            spend,
            limits,
            calendar,
            now_unix_ms,
            ..
        } = *self.asking;
        let zone = plan.time_zone.unwrap_or(limits.time_zone);
        if zone != self.today.zone {
            self.today = calendar.today(zone, now_unix_ms);
        }
        let mut of = Of {
            level,
            subject,
            tree: self,
        };
        match kind {
            Kind::Text => {
                of.minute(
                    Measure::TextMinute,
                    plan.text_per_minute.map(u64::from),
                    (1, 0),
                );
                of.window(Measure::TextDay, plan.text_per_day.map(u64::from), (1, 0));
            }
            Kind::Media => {
                of.minute(
                    Measure::MediaMinute,
                    plan.media_per_minute.map(u64::from),
                    (1, 0),
                );
                of.window(Measure::MediaDay, plan.media_per_day.map(u64::from), (1, 0));
                of.window(
                    Measure::ItemsDay,
                    plan.media_items_per_day,
                    (spend.items, 0),
                );
                of.window(
                    Measure::BytesDay,
                    plan.media_bytes_per_day,
                    (spend.bytes, 0),
                );
            }
            Kind::Health => {
                let limit = (level == Level::User).then_some(u64::from(limits.per_user.health));
                of.minute(Measure::HealthMinute, limit, (1, 0));
                return;
            }
        }
        of.tokens(plan, &spend);
        if let (true, Some(limit)) = (spend.in_progress, plan.concurrent) {
            let limit = u64::from(limit);
            of.add(Measure::Concurrent, None, Rule::Held { limit }, (1, 0));
        }
    }
}

/// The counters of one subject.
struct Of<'t, 'a> {
    level: Level,
    /// `None`: all tenants together.
    subject: Option<&'t str>,
    tree: &'t mut Tree<'a>,
}

/// The fixed cost, and what a granted token costs besides, in millionths.
type Cost = (u64, u64);

impl Of<'_, '_> {
    fn tokens(&mut self, plan: &Plan, spend: &Spend) {
        let tokens = (spend.prompt_tokens, MILLION);
        self.minute(Measure::TokensMinute, plan.tokens_per_minute, tokens);
        self.window(Measure::TokensDay, plan.tokens_per_day, tokens);
        self.window(Measure::TokensMonth, plan.tokens_per_month, tokens);
        for tier in spend.tiers.each() {
            let days = [
                (Measure::TokensDay, plan.tier_tokens_per_day(tier)),
                (Measure::TokensMonth, plan.tier_tokens_per_month(tier)),
            ];
            for (measure, limit) in days {
                self.calendar(measure, Some(tier), limit, tokens);
            }
        }
        let money = (spend.prompt_micros(), spend.price.output);
        self.window(Measure::MoneyDay, plan.micros_per_day, money);
        self.window(Measure::MoneyMonth, plan.micros_per_month, money);
    }

    fn minute(&mut self, measure: Measure, limit: Option<u64>, cost: Cost) {
        if let Some(limit) = limit {
            self.add(measure, None, minute(limit), cost);
        }
    }

    fn window(&mut self, measure: Measure, limit: Option<u64>, cost: Cost) {
        self.calendar(measure, None, limit, cost);
    }

    fn calendar(&mut self, measure: Measure, tier: Option<Tier>, limit: Option<u64>, cost: Cost) {
        let Some(limit) = limit else {
            return;
        };
        let today = &self.tree.today;
        let window = match measure {
            Measure::TokensMonth | Measure::MoneyMonth => today.month.window(limit, Span::Month),
            Measure::TextMinute
            | Measure::MediaMinute
            | Measure::HealthMinute
            | Measure::TextDay
            | Measure::MediaDay
            | Measure::TokensMinute
            | Measure::TokensDay
            | Measure::ItemsDay
            | Measure::BytesDay
            | Measure::StoredBytes
            | Measure::Concurrent
            | Measure::MoneyDay => today.day.window(limit, Span::Day),
        };
        self.add(measure, tier, Rule::Window(window), cost);
    }

    fn add(&mut self, measure: Measure, tier: Option<Tier>, rule: Rule, (cost, per_million): Cost) {
        let Tree {
            key,
            today,
            counters,
            ..
        } = &mut *self.tree;
        let label = match rule {
            Rule::Window(window) => Some(match window.span {
                Span::Day => today.day.label.as_ref(),
                Span::Month => today.month.label.as_ref(),
            }),
            Rule::Gcra(_) | Rule::Held { .. } => None,
        };
        let key = match self.subject {
            Some(subject) => key.of(subject, measure, tier, label),
            None => Key::shared(measure, tier, label),
        };
        counters.push(Counter {
            key,
            name: Name {
                level: self.level,
                measure,
                tier,
            },
            unit: measure.unit(),
            rule,
            cost,
            per_million,
        });
    }
}

const fn minute(limit: u64) -> Rule {
    Rule::Gcra(Rate {
        limit,
        period_ms: MINUTE_MS,
    })
}

const fn requests_a_minute(kind: Kind) -> Measure {
    match kind {
        Kind::Text => Measure::TextMinute,
        Kind::Media => Measure::MediaMinute,
        Kind::Health => Measure::HealthMinute,
    }
}

const fn per_minute(figures: PerMinute, kind: Kind) -> u32 {
    match kind {
        Kind::Text => figures.text,
        Kind::Media => figures.media,
        Kind::Health => figures.health,
    }
}

const fn minute_of(plan: &Plan, kind: Kind) -> Option<u32> {
    match kind {
        Kind::Text => plan.text_per_minute,
        Kind::Media => plan.media_per_minute,
        Kind::Health => None,
    }
}

#[cfg(test)]
mod tests;
