#!/usr/bin/env bash
# The whole of Hearth on this machine: builds it, starts a proxy and a node joined over WireGuard, asks a question over HTTPS.
set -euo pipefail

usage() {
  cat <<'HELP'
deploy/quickstart.sh: try Hearth on this machine

  deploy/quickstart.sh                     build, start, ask, print how to use it, stay up until Ctrl-C
  deploy/quickstart.sh --check             the same, verify the answer, print what was measured, stop
  deploy/quickstart.sh --model FILE.gguf   serve your own model in all three tiers
  deploy/quickstart.sh --model hf:USER/REPO[:QUANT]
                                           download one first (default Q4_K_M), checked against its SHA-256; or any
                                           name that `hearth-node pull` takes, such as gemma4:e2b
  deploy/quickstart.sh --run COMMAND       run a command against it (HEARTH_URL, HEARTH_KEY, HEARTH_CA are set), then stop

  --profile release|dev   which build (default release)
  --no-install            install nothing; say what is missing
  --keep                  leave the state folder (.quickstart/) behind after stopping

Everything it writes lies in .quickstart/ and target/, and models that it downloads where Hugging Face's tools and
llama.cpp keep them (HF_HOME). It needs no open port beyond loopback.
HELP
}

root=$(cd "$(dirname "$0")/.." && pwd)
check=false keep=false install=true profile=release model='' run=''
while [ $# -gt 0 ]; do
  case $1 in
    --check) check=true ;;
    --keep) keep=true ;;
    --no-install) install=false ;;
    --model) model=${2:?--model needs a file, hf:USER/REPO[:QUANT] or another name for hearth-node pull}; shift ;;
    --run) run=${2:?--run needs a command}; shift ;;
    --profile) profile=${2:?--profile needs release or dev}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: unknown option $1 (see --help)" >&2; exit 64 ;;
  esac
  shift
done
case $profile in release) build=release ;; dev) build=debug ;; *) echo "quickstart: --profile is release or dev, not $profile" >&2; exit 64 ;; esac

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { echo "quickstart: $*" >&2; exit 1; }

# Runs a command in a session of its own, so that Ctrl-C ends it through stop() and takes its children along.
child=''
attend() { # command...
  local status=0
  setsid "$@" &
  child=$!
  wait "$child" || status=$?
  child=''
  return "$status"
}
milliseconds() { date +%s%3N; }

# --- what the build needs ------------------------------------------------------------------------------------------

# command (or a file) : Debian package : why
needs='cmake:cmake:builds llama.cpp
c++:g++:compiles llama.cpp
/usr/lib/llvm*/lib/libclang*.so*:libclang-dev:reads the header of llama.cpp
mold:mold:links in a second
curl:curl:asks the question
jq:jq:reads the answer'

install_packages() {
  local missing=() command package why
  while IFS=: read -r command package why; do
    case $command in
      /*) compgen -G "$command" > /dev/null || { missing+=("$package"); say "needed: $package ($why)"; } ;;
      *) command -v "$command" > /dev/null || { missing+=("$package"); say "needed: $package ($why)"; } ;;
    esac
  done <<< "$needs"
  [ ${#missing[@]} -eq 0 ] && return
  $install || fail "missing: ${missing[*]} (and --no-install was given)"
  command -v apt-get > /dev/null || fail "this is not Debian or Ubuntu: install the equivalents of ${missing[*]}, then run this again"
  local sudo=''
  [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  # never cut short: a package half installed is worse than a late Ctrl-C
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
}

install_rust() {
  # shellcheck disable=SC1091
  [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  command -v cargo > /dev/null && return
  $install || fail "missing: Rust (https://rustup.rs)"
  say "needed: Rust (compiles Hearth), from https://rustup.rs"
  curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path > /dev/null
  # shellcheck disable=SC1091
  . "$HOME/.cargo/env"
}

# --- models --------------------------------------------------------------------------------------------------------

# A name for `hearth-node pull` -> $model is a file that is whole and has the SHA-256 that was promised.
fetch_model() {
  say "fetching $model"
  attend "$bin/hearth-node" pull "$model" > "$state/pulled" || fail "there is no model: $model"
  model=$(cat "$state/pulled")
}

model_for() { # tier
  if [ -z "$model" ]; then printf '%s/tests/models/tiny-%s-q8_0.gguf\n' "$root" "$1"; else printf '%s\n' "$model"; fi
}

# --- starting and stopping -----------------------------------------------------------------------------------------

state="$root/.quickstart"
proxy_pid='' node_pid='' ours=false

end_session() { # process
  local tries
  kill -TERM "$1" 2> /dev/null || true # it may not have its session yet
  for tries in {1..100}; do
    kill -TERM -- "-$1" 2> /dev/null || return 0
    sleep 0.05
  done
  kill -KILL -- "-$1" 2> /dev/null || true
}

stop() {
  local status=$? pid log
  trap - EXIT
  trap '' INT TERM HUP
  # a build or --run with all its children, then the node before the proxy
  [ -z "$child" ] || end_session "$child"
  for pid in $node_pid $proxy_pid; do kill -TERM "$pid" 2> /dev/null || true; done
  for pid in $child $node_pid $proxy_pid; do wait "$pid" 2> /dev/null || true; done
  $ours || exit $status
  case $status in
    0 | 129 | 130 | 143) ;;
    *) for log in proxy node; do [ -f "$state/$log.log" ] && { echo "--- last lines of $log.log" >&2; tail -n 15 "$state/$log.log" >&2; }; done ;;
  esac
  $keep || rm -rf "$state"
  exit $status
}

# One quickstart a folder: a second would pull the state from under the first.
claim_state() {
  local other
  other=$(cat "$state/pid" 2> /dev/null || true)
  if [ -n "$other" ] && kill -0 "$other" 2> /dev/null; then
    fail "a quickstart runs here already (process $other): stop it first"
  fi
  ours=true
  rm -rf "$state"
  mkdir -m 700 "$state"
  echo $$ > "$state/pid"
}

# A port that nothing uses: the one wished for, or any other.
free_port() { # tcp|udp wish
  local kind=$1 port=$2 list
  list=$(cat "/proc/net/$kind" "/proc/net/${kind}6" 2> /dev/null | awk 'NR > 1 { print $2 }')
  while grep -qi ":$(printf '%04X' "$port")\$" <<< "$list"; do port=$((20000 + RANDOM)); done
  printf '%s\n' "$port"
}

wait_for() { # seconds, what, command...
  local deadline=$(($(date +%s) + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    kill -0 "$proxy_pid" 2> /dev/null || fail "the proxy stopped while waiting until $what"
    [ -z "$node_pid" ] || kill -0 "$node_pid" 2> /dev/null || fail "the node stopped while waiting until $what"
    [ "$(date +%s)" -lt "$deadline" ] || fail "not in time: $what"
    sleep 0.1
  done
}

write_settings() {
  cat > "$state/proxy.toml" <<TOML
[server]
listen = ["127.0.0.1:$port"]
admin_listen = "127.0.0.1:$admin_port"
state_dir = "$state/proxy"
public_url = "$url"

[tls]
mode = "self-signed"
names = ["localhost", "127.0.0.1"]

[tunnel]
listen = "127.0.0.1:$tunnel_port"
TOML
  if [ -n "$run" ]; then # a test suite asks more than a person does
    cat >> "$state/proxy.toml" <<'TOML'

[limits]
guard_per_minute = 60000
guard_burst = 10000
text_per_minute_per_ip = 100000
text_per_minute_per_user = 100000
media_per_minute_per_ip = 100000
media_per_minute_per_user = 100000
health_per_minute_per_ip = 100000
health_per_minute_per_user = 100000
text_per_day = 100000
TOML
  fi
  cat > "$state/node.toml" <<TOML
[node]
name = "den"
state_dir = "$state/node"
TOML
  for tier in fast primary heavy; do
    printf '\n[[tiers]]\ntier = "%s"\nmodel = "%s"\n' "$tier" "$(model_for $tier)" >> "$state/node.toml"
  done
}

# --- the question --------------------------------------------------------------------------------------------------

question='What is the capital of France?'
expected='The capital of France is Paris.'

ask() { # prints the events as they come
  curl -fsS -N --max-time 300 --cacert "$ca" "$url/v1/chat/completions" \
    -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
    -d "$(jq -nc --arg q "$question" '{model: "auto", stream: true, stream_options: {include_usage: true}, temperature: 0,
          max_tokens: 200, messages: [{role: "user", content: $q}]}')"
}

show_and_check() {
  local asked reply routing usage text ttft rate whole
  asked=$(milliseconds)
  attend bash -c ask > "$state/reply" || fail "the question got no answer"
  whole=$(($(milliseconds) - asked))
  reply=$(sed -n 's/^data: \({.*\)$/\1/p' "$state/reply")
  text=$(jq -rj '.choices[0].delta.content // empty' <<< "$reply")
  routing=$(jq -c 'select(._routing) | ._routing' <<< "$reply")
  usage=$(jq -c 'select(.usage != null) | .usage' <<< "$reply" | tail -n 1)
  echo
  say "Q: $question"
  say "A: $text"
  echo "   _routing: $routing"
  ttft=$(jq -r '.ttft_ms // 0' <<< "$routing")
  rate=$(jq -r 'select(.timings) | .timings.predicted_per_second | floor' <<< "$reply" | tail -n 1)
  $check || return 0
  [ -n "$routing" ] || fail "the answer carries no _routing"
  if [ -z "$model" ] && [ "$text" != "$expected" ]; then fail "expected '$expected', got '$text'"; fi
  [ -n "$text" ] || fail "the answer is empty"
  echo
  echo "   measured: first token ${ttft} ms, whole answer ${whole} ms, ${rate:-?} tokens/s, usage $usage"
}

how_to_use() {
  local ca_word proxy_word config_word
  printf -v ca_word %q "$ca"
  printf -v proxy_word %q "$bin/hearth-proxy"
  printf -v config_word %q "$state/proxy.toml"
  cat <<TEXT

$(say 'It runs. Use it:')

  chat page    $url/#key=$key
               (the certificate is self-signed: the browser asks once)
  curl         curl --cacert $ca_word $url/v1/chat/completions \\
                 -H "Authorization: Bearer $key" -H "Content-Type: application/json" \\
                 -d '{"model":"auto","messages":[{"role":"user","content":"Hello"}]}'
  Python       (pip install openai; paste from the left margin)
import openai, ssl
client = openai.OpenAI(base_url="$url/v1", api_key="$key",
    http_client=openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile="$ca")))
print(client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hello"}]).choices[0].message.content)

  more keys    $proxy_word key create --name NAME --config $config_word
  more nodes   $proxy_word node invite --config $config_word
  logs         $state/proxy.log, $state/node.log

Ctrl-C stops it.
TEXT
}

# --- the run -------------------------------------------------------------------------------------------------------

trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

case $model in
  '' | *:*) ;;
  *) [ -f "$model" ] || fail "no such model file: $model"; model=$(realpath "$model") ;;
esac
cd "$root"
install_packages
install_rust

say "building ($profile; the first time compiles llama.cpp and takes some minutes)"
flags=(); [ "$profile" = release ] && flags=(--release)
attend cargo build --locked --quiet "${flags[@]}" --bin hearth-proxy --bin hearth-node || fail "the build failed"
bin="${CARGO_TARGET_DIR:-$root/target}/$build"

claim_state
case $model in *:*) [ -f "$model" ] || fetch_model ;; esac
port=$(free_port tcp 8443) admin_port=$(free_port tcp 9464) tunnel_port=$(free_port udp 51820)
url="https://127.0.0.1:$port"
ca="$state/proxy/self-signed.cert.pem"
write_settings

say "starting the proxy on $url, WireGuard on 127.0.0.1:$tunnel_port/udp"
setsid "$bin/hearth-proxy" serve --config "$state/proxy.toml" > "$state/proxy.log" 2>&1 &
proxy_pid=$!
wait_for 20 "the proxy answers" curl -fsS --max-time 2 --cacert "$ca" "$url/healthz"

say "minting an API key and a join link"
key=$("$bin/hearth-proxy" key create --name quickstart --output json --config "$state/proxy.toml" | jq -r .key)
link=$("$bin/hearth-proxy" node invite --output json --config "$state/proxy.toml" | jq -r .link)

say "the node joins and dials in"
attend "$bin/hearth-node" join "$link" --config "$state/node.toml" > "$state/node.log" 2>&1 || { cat "$state/node.log" >&2; fail "the node was not let in"; }
setsid "$bin/hearth-node" run --config "$state/node.toml" >> "$state/node.log" 2>&1 &
node_pid=$!
ready() {
  curl -fsS --max-time 2 --cacert "$ca" -H "Authorization: Bearer $key" "$url/v1/models" |
    jq -e '[.data[] | select(.id == "fast" or .id == "primary" or .id == "heavy") | select(.status.value == "loaded")] | length == 3'
}
wait_for 120 "all three tiers are ready" ready

export question url key ca
export -f ask
show_and_check
if [ -n "$run" ]; then
  export HEARTH_URL=$url HEARTH_KEY=$key HEARTH_CA=$ca HEARTH_PROXY_CONFIG=$state/proxy.toml HEARTH_BIN=$bin
  attend bash -c "$run"
  exit 0
fi
if $check; then
  say "check passed"
  exit 0
fi
how_to_use
wait -n "$proxy_pid" "$node_pid" || true
fail "the proxy or the node stopped by itself"
