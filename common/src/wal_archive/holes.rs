//! What a missing object means: the end of the archive, a hole in it, or that we look in the wrong place.
//!
//! PostgreSQL takes "not there" for the end of WAL and opens the database. So it is said only with evidence that this
//! is the cluster's archive, and only when nothing shows that the file must have existed.

use std::time::Duration;

use super::WalArchive;
use crate::error::{Error, Kind, Result};
use crate::repository::layout::WalObject;
use crate::store::{Folder, Listed};
use crate::wal::name::WalFileName;
use crate::wal::segment::{SegmentName, SegmentSize, Timeline, segment_start};

/// Parallel pushes land out of order: what looks like a hole may be closed a moment later.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// Why a file must have existed.
struct Evidence(String);

impl WalArchive {
    /// Says what it means that `name` is missing, after looking again where it would be a hole.
    ///
    /// # Errors
    /// `NotFound`: certainly not in the archive. `Hole`: it must have existed. `Refused`: nothing shows that this is the
    /// cluster's archive. `Unavailable`. It never returns `Ok(())` unless the file appeared in the meantime.
    pub async fn explain_missing(&self, name: WalFileName) -> Result<()> {
        let mut evidence = match self.evidence_of_hole(name).await {
            Ok(Some(evidence)) => evidence,
            Ok(None) => return Err(Error::new(Kind::NotFound, format!("\"{name}\" is not in the archive"))),
            // Listed, and not there when it was read: most likely it was stored between the two.
            Err(error) if error.kind() == Kind::Unavailable && self.is_there(name).await => return Ok(()),
            Err(error) => return Err(error),
        };
        for _ in 0..2 {
            tokio::time::sleep(SECOND_LOOK / 2).await;
            if self.store.head(&self.layout.wal(name)).await?.is_some() {
                return Ok(());
            }
            match self.evidence_of_hole(name).await {
                Ok(Some(found)) => evidence = found,
                Err(error) if error.kind() == Kind::Unavailable && self.is_there(name).await => return Ok(()),
                Err(error) => return Err(error),
                Ok(None) => return Err(Error::new(Kind::NotFound, format!("\"{name}\" is not in the archive"))),
            }
        }
        Err(Error::new(Kind::Hole, format!("\"{name}\" is missing in the archive although {}", evidence.0)).hint(
            "It may still be in pg_wal of the server that wrote it. To recover up to the hole: basebackup restore \
             --until-hole.",
        ))
    }

    /// Whether the object is there now, as far as can be told.
    async fn is_there(&self, name: WalFileName) -> bool {
        self.store.head(&self.layout.wal(name)).await.is_ok_and(|found| found.is_some())
    }

    async fn evidence_of_hole(&self, name: WalFileName) -> Result<Option<Evidence>> {
        let identity = self.identity().await?;
        let level = self.store.list_folder(&self.layout.wal_folder()).await?;
        self.refuse_listed(name, &level.objects)?;
        // Folders are no evidence: a local repository may have empty ones.
        if identity.is_none() && self.any_object(&level).await?.is_none() {
            return Err(self.wrong_place());
        }
        match name {
            WalFileName::Segment(segment) => {
                let later = self.later_segment(segment, &level.folders).await?;
                if let Some(later) = later {
                    return Ok(Some(Evidence(format!("the later \"{later}\" is there"))));
                }
                if !histories(&level.objects).any(|timeline| timeline > segment.timeline) {
                    return Ok(None);
                }
                let size = match identity.and_then(|identity| identity.segment_size) {
                    Some(size) => size,
                    None => self.size_of_any_segment(&level).await?,
                };
                self.needed_by_descendant(segment, size, &level.objects).await
            }
            WalFileName::History(timeline) if timeline > Timeline(1) => {
                self.later_timeline(timeline, &level.folders, &level.objects).await
            }
            // PostgreSQL asks for neither of the others.
            _ => Ok(None),
        }
    }

    fn wrong_place(&self) -> Error {
        Error::new(
            Kind::Refused,
            format!(
                "nothing of the cluster with system identifier {} is in \"{}/{}\"",
                self.layout.system_identifier(),
                self.store.location(),
                self.layout.folder()
            ),
        )
        .hint("Check \"repository\" and \"cluster\": this looks like the wrong place.")
    }

    /// A listing that shows the very object whose reading was answered by "not there": the store contradicts itself,
    /// or the object has just been stored. Either way it is not "certainly not in the archive".
    fn refuse_listed(&self, name: WalFileName, objects: &[Listed]) -> Result<()> {
        let key = self.layout.wal(name);
        if objects.iter().all(|object| object.key != key) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("object \"{}\" is listed, but the store says that it is not there", self.store.url_of(&key)),
        ))
    }

    /// Any object below `wal/`.
    async fn any_object(&self, level: &Folder) -> Result<Option<Listed>> {
        if let Some(object) = level.objects.first() {
            return Ok(Some(object.clone()));
        }
        for folder in &level.folders {
            let level = self.store.list_folder(&self.layout.wal_folder().join(folder.as_str())).await?;
            if let Some(object) = level.objects.into_iter().next() {
                return Ok(Some(object));
            }
        }
        Ok(None)
    }

    /// The cluster's segment size where `identity.json` does not have it: from the header of a segment.
    async fn size_of_any_segment(&self, level: &Folder) -> Result<SegmentSize> {
        for folder in level.folders.iter().rev() {
            let level = self.store.list_folder(&self.layout.wal_folder().join(folder.as_str())).await?;
            let Some(segment) = segments(&level.objects).next() else { continue };
            let header = self.header(WalFileName::Segment(segment)).await?;
            if let Some(size) = header.and_then(|header| header.segment_size) {
                return Ok(size);
            }
        }
        Err(Error::new(Kind::Refused, "the archive does not say how large the cluster's segments are")
            .hint("Archive a segment: archive-push writes identity.json with it."))
    }

    /// A later whole segment of the same timeline.
    async fn later_segment(&self, segment: SegmentName, folders: &[String]) -> Result<Option<SegmentName>> {
        let timeline = format!("{:08X}", segment.timeline.0);
        let own = format!("{timeline}{:08X}", segment.id);
        let candidates = folders.iter().filter(|folder| folder.starts_with(&timeline) && **folder >= own);
        for folder in candidates {
            let level = self.store.list_folder(&self.layout.wal_folder().join(folder.as_str())).await?;
            self.refuse_listed(WalFileName::Segment(segment), &level.objects)?;
            let later = segments(&level.objects).find(|&found| found.timeline == segment.timeline && found > segment);
            if later.is_some() {
                return Ok(later);
            }
        }
        Ok(None)
    }

    /// A history that leaves this segment's timeline at or after its end, or inside it while the child's own copy of
    /// the segment is missing too.
    async fn needed_by_descendant(
        &self,
        segment: SegmentName,
        size: SegmentSize,
        objects: &[Listed],
    ) -> Result<Option<Evidence>> {
        let Some(number) = segment.number(size) else { return Ok(None) };
        let (start, end) = (segment_start(number, size), segment_start(number + 1, size));
        let children = histories(objects).filter(|&timeline| timeline > segment.timeline);
        for timeline in children {
            let Some(history) = self.history(timeline).await? else { continue };
            let Some(left) = history.switch_point(segment.timeline) else { continue };
            if left >= end {
                return Ok(Some(Evidence(format!(
                    "timeline {timeline} left timeline {} at {left}, behind it",
                    segment.timeline
                ))));
            }
            if left > start {
                // The next timeline in line after ours begins with a copy of this segment.
                let child = history.ancestors().iter().map(|ancestor| ancestor.timeline);
                let child = child.chain([timeline]).find(|&next| next > segment.timeline).unwrap_or(timeline);
                let copy = WalFileName::Segment(SegmentName { timeline: child, ..segment });
                if self.store.head(&self.layout.wal(copy)).await?.is_none() {
                    return Ok(Some(Evidence(format!(
                        "timeline {child} begins inside it, and \"{copy}\" is missing too"
                    ))));
                }
            }
        }
        Ok(None)
    }

    /// Anything of this timeline or of a later one: then its history was written, and archived before.
    async fn later_timeline(
        &self,
        timeline: Timeline,
        folders: &[String],
        objects: &[Listed],
    ) -> Result<Option<Evidence>> {
        if let Some(later) = histories(objects).find(|&found| found > timeline) {
            return Ok(Some(Evidence(format!("the history of timeline {later} is there"))));
        }
        let first = format!("{:08X}", timeline.0);
        for folder in folders.iter().filter(|folder| folder.len() == 16 && **folder >= first) {
            // A folder of a local repository may be left over and empty.
            let level = self.store.list_folder(&self.layout.wal_folder().join(folder.as_str())).await?;
            let found = level.objects.iter().filter_map(|object| object.key.filename()).find_map(WalObject::parse);
            if let Some(object) = found {
                return Ok(Some(Evidence(format!("\"{}\" is there", object.name))));
            }
        }
        Ok(None)
    }
}

fn segments(objects: &[Listed]) -> impl Iterator<Item = SegmentName> {
    objects.iter().filter_map(|object| match WalObject::parse(object.key.filename()?)? {
        WalObject { name: WalFileName::Segment(name), kept_aside: None } => Some(name),
        _ => None,
    })
}

fn histories(objects: &[Listed]) -> impl Iterator<Item = Timeline> {
    objects.iter().filter_map(|object| match WalObject::parse(object.key.filename()?)? {
        WalObject { name: WalFileName::History(timeline), kept_aside: None } => Some(timeline),
        _ => None,
    })
}
