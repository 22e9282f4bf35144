// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Finds what the kernel does not export. */
#include "isolation_reporting.h"

#include <linux/kprobes.h>
#include <linux/tracepoint.h>

struct ir_kernel ir_kernel;

static const struct {
	const char *name;
	void *where;
	bool optional;
} symbols[] = {
	{ "start_isolate_page_range", &ir_kernel.start_isolate },
	{ "test_pages_isolated", &ir_kernel.test_isolated },
	{ "undo_isolate_page_range", &ir_kernel.undo_isolate },
#if IR_ISOLATION_KEEPS_TYPE
	{ "get_pfnblock_migratetype", &ir_kernel.migratetype },
#else
	{ "get_pfnblock_flags_mask", &ir_kernel.block_flags },
#endif
	{ "__isolate_free_page", &ir_kernel.pull },
	{ "__putback_isolated_page", &ir_kernel.put_back },
	{ "mem_hotplug_lock", &ir_kernel.hotplug_lock },
	{ "__page_reporting_notify", &ir_kernel.notify },
	{ "pr_dev_info", &ir_kernel.device },
	{ "page_reporting_mutex", &ir_kernel.device_mutex },
	{ "__free_one_page", &ir_kernel.free_one_page_inner, true },
	{ "page_reporting_order", &ir_kernel.order },
	{ "page_reporting_delay_ms", &ir_kernel.delay_ms, true },
	{ "__tracepoint_mm_page_pcpu_drain", &ir_kernel.pcpu_drain, true },
	{ "max_pfn", &ir_kernel.max_pfn },
	{ "max_possible_pfn", &ir_kernel.max_possible_pfn, true },
};

int ir_find_symbols(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long (*lookup)(const char *name);
	int error = register_kprobe(&probe);
	unsigned int i;

	if (error) {
		pr_err("refused: this kernel lets no probe find its symbols (%d)\n", error);
		return error;
	}
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	for (i = 0; i < ARRAY_SIZE(symbols); i++) {
		unsigned long address = lookup(symbols[i].name);

		if (!address && !symbols[i].optional) {
			pr_err("refused: this kernel has no %s\n", symbols[i].name);
			return -ENOENT;
		}
		*(unsigned long *)symbols[i].where = address;
	}
	return 0;
}
