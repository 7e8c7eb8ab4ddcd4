//! Every hub with every node: both back-ends and Debian's wireguard-go, IPv4 and IPv6 outside, with and without a pre-shared key. Handshakes begun
//! by either side, keys renewed by either side under a transfer, and bytes with their hash in both directions.
//!
//! wireguard-go wants a device and a folder of the system's. It gets both in namespaces of its own, where the whole story happens: the test starts
//! itself there. Nothing of the machine changes.

#![cfg(target_os = "linux")]

#[cfg(test)]
mod place;
#[cfg(test)]
mod stock;
#[cfg(test)]
mod traffic;

#[cfg(test)]
mod stories {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::time::{Duration, Instant};

    use tunnel::{Backend, Peer, PresharedKey, PrivateKey, Settings, Tunnel};

    use crate::place::{inside, tell};
    use crate::stock::Stock;
    use crate::traffic::{Ends, carry, serve};

    pub(crate) const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
    pub(crate) const NODE: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 0, 0, 1);
    pub(crate) const PORT: u16 = 9000;
    const PATIENCE: Duration = Duration::from_secs(20);
    /// boringtun reads its clock four times a second at least: a session may be told to be older than it is by that much, and twice that is surely more.
    const LAG: Duration = Duration::from_millis(500);
    /// In each direction, once for every pair of ends: 100 MB together.
    const MUCH: u64 = 50_000_000;
    /// Where only what is around the packets differs.
    const LITTLE: u64 = 1_000_000;

    /// What the node is.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    enum Kind {
        Ours(Backend),
        Stock,
    }

    /// A node of either kind.
    enum Node {
        Ours(Tunnel),
        Stock(Stock),
    }

    /// The hub, and what its peer must know.
    pub(crate) struct Hub {
        pub(crate) tunnel: Tunnel,
        pub(crate) psk: Option<PresharedKey>,
    }

    impl Hub {
        async fn start(backend: Backend, outer: IpAddr, is_shared: bool) -> Self {
            let tunnel = start(backend, outer, HUB).await;
            serve(tunnel.listen(PORT).await.expect("a port"));
            let psk = is_shared.then(|| PresharedKey::from_bytes([42; 32]));
            Self { tunnel, psk }
        }

        async fn know(&self, node: &Node) {
            let public_key = match node {
                Node::Ours(node) => node.public_key(),
                Node::Stock(stock) => stock.public_key(),
            };
            let peer = Peer {
                public_key,
                preshared_key: self.psk.clone(),
                address: NODE,
                endpoint: None,
                keepalive: None,
                initiates: false,
            };
            self.tunnel.set_peer(peer).await.expect("a peer");
        }

        fn age(&self) -> Option<Duration> {
            self.tunnel.peer_status(NODE)?.since_handshake
        }

        /// Waits until the session is so old that the next can be told from it.
        async fn aged(&self) -> Instant {
            while self.age().is_some_and(|age| age <= LAG + LAG / 4) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Instant::now()
        }

        /// Waits for a session that is younger than this moment.
        async fn renewed(&self, what: &str, since: Instant) {
            let give_up = Instant::now() + PATIENCE;
            while self.age().is_none_or(|age| age > since.elapsed() + LAG) {
                assert!(Instant::now() < give_up, "waited in vain for {what}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    impl Node {
        async fn start(kind: Kind, outer: IpAddr, stock: Option<Stock>) -> Self {
            match (kind, stock) {
                (Kind::Ours(backend), _) => {
                    let node = start(backend, outer, NODE).await;
                    serve(node.listen(PORT).await.expect("a port"));
                    Self::Ours(node)
                }
                (Kind::Stock, stock) => Self::Stock(stock.expect("it runs")),
            }
        }

        /// The node begins: it knows where the hub is.
        async fn dial(&self, hub: &Hub) {
            match self {
                Self::Ours(node) => {
                    let peer = Peer {
                        public_key: hub.tunnel.public_key(),
                        preshared_key: hub.psk.clone(),
                        address: HUB,
                        endpoint: Some(hub.tunnel.local_addr()),
                        keepalive: Some(Duration::from_secs(1)),
                        initiates: true,
                    };
                    node.set_peer(peer).await.expect("a peer");
                }
                Self::Stock(stock) => stock.dial(hub).await,
            }
        }

        /// The node begins again.
        async fn renew(&self, hub: &Hub) {
            match self {
                Self::Ours(node) => node.handshake_now(HUB).await.expect("a handshake"),
                Self::Stock(stock) => stock.dial(hub).await,
            }
        }

        fn ends(&self, hub: &Hub) -> Ends {
            Ends {
                hub: hub.tunnel.clone(),
                node: match self {
                    Self::Ours(node) => Some(node.clone()),
                    Self::Stock(_) => None,
                },
            }
        }
    }

    async fn start(backend: Backend, outer: IpAddr, address: Ipv6Addr) -> Tunnel {
        let mut settings = Settings::new((outer, 0).into(), PrivateKey::generate(), address);
        settings.backend = backend;
        settings.helper = Some(env!("CARGO_BIN_EXE_hearth-netns").into());
        Tunnel::start(settings).await.expect("a tunnel")
    }

    /// One side begins a handshake, whatever runs.
    async fn renew(hub: &Hub, node: &Node, is_hub: bool) {
        let asked = hub.aged().await;
        if is_hub {
            hub.tunnel.handshake_now(NODE).await.expect("a handshake");
        } else {
            node.renew(hub).await;
        }
        hub.renewed("a renewal", asked).await;
    }

    /// Bytes in both directions; under each transfer one side renews the keys.
    async fn converse(hub: &Hub, node: &Node, bytes: u64) {
        let ends = node.ends(hub);
        for is_down in [true, false] {
            let moving = tokio::spawn(carry(ends.clone(), is_down, bytes));
            renew(hub, node, is_down).await;
            let carried = tokio::time::timeout(PATIENCE * 3, moving).await;
            carried.expect("a transfer that ends").expect("whole bytes");
        }
        // And the hub begins with a node that cannot.
        if let Node::Stock(stock) = node {
            stock.wait_for_a_call(hub).await;
            renew(hub, node, true).await;
            carry(ends, true, LITTLE).await;
        }
    }

    /// One pair of ends under one set of circumstances; gives the stock node back for the next.
    async fn story(
        (hub, kind): (Backend, Kind),
        (outer, is_shared, bytes): (IpAddr, bool, u64),
        stock: Option<Stock>,
    ) -> Option<Stock> {
        let began = Instant::now();
        let hub = Hub::start(hub, outer, is_shared).await;
        let node = Node::start(kind, outer, stock).await;
        hub.know(&node).await;
        node.dial(&hub).await;
        hub.renewed("the node's handshake", began).await;

        converse(&hub, &node, bytes).await;
        let counters = hub.tunnel.counters();
        assert_eq!(counters.bad_mac + counters.malformed, 0, "{counters:?}");
        hub.tunnel.shutdown().await;
        let took = began.elapsed();
        let psk = if is_shared { "psk" } else { "no psk" };
        tell(&format!(
            "{kind:?} over {outer}, {psk}, {bytes} bytes each way: {took:?}"
        ));
        match node {
            Node::Ours(node) => {
                node.shutdown().await;
                None
            }
            Node::Stock(stock) => Some(stock),
        }
    }

    /// All circumstances of one pair; much is moved in the first.
    fn pair(hub: Backend, kind: Kind) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut stock = match kind {
                Kind::Ours(_) => None,
                Kind::Stock => Some(Stock::start().await),
            };
            let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
            let pair = (hub, kind);
            stock = story(pair, (v4, true, MUCH), stock).await;
            let others = [(v4, false), (v6, true), (v6, false)];
            if stock.is_none() {
                let all =
                    others.map(|(outer, is_shared)| story(pair, (outer, is_shared, LITTLE), None));
                futures_util::future::join_all(all).await;
                return;
            }
            // It has one device.
            for (outer, is_shared) in others {
                stock = story(pair, (outer, is_shared, LITTLE), stock).await;
            }
        });
    }

    #[test]
    fn an_embedded_hub_and_an_embedded_node_understand_each_other() {
        pair(Backend::Embedded, Kind::Ours(Backend::Embedded));
    }

    #[test]
    fn an_embedded_hub_and_a_node_with_the_kernels_tcp_understand_each_other() {
        pair(Backend::Embedded, Kind::Ours(Backend::Auto));
    }

    #[test]
    fn a_hub_with_the_kernels_tcp_and_an_embedded_node_understand_each_other() {
        pair(Backend::Auto, Kind::Ours(Backend::Embedded));
    }

    #[test]
    fn a_hub_and_a_node_with_the_kernels_tcp_understand_each_other() {
        pair(Backend::Auto, Kind::Ours(Backend::Auto));
    }

    #[test]
    fn an_embedded_hub_and_wireguard_go_understand_each_other() {
        if inside(
            "stories::an_embedded_hub_and_wireguard_go_understand_each_other",
            &["wireguard-go"],
        ) {
            pair(Backend::Embedded, Kind::Stock);
        }
    }

    #[test]
    fn a_hub_with_the_kernels_tcp_and_wireguard_go_understand_each_other() {
        if inside(
            "stories::a_hub_with_the_kernels_tcp_and_wireguard_go_understand_each_other",
            &["wireguard-go"],
        ) {
            pair(Backend::Auto, Kind::Stock);
        }
    }
}
