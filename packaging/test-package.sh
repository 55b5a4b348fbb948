#!/bin/bash
# Runs the scenario tests against the programs of the package that `make packages` has built.
#
# usage: packaging/test-package.sh [TEST]...
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(packaging/tools.sh)
package=(target/packages/walkeep_*.deb)
if [ ${#package[@]} != 1 ] || [ ! -f "${package[0]}" ]; then
    echo "test-package: expected one .deb in target/packages: run \"make packages\"" >&2
    exit 1
fi
installed=$tools/installed
rm -rf "$installed"
mkdir -p "$installed"
dpkg-deb -x "${package[0]}" "$installed"
echo "test-package: ${package[0]}"
WALKEEP_BINARIES=$installed/usr/bin "${CARGO:-cargo}" test --package walkeep-tests --test main --locked -- "$@"
