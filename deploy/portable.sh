#!/usr/bin/env bash
# Builds hearth-node for every CPU of this architecture: llama.cpp's computing parts become libraries, one for each instruction set, and the
# program chooses among them when it starts. The default build needs AVX2 on x86-64; this one runs on anything 64-bit.
#
#   deploy/portable.sh [FOLDER]     FOLDER (default target/portable) holds the program and its libraries: keep them together
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/portable}
# A folder of its own: other features rebuild llama.cpp.
build=target/portable-build
RUSTFLAGS="${RUSTFLAGS:-} -C link-arg=-Wl,-rpath,\$ORIGIN" \
	cargo build --release -p node-agent --bin hearth-node --features portable --target-dir "$build"
mkdir -p "$out"
install -m 755 "$build/release/hearth-node" "$out/"
find "$build/release/build" -path '*llama-cpp-sys-2-*/out/*' \( -name 'libggml*.so*' -o -name 'libllama*.so*' -o -name 'libmtmd*.so*' \) \
	-exec cp -P {} "$out/" \;
ls "$out"/libggml-cpu-*.so >/dev/null || {
	echo "no libggml-cpu-*.so was built: look at the output of cargo above" >&2
	exit 1
}
echo "$out is complete: copy the whole folder"
