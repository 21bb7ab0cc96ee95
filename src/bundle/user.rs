//! Who runs in a container: the PodSpec's numbers, the image's `USER`, and the image's own `/etc/passwd` and
//! `/etc/group`, which are read as text: nothing here asks the machine's user data base.

use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeSet;

/// Why a container's user cannot be told: the container waits with `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// `runAsNonRoot` and `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy ({0})")]
    RunAsUserIsRoot(Place),
    /// `runAsNonRoot` and an image that runs as root.
    #[error("container has runAsNonRoot and image will run as root ({0})")]
    ImageIsRoot(Place),
    /// `runAsNonRoot` and an image that names its user.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root ({place})"
    )]
    NotNumeric { user: String, place: Place },
    /// `runAsNonRoot` and a number that is no user ID.
    #[error("container has runAsNonRoot and image has an invalid user id ({id}) ({place})")]
    InvalidImageUser { id: String, place: Place },
    /// A number of the PodSpec that is no ID.
    #[error("{field}: {value} is not an ID between 0 and 2147483647")]
    Id { field: &'static str, value: i64 },
    /// The image's `USER` names nobody in its `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// The image's `USER` names no group of its `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// The pod and container of a message, as kubelet writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pod: String,
    container: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod: {:?}, container: {}", self.pod, self.container)
    }
}

/// Who runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary group IDs, sorted, with `gid` among them: else a program with the set-group-ID bit could shed it,
    /// and an empty list would leave the agent's own groups.
    pub groups: Vec<u32>,
    /// Home folder; `/` when the image's `/etc/passwd` knows none.
    pub home: String,
}

/// One line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// One line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let gid = number(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// An ID in one of the image's files. To the kernel the largest number is none: asked to become it, a process stays who
/// it is, which is root.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// An ID as Kubernetes admits it.
fn id(field: &'static str, value: i64) -> Result<u32, Error> {
    u32::try_from(value).ok().filter(|v| *v <= i32::MAX as u32).ok_or(Error::Id { field, value })
}

/// Tells who runs in `container`. `image_user` is the image's `USER` (`""`, `uid`, `name`, `uid:gid`, `name:group`,
/// …), `passwd` and `group` the texts of its `/etc/passwd` and `/etc/group` (empty when it has none).
///
/// The image's group counts when the PodSpec sets neither user nor group; the kubelet drops it and runs as group 0,
/// which is more than the image asked for.
///
/// # Errors
/// Any of [`Error`].
pub fn resolve(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<ResolvedUser, Error> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let run_as_user = own.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user));
    let run_as_group = own.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group));
    let non_root = own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root));
    let (image_user, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (image_user, None),
    };
    if non_root == Some(true) {
        verify_non_root(run_as_user, image_user, &place(pod, container))?;
    }

    let account = match run_as_user {
        Some(uid) => {
            let uid = id("runAsUser", uid)?;
            accounts(passwd).find(|a| a.uid == uid).ok_or(uid)
        }
        None if image_user.is_empty() => accounts(passwd).find(|a| a.uid == 0).ok_or(0),
        // A number is a number, as containerd has it: an account of that name would get around runAsNonRoot.
        None => match (image_user.parse::<u32>(), accounts(passwd).find(|a| a.name == image_user)) {
            (Ok(uid), _) if uid <= i32::MAX as u32 => accounts(passwd).find(|a| a.uid == uid).ok_or(uid),
            (_, Some(account)) => Ok(account),
            (_, None) => return Err(Error::NoUser(image_user.to_owned())),
        },
    };
    let gid = match (run_as_group, image_group.filter(|_| run_as_user.is_none())) {
        (Some(gid), _) => id("runAsGroup", gid)?,
        (None, Some(name)) => match (groups(group).find(|g| g.name == name), name.parse::<u32>()) {
            (Some(found), _) => found.gid,
            (None, Ok(gid)) if gid <= i32::MAX as u32 => gid,
            (None, _) => return Err(Error::NoGroup(name.to_owned())),
        },
        (None, None) => account.as_ref().map_or(0, |a| a.gid),
    };

    let mut extra = BTreeSet::new();
    let strict = of_pod.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    if let (Ok(account), false) = (&account, strict) {
        let member = |g: &Group<'_>| g.members.split(',').any(|m| m == account.name);
        extra.extend(groups(group).filter(member).map(|g| g.gid));
    }
    for value in of_pod.and_then(|c| c.supplemental_groups.as_ref()).into_iter().flatten() {
        extra.insert(id("supplementalGroups", *value)?);
    }
    if let Some(value) = of_pod.and_then(|c| c.fs_group) {
        extra.insert(id("fsGroup", value)?);
    }
    extra.insert(gid);
    let home = account.as_ref().ok().map(|a| a.home).filter(|h| h.starts_with('/') && !h.contains('\0'));
    Ok(ResolvedUser {
        uid: account.as_ref().map_or_else(|uid| *uid, |a| a.uid),
        gid,
        groups: extra.into_iter().collect(),
        home: home.unwrap_or("/").to_owned(),
    })
}

fn place(pod: &Pod, container: &Container) -> Place {
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    let meta = &pod.metadata;
    Place {
        pod: format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid)),
        container: container.name.clone(),
    }
}

fn verify_non_root(run_as_user: Option<i64>, image_user: &str, place: &Place) -> Result<(), Error> {
    let place = || place.clone();
    match run_as_user {
        Some(0) => return Err(Error::RunAsUserIsRoot(place())),
        Some(_) => return Ok(()),
        None => {}
    }
    match image_user.parse::<i64>() {
        _ if image_user.is_empty() => Err(Error::ImageIsRoot(place())),
        Ok(0) => Err(Error::ImageIsRoot(place())),
        Ok(n) if n < 0 || n > i64::from(i32::MAX) => Err(Error::InvalidImageUser { id: n.to_string(), place: place() }),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::NotNumeric { user: image_user.to_owned(), place: place() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:line\nweb:x:33:33:www:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\ntape:x:26:web,root\nlogs:x:40:web\n";

    fn run(pod: serde_json::Value, own: serde_json::Value, image: &str) -> Result<ResolvedUser, Error> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "c", "securityContext": own}], "securityContext": pod}
        }))
        .expect("pod");
        resolve(&pod, &pod.spec.as_ref().expect("spec").containers[0], image, PASSWD, GROUP)
    }

    fn user(image: &str) -> Result<(u32, u32, Vec<u32>, String), Error> {
        let u = run(serde_json::json!({}), serde_json::json!({}), image)?;
        Ok((u.uid, u.gid, u.groups, u.home))
    }

    #[test]
    fn image_users() {
        assert_eq!(user(""), Ok((0, 0, vec![0, 26], "/root".into())));
        assert_eq!(user("web"), Ok((33, 33, vec![26, 33, 40], "/var/www".into())));
        assert_eq!(user("33"), Ok((33, 33, vec![26, 33, 40], "/var/www".into())));
        assert_eq!(user("1000"), Ok((1000, 0, vec![0], "/".into())));
        assert_eq!(user("1000:2000"), Ok((1000, 2000, vec![2000], "/".into())));
        assert_eq!(user("web:tape"), Ok((33, 26, vec![26, 40], "/var/www".into())));
        assert_eq!(user("web:"), user("web"));
        assert_eq!(user("nobody"), Err(Error::NoUser("nobody".into())));
        assert_eq!(user("web:none"), Err(Error::NoGroup("none".into())));
        assert_eq!(user("-1"), Err(Error::NoUser("-1".into())));
        assert_eq!(user("4294967295"), Err(Error::NoUser("4294967295".into())));
    }

    #[test]
    fn an_account_that_would_stay_root_is_none() {
        for passwd in ["evil:x:4294967295:7::/:\n", "evil:x:7:4294967295::/:\n"] {
            assert_eq!(accounts(passwd).count(), 0, "{passwd}");
        }
        assert_eq!(accounts("odd:x:4294967294:4294967294::/:\n").count(), 1);
        assert_eq!(groups("evil:x:4294967295:\n").count(), 0);
    }

    #[test]
    fn the_pod_spec_wins() {
        let both = serde_json::json!({"runAsUser": 1, "runAsGroup": 2, "supplementalGroups": [9, 3], "fsGroup": 4});
        let got = run(both, serde_json::json!({"runAsUser": 7}), "web:tape").expect("user");
        assert_eq!((got.uid, got.gid, got.groups), (7, 2, vec![2, 3, 4, 9]));
        let strict = serde_json::json!({"supplementalGroupsPolicy": "Strict", "supplementalGroups": [5]});
        assert_eq!(run(strict, serde_json::json!({}), "web").expect("user").groups, [5, 33]);
        let bad = run(serde_json::json!({"runAsUser": -1}), serde_json::json!({}), "");
        assert_eq!(bad, Err(Error::Id { field: "runAsUser", value: -1 }));
    }

    #[test]
    fn non_root_messages() {
        let text =
            |own: serde_json::Value, image: &str| match run(serde_json::json!({"runAsNonRoot": true}), own, image) {
                Ok(user) => format!("uid {}", user.uid),
                Err(e) => e.to_string(),
            };
        let end = r#"(pod: "p_d(u)", container: c)"#;
        let none = || serde_json::json!({});
        assert_eq!(
            text(serde_json::json!({"runAsUser": 0}), "33"),
            format!("container's runAsUser breaks non-root policy {end}")
        );
        assert_eq!(text(none(), ""), format!("container has runAsNonRoot and image will run as root {end}"));
        assert_eq!(text(none(), "0:5"), format!("container has runAsNonRoot and image will run as root {end}"));
        assert_eq!(
            text(none(), "web"),
            format!(
                "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root {end}"
            )
        );
        assert_eq!(
            text(none(), "-5"),
            format!("container has runAsNonRoot and image has an invalid user id (-5) {end}")
        );
        assert_eq!(text(none(), "33"), "uid 33");
        assert_eq!(text(serde_json::json!({"runAsUser": 5}), "web"), "uid 5");
        assert_eq!(text(serde_json::json!({"runAsNonRoot": false}), ""), "uid 0");
    }

    proptest! {
        #[test]
        fn never_panics(image in "\\PC{0,20}", passwd in "[a-z0-9:,\n#]{0,80}", group in "[a-z0-9:,\n#]{0,80}") {
            let pod = Pod::default();
            let _ = resolve(&pod, &Container::default(), &image, &passwd, &group);
        }
    }
}
