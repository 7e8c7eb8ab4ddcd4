//! The real programs as child processes: found beside the tests, stopped with them, their logs shown when a story fails.

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A program of this workspace in the folder of the build that made the tests.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test knows its own file");
    let folder = tests.parent().expect("a file lies in a folder");
    // Tests run from target/<profile>/deps, benchmarks from target/<profile>.
    let folder = match folder.parent() {
        Some(profile) if folder.ends_with("deps") => profile,
        Some(_) | None => folder,
    };
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --bins` first",
        path.display()
    );
    path
}

/// A TCP port that nobody uses, below the range from which the system takes the ports of outgoing connections.
pub fn free_tcp_port() -> u16 {
    free_port(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

/// A UDP port that nobody uses, from the same range.
pub fn free_udp_port() -> u16 {
    free_port(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok())
}

/// Each test process walks the range from a place of its own, so that two stories at once do not pick the same port.
fn free_port(is_free: impl Fn(u16) -> bool) -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    for _ in 0..COUNT {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(101).wrapping_add(step) % COUNT;
        let port = u16::try_from(FIRST + place).expect("the range fits");
        if is_free(port) {
            return port;
        }
    }
    panic!("no port is free")
}

/// Runs a program to its end: its exit code and all that it said.
pub fn said(name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program(name));
    command.args(arguments).stdin(Stdio::null());
    for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("HEARTH_")) {
        command.env_remove(variable);
    }
    let ran = command
        .output()
        .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
    let words = [ran.stdout, ran.stderr].concat();
    (
        ran.status.code(),
        String::from_utf8_lossy(&words).into_owned(),
    )
}

/// Sends a signal by its name to a process.
pub fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "kill -{signal} {pid} failed"
    );
}

/// A running program; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command with both outputs in `folder/<name>.log`, appended over restarts.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file can be made");
        let errors = output.try_clone().expect("a file handle can be shared");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// What the program printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The operating system's number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs; panics with the log if it ended by itself with an error.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child can be asked") {
            panic!("{} ended with {status}:\n{}", self.name, self.log());
        }
    }

    /// Sends a signal by its name, as `TERM`.
    pub fn signal(&self, signal: &str) {
        send(signal, self.pid());
    }

    /// The processes that it has started and that still run.
    pub fn children(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        let tasks = tasks.expect("a running process has tasks").flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let pids = lists.flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<u32>>()
        });
        pids.collect()
    }

    /// Its children that run a model; the one that holds the tunnel's namespace is none.
    pub fn workers(&self) -> Vec<u32> {
        let all = self.children().into_iter();
        let works = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"worker")
        };
        all.filter(works).collect()
    }

    /// Waits for the end; panics after the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status;
            }
            assert!(
                started.elapsed() < deadline,
                "{} still runs after {deadline:?}:\n{}",
                self.name,
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    #[expect(
        clippy::print_stderr,
        reason = "a failing story shows what its programs said"
    )]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.len().saturating_sub(60);
            eprintln!(
                "--- {} ---\n{}",
                self.name,
                lines.get(tail..).unwrap_or_default().join("\n")
            );
        }
    }
}
