// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * A hook that knows no instruction of the kernel: the tracepoint of pages that leave a CPU's list,
 * and the end of free_one_page for those that go past these lists.
 *
 * Neither tells of the block that a page merged into, so that every page marks its granule, and the
 * pass finds many of them in use. It misses frees that the allocator puts off (free_pages_nolock).
 */
#include "isolation_reporting.h"

#include <linux/kprobes.h>
#include <linux/tracepoint.h>

/* The block that a call of free_one_page frees. */
struct freed {
	unsigned long pfn;
	unsigned int order;
};

static void drained(void *unused, struct page *page, unsigned int order, int type)
{
	atomic64_inc(&ir_statistics.heard);
	ir_mark(page_to_pfn(page), order, false);
}

static int entered(struct kretprobe_instance *call, struct pt_regs *regs)
{
	struct freed *freed = (void *)call->data;

	/* free_one_page(zone, page, pfn, order, flags) */
	freed->pfn = regs->dx;
	freed->order = regs->cx;
	return 0;
}

static int returned(struct kretprobe_instance *call, struct pt_regs *regs)
{
	struct freed *freed = (void *)call->data;

	if (freed->order > MAX_PAGE_ORDER || !pfn_valid(freed->pfn)) {
		atomic64_inc(&ir_statistics.mismatches);
		return 0;
	}
	atomic64_inc(&ir_statistics.heard);
	ir_mark(freed->pfn, freed->order, false);
	return 0;
}

static struct kretprobe call;
static bool probed, traced;

int ir_free_paths_start(void)
{
	int error;

	if (!ir_kernel.pcpu_drain) {
		pr_err("refused: this kernel has no tracepoint mm_page_pcpu_drain\n");
		return -ENOENT;
	}
	call = (struct kretprobe){
		.kp.symbol_name = "free_one_page",
		.entry_handler = entered,
		.handler = returned,
		.data_size = sizeof(struct freed),
		.maxactive = 4 * num_possible_cpus(),
	};
	error = register_kretprobe(&call);
	if (error) {
		pr_err("refused: no probe at free_one_page (%d)\n", error);
		return error;
	}
	probed = true;
	error = tracepoint_probe_register(ir_kernel.pcpu_drain, drained, NULL);
	if (error) {
		pr_err("refused: no probe at mm_page_pcpu_drain (%d)\n", error);
		ir_free_paths_stop();
		return error;
	}
	traced = true;
	return 0;
}

unsigned long ir_free_paths_missed(void)
{
	return probed ? call.nmissed : 0;
}

void ir_free_paths_stop(void)
{
	if (traced) {
		tracepoint_probe_unregister(ir_kernel.pcpu_drain, drained, NULL);
		tracepoint_synchronize_unregister();
	}
	traced = false;
	if (probed)
		unregister_kretprobe(&call);
	probed = false;
}
