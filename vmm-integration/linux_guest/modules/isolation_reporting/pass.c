// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* A pass: takes the marks, holds the free blocks there, reports them and lets them go. */
#include "isolation_reporting.h"

#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/scatterlist.h>
#include <linux/sched.h>

#include "trace.h"

/* As mainline's page reporting names its states. */
enum { IDLE, REQUESTED, ACTIVE };

struct ir_settings ir_settings = {
	.batch = PAGE_REPORTING_CAPACITY,
	.watermark = true,
	.second_look = true,
	.clear_first = true,
};

struct ir_block ir_held[PAGE_REPORTING_CAPACITY];
unsigned int ir_held_count;

static struct scatterlist list[PAGE_REPORTING_CAPACITY];

/* Reports what is held and lets it go. */
static int submit(struct page_reporting_dev_info *device)
{
	unsigned int nr = ir_held_count, i;
	u64 since;
	int error;

	if (!nr)
		return 0;
	sg_init_table(list, nr);
	for (i = 0; i < nr; i++)
		sg_set_page(&list[i], pfn_to_page(ir_held[i].pfn),
			    PAGE_SIZE << ir_held[i].order, 0);
	since = ktime_get_ns();
	error = device->report(device, list, nr);
	since = ktime_get_ns() - since;
	ir_cost_add(&ir_statistics.report, since);
	if (error)
		ir_statistics.failed_chains++;
	else
		ir_statistics.chains++;
	for (i = 0; i < nr; i++) {
		struct ir_block *block = &ir_held[i];

		if (error)
			ir_mark(block->pfn, block->order, true);
		ir_release(block);
		ir_statistics.blocks += !error;
		ir_statistics.pages += error ? 0 : 1UL << block->order;
		trace_isolation_reporting_block(block->pfn, block->order, block->hold, error, since,
						ktime_get_ns() - block->since);
		WRITE_ONCE(ir_held_count, nr - i - 1);
	}
	return error;
}

/* Looks at one granule. Marks it again if it must be looked at once more. */
static int visit(struct page_reporting_dev_info *device, struct ir_walk *walk, unsigned long pfn,
		 unsigned int batch)
{
	unsigned int least = max_t(unsigned int, walk->tracker->order, pageblock_order);
	enum ir_outcome outcome;
	struct ir_block block = {};
	int error = 0;

	outcome = ir_hold_around(pfn, least, &block);
	/* What is held already may be what the zone, or offlining, lacks. */
	if ((outcome == IR_LOW || outcome == IR_BUSY) && ir_held_count) {
		error = submit(device);
		outcome = ir_hold_around(pfn, least, &block);
	}
	if (outcome == IR_NOT_FREE && READ_ONCE(ir_settings.window_ms))
		msleep(READ_ONCE(ir_settings.window_ms));
	ir_walk_looked(walk, pfn);
	ir_statistics.outcomes[outcome]++;
	switch (outcome) {
	case IR_HELD:
		ir_walk_took(walk, block.pfn, block.order);
		ir_held[ir_held_count] = block;
		WRITE_ONCE(ir_held_count, ir_held_count + 1);
		if (!error && ir_held_count >= batch)
			error = submit(device);
		break;
	case IR_LOST:
		/* Part of it may still be free, and no free tells of that. */
		ir_mark(block.pfn, block.order, true);
		break;
	case IR_BUSY:
	case IR_LOW:
		ir_mark(pfn, walk->tracker->order, true);
		break;
	default:
		break;
	}
	return error;
}

static void run(struct page_reporting_dev_info *device)
{
	unsigned int batch = clamp(READ_ONCE(ir_settings.batch), 1U, PAGE_REPORTING_CAPACITY);
	u64 blocks = ir_statistics.blocks, since = ktime_get_ns();
	u64 outcomes[IR_OUTCOMES];
	struct ir_walk walk;
	unsigned long pfn;
	int error = 0, last;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)
	batch = min(batch, device->capacity);
#endif
	memcpy(outcomes, ir_statistics.outcomes, sizeof(outcomes));
	ir_walk_start(&walk);
	while (!error && ir_walk_next(&walk, &pfn))
		error = visit(device, &walk, pfn, batch);
	ir_walk_end(&walk);
	last = submit(device);
	since = ktime_get_ns() - since;
	ir_statistics.passes++;
	ir_statistics.empty_passes += blocks == ir_statistics.blocks;
	ir_cost_add(&ir_statistics.pass, since);
	trace_isolation_reporting_pass(outcomes, ir_statistics.outcomes,
				       ir_statistics.blocks - blocks, error ?: last, since);
}

/* The work of the device, in place of mainline's. */
void ir_pass(struct work_struct *work)
{
	struct page_reporting_dev_info *device =
		container_of(to_delayed_work(work), struct page_reporting_dev_info, work);
	unsigned int delay = ir_kernel.delay_ms ? READ_ONCE(*ir_kernel.delay_ms) : 2000;

	/* Frees from now on request no pass: their marks do, below. */
	atomic_set(&device->state, ACTIVE);
	run(device);
	atomic_set(&device->state, IDLE);
	/* The state before the marks; a free marks before it looks at the state. */
	smp_mb();
	if (ir_anything_marked() && atomic_xchg(&device->state, REQUESTED) == IDLE)
		queue_delayed_work(system_freezable_wq, &device->work, msecs_to_jiffies(delay));
}
