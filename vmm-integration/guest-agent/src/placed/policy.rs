// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory policies: `set_mempolicy(2)` and `mbind(2)`.

use anyhow::{Context, Result, ensure};
use guest_agent::placement::{PlacedTask, Policy, Scope};
use nix::errno::Errno;

use crate::memory::Mapping;

/// Bits of a nodemask here. The kernel reads one less than it is told.
const MASK_BITS: libc::c_ulong = 64;

/// Gives the calling task or its mapping the policy.
pub(super) fn set(task: &PlacedTask, mapping: &Mapping) -> Result<()> {
    let PlacedTask { policy, scope, nodes, fixed, .. } = task;
    let mode = libc::c_long::from(match policy {
        Policy::Default => libc::MPOL_DEFAULT,
        Policy::Bind => libc::MPOL_BIND,
        Policy::Preferred => libc::MPOL_PREFERRED,
        Policy::Interleave => libc::MPOL_INTERLEAVE,
    });
    let flags = libc::c_long::from(if *fixed { libc::MPOL_F_STATIC_NODES } else { 0 });
    let mask = mask(nodes)?;
    let maxnode = MASK_BITS + 1;
    let result = match scope {
        // SAFETY: the kernel reads one word of the mask, which outlives the call.
        Scope::Task => unsafe {
            libc::syscall(libc::SYS_set_mempolicy, mode | flags, &raw const mask, maxnode)
        },
        Scope::Mapping => {
            let (start, length) = mapping.range().context("a policy of no memory")?;
            // SAFETY: as above; the policy of a mapping changes nothing in it.
            unsafe {
                libc::syscall(
                    libc::SYS_mbind,
                    start.as_ptr(),
                    length.get(),
                    mode | flags,
                    &raw const mask,
                    maxnode,
                    0,
                )
            }
        }
    };
    Errno::result(result).with_context(|| format!("{policy:?} of nodes {nodes:?}")).map(drop)
}

fn mask(nodes: &[u32]) -> Result<libc::c_ulong> {
    nodes.iter().try_fold(0, |mask, &node| {
        ensure!(u64::from(node) < MASK_BITS, "node {node}: expected less than {MASK_BITS}");
        Ok(mask | 1 << node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_has_a_bit_for_each_node() {
        assert_eq!(mask(&[]).unwrap(), 0);
        assert_eq!(mask(&[0, 1, 63]).unwrap(), 1 << 63 | 3);
        assert!(mask(&[64]).is_err());
    }

    #[test]
    fn policy_without_nodes_is_refused() {
        let mapping = Mapping::new(4096).unwrap();
        for scope in [Scope::Task, Scope::Mapping] {
            let task = PlacedTask { policy: Policy::Bind, scope, ..PlacedTask::default() };
            let error = set(&task, &mapping).unwrap_err();
            assert_eq!(error.downcast_ref::<Errno>(), Some(&Errno::EINVAL), "{error:#}");
            let default = PlacedTask { policy: Policy::Default, ..task };
            set(&default, &mapping).unwrap();
        }
    }
}
