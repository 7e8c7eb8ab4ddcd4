//! JWTs: reads the header strictly, picks the issuer, verifies the signature with a key pinned to its algorithm, and leaves the
//! claims to policy. Nothing that the token says about keys or places is followed (`jku`, `x5u`, `jwk`, `x5c`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use config::ids::Tenant;
use config::settings::proxy::{Auth, Plan};
use jsonwebtoken::Algorithm;
use policy::claims::{self, ClaimSet, IssuerRules, Members, Verified};
use policy::identity::{Principal, Subject};
use policy::refusal::Refusal;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::Seen;
use super::fetch;
use super::header::invalid;
use super::jwks::{Jwks, NoKey};
use super::keyset::{self, KID_BYTES_MAX, allowed_algorithms};
use super::people::Person;
use super::recent::Recent;
use crate::observe::metrics::Metrics;

/// A verified token is not verified again for this long; who it names is asked of the deny list and the store every time.
const REMEMBERED_SECS: i64 = 300;
/// Verified tokens remembered at most.
pub(super) const REMEMBERED_MAX: usize = if cfg!(test) { 2_000 } else { 10_000 };

/// All issuers, and the tokens that passed lately.
#[derive(Debug)]
pub(super) struct Tokens {
    issuers: Vec<TrustedIssuer>,
    remembered: Mutex<Recent<[u8; 32], Passed>>,
}

#[derive(Debug)]
struct TrustedIssuer {
    rules: IssuerRules,
    tenant: Tenant,
    algorithms: Vec<Algorithm>,
    keys: Arc<Jwks>,
}

#[derive(Debug)]
struct Passed {
    seen: Seen,
    until_unix: i64,
    issuer: usize,
    generation: u64,
}

/// RFC 7515 section 4.1, what we read of it.
struct Header {
    alg: String,
    kid: Option<String>,
}

/// A token in its parts.
struct Parts<'a> {
    header: Header,
    claims: ClaimSet,
    message: &'a str,
    signature: &'a str,
}

impl Tokens {
    pub(super) fn new(
        auth: &Auth,
        plans: &BTreeMap<String, Plan>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, reqwest::Error> {
        let client = fetch::client()?;
        let issuers: Vec<TrustedIssuer> = auth
            .issuers
            .iter()
            .map(|issuer| TrustedIssuer {
                rules: IssuerRules::new(issuer, plans.keys()),
                tenant: issuer.tenant.clone(),
                algorithms: allowed_algorithms(issuer),
                keys: Jwks::new(issuer, client.clone(), Arc::clone(metrics)),
            })
            .collect();
        for issuer in &issuers {
            issuer.keys.keep_fresh();
        }
        Ok(Self {
            issuers,
            remembered: Mutex::new(Recent::new(REMEMBERED_MAX)),
        })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.issuers.iter().all(|issuer| issuer.keys.is_loaded())
    }

    /// Whether the token may enter, and as whom.
    pub(super) async fn check(&self, token: &str, now_unix: i64) -> Result<Seen, Refusal> {
        let fingerprint = fingerprint(token);
        if let Some(seen) = self.recall(&fingerprint, now_unix) {
            return Ok(seen);
        }
        let parts = Parts::of(token)?;
        let (index, issuer) = self.issuer_of(&parts)?;
        // Read before the key is chosen: a rotation in between makes the entry old at once.
        let generation = issuer.keys.generation();
        issuer.verify(&parts).await?;
        let verified = claims::check(&parts.claims, &issuer.rules, now_unix)?;
        let until_unix = verified
            .expires_at
            .min(now_unix.saturating_add(REMEMBERED_SECS));
        let seen = issuer.seen(verified);
        let passed = Passed {
            seen: seen.clone(),
            until_unix,
            issuer: index,
            generation,
        };
        self.lock().insert(fingerprint, passed);
        Ok(seen)
    }

    /// Verifies every token again at its next use.
    pub(super) fn forget_all(&self) {
        self.lock().clear();
    }

    /// The issuer that the token claims; believed only once the signature fits that issuer's key.
    fn issuer_of(&self, parts: &Parts<'_>) -> Result<(usize, &TrustedIssuer), Refusal> {
        let claimed = parts.claims.iss.as_deref();
        let mut speaking =
            self.issuers.iter().enumerate().filter(|(_, issuer)| {
                claimed.is_some_and(|claimed| issuer.rules.speaks_for(claimed))
            });
        let first = speaking.next();
        // One issuer may stand in the settings once for each audience.
        first
            .filter(|(_, issuer)| issuer.rules.is_addressed_by(&parts.claims))
            .or_else(|| speaking.find(|(_, issuer)| issuer.rules.is_addressed_by(&parts.claims)))
            .or(first)
            .ok_or_else(|| invalid("its issuer is not trusted here"))
    }

    fn recall(&self, fingerprint: &[u8; 32], now_unix: i64) -> Option<Seen> {
        let mut remembered = self.lock();
        let passed = remembered.get(fingerprint)?;
        let issuer = self.issuers.get(passed.issuer)?;
        let fresh = now_unix < passed.until_unix
            && passed.generation == issuer.keys.generation()
            && issuer.keys.is_loaded();
        if fresh {
            return Some(passed.seen.clone());
        }
        remembered.remove(fingerprint);
        None
    }

    /// Tokens remembered now.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.lock().len()
    }

    /// Whether the token would enter without being verified again.
    #[cfg(test)]
    pub(super) fn is_remembered(&self, token: &str, now_unix: i64) -> bool {
        self.recall(&fingerprint(token), now_unix).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Recent<[u8; 32], Passed>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl TrustedIssuer {
    fn seen(&self, verified: Verified) -> Seen {
        let principal = Principal {
            tenant: self.tenant.clone(),
            groups: verified.groups,
            plan_name: verified.plan,
            admin: verified.admin,
            ..Principal::person(verified.user, Plan::default())
        };
        Seen {
            principal,
            made: verified.issued_at,
            person: Some(Person {
                issuer: self.rules.issuer.clone(),
                email: verified.email.as_deref().map(Subject::of_email),
            }),
        }
    }

    async fn verify(&self, parts: &Parts<'_>) -> Result<(), Refusal> {
        let algorithm = keyset::algorithm(&parts.header.alg)
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or_else(|| invalid("its algorithm is not allowed for this issuer"))?;
        let kid = parts.header.kid.as_deref();
        let kid = kid
            .filter(|kid| !kid.is_empty() && kid.len() <= KID_BYTES_MAX)
            .ok_or_else(|| invalid("its header names no key (`kid`)"))?;
        let key = match self.keys.key(kid).await {
            Ok(key) => key,
            Err(NoKey::Unknown) => return Err(invalid("it is signed with an unknown key")),
            Err(NoKey::Away) => return Err(Refusal::IssuerAway),
        };
        let key = key
            .with(algorithm)
            .ok_or_else(|| invalid("its algorithm does not belong to its key"))?;
        let verified =
            jsonwebtoken::crypto::verify(parts.signature, parts.message.as_bytes(), key, algorithm);
        match verified {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(invalid("its signature is wrong")),
        }
    }
}

impl Header {
    fn of(Members(members): &Members) -> Result<Self, Refusal> {
        // Extensions that must be understood, whatever stands there: we understand none. `b64` is such a one (RFC 7797).
        if members.contains_key("crit") || members.contains_key("b64") {
            return Err(invalid("its header demands extensions (`crit`)"));
        }
        let text = |name: &str| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(invalid("its header holds a member of the wrong type")),
        };
        if !text("typ")?.as_deref().is_none_or(is_token_type) {
            return Err(invalid("its type (`typ`) is neither JWT nor at+jwt"));
        }
        Ok(Self {
            alg: text("alg")?.ok_or_else(|| invalid("its header names no algorithm (`alg`)"))?,
            kid: text("kid")?,
        })
    }
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, Refusal> {
        let malformed = || invalid("it is not a well-formed JWT");
        let (message, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, payload) = message.split_once('.').ok_or_else(malformed)?;
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| malformed())?;
        let header: Members = serde_json::from_slice(&header).map_err(|_| malformed())?;
        let header = Header::of(&header)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed())?;
        let claims =
            serde_json::from_slice(&payload).map_err(|error| Refusal::InvalidCredential {
                why: claim_fault(&error).into(),
            })?;
        Ok(Self {
            header,
            claims,
            message,
            signature,
        })
    }
}

/// RFC 7519 section 5.1 and RFC 9068 section 2.1; media types have no case.
fn is_token_type(typ: &str) -> bool {
    ["jwt", "at+jwt", "application/at+jwt"]
        .iter()
        .any(|known| typ.eq_ignore_ascii_case(known))
}

/// What a claim of the wrong type is called; anything else is no JSON object.
fn claim_fault(error: &serde_json::Error) -> String {
    if error.is_data() && error.line() == 0 {
        return error.to_string();
    }
    "its claims are not a JSON object".to_owned()
}

fn fingerprint(token: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}
