#!/bin/bash
# Installs what the tests need on Debian 12 and is not there yet: PostgreSQL, a one-machine Ceph as the S3 server, an S3
# server that ignores conditional puts, an Azure emulator, and programs of Prometheus. The Rust toolchain is the only thing
# taken for granted.
#
# usage: packaging/setup.sh [test|versions|demo|packages]
# "versions" adds what unpacking other majors needs, "demo" leaves out everything `make demo` does without, "packages" is
# what `make packages` needs.
#
# Debian's packages need root or sudo; the rest goes to the directory `packaging/tools.sh` names. A machine that has
# everything is left alone, without a look at the network.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}
tools=$(packaging/tools.sh)

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# One line per program: its path or name, then the package that brings it.
programs() {
    cat <<'LIST'
cc gcc libc6-dev
make make
LIST
    case $what in
        test | packages) cat <<'LIST' ;;
dpkg-shlibdeps dpkg-dev
rpmbuild rpm
LIST
    esac
    [ "$what" != packages ] || return 0
    cat <<'LIST'
initdb postgresql postgresql-contrib
psql postgresql-client
zstd zstd
LIST
    [ "$what" != versions ] || echo ensurepip python3 python3-venv
    [ "$what" = demo ] || cat <<'LIST'
radosgw radosgw
ceph-mon ceph-mon
ceph-osd ceph-osd
ceph ceph-common
curl curl
openssl openssl
strace strace
faketime faketime
setpriv util-linux
patchelf patchelf
file file
xz xz-utils
node nodejs
npm npm
lintian lintian
rpmlint rpmlint
cpio cpio
mandoc mandoc
mmdebstrap mmdebstrap
LIST
}

present() {
    case $1 in
        initdb) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ;;
        ensurepip) /usr/bin/python3 -c 'import ensurepip' 2>/dev/null ;;
        *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
    esac
}

missing=()
while read -r program packages; do
    # shellcheck disable=SC2206  # several packages may stand on one line
    present "$program" || missing+=($packages)
done < <(programs)

if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    # Debian creates and starts a cluster on port 5432 with the server's package: not on a machine that only runs tests.
    no_cluster=/etc/postgresql-common/createcluster.d/walkeep-test.conf
    if ! present initdb; then
        as_root mkdir -p "$(dirname $no_cluster)"
        echo 'create_main_cluster = false' | as_root tee $no_cluster >/dev/null
        trap 'as_root rm -f $no_cluster' EXIT
    fi
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
fi
case $what in demo | packages) exit 0 ;; esac

installed() { # NAME VERSION
    grep -qs "\"version\": \"$2\"" "$tools/npm/node_modules/$1/package.json"
}
if ! installed s3rver 3.7.1 || ! installed azurite 3.37.0; then
    echo "setup: installing s3rver and azurite into $tools/npm"
    mkdir -p "$tools/npm"
    npm install --prefix "$tools/npm" --no-audit --no-fund --no-save --no-package-lock --loglevel=error \
        s3rver@3.7.1 azurite@3.37.0
fi

# Out of Debian's packages of Prometheus only two programs are needed, and no service that starts by itself.
unpack() ( # PACKAGE PROGRAM
    [ ! -x "$tools/$(basename "$2")" ] || exit 0
    echo "setup: unpacking $2 of $1 into $tools"
    directory=$(mktemp -d)
    trap 'rm -rf "$directory"' EXIT
    cd "$directory"
    download() { apt-get -q -o APT::Sandbox::User=root download "$1"; }
    download "$1" || { as_root apt-get -q -o DPkg::Lock::Timeout=300 update && download "$1"; }
    dpkg -x "$1"_*.deb .
    mkdir -p "$tools"
    install -m 0755 "./$2" "$tools"
)
unpack prometheus usr/bin/promtool
unpack prometheus-node-exporter usr/bin/prometheus-node-exporter
