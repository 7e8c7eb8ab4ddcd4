//! `store export`, `store import`: a whole store into a file, and a file into an empty store, with no proxy in between. What they do
//! is [`crate::store::transfer`]'s.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use config::settings::proxy::Settings;
use serde::Serialize;

use super::args::Output;
use super::print;
use super::{CliError, settings};
use crate::observe::metrics::Metrics;
use crate::store::transfer::{self, TransferError};
use crate::store::{self, Store, StoreError};

#[derive(Serialize)]
struct Moved<'f> {
    file: &'f str,
    rows: u64,
}

/// Writes the store that the settings name into a new file.
pub(super) async fn export(
    config: Option<&Path>,
    file: &Path,
    output: Output,
) -> Result<(), CliError> {
    let store = alone(&settings(config)?).await?;
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|error| named(file, &error))?;
    let mut to = BufWriter::new(new);
    let written = transfer::export(&*store, &mut to).await;
    let written = match written {
        Ok(rows) => to
            .flush()
            .and_then(|()| to.get_ref().sync_all())
            .map(|()| rows)
            .map_err(|error| named(file, &error)),
        Err(error) => Err(failed(file, &error)),
    };
    if written.is_err() {
        // Half a file must not look like a whole one.
        drop(std::fs::remove_file(file));
    }
    done(file, written?, output)
}

/// Fills the store that the settings name, which must be empty, from a file.
pub(super) async fn import(
    config: Option<&Path>,
    file: &Path,
    output: Output,
) -> Result<(), CliError> {
    let settings = settings(config)?;
    let open = || File::open(file).map_err(|error| named(file, &error));
    // To its end first: half a file fills nothing.
    transfer::check(&mut BufReader::new(open()?)).map_err(|error| failed(file, &error))?;
    let store = alone(&settings).await?;
    let rows = transfer::import(&*store, &mut BufReader::new(open()?))
        .await
        .map_err(|error| failed(file, &error))?;
    done(file, rows, output)
}

fn done(file: &Path, rows: u64, output: Output) -> Result<(), CliError> {
    let file = &file.display().to_string();
    if output == Output::Json {
        return print::json(&Moved { file, rows });
    }
    print::line(&format!("{file}: {rows} rows"))
}

async fn alone(settings: &Settings) -> Result<Arc<dyn Store>, CliError> {
    let opened = store::open(
        &settings.store,
        (&settings.server.state_dir, settings.limits.table_max),
        Arc::new(Metrics::new()),
    )
    .await;
    opened.map_err(|error| match error {
        StoreError::InUse(file) => CliError::Failed(format!(
            "another process uses {file}: stop every proxy of this store first, so that no count is lost"
        )),
        StoreError::Unavailable(_) | StoreError::Overloaded | StoreError::Corrupt(_) => {
            error.into()
        }
    })
}

fn named(file: &Path, error: &std::io::Error) -> CliError {
    CliError::Failed(format!("{}: {error}", file.display()))
}

fn failed(file: &Path, error: &TransferError) -> CliError {
    CliError::Failed(format!("{}: {error}", file.display()))
}
