// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * A probe that does nothing, as a tracing tool would set it: the first instruction at its place is
 * another one while it is there. Probes of the kernel's own trace cannot be set in functions that
 * ftrace does not know.
 */
#include <linux/kprobes.h>
#include <linux/module.h>

static char *symbol;
module_param(symbol, charp, 0444);
MODULE_PARM_DESC(symbol, "function that the probe is in");

static unsigned int offset;
module_param(offset, uint, 0444);
MODULE_PARM_DESC(offset, "bytes from its start");

static int nothing(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static struct kprobe probe = { .pre_handler = nothing };

static int __init start(void)
{
	probe.symbol_name = symbol;
	probe.offset = offset;
	return register_kprobe(&probe);
}

static void __exit stop(void)
{
	unregister_kprobe(&probe);
}

module_init(start);
module_exit(stop);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("A probe in the kernel that does nothing");
