#!/bin/bash
# What packaging/test-deb.sh does inside of the clean root.
#
# usage: test-installed.sh MAJOR
set -euo pipefail
cd /
major=$1
repository=/var/backups/walkeep

step() { echo "== $*"; }
fail() {
    echo "test-installed: $*" >&2
    exit 1
}
is() { [ "$2" = "$3" ] || fail "$1 is \"$2\" instead of \"$3\""; }
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/var/lib/postgresql "$@"; }
query() { as_postgres psql -XAtq -p "${port:-5432}" -c "$1"; }
wait_for() { # QUERY ANSWER
    local answer
    for _ in $(seq 600); do
        answer=$(query "$1")
        [ "$answer" != "$2" ] || return 0
        sleep 0.1
    done
    fail "\"$1\" still answers \"$answer\" instead of \"$2\""
}
# Nothing has to be downloaded: the root has what the package depends on.
apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null; }

step "install"
before=$(find /etc/systemd/system /etc/postgresql | sort)
apt_get install --no-install-recommends /previous.deb
is "what is enabled and configured" "$(find /etc/systemd/system /etc/postgresql | sort)" "$before"
is "the mode of the configuration" "$(stat -c '%a %U:%G' /etc/walkeep/walkeep.toml)" "640 root:postgres"
for directory in /run/walkeep /var/spool/walkeep; do
    is "the mode of $directory" "$(stat -c '%a %U:%G' $directory)" "700 postgres:postgres"
done
if as_postgres basebackup list 2>/tmp/said; then fail "list works without a repository"; fi
grep -q 'Add a line to "/etc/walkeep/walkeep.toml"' /tmp/said || fail "$(cat /tmp/said)"

step "archive and take"
# A disk of its own: a repository on that of the database is what "check" is there to refuse.
mkdir -p $repository
mount -t tmpfs -o mode=700 tmpfs $repository
chown postgres:postgres $repository
echo "repository = \"file://$repository\"" >>/etc/walkeep/walkeep.toml
as_postgres pg_conftool "$major" main set listen_addresses ''
pg_ctlcluster "$major" main start
query "alter system set archive_mode = on"
query "alter system set archive_command = 'archive-push %p'"
pg_ctlcluster "$major" main restart
query "create table t as select generate_series(1, 1000) as i"
as_postgres psql -Xq -v ON_ERROR_STOP=1 -f /usr/share/doc/walkeep/examples/create-role.sql
echo "walkeep postgres walkeep" >>"/etc/postgresql/$major/main/pg_ident.conf"
sed -i '1i local all walkeep peer map=walkeep' "/etc/postgresql/$major/main/pg_hba.conf"
pg_ctlcluster "$major" main reload
as_postgres basebackup take --server "$major/main" -U walkeep
as_postgres basebackup check --server "$major/main"

step "upgrade while PostgreSQL archives"
started=$(query "select pg_postmaster_start_time()")
archived=$(query "select archived_count from pg_stat_archiver")
touch /tmp/writing
while [ -e /tmp/writing ]; do query "insert into t select 0; select pg_switch_wal()" >/dev/null; done &
load=$!
wait_for "select archived_count > $archived + 3 from pg_stat_archiver" t
apt_get install --no-install-recommends /package.deb
archived=$(query "select archived_count from pg_stat_archiver")
wait_for "select archived_count > $archived + 3 from pg_stat_archiver" t
# It ends by itself, after its last insert: a row that came later would be one too many below.
rm /tmp/writing
wait $load || fail "the last insert failed"
is "how often archiving failed" "$(query "select failed_count from pg_stat_archiver")" 0
is "the server's start" "$(query "select pg_postmaster_start_time()")" "$started"
is "the mode of the configuration" "$(stat -c '%a %U:%G' /etc/walkeep/walkeep.toml)" "640 root:postgres"
grep -q "^repository = " /etc/walkeep/walkeep.toml || fail "the configuration was replaced"

step "restore"
rows=$(query "select count(*) from t")
last=$(query "select pg_walfile_name(pg_switch_wal())")
wait_for "select last_archived_wal >= '$last' from pg_stat_archiver" t
as_postgres basebackup restore latest --to-cluster "$major/restored" --target-action promote
pg_ctlcluster "$major" restored start
port=$(pg_lsclusters -h | awk '$2 == "restored" { print $3 }')
wait_for "select pg_is_in_recovery()" f
is "the rows that came back" "$(query "select count(*) from t")" "$rows"
pg_ctlcluster "$major" restored stop -m fast
port=

if [ -d /run/systemd/system ]; then
    step "units"
    mkdir -p /var/lib/prometheus/node-exporter
    for service in /usr/lib/systemd/system/walkeep-*@.service; do
        timer=${service%.service}.timer
        is "what systemd says of $service" \
            "$(systemd-analyze verify --man=no "${service/@/@$major-main}" "${timer/@/@$major-main}" 2>&1)" ""
        systemd-analyze security --offline=true --threshold=19 "$service" >/tmp/said || fail "$(cat /tmp/said)"
    done
    echo "retention.keep_full = 1" >>/etc/walkeep/walkeep.toml
    for unit in backup drill expire status; do
        systemctl start "walkeep-$unit@$major-main.service" ||
            fail "$(journalctl --no-pager --unit "walkeep-$unit@$major-main.service")"
    done
    for record in drills expire; do
        compgen -G "$repository/main/*/$record/*.json" >/dev/null || fail "there is nothing in $record/"
    done
    # The first one has gone, the one that the unit took is there.
    is "the number of backups" "$(find $repository/main/*/base -name backup.json | wc -l)" 1
    grep -q '^walkeep_' "/var/lib/prometheus/node-exporter/walkeep-$major-main.prom" || fail "there are no metrics"
    systemctl enable --now --quiet "walkeep-backup@$major-main.timer"
    is "the timer" "$(systemctl is-active "walkeep-backup@$major-main.timer")" active
fi

step "remove"
objects=$(find $repository | wc -l)
install -m 600 /dev/null /etc/walkeep/repository.key
install -d -o postgres /var/spool/walkeep/mine
apt_get remove walkeep
[ ! -e /usr/bin/archive-push ] || fail "archive-push is still there"
[ -f /etc/walkeep/walkeep.toml ] || fail "the configuration went with the package"
if [ -d /run/systemd/system ]; then
    is "the timer" "$(systemctl is-active "walkeep-backup@$major-main.timer")" inactive
fi
step "purge"
apt_get purge walkeep
[ ! -e /etc/walkeep/walkeep.toml ] || fail "the configuration is still there"
[ -f /etc/walkeep/repository.key ] || fail "a key was removed"
links=$(find /etc/systemd/system -name 'walkeep-*')
is "what is left of timers" "$links" ""
is "what is left in the spool" "$(ls /var/spool/walkeep)" mine
is "the number of objects" "$(find $repository | wc -l)" "$objects"
echo "passed"
