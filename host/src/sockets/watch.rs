// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notices sockets that come and go.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::pattern::places;

/// What happens to sockets in a directory, and to the directory.
const IN_DIR: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What happens above a directory that does not exist.
const ABOVE: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// Waits for changes in directories, without a timer ([inotify](https://man7.org/linux/man-pages/man7/inotify.7.html)).
///
/// An event only says that something changed: what there is now says [`super::find()`]. So it does not
/// matter if the kernel drops events, which it does when too many wait.
#[derive(Debug)]
pub struct Watch {
    dirs: Vec<PathBuf>,
    /// What is noticed in them.
    what: WatchFlags,
    events: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches `dirs`, and for one that does not exist the nearest directory above it.
    ///
    /// # Errors
    /// If the kernel gives no more watches (`fs.inotify.max_user_instances`), or a directory cannot be read.
    pub fn new(dirs: &[PathBuf]) -> io::Result<Self> {
        Self::of(dirs, IN_DIR)
    }

    /// The same, and also what is written into files there.
    ///
    /// # Errors
    /// As for [`Watch::new`].
    pub fn with_writes(dirs: &[PathBuf]) -> io::Result<Self> {
        Self::of(dirs, IN_DIR.union(WatchFlags::CLOSE_WRITE))
    }

    fn of(dirs: &[PathBuf], what: WatchFlags) -> io::Result<Self> {
        Ok(Self { dirs: dirs.to_vec(), what, events: watched(dirs, what)? })
    }

    /// Waits until something was made or removed in one of the directories since this was created, or
    /// since the last call returned.
    ///
    /// # Errors
    /// As for [`Watch::new`].
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            let Ok(moved) = ready.try_io(|events| read(events.get_ref())) else { continue };
            if moved? {
                // Watches of a directory end with it, and one that is there now needs one of its own.
                self.events = watched(&self.dirs, self.what)?;
            }
            return Ok(());
        }
    }
}

/// Takes all events that wait, and says whether one of them is about a directory that is watched, or
/// one below it.
fn read(events: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    let (mut any, mut moved) = (false, false);
    loop {
        match reader.next() {
            Ok(event) => {
                any = true;
                let end = inotify::ReadFlags::IGNORED
                    | inotify::ReadFlags::DELETE_SELF
                    | inotify::ReadFlags::MOVE_SELF
                    | inotify::ReadFlags::UNMOUNT
                    | inotify::ReadFlags::QUEUE_OVERFLOW
                    | inotify::ReadFlags::ISDIR;
                moved |= event.events().intersects(end);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if any => return Ok(moved),
            Err(error) => return Err(error.into()),
        }
    }
}

fn watched(dirs: &[PathBuf], what: WatchFlags) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for pattern in dirs {
        let mut now = places(pattern)?;
        loop {
            for dir in &now.dirs {
                watch(&events, dir, what)?;
            }
            for dir in &now.above {
                watch(&events, dir, ABOVE)?;
            }
            // One may have been made before the one above it was watched.
            let then = std::mem::replace(&mut now, places(pattern)?);
            if now == then {
                break;
            }
        }
    }
    // SAFETY: an `OwnedFd` gives the same descriptor until it is dropped, and that is open until then.
    Ok(unsafe { AsyncFd::register(events)? })
}

fn watch(events: &OwnedFd, dir: &Path, what: WatchFlags) -> io::Result<()> {
    loop {
        if add(events, dir, what)? {
            return Ok(());
        }
        let mut above = dir.parent();
        // A path without a directory above is in the working directory.
        while let Some(dir) = above {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            if add(events, dir, ABOVE)? {
                break;
            }
            above = dir.parent();
        }
        // It may have been made before the one above it was watched.
        if !dir.exists() {
            return Ok(());
        }
    }
}

/// Whether there is such a directory.
fn add(events: &OwnedFd, dir: &Path, what: WatchFlags) -> io::Result<bool> {
    match inotify::add_watch(events, dir, what) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use crate::sockets::find;

    /// What a test waits for at most.
    const SOON: Duration = Duration::from_secs(10);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    }

    /// Waits until so many sockets are there.
    async fn wait_for(watch: &mut Watch, dirs: &[PathBuf], count: usize) {
        let found = async {
            while find(dirs).unwrap().len() != count {
                watch.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, found).await.expect("a change is noticed");
    }

    #[test]
    fn sockets_that_come_and_go_are_noticed() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let dirs = [dir.path().to_owned()];
            let mut watch = Watch::new(&dirs).unwrap();
            for _ in 0..3 {
                let listener = UnixListener::bind(dir.path().join("a.ctl")).unwrap();
                wait_for(&mut watch, &dirs, 1).await;
                drop(listener);
                fs::rename(dir.path().join("a.ctl"), dir.path().join("gone")).unwrap();
                wait_for(&mut watch, &dirs, 0).await;
                fs::remove_file(dir.path().join("gone")).unwrap();
            }
        });
    }

    #[test]
    fn directories_of_a_pattern_are_watched() {
        run(async {
            let root = tempfile::tempdir().unwrap();
            let pods = root.path().join("pods");
            let dirs = [pods.join("*/run/*/balloon")];
            let mut watch = Watch::new(&dirs).unwrap();
            let mut listeners = Vec::new();
            for (count, pod) in (1..).zip(["a", "b", "c"]) {
                let dir = pods.join(pod).join("run/hook/balloon");
                // One at once, and one folder by folder.
                for part in ["c", "c/run", "c/run/hook"].iter().filter(|_| pod == "c") {
                    fs::create_dir(pods.join(part)).unwrap();
                    tokio::time::timeout(SOON, watch.changed()).await.unwrap().unwrap();
                }
                fs::create_dir_all(&dir).unwrap();
                listeners.push(UnixListener::bind(dir.join("vm.ctl")).unwrap());
                wait_for(&mut watch, &dirs, count).await;
            }
            fs::remove_file(pods.join("a/run/hook/balloon/vm.ctl")).unwrap();
            wait_for(&mut watch, &dirs, 2).await;
            fs::remove_dir_all(pods.join("b")).unwrap();
            wait_for(&mut watch, &dirs, 1).await;
        });
    }

    #[test]
    fn directory_that_is_made_later_is_watched() {
        run(async {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("some/where");
            let dirs = [dir.clone()];
            let mut watch = Watch::new(&dirs).unwrap();
            for _ in 0..2 {
                fs::create_dir_all(&dir).unwrap();
                // With the directory watched, the socket comes.
                tokio::time::timeout(SOON, watch.changed()).await.unwrap().unwrap();
                let _listener = UnixListener::bind(dir.join("a.ctl")).unwrap();
                wait_for(&mut watch, &dirs, 1).await;
                fs::remove_dir_all(root.path().join("some")).unwrap();
                wait_for(&mut watch, &dirs, 0).await;
            }
        });
    }
}
