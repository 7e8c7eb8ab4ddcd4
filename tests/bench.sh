#!/usr/bin/env bash
# Measures Hearth beside a named peer in the same run. Human lines on the way; the last line is one JSON object.
set -euo pipefail

usage() {
  cat <<'HELP'
tests/bench.sh AREA

  edge     Hearth with everything on (TLS, key, limits, quota, classifier, routing, WireGuard) against nginx that only proxies
           TLS to the same upstream process over plain TCP. rps_vs_nginx, added_p50_us and added_p99_us against asking the upstream
           itself.
  tunnel   Both back-ends of Hearth's tunnel, Debian's wireguard-go, rathole (crates.io, with its encryption; built once into target/bench)
           and plain kernel TCP under the same load, in turns: bulk, CPU seconds per GB of both ends, round trips and tokens on a clean link and on emulated home links (100 Mbit/s, 40 ms; loss, bursts, reordering), tokens
           beside a transfer that saturates 20 Mbit/s, and a hub that is killed. All figures in target/bench-tunnel.json.
           HOME_ROUNDS=1 SEED=1 for the home links. Needs root (network namespaces) for the peers only.

  hub      What thousands of peers cost a hub: memory and CPU of 10,000 idle ones and its start with them (idle), how soon 1,000 are back
           after it restarted (storm), what a stream keeps beside 2,000 forged handshakes a second (flood), and two drivers against
           one (shards). No peer has these figures: the limits are the project's own (12 KB, 2 % of a core, 2 s; 5 s; 90 %).

  admission  A full admission with six counters and its settlement: in process (embedded store, the disk writing along), and in a
           Redis of its own beside an empty script on the same connection, with 1 and with 64 callers. Then requests/s of a proxy
           with everything on (cached JWT, a plan with every limit, reservation, ledger) against the same program on a store that
           grants all and writes nothing. embedded_p99_us, redis_vs_bare_p50 (the worse of the two numbers of callers),
           rps_on_vs_off.

  engine   hearth-node's API on loopback against llama-server (built from the source that llama-cpp-python 0.3.36 carries, cached in
           target/bench), one thread each, full sampler chains, streamed chat completions: a random model of 136 million weights and
           the tiny one. Ratios above 1 mean that Hearth makes more tokens; ttft and stall below 1 that it waits less.

  routing  The classifier on prompts of 8 KiB in six languages beside a keyword scan, and the route through 1,000 machines with three
           tiers each, unevenly loaded, beside a round robin: classify_p99_us, route_p99_us (the worst of three kinds of requests).
           Then what a dying machine costs the reader of a stream: migration_gap_ms. Last, eleven people with six turns each on three
           machines with a random model of 136 million weights: how many later turns find what was said before in the cache of the
           machine that answers (warm_hit_rate), and the time to the first word, beside a round robin over the same machines.

  ROUNDS=3 SECONDS_EACH=5 set the length. The rounds alternate between the peers; the median counts.
HELP
}

cd "$(dirname "$0")/.."
rounds=${ROUNDS:-3} each=${SECONDS_EACH:-5}
work=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2> /dev/null || true; done
  for name in hearth-a hearth-b; do ip netns pids "$name" 2> /dev/null | xargs -r kill 2> /dev/null || true; ip netns del "$name" 2> /dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
say() { echo "bench: $*" >&2; }
need() { command -v "$1" > /dev/null || { say "missing: $1 (tests/run.sh installs it)"; exit 1; }; }
# The proxy under test has core 0 to itself; load and upstream share core 1. Without that the scheduler decides the p99.
under_test=() beside_it=()
if [ "$(nproc)" -gt 1 ]; then under_test=(taskset -c 0) beside_it=(taskset -c 1); fi
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
until_ready() { for _ in $(seq 100); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; say "not ready: $*"; exit 1; }

build() {
  say "building"
  cargo build --locked --release --quiet -p proxy -p tests --bins
  bin="${CARGO_TARGET_DIR:-target}/release"
}

# --- edge ----------------------------------------------------------------------------------------------------------

start_edge() {
  need nginx
  need wrk
  port=$(free_port) plain=$(free_port) nginx_port=$(free_port)
  cat > "$work/proxy.toml" <<TOML
[server]
listen = ["127.0.0.1:$port"]
admin_listen = "127.0.0.1:$(free_port)"
state_dir = "$work/state"
public_url = "https://127.0.0.1:$port"
threads = 1
[tls]
mode = "self-signed"
names = ["localhost", "127.0.0.1"]
[tunnel]
listen = "127.0.0.1:$(free_port)"
[log]
filter = "warn"
[limits]
guard_per_minute = 100000000
guard_burst = 1000000
text_per_minute_per_ip = 100000000
text_per_minute_per_user = 100000000
text_per_day = 1000000000
concurrent_per_user = 10000
TOML
  "${under_test[@]}" "$bin/hearth-proxy" serve --config "$work/proxy.toml" > "$work/proxy.log" 2>&1 &
  pids+=($!)
  ca="$work/state/self-signed.cert.pem"
  until_ready curl -fsS --cacert "$ca" "https://127.0.0.1:$port/healthz"
  HEARTH_KEY=$("$bin/hearth-proxy" key create --name bench --output json --config "$work/proxy.toml" | jq -r .key)
  export HEARTH_KEY
  link=$("$bin/hearth-proxy" node invite --output json --config "$work/proxy.toml" | jq -r .link)
  "${beside_it[@]}" "$bin/bench-upstream" "$link" "$ca" "$plain" > "$work/upstream.log" 2>&1 &
  pids+=($!)
  cat > "$work/nginx.conf" <<NGINX
worker_processes 1;
daemon off;
pid $work/nginx.pid;
error_log $work/nginx.log;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path $work/body; proxy_temp_path $work/proxy_temp; fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;
  upstream node { server 127.0.0.1:$plain; keepalive 64; }
  server {
    listen 127.0.0.1:$nginx_port ssl http2;
    ssl_certificate $ca;
    ssl_certificate_key $work/state/self-signed.key.pem;
    location / { proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
  }
}
NGINX
  "${under_test[@]}" nginx -c "$work/nginx.conf" &
  pids+=($!)
  body='{"model":"fast","messages":[{"role":"user","content":"Hi"}]}'
  until_ready curl -fsS --cacert "$ca" -H "Authorization: Bearer $HEARTH_KEY" -H 'Content-Type: application/json' -d "$body" "https://127.0.0.1:$port/v1/chat/completions"
  until_ready curl -fsSk -d "$body" "https://127.0.0.1:$nginx_port/v1/chat/completions"
}

load() { # url connections -> wrk's report
  "${beside_it[@]}" wrk -t1 -c "$2" -d "${each}s" --latency -s tests/bench/chat.lua "$1/v1/chat/completions"
}

rps() { awk '/Requests\/sec/ { print $2 }'; }
refused() { awk '/Non-2xx/ { print $NF }'; }
latency_us() { # 50%|99%
  awk -v share="$1" '$1 == share { v = $2; if (v ~ /us$/) f = 1; else if (v ~ /ms$/) f = 1000; else f = 1000000; sub(/[a-z]+$/, "", v); print v * f }'
}

edge() {
  build
  start_edge
  declare -A where=([hearth]="https://127.0.0.1:$port" [nginx]="https://127.0.0.1:$nginx_port" [direct]="http://127.0.0.1:$plain")
  local name report
  for _ in $(seq "$rounds"); do
    for name in hearth nginx; do
      report=$(load "${where[$name]}" 64)
      [ -z "$(refused <<< "$report")" ] || { say "$name refused $(refused <<< "$report") requests: the figure would be false"; exit 1; }
      rps <<< "$report" >> "$work/$name.rps"
    done
    for name in hearth nginx direct; do
      report=$(load "${where[$name]}" 1)
      latency_us '50%' <<< "$report" >> "$work/$name.p50"
      latency_us '99%' <<< "$report" >> "$work/$name.p99"
    done
  done
  value() { median < "$work/$1"; }
  say "64 connections: hearth $(value hearth.rps) requests/s, nginx $(value nginx.rps) (one worker each on core 0, wrk and upstream on core 1 of $(nproc), load $(cut -d' ' -f1 /proc/loadavg))"
  say "1 connection, p50/p99 us: direct $(value direct.p50)/$(value direct.p99), nginx $(value nginx.p50)/$(value nginx.p99), hearth $(value hearth.p50)/$(value hearth.p99)"
  jq -nc --argjson h "$(value hearth.rps)" --argjson n "$(value nginx.rps)" \
    --argjson hp50 "$(value hearth.p50)" --argjson dp50 "$(value direct.p50)" --argjson np50 "$(value nginx.p50)" \
    --argjson hp99 "$(value hearth.p99)" --argjson dp99 "$(value direct.p99)" --argjson np99 "$(value nginx.p99)" \
    '{area: "edge", rps_vs_nginx: ($h / $n * 1000 | round / 1000), added_p50_us: ($hp50 - $dp50 | round), added_p99_us: ($hp99 - $dp99 | round),
      rps: ($h | round), nginx_rps: ($n | round), nginx_added_p50_us: ($np50 - $dp50 | round), nginx_added_p99_us: ($np99 - $dp99 | round)}'
}

# --- admission -----------------------------------------------------------------------------------------------------

admission_settings() { # name -> settings of a proxy with everything on; its ports in port and admin
  port=$(free_port) admin=$(free_port)
  cat > "$work/$1.toml" <<TOML
[server]
listen = ["127.0.0.1:$port"]
admin_listen = "127.0.0.1:$admin"
state_dir = "$work/$1"
public_url = "https://127.0.0.1:$port"
threads = 1
[tls]
mode = "self-signed"
names = ["localhost", "127.0.0.1"]
[tunnel]
listen = "127.0.0.1:$(free_port)"
[log]
filter = "warn"
[[auth.issuers]]
issuer = "$(jq -r .issuer < "$work/issuer")"
audiences = ["$(jq -r .audience < "$work/issuer")"]
algorithms = ["RS256"]
jwks_url = "$(jq -r .jwks_url < "$work/issuer")"
plan = "bench"
[limits]
guard_per_minute = 100000000
guard_burst = 1000000
text_per_minute_per_ip = 100000000
text_per_minute_per_user = 100000000
text_per_day = 1000000000
concurrent_per_user = 10000
$2
TOML
}

start_admission() { # name plans program argument... -> the proxy with a node behind it; its key in the file of its name
  admission_settings "$1" "$2"
  "${under_test[@]}" "${@:3}" > "$work/$1.log" 2>&1 &
  pids+=($!)
  ca="$work/$1/self-signed.cert.pem"
  until_ready curl -fsS --cacert "$ca" "https://127.0.0.1:$port/healthz"
  local link body='{"model":"fast","messages":[{"role":"user","content":"Hi"}]}'
  link=$("$bin/hearth-proxy" node invite --output json --config "$work/$1.toml" | jq -r .link)
  "${beside_it[@]}" "$bin/bench-upstream" "$link" "$ca" "$(free_port)" > "$work/upstream-$1.log" 2>&1 &
  pids+=($!)
  until_ready curl -fsS --cacert "$ca" -H "Authorization: Bearer $HEARTH_KEY" -H 'Content-Type: application/json' -d "$body" "https://127.0.0.1:$port/v1/chat/completions"
  where[$1]="https://127.0.0.1:$port"
}

start_redis() {
  need redis-server
  redis=$(free_port)
  redis-server --bind 127.0.0.1 --port "$redis" --save '' --appendonly no --dir "$work" > "$work/redis.log" &
  pids+=($!)
  until_ready redis-cli -p "$redis" ping
}

admission() {
  need wrk
  build
  local embedded in_redis report name every='text_per_minute = 100000000
text_per_day = 1000000000
tokens_per_minute = 60000000
tokens_per_day = 1000000000000
tokens_per_month = 1000000000000
concurrent = 10000'
  embedded=$("${under_test[@]}" "$bin/bench-admission" embedded "$work/embedded")
  say "embedded $embedded"
  start_redis
  redis-cli -p "$redis" config resetstat > /dev/null
  in_redis=$("${beside_it[@]}" "$bin/bench-admission" redis "redis://127.0.0.1:$redis/" "$work/in-redis")
  say "redis $in_redis"
  local calls asked
  calls=$(redis-cli -p "$redis" info commandstats | tr -d '\r' | sed -n 's/^cmdstat_eval\(sha\)\?:calls=\([0-9]*\),.*/\2/p' | paste -sd+ | bc)
  asked=$(jq '[to_entries[] | select(.key | contains("_calls_")) | .value] | add' <<< "$in_redis")
  say "$asked calls were $calls scripts in Redis (the first of each kind is sent twice, the sweeper adds a few)"
  declare -gA where=()
  "$bin/bench-admission" issuer > "$work/issuer" &
  pids+=($!)
  until_ready grep -q token "$work/issuer"
  HEARTH_KEY=$(jq -r .token < "$work/issuer")
  export HEARTH_KEY
  start_admission on "everyone_plan = \"all\"
service_plan = \"all\"
[limits.plans.bench]
$every
[limits.plans.all]
$every" "$bin/hearth-proxy" serve --config "$work/on.toml"
  start_admission off "[limits.plans.bench]" "$bin/bench-admission" serve-granting "$work/off.toml"
  for _ in $(seq "$rounds"); do
    for name in on off; do
      report=$(load "${where[$name]}" 64)
      [ -z "$(refused <<< "$report")" ] || { say "$name refused $(refused <<< "$report") requests: the figure would be false"; exit 1; }
      say "$name $(rps <<< "$report") requests/s"
      rps <<< "$report" >> "$work/$name.rps"
    done
  done
  value() { median < "$work/$1"; }
  jq -nc --argjson e "$embedded" --argjson r "$in_redis" --argjson on "$(value on.rps)" --argjson off "$(value off.rps)" --argjson calls "$calls" --argjson asked "$asked" '
    def vs(n): (($r["reserve_p50_us_" + n] / $r["bare_p50_us_" + n]) * 1000 | round / 1000);
    {area: "admission", embedded_p99_us: $e.p99_us, redis_vs_bare_p50: ([vs("1"), vs("64")] | max), rps_on_vs_off: ($on / $off * 1000 | round / 1000),
      embedded_p50_us: $e.p50_us, redis_vs_bare_p50_1: vs("1"), redis_vs_bare_p50_64: vs("64"), round_trips: ($calls / $asked * 1000 | round / 1000),
      redis_us: {bare: $r.bare_p50_us_1, reserve: $r.reserve_p50_us_1, settle: $r.settle_p50_us_1, bare_64: $r.bare_p50_us_64, reserve_64: $r.reserve_p50_us_64, settle_64: $r.settle_p50_us_64},
      rps_on: ($on | round), rps_off: ($off | round)}'
}

# --- tunnel --------------------------------------------------------------------------------------------------------

start_places() { # two namespaces, a veth between them, wireguard-go in each
  need ip
  need wireguard-go
  need wg
  need socat
  [ "$(id -u)" = 0 ] || { say "the peers need root; Hearth does not"; exit 1; }
  ip netns add hearth-a && ip netns add hearth-b
  ip link add hearth-va netns hearth-a type veth peer name hearth-vb netns hearth-b
  ip -n hearth-a addr add 10.99.0.1/24 dev hearth-va && ip -n hearth-b addr add 10.99.0.2/24 dev hearth-vb
  for name in a b; do ip -n "hearth-$name" link set lo up && ip -n "hearth-$name" link set "hearth-v$name" up; done
  wg_a=$(wg genkey) wg_b=$(wg genkey) wg_pids=
  for name in a b; do
    ip netns exec "hearth-$name" env WG_PROCESS_FOREGROUND=1 LOG_LEVEL=error wireguard-go -f "hwg$name" > "$work/wg-$name.log" 2>&1 &
    pids+=($!)
    wg_pids+="${wg_pids:+,}$!"
    until_ready ip -n "hearth-$name" link show "hwg$name"
  done
  ip netns exec hearth-b wg set hwgb listen-port 51900 private-key <(echo "$wg_b") peer "$(wg pubkey <<< "$wg_a")" allowed-ips 10.98.0.1/32
  ip -n hearth-a addr add 10.98.0.1/24 dev hwga && ip -n hearth-b addr add 10.98.0.2/24 dev hwgb
  for name in a b; do ip -n "hearth-$name" link set "hwg$name" mtu 1420 up; done
  wg_through 10.99.0.2:51900
}

wg_through() {
  ip netns exec hearth-a wg set hwga listen-port 51900 private-key <(echo "$wg_a") peer "$(wg pubkey <<< "$wg_b")" allowed-ips 10.98.0.2/32 endpoint "$1"
}

# The newest release; its lock file names a crate that today's compiler refuses, so cargo resolves anew.
rathole_version=0.5.0

build_rathole() {
  rathole="${CARGO_TARGET_DIR:-$PWD/target}/bench/rathole-$rathole_version/bin/rathole"
  [ -x "$rathole" ] && return
  say "building rathole $rathole_version (once)"
  env -u CARGO_TARGET_DIR cargo install --quiet rathole --version "$rathole_version" --no-default-features --features server,client,noise \
    --root "${rathole%/bin/rathole}" > "$work/rathole.log" 2>&1 || { tail -5 "$work/rathole.log" >&2; rathole=; say "rathole cannot be built here: left out"; }
}

start_rathole() { # NAME ADDRESS-OF-A PORT: a's 127.0.0.1:PORT+1 leads through rathole to b's TCP service
  local keys private public
  keys=$("$rathole" --genkey)
  private=$(sed -n '/Private/{n;p}' <<< "$keys") public=$(sed -n '/Public/{n;p}' <<< "$keys")
  cat > "$work/rathole-$1-a.toml" <<TOML
[server]
bind_addr = "0.0.0.0:$3"
default_token = "bench"
[server.transport]
type = "noise"
[server.transport.noise]
local_private_key = "$private"
[server.services.link]
bind_addr = "127.0.0.1:$(($3 + 1))"
TOML
  cat > "$work/rathole-$1-b.toml" <<TOML
[client]
remote_addr = "$2:$3"
default_token = "bench"
[client.transport]
type = "noise"
[client.transport.noise]
remote_public_key = "$public"
[client.services.link]
local_addr = "127.0.0.1:7200"
TOML
  ip netns exec hearth-a "$rathole" --server "$work/rathole-$1-a.toml" > "$work/rathole-$1-a.log" 2>&1 &
  pids+=($!)
  rathole_pids=$!
  ip netns exec hearth-b "$rathole" --client "$work/rathole-$1-b.toml" > "$work/rathole-$1-b.log" 2>&1 &
  pids+=($!)
  rathole_pids+=",$!"
}

stop_rathole() {
  local pid
  for pid in ${rathole_pids//,/ }; do kill "$pid" 2> /dev/null || true; wait "$pid" 2> /dev/null || true; done
}

in_a() { ip netns exec hearth-a "$@"; }
in_b() { ip netns exec hearth-b "$@"; }

# One measurement of one kind of link; figures on the last line. CLEAN or a wire's port offset decides the way.
drive() { # KIND WAY OPTIONS...
  local kind=$1 way=$2
  shift 2
  case $kind-$way in
    netns-clean) in_a "$examples/link" drive netns 10.99.0.2:7101 "$@" ;;
    embedded-clean) in_a "$examples/link" drive embedded 10.99.0.2:7102 "$@" ;;
    wireguard_go-*) in_a "$examples/link" drive tcp 10.98.0.2:7200 --pids "$wg_pids" "$@" ;;
    rathole-clean) in_a "$examples/link" drive tcp 127.0.0.1:7401 --pids "$rathole_pids" "$@" ;;
    rathole-home) in_a "$examples/link" drive tcp 127.0.0.1:7411 --pids "$rathole_pids" "$@" ;;
    plain-clean) in_a "$examples/link" drive tcp 10.99.0.2:7200 "$@" ;;
    netns-home) in_a "$examples/link" drive netns 10.99.0.1:7301 "$@" ;;
    embedded-home) in_a "$examples/link" drive embedded 10.99.0.1:7302 "$@" ;;
    plain-home) in_a "$examples/link" drive tcp 10.97.0.2:7200 "$@" ;;
  esac
}

record() { # KIND NAME FIGURES: every figure into its own file
  jq -r 'del(.kind) | to_entries[] | "\(.key) \(.value)"' <<< "$3" | while read -r field value; do echo "$value" >> "$work/$1.$2.$field"; done
}

start_wires() { # OPTIONS...: the emulated link, one for each kind
  wires=()
  local offset
  for offset in 1 2; do
    ip netns exec hearth-a "$examples/wire" --listen "10.99.0.1:730$offset" --to "10.99.0.2:710$offset" "$@" & wires+=($!)
  done
  ip netns exec hearth-a "$examples/wire" --listen 10.99.0.1:7303 --to 10.99.0.2:51900 "$@" & wires+=($!)
  ip netns exec hearth-a "$examples/wire" --listen 10.99.0.1:7304 --from 10.99.0.1:7324 --to 10.99.0.2:7334 "$@" & wires+=($!)
  until_ready port_is_open
  start_plain_wire
  if [ -n "$rathole" ]; then start_rathole home 10.97.0.1 7410; fi
  pids+=("${wires[@]}")
  wg_through 10.99.0.1:7303
}

port_is_open() { in_a ss -Hlun | grep -q ':7324 ' || in_a ss -Hun | grep -q ':7324 '; }

stop_wires() {
  local pid
  if [ -n "$rathole" ]; then stop_rathole; fi
  for pid in "${wires[@]}"; do kill "$pid" 2> /dev/null || true; wait "$pid" 2> /dev/null || true; done
}

start_plain_wire() { # kernel TCP over the emulator: IP packets of a TUN as datagrams; ends when the emulator does
  ip netns exec hearth-b socat TUN:10.97.0.2/24,iff-up,tun-name=hpb UDP:10.99.0.1:7324,bind=10.99.0.2:7334 > "$work/socat-b.log" 2>&1 & wires+=($!)
  ip netns exec hearth-a socat TUN:10.97.0.1/24,iff-up,tun-name=hpa UDP:10.99.0.1:7304,bind=10.99.0.1:7314 > "$work/socat-a.log" 2>&1 & wires+=($!)
  until_ready ip -n hearth-a link show hpa
  until_ready ip -n hearth-b link show hpb
  ip -n hearth-a link set hpa mtu 1420 && ip -n hearth-b link set hpb mtu 1420
}

reconnect() { # KIND PORT: the hub is killed and started again while a node pings; the longest gap in ms
  local server figures
  ip netns exec hearth-b "$examples/link" serve "$1" "10.99.0.2:$2" & server=$!
  sleep 0.5
  (sleep 1.5; kill -9 "$(cat "$work/server.pid")"
    while in_b ss -Hlun "sport = :$2" | grep -q .; do sleep 0.01; done
    exec ip netns exec hearth-b "$examples/link" serve "$1" "10.99.0.2:$2" 10.99.0.1:7600) &
  local again=$!
  echo "$server" > "$work/server.pid"
  pids+=("$server" "$again")
  figures=$(in_a "$examples/link" drive "$1" "10.99.0.2:$2" --bind 10.99.0.1:7600 --gap-secs 6)
  kill "$again" 2> /dev/null || true
  jq .gap_ms <<< "$figures"
}

tunnel() {
  say "building"
  cargo build --locked --release --quiet -p tunnel --examples
  examples="${CARGO_TARGET_DIR:-$PWD/target}/release/examples"
  build_rathole
  start_places
  local pings=${PINGS:-3000} kind figures name
  local kinds=(netns embedded wireguard_go plain)
  if [ -n "$rathole" ]; then
    kinds+=(rathole)
    start_rathole clean 10.99.0.1 7400
  fi
  ip netns exec hearth-b "$examples/link" serve netns 10.99.0.2:7101 & pids+=($!)
  ip netns exec hearth-b "$examples/link" serve embedded 10.99.0.2:7102 & pids+=($!)
  ip netns exec hearth-b "$examples/link" serve tcp 0.0.0.0:7200 & pids+=($!)
  for kind in "${kinds[@]}"; do until_ready drive "$kind" clean --pings 1; done
  for _ in $(seq "$rounds"); do
    for kind in "${kinds[@]}"; do
      figures=$(drive "$kind" clean --mib 65536 --bulk-secs "$each" --pings "$pings" --tokens 100)
      say "clean link: $kind $figures"
      record "$kind" clean "$figures"
    done
    figures=$("$examples/link" crypto)
    say "the cipher alone: $figures"
    record cipher clean "$figures"
  done
  if [ -n "$rathole" ]; then stop_rathole; fi
  local seed=${SEED:-1} round
  for round in $(seq "${HOME_ROUNDS:-1}"); do
    for name in loss0 loss01 loss1 reorder1 burst1; do
      local weather=()
      case $name in
        loss01) weather=(--loss-ppm 1000) ;;
        loss1) weather=(--loss-ppm 10000) ;;
        reorder1) weather=(--reorder-ppm 10000 --reorder-ms 3) ;;
        burst1) weather=(--loss-ppm 10000 --burst 10) ;;
      esac
      start_wires --mbit 100 --delay-ms 20 --queue-kb 500 --seed "$((seed + round))" "${weather[@]}"
      for kind in "${kinds[@]}"; do until_ready drive "$kind" home --pings 1; done
      for kind in "${kinds[@]}"; do
        figures=$(drive "$kind" home --mib 65536 --down-only 1 --bulk-secs 8 --requests "${REQUESTS:-200}" --tokens 150)
        say "100 Mbit/s, 40 ms, $name: $kind $figures"
        record "$kind" "$name" "$figures"
      done
      stop_wires
    done
    start_wires --mbit 20 --delay-ms 20 --queue-kb 500 --seed "$((seed + round))"
    for kind in "${kinds[@]}"; do until_ready drive "$kind" home --pings 1; done
    for kind in "${kinds[@]}"; do
      figures=$(drive "$kind" home --tokens 250 --beside 1)
      say "tokens beside a transfer on 20 Mbit/s, 40 ms: $kind $figures"
      record "$kind" narrow "$figures"
    done
    stop_wires
  done
  local netns_gap embedded_gap
  netns_gap=$(reconnect netns 7501)
  embedded_gap=$(reconnect embedded 7502)
  say "hub killed and started again: $netns_gap ms (netns), $embedded_gap ms (embedded) without an answer"
  value() { if [ -f "$work/$1" ]; then median < "$work/$1"; else echo null; fi; }
  say "the peer is $(dpkg-query -W -f='${Package} ${Version}' wireguard-go 2> /dev/null || echo wireguard-go), which has no GSO; a current one is several times faster"
  local all={}
  for kind in "${kinds[@]}" cipher; do
    for name in clean loss0 loss01 loss1 reorder1 burst1 narrow; do
      for field in down_mbit up_mbit cpu_s_per_gb crypto_s_per_gb ping_p50_us ping_p99_us request_p50_us request_p99_us token_p99_us beside_p50_us beside_p99_us; do
        all=$(jq -c --arg k "$kind" --arg n "$name" --arg f "$field" --argjson v "$(value "$kind.$name.$field")" 'if $v == null then . else .[$k][$n][$f] = $v end' <<< "$all")
      done
    done
  done
  mkdir -p target
  jq -c . <<< "$all" > target/bench-tunnel.json
  jq -nc --argjson all "$all" --argjson gap "$netns_gap" --argjson embedded_gap "$embedded_gap" '
    ($all.netns.clean) as $h | ($all.wireguard_go.clean) as $w | ($all.plain.clean) as $p
    | {area: "tunnel", bulk_vs_wireguard_go: (($h.down_mbit + $h.up_mbit) / ($w.down_mbit + $w.up_mbit) * 100 | round / 100),
      cpu_s_per_gb: $h.cpu_s_per_gb, floor_cpu_s_per_gb: (($all.cipher.clean.crypto_s_per_gb + $p.cpu_s_per_gb) * 100 | round / 100), added_p50_us: ($h.ping_p50_us - $p.ping_p50_us), added_p99_us: ($h.ping_p99_us - $p.ping_p99_us),
      home_link_1pct_loss_mbit: $all.netns.loss1.down_mbit,
      request_p99_vs_plain_1pct: ($all.netns.loss1.request_p99_us / $all.plain.loss1.request_p99_us * 100 | round / 100),
      embedded_request_p99_ms_1pct: ($all.embedded.loss1.request_p99_us / 1000 | round),
      saturated_uplink_sse_p50_ms: ($all.netns.narrow.beside_p50_us / 1000 | round),
      embedded_saturated_uplink_sse_p50_ms: ($all.embedded.narrow.beside_p50_us / 1000 | round),
      embedded_bulk_vs_wireguard_go: (($all.embedded.clean.down_mbit + $all.embedded.clean.up_mbit) / ($w.down_mbit + $w.up_mbit) * 100 | round / 100),
      embedded_cpu_s_per_gb: $all.embedded.clean.cpu_s_per_gb, embedded_home_link_1pct_loss_mbit: $all.embedded.loss1.down_mbit,
      reconnect_ms: $gap, embedded_reconnect_ms: $embedded_gap}'
}

# --- hub -----------------------------------------------------------------------------------------------------------

hub() {
  say "building"
  cargo build --locked --release --quiet -p tunnel --example hub
  local example="${CARGO_TARGET_DIR:-target}/release/examples/hub" act figures all='{"area":"hub"}'
  for act in "idle 10000 60" "storm 1000" "flood 2000" "shards 4"; do
    # shellcheck disable=SC2086 # words of its own
    figures=$("$example" $act | tail -n 1)
    say "$figures"
    all=$(jq -c --arg act "${act%% *}" --argjson figures "$figures" '.[$act] = ($figures | del(.area, .counters))' <<< "$all")
  done
  echo "$all"
}

# --- engine --------------------------------------------------------------------------------------------------------

llama_cpp_python=0.3.36 # vendors llama.cpp "0.5.0-dev", the nearest below the bundled one that a package index carries whole
sdist=https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/llama_cpp_python-$llama_cpp_python.tar.gz
sdist_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
slots=16 context=4096

llama_server() { # the program, built once
  local home=target/bench
  mkdir -p "$home"
  llama_server="${LLAMA_SERVER:-$home/llama-server}"
  [ -x "$llama_server" ] && return
  need cmake
  say "building llama-server from llama-cpp-python $llama_cpp_python (about ten minutes)"
  curl -fsSL "$sdist" -o "$home/sdist.tar.gz"
  echo "$sdist_sha256  $home/sdist.tar.gz" | sha256sum --check --quiet
  tar -xzf "$home/sdist.tar.gz" -C "$work"
  # The same portable instruction set as our own build (AVX2), no OpenSSL, no page.
  cmake -S "$work/llama_cpp_python-$llama_cpp_python/vendor/llama.cpp" -B "$work/peer" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF > "$work/cmake.log"
  cmake --build "$work/peer" --target llama-server -j "$(nproc)" > "$work/cmake.log"
  cp "$work/peer/bin/llama-server" "$llama_server"
}

random_model() { # 136 million random weights, Q8_0: computing dominates, as with real models
  model_136m="$PWD/target/bench/rand150-q8_0.gguf"
  [ -f "$model_136m" ] && return
  say "writing a random model of 136 million weights"
  python3 -m venv tests/.venv/bench
  tests/.venv/bench/bin/pip install --quiet --disable-pip-version-check gguf numpy jinja2 tokenizers
  (cd target/bench && ../../tests/.venv/bench/bin/python ../../tests/models/random_llama.py > /dev/null)
}

start_engines() { # name of the model, its file
  ours=$(free_port) theirs=$(free_port)
  cat > "$work/node.toml" <<TOML
[node]
name = "bench"
state_dir = "$work/node-$1"
[[tiers]]
tier = "fast"
model = "$2"
model_id = "bench"
context = $context
slots = $slots
threads = 1
[log]
filter = "warn"
TOML
  "${under_test[@]}" "$bin/hearth-node" serve --config "$work/node.toml" --listen "127.0.0.1:$ours" > "$work/node.log" 2>&1 &
  engines=($!)
  "${under_test[@]}" "$llama_server" -m "$2" -c $((slots * context)) -np "$slots" -t 1 -tb 1 --no-kv-unified --port "$theirs" --jinja > "$work/llama-server.log" 2>&1 &
  engines+=($!)
  pids+=("${engines[@]}")
  local warm='{"model":"bench","messages":[{"role":"user","content":"Hi"}],"max_tokens":4}'
  until_ready curl -fsS -H 'Content-Type: application/json' -d "$warm" "http://127.0.0.1:$ours/v1/chat/completions"
  until_ready curl -fsS -H 'Content-Type: application/json' -d "$warm" "http://127.0.0.1:$theirs/v1/chat/completions"
  # The first answers pay for page faults and growing buffers on both sides.
  for port in "$ours" "$theirs"; do
    for streams in 1 16; do TOKENS=64 "${beside_it[@]}" "$bin/bench-engine" "127.0.0.1:$port" bench decode $streams > /dev/null; done
  done
}

asked=0
ask_engine() { # model, hearth|llama, kind, number, field, further field
  local port=$ours answer field
  [ "$2" = llama ] && port=$theirs
  answer=$("${beside_it[@]}" "$bin/bench-engine" "127.0.0.1:$port" bench "$3" "$4")
  say "$1 $2 $3 $4 $answer"
  for field in "${@:5}"; do jq ".$field" <<< "$answer" >> "$work/$1.$2.$3${6:+.$field}${STREAMS:+.$STREAMS}"; done
}

measure_engine() { # model
  local who streams
  for _ in $(seq "$rounds"); do
    for streams in 1 4 8 16; do
      for who in hearth llama; do STREAMS=$streams ask_engine "$1" $who decode "$streams" tokens_per_second; done
    done
    asked=$((asked + 1))
    for who in hearth llama; do ask_engine "$1" $who prefill "$asked" tokens_per_second ttft_ms; done
    asked=$((asked + 1))
    for who in hearth llama; do ask_engine "$1" $who shared "$asked" ttft_ms; done
    asked=$((asked + 1))
    for who in hearth llama; do ask_engine "$1" $who stall "$asked" stall_ms; done
  done
}

ratio() { # model, figure: hearth's median by llama-server's
  jq -n --argjson h "$(median < "$work/$1.hearth.$2")" --argjson l "$(median < "$work/$1.llama.$2")" '$h / $l * 1000 | round / 1000'
}

engine_figures() { # model
  jq -nc --argjson a "$(ratio "$1" decode.1)" --argjson b "$(ratio "$1" decode.4)" --argjson c "$(ratio "$1" decode.8)" \
    --argjson d "$(ratio "$1" decode.16)" --argjson p "$(ratio "$1" prefill.tokens_per_second)" --argjson t "$(ratio "$1" prefill.ttft_ms)" \
    --argjson r "$(ratio "$1" shared)" --argjson s "$(ratio "$1" stall)" \
    --argjson tps "$(median < "$work/$1.hearth.decode.1")" --argjson ms "$(median < "$work/$1.hearth.stall")" \
    '{tokens_vs_llama_server: {"1": $a, "4": $b, "8": $c, "16": $d}, prefill_vs_llama_server: $p, ttft_vs_llama_server: $t,
      shared_prefix_ttft_vs_llama_server: $r, stall_vs_llama_server: $s, tokens_per_second: $tps, stall_ms: $ms}'
}

engine() {
  say "building"
  cargo build --locked --release --quiet -p node-agent -p tests --bins
  bin="${CARGO_TARGET_DIR:-target}/release"
  llama_server
  random_model
  local pid
  for model in random136m tiny; do
    case $model in
      random136m) start_engines $model "$model_136m" ;;
      # trained for 2,048 tokens
      tiny) export LONG_WORDS=800; context=2048; start_engines $model "$PWD/tests/models/tiny-fast-q8_0.gguf" ;;
    esac
    TOKENS=128 measure_engine $model
    for pid in "${engines[@]}"; do kill "$pid"; wait "$pid" 2> /dev/null || true; done
  done
  say "llama-server of llama-cpp-python $llama_cpp_python, both with one thread on core 0, load $(cut -d' ' -f1 /proc/loadavg)"
  jq -nc --argjson big "$(engine_figures random136m)" --argjson tiny "$(engine_figures tiny)" '{area: "engine"} + $big + {tiny: $tiny}'
}

# --- routing -------------------------------------------------------------------------------------------------------

decisions() { # classify|route, figure: of the rounds the median
  local figures
  for _ in $(seq "$rounds"); do
    figures=$("${under_test[@]}" "$bin/bench-routing" "$1")
    say "$1 $figures"
    jq ".$2" <<< "$figures" >> "$work/$1"
  done
  median < "$work/$1"
}

# What a program of its own measures and prints as one object; {} where it is not built.
figures_of() { # program argument...
  local program="$bin/$1" figures
  [ -x "$program" ] || { say "missing: $program"; echo '{}'; return; }
  figures=$("$program" "${@:2}" | tail -n 1)
  say "$1 $figures"
  echo "$figures"
}

routing() {
  say "building"
  cargo build --locked --release --quiet -p proxy -p node-agent -p tests --bins
  bin="${CARGO_TARGET_DIR:-target}/release"
  random_model
  local classify route
  classify=$(decisions classify classify_p99_us)
  route=$(decisions route route_p99_us)
  say "load $(cut -d' ' -f1 /proc/loadavg)"
  jq -nc --argjson c "$classify" --argjson r "$route" --argjson m "$(figures_of bench-migration)" \
    --argjson w "$(figures_of bench-warm "$model_136m")" \
    '{area: "routing", classify_p99_us: $c, route_p99_us: $r, migration_gap_ms: null, warm_hit_rate: null} + $m + $w'
}

case ${1:-} in
  edge | admission | tunnel | hub | engine | routing) "$1" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 64 ;;
esac
