#!/bin/bash
# Runs the scenario tests on every PostgreSQL major that can be had on this machine, oldest first, and says at the end
# which ran. Fails when a test does, or when a major that must be there (15, 17 and 18) is not.
#
# usage: packaging/test-all-versions.sh [MAJOR]...
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 13 14 15 16 17 18 19
passed=() failed=() absent=()

for major in "$@"; do
    if ! bindir=$(packaging/postgres-major.sh "$major"); then
        absent+=("$major")
        case $major in 15 | 17 | 18) failed+=("$major") ;; esac
        continue
    fi
    echo "== PostgreSQL $major: $bindir"
    if PG_BIN=$bindir "${CARGO:-cargo}" test --workspace --locked --test '*'; then
        passed+=("$major")
    else
        failed+=("$major")
    fi
done

echo "passed: ${passed[*]:-none}; failed: ${failed[*]:-none}; not to be had: ${absent[*]:-none}"
[ ${#failed[@]} -eq 0 ]
