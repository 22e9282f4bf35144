// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a kernel prints when one of its checks has found a fault.

/// Begin, or are a part of, the first line of a report.
const SIGNS: [&str; 19] = [
    "BUG:",
    "WARNING:",
    "Oops:",
    "kernel BUG at",
    "Kernel panic",
    "general protection fault",
    "KASAN:",
    "KCSAN:",
    "UBSAN:",
    "ODEBUG:",
    // lockdep, which reports once and is off from then on
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "turning off the locking correctness validator",
    // DEBUG_LIST
    "list_add corruption",
    "list_del corruption",
    // hung tasks and RCU stalls
    "blocked for more than",
    "detected stall",
];

/// The lines of a guest's console that begin a report of a fault. From a good run there are none.
pub fn splats(console: &str) -> Vec<&str> {
    let lines = console.lines().map(str::trim_end);
    lines.filter(|line| SIGNS.iter().any(|sign| line.contains(sign))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_among_other_lines() {
        let good = "\
[    0.000000] Linux version 7.3.4-debug
[    0.000000] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
[    0.1] kasan: KernelAddressSanitizer initialized (generic)
[    0.2] debug: unmapping init [mem 0x1-0x2]
guest-agent: serving org.vhost-device-balloon.agent
";
        assert_eq!(splats(good), Vec::<&str>::new());
        for report in [
            "[   12.3] BUG: KASAN: slab-use-after-free in f+0x1/0x2 [m]",
            "[   12.3] BUG: sleeping function called from invalid context at mm/x.c:1",
            "[   12.3] WARNING: possible circular locking dependency detected",
            "[   12.3] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1 f+0x1/0x2",
            "[   12.3] list_add corruption. next->prev should be prev (1), but was 2. (next=3).",
            "[   12.3] INFO: task m:1 blocked for more than 300 seconds.",
            "[   12.3] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   12.3] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[   12.3] page:1 is bad: BUG: Bad page state in process a  pfn:1",
        ] {
            assert_eq!(splats(&format!("{good}{report}\r\n{good}")), [report]);
        }
    }
}
