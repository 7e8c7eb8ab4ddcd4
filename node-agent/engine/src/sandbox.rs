//! The walls around a worker, put up before it looks at a model: no network, no other program, no file but the model's and those that
//! the machine's libraries need. A model file is somebody else's data and llama.cpp parses it in C++.
//!
//! This room must never fail a load because a wall is missing: an old kernel, or another system than Linux, has fewer, and
//! [`Walls`] says which stand.

use std::path::Path;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::setrlimit;

use crate::spec::LoadSpec;

/// More than a worker opens: its socket, its model's parts, devices of a GPU.
const FILES_MAX: u64 = 1_024;

/// The walls that stand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Walls {
    /// Files are limited to the model's (Landlock).
    pub files: bool,
    /// Sockets, programs, debuggers and mounts are refused (seccomp).
    pub calls: bool,
}

/// Puts them up around this thread and all that it starts. The threads that run already keep their own.
pub fn enter(spec: &LoadSpec) -> Walls {
    limit(Resource::Core, 0, "core dumps hold prompts");
    limit(Resource::Nofile, FILES_MAX, "open files");
    if !spec.sandbox {
        return Walls::default();
    }
    let walls = system::enter(&readable(spec), &writable(spec));
    if !(walls.files && walls.calls) {
        tracing::info!(
            files = walls.files,
            calls = walls.calls,
            "this system has not every wall for a worker"
        );
    }
    walls
}

/// The files that a worker reads by the wish of its settings.
fn readable(spec: &LoadSpec) -> Vec<&Path> {
    let mut paths = vec![spec.model_path.as_path()];
    paths.extend(spec.draft_model.as_deref());
    paths.extend(spec.projector.as_deref());
    paths.extend(spec.lora.as_ref().map(|lora| lora.path.as_path()));
    // A model in parts lies in files beside the first.
    let parts = spec
        .model_path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .is_some_and(|stem| stem.contains("-of-"));
    if parts && let Some(folder) = spec.model_path.parent() {
        paths.push(folder);
    }
    paths
}

/// The folders that a worker writes to.
fn writable(spec: &LoadSpec) -> Vec<&Path> {
    spec.state_dir.as_deref().into_iter().collect()
}

fn limit(resource: Resource, most: u64, what: &'static str) {
    let most = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    if let Err(error) = setrlimit(resource, most) {
        tracing::warn!(%error, what, "a limit cannot be set");
    }
}

#[cfg(target_os = "linux")]
mod system {
    //! Landlock for files and TCP, seccomp for system calls; both stay for good and are inherited.

    use std::collections::BTreeMap;
    use std::path::Path;

    use landlock::ABI;
    use landlock::Access;
    use landlock::AccessFs;
    use landlock::AccessNet;
    use landlock::CompatLevel;
    use landlock::Compatible;
    use landlock::Ruleset;
    use landlock::RulesetAttr;
    use landlock::RulesetCreatedAttr;
    use landlock::RulesetError;
    use landlock::RulesetStatus;
    use landlock::path_beneath_rules;
    use seccompiler::BpfProgram;
    use seccompiler::SeccompAction;
    use seccompiler::SeccompFilter;

    use super::Walls;

    /// What shared libraries, drivers and the C library read. Nobody's data lies there.
    const LIBRARIES: [&str; 22] = [
        "/usr",
        "/lib",
        "/lib64",
        "/opt",
        "/nix/store",
        "/run/opengl-driver",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/etc/localtime",
        "/etc/vulkan",
        "/etc/OpenCL",
        "/etc/glvnd",
        "/proc/self",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/devices",
        "/proc/modules",
        "/proc/driver",
        "/proc/sys",
        "/proc/stat",
        "/sys",
    ];

    /// Calls that a process which only computes never needs. Refused with EPERM rather than killed: a driver that tries one
    /// goes on without it.
    const REFUSED: [libc::c_long; 33] = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_open,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
    ];

    pub(super) fn enter(readable: &[&Path], writable: &[&Path]) -> Walls {
        let files = files(readable, writable).unwrap_or_else(|error| {
            tracing::warn!(%error, "a worker's files cannot be limited");
            false
        });
        let calls = calls().unwrap_or_else(|error| {
            tracing::warn!(%error, "a worker's system calls cannot be limited");
            false
        });
        Walls { files, calls }
    }

    /// Reading for what is named, writing for devices and what is named, nothing else; and no TCP.
    fn files(readable: &[&Path], writable: &[&Path]) -> Result<bool, RulesetError> {
        let abi = ABI::V5;
        let read = AccessFs::from_read(abi);
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent);
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .create()?
            .add_rules(path_beneath_rules(LIBRARIES, read))?
            .add_rules(path_beneath_rules(beside, read))?
            .add_rules(path_beneath_rules(readable, read))?
            .add_rules(path_beneath_rules(["/dev"], AccessFs::from_all(abi)))?
            .add_rules(path_beneath_rules(writable, AccessFs::from_all(abi)))?
            .restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }

    /// Everything but [`REFUSED`].
    fn calls() -> Result<bool, seccompiler::Error> {
        let Ok(arch) = std::env::consts::ARCH.try_into() else {
            return Ok(false);
        };
        let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
            REFUSED.iter().map(|call| (*call, Vec::new())).collect();
        let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)?;
        Ok(true)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    //! Elsewhere the process boundary is the wall.

    use std::path::Path;

    use super::Walls;

    pub(super) const fn enter(_readable: &[&Path], _writable: &[&Path]) -> Walls {
        Walls {
            files: false,
            calls: false,
        }
    }
}
