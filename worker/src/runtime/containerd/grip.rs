//! What the guard does to containers on containerd. To kill it needs no engine: their control groups are enough.

use std::io;
use std::sync::Arc;

use super::engine::Engine;
use super::status::words;
use super::sweep::remove_all;
use super::{Place, groups};
use crate::runtime::container::guard::Grip;
use crate::runtime::container::labels::Owner;

/// On the containerd at `place`.
pub(in crate::runtime) fn grip(place: Place, owner: Owner) -> Box<dyn Grip> {
    Box::new(OnContainerd { place, owner })
}

struct OnContainerd {
    place: Place,
    owner: Owner,
}

impl OnContainerd {
    fn mortals(&self) -> String {
        format!("{}/mortal", groups::of_life(&self.owner))
    }
}

impl Grip for OnContainerd {
    fn mortal(&self) -> io::Result<Vec<String>> {
        Ok(groups::busy(&self.mortals()))
    }

    fn kill(&self, ids: &[String]) {
        ids.iter().for_each(|id| groups::kill(&format!("{}/{id}", self.mortals())));
    }

    fn remove_all(&self) -> io::Result<usize> {
        // Dead at once, whether containerd answers or not; the removal takes its time.
        groups::kill(&groups::of_life(&self.owner));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let engine = Engine::connect(self.place.clone()).await.map_err(io::Error::other)?;
            let engine = Arc::new(engine);
            let swept = remove_all(&engine, &self.owner).await.map_err(|status| io::Error::other(words(&status)))?;
            match swept.refused {
                0 => Ok(swept.containers),
                left => Err(io::Error::other(format!("{left} containers are not removed whole"))),
            }
        })
    }

    fn is_gone_for_good(&self) -> bool {
        self.place.socket.parent().is_some_and(|folder| !folder.exists())
    }
}
