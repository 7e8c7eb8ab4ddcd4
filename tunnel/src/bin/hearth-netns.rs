//! The helper of the `netns` back-end on its own, for the tunnel's tests and measurements. The programs are their own helpers.

fn main() -> std::process::ExitCode {
    tunnel::netns::helper_main().unwrap_or(std::process::ExitCode::FAILURE)
}
