//! Which names of git remotes a job may have.

use crate::strict::InvalidTask;

const REMOTES: &str = "https://…, ssh://…, user@host:path or an absolute path";

/// Refuses what is no remote, what runs a program, and what holds a secret; of the last, nothing is repeated.
pub(crate) fn check(repository: &str) -> Result<(), InvalidTask> {
    let problem = |problem: String| Err(InvalidTask { field: "workload.repository".to_owned(), problem });
    let wrong = |allowed: &str| match repository.contains(['@', '?', '#']) {
        // What stands there may be a password.
        true => problem(format!("this is not allowed; allowed is {allowed}")),
        false => Err(InvalidTask::value("workload.repository", repository, allowed)),
    };
    if repository.is_empty() || repository.len() > 2_048 || repository.starts_with('-') {
        return wrong("a git remote");
    }
    if !repository.chars().all(|c| c.is_ascii_graphic()) {
        return wrong("a git remote without spaces");
    }
    // A helper such as `ext::sh -c …` runs a program of its choice.
    if repository.contains("::") {
        return wrong(REMOTES);
    }
    let Some((scheme, rest)) = repository.split_once("://") else {
        return if repository.starts_with('/') { Ok(()) } else { scp_like(repository) };
    };
    if scheme == "file" {
        return if rest.starts_with('/') { Ok(()) } else { wrong(REMOTES) };
    }
    let is_ssh = scheme == "ssh";
    if !is_ssh && !["https", "http"].contains(&scheme) {
        return wrong(REMOTES);
    }
    if rest.contains(['?', '#']) {
        return problem(format!("a query or a fragment is not allowed in a URL; {OURS}"));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
    match user {
        Some(user) if is_ssh && user.contains(':') => {
            return problem(format!("a password is not allowed in a URL; {OURS}"));
        }
        Some(_) if !is_ssh => return problem(format!("a user or a password is not allowed in a URL; {OURS}")),
        Some(_) | None => {}
    }
    if user.is_some_and(|user| user.is_empty() || user.starts_with('-')) || place.starts_with('-') {
        return wrong("a URL whose user and host do not begin with `-`");
    }
    let (host, port) = place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port)));
    if host.is_empty() {
        return wrong("a git remote with a host");
    }
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    match port {
        Some(port) if !is_port(port) => {
            // What is no number may be a password.
            let shown = Some(port).filter(|port| port.len() < 16 && port.bytes().all(|b| b.is_ascii_digit()));
            let shown = shown.filter(|port| !port.is_empty()).map_or("this".to_owned(), |port| format!("`{port}`"));
            problem(format!("{shown} is no port; allowed is 1 to 65535"))
        }
        Some(_) | None => Ok(()),
    }
}

const OURS: &str = "the worker has the credentials";

/// `user@host:path`
fn scp_like(repository: &str) -> Result<(), InvalidTask> {
    let problem = |problem: String| Err(InvalidTask { field: "workload.repository".to_owned(), problem });
    let Some((place, path)) =
        repository.split_once(':').filter(|(place, path)| !place.contains('/') && !path.is_empty())
    else {
        return problem(format!("this is not allowed; allowed is {REMOTES}"));
    };
    // `user:password@host:path`
    if path.split('/').next().is_some_and(|first| first.contains('@')) {
        return problem(format!("a password is not allowed in it; {OURS}"));
    }
    let (user, host) = place.rsplit_once('@').map_or((None, place), |(user, host)| (Some(user), host));
    if host.is_empty() || user.is_some_and(str::is_empty) {
        return problem("this is not allowed; allowed is a git remote with a host".to_owned());
    }
    // An option of ssh, or of what it runs.
    if host.starts_with('-') || path.starts_with('-') {
        return problem("a host or a path that begins with `-` is not allowed".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_that_run_programs_or_hold_passwords_are_refused() {
        for good in [
            "https://host/a.git",
            "https://host:8443/a",
            "http://host/a",
            "ssh://git@host:22/a",
            "ssh://host/a",
            "git@host:a/b.git",
            "host:a",
            "/srv/a.git",
            "file:///srv/a",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "",
            "-u",
            "a b",
            "ext::sh",
            "fd::3",
            "a",
            "./a",
            "../a",
            "https://",
            "https://:443/a",
            "https://u:s3cr3t@host/a",
            "https://s3cr3t@host/a",
            "https://host/a?token=s3cr3t",
            "https://host?s3cr3t",
            "https://host/a#s3cr3t",
            "ssh://u:s3cr3t@host/a",
            "ssh://-oProxyCommand=x/a",
            "ssh://git@-oProxyCommand=x/a",
            "ssh://host/a?token=s3cr3t",
            "git@-oProxyCommand=x:foo",
            "-oProxyCommand=x:foo",
            "git@host:-oProxyCommand=x",
            "u:s3cr3t@host:path",
            "https://host:99999/a",
            "https://host:0/a",
            "https://host:/a",
            "ssh://git@host:x/a",
            "ftp://u:s3cr3t@host/a",
            "ftp://host/a",
            "file://host/a",
        ] {
            let error = check(bad).expect_err(bad);
            assert_eq!(error.field, "workload.repository");
            assert!(!error.to_string().contains("s3cr3t"), "{error}");
        }
        assert!(check("https://host:99999/a").unwrap_err().problem.contains("`99999` is no port"));
    }
}
