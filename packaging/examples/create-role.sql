-- The role that basebackup connects as: no superuser, no replication, no right on any table.
--
-- As a superuser, in the database that basebackup connects to (postgres, unless -d says otherwise):
--
--     psql -X -v ON_ERROR_STOP=1 -f create-role.sql
--     basebackup check -U walkeep
--
-- The files are still read as the operating system's user that runs PostgreSQL. To let that user connect as this role
-- without a password: in pg_hba.conf, before the other lines,   local  postgres  walkeep  peer map=walkeep
-- in pg_ident.conf                                              walkeep  postgres  walkeep

CREATE ROLE walkeep LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION;

-- Settings such as data_directory, the queue of WAL that waits to be archived, and who streams.
GRANT pg_monitor TO walkeep;

-- check: has a segment archived, and looks for it in the repository.
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO walkeep;

-- take: backup mode. PostgreSQL 15 renamed the functions.
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO walkeep;
        GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO walkeep;
    ELSE
        GRANT EXECUTE ON FUNCTION pg_catalog.pg_start_backup(text, boolean, boolean) TO walkeep;
        GRANT EXECUTE ON FUNCTION pg_catalog.pg_stop_backup(boolean, boolean) TO walkeep;
    END IF;
END
$$;
