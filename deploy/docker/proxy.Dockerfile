# hearth-proxy. Build from the repository's root: docker build -f deploy/docker/proxy.Dockerfile -t hearth-proxy .
FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake mold \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Only the proxy: nothing of llama.cpp is compiled.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release -p proxy \
    && cp target/release/hearth-proxy /hearth-proxy \
    && install -d -m 700 /state

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /hearth-proxy /usr/local/bin/hearth-proxy
# The embedded store, the certificate and the keys live here: mount a volume. A new volume takes its owner from the image.
COPY --from=build --chown=65532:65532 /state /var/lib/hearth-proxy
ENV HEARTH_PROXY_CONFIG=/etc/hearth/proxy.toml
VOLUME /var/lib/hearth-proxy
EXPOSE 8443/tcp 51820/udp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/usr/local/bin/hearth-proxy", "health"]
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hearth-proxy"]
CMD ["serve"]
