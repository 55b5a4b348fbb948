#!/bin/bash
# Installs the RPM beside no account of PostgreSQL's, uses it, upgrades it while PostgreSQL archives, and erases it. Needs
# root; leaves nothing behind.
#
# usage: packaging/test-rpm.sh PREVIOUS.rpm PACKAGE.rpm
#
# The root is a clean Debian's, for there is no other here: rpm does all of its work in it, scriptlets included, but
# dependencies on packages are not looked at.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# = 2 ]; then
    archive=$(packaging/clean-root.sh bookworm)
    root=$(mktemp -d /var/tmp/walkeep-root.XXXXXX)
    # What is mounted below it is mounted in namespaces that have ended by then, and nothing else may ever be reached.
    trap 'rm -rf --one-file-system "$root"' EXIT
    tar -x -f "$archive" -C "$root"
    cp "$1" "$root/previous.rpm"
    cp "$2" "$root/package.rpm"
    # No network, and no process survives.
    unshare --mount --pid --net --ipc --fork --kill-child "$0" "$root"
    exit
fi
root=$1
mount -t proc proc "$root/proc"
# Devices of its own: nothing here has a way to those of the host.
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    mknod -m 666 "$root/dev/$device" c $((0x$(stat -c %t /dev/$device))) $((0x$(stat -c %T /dev/$device)))
done
mkdir -m 1777 "$root/dev/shm"

step() { echo "== $*"; }
fail() {
    echo "test-rpm: $*" >&2
    exit 1
}
is() { [ "$2" = "$3" ] || fail "$1 is \"$2\" instead of \"$3\""; }
rpm_in_root() { rpm --root "$root" --dbpath /var/lib/rpm "$@"; }
bin=/usr/lib/postgresql/15/bin data=/var/lib/pgsql/15/data repository=/var/backups/walkeep
inside() { chroot "$root" /usr/bin/env -i PATH=$bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC "$@"; }
as_postgres() { inside setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/var/lib/pgsql PGHOST=/tmp "$@"; }
query() { as_postgres psql -XAtq -d postgres -c "$1"; }
wait_for() { # QUERY ANSWER
    local answer
    for _ in $(seq 600); do
        answer=$(query "$1" 2>&1 || true)
        [ "$answer" != "$2" ] || return 0
        sleep 0.1
    done
    fail "\"$1\" still answers \"$answer\" instead of \"$2\""
}

step "install"
inside userdel postgres 2>/dev/null
# Debian's name for the number that distributions with rpm have given to postgres.
inside groupdel tape
rpm_in_root --initdb
rpm_in_root -i --force-debian --nodeps "$root/previous.rpm"
is "the account" "$(inside id -u postgres):$(inside id -gn postgres)" "26:postgres"
is "the mode of the configuration" "$(inside stat -c '%a %U:%G' /etc/walkeep/walkeep.toml)" "640 root:postgres"
for directory in /run/walkeep /var/spool/walkeep; do
    is "the mode of $directory" "$(inside stat -c '%a %U:%G' $directory)" "700 postgres:postgres"
done
is "what rpm finds changed" "$(rpm_in_root -V --nodeps walkeep)" ""

step "archive and take"
inside install -d -o postgres -g postgres -m 700 /var/lib/pgsql /var/lib/pgsql/15 $data $repository
echo "repository = \"file://$repository\"" >>"$root/etc/walkeep/walkeep.toml"
as_postgres initdb --no-sync -D $data >/dev/null
cat >>"$root$data/postgresql.conf" <<'SETTINGS'
unix_socket_directories = '/tmp'
listen_addresses = ''
archive_mode = on
archive_command = 'archive-push %p'
SETTINGS
as_postgres pg_ctl -D $data -l /tmp/log -w start >/dev/null
query "create table t as select generate_series(1, 1000) as i"
as_postgres basebackup take

step "upgrade while PostgreSQL archives"
archived=$(query "select archived_count from pg_stat_archiver")
touch "$root/tmp/writing"
while [ -e "$root/tmp/writing" ]; do query "insert into t select 0; select pg_switch_wal()" >/dev/null; done &
load=$!
wait_for "select archived_count > $archived + 3 from pg_stat_archiver" t
rpm_in_root -U --force-debian --nodeps "$root/package.rpm"
archived=$(query "select archived_count from pg_stat_archiver")
wait_for "select archived_count > $archived + 3 from pg_stat_archiver" t
# It ends by itself, after its last insert: a row that came later would be one too many below.
rm "$root/tmp/writing"
wait $load || fail "the last insert failed"
is "how often archiving failed" "$(query "select failed_count from pg_stat_archiver")" 0
is "the packages" "$(rpm_in_root -q walkeep | wc -l)" 1
grep -q "^repository = " "$root/etc/walkeep/walkeep.toml" || fail "the configuration was replaced"

step "restore"
rows=$(query "select count(*) from t")
last=$(query "select pg_walfile_name(pg_switch_wal())")
wait_for "select last_archived_wal >= '$last' from pg_stat_archiver" t
as_postgres pg_ctl -D $data -m fast -w stop >/dev/null
as_postgres basebackup restore latest -D /var/lib/pgsql/15/restored --target-action promote
as_postgres pg_ctl -D /var/lib/pgsql/15/restored -l /tmp/log -w start >/dev/null
wait_for "select pg_is_in_recovery()" f
is "the rows that came back" "$(query "select count(*) from t")" "$rows"
as_postgres pg_ctl -D /var/lib/pgsql/15/restored -m fast -w stop >/dev/null

step "erase"
objects=$(find "$root$repository" | wc -l)
inside install -m 600 /dev/null /etc/walkeep/repository.key
rpm_in_root -e --nodeps walkeep
[ ! -e "$root/usr/bin/archive-push" ] || fail "archive-push is still there"
grep -q "^repository = " "$root/etc/walkeep/walkeep.toml.rpmsave" || fail "the configuration is gone"
[ -f "$root/etc/walkeep/repository.key" ] || fail "a key was removed"
is "the number of objects" "$(find "$root$repository" | wc -l)" "$objects"
is "the account" "$(inside id -u postgres)" 26
echo "passed"
