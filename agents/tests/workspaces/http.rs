//! A remote that wants a login, behind the real `git http-backend`.

use schemas::Code;
use shoal_agents::git::{Login, Pushed};
use shoal_agents::secret::{Mask, Secret};
use shoal_agents::workspace::Remote;

use crate::host::Host;
use crate::support::{BRANCH, Origin, Worker, allowed, executable, order, want, write};

const TOKEN: &str = "tok-8f2e1c";

async fn host(origin: &Origin) -> Host {
    Host::of(origin.folder.path(), "shoal", TOKEN).await
}

fn remote(host: &Host, token: Option<&str>) -> Remote {
    let login = token.map(|token| Login { user: "shoal".to_owned(), token: Secret::new(token.to_owned()).into() });
    Remote { url: format!("{}/origin.git", host.url), login, mask: Mask::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_by_askpass_fetches_and_pushes_and_the_token_is_nowhere() {
    let origin = Origin::new();
    let host = host(&origin).await;
    // What git is started with.
    let program = origin.folder.path().join("git");
    let seen = origin.folder.path().join("seen");
    executable(&program, &format!("#!/bin/sh\necho \"$@\" >> {0}\nexec git \"$@\"\n", seen.display()));
    let worker = Worker::with(Default::default(), shoal_agents::git::Settings { program, ..allowed() }).await;
    let (mut slot, fetched) = worker.begin(&remote(&host, Some(TOKEN))).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    assert_eq!(slot.push(&order).await.unwrap(), Pushed::Done);
    assert_eq!(origin.show(BRANCH, "new"), "x");
    assert!(!host.logins().is_empty());
    assert!(!std::fs::read_to_string(seen).unwrap().contains(TOKEN), "in no argument");
    let found = std::process::Command::new("grep").args(["-r", "-l", TOKEN]).arg(worker.root.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "in no file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_or_missing_is_told_without_the_token() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let host = host(&origin).await;
    for token in [Some("tok-wrong-1"), None] {
        let mut slot = worker.all.take(&remote(&host, token)).await.unwrap();
        let error = slot.fetch(&want()).await.unwrap_err().to_task_error();
        assert_eq!((error.code, error.retryable), (Code::GitLoginRefused, false), "{error:?}");
        assert!(!error.message.contains("tok-wrong-1"), "{error:?}");
    }
    let none = Remote { url: format!("{}/none.git", host.url), ..remote(&host, Some(TOKEN)) };
    let mut slot = worker.all.take(&none).await.unwrap();
    assert_eq!(slot.fetch(&want()).await.unwrap_err().to_task_error().code, Code::RepositoryNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_given_to_its_own_host_alone() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let thief = host(&origin).await;
    let host = Host::elsewhere(&thief.url).await;
    let mut slot = worker.all.take(&remote(&host, Some(TOKEN))).await.unwrap();
    let error = slot.fetch(&want()).await.unwrap_err().to_task_error();
    assert_eq!(error.code, Code::GitLoginRefused, "{error:?}");
    assert!(thief.logins().is_empty(), "redirected, nobody answers");
}
