// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No capabilities (`capabilities(7)`), no way to gain any, no core dump.

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

use super::SandboxError;

/// Gives up all that this thread has: those that it starts have none either.
pub(super) fn drop_all() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(SandboxError::of("give up new privileges"))?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    // Those in the ambient set are permitted, too. A service manager may deny the call to drop them
    // where it has left none.
    if capabilities(None).map_err(SandboxError::of("read the capabilities"))? != none {
        set_capabilities(None, none).map_err(SandboxError::of("drop capabilities"))?;
    }
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, no_core).map_err(SandboxError::of("forbid core dumps"))
}
