#!/bin/bash
# Shows the point of it all: a table is dropped, and comes back as it was the moment before.
#
# Runs a throwaway PostgreSQL below /tmp as an unprivileged user, and takes everything away again, whatever happens.
# The repository is a directory there, or what DEMO_REPOSITORY names ("s3://bucket/prefix", with credentials and
# settings in the environment as in production); what is stored in that one stays.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$(cd "${WALKEEP_BINARIES:-target/release}" && pwd)
for program in archive-push archive-get basebackup; do
    [ -x "$programs/$program" ] || { echo "demo: no $program in $programs: run \"make build\" first" >&2; exit 1; }
done

# PostgreSQL refuses to run as root, and so does whatever writes a repository.
as_operator() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --init-groups "$@"
    else
        "$@"
    fi
}

demo=$(mktemp -d /tmp/walkeep-demo.XXXXXX)
chmod 755 "$demo"
load=
clean_up() {
    [ -z "$load" ] || kill "$load" 2>/dev/null || true
    for data in "$demo/restored" "$demo/data"; do
        if [ -f "$data/postmaster.pid" ]; then as_operator pg_ctl -s -D "$data" -m immediate stop || true; fi
    done
    rm -rf "$demo"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

mkdir "$demo/bin"
# Below /root the user `postgres` could not run them.
cp "$programs"/{archive-push,archive-get,basebackup} "$demo/bin/"
[ "$(id -u)" != 0 ] || chown -R postgres: "$demo"

postgres_programs=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
export PATH=$demo/bin:$postgres_programs:$PATH
export PGHOST=$demo PGPORT=5432 PGUSER=postgres PGDATABASE=postgres TZ=UTC HOME=$demo
export WALKEEP_CONFIG=$demo/walkeep.toml XDG_STATE_HOME=$demo/state
unset PGOPTIONS PGSERVICE PGPASSWORD PGDATA WALKEEP_BINARIES
cd "$demo"

step() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
# Prints a command line and runs it as printed.
run() {
    printf '$ %s\n' "$1"
    as_operator bash -c "$1"
}
query() { as_operator psql -XAtq -c "$1"; }

if [ -n "${DEMO_REPOSITORY:-}" ]; then
    repository=$DEMO_REPOSITORY
else
    repository=file://$demo/repository
    as_operator mkdir "$demo/repository"
fi

step "A new PostgreSQL, $("$postgres_programs/postgres" --version)"
run "initdb -D data -U postgres -A trust -k >/dev/null"

step "Walkeep's whole configuration, and the two lines PostgreSQL needs"
run "echo 'repository = \"$repository\"' >walkeep.toml"
as_operator tee -a data/postgresql.conf >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '$demo'
CONF
run "cat >>data/postgresql.conf <<'END'
archive_mode = on
archive_command = '$demo/bin/archive-push %p'
END"
run "pg_ctl -s -D data -l log start"

step "A base backup, taken while the database is busy"
run "pgbench -q -i -s 10 >/dev/null 2>&1"
printf '$ pgbench -c 2 -T 60 &\n'
as_operator pgbench -c 2 -T 60 >/dev/null 2>&1 &
load=$!
run "basebackup take"
kill "$load" 2>/dev/null || true
wait "$load" 2>/dev/null || true
load=
run "basebackup list"

step "Work goes on after the backup: its WAL is all we will have of it"
run "psql -qc \"create table orders as select n as id, md5(n::text) as item from generate_series(1, 100000) as n\""
run "psql -c \"select count(*), max(id) from orders\""
before=$(query "select count(*) || ' ' || md5(string_agg(item, '' order by id)) from orders")
moment=$(query "select clock_timestamp()")

step "$moment. And then somebody does this"
run "psql -c \"drop table orders\""
last=$(query "select pg_walfile_name(pg_current_wal_insert_lsn())")
query "select pg_switch_wal()" >/dev/null
for _ in $(seq 300); do
    [ "$(query "select last_archived_wal >= '$last' from pg_stat_archiver")" != t ] || break
    sleep 0.1
done

step "Back to the moment before, into a new directory, beside the running server"
run "basebackup restore latest -D $demo/restored --target-time \"$moment\""
run "pg_ctl -s -w -D restored -l restored.log -o '-p 5433' start"
export PGPORT=5433
# The server answers as soon as it is consistent, and goes on to the target meanwhile.
for _ in $(seq 300); do
    [ "$(query "select pg_is_wal_replay_paused()")" != t ] || break
    sleep 0.1
done
run "psql -p 5433 -qc \"select pg_last_xact_replay_timestamp() as last_transaction, pg_get_wal_replay_pause_state() as replay\""

step "It waits there for a look; this opens it for writing"
run "psql -p 5433 -qAtc \"select pg_wal_replay_resume()\""
for _ in $(seq 300); do
    [ "$(query "select pg_is_in_recovery()")" != f ] || break
    sleep 0.1
done
run "psql -p 5433 -c \"select count(*), max(id) from orders\""
after=$(query "select count(*) || ' ' || md5(string_agg(item, '' order by id)) from orders")
if [ "$before" != "$after" ]; then
    echo "demo: the rows differ: before \"$before\", after \"$after\"" >&2
    exit 1
fi

run "psql -p 5433 -c \"insert into orders values (100001, 'written after the disaster') returning *\""
printf '\nThe table is back, row by row as it was.\n'
[ -z "${DEMO_REPOSITORY:-}" ] || echo "The demo's objects stay in $DEMO_REPOSITORY."
