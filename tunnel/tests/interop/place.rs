//! A place where a test may do as it likes: a user, a network and a mount namespace of its own, with a loopback and an empty `/run`.

use std::path::Path;
use std::process::{Command, Stdio};

/// Set for the test that was started inside.
const INSIDE: &str = "HEARTH_TEST_INSIDE";
const PREPARE: &str = "ip link set lo up && mount -t tmpfs none /run && mkdir -p /run/wireguard && exec \"$0\" \"$@\"";

/// Set by whoever has seen that this machine gives namespaces: then nothing is left out in silence.
const REQUIRED: &str = "HEARTH_NAMESPACES";

/// True inside, where these programs are too. Outside it starts this test inside, waits for its end, and is false; also where the machine cannot do that, which is said.
///
/// # Panics
/// Where the machine cannot do it and `HEARTH_NAMESPACES` says that it can.
pub(crate) fn inside(test: &str, programs: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    for program in ["ip", "unshare"].iter().chain(programs) {
        if !is_installed(program) {
            return left_out(test, &format!("this machine has no {program}"));
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        return left_out(test, "this machine has no /dev/net/tun");
    }
    let enter = ["--user", "--map-root-user", "--net", "--mount"];
    let probe = Command::new("unshare")
        .args(enter)
        .args(["sh", "-c", PREPARE, "true"])
        .output()
        .expect("it is installed");
    if !probe.status.success() {
        let said = String::from_utf8_lossy(&probe.stderr);
        let why = format!("this machine gives no namespaces: {}", said.trim());
        return left_out(test, &why);
    }
    let status = Command::new("unshare")
        .args(enter)
        .args(["sh", "-c", PREPARE])
        .arg(std::env::current_exe().expect("our own path"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .expect("it is installed");
    assert!(status.success(), "{test}, inside: {status}");
    false
}

fn left_out(test: &str, why: &str) -> bool {
    assert!(!is_required(), "{test}: {why}");
    tell(&format!("{test}: {why}"));
    false
}

/// Whether a test that needs namespaces must not be left out.
pub(crate) fn is_required() -> bool {
    std::env::var_os(REQUIRED).is_some()
}

fn is_installed(program: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&places).any(|place| place.join(program).exists())
}

/// For whoever reads the test's output.
pub(crate) fn tell(line: &str) {
    use std::io::Write as _;
    // Nowhere left to say that nothing can be said.
    drop(writeln!(std::io::stderr(), "{line}"));
}
