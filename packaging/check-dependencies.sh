#!/bin/bash
# Runs cargo-deny with deny.toml. The network is asked only for crates of other systems, which no build here has fetched.
# Where cargo-deny is not installed it says so and leaves it at that, for compiling it takes longer than all checks; the
# tests themselves hold the licences against deny.toml.
#
# Advisories are looked at where a clone of https://github.com/RustSec/advisory-db lies in the directory that
# packaging/tools.sh names, as advisory-db/advisory-db-3157b0e258782691 (cargo-deny's own name for it).
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(packaging/tools.sh)
export PATH=$PATH:$tools/bin

if ! cargo deny --version >/dev/null 2>&1; then
    echo "check-dependencies: skipped, there is no cargo-deny" \
        "(cargo install cargo-deny --version 0.20.2 --locked --root $tools)"
    exit 0
fi
if ! cargo fetch --quiet --locked; then
    echo "check-dependencies: skipped, not all crates of Cargo.lock are here or can be fetched"
    exit 0
fi
cargo deny --offline --locked check --hide-inclusion-graph licenses bans sources
if [ -d "$tools/advisory-db" ]; then
    configuration=$(mktemp --suffix .toml)
    trap 'rm -f "$configuration"' EXIT
    sed "s|^\[advisories\]|&\ndb-path = \"$tools/advisory-db\"|" deny.toml >"$configuration"
    cargo deny --offline --locked --config "$configuration" check --hide-inclusion-graph advisories
else
    echo "check-dependencies: advisories skipped, there is no database in $tools/advisory-db"
fi
