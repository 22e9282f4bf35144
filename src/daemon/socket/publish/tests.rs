// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use rustix::fs::inotify;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

fn listen(path: &Path) -> Result<Listening, SocketError> {
    super::listen(path, Access::OWNER)
}

/// The names in the folder, which are those of the socket and nothing else.
fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    // A listener that goes leaves its file behind.
    drop(UnixListener::bind(&path).unwrap());
    let listening = listen(&path).unwrap();
    assert!(listening.replaced);
    assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
    assert!(UnixStream::connect(&path).is_ok());
    assert_eq!(names(dir.path()), ["s"]);
    drop(listening);
    assert!(names(dir.path()).is_empty());
    assert!(!listen(&path).unwrap().replaced);
}

#[test]
fn listener_with_a_full_backlog_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let busy = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
}

#[test]
fn dead_socket_has_one_successor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for _ in 0..100 {
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Barrier::new(4);
        let all = thread::scope(|scope| {
            let one = || {
                start.wait();
                listen(&path)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let won: Vec<_> = all.iter().filter_map(|result| result.as_ref().ok()).collect();
        // A path that is free for a moment would let one in that replaced nothing.
        assert!(matches!(won[..], [Listening { replaced: true, .. }]), "{all:?}");
        assert!(
            all.iter().all(|result| matches!(result, Ok(_) | Err(SocketError::InUse(_)))),
            "{all:?}"
        );
        assert_eq!(names(dir.path()), ["s"]);
    }
}

/// A path that is free for a moment would let in another that starts meanwhile.
#[test]
fn dead_socket_is_replaced_in_one_step() {
    use inotify::{CreateFlags, ReadFlags, Reader, WatchFlags};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, dir.path(), WatchFlags::DELETE | WatchFlags::MOVED_TO).unwrap();
    let listening = listen(&path).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&watch, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = events.next() {
        if event.file_name() == Some(c"s") {
            seen.push(event.events());
        }
    }
    assert_eq!(seen, [ReadFlags::MOVED_TO]);
    drop(listening);
}

#[test]
fn lock_of_another_user_is_told_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    std::os::unix::fs::symlink("/dev/null", dir.path().join("s.lock")).unwrap();
    assert!(matches!(listen(&path), Err(SocketError::ForeignLock(_))));
}

#[test]
fn lock_that_is_left_behind_holds_no_daemon_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    fs::write(dir.path().join("s.lock"), "").unwrap();
    assert!(listen(&path).unwrap().replaced);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn path_of_full_length_is_listened_on() {
    let dir = tempfile::tempdir().unwrap();
    let name = "s".repeat(MAX_SOCKET_PATH - dir.path().as_os_str().len() - 1);
    let path = dir.path().join(&name);
    let listening = listen(&path).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
    assert_eq!(names(dir.path()), [OsString::from(name)]);
    drop(listening);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn mode_is_the_one_asked_for_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for mode in [0o600, 0o660, 0o666, 0o200] {
        let listening = super::listen(&path, Access { mode, group: None }).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        drop(listening);
    }
}

#[test]
fn files_that_are_not_ours_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    let listening = listen(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(listening);
    assert!(path.exists());
}
