//! stop-gap
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio_postgres::{Client, NoTls};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
#[derive(Debug)]
pub struct Session {
    client: Client,
    pub version: u32,
}
#[derive(Debug)]
pub struct Facts {
    pub in_recovery: bool,
    pub data_directory: PathBuf,
    pub block_size: u32,
    pub segment_blocks: u32,
    pub tablespaces: BTreeMap<u32, (String, PathBuf)>,
}
#[derive(Debug)]
pub struct Moment {
    pub lsn: Lsn,
    pub time: jiff::Timestamp,
    pub next_xid: u64,
    pub label: String,
    pub map: String,
}
fn e(x: tokio_postgres::Error) -> Error {
    Error::new(Kind::Unavailable, "sql").caused_by(x)
}
impl Session {
    pub async fn connect(host: &str, port: u16, user: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::Config::new()
            .host(host)
            .port(port)
            .user(user)
            .dbname("postgres")
            .connect(NoTls)
            .await
            .map_err(e)?;
        tokio::spawn(connection);
        let row = client.query_one("select current_setting('server_version_num')", &[]).await.map_err(e)?;
        let v: String = row.get(0);
        Ok(Self { client, version: v.parse().unwrap_or(0) })
    }
    pub async fn facts(&self) -> Result<Facts> {
        let r = self.client.query_one("select pg_is_in_recovery(), current_setting('data_directory'), current_setting('block_size'), (select setting from pg_settings where name='segment_size')", &[]).await.map_err(e)?;
        let rows = self.client.query("select oid, spcname::text, pg_tablespace_location(oid) from pg_tablespace where spcname not in ('pg_default','pg_global')", &[]).await.map_err(e)?;
        let bs: String = r.get(2);
        let ss: String = r.get(3);
        let dd: String = r.get(1);
        Ok(Facts {
            in_recovery: r.get(0),
            data_directory: dd.into(),
            block_size: bs.parse().unwrap_or(8192),
            segment_blocks: ss.parse().unwrap_or(131072),
            tablespaces: rows
                .iter()
                .map(|r| (r.get::<_, u32>(0), (r.get::<_, String>(1), PathBuf::from(r.get::<_, String>(2)))))
                .collect(),
        })
    }
    async fn clock(&self) -> Result<(jiff::Timestamp, u64)> {
        let r = self.client.query_one("select (extract(epoch from clock_timestamp())*1000000)::int8, pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await.map_err(e)?;
        let us: i64 = r.get(0);
        let x: String = r.get(1);
        Ok((jiff::Timestamp::from_microsecond(us).unwrap_or_default(), x.parse().unwrap_or(0)))
    }
    pub async fn start(&self, label: &str, fast: bool) -> Result<Moment> {
        let sql = if self.version >= 150000 {
            "select pg_backup_start($1,$2)::text"
        } else {
            "select pg_start_backup($1,$2,false)::text"
        };
        let r = self.client.query_one(sql, &[&label, &fast]).await.map_err(e)?;
        let (time, next_xid) = self.clock().await?;
        let l: String = r.get(0);
        Ok(Moment { lsn: l.parse().unwrap_or_default(), time, next_xid, label: String::new(), map: String::new() })
    }
    pub async fn stop(&self) -> Result<Moment> {
        let sql = if self.version >= 150000 {
            "select lsn::text, labelfile, spcmapfile from pg_backup_stop(false)"
        } else {
            "select lsn::text, labelfile, spcmapfile from pg_stop_backup(false,false)"
        };
        let r = self.client.query_one(sql, &[]).await.map_err(e)?;
        let (time, next_xid) = self.clock().await?;
        let l: String = r.get(0);
        Ok(Moment { lsn: l.parse().unwrap_or_default(), time, next_xid, label: r.get(1), map: r.get(2) })
    }
}
