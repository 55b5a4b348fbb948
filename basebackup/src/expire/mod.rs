//! `basebackup expire` and `delete`: what no policy, no pin and no kept backup needs is removed, and nothing else.
//!
//! What there is ([`mod@gather`]), what is kept ([`policy`]), what goes ([`mod@plan`], [`wal`]): the latter two are pure. Then it is
//! printed, recorded ([`walkeep_common::repository::expire`]), and done ([`mod@execute`]).

pub mod execute;
pub mod gather;
pub mod plan;
pub mod policy;
#[cfg(test)]
mod tests;
mod text;
pub mod wal;

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::config::{Config, Retention, parse_count};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::retry::Patience;
use walkeep_common::wal_archive::WalArchive;

use self::execute::{Done, execute};
use self::gather::{Present, gather};
use self::plan::{Plan, Wish, plan};
use crate::catalog::archives;
use crate::output::{Format, print, print_json};
use crate::pins::{Pins, cluster_of};

/// An outage shorter than this costs nothing but time.
const PATIENCE: Patience = Patience::For(Duration::from_secs(5 * 60));
/// Objects that were not deleted, of which the reasons are told.
const SHOWN: usize = 10;

/// Options of `basebackup expire`.
#[derive(Debug, Clone, Args)]
pub struct ExpireArgs {
    /// Keep the newest so many backups, and every moment since the oldest of them
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_full: Option<u32>,
    /// Keep every moment of the last so many days
    #[arg(long, value_name = "DAYS", value_parser = parse_count)]
    pub keep_days: Option<u32>,
    /// Keep the newest backup of each of the last so many days that have one (UTC)
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_daily: Option<u32>,
    /// The same of weeks
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_weekly: Option<u32>,
    /// The same of months
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_monthly: Option<u32>,
    /// The same of years
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_yearly: Option<u32>,
    /// Remove all that is left of a cluster that is no more, but for pinned backups; nothing else is done
    #[arg(long, value_name = "SYSTEM IDENTIFIER")]
    pub forget_system: Option<u64>,
    /// How to go about it.
    #[command(flatten)]
    pub removal: RemovalArgs,
}

/// Options of `basebackup delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// The backup's id
    #[arg(value_name = "ID")]
    pub backup: BackupId,
    /// How to go about it.
    #[command(flatten)]
    pub removal: RemovalArgs,
}

/// How something is removed.
#[derive(Debug, Clone, Args)]
pub struct RemovalArgs {
    /// Print what would be removed, and why the rest is kept, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Remove it in spite of what should be looked at first
    #[arg(long)]
    pub force: bool,
    /// Run as root all the same
    #[arg(long)]
    pub allow_root: bool,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// One cluster: what there is, and what is to be done about it.
struct Part {
    archive: WalArchive,
    present: Present,
    plan: Plan,
    done: Option<Done>,
}

/// Removes what the policy does not keep, of every cluster of this name.
///
/// # Errors
/// `Usage` without a policy; `Refused` where somebody should look first, or if nothing may be deleted; `NotFound`;
/// `Unavailable`.
pub async fn expire(args: &ExpireArgs, config: &Config, reporter: Reporter) -> Result<()> {
    let policy = args.policy().or(config.retention);
    if policy.is_empty() && args.forget_system.is_none() {
        return Err(Error::new(Kind::Usage, "no retention is configured: nothing says what to keep").hint(
            "Say for example --keep-days 30, or write keep_days = 30 into the section [retention] of the configuration.",
        ));
    }
    let wish = if args.forget_system.is_some() { Wish::Forget } else { Wish::Policy(policy) };
    let now = Timestamp::now();
    let mut parts = Vec::new();
    for archive in archives(config, args.forget_system, PATIENCE).await? {
        parts.push(Part::make(archive, &wish, now).await?);
    }
    for part in parts.iter_mut().filter(|_| wish == Wish::Forget) {
        part.doubt_the_newest(config).await?;
    }
    carry_out(parts, &args.removal, reporter, now).await
}

/// Removes one backup. WAL that only it needed goes with the next run of `expire`.
///
/// # Errors
/// `NotFound`, `Refused` where it is pinned, or somebody should look first; `Unavailable`.
pub async fn delete(args: &DeleteArgs, config: &Config, reporter: Reporter) -> Result<()> {
    let now = Timestamp::now();
    let archive = find(&args.backup, config).await?;
    if Pins::load(&archive).await?.pinned(now).contains(&args.backup) {
        let id = &args.backup;
        return Err(Error::new(Kind::Refused, format!("backup {id} is pinned"))
            .hint(format!("If it really is to go: basebackup unpin {id}")));
    }
    let part = Part::make(archive, &Wish::Delete(args.backup.clone()), now).await?;
    if part.plan.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("base backup {} was never completed", args.backup))
            .hint("What is left of it goes with basebackup expire, two days after it was last added to."));
    }
    carry_out(vec![part], &args.removal, reporter, now).await
}

/// The cluster of a backup, also of one whose record cannot be read.
async fn find(backup: &BackupId, config: &Config) -> Result<WalArchive> {
    match cluster_of(backup, config).await {
        Err(error) if error.kind() == Kind::Damaged => {}
        found => return found.map(|archive| archive.with_patience(PATIENCE)),
    }
    for archive in archives(config, None, PATIENCE).await? {
        if !archive.store().list(&archive.layout().backup_folder(backup)).await?.is_empty() {
            return Ok(archive);
        }
    }
    Err(Error::new(Kind::NotFound, format!("there is no base backup {backup}")))
}

async fn carry_out(mut parts: Vec<Part>, args: &RemovalArgs, reporter: Reporter, now: Timestamp) -> Result<()> {
    if args.format == Format::Text {
        print(&parts.iter().map(|part| text::plan(&part.plan)).collect::<Vec<_>>().join("\n"))?;
    }
    let doubts: Vec<&String> = parts.iter().flat_map(|part| &part.plan.doubts).collect();
    let result = match doubts.as_slice() {
        _ if args.dry_run => Ok(()),
        [first, more @ ..] if !args.force && parts.iter().any(|part| !part.plan.is_empty()) => {
            let more = if more.is_empty() { String::new() } else { format!(" (and {} more)", more.len()) };
            Err(Error::new(Kind::Refused, format!("nothing was removed: {first}{more}"))
                .hint("Look at it with --dry-run. If all of this really is to go, say --force."))
        }
        _ => do_it(&mut parts, args, now).await,
    };
    if args.format == Format::Json {
        print_json(&text::json(parts.iter().map(|part| (&part.plan, part.done.as_ref())), args.dry_run))?;
    }
    for done in parts.iter().filter_map(|part| part.done.as_ref()) {
        warn(done, reporter);
    }
    result
}

async fn do_it(parts: &mut [Part], args: &RemovalArgs, now: Timestamp) -> Result<()> {
    for part in parts {
        if part.plan.is_empty() {
            continue;
        }
        let done = execute(&part.archive, &part.present, &part.plan, now).await?;
        if args.format == Format::Text {
            print(&text::done(&part.plan, &done))?;
        }
        let first = done.refused.iter().find(|undeleted| !undeleted.is_protected);
        let nothing = first.filter(|_| done.objects == 0).map(|undeleted| undeleted.error.to_string());
        part.done = Some(done);
        if let Some(first) = nothing {
            return Err(Error::new(Kind::Refused, format!("nothing could be deleted: {first}"))
                .hint("These credentials may not delete."));
        }
    }
    Ok(())
}

fn warn(done: &Done, reporter: Reporter) {
    for id in &done.completed {
        reporter.print(Severity::Warning, &format!("backup {id} was completed meanwhile and stays"), None);
    }
    for undeleted in done.refused.iter().take(SHOWN) {
        reporter.print(Severity::Warning, &undeleted.error.to_string(), None);
    }
    if !done.refused.is_empty() {
        let message = format!("{} objects were not deleted", done.refused.len());
        reporter.print(Severity::Warning, &message, Some("The next run tries them again."));
    }
}

impl ExpireArgs {
    fn policy(&self) -> Retention {
        Retention {
            keep_full: self.keep_full,
            keep_days: self.keep_days,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
        }
    }
}

impl Part {
    async fn make(archive: WalArchive, wish: &Wish, now: Timestamp) -> Result<Self> {
        let present = gather(&archive, now).await?;
        let plan = plan(&present, wish, now);
        Ok(Self { archive, present, plan, done: None })
    }

    /// A cluster that is to be forgotten should have been followed by another.
    async fn doubt_the_newest(&mut self, config: &Config) -> Result<()> {
        for other in archives(config, None, PATIENCE).await? {
            let folder = other.layout().folder().clone();
            let is_other = other.layout().system_identifier() != self.present.system_identifier;
            let listed = if is_other { other.store().list(&folder).await? } else { Vec::new() };
            if listed.iter().map(|object| object.modified).max() > self.present.newest() {
                return Ok(());
            }
        }
        self.plan.doubts.push("no other cluster in the repository has anything newer than this one".to_owned());
        Ok(())
    }
}
