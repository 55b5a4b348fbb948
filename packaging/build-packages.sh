#!/bin/bash
# Builds walkeep_VERSION_ARCHITECTURE.deb and walkeep-VERSION.ARCHITECTURE.rpm out of what cargo has built.
#
# usage: packaging/build-packages.sh BINARIES OUTPUT [REVISION]
#
# BINARIES holds the three programs and walkeep-manuals, as "cargo build --workspace --bins" leaves them.
# dpkg-deb and rpmbuild pack the same staged tree, so the two cannot differ in content, nothing has to be compiled for it
# but the manual pages, and the distributions' own tools find out what the programs depend on. The same sources give the
# same bytes: every time in the packages is SOURCE_DATE_EPOCH, the time of the last commit unless it is set.
# DEBFULLNAME and DEBEMAIL name who answers for the packages.
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=$(cd "$1" && pwd)
mkdir -p "$2"
output=$(cd "$2" && pwd)
revision=${3:-1}

version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
maintainer="${DEBFULLNAME:-The Walkeep contributors} <${DEBEMAIL:-walkeep@packages.invalid}>"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
mkdir "$work/binaries"
install --strip "$binaries"/{archive-push,archive-get,basebackup} "$work/binaries"
"$binaries/walkeep-manuals" "$work/manuals" "$(date --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%d)"

deb() {
    local root=$work/deb doc=$work/deb/usr/share/doc/walkeep architecture depends
    packaging/stage.sh deb "$work/binaries" "$work/manuals" "$root"
    printf 'walkeep (%s-%s) unstable; urgency=medium\n\n  * What has changed is in changelog.gz.\n\n -- %s  %s\n' \
        "$version" "$revision" "$maintainer" "$(date --date="@$SOURCE_DATE_EPOCH" -R)" |
        gzip -9n >"$doc/changelog.Debian.gz"
    mkdir "$root/DEBIAN"
    (cd "$root" && find etc usr -type f -not -path 'etc/*' -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    echo /etc/walkeep/walkeep.toml >"$root/DEBIAN/conffiles"
    install -m 755 packaging/deb/{postinst,prerm,postrm} "$root/DEBIAN"
    # dpkg-shlibdeps asks for a source package.
    mkdir -p "$work/debian"
    printf 'Source: walkeep\n\nPackage: walkeep\nArchitecture: any\n' >"$work/debian/control"
    depends=$(cd "$work" && dpkg-shlibdeps -O "$root"/usr/bin/* 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
    architecture=$(dpkg --print-architecture)
    sed -e "s/@VERSION@/$version-$revision/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@MAINTAINER@/$maintainer/" \
        -e "s/@DEPENDS@/$depends/" -e "s/@SIZE@/$(du -k -s --apparent-size "$root/usr" | cut -f 1)/" \
        packaging/deb/control >"$root/DEBIAN/control"
    find "$root/DEBIAN" "$doc" -exec touch --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group --build "$root" "$output/walkeep_$version-${revision}_$architecture.deb" >/dev/null
    echo "$output/walkeep_$version-${revision}_$architecture.deb"
}

rpm() {
    packaging/stage.sh rpm "$work/binaries" "$work/manuals" "$work/rpm"
    rpmbuild --quiet -bb --define "_topdir $work/rpmbuild" --define "_rpmdir $output" --define "_sourcedir $PWD" \
        --define "_rpmfilename %%{name}-%%{version}-%%{release}.%%{arch}.rpm" --define "_dbpath $work/rpmdb" \
        --define "staged $work/rpm" \
        --define "walkeep_version $version" --define "walkeep_revision $revision" \
        --define "walkeep_packager $maintainer" \
        --define "walkeep_date $(date --date="@$SOURCE_DATE_EPOCH" '+%a %b %d %Y')" packaging/rpm/walkeep.spec >&2
    echo "$output/walkeep-$version-$revision.$(uname -m).rpm"
}

deb
rpm
