#!/bin/bash
# Puts every file of the package where it belongs, below a directory: the one list of contents, for both formats.
#
# usage: packaging/stage.sh deb|rpm BINARIES MANUALS ROOT
#
# BINARIES holds the three programs as they are shipped, MANUALS what walkeep-manuals makes. Owners, and the mode of what is not for
# everybody, are said by the package's own metadata. SOURCE_DATE_EPOCH is the time of every file.
set -euo pipefail
cd "$(dirname "$0")/.."
format=$1 binaries=$2 manuals=$3 root=$4
doc=$root/usr/share/doc/walkeep
umask 022

file() { install -D -m 644 "$@"; }
compressed() { # FROM TO
    install -d "$(dirname "$2")"
    gzip -9nc "$1" >"$2"
}

for program in archive-push archive-get basebackup; do
    install -D -m 755 "$binaries/$program" "$root/usr/bin/$program"
done
install -D -m 640 packaging/walkeep.toml "$root/etc/walkeep/walkeep.toml"

units=$root/usr/lib/systemd/system
for service in packaging/systemd/*.service; do
    file "$service" -t "$units"
    # Each is whole as installed; what is the same for all stands in one place here.
    cat packaging/systemd/hardening >>"$units/$(basename "$service")"
done
file packaging/systemd/*.timer -t "$units"
file packaging/walkeep.tmpfiles "$root/usr/lib/tmpfiles.d/walkeep.conf"

for page in "$manuals"/man/man*/*; do
    compressed "$page" "$root/usr/share/man/$(basename "$(dirname "$page")")/$(basename "$page").gz"
done
case $format in
    deb) zsh=vendor-completions ;;
    rpm) zsh=site-functions ;;
esac
file "$manuals"/completions/bash/* -t "$root/usr/share/bash-completion/completions"
file "$manuals"/completions/zsh/* -t "$root/usr/share/zsh/$zsh"
file "$manuals"/completions/fish/* -t "$root/usr/share/fish/vendor_completions.d"

file README.md common/FORMAT.md -t "$doc"
compressed CHANGELOG.md "$doc/changelog.gz"
file "$manuals/walkeep.cdx.json" -t "$doc"
compressed "$manuals/third-party-licenses.txt" "$doc/third-party-licenses.txt.gz"
for directory in examples guides; do
    [ -d "packaging/$directory" ] || continue
    (cd packaging && find "$directory" -type f -print0) | while IFS= read -r -d '' path; do
        file "packaging/$path" "$doc/$path"
    done
done
# Links as they are there; figures of the benchmark stay with the sources.
sed -i -e 's,](packaging/,](,g' -e 's,](common/,](,g' -e 's,\[\([^]]*\)\](bench/[^)]*),\1,g' "$doc/README.md"
sed -i 's,](\.\./\.\./\(common/\)\?,](../,g' "$doc"/guides/*.md

case $format in
    deb)
        file packaging/deb/copyright -t "$doc"
        file packaging/deb/lintian-overrides "$root/usr/share/lintian/overrides/walkeep"
        ;;
    rpm)
        file LICENSE LICENSE-APACHE LICENSE-MIT -t "$root/usr/share/licenses/walkeep"
        file packaging/rpm/walkeep.sysusers "$root/usr/lib/sysusers.d/walkeep.conf"
        ;;
esac
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
