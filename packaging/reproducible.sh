#!/bin/bash
# Shows that the same sources give the same packages: runs `make packages` on what is committed twice, in different
# directories, and compares what comes out byte by byte.
set -euo pipefail
cd "$(dirname "$0")/.."
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
work=$(mktemp -d /var/tmp/walkeep-reproducible.XXXXXX)
trap 'rm -rf "$work"' EXIT

for place in first second/one/deeper; do
    mkdir -p "$work/$place"
    git archive HEAD | tar -x -C "$work/$place"
    env -u CARGO_TARGET_DIR make -C "$work/$place" packages
    mv "$work/$place/target/packages" "$work/${place%%/*}.packages"
    rm -rf "${work:?}/$place"
done
(cd "$work/first.packages" && sha256sum ./*) >"$work/sums"
cat "$work/sums"
if (cd "$work/second.packages" && sha256sum --check --quiet "$work/sums"); then
    echo "reproducible: two builds gave the same bytes"
else
    echo "reproducible: two builds differ" >&2
    exit 1
fi
