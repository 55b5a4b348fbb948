#!/bin/bash
# Makes a clean Debian with its PostgreSQL, once, and prints the archive it is kept in. Needs root.
#
# usage: packaging/clean-root.sh bookworm|trixie
#
# One with systemd, as on a host, and one without, as in a container.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=$1
case $suite in
    bookworm) packages=postgresql-15,systemd-standalone-tmpfiles ;;
    trixie) packages=postgresql-17,systemd ;;
esac
roots=$(packaging/tools.sh)/roots
# The number changes with what is in it.
archive=$roots/$suite-1.tar
mkdir -p "$roots"
exec 9>"$roots/.$suite.lock"
flock 9
if [ ! -f "$archive" ]; then
    echo "clean-root: making a root of Debian $suite" >&2
    trap 'rm -f "$archive.tmp"' EXIT
    mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt='Acquire::Check-Valid-Until "false"' \
        --format=tar "$suite" "$archive.tmp" >&2
    mv "$archive.tmp" "$archive"
fi
echo "$archive"
