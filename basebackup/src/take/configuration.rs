//! The server's configuration files that the data directory does not hold: kept with the backup.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use walkeep_common::cli::Severity;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{Configuration, StoredObject};
use walkeep_common::wal_object::encode::hexadecimal;

use super::{Job, finish, owner};
use crate::accounts::Accounts;
use crate::configuration::find::{Roots, find, resolve};
use crate::configuration::stored::{OBJECT, pack};

impl Job<'_> {
    /// Stores the files, if there are any. What cannot be read is warned of: the data is safe without it.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn store_configuration(&self) -> Result<Option<Configuration>> {
        let settings = &self.server.settings;
        // Before 15 the server tells them as they were given, ".." included.
        let plain = |path: &Option<PathBuf>| path.as_deref().map(|path| resolve(Path::new("/"), path));
        let [config_file, hba_file, ident_file] =
            [&settings.config_file, &settings.hba_file, &settings.ident_file].map(plain);
        let roots = Roots {
            config_file: config_file.as_deref(),
            hba_file: hba_file.as_deref(),
            ident_file: ident_file.as_deref(),
        };
        let found = find(roots, self.data_directory);
        for problem in &found.problems {
            let hint = "A restored server may need it: keep it by other means, or let this user read it.";
            self.reporter.print(Severity::Warning, problem, Some(hint));
        }
        if found.files.is_empty() {
            return Ok(None);
        }
        let accounts = Accounts::read();
        let bytes = pack(&found.files, |uid, gid| owner::named(&accounts, uid, gid))
            .map_err(|error| Error::new(Kind::Internal, "could not write the configuration files").caused_by(error))?;
        let object = StoredObject { size: bytes.len() as u64, sha256: hexadecimal(&Sha256::digest(&bytes)) };
        finish::put(self.archive, self.id, OBJECT, bytes.into()).await?;
        let text = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
        Ok(Some(Configuration {
            object,
            config_file: text(roots.config_file),
            hba_file: text(roots.hba_file),
            ident_file: text(roots.ident_file),
            files: found.files.iter().map(|file| file.path.display().to_string()).collect(),
        }))
    }
}
