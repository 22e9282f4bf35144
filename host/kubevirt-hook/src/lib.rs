// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hook sidecar of [KubeVirt](https://kubevirt.io): gives a VM the vhost-user balloon of this project, and runs its
//! daemon.
//!
//! virt-launcher sends the domain XML of its VM over gRPC before it defines the domain, and defines what comes back.
//! `docs/user/kubernetes.md` says how to use it and what stands in the way.
//!
//! | layer | room | contents |
//! |---|---|---|
//! | 1 | `splice` | edits of an XML text that keep every other byte |
//! | 1 | [`options`] | what the annotations of a VM ask for |
//! | 1 | [`protocol`] | the messages of KubeVirt's hooks, and a client |
//! | 2 | [`domain`] | the domain XML with the balloon in it |
//! | 2 | `daemon` | the daemon as a child process |
//! | 3 | `service` | the hook points, as gRPC |
//! | 4 | `cli` | the command line |

mod cli;
mod daemon;
pub mod domain;
pub mod options;
pub mod protocol;
mod service;
mod splice;

pub use cli::run;
