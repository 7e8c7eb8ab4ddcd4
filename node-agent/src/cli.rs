//! The command line: what was asked, with which settings, and the exit code. 0: done; 1: failed; 64: the settings are wrong.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use config::ids::NodeId;
use config::settings::load;
use config::settings::node::{Settings, TierSettings};
use config::tier::Tier;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::app::{self, AppError, Signals};
use crate::doctor::{self, Verdict};
use crate::hub;
use crate::identity::{Identity, Member};
use crate::join::{self, JoinLink};
use crate::models;
use crate::status::{self, ProxyStatus, Status};
use crate::tiers::Launcher;
use crate::unmanaged;

mod help;

/// Where the local API listens when nothing says otherwise.
const API_PORT: u16 = 8090;
const FAILED: u8 = 1;
/// The settings or the command line are wrong (`EX_USAGE` of sysexits.h).
const MISUSED: u8 = 64;
/// What is not said unless it is asked for by name: details of TLS that are no one's business.
const QUIET: &str = "rustls=warn";

/// Serves this machine's models to a Hearth proxy.
#[derive(Debug, Parser)]
#[command(
    name = "hearth-node",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:
  hearth-node config check node.toml
  hearth-node join 'https://llm.example.org/join#hearth_nj_...' --config node.toml
  hearth-node run --config node.toml
  hearth-node status --config node.toml

Exit codes: 0 done, 1 failed, 64 the settings or the command line are wrong."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a proxy with the link that `hearth-proxy node invite` prints.
    #[command(after_help = help::JOIN)]
    Join {
        /// The link, in quotes.
        link: String,
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Run the agent until SIGTERM.
    #[command(after_help = "Examples:
  hearth-node run --config node.toml
  HEARTH_NODE_JOIN='https://llm.example.org/join#hearth_nj_...' hearth-node run --config node.toml")]
    Run {
        #[command(flatten)]
        settings: SettingsFile,
        /// Join with this link first, if this machine has not joined that proxy yet.
        #[arg(
            long,
            value_name = "LINK",
            env = "HEARTH_NODE_JOIN",
            hide_env_values = true
        )]
        join: Option<String>,
    },
    /// Serve the models to programs on this machine alone, without a proxy: OpenAI's API on a loopback address.
    #[command(after_help = "Example:
  hearth-node serve --config node.toml --listen 127.0.0.1:8090
  curl http://127.0.0.1:8090/v1/models")]
    Serve {
        #[command(flatten)]
        settings: SettingsFile,
        /// A loopback address with port. Default: `api_listen` of the settings, else 127.0.0.1:8090.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
    /// Look at the settings, or write the WireGuard configuration of a machine that runs another server and no agent.
    #[command(
        args_conflicts_with_subcommands = true,
        arg_required_else_help = true,
        after_help = "Examples:
  hearth-node config check node.toml
  (umask 077; hearth-node config --wg-quick 'https://llm.example.org/join#hearth_nj_...' --tier heavy --port 11434 > hearth.conf)

The second writes to standard output what `wg-quick up` reads: behind any stock WireGuard, any server that speaks OpenAI's API (Ollama,
llama-server, vLLM) becomes a node; the proxy looks at it by itself. The file holds a private key: with umask 077 nobody else can read it."
    )]
    Config {
        #[command(flatten)]
        unmanaged: UnmanagedArgs,
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },
    /// Say how the running agent is.
    #[command(after_help = "Example:
  hearth-node status --output json --config node.toml")]
    Status {
        #[command(flatten)]
        settings: SettingsFile,
        /// How to say it.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Look at everything between this machine and its proxy, and say what is wrong and what to do. Exit code 1 if something fails.
    #[command(after_help = help::DOCTOR)]
    Doctor {
        #[command(flatten)]
        settings: SettingsFile,
        /// How to say it.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Fetch a model, whole and checked, and print its path.
    #[command(after_help = "Examples:
  hearth-node pull hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M
  hearth-node pull gemma4:e4b
  hearth-node pull /media/stick/model.gguf

Models lie where llama.cpp and Hugging Face's tools keep them. HF_TOKEN opens gated repositories, HF_ENDPOINT names a mirror.")]
    Pull(models::commands::PullArgs),
    /// Say which model, quantisation and context suit this machine, and why.
    #[command(after_help = "Examples:
  hearth-node advise
  hearth-node advise gemma4:26b
  hearth-node advise model.gguf --json")]
    Advise(models::commands::AdviseArgs),
    /// Look at the models: on the disk, pinned, served.
    #[command(after_help = "Examples:
  hearth-node models list --config node.toml
  hearth-node models lock --update gemma-3-4b-it --config node.toml
  hearth-node models import Modelfile >> node.toml")]
    Models {
        #[command(subcommand)]
        command: models::commands::ModelsCommand,
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Set this machine up, step by step: model, settings, joining. The same command goes on where it stopped.
    #[command(after_help = "Examples:
  hearth-node setup
  hearth-node setup --yes --model gemma4:e4b --join 'https://llm.example.org/join#hearth_nj_...'
  hearth-node setup --yes --model /media/stick/model.gguf --no-join")]
    Setup(crate::setup::SetupArgs),
    /// Measure tiers as clients see them: tokens per second, time per token, time to the first one, memory; or judge their answers.
    #[command(after_help = "Examples:
  hearth-node bench --config node.toml
  hearth-node bench --tier fast --golden prompts.jsonl --min-accuracy 0.9 --config node.toml
  hearth-node bench --url http://192.168.1.20:11434 --model gemma3:4b --json

Each line of --golden is an object: {\"prompt\": \"...\", \"expect\": \"(?i)paris\"}; instead of or beside expect (a regular expression):
equals, contains (a list), json (true, or fields that the answer holds). Exit code 1 below --min-accuracy.")]
    Bench {
        #[command(flatten)]
        args: crate::bench::BenchArgs,
        #[command(flatten)]
        settings: SettingsFile,
    },
    /// Run a model for the agent; not for people.
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with the settings and the model files; exit 64 if there is anything.
    #[command(after_help = "Example:
  hearth-node config check node.toml")]
    Check {
        /// The file.
        #[arg(env = "HEARTH_NODE_CONFIG")]
        file: Option<PathBuf>,
    },
}

#[derive(clap::Args, Debug)]
struct UnmanagedArgs {
    /// Take a place with this join link, in quotes, for a machine without an agent.
    #[arg(long, value_name = "LINK")]
    wg_quick: Option<String>,
    /// The tier that its server is.
    #[arg(long, requires = "wg_quick", default_value = "primary")]
    tier: Tier,
    /// The port on which its server listens.
    #[arg(long, requires = "wg_quick", default_value_t = 8080)]
    port: u16,
    /// Its server's name for the model. Default: the first that it lists.
    #[arg(long, requires = "wg_quick")]
    model: Option<String>,
    /// What people call the machine. Default: this machine's name.
    #[arg(long, requires = "wg_quick")]
    name: Option<String>,
}

#[derive(clap::Args, Debug)]
struct SettingsFile {
    /// The settings.
    #[arg(long, value_name = "FILE", env = "HEARTH_NODE_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Why a command failed; its text was not shown yet.
#[derive(Debug)]
enum Failure {
    Settings(String),
    Other(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.to_string())
    }
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked_for_help = !error.use_stderr();
            // Nowhere left to say that nothing can be said.
            let _shown = error.print();
            return if asked_for_help {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(MISUSED)
            };
        }
    };
    let done = match arguments.command {
        Command::Worker => return engine::worker::run(),
        Command::Join { link, settings } => join_command(&link, &settings),
        Command::Run { settings, join } => run_command(&settings, join.as_deref()),
        Command::Serve { settings, listen } => serve_command(&settings, listen),
        Command::Config {
            command: Some(ConfigCommand::Check { file }),
            ..
        } => check_command(file.as_deref()),
        Command::Config {
            unmanaged,
            command: None,
        } => unmanaged_command(unmanaged),
        Command::Status { settings, output } => status_command(&settings, output),
        Command::Doctor { settings, output } => doctor_command(&settings, output),
        Command::Setup(args) => setup_command(&args),
        Command::Bench { args, settings } => bench_command(&args, &settings),
        Command::Pull(args) => told(models::commands::pull(&args)),
        Command::Advise(args) => told(models::commands::advise(&args)),
        Command::Models { command, settings } => told(models::commands::models(&command, || {
            load::node(settings.config.as_deref()).map_err(|problems| problems.to_string())
        })),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Settings(text)) => {
            complain(&text);
            ExitCode::from(MISUSED)
        }
        Err(Failure::Other(text)) => {
            complain(&text);
            ExitCode::from(FAILED)
        }
    }
}

fn setup_command(args: &crate::setup::SetupArgs) -> Result<(), Failure> {
    told(crate::setup::run(args, &launcher()?))
}

fn bench_command(args: &crate::bench::BenchArgs, file: &SettingsFile) -> Result<(), Failure> {
    let settings = || load::node(file.config.as_deref()).map_err(|problems| problems.to_string());
    let launcher = launcher()?;
    let outcome = models::commands::block_on(crate::bench::run(args, settings, &launcher));
    let outcome = outcome
        .and_then(|outcome| outcome)
        .map_err(Failure::Other)?;
    say(&outcome.text)?;
    outcome
        .failed
        .map_or(Ok(()), |reason| Err(Failure::Other(reason)))
}

fn told(result: Result<String, String>) -> Result<(), Failure> {
    say(&result.map_err(Failure::Other)?)
}

fn complain(text: &str) {
    // Nowhere left to say that nothing can be said.
    let _said = writeln!(io::stderr(), "{}", text.trim_end());
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

fn settings_of(file: Option<&Path>) -> Result<Settings, Failure> {
    load::node(file).map_err(|problems| Failure::Settings(problems.to_string()))
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime)
}

fn join_command(link: &str, file: &SettingsFile) -> Result<(), Failure> {
    let settings = settings_of(file.config.as_deref())?;
    let link = JoinLink::parse(link)?;
    let node = &settings.node;
    let identity = Identity::open(&node.state_dir)?;
    let before = Member::load(&node.state_dir)?;
    let runtime = runtime()?;
    let joined = runtime.block_on(join::join(&link, &identity, &node.name, &node.state_dir));
    let joined = match (joined, before) {
        (Ok(joined), _) => joined,
        (Err(error), Some(before)) if before.proxy == link.proxy => {
            return Err(Failure::Other(format!(
                "{error}\n(this machine joined {} before, as {}; nothing was changed)",
                before.proxy, before.node_id
            )));
        }
        (Err(error), _) => return Err(error.into()),
    };
    let member = joined.member;
    if !joined.approved {
        say(&format!(
            "{}: {}\nwaiting; Ctrl-C ends the waiting and not the wish",
            member.name,
            hub::waiting_words(&member.node_id)
        ))?;
        let every = node.refused_retry;
        runtime.block_on(join::approval(&link, &identity, &node.name, every))?;
    }
    say(&format!(
        "joined {} as {} ({}); start the agent with `hearth-node run`",
        member.proxy, member.name, member.node_id
    ))
}

fn unmanaged_command(args: UnmanagedArgs) -> Result<(), Failure> {
    let link = args.wg_quick.as_deref().unwrap_or_default();
    let link = JoinLink::parse(link)?;
    let wanted = unmanaged::Wanted {
        name: args.name.unwrap_or_else(load::host_name),
        tier: args.tier,
        port: args.port,
        model: args.model,
    };
    let waits = |node: &NodeId| complain(&format!("{}\nwaiting", hub::waiting_words(node)));
    let written = runtime()?.block_on(unmanaged::write(&link, &wanted, waits))?;
    complain(&format!("{} is {}", wanted.name, written.node_id));
    say(&written.file)
}

fn run_command(file: &SettingsFile, link: Option<&str>) -> Result<(), Failure> {
    let settings = settings_of(file.config.as_deref())?;
    let link = link.map(JoinLink::parse).transpose()?;
    journal::init(&settings.log, QUIET)?;
    let launcher = launcher()?;
    until_stopped(file, |signals| app::run(settings, link, launcher, signals))
}

fn serve_command(file: &SettingsFile, listen: Option<SocketAddr>) -> Result<(), Failure> {
    let settings = settings_of(file.config.as_deref())?;
    let address = listen
        .or(settings.node.api_listen)
        .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT)));
    if !address.ip().is_loopback() {
        return Err(Failure::Settings(format!(
            "--listen {address} is not a loopback address: without a proxy nothing asks for a key, so only this machine may connect; use 127.0.0.1:{}",
            address.port()
        )));
    }
    journal::init(&settings.log, QUIET)?;
    let launcher = launcher()?;
    until_stopped(file, |signals| {
        app::serve(settings, address, launcher, signals)
    })
}

fn launcher() -> Result<Launcher, Failure> {
    Ok(Launcher {
        program: std::env::current_exe()?,
        args: vec!["worker".to_owned()],
    })
}

/// Runs until the first signal and what it lets finish, or until the second.
fn until_stopped<F>(file: &SettingsFile, start: impl FnOnce(Signals) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), AppError>>,
{
    let runtime = runtime()?;
    let stop = CancellationToken::new();
    let ran = runtime.block_on(async {
        let impatient = watch_signals(stop.clone())?;
        let reload = watch_hangups(file.config.clone())?;
        tokio::select! {
            ran = start(Signals { stop, reload }) => ran.map_err(Failure::from),
            () = impatient => Err(Failure::Other("stopped at once by a second signal".to_owned())),
        }
    });
    // A hash of a large file may still be running.
    runtime.shutdown_background();
    ran
}

/// The first signal cancels `stop`; the future resolves at the second.
fn watch_signals(stop: CancellationToken) -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for _time in 0..2 {
            tokio::select! {
                _signal = terminate.recv() => {}
                _signal = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                return;
            }
            stop.cancel();
        }
    })
}

/// Reads the settings again at every SIGHUP; wrong ones are told and change nothing.
fn watch_hangups(file: Option<PathBuf>) -> Result<mpsc::Receiver<Vec<TierSettings>>, Failure> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match load::node(file.as_deref()) {
                Ok(settings) => {
                    if sender.send(settings.tiers).await.is_err() {
                        return;
                    }
                }
                Err(problems) => {
                    tracing::warn!(%problems, "the settings are wrong; the old ones stay");
                }
            }
        }
    });
    Ok(receiver)
}

fn check_command(file: Option<&Path>) -> Result<(), Failure> {
    let settings = settings_of(file)?;
    let mut problems = Vec::new();
    for tier in &settings.tiers {
        if let Err(problem) = models::check(&tier.model) {
            problems.push(format!("tiers.{}: {problem}", tier.tier));
        }
    }
    if problems.is_empty() {
        return say("the settings are right");
    }
    Err(Failure::Settings(problems.join("\n")))
}

fn status_command(file: &SettingsFile, output: Output) -> Result<(), Failure> {
    let settings = settings_of(file.config.as_deref())?;
    let state_dir = settings.node.state_dir;
    let status = runtime()?
        .block_on(status::ask(&state_dir))
        .map_err(|error| {
            Failure::Other(format!(
                "no agent answers in {}: {error}; start it with `hearth-node run`, and ask as the same user",
                state_dir.display()
            ))
        })?;
    match output {
        Output::Json => say(&serde_json::to_string_pretty(&status)?),
        Output::Text => say(&text_of(&status)),
    }
}

fn doctor_command(file: &SettingsFile, output: Output) -> Result<(), Failure> {
    let settings = settings_of(file.config.as_deref())?;
    let checks = runtime()?.block_on(doctor::examine(&settings));
    match output {
        Output::Json => say(&serde_json::to_string_pretty(&checks)?)?,
        Output::Text => {
            let lines: Vec<String> = checks.iter().map(ToString::to_string).collect();
            say(&lines.join("\n"))?;
        }
    }
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail);
    match failed.count() {
        0 => Ok(()),
        1 => Err(Failure::Other("one thing does not work".to_owned())),
        many => Err(Failure::Other(format!("{many} things do not work"))),
    }
}

fn proxy_line(proxy: &ProxyStatus) -> String {
    let mut said = vec![format!("  {} {}", proxy.url, proxy.standing)];
    said.extend(proxy.reason.clone());
    let silence = proxy.silence_secs();
    if let Some(silence) = silence {
        said.push(format!("silent for {silence:.0} s"));
    }
    if let Some(age) = proxy.handshake_age_secs.filter(|_| silence.is_none()) {
        let is_carried = proxy.carrier.as_deref() == Some(tunnel::PathKind::Carried.as_str());
        said.push(if is_carried {
            "over HTTPS because no UDP gets through".to_owned()
        } else {
            "by UDP".to_owned()
        });
        let away = proxy.round_trip_ms;
        said.extend(away.map(|ms| format!("{ms:.1} ms away")));
        let loss = proxy.loss_percent;
        said.extend(loss.map(|loss| format!("{loss:.1} % lost")));
        said.push(format!("keys {age:.0} s old"));
        let mtu = proxy.mtu;
        said.extend(mtu.map(|mtu| format!("packets up to {mtu} bytes")));
    }
    let back_end = proxy.back_end.as_ref();
    said.extend(back_end.map(|back_end| format!("back-end {back_end}")));
    let (rx, tx) = (proxy.rx_bytes / 1024, proxy.tx_bytes / 1024);
    said.push(format!("{rx} KiB in, {tx} KiB out"));
    said.join(", ")
}

fn text_of(status: &Status) -> String {
    let mut lines = vec![format!(
        "{} ({}) -> {}: {}{}",
        status.name,
        status.node_id,
        status.proxy,
        status.standing,
        if status.draining { ", going down" } else { "" }
    )];
    // The line of the proxy concerned says it again.
    let is_told = |reason: &&String| {
        let mut proxies = status.proxies.iter();
        proxies.any(|proxy| proxy.reason.as_ref() == Some(*reason))
    };
    let reason = status.reason.iter().filter(|reason| !is_told(reason));
    lines.extend(reason.map(|reason| format!("  {reason}")));
    lines.push(format!("  fingerprint: {}", status.fingerprint));
    lines.extend(status.proxies.iter().map(proxy_line));
    for tier in &status.tiers {
        let state = tier.state.as_str();
        let model = tier.model.as_ref();
        let model = model.map_or_else(String::new, |model| {
            format!(
                " {} ({}, {} tokens)",
                model.id, model.quantization, model.n_ctx
            )
        });
        let reason = tier.reason.as_ref();
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        lines.push(format!(
            "  {:<8} {state}{model}, {} of {} slots busy, {} waiting{reason}",
            tier.tier.as_str(),
            tier.slots_busy,
            tier.slots,
            tier.queue_depth
        ));
    }
    lines.join("\n")
}
