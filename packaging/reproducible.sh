#!/bin/bash
# Shows that the same sources give the same packages: builds what is committed twice, in different directories and with
# different target directories, and compares the packages byte by byte.
#
# usage: packaging/reproducible.sh [PROFILE]
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
built=$profile
[ "$profile" != dev ] || built=debug
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
work=$(mktemp -d /var/tmp/walkeep-reproducible.XXXXXX)
trap 'rm -rf "$work"' EXIT

for place in first second/one/deeper; do
    mkdir -p "$work/$place"
    git archive HEAD | tar -x -C "$work/$place"
    (
        cd "$work/$place"
        "${CARGO:-cargo}" build --workspace --bins --profile "$profile" --locked --target-dir "$work/$place/target"
        packaging/build-packages.sh "target/$built" "$work/${place%%/*}.packages"
    )
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
