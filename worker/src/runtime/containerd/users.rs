//! Whom a container runs as: names and numbers, by the image's own files.

use std::io;
use std::path::Path;

/// Numbers, as the kernel knows a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Further groups that the image's files put it in.
    pub(super) groups: Vec<u32>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("the image's users cannot be read")]
    Files(#[source] io::Error),
}

/// Largest file of users that is read.
const LARGEST: u64 = 4 << 20;

/// Whether the image's files are needed to know who this is.
pub(super) fn needs_files(user: &str) -> bool {
    !matches!(user, "" | "0:0")
}

/// Who `user` is (`name`, `uid`, `name:group`, `uid:gid`, or empty for root), by the files below `/`.
pub(super) fn by_files(user: &str) -> Result<User, UserError> {
    let text = |path: &str| match std::fs::symlink_metadata(path).and_then(|_| std::fs::File::open(Path::new(path))) {
        Ok(file) => {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, LARGEST), &mut text).map_err(UserError::Files)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(UserError::Files(error)),
    };
    find(user, &text("/etc/passwd")?, &text("/etc/group")?)
}

/// The same by the texts of both files.
fn find(user: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (name, wanted) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|parts| {
        let (uid, gid) = (parts.get(2)?.parse::<u32>().ok()?, parts.get(3)?.parse::<u32>().ok()?);
        (parts[0] == name || number == Some(uid)).then(|| (parts[0].to_owned(), uid, gid))
    });
    let (login, uid, gid) = match (entry, number) {
        (Some((login, uid, gid)), _) => (Some(login), uid, gid),
        // A number needs no entry.
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let gid_of = |parts: &Vec<&str>| parts.get(2)?.parse::<u32>().ok();
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        let named = groups().find(|parts| parts[0] == wanted).and_then(|parts| gid_of(&parts));
        let gid = named.or_else(|| wanted.parse().ok()).ok_or_else(|| UserError::NoGroup(wanted.to_owned()))?;
        return Ok(User { uid, gid, groups: Vec::new() });
    }
    let is_in = |parts: &Vec<&str>| {
        let members = parts.get(3).copied().unwrap_or_default();
        login.as_ref().is_some_and(|login| members.split(',').any(|member| member == login))
    };
    let mut more: Vec<u32> =
        groups().filter(is_in).filter_map(|parts| gid_of(&parts)).filter(|of| *of != gid).collect();
    more.sort_unstable();
    more.dedup();
    Ok(User { uid, gid, groups: more })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\njob:x:1000:1001:job:/home/job:/bin/sh\n";
    const GROUP: &str = "root:x:0:\njob:x:1001:\nwheel:x:10:root,job\naudio:x:29:job\n";

    #[test]
    fn a_user_is_a_name_or_a_number_with_or_without_a_group() {
        let who = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        for (text, expected) in [
            ("", who(0, 0, &[10])),
            ("root", who(0, 0, &[10])),
            ("job", who(1000, 1001, &[10, 29])),
            ("1000", who(1000, 1001, &[10, 29])),
            ("4242", who(4242, 0, &[])),
            ("job:audio", who(1000, 29, &[])),
            ("1000:4242", who(1000, 4242, &[])),
            ("4242:wheel", who(4242, 10, &[])),
            ("job:", who(1000, 1001, &[10, 29])),
        ] {
            assert_eq!(find(text, PASSWD, GROUP).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn whoever_the_image_does_not_know_is_refused() {
        assert!(matches!(find("nobody", PASSWD, GROUP), Err(UserError::NoUser(name)) if name == "nobody"));
        assert!(matches!(find("job:nobody", PASSWD, GROUP), Err(UserError::NoGroup(name)) if name == "nobody"));
        assert!(find("1000", "", "").is_ok(), "an image without users");
    }
}
