//! A worker process and nothing else, for the tests of this crate. The shipped program has the same behind a subcommand.
//!
//! `hearth-worker escape MODEL FORBIDDEN_FILE` stands behind a worker's walls, tries to leave and prints what it could do.

use std::fmt::Write as _;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::thread;

use engine::LoadSpec;
use engine::sandbox;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [word, model, forbidden] if word == "escape" => escape(model, Path::new(forbidden)),
        _ => engine::worker::run(),
    }
}

fn escape(model: &str, forbidden: &Path) -> ExitCode {
    let walls = sandbox::enter(&LoadSpec::new(model));
    let model = Path::new(model).to_owned();
    let forbidden = forbidden.to_owned();
    // A thread started later stands behind the same walls.
    let tried = thread::spawn(move || {
        [
            ("reads its model", File::open(&model).is_ok()),
            (
                "reads the machine's memory",
                File::open("/proc/meminfo").is_ok(),
            ),
            ("reads another file", File::open(&forbidden).is_ok()),
            (
                "writes its model",
                OpenOptions::new().append(true).open(&model).is_ok(),
            ),
            (
                "makes a file",
                File::create(forbidden.with_extension("new")).is_ok(),
            ),
            ("runs a program", Command::new("/bin/true").status().is_ok()),
            ("connects", connects()),
            ("listens", TcpListener::bind("127.0.0.1:0").is_ok()),
            ("opens UDP", UdpSocket::bind("127.0.0.1:0").is_ok()),
        ]
    })
    .join();
    let Ok(tried) = tried else {
        return ExitCode::FAILURE;
    };
    let mut lines = format!("files {}\ncalls {}\n", walls.files, walls.calls);
    for (what, could) in tried {
        // Writing to a string cannot fail.
        let _written = writeln!(lines, "{what} {could}");
    }
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_gone) => ExitCode::FAILURE,
    }
}

/// Refused by the system is another thing than refused by nobody listening.
fn connects() -> bool {
    match TcpStream::connect("127.0.0.1:9") {
        Ok(_connected) => true,
        Err(error) => error.kind() != std::io::ErrorKind::PermissionDenied,
    }
}
