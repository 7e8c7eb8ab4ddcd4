# The node, computing on the CPU. Build from the repository's root: docker build -f deploy/docker/node.Dockerfile -t hearth-node .
FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ libclang-dev mold \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release -p node-agent \
    && cp target/release/hearth-node /hearth-node

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 65532 --home-dir /var/lib/hearth-node hearth \
    && install -d -o hearth -g hearth /var/lib/hearth-node
COPY --from=build /hearth-node /usr/local/bin/hearth-node
ENV HEARTH_NODE_CONFIG=/etc/hearth/node.toml \
    HEARTH_NODE__NODE__STATE_DIR=/var/lib/hearth-node
# Identity and registration; models are mounted, never baked in.
VOLUME /var/lib/hearth-node
VOLUME /models
STOPSIGNAL SIGTERM
USER hearth
ENTRYPOINT ["/usr/local/bin/hearth-node"]
CMD ["run"]
