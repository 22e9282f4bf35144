// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which kernel's rules the model plays by, where they differ.

use super::zonelist::scheme::{ZonelistFlaw, ZonelistUpdate};

/// The rules of one kernel. The default is Linux 6.19.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSemantics {
    /// A pageblock that is isolated already is refused. Since 4.17; before, two isolators could
    /// hold the same pages.
    pub refuse_double_isolation: bool,
    /// Isolating a pageblock drains all per-CPU lists, each time. From 4.10 to 5.9.
    pub drain_on_isolate: bool,
    /// Isolating one half of a larger buddy splits it. Since 5.19; before, only free blocks that
    /// begin in the pageblock were moved, whole.
    pub split_straddling_buddy: bool,
    /// Offlining turns the per-CPU lists off while it runs. Since 5.11.
    pub disable_pcp_for_offline: bool,
    /// Offlining drains the per-CPU lists each time that it finds pages not isolated. In 5.9 and 5.10:
    /// later kernels drain once, as they turn the lists off. With neither, a page that reached a
    /// per-CPU list after the drain stays there, and offlining never ends.
    pub drain_on_offline_retry: bool,
    /// Memory that comes online is isolated while its pages are freed, and these go to the tails of their
    /// lists, as those of boot memory do. Since 5.10; before, each could be allocated at once.
    pub isolate_on_online: bool,
    /// Isolation is a bit of its own and the migratetype beneath it stays. Since 6.17.
    pub standalone_isolate_bit: bool,
    /// A block that the reporter pulled out is put back pageblock by pageblock. In no kernel:
    /// there a block of two pageblocks goes to the list of the first, though the second may have
    /// been isolated meanwhile (`pull-isolated-half` of the explorer).
    pub putback_by_pageblock: bool,
    /// How many pages per-CPU lists may hold follows what their CPU does. Since 6.7; before, it was
    /// the share of the low watermark that it begins with now.
    pub tune_pcp_high: bool,
    /// Movable pages come from the reserve for contiguous allocation while it is more than half of
    /// what is free. Since 5.7; before, only when nothing else was free.
    pub balance_cma: bool,
    /// A page of another type comes from the smallest free block if no pageblock can be claimed.
    /// Since 6.15; before, from the largest one, unless it is small and the page movable.
    pub steal_smallest: bool,
    /// How zonelists are changed under allocations. With a sequence count since 6.1; before, overwritten,
    /// and before 4.14 with all CPUs stopped, which the model of those kernels leaves out.
    pub zonelists: ZonelistUpdate,
    /// A mistake in changing them. In no kernel.
    pub zonelist_flaw: Option<ZonelistFlaw>,
    /// Pages that are known to be zero count as such after they were in use, until an allocation asks
    /// for zeros. Wrong, and in no kernel.
    pub zero_outlives_use: bool,
}

impl KernelSemantics {
    /// Linux 6.19.
    pub const V6_19: Self = Self {
        refuse_double_isolation: true,
        drain_on_isolate: false,
        split_straddling_buddy: true,
        disable_pcp_for_offline: true,
        drain_on_offline_retry: false,
        isolate_on_online: true,
        standalone_isolate_bit: true,
        putback_by_pageblock: false,
        tune_pcp_high: true,
        balance_cma: true,
        steal_smallest: true,
        zonelists: ZonelistUpdate::SequenceCount,
        zonelist_flaw: None,
        zero_outlives_use: false,
    };

    /// Linux 5.8, with the race between a free and the drain of 5.4 and later.
    pub const V5_8: Self = Self { drain_on_offline_retry: false, ..Self::V5_9 };

    /// Linux 5.9, where offlining drains again and again.
    pub const V5_9: Self = Self {
        refuse_double_isolation: true,
        drain_on_isolate: true,
        split_straddling_buddy: false,
        disable_pcp_for_offline: false,
        drain_on_offline_retry: true,
        isolate_on_online: false,
        standalone_isolate_bit: false,
        putback_by_pageblock: false,
        tune_pcp_high: false,
        balance_cma: true,
        steal_smallest: false,
        zonelists: ZonelistUpdate::Overwrite,
        zonelist_flaw: None,
        zero_outlives_use: false,
    };

    /// Linux 5.4: one drain a pageblock, and a buddy larger than a pageblock is moved whole or not
    /// at all.
    pub const V5_4: Self = Self { balance_cma: false, ..Self::V5_8 };

    /// Linux 4.16 and before: two isolators may hold the same pageblock.
    pub const V4_16: Self = Self { refuse_double_isolation: false, ..Self::V5_4 };
}

impl Default for KernelSemantics {
    fn default() -> Self {
        Self::V6_19
    }
}
