//! The rules for claims of a JWT that the signature check leaves open: contract A3.1 (Firebase) and A3.2 (OIDC). The signature
//! is someone else's business; here the claims are already known to come from the issuer's key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::ids::UserId;
use config::settings::proxy::Issuer;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::identity::GROUPS_MAX;
use crate::refusal::{AccountFault, Refusal};
pub use members::Members;

mod mapping;
mod members;

/// `aud` of a Firebase custom token, which people send instead of an ID token.
const CUSTOM_TOKEN_AUDIENCE: &str =
    "https://identitytoolkit.googleapis.com/google.identity.identitytoolkit.v1.IdentityToolkit";
/// Longest `sub`: Firebase says 128 characters, `OpenID` Connect Core section 2 says 255.
const FIREBASE_SUBJECT_MAX: usize = 128;
const SUBJECT_MAX: usize = 255;

/// `aud`: one audience or several.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Audience {
    /// A string.
    One(String),
    /// An array of strings.
    Many(Vec<String>),
}

/// The claims of a token, typed; a claim of the wrong type is refused, never skipped.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Members")]
pub struct ClaimSet {
    /// Who issued it.
    pub iss: Option<String>,
    /// Whom it names.
    pub sub: Option<String>,
    /// Whom it is for.
    pub aud: Option<Audience>,
    /// End of life, Unix seconds.
    pub exp: Option<i64>,
    /// Start of life.
    pub nbf: Option<i64>,
    /// Time of issue.
    pub iat: Option<i64>,
    /// Time of the sign-in.
    pub auth_time: Option<i64>,
    /// E-mail address.
    pub email: Option<String>,
    /// Whether the issuer checked the address.
    pub email_verified: Option<bool>,
    rest: Map<String, Value>,
}

/// What we demand of one issuer's tokens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IssuerRules {
    /// `iss`, byte for byte.
    pub issuer: String,
    /// Other spellings of `iss`; users are named by the first one whatever the token says.
    pub aliases: Vec<String>,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// The claim that names the user; like all of these a member's name or a path with dots.
    pub user_claim: String,
    /// The claim that lists the person's groups.
    pub groups_claim: Option<String>,
    /// The claim that names the person's plan.
    pub plan_claim: Option<String>,
    /// The claim that makes an administrator.
    pub admin_claim: Option<String>,
    /// The values of it that do; empty = `true` alone.
    pub admin_values: Vec<String>,
    /// Claims that must have one of these values.
    pub require: Vec<(String, Vec<String>)>,
    /// The Firebase rules on top.
    pub firebase: bool,
    /// Clock skew allowed.
    pub leeway: Duration,
    /// Only verified e-mail addresses.
    pub email_verified: bool,
    /// Only these addresses or `@domains`; empty = all.
    pub allow: Vec<String>,
    /// Plan of the issuer's users.
    pub plan: Option<Arc<str>>,
    /// Every plan there is, by name: a claim that names another one counts for nothing.
    pub plans: BTreeMap<String, Arc<str>>,
}

impl IssuerRules {
    /// The rules of an issuer in the settings, where these plans exist.
    pub fn new<'a>(issuer: &Issuer, plans: impl Iterator<Item = &'a String>) -> Self {
        Self {
            issuer: issuer.issuer.clone(),
            aliases: issuer.aliases.clone(),
            audiences: issuer.audiences.clone(),
            user_claim: issuer.user_claim.clone(),
            groups_claim: issuer.groups_claim.clone(),
            plan_claim: issuer.plan_claim.clone(),
            admin_claim: issuer.admin_claim.clone(),
            admin_values: issuer.admin_values.clone(),
            require: issuer.require.clone(),
            firebase: issuer.firebase,
            leeway: issuer.leeway,
            email_verified: issuer.email_verified,
            allow: issuer.allow.clone(),
            plan: issuer.plan.as_deref().map(Arc::from),
            plans: plans
                .map(|name| (name.clone(), Arc::from(name.as_str())))
                .collect(),
        }
    }

    /// Whether the rules are for tokens with this `iss`.
    pub fn speaks_for(&self, iss: &str) -> bool {
        self.issuer == iss || self.aliases.iter().any(|alias| alias == iss)
    }

    /// Whether the claims are for one of our audiences.
    pub fn is_addressed_by(&self, claims: &ClaimSet) -> bool {
        check_audience(claims, self).is_ok()
    }
}

/// Who the claims name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// `issuer|name`, so that two issuers cannot name the same user.
    pub user: UserId,
    /// For humans; never for decisions after this one, never in a log above debug.
    pub email: Option<String>,
    /// The person's groups, sorted.
    pub groups: Vec<Arc<str>>,
    /// The person's plan.
    pub plan: Option<Arc<str>>,
    /// Whether the claims make an administrator.
    pub admin: bool,
    /// When the person signed in, or the token was made; what a deny list with a "not before" goes by. Unix seconds.
    pub issued_at: Option<i64>,
    /// A cache must forget the token here, Unix seconds.
    pub expires_at: i64,
}

/// Which rule said no.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ClaimRefusal {
    /// A claim is there with the wrong type.
    #[error("the claim `{0}` has the wrong type")]
    WrongType(&'static str),
    /// A claim is not there.
    #[error("the claim `{0}` is missing")]
    Missing(&'static str),
    /// The claim that names the user is not there, or not a non-empty string.
    #[error("the claim `{0}` must name the user")]
    NoUser(String),
    /// The settings want another shape.
    #[error("the claim `{0}` is not {1}")]
    WrongMapping(String, &'static str),
    /// More groups than are counted.
    #[error("the claim `{0}` holds {1} groups: at most {GROUPS_MAX}")]
    TooManyGroups(String, usize),
    /// A demanded claim has another value.
    #[error("the claim `{0}` does not have a value that is allowed here")]
    NotRequired(String),
    /// `sub` is empty.
    #[error("the claim `sub` is empty")]
    EmptySubject,
    /// `sub` is too long.
    #[error("the claim `sub` is longer than {0} characters")]
    LongSubject(usize),
    /// Another issuer.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// Another audience.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Firebase demands a plain string.
    #[error("the claim `aud` must be one string")]
    AudienceNotString,
    /// A Firebase custom token.
    #[error(
        "this is a Firebase custom token: exchange it for an ID token first (signInWithCustomToken, then getIdToken)"
    )]
    CustomToken,
    /// Past its end.
    #[error("the token has expired")]
    Expired,
    /// Before its start.
    #[error("the token is not valid yet")]
    NotYet,
    /// `iat` in the future.
    #[error("the token was issued in the future: check the clocks")]
    IssuedInFuture,
    /// `auth_time` in the future.
    #[error("the sign-in lies in the future: check the clocks")]
    SignedInInFuture,
    /// The account may not enter.
    #[error("{0}")]
    Account(AccountFault),
}

impl From<ClaimRefusal> for Refusal {
    fn from(refusal: ClaimRefusal) -> Self {
        match refusal {
            ClaimRefusal::Expired => Self::ExpiredCredential,
            ClaimRefusal::Account(why) => Self::AccountNotAllowed { why },
            ClaimRefusal::WrongType(_)
            | ClaimRefusal::Missing(_)
            | ClaimRefusal::NoUser(_)
            | ClaimRefusal::WrongMapping(..)
            | ClaimRefusal::TooManyGroups(..)
            | ClaimRefusal::NotRequired(_)
            | ClaimRefusal::EmptySubject
            | ClaimRefusal::LongSubject(_)
            | ClaimRefusal::WrongIssuer
            | ClaimRefusal::WrongAudience
            | ClaimRefusal::AudienceNotString
            | ClaimRefusal::CustomToken
            | ClaimRefusal::NotYet
            | ClaimRefusal::IssuedInFuture
            | ClaimRefusal::SignedInInFuture => Self::InvalidCredential {
                why: refusal.to_string().into(),
            },
        }
    }
}

impl TryFrom<Members> for ClaimSet {
    type Error = ClaimRefusal;

    fn try_from(claims: Members) -> Result<Self, ClaimRefusal> {
        Self::try_from(claims.0)
    }
}

impl TryFrom<Map<String, Value>> for ClaimSet {
    type Error = ClaimRefusal;

    fn try_from(claims: Map<String, Value>) -> Result<Self, ClaimRefusal> {
        Ok(Self {
            iss: text(&claims, "iss")?,
            sub: text(&claims, "sub")?,
            aud: audience(&claims)?,
            exp: time(&claims, "exp")?,
            nbf: time(&claims, "nbf")?,
            iat: time(&claims, "iat")?,
            auth_time: time(&claims, "auth_time")?,
            email: text(&claims, "email")?,
            email_verified: flag(&claims, "email_verified")?,
            rest: claims,
        })
    }
}

/// Applies every rule; the cheap and telling ones first.
pub fn check(
    claims: &ClaimSet,
    rules: &IssuerRules,
    now_unix: i64,
) -> Result<Verified, ClaimRefusal> {
    check_issuer(claims, rules)?;
    check_audience(claims, rules)?;
    let expires_at = check_times(claims, rules, now_unix)?;
    check_subject(claims, rules)?;
    let name = user_name(claims, rules)?;
    mapping::check_required(&claims.rest, rules)?;
    check_account(claims, rules).map_err(ClaimRefusal::Account)?;
    Ok(Verified {
        user: UserId::new(format!("{}|{name}", rules.issuer)),
        email: claims.email.clone(),
        groups: mapping::groups(&claims.rest, rules)?,
        plan: mapping::plan(&claims.rest, rules),
        admin: mapping::is_admin(&claims.rest, rules),
        issued_at: claims.auth_time.or(claims.iat),
        expires_at,
    })
}

fn check_issuer(claims: &ClaimSet, rules: &IssuerRules) -> Result<(), ClaimRefusal> {
    // A custom token carries a service account as issuer: say what it is before saying that it is foreign.
    if rules.firebase && claims.aud == Some(Audience::One(CUSTOM_TOKEN_AUDIENCE.to_owned())) {
        return Err(ClaimRefusal::CustomToken);
    }
    let iss = claims.iss.as_ref().ok_or(ClaimRefusal::Missing("iss"))?;
    if !rules.speaks_for(iss) {
        return Err(ClaimRefusal::WrongIssuer);
    }
    Ok(())
}

fn check_audience(claims: &ClaimSet, rules: &IssuerRules) -> Result<(), ClaimRefusal> {
    let accepted = |aud: &String| rules.audiences.contains(aud);
    match claims.aud.as_ref().ok_or(ClaimRefusal::Missing("aud"))? {
        Audience::One(aud) if accepted(aud) => Ok(()),
        Audience::One(_) => Err(ClaimRefusal::WrongAudience),
        Audience::Many(_) if rules.firebase => Err(ClaimRefusal::AudienceNotString),
        Audience::Many(all) if all.iter().any(accepted) => Ok(()),
        Audience::Many(_) => Err(ClaimRefusal::WrongAudience),
    }
}

fn check_times(claims: &ClaimSet, rules: &IssuerRules, now_unix: i64) -> Result<i64, ClaimRefusal> {
    let leeway = i64::try_from(rules.leeway.as_secs()).unwrap_or(i64::MAX);
    let latest = now_unix.saturating_add(leeway);
    let exp = claims.exp.ok_or(ClaimRefusal::Missing("exp"))?;
    // RFC 7519 section 4.1.4: not accepted on or after the time.
    if exp.saturating_add(leeway) <= now_unix {
        return Err(ClaimRefusal::Expired);
    }
    if claims.nbf.is_some_and(|nbf| nbf > latest) {
        return Err(ClaimRefusal::NotYet);
    }
    if rules.firebase && claims.iat.is_none() {
        return Err(ClaimRefusal::Missing("iat"));
    }
    if rules.firebase && claims.auth_time.is_none() {
        return Err(ClaimRefusal::Missing("auth_time"));
    }
    if claims.iat.is_some_and(|iat| iat > latest) {
        return Err(ClaimRefusal::IssuedInFuture);
    }
    if claims.auth_time.is_some_and(|at| at > latest) {
        return Err(ClaimRefusal::SignedInInFuture);
    }
    Ok(exp)
}

fn check_subject(claims: &ClaimSet, rules: &IssuerRules) -> Result<(), ClaimRefusal> {
    let sub = claims.sub.as_ref().ok_or(ClaimRefusal::Missing("sub"))?;
    if sub.is_empty() {
        return Err(ClaimRefusal::EmptySubject);
    }
    let most = if rules.firebase {
        FIREBASE_SUBJECT_MAX
    } else {
        SUBJECT_MAX
    };
    if sub.chars().count() > most {
        return Err(ClaimRefusal::LongSubject(most));
    }
    Ok(())
}

fn user_name<'a>(claims: &'a ClaimSet, rules: &IssuerRules) -> Result<&'a str, ClaimRefusal> {
    mapping::find(&claims.rest, &rules.user_claim)
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty() && name.chars().count() <= SUBJECT_MAX)
        .ok_or_else(|| ClaimRefusal::NoUser(rules.user_claim.clone()))
}

/// The list of allowed addresses is worth nothing for an address that nobody checked, so a list demands a verified one.
fn check_account(claims: &ClaimSet, rules: &IssuerRules) -> Result<(), AccountFault> {
    let verified = claims.email_verified == Some(true);
    if (rules.email_verified || !rules.allow.is_empty()) && !verified {
        return Err(AccountFault::EmailNotVerified);
    }
    if rules.allow.is_empty() {
        return Ok(());
    }
    let email = claims.email.as_deref().unwrap_or_default();
    if rules.allow.iter().any(|entry| covers(entry, email)) {
        return Ok(());
    }
    Err(AccountFault::NotOnList)
}

/// `@example.org` covers every address of that domain and of no subdomain; anything else is one address. Case does not matter.
fn covers(entry: &str, email: &str) -> bool {
    if let Some(domain) = entry.strip_prefix('@') {
        return email
            .rsplit_once('@')
            .is_some_and(|(name, host)| !name.is_empty() && host.eq_ignore_ascii_case(domain));
    }
    !email.is_empty() && entry.eq_ignore_ascii_case(email)
}

fn text(claims: &Map<String, Value>, name: &'static str) -> Result<Option<String>, ClaimRefusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ClaimRefusal::WrongType(name)),
    }
}

fn flag(claims: &Map<String, Value>, name: &'static str) -> Result<Option<bool>, ClaimRefusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(ClaimRefusal::WrongType(name)),
    }
}

/// RFC 7519 section 2, `NumericDate`: a number of seconds that may have a fraction, which never helps the token.
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, ClaimRefusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    if let Some(seconds) = value.as_i64() {
        return Ok(Some(seconds));
    }
    let fraction = value.as_f64().filter(|seconds| seconds.abs() < 1e15);
    let Some(seconds) = fraction else {
        return Err(ClaimRefusal::WrongType(name));
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded above, and the fraction is meant to go"
    )]
    Ok(Some(seconds.floor() as i64))
}

fn audience(claims: &Map<String, Value>) -> Result<Option<Audience>, ClaimRefusal> {
    match claims.get("aud") {
        None => Ok(None),
        Some(Value::String(one)) => Ok(Some(Audience::One(one.clone()))),
        Some(Value::Array(many)) => many
            .iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(|all| Some(Audience::Many(all)))
            .ok_or(ClaimRefusal::WrongType("aud")),
        Some(_) => Err(ClaimRefusal::WrongType("aud")),
    }
}

#[cfg(test)]
mod tests;
