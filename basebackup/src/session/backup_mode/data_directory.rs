//! Whether the files on this host are those that the server of the session writes.
//!
//! The system identifier does not tell: a primary and its standbys share it, and so does every clone, often under the same
//! path on another host. Files of one cluster with the label of another would make a backup that looks sound and is not.
//! So `pg_control`, which the server's functions read from its own directory, is compared with the one here.

use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;
use walkeep_common::error::{Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::postgres::control::{ControlFile, read_bytes};

use super::super::server::{lsn, parse, unexpected};
use super::super::{Session, preflight};

/// How often a comparison is begun while the file is written. A busy standby writes it many times a second.
const ATTEMPTS: u32 = 100;
/// How often a server may differ: while it is being promoted, it knows before its file does.
const MISMATCHES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// `DB_IN_ARCHIVE_RECOVERY` and `DB_IN_PRODUCTION` (`DBState`, src/include/catalog/pg_control.h).
const STANDBY: u32 = 5;
const PRIMARY: u32 = 6;

/// What the server reads in its `pg_control`, and the state that it must be in for that.
const SQL: &str = "
    SELECT CASE WHEN pg_is_in_recovery() THEN 5 ELSE 6 END AS state, checkpoint_lsn::text, redo_lsn::text,
        extract(epoch FROM pg_control_last_modified)::int8 AS modified, min_recovery_end_lsn::text
    FROM pg_control_system(), pg_control_checkpoint(), pg_control_recovery()";

/// What of a `pg_control` is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    fixed: Fixed,
    modified: i64,
    min_recovery_point: Option<Lsn>,
}

/// What changes with a checkpoint only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fixed {
    state: u32,
    checkpoint: Lsn,
    redo: Lsn,
}

impl Facts {
    fn of(control: &ControlFile) -> Self {
        Self {
            fixed: Fixed { state: control.state, checkpoint: control.checkpoint, redo: control.redo },
            modified: control.modified,
            min_recovery_point: control.min_recovery_point,
        }
    }
}

/// What a comparison came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Same,
    /// What could be compared is the same; the file was written meanwhile.
    SameSoFar,
    Written,
    Other,
}

/// Compares what the server said with the file before and after.
fn compare(before: &Facts, server: &Facts, after: &Facts) -> Outcome {
    // Where it lies in the file of a version we do not know is not known.
    let min_recovery_point = server.min_recovery_point.filter(|_| before.min_recovery_point.is_some());
    let server = Facts { min_recovery_point, ..*server };
    if before.fixed != after.fixed {
        Outcome::Written
    } else if server.fixed != before.fixed {
        Outcome::Other
    } else if before != after {
        Outcome::SameSoFar
    } else if server == *before {
        Outcome::Same
    } else {
        Outcome::Other
    }
}

impl Session {
    /// Reads `pg_control` in `directory`, once it is known to be the server's own.
    ///
    /// # Errors
    /// `Invalid` if it is another server's; from the operating system; as any query.
    pub(super) async fn own_control_file(&self, directory: &Path) -> Result<Vec<u8>> {
        let mut mismatches = 0;
        let mut attempt = 1;
        loop {
            let (bytes, before) = read_bytes(directory)?;
            let server = self.control_facts().await;
            let (_, after) = read_bytes(directory)?;
            let (before, after) = (Facts::of(&before), Facts::of(&after));
            match server.map(|server| (compare(&before, &server, &after), server)) {
                Ok((Outcome::Same, _)) => return Ok(bytes),
                Ok((Outcome::SameSoFar, _)) if attempt >= ATTEMPTS => return Ok(bytes),
                Ok((Outcome::Other, server)) if mismatches >= MISMATCHES || attempt >= ATTEMPTS => {
                    return Err(
                        preflight::not_the_cluster(self.target(), directory).caused_by(difference(&server, &before))
                    );
                }
                Ok((Outcome::Other, _)) => mismatches += 1,
                Ok((Outcome::SameSoFar | Outcome::Written, _)) => {}
                // Early minor releases read the file while it is written, and find its checksum wrong.
                Err(error) if error.kind() == Kind::Unavailable || attempt >= ATTEMPTS => return Err(error),
                Err(_) => {}
            }
            attempt += 1;
            sleep(PAUSE).await;
        }
    }

    async fn control_facts(&self) -> Result<Facts> {
        let row = self.query_one("read the server's pg_control", SQL, &[]).await?;
        let read = || {
            let state: i32 = row.try_get("state")?;
            Ok(Facts {
                fixed: Fixed {
                    state: parse("state", &state.to_string(), |text| text.parse().ok())?,
                    checkpoint: lsn(&row, "checkpoint_lsn")?,
                    redo: lsn(&row, "redo_lsn")?,
                },
                modified: row.try_get("modified")?,
                min_recovery_point: Some(lsn(&row, "min_recovery_end_lsn")?),
            })
        };
        read().map_err(|error| unexpected(&error))
    }
}

fn difference(server: &Facts, here: &Facts) -> String {
    let role = |state| match state {
        STANDBY => "a standby's".to_owned(),
        PRIMARY => "a primary's".to_owned(),
        other => format!("of a server in state {other}"),
    };
    let (theirs, ours) = (server.fixed, here.fixed);
    if theirs.state != ours.state {
        return format!("its pg_control is {}, the directory's is {}", role(theirs.state), role(ours.state));
    }
    if theirs != ours {
        return format!("its latest checkpoint is at {}, the directory's at {}", theirs.checkpoint, ours.checkpoint);
    }
    "its pg_control was written at another time than the directory's".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: u32, checkpoint: u64, modified: i64, min_recovery_point: u64) -> Facts {
        let fixed = Fixed { state, checkpoint: Lsn(checkpoint), redo: Lsn(checkpoint - 1) };
        Facts { fixed, modified, min_recovery_point: Some(Lsn(min_recovery_point)) }
    }

    #[test]
    fn a_file_that_is_written_meanwhile_is_compared_as_far_as_that_goes() {
        let here = facts(STANDBY, 100, 1, 200);
        assert_eq!(compare(&here, &here, &here), Outcome::Same);
        let later = facts(STANDBY, 100, 2, 300);
        assert_eq!(compare(&here, &later, &later), Outcome::SameSoFar);
        let checkpoint = facts(STANDBY, 150, 2, 300);
        assert_eq!(compare(&here, &checkpoint, &checkpoint), Outcome::Written);
        assert_eq!(compare(&here, &checkpoint, &later), Outcome::Other);
    }

    #[test]
    fn another_server_differs_in_its_state_its_checkpoint_or_the_moment_of_its_last_write() {
        let here = facts(STANDBY, 100, 1, 200);
        for other in [
            facts(PRIMARY, 100, 1, 200),
            facts(STANDBY, 101, 1, 200),
            facts(STANDBY, 100, 2, 200),
            facts(STANDBY, 100, 1, 201),
        ] {
            assert_eq!(compare(&here, &other, &here), Outcome::Other, "{other:?}");
        }
        let unknown = Facts { min_recovery_point: None, ..here };
        assert_eq!(compare(&unknown, &here, &unknown), Outcome::Same);
    }
}
