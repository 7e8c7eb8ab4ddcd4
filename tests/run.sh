#!/usr/bin/env bash
# Every test of Hearth, on a fresh Debian machine: installs what they need, runs them, counts them.
set -euo pipefail

usage() {
  cat <<'HELP'
tests/run.sh: every test of Hearth

  tests/run.sh            install what the tests need, then run everything
  tests/run.sh --fast     formatting, lints and the pure crates only (under a minute when warm)
  tests/run.sh --no-install   install nothing

Debian or Ubuntu; elsewhere install the packages named in this file and use --no-install.
HELP
}

cd "$(dirname "$0")/.."
fast=false install=true
for option in "$@"; do
  case $option in
    --fast) fast=true ;;
    --no-install) install=false ;;
    -h | --help) usage; exit 0 ;;
    *) echo "tests/run.sh: unknown option $option (see --help)" >&2; exit 64 ;;
  esac
done

started=$(date +%s)
counted=() total=0
say() { printf '\n\033[1m== %s (%ss)\033[0m\n' "$*" "$(($(date +%s) - started))"; }
count() { counted+=("$1 $2"); total=$((total + $1)); }

# --- what the tests need -------------------------------------------------------------------------------------------

packages=(cmake g++ libclang-dev mold curl jq openssl redis-server wireguard-go wireguard-tools iproute2 nginx-light wrk
  chromium python3 python3-venv nodejs npm)

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    case $package in
      nodejs | npm) command -v "${package/nodejs/node}" > /dev/null && continue ;;
      nginx-light) command -v nginx > /dev/null && continue ;;
      python3-venv) python3 -c 'import ensurepip' 2> /dev/null && continue ;;
    esac
    dpkg-query -W -f='${Status}' "$package" 2> /dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    local sudo=''
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    # services stay off: the tests start their own
    $sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
  fi
}

install_rust() {
  # shellcheck disable=SC1091
  [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  if ! command -v cargo > /dev/null; then
    say "installing Rust"
    curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt > /dev/null
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
  fi
  command -v cargo-nextest > /dev/null || { say "installing cargo-nextest"; cargo install --locked --debug --quiet cargo-nextest; }
  command -v cargo-deny > /dev/null || { say "installing cargo-deny"; cargo install --locked --debug --quiet cargo-deny@0.20.2; }
}

install_sdks() {
  say "installing the SDKs"
  local version
  for version in 3.52.0 2.54.0; do
    [ -x "tests/.venv/$version/bin/python" ] && continue
    python3 -m venv "tests/.venv/$version"
    "tests/.venv/$version/bin/pip" install --quiet --disable-pip-version-check "openai==$version"
  done
  if [ ! -x tests/.venv/schemathesis/bin/st ]; then
    python3 -m venv tests/.venv/schemathesis
    tests/.venv/schemathesis/bin/pip install --quiet --disable-pip-version-check "schemathesis==4.32.5"
  fi
  if [ ! -x tests/.venv/templates/bin/python ]; then
    python3 -m venv tests/.venv/templates
    tests/.venv/templates/bin/pip install --quiet --disable-pip-version-check "jinja2==3.1.6"
  fi
  (cd tests/sdk && npm ci --silent --no-audit --no-fund)
  (cd tests/browser && npm ci --silent --no-audit --no-fund)
}

# --- the tests -----------------------------------------------------------------------------------------------------

run_counted() { # name, command...: the command's last "N passed" is the count
  local name=$1 output number
  shift
  output=$(mktemp)
  if ! "$@" 2>&1 | tee "$output"; then
    echo "FAILED: $name" >&2
    rm -f "$output"
    exit 1
  fi
  number=$({ grep -oE '[0-9]+ passed' "$output" || true; } | awk '{ sum += $1 } END { print sum + 0 }')
  rm -f "$output"
  [ "$number" -gt 0 ] || { echo "FAILED: $name ran no test" >&2; exit 1; }
  count "$number" "$name"
}

if $install; then
  $fast || install_packages
  install_rust
fi

# Where namespaces are given, no story may leave them out in silence; elsewhere those about them say so and end.
own_world='ip link set lo up && mount -t tmpfs none /run && mount --bind /etc/hosts /etc/hosts && ip tuntap add mode tun name probe'
if unshare --user --map-root-user --net --mount sh -c "$own_world" 2> /dev/null && command -v wireguard-go > /dev/null; then
  export HEARTH_NAMESPACES=given
else
  say "this machine gives no namespaces: the tunnel is tested with its embedded back-end only"
fi

say "formatting"
cargo fmt --all --check
if $fast; then
  say "lints and tests of the pure crates"
  cargo clippy --locked -p config -p policy -p scheduler -p tunnel --all-targets -- -D warnings
  run_counted "pure" cargo nextest run --locked -p config -p policy -p scheduler
  say "fast: $total tests passed"
  exit 0
fi

say "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

say "licences, sources, doors"
if [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" ]; then
  cargo deny --log-level error check
else
  cargo deny --log-level error check bans licenses sources # no advisory database on this machine
fi

say "building"
cargo build --locked --workspace --bins

say "tests of every crate and the stories"
run_counted "in Rust" cargo nextest run --locked --workspace

say "the tunnel, with invented clocks"
# boringtun with a clock of its own is another build, and must not reach the first: see tunnel/clock/Cargo.toml.
run_counted "in invented time" cargo test --locked --quiet --manifest-path tunnel/clock/Cargo.toml --target-dir target/clock sim

say "examples in the documentation"
# Zero is a fair number here: an example is written where it is the documentation.
cargo test --locked --quiet --workspace --doc
cargo doc --locked --quiet --workspace --no-deps

$install && install_sdks
say "the goldens of the chat templates, against Python"
run_counted "of template goldens" tests/.venv/templates/bin/python tests/templates/golden.py --check

say "SDKs and the chat page, against a running stack"
run_counted "of SDKs and page" deploy/quickstart.sh --check --no-install --profile dev --run '
  set -e
  for version in 3.52.0 2.54.0; do "tests/.venv/$version/bin/python" tests/sdk/check.py; done
  export NODE_EXTRA_CA_CERTS="$HEARTH_CA"
  (cd tests/sdk && node comments.mjs && node check.mjs openai && node check.mjs openai-older)
  (cd tests/browser && node check.mjs)'

say "the administration API against its description"
run_counted "of the administration API" tests/.venv/schemathesis/bin/python tests/admin/check.py

# One seed, so that a failure comes again: `tests/chaos.sh` alone draws another one every time, and takes five minutes.
say "chaos, for half a minute"
HEARTH_CHAOS_SEED=${HEARTH_CHAOS_SEED:-1} HEARTH_CHAOS_STEP=${HEARTH_CHAOS_STEP:-8} HEARTH_CHAOS_KILLS=${HEARTH_CHAOS_KILLS:-2} \
  run_counted "of chaos" tests/chaos.sh 30

say "the quickstart, as a stranger runs it"
deploy/quickstart.sh --check --no-install --profile dev
count 1 "quickstart"
leftover=$(pgrep -f "$PWD/target/.*/hearth-" || true)
[ -z "$leftover" ] || { echo "FAILED: the quickstart left processes behind: $leftover" >&2; exit 1; }
[ ! -e .quickstart ] || { echo "FAILED: the quickstart left .quickstart behind" >&2; exit 1; }

say "the quickstart's odd hours: models, signals, folders"
run_counted "of the quickstart" python3 tests/quickstart/check.py

say "units"
for unit in deploy/systemd/*.service; do
  command -v systemd-analyze > /dev/null || break
  # that /usr/local/bin is empty here is no fault of the unit
  complaints=$(systemd-analyze verify "$unit" 2>&1 | grep -v 'is not executable: No such file' || true)
  [ -z "$complaints" ] || { echo "FAILED: $unit: $complaints" >&2; exit 1; }
done
python3 -c 'import plistlib, sys; plistlib.load(open(sys.argv[1], "rb"))' deploy/launchd/org.hearth.node.plist

printf '\nAll green: %d tests (%s) in %d min %d s\n' "$total" "$(IFS=,; echo "${counted[*]}")" \
  $((($(date +%s) - started) / 60)) $((($(date +%s) - started) % 60))
