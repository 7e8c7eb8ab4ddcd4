//! Longer texts of `--help`.

/// After that of `join`.
pub(super) const JOIN: &str = "Example:
  hearth-node join 'https://llm.example.org/join#hearth_nj_...' --config node.toml

In quotes: the link holds a # and an &.

A proxy may want to approve new nodes. Then this command says six words, which are this machine's fingerprint, and waits: the proxy's
operator compares them with `hearth-proxy node list` and types `hearth-proxy node approve NODE`. Ctrl-C ends the waiting and not the wish:
the same link goes on, and so does `hearth-node run`.";

/// After that of `doctor`.
pub(super) const DOCTOR: &str = "Example:
  hearth-node doctor --config node.toml

It looks at, as far as it gets:
  joined      the membership and the six words of this machine
  agent       whether it runs, and how it stands with the house
  back-end    who does TCP inside the tunnel
  udp         whether datagrams reach each proxy, or the tunnel goes over HTTPS
  handshake   the WireGuard session with each proxy
  round trip  how far each proxy is, and what is lost on the way
  path        the largest packet that gets through
  carrier     without an agent: whether HTTPS takes the tunnel where no UDP gets through
  dns         the addresses of the proxy that this machine joined
  route, mtu  what the first link on the way carries
  https       whether that proxy answers
  clock       this machine's time against the proxy's
While the agent runs it is asked and nothing is opened beside it; without it, one registration and one handshake are tried.";
