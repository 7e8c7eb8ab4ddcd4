#!/usr/bin/env bash
# Chaos over a whole town of real programs: see tests/chaos. Bounded; prints the seed first and what was done to whom last.
set -euo pipefail

usage() {
  cat <<'HELP'
tests/chaos.sh [SECONDS]

  Three machines with tiny models, two proxies on one Redis, fifty readers of greedy streams. Machines are killed, frozen, cut off, drained, rained
  on (30 % of the packets lost, the others late) and restarted, proxies too (those are also upgraded), by a printed seed, for SECONDS (300).
  Then: an answer whose worker is killed after each of its tokens, every form of answer killed at random, 500 streams at once.

  HEARTH_CHAOS_SEED=N       the same chaos again
  HEARTH_CHAOS_STEP=N       only every Nth token is killed at (4); after a death a worker's next start takes up to half a minute
  HEARTH_CHAOS_KILLS=N      so many deaths for each form of answer (2)
  HEARTH_STREAMS_SECS=N     so long the 500 streams last (60; 10 where SECONDS is below 60)
HELP
}

cd "$(dirname "$0")/.."
case ${1:-300} in
  -h | --help) usage; exit 0 ;;
  *[!0-9]*) echo "tests/chaos.sh: SECONDS is a number, not $1 (see --help)" >&2; exit 64 ;;
esac
command -v redis-server > /dev/null || { echo "tests/chaos.sh: missing: redis-server (tests/run.sh installs it)" >&2; exit 1; }

export HEARTH_CHAOS_SECS=${1:-300}
streams_secs=60
[ "$HEARTH_CHAOS_SECS" -ge 60 ] || streams_secs=10
export HEARTH_STREAMS_SECS=${HEARTH_STREAMS_SECS:-$streams_secs}
cargo build --locked --quiet -p proxy -p node-agent --bins
# One after the other: each wants the whole machine.
exec cargo test --locked --quiet -p tests --test chaos -- --ignored --nocapture --test-threads 1
