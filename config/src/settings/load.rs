//! From a file and the environment to settings. The only place of this floor that reads files; what it found is passed on as data.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::problem::{Problem, Problems};
use super::read::Document;
use super::{node, proxy, resolve};

/// Environment variables that set keys of the proxy start with this: `HEARTH_PROXY__LIMITS__TEXT_PER_DAY=5`.
pub const PROXY_PREFIX: &str = "HEARTH_PROXY__";
/// Environment variables that set keys of the node start with this: `HEARTH_NODE__NODE__NAME=den`.
pub const NODE_PREFIX: &str = "HEARTH_NODE__";
/// A settings file has at most this size.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// A secret's file has at most this size.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// What settings depend on besides their text, so that tests can state it.
pub struct Outside<'a> {
    /// The environment.
    pub variables: BTreeMap<String, String>,
    /// Reads the file of a secret.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
    /// What is known of the machine.
    pub machine: Machine,
}

/// What defaults depend on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Machine {
    /// The host's name.
    pub host_name: String,
    /// Where this user's programs keep data: `$XDG_DATA_HOME`, else `~/.local/share`.
    pub data_home: Option<PathBuf>,
    /// The folder that the service manager made for this service: `$STATE_DIRECTORY` (systemd.exec(5)).
    pub state_directory: Option<PathBuf>,
    /// Whether the process runs as root.
    pub root: bool,
    /// CPU cores that the process may use.
    pub cores: usize,
}

impl Machine {
    /// The machine that this runs on.
    pub fn this() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let data_home = variable("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/share")));
        Self {
            host_name: host_name(),
            data_home,
            state_directory: variable("STATE_DIRECTORY").map(PathBuf::from),
            root: rustix::process::geteuid().is_root(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What this machine calls itself.
pub fn host_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

impl Outside<'_> {
    /// The environment and the machine of this process.
    pub fn this() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            variables,
            read: &|path| read_at_most(path, SECRET_BYTES_MAX),
            machine: Machine::this(),
        }
    }
}

/// The proxy's settings from a file, or the defaults without one, under the environment.
pub fn proxy(file: Option<&Path>) -> Result<proxy::Settings, Problems> {
    let (name, text) = read_settings(file)?;
    parse_proxy(&name, &text, &Outside::this())
}

/// The node's settings from a file under the environment.
pub fn node(file: Option<&Path>) -> Result<node::Settings, Problems> {
    let (name, text) = read_settings(file)?;
    parse_node(&name, &text, &Outside::this())
}

/// The proxy's settings from a text. Pure: all that is outside comes in as data.
pub fn parse_proxy(
    name: &str,
    text: &str,
    outside: &Outside<'_>,
) -> Result<proxy::Settings, Problems> {
    let document = Document::new(name, text, PROXY_PREFIX, outside);
    let settings = resolve::proxy::settings(document.root());
    document.finish()?;
    Ok(settings)
}

/// The node's settings from a text. Pure: all that is outside comes in as data.
pub fn parse_node(
    name: &str,
    text: &str,
    outside: &Outside<'_>,
) -> Result<node::Settings, Problems> {
    let document = Document::new(name, text, NODE_PREFIX, outside);
    let settings = resolve::node::settings(document.root());
    document.finish()?;
    Ok(settings)
}

fn read_settings(file: Option<&Path>) -> Result<(String, String), Problems> {
    let Some(path) = file else {
        return Ok(("no file".to_owned(), String::new()));
    };
    let name = path.display().to_string();
    match read_at_most(path, FILE_BYTES_MAX) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            let problem = Problem::of_file(&name, format!("cannot be read: {error}"));
            Err(Problems::new(vec![problem]))
        }
    }
}

fn read_at_most(path: &Path, max: u64) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(max + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > max) {
        return Err(io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
