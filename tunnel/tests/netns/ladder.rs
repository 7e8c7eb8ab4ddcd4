//! What a machine allows, rung by rung: which back-end is chosen, and what is said about it.
//!
//! Only the helper's rights decide, so it is the helper that is started with less: by `setpriv` and `unshare`, in namespaces of its own, so that
//! nothing of the machine changes. Where the machine cannot make a rung, that is said and the story ends.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tunnel::{Backend, PrivateKey, Tunnel};

use crate::place::{inside, is_required};
use crate::support::{
    HUB, PATIENCE, echo, exchange, hub_as_peer, node_address, node_as_peer, pattern, settings,
    soon, tell,
};

/// Who is nobody on every system.
const NOBODY: &str = "65534";

/// Remembers what is said about back-ends.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").expect("a string takes everything");
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tunnel")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        if text.0.starts_with("tunnel back-end") {
            self.0.lock().expect("nobody fails here").push(text.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A place for a helper that everybody may read and run.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hearth-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        open_to_all(&path);
        let helper = path.join("helper");
        std::fs::copy(env!("CARGO_BIN_EXE_hearth-netns"), &helper).expect("a copy");
        open_to_all(&helper);
        Self(path)
    }

    /// A program that is the helper with fewer rights. `how` is what a shell does before; it ends with the words in front of the helper.
    fn lesser(&self, how: &str) -> PathBuf {
        let path = self.0.join("lesser");
        let helper = self.0.join("helper");
        let script = format!(
            "#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nhelper='{}'\n{how} \"$helper\" \"$@\"\n",
            helper.display()
        );
        std::fs::write(&path, script).expect("a script");
        open_to_all(&path);
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A folder that stays harms nobody.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn open_to_all(path: &Path) {
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, all).expect("it is ours");
}

/// Whether a shell of this machine can do this; otherwise it is said why there is no story.
fn can(story: &str, how: &str) -> bool {
    let tried = Command::new("/bin/sh").args(["-c", how]).output();
    let said = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    tell(&format!("{story}: this machine cannot: {said}"));
    false
}

/// A tunnel with this helper, what was said about it, and whether it works.
async fn choose(helper: &Path) -> (Backend, String) {
    let lines = Lines::default();
    let guard = tracing::subscriber::set_default(lines.clone());
    let mut settings = settings(PrivateKey::generate(), HUB);
    settings.backend = Backend::Auto;
    settings.helper = Some(helper.into());
    let tunnel = soon("a tunnel", Tunnel::start(settings)).await.unwrap();
    drop(guard);
    let said = lines.0.lock().expect("nobody fails here").clone();
    assert_eq!(said.len(), 1, "one line: {said:?}");
    works(&tunnel).await;
    let backend = tunnel.backend();
    tunnel.shutdown().await;
    tell(&said[0]);
    (backend, said[0].clone())
}

/// Bytes go through it in both directions, whatever was chosen.
async fn works(hub: &Tunnel) {
    let mut settings = settings(PrivateKey::generate(), node_address(1));
    settings.backend = Backend::Embedded;
    settings.quic = false;
    let node = Tunnel::start(settings).await.unwrap();
    hub.set_peer(node_as_peer(&node, None)).await.unwrap();
    node.set_peer(hub_as_peer(hub, hub.local_addr(), None))
        .await
        .unwrap();
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let bytes = pattern(200_000, 19);
    assert!(
        soon("the echo", exchange(stream, bytes.clone()))
            .await
            .unwrap()
            == bytes
    );
    // Whatever else listens where the kernel's TCP is, a peer reaches only ports of ours.
    let refused = soon("a refusal", node.connect(HUB, 22, PATIENCE)).await;
    assert!(refused.is_err());
    assert!(hub.counters().closed_port > 0);
}

/// Namespaces made by this machine's user, with all rights inside them.
const AS_ROOT_OF_ITS_OWN: &str = "unshare --user --map-root-user --net --mount";
const NO_MORE_USERS: &str = "echo 0 > /proc/sys/user/max_user_namespaces";

fn has_tun() -> bool {
    let is_there = Path::new("/dev/net/tun").exists();
    if !is_there {
        tell("this machine has no /dev/net/tun");
    }
    is_there
}

/// Otherwise all stories of this suite would be told on the embedded back-end, and nobody would know.
#[tokio::test]
async fn a_machine_that_gives_namespaces_gives_them_to_these_stories() {
    let tunnel = Tunnel::start(settings(PrivateKey::generate(), HUB)).await;
    let backend = tunnel.unwrap().backend();
    assert!(backend == Backend::Netns || !is_required(), "{backend:?}");
}

#[tokio::test]
async fn whoever_may_make_user_namespaces_gets_the_kernels_tcp_without_root() {
    let place = Place::new("user");
    let (how, probe) = if rustix::process::geteuid().is_root() {
        let drop = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups");
        let none = "--inh-caps=-all --bounding-set=-all --no-new-privs";
        (
            format!("exec {drop} {none}"),
            format!("{drop} {none} unshare --user --net true"),
        )
    } else {
        ("exec".to_owned(), "unshare --user --net true".to_owned())
    };
    if !has_tun() || !can("without root", &probe) {
        return;
    }
    let (backend, said) = choose(&place.lesser(&how)).await;
    assert_eq!(backend, Backend::Netns, "{said}");
    assert!(said.contains("a user and a network namespace"), "{said}");
}

#[tokio::test]
async fn root_gets_the_kernels_tcp_whether_user_namespaces_are_allowed_or_not() {
    let place = Place::new("root");
    let probe = format!("{AS_ROOT_OF_ITS_OWN} sh -c '{NO_MORE_USERS} && unshare --net true'");
    if !has_tun() || !can("root", &probe) {
        return;
    }
    let how = format!("exec {AS_ROOT_OF_ITS_OWN}");
    let (backend, said) = choose(&place.lesser(&how)).await;
    assert_eq!(backend, Backend::Netns, "{said}");
    let how = format!("exec {AS_ROOT_OF_ITS_OWN} sh -c '{NO_MORE_USERS}; exec \"$0\" \"$@\"'");
    let (backend, said) = choose(&place.lesser(&how)).await;
    assert_eq!(backend, Backend::Netns, "{said}");
    assert!(said.contains("made by root"), "{said}");
}

#[tokio::test]
async fn network_administration_alone_is_enough_for_a_device_beside_the_machines_own() {
    let place = Place::new("admin");
    let only = "setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin";
    let probe = format!("{AS_ROOT_OF_ITS_OWN} sh -c '{NO_MORE_USERS} && {only} true'");
    if !has_tun() || !can("network administration", &probe) {
        return;
    }
    let how =
        format!("exec {AS_ROOT_OF_ITS_OWN} sh -c '{NO_MORE_USERS}; exec {only} \"$0\" \"$@\"'");
    let (backend, said) = choose(&place.lesser(&how)).await;
    assert_eq!(backend, Backend::Netns, "{said}");
    assert!(said.contains("beside the host's own"), "{said}");
}

/// Where the device stands beside another program's sockets, a peer must not reach them.
#[test]
fn a_port_of_another_program_beside_the_device_is_not_reached_through_the_tunnel() {
    const NAME: &str =
        "ladder::a_port_of_another_program_beside_the_device_is_not_reached_through_the_tunnel";
    if !inside(NAME, &["setpriv"]) {
        return;
    }
    std::fs::write("/proc/sys/user/max_user_namespaces", "0").expect("it is ours");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let place = Place::new("beside");
        let helper =
            place.lesser("exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin");
        let other = tokio::net::TcpListener::bind("[::]:2222").await.unwrap();
        let mut own = settings(PrivateKey::generate(), HUB);
        own.backend = Backend::Netns;
        own.helper = Some(helper);
        let hub = Tunnel::start(own).await.unwrap();
        // The machine itself reaches it at that address.
        let known = tokio::net::TcpStream::connect((HUB, 2222)).await;
        assert!(known.is_ok(), "{known:?}");
        soon("the machine's own", other.accept()).await.unwrap();

        works(&hub).await;
        let mut peer = settings(PrivateKey::generate(), node_address(2));
        peer.backend = Backend::Embedded;
        peer.quic = false;
        let node = Tunnel::start(peer).await.unwrap();
        hub.set_peer(node_as_peer(&node, None)).await.unwrap();
        node.set_peer(hub_as_peer(&hub, hub.local_addr(), None))
            .await
            .unwrap();
        let before = hub.counters().closed_port;
        let refused = soon("a refusal", node.connect(HUB, 2222, PATIENCE)).await;
        assert!(refused.is_err(), "another program's port was reached");
        assert_eq!(hub.counters().closed_port, before + 1);
        let nobody = tokio::time::timeout(Duration::from_millis(100), other.accept()).await;
        assert!(nobody.is_err(), "nobody came");
    });
}

#[tokio::test]
async fn whoever_may_do_nothing_gets_the_embedded_back_end_and_is_told_what_is_denied() {
    let place = Place::new("nothing");
    let only = "setpriv --bounding-set=-all --inh-caps=-all --no-new-privs";
    let user = "unshare --user --map-root-user";
    let probe = format!("{user} sh -c '{NO_MORE_USERS} && {only} true'");
    if !can("no rights", &probe) {
        return;
    }
    let how = format!("exec {user} sh -c '{NO_MORE_USERS}; exec {only} \"$0\" \"$@\"'");
    let (backend, said) = choose(&place.lesser(&how)).await;
    assert_eq!(backend, Backend::Embedded, "{said}");
    assert!(said.contains("user namespaces are denied"), "{said}");
}

#[tokio::test]
async fn without_the_device_the_embedded_back_end_is_chosen_and_the_device_is_named() {
    let place = Place::new("device");
    let mut how = "exec".to_owned();
    if Path::new("/dev/net/tun").exists() {
        let hide = "mount -t tmpfs none /dev/net";
        let probe = format!("{AS_ROOT_OF_ITS_OWN} sh -c '{hide}'");
        if !can("no device", &probe) {
            return;
        }
        how = format!("exec {AS_ROOT_OF_ITS_OWN} sh -c '{hide}; exec \"$0\" \"$@\"'");
    }
    let (backend, said) = choose(&place.lesser(&how)).await;
    assert_eq!(backend, Backend::Embedded, "{said}");
    let names = said.contains("/dev/net/tun") || said.contains("TUN device");
    assert!(names, "{said}");
}

#[tokio::test]
async fn without_a_helper_that_runs_the_embedded_back_end_is_chosen_and_told() {
    let (backend, said) = choose(Path::new("/nowhere/at/all")).await;
    assert_eq!(backend, Backend::Embedded, "{said}");
    assert!(said.contains("helper /nowhere/at/all"), "{said}");
}
