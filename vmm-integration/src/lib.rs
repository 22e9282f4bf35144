// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side: guests attached to the daemon, and measurements on the host.
//!
//! | room | idea |
//! |---|---|
//! | [`guest`] | one trait for every guest: allocate, free, verify, turn reporting on and off |
//! | [`vmm`] | one trait for every VMM: QEMU, user-mode Linux, a small VMM for the model |
//! | [`life`] | what happens to a guest, as checks that run on every VMM |
//! | [`linux_guest`] | a Linux kernel, its initramfs, and the client of the agent inside |
//! | [`bare_guest`] | the image of the bare guest, and what it prints |
//! | [`frontend`] | a vhost-user frontend with the driver's rings, without a guest |
//! | [`guest_memory`] | guest RAM in memory files: layout, test pattern, hand-over |
//! | [`hostile`] | descriptor chains that no sane driver writes |
//! | [`daemon`] | the daemon as a process: start, log, summary, signals |
//! | [`control`] | a client of the daemon's control socket |
//! | [`windows`] | windows in Linux's own reporting, which a module makes in a guest |
//! | [`debian`] | a Debian with systemd and libvirt as a container, to install packages on |
//! | [`measure`] | resident memory, CPU time, cgroups, hugetlb pools |
//! | [`fetch`] | pinned Debian packages, unpacked without root: QEMU, kernels, a browser |
//!
//! `guest`, `frontend` and `daemon` do not know the VMMs; a VMM knows all three.

pub mod bare_guest;
pub mod control;
pub mod daemon;
pub mod debian;
pub mod fetch;
pub mod frontend;
pub mod guest;
pub mod guest_memory;
pub mod hostile;
pub mod life;
pub mod linux_guest;
pub mod measure;
pub mod vmm;
pub mod windows;
