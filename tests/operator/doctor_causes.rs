// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl doctor` says what keeps memory that a guest reports, and what to do about it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::ptr;
use std::time::Duration;

use guest_driver::ram::Gpa;
use rustix::fs::{SealFlags, fcntl_add_seals};
use serde_json::Value;
use vmm_integration::frontend::{AttachOptions, Attachment, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

use crate::controlled::{Controlled, MIB, SOON, given_back, start};

/// Where the memory of a case's own kind begins; the rings lie in a memfd before it.
const OWN: u64 = 16 * MIB;

/// A wrong set-up, and what the doctor says of it.
struct Case {
    cause: &'static str,
    /// A part of the remedy.
    remedy: &'static str,
    args: &'static [&'static str],
    backing: Backing,
    /// Written ahead of the features.
    poison: Option<u32>,
    /// What goes wrong once the guest has attached.
    act: fn(&Controlled, &mut Attachment),
}

/// A set-up in which nothing is wrong.
const RIGHT: Case = Case {
    cause: "",
    remedy: "",
    args: &["--statistics"],
    backing: Backing::Memfd,
    poison: Some(0),
    act: |_, _| {},
};

fn wrong(one: &Controlled) -> Vec<(String, String)> {
    let (output, _) = one.ctl(&["--json", "doctor"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let found = found.as_array().unwrap().iter().filter(|finding| finding["wrong"] == true);
    found.map(|finding| (text(finding, "cause"), text(finding, "remedy"))).collect()
}

/// Attaches a guest, has it report what the case is about, and asks the doctor.
fn expect_named(case: &Case) {
    let one = start(case.args);
    let mut layout = RamLayout::default();
    let (rings, own) = (layout.file(Backing::Memfd), layout.file(case.backing));
    let layout = layout.region(Gpa(0), OWN, rings, 0).region(Gpa(OWN), 4 * MIB, own, 0);
    let ram = Ram::new(&layout).unwrap();
    let options = AttachOptions { poison: case.poison, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&one.daemon.socket(), &ram, options).unwrap();
    if case.backing == Backing::Memfd {
        assert_eq!(wrong(&one), [], "{}: before", case.cause);
    }
    (case.act)(&one, &mut guest);
    wait_until(SOON, Duration::from_millis(5), || match &wrong(&one)[..] {
        // Before the daemon learned of it, a discard has failed.
        [(cause, remedy), rest @ ..]
            if cause == case.cause
                && remedy.contains(case.remedy)
                && rest.iter().all(|(other, _)| other == "discard_failed") =>
        {
            Ok(())
        }
        found => Err(format!("{found:?}, expected {}: {}", case.cause, case.remedy)),
    })
    .unwrap();
}

/// What it reports stays.
fn is_kept(_: &Controlled, guest: &mut Attachment) {
    assert!(!given_back(guest, OWN));
}

#[test]
fn doctor_paused_daemon_says_by_what() {
    for case in [
        Case {
            cause: "parked",
            remedy: "ctl unpark",
            // The guest sends no statistics.
            act: |one, _| assert_eq!(one.ctl(&["park", "--timeout", "1"]).0.status.code(), Some(3)),
            ..RIGHT
        },
        Case {
            cause: "migrating",
            remedy: "wait for the end",
            act: |_, guest| {
                guest.set_log(&DirtyLog::new(Gpa(OWN + 4 * MIB)).unwrap()).unwrap();
                guest.set_logging(true).unwrap();
            },
            ..RIGHT
        },
    ] {
        expect_named(&case);
    }
}

#[test]
fn doctor_poison_of_an_old_driver_is_not_known() {
    expect_named(&Case {
        cause: "poison_not_told",
        remedy: "reload virtio_balloon",
        poison: None,
        act: is_kept,
        ..RIGHT
    });
}

#[test]
fn doctor_sealed_memory_is_read_only() {
    expect_named(&Case {
        cause: "read_only",
        remedy: "memory that can be written",
        act: |_, guest| {
            fcntl_add_seals(guest.ram().file(1), SealFlags::FUTURE_WRITE).unwrap();
            assert!(!given_back(guest, OWN));
        },
        ..RIGHT
    });
}

/// No page is touched, so that none need be free.
#[test]
fn doctor_hugetlb_without_the_option_is_named() {
    expect_named(&Case {
        cause: "hugetlb",
        remedy: "--hugetlb",
        backing: Backing::Hugetlb { page_bytes: 2 * MIB },
        ..RIGHT
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn doctor_tmpfs_with_a_limit_is_named() {
    expect_named(&Case {
        cause: "limited_tmpfs",
        remedy: "--allow-limited-tmpfs",
        backing: Backing::LimitedTmpfs { limit_bytes: 64 * MIB },
        ..RIGHT
    });
}

#[test]
fn doctor_file_system_that_cannot_punch_is_named() {
    refuse_fallocate(libc::EOPNOTSUPP);
    expect_named(&Case { cause: "cannot_punch", remedy: "a memfd", act: is_kept, ..RIGHT });
}

#[test]
fn doctor_failing_discards_have_their_errno() {
    refuse_fallocate(libc::EIO);
    expect_named(&Case { cause: "discard_failed", remedy: "fallocate(2)", act: is_kept, ..RIGHT });
}

/// From here on `fallocate` of this thread and of the processes that it starts fails with `errno`.
fn refuse_fallocate(errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let number = u32::try_from(libc::SYS_fallocate).unwrap();
    let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    // The number of the call is what its data begins with.
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number),
        statement(libc::BPF_RET | libc::BPF_K, refused),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    // Another call skips the refusal.
    program[1].jf = 1;
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: the filter and its program outlive the call, which copies them.
    let set = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, ptr::from_ref(&filter))
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
