//! A whole store as lines of JSON, out of one kind and into the other: keys, people, denials, join tokens, nodes, servers that cost money,
//! secrets, counters, open reservations and the books. For stores that nobody uses meanwhile. The first line says what follows, the last one how
//! much it was and its SHA-256, so that half a stream is never taken for a whole. Whoever reads it has the secrets of the house.

use std::io::{BufRead, Write};

use async_trait::async_trait;
use config::ids::{Tenant, UserId};
use config::secret::Secret;
use policy::gcra::Rate;
use policy::ledger::{FIGURES, LedgerEntry};
use policy::limit::{Rule, Span, Window};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::ledger::AuditRecord;
use super::{BurstRecord, Denial, JoinToken, KeyRecord, NodeRecord, Store, StoreError, UserRecord};

/// The version of the stream that is written; older ones are read as long as there is a way.
pub const VERSION: u32 = 1;
/// Rows that are written to a store at once.
const ROWS_A_CALL: usize = 500;
/// People of one page.
const PAGE: usize = 1_000;
/// Bytes of one line at most.
const LINE_MAX: usize = 16 << 20;

/// Why a stream was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream's file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The stream is none, or of another version, or damaged, or ends early.
    #[error("line {line}: {problem}")]
    Stream {
        /// From 1.
        line: u64,
        /// In words.
        problem: String,
    },
    /// The store that would be filled holds something.
    #[error(
        "the store is not empty: it holds {0}; import into a new one (another state_dir, or another prefix in Redis)"
    )]
    NotEmpty(&'static str),
}

/// A rule as scripts and streams know it: `g` period in ms, limit; `w` end in Unix ms, limit; `h` 0, limit.
pub type RuleCode = (char, u64, u64);

/// The code of a rule.
pub const fn rule_code(rule: Rule) -> RuleCode {
    match rule {
        Rule::Gcra(rate) => ('g', rate.period_ms, rate.limit),
        Rule::Window(window) => ('w', window.resets_at_ms, window.limit),
        Rule::Held { limit } => ('h', 0, limit),
    }
}

/// The rule of a code. Where a window begins is not in it, and no settlement asks.
pub fn rule_of((letter, a, limit): RuleCode) -> Option<Rule> {
    match letter {
        'g' => Some(Rule::Gcra(Rate {
            limit,
            period_ms: a,
        })),
        'w' => Some(Rule::Window(Window {
            limit,
            starts_at_ms: 0,
            resets_at_ms: a,
            span: Span::Day,
        })),
        'h' => Some(Rule::Held { limit }),
        _ => None,
    }
}

/// What is paged through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Table {
    /// Counters.
    Counters,
    /// Open reservations.
    Reservations,
    /// Entries of the books.
    Entries,
    /// Sums of days and months.
    Sums,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Counters,
        Self::Reservations,
        Self::Entries,
        Self::Sums,
    ];
}

/// One line between the first and the last.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// An API key.
    Key(Box<KeyRecord>),
    /// A person.
    User(Box<UserRecord>),
    /// A denial.
    Denial(Denial),
    /// A join token.
    JoinToken(JoinToken),
    /// A node.
    Node(NodeRecord),
    /// A server outside that was started.
    Burst(BurstRecord),
    /// One of the secrets that the proxies share, in hex.
    Secret {
        /// Its name.
        name: String,
        /// 64 digits.
        hex: String,
    },
    /// A counter.
    Counter(SavedCounter),
    /// An open reservation.
    Reservation(SavedReservation),
    /// An entry of the books.
    Entry(Box<LedgerEntry>),
    /// A sum of the books.
    Sum(SavedSum),
    /// A line of the audit log.
    Audit(AuditRecord),
}

/// A number and the end of its meaning.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedCounter {
    /// Without a prefix.
    pub key: String,
    /// A TAT in Unix microseconds, or units.
    pub value: u64,
    /// Unix milliseconds; `None`: until it is given back.
    pub expires_at_ms: Option<u64>,
}

/// What is charged under an id until it is settled.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedReservation {
    /// In hex.
    pub id: String,
    /// Unix milliseconds.
    pub expires_at_ms: u64,
    /// Tokens.
    pub granted: u64,
    /// Every counter.
    pub charges: Vec<SavedCharge>,
}

/// One counter of a reservation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedCharge {
    /// Without a prefix.
    pub key: String,
    /// How it counts.
    pub rule: RuleCode,
    /// Units.
    pub units: u64,
    /// The TAT that the charge stored, Unix microseconds; 0 for other rules.
    pub charged_to_us: u64,
}

/// A sum of the books.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedSum {
    /// Whose house.
    pub tenant: Tenant,
    /// A day or a month.
    pub period: String,
    /// What it is about, as in names of sums.
    pub aspect: String,
    /// Which one.
    pub value: String,
    /// The totals.
    pub row: [u64; FIGURES],
}

/// The hash slot of a key: what stands in its first braces.
pub fn slot_of(key: &str) -> Option<Tenant> {
    let (_, rest) = key.split_once('{')?;
    let (slot, _) = rest.split_once('}')?;
    (!slot.is_empty()).then(|| Tenant::new(slot))
}

/// What a store must offer besides its other calls to be moved whole.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// The secrets there are.
    async fn secrets(&self) -> Result<Vec<(String, Secret<[u8; 32]>)>, StoreError>;

    /// Sets a secret that is not there yet.
    async fn put_secret(&self, name: &str, secret: &Secret<[u8; 32]>) -> Result<(), StoreError>;

    /// Some rows of a table after a place, and the place where the next begin; `None`: there are no more.
    async fn rows(
        &self,
        table: Table,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError>;

    /// Writes counters, reservations, entries, sums and lines of the audit log as they are; nothing is added up.
    async fn put_rows(&self, rows: Vec<Row>) -> Result<(), StoreError>;
}

#[derive(Debug, Deserialize, Serialize)]
struct Head {
    hearth_store: u32,
}

#[derive(Debug, Deserialize, Serialize)]
struct Tail {
    rows: u64,
    sha256: String,
}

struct Out<'w> {
    to: &'w mut (dyn Write + Send),
    sum: digest::Context,
    rows: u64,
}

impl Out<'_> {
    fn line(&mut self, line: &impl Serialize) -> Result<(), TransferError> {
        let mut text = serde_json::to_vec(line).map_err(std::io::Error::from)?;
        text.push(b'\n');
        self.sum.update(&text);
        self.to.write_all(&text)?;
        Ok(())
    }

    fn row(&mut self, row: &Row) -> Result<(), TransferError> {
        self.rows += 1;
        self.line(row)
    }
}

/// Writes a whole store; how many rows.
pub async fn export(store: &dyn Store, to: &mut (dyn Write + Send)) -> Result<u64, TransferError> {
    let mut out = Out {
        to,
        sum: digest::Context::new(&digest::SHA256),
        rows: 0,
    };
    out.line(&Head {
        hearth_store: VERSION,
    })?;
    records(store, &mut out).await?;
    // What is in no sum yet comes into one now.
    while store.fold().await? > 0 {}
    for table in Table::ALL {
        let mut after = None;
        loop {
            let (rows, next) = store.rows(table, after.as_deref()).await?;
            for row in &rows {
                out.row(row)?;
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    let mut seq = 0;
    loop {
        let lines = store.audit(seq, PAGE).await?;
        let Some(last) = lines.last() else {
            break;
        };
        seq = last.seq;
        for line in lines {
            out.row(&Row::Audit(line))?;
        }
    }
    let tail = Tail {
        rows: out.rows,
        sha256: hex::encode(out.sum.clone().finish()),
    };
    out.line(&tail)?;
    out.to.flush()?;
    Ok(tail.rows)
}

async fn records(store: &dyn Store, out: &mut Out<'_>) -> Result<(), TransferError> {
    for (name, secret) in store.secrets().await? {
        let hex = hex::encode(secret.expose());
        out.row(&Row::Secret { name, hex })?;
    }
    for key in store.keys().await? {
        out.row(&Row::Key(Box::new(key)))?;
    }
    let mut after: Option<UserId> = None;
    loop {
        let users = store.users(after.as_ref(), PAGE).await?;
        let Some(last) = users.last() else {
            break;
        };
        after = Some(last.id.clone());
        for user in users {
            out.row(&Row::User(Box::new(user)))?;
        }
    }
    for denial in store.denials().await? {
        out.row(&Row::Denial(denial))?;
    }
    for token in store.join_tokens().await? {
        out.row(&Row::JoinToken(token))?;
    }
    for node in store.nodes().await? {
        out.row(&Row::Node(node))?;
    }
    for burst in store.bursts().await? {
        out.row(&Row::Burst(burst))?;
    }
    Ok(())
}

/// Reads a stream to its end without writing anything: how many rows, or what is wrong with it.
pub fn check(from: &mut dyn BufRead) -> Result<u64, TransferError> {
    let mut lines = Lines::new(from);
    lines.head()?;
    while lines.row()?.is_some() {}
    Ok(lines.rows)
}

/// Fills an empty store from a stream that [`check`] found whole; how many rows.
pub async fn import(
    store: &dyn Store,
    from: &mut (dyn BufRead + Send),
) -> Result<u64, TransferError> {
    be_empty(store).await?;
    let mut lines = Lines::new(from);
    lines.head()?;
    let mut waiting = Vec::with_capacity(ROWS_A_CALL);
    while let Some(row) = lines.row()? {
        let Some(row) = put_record(store, row).await? else {
            continue;
        };
        waiting.push(row);
        if waiting.len() >= ROWS_A_CALL {
            store.put_rows(std::mem::take(&mut waiting)).await?;
        }
    }
    store.put_rows(waiting).await?;
    Ok(lines.rows)
}

async fn be_empty(store: &dyn Store) -> Result<(), TransferError> {
    let holds = if !store.secrets().await?.is_empty() {
        "secrets"
    } else if !store.keys().await?.is_empty() {
        "keys"
    } else if !store.users(None, 1).await?.is_empty() {
        "people"
    } else if !store.nodes().await?.is_empty() {
        "nodes"
    } else if !store.rows(Table::Counters, None).await?.0.is_empty() {
        "counters"
    } else if store.last_audit().await?.is_some() {
        "an audit log"
    } else {
        return Ok(());
    };
    Err(TransferError::NotEmpty(holds))
}

/// Writes a record; gives back what is none.
async fn put_record(store: &dyn Store, row: Row) -> Result<Option<Row>, TransferError> {
    match row {
        Row::Key(key) => store.put_key(&key).await?,
        Row::User(user) => drop(store.create_user(&user).await?),
        Row::Denial(denial) => store.deny(&denial).await?,
        Row::JoinToken(token) => store.put_join_token(&token).await?,
        Row::Node(node) => store.put_node(&node).await?,
        Row::Burst(burst) => drop(store.swap_burst(&burst.name, None, Some(&burst)).await?),
        Row::Secret { name, hex } => {
            let mut bytes = [0_u8; 32];
            hex::decode_to_slice(&hex, &mut bytes)
                .map_err(|_| StoreError::Corrupt(format!("the secret {name} of the stream")))?;
            store.put_secret(&name, &Secret::new(bytes)).await?;
        }
        Row::Counter(_) | Row::Reservation(_) | Row::Entry(_) | Row::Sum(_) | Row::Audit(_) => {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

struct Lines<'r> {
    from: &'r mut dyn BufRead,
    sum: digest::Context,
    line: u64,
    rows: u64,
}

impl<'r> Lines<'r> {
    fn new(from: &'r mut dyn BufRead) -> Self {
        Self {
            from,
            sum: digest::Context::new(&digest::SHA256),
            line: 0,
            rows: 0,
        }
    }

    fn wrong(&self, problem: impl Into<String>) -> TransferError {
        TransferError::Stream {
            line: self.line,
            problem: problem.into(),
        }
    }

    fn next(&mut self) -> Result<Vec<u8>, TransferError> {
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
        std::io::Read::take(&mut self.from, limit).read_until(b'\n', &mut line)?;
        self.line += 1;
        if !line.ends_with(b"\n") {
            return Err(self.wrong("the stream ends early, or a line is longer than 16 MiB"));
        }
        Ok(line)
    }

    fn head(&mut self) -> Result<(), TransferError> {
        let line = self.next()?;
        let head: Head = serde_json::from_slice(&line)
            .map_err(|_| self.wrong("not the export of a store (hearth-proxy store export)"))?;
        if head.hearth_store != VERSION {
            return Err(self.wrong(format!(
                "version {}; this program reads version {VERSION}",
                head.hearth_store
            )));
        }
        self.sum.update(&line);
        Ok(())
    }

    /// The next row; `None` after the last one, if all are as they were written.
    fn row(&mut self) -> Result<Option<Row>, TransferError> {
        let line = self.next()?;
        if let Ok(tail) = serde_json::from_slice::<Tail>(&line) {
            let sum = hex::encode(self.sum.clone().finish());
            if tail.rows != self.rows || tail.sha256 != sum {
                return Err(self.wrong("the stream was changed: its checksum is another"));
            }
            return Ok(None);
        }
        let row = serde_json::from_slice(&line)
            .map_err(|error| self.wrong(format!("not a row of a store: {error}")))?;
        self.sum.update(&line);
        self.rows += 1;
        Ok(Some(row))
    }
}

#[cfg(test)]
mod tests;
