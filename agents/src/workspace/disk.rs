//! The disk budget: what is idle longest goes first.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::{Hold, Inner, Mirror, Trouble, WorkspaceError, blocking, clean};

/// Something idle, out of everybody's reach already.
enum Idle {
    Slot(Hold),
    Mirror,
}

impl Inner {
    /// Removes idle slots and mirrors until the rest fits. Running jobs are never touched: if they alone fill the budget,
    /// there is no room for another. For one who has a permit and no slot yet, or no more.
    pub(super) async fn make_room(self: &Arc<Self>) -> Result<(), WorkspaceError> {
        let evicting = Arc::new(self.evicting.clone().lock_owned().await);
        self.weigh_mirrors().await?;
        loop {
            let (used, oldest) = self.oldest();
            let most = self.settings.disk_bytes;
            if used <= most {
                return Ok(());
            }
            let Some((idle, path, bytes)) = oldest else {
                (self.settings.tell)(Trouble::OverBudget { bytes: used, most });
                return Err(WorkspaceError::NoRoom { bytes: used, most });
            };
            let (inner, gone, evicting) = (self.clone(), path.clone(), evicting.clone());
            // Goes on to its end though this is dropped; whoever is next waits for it.
            let removed = blocking(move || {
                let _evicting = evicting;
                let removed = clean::remove(&gone, &inner.root.join("pits/evicted"));
                if let Idle::Slot(hold) = idle {
                    inner.note(hold.number, Default::default());
                }
                removed
            });
            removed.await.map_err(WorkspaceError::folder(&path))?;
            (self.settings.tell)(Trouble::Evicted { path, bytes });
        }
    }

    /// Mirrors of earlier processes, and broken ones, are known by their folders only.
    async fn weigh_mirrors(self: &Arc<Self>) -> Result<(), WorkspaceError> {
        let inner = self.clone();
        let weigh = move || {
            for entry in std::fs::read_dir(inner.root.join("mirrors"))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let made = || Arc::new(Mirror::new(name.clone(), entry.path()));
                let mirror = inner.book().mirrors.entry(name.clone()).or_insert_with(made).clone();
                let unknown = mirror.tally.lock().unwrap_or_else(PoisonError::into_inner).1 == 0;
                if unknown {
                    let bytes = clean::bytes(&mirror.path);
                    let mut tally = mirror.tally.lock().unwrap_or_else(PoisonError::into_inner);
                    *tally = (if name.contains(".broken-") { 0 } else { tally.0 }, bytes);
                }
            }
            Ok(())
        };
        blocking(weigh).await.map_err(WorkspaceError::folder(&self.root))
    }

    /// All bytes; and what goes first, if that is more than allowed.
    fn oldest(self: &Arc<Self>) -> (u64, Option<(Idle, PathBuf, u64)>) {
        let mut book = self.book();
        let tally = |mirror: &Mirror| *mirror.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let used = book.slots.iter().map(|place| place.state.bytes).sum::<u64>()
            + book.mirrors.values().map(|mirror| tally(mirror).1).sum::<u64>();
        if used <= self.settings.disk_bytes {
            return (used, None);
        }
        let idle = book.slots.iter().enumerate().filter(|(_, place)| !place.busy && place.state.bytes > 0);
        let slot = idle.map(|(number, place)| (place.state.used, number)).min();
        // Slots borrow a mirror's objects: while one does, it stays. The idle ones go before it.
        let lent = |mirror: &Mirror| book.slots.iter().any(|place| place.state.mirror.as_ref() == Some(&mirror.name));
        let idle = book.mirrors.values().filter(|mirror| tally(mirror).1 > 0 && !lent(mirror));
        let mirror = idle.min_by_key(|mirror| tally(mirror).0).cloned();
        match (slot, mirror) {
            (Some((at, number)), mirror) if mirror.as_ref().is_none_or(|mirror| at <= tally(mirror).0) => {
                book.slots[number].busy = true;
                let bytes = book.slots[number].state.bytes;
                let hold = Hold { inner: self.clone(), number, permit: None };
                (used, Some((Idle::Slot(hold), self.root.join(format!("slots/{number}")), bytes)))
            }
            (_, Some(mirror)) => {
                // Renamed while the book is held: who wants it from now on makes it anew.
                let mut gone = mirror.path.clone().into_os_string();
                gone.push(format!(".broken-evicted-{}", super::now()));
                let gone = PathBuf::from(gone);
                let renamed = std::fs::rename(&mirror.path, &gone).is_ok();
                let bytes = std::mem::take(&mut mirror.tally.lock().unwrap_or_else(PoisonError::into_inner).1);
                if mirror.name.contains(".broken-") {
                    book.mirrors.remove(&mirror.name);
                }
                (used, Some((Idle::Mirror, if renamed { gone } else { mirror.path.clone() }, bytes)))
            }
            (_, None) => (used, None),
        }
    }
}
