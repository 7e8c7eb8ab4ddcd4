//! Counts what the data path takes from the heap, both ends of a pair and the runtime together. A binary of its own: the allocator counts
//! for the whole process.

#[cfg(test)]
mod counted {
    use std::alloc::System;
    use std::net::{Ipv6Addr, SocketAddr};
    use std::time::Duration;

    use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tunnel::{Listener, Peer, PrivateKey, Settings, Stream, Tunnel};

    #[global_allocator]
    static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

    const PORT: u16 = 8080;
    const PATIENCE: Duration = Duration::from_secs(20);
    const OWN: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 0, 0, 1),
    ];
    /// Overlay packets of a transfer carry this much at most.
    const PACKET_BYTES: usize = 1_220;
    const CHUNK: usize = 64 * 1024;

    async fn pair() -> [Tunnel; 2] {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut both = Vec::new();
        for own in OWN {
            let mut settings = Settings::new(loopback, PrivateKey::generate(), own);
            // QUIC's buffers are its own affair.
            settings.quic = false;
            both.push(Tunnel::start(settings).await.unwrap());
        }
        let [hub, node]: [Tunnel; 2] = both.try_into().unwrap();
        for (me, other) in [(&hub, &node), (&node, &hub)] {
            let is_node = me.address() == OWN[1];
            me.set_peer(Peer {
                public_key: other.public_key(),
                preshared_key: None,
                address: other.address(),
                endpoint: is_node.then(|| other.local_addr()),
                keepalive: None,
                initiates: is_node,
            })
            .await
            .unwrap();
        }
        [hub, node]
    }

    /// One token there, one back, so often.
    async fn tokens(near: &mut (impl AsyncRead + AsyncWrite + Unpin), count: usize) {
        for _ in 0..count {
            near.write_all(b"t").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
    }

    /// Bytes there, at once as fast as it goes, and one back at the end.
    async fn bulk(near: &mut (impl AsyncRead + AsyncWrite + Unpin), chunks: usize) {
        let bytes = vec![b'x'; CHUNK];
        for _ in 0..chunks {
            near.write_all(&bytes).await.unwrap();
        }
        tokens(near, 1).await;
    }

    /// Allocations while that happens.
    async fn counted(what: impl Future<Output = ()>) -> usize {
        let region = Region::new(HEAP);
        what.await;
        let change = region.change();
        change.allocations + change.reallocations
    }

    /// Answers every token; reads nothing of the connection that says so first.
    async fn serve(listener: Listener) {
        while let Ok((mut far, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut room = vec![0; CHUNK];
                while let Ok(length @ 1..) = far.read(&mut room).await {
                    if room[..length].contains(&b'!') {
                        std::future::pending::<()>().await;
                    }
                    if room[..length].contains(&b't') {
                        far.write_all(b"t").await.unwrap();
                    }
                }
            });
        }
    }

    /// Heap that is taken and not given back while somebody writes to a reader that has stopped, until nothing more is taken from him.
    async fn stalled(hub: &Tunnel) -> (Stream, usize) {
        let mut near = hub.connect(OWN[1], PORT, PATIENCE).await.unwrap();
        near.write_all(b"!").await.unwrap();
        let bytes = vec![b'x'; CHUNK];
        let region = Region::new(HEAP);
        while tokio::time::timeout(Duration::from_millis(500), near.write(&bytes))
            .await
            .is_ok()
        {}
        let change = region.change();
        let grown = change
            .bytes_allocated
            .saturating_sub(change.bytes_deallocated);
        (near, grown)
    }

    #[tokio::test]
    async fn packets_take_nothing_from_the_heap_and_a_stalled_reader_neither() {
        let [hub, node] = pair().await;
        tokio::spawn(serve(node.listen(PORT).await.unwrap()));
        let mut near = hub.connect(OWN[1], PORT, PATIENCE).await.unwrap();
        // What is reused must be there first.
        tokens(&mut near, 500).await;
        bulk(&mut near, 200).await;

        let tokens_taken = counted(tokens(&mut near, 2_000)).await;
        let bulk_taken = counted(bulk(&mut near, 400)).await;
        let packets = 400 * CHUNK / PACKET_BYTES;
        assert!(
            tokens_taken <= 4_000 / 100,
            "{tokens_taken} for 4000 tokens"
        );
        assert!(
            bulk_taken <= packets / 100,
            "{bulk_taken} for {packets} packets"
        );

        let (_held, grown) = stalled(&hub).await;
        assert!(grown <= 2 * CHUNK, "a stalled reader took {grown} bytes");
        let beside = counted(bulk(&mut near, 100)).await;
        assert!(beside <= 100, "{beside} allocations beside it");
    }
}
