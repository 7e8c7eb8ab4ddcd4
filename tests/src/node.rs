//! A real hearth-node with the tiny models of the repository, joined through the real enrolment.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, free_tcp_port, program, said};
use crate::proxy::Proxy;
use crate::wait::page;

/// The tiny model of a tier.
pub fn model(tier: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("models/tiny-{tier}-q8_0.gguf"));
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// A scripted engine that says so many words, one letter each so many milliseconds: slow enough to be interrupted.
pub fn slow(words: usize, step_ms: u64) -> String {
    format!(
        "script:{}",
        json!({"say": "word ".repeat(words), "step_ms": step_ms})
    )
}

/// A scripted engine that loads and then fails every request.
pub fn broken() -> String {
    format!("script:{}", json!({"say": "never", "fault_on": ""}))
}

/// Settings of a node to be started.
pub struct Builder {
    name: String,
    settings: String,
    tiers: String,
    names: Option<PathBuf>,
}

impl Builder {
    /// One line of `[node]`.
    #[must_use]
    pub fn setting(mut self, line: &str) -> Self {
        writeln!(self.settings, "{line}").expect("a string grows");
        self
    }

    /// Lines of a section of its own, before the tiers.
    #[must_use]
    pub fn section(mut self, lines: &str) -> Self {
        self.tiers = format!("{lines}\n\n{}", self.tiers);
        self
    }

    /// Serves the tiny model of this tier.
    #[must_use]
    pub fn tier(self, tier: &str) -> Self {
        let file = model(tier);
        self.tier_from(tier, &file.display().to_string(), 4)
    }

    /// Serves a model of the story's own on so many slots.
    #[must_use]
    pub fn tier_from(self, tier: &str, model: &str, slots: u32) -> Self {
        self.tier_with(tier, model, slots, "")
    }

    /// The same with more lines of the tier.
    #[must_use]
    pub fn tier_with(mut self, tier: &str, model: &str, slots: u32, lines: &str) -> Self {
        write!(
            self.tiers,
            "[[tiers]]\ntier = \"{tier}\"\nmodel = '{model}'\nslots = {slots}\n{lines}\n\n"
        )
        .expect("a string grows");
        self
    }

    /// The tier named last gets this projector.
    #[must_use]
    pub fn seeing(mut self, projector: &Path) -> Self {
        let projector = projector.display();
        write!(self.tiers, "[tiers.engine]\nprojector = '{projector}'\n\n")
            .expect("a string grows");
        self
    }

    /// Knows the names of this file, in a mount namespace of its own, instead of those of `/etc/hosts`.
    #[must_use]
    pub fn knowing(mut self, names: &Path) -> Self {
        self.names = Some(names.to_owned());
        self
    }

    /// Joins the proxy and runs.
    pub fn join(self, proxy: &Proxy) -> Node {
        let mut node = self.prepare();
        node.join(&proxy.invite());
        node.restart();
        node
    }

    /// Writes the settings and starts nothing.
    pub fn prepare(self) -> Node {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let admin_port = free_tcp_port();
        let settings = format!(
            "[node]\nname = \"{}\"\nstate_dir = \"{}\"\nadmin_listen = \"127.0.0.1:{admin_port}\"\n{}\n{}",
            self.name,
            folder.path().join("state").display(),
            self.settings,
            self.tiers,
        );
        fs::write(folder.path().join("node.toml"), settings).expect("settings can be written");
        Node {
            folder,
            admin_port,
            names: self.names,
            process: None,
        }
    }
}

/// A running node.
pub struct Node {
    // Dropped first: a failing story shows the log before the folder goes.
    process: Option<Process>,
    folder: TempDir,
    admin_port: u16,
    names: Option<PathBuf>,
}

impl Node {
    /// A node by this name, without tiers yet.
    pub fn named(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            settings: String::new(),
            tiers: String::new(),
            names: None,
        }
    }

    /// A node with all three tiny models.
    pub fn whole() -> Builder {
        Self::named("den")
            .tier("fast")
            .tier("primary")
            .tier("heavy")
    }

    /// `hearth-node join`.
    pub fn join(&self, link: &str) {
        let joined = self
            .command(&["join", link])
            .output()
            .expect("hearth-node runs");
        assert!(
            joined.status.success(),
            "join failed: {}{}",
            String::from_utf8_lossy(&joined.stdout),
            String::from_utf8_lossy(&joined.stderr)
        );
    }

    /// `hearth-node join`, which may wait for somebody; the thread ends with all that it said.
    pub fn join_in_background(&self, link: &str) -> std::thread::JoinHandle<String> {
        let mut command = self.command(&["join", link]);
        std::thread::spawn(move || {
            let joined = command.output().expect("hearth-node runs");
            let said = [joined.stdout, joined.stderr].concat();
            String::from_utf8_lossy(&said).into_owned()
        })
    }

    /// What `hearth-node join` says when it is refused.
    pub fn join_refused(&self, link: &str) -> String {
        let joined = self
            .command(&["join", link])
            .output()
            .expect("hearth-node runs");
        assert!(!joined.status.success(), "join was accepted");
        String::from_utf8_lossy(&joined.stderr).into_owned()
    }

    /// A command as a person types it: exit code and words.
    pub fn typed(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let config = self.folder.path().join("node.toml").display().to_string();
        let mut all = arguments.to_vec();
        if arguments.first() == Some(&"config") {
            all.push(&config);
        } else {
            all.extend(["--config", &config]);
        }
        said("hearth-node", &all)
    }

    /// Starts the program (again).
    pub fn restart(&mut self) {
        self.process = None;
        let mut command = self.command(&["run"]);
        self.process = Some(Process::start("node", &mut command, self.folder.path()));
    }

    /// Another model for a tier, from the next start on.
    pub fn replace_tier(&self, tier: &str, model: &str) {
        let path = self.folder.path().join("node.toml");
        let settings = fs::read_to_string(&path).expect("a prepared node has settings");
        let start = settings
            .find(&format!("tier = \"{tier}\""))
            .expect("the tier is configured");
        let (before, section) = settings.split_at(start);
        let line = section
            .lines()
            .find(|line| line.starts_with("model = "))
            .expect("a tier has a model");
        let section = section.replacen(line, &format!("model = '{model}'"), 1);
        fs::write(&path, format!("{before}{section}")).expect("settings can be written");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The process itself, for signals.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node was started")
    }

    /// What it remembers of its registration.
    pub fn registration(&self) -> Value {
        let text = fs::read_to_string(self.folder.path().join("state/node.json"))
            .expect("a joined node has node.json");
        serde_json::from_str(&text).expect("node.json is JSON")
    }

    /// The sum over the series of `/metrics` that start with the prefix.
    pub async fn metric(&self, prefix: &str) -> Option<f64> {
        let page = page(self.admin_port, "/metrics").await?;
        let found: Vec<f64> = page
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.names {
            None => Command::new(program("hearth-node")),
            Some(names) => {
                let mut command = Command::new("unshare");
                let hide = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
                command
                    .args(["--map-root-user", "--mount", "sh", "-c", hide])
                    .args([names.clone(), program("hearth-node")]);
                command
            }
        };
        command
            .args(arguments)
            .arg("--config")
            .arg(self.folder.path().join("node.toml"));
        command
    }
}
