// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the VMs of a host are called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::find::stem;

/// Returns a name for each daemon, none twice, out of the socket's path and of what the daemon says.
///
/// A daemon may say any name (`--name`), and one that a guest has taken over may say that of another:
/// what two say, and the name of another one's socket, count for none of them. Such a daemon is called
/// like its socket's file, and where two directories have the same one, by its whole path.
pub fn names<'a>(daemons: impl Iterator<Item = (&'a Path, Option<String>)>) -> Vec<String> {
    let daemons: Vec<_> = daemons
        .map(|(path, claim)| (path, stem(path), claim.filter(|claim| is_name(claim))))
        .collect();
    let paths: BTreeSet<_> = daemons.iter().map(|(path, ..)| path.to_string_lossy()).collect();
    let mut stems = BTreeMap::new();
    let mut claims = BTreeMap::new();
    for (_, stem, claim) in &daemons {
        *stems.entry(stem.clone()).or_insert(0_u32) += 1;
        *claims.entry(claim.clone()).or_insert(0_u32) += 1;
    }
    let name = |(path, stem, claim): (&Path, String, Option<String>)| {
        // A path is a name of last resort. Another one with a `/` is free: that of a pod is NAMESPACE/NAME.
        let is_free = |claim: &String| {
            *claim == stem || !stems.contains_key(claim) && !paths.contains(&**claim)
        };
        let alone = claims.get(&claim) == Some(&1) && claim.as_ref().is_some_and(is_free);
        let claim = claim.filter(|claim| alone && (*claim != stem || stems.get(&stem) == Some(&1)));
        let stem = Some(stem).filter(|stem| stems.get(stem) == Some(&1));
        claim.or(stem).unwrap_or_else(|| path.display().to_string())
    };
    daemons.into_iter().map(name).collect()
}

/// Whether a daemon can have this name: others could change what a terminal shows.
pub(super) fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(daemons: &[(&str, Option<&str>)]) -> Vec<String> {
        names(daemons.iter().map(|(path, claim)| (Path::new(*path), claim.map(str::to_owned))))
    }

    #[test]
    fn name_is_what_the_daemon_says() {
        let daemons = [("/r/a.ctl", Some("web")), ("/r/b.ctl", None), ("/r/c.ctl", Some("c"))];
        assert_eq!(of(&daemons), ["web", "b", "c"]);
    }

    #[test]
    fn name_that_no_daemon_has_counts_for_none() {
        let long = "x".repeat(256);
        for bad in ["", "a\u{1b}[2Jb", "a\nb", &long] {
            assert_eq!(of(&[("/r/a.ctl", Some(bad))]), ["a"], "{bad:?}");
        }
    }

    #[test]
    fn name_of_another_counts_for_none() {
        let daemons = [("/r/a.ctl", Some("b")), ("/r/b.ctl", Some("b")), ("/r/c.ctl", Some("b"))];
        assert_eq!(of(&daemons), ["a", "b", "c"]);
        let daemons = [("/r/a.ctl", Some("x")), ("/r/b.ctl", Some("x"))];
        assert_eq!(of(&daemons), ["a", "b"]);
        let daemons = [("/r/a.ctl", Some("/s/a.ctl")), ("/r/b.ctl", None), ("/s/a.ctl", None)];
        assert_eq!(of(&daemons), ["/r/a.ctl", "b", "/s/a.ctl"]);
        let daemons = [("/r/a.ctl", Some("x/1")), ("/s/a.ctl", Some("x/2"))];
        assert_eq!(of(&daemons), ["x/1", "x/2"]);
    }

    #[test]
    fn two_directories_may_have_the_same_file() {
        let daemons = [("/r/a.ctl", None), ("/s/a.ctl", None), ("/s/b.ctl", Some("a"))];
        assert_eq!(of(&daemons), ["/r/a.ctl", "/s/a.ctl", "b"]);
    }
}
