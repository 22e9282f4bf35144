// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Holding a free block while it is reported: its pageblocks are isolated (start, test, undo), or it
 * is pulled off its list, as mainline does.
 *
 * Memory may go offline meanwhile. The look and the hold are done with the hotplug lock held for
 * reading. While a block is held its memory cannot go offline. A pass never waits for that lock:
 * who has it for writing may wait for blocks that were pulled, or for the pass's own tracker to
 * grow.
 */
#include "isolation_reporting.h"

#include <linux/ktime.h>
#include <linux/memory_hotplug.h>
#include <linux/percpu-rwsem.h>
#include <linux/preempt.h>
#include <linux/sched.h>

/* The task that isolates or puts back at this moment. */
static struct task_struct *mover;

/*
 * An interrupt on the way frees pages of others as this task. The probe itself may count as an
 * interrupt that cannot be masked.
 */
bool ir_is_own_move(void)
{
	unsigned long probe = in_nmi() ? HARDIRQ_OFFSET : 0;

	return READ_ONCE(mover) == current && !in_serving_softirq() && hardirq_count() == probe;
}

static int start_isolate(struct ir_block *block)
{
	unsigned long end = block->pfn + (1UL << block->order);
	int type = ir_migratetype(pfn_to_page(block->pfn));
	int error = 0;

	WRITE_ONCE(mover, current);
#if IR_ISOLATION_KEEPS_TYPE
	error = ir_kernel.start_isolate(block->pfn, end,
					is_migrate_cma(type) ? PB_ISOLATE_MODE_CMA_ALLOC :
							       PB_ISOLATE_MODE_OTHER);
#else
	{
		unsigned long pfn = block->pfn;
		int wanted = is_migrate_cma(type) ? type : MIGRATE_MOVABLE;
		unsigned int i = 0;

		/* A pageblock at a time: the end of isolation must name the type of each. */
		for (; pfn < end && !error; pfn += pageblock_nr_pages, i++) {
			block->types[i] = ir_migratetype(pfn_to_page(pfn));
			error = ir_kernel.start_isolate(pfn, pfn + pageblock_nr_pages, wanted, 0,
							GFP_KERNEL);
		}
		if (error)
			for (i--, pfn -= pageblock_nr_pages; i--;) {
				pfn -= pageblock_nr_pages;
				ir_kernel.undo_isolate(pfn, pfn + pageblock_nr_pages,
						       block->types[i]);
			}
	}
#endif
	WRITE_ONCE(mover, NULL);
	return error;
}

static void undo_isolate(struct ir_block *block)
{
	unsigned long pfn = block->pfn, end = pfn + (1UL << block->order);
	u64 since = ktime_get_ns();

	WRITE_ONCE(mover, current);
#if IR_ISOLATION_KEEPS_TYPE
	ir_kernel.undo_isolate(pfn, end);
#else
	{
		unsigned int i = 0;

		for (; pfn < end; pfn += pageblock_nr_pages, i++)
			ir_kernel.undo_isolate(pfn, pfn + pageblock_nr_pages, block->types[i]);
	}
#endif
	WRITE_ONCE(mover, NULL);
	ir_cost_add(&ir_statistics.undo, ktime_get_ns() - since);
}

static enum ir_outcome isolate(struct ir_block *block)
{
	unsigned long end = block->pfn + (1UL << block->order);
	u64 since = ktime_get_ns(), started;

	if (start_isolate(block))
		return IR_BUSY;
	started = ktime_get_ns();
	ir_cost_add(&ir_statistics.start, started - since);
#if IR_ISOLATION_KEEPS_TYPE
	if (!ir_kernel.test_isolated(block->pfn, end, PB_ISOLATE_MODE_OTHER)) {
#else
	if (!ir_kernel.test_isolated(block->pfn, end, 0)) {
#endif
		ir_cost_add(&ir_statistics.test, ktime_get_ns() - started);
		return IR_HELD;
	}
	undo_isolate(block);
	return IR_LOST;
}

static enum ir_outcome pull(struct ir_block *block)
{
	struct page *page = pfn_to_page(block->pfn);
	struct zone *zone = page_zone(page);
	enum ir_outcome outcome = IR_LOST;
	u64 since = ktime_get_ns();

	spin_lock_irq(&zone->lock);
	if (PageBuddy(page) && page_private(page) == block->order) {
		if (is_migrate_isolate(ir_migratetype(page)))
			outcome = IR_BUSY;
		else
			outcome = ir_kernel.pull(page, block->order) ? IR_HELD : IR_LOW;
	}
	spin_unlock_irq(&zone->lock);
	if (outcome == IR_HELD)
		ir_cost_add(&ir_statistics.pull, ktime_get_ns() - since);
	return outcome;
}

static void put_back(struct ir_block *block)
{
	struct page *page = pfn_to_page(block->pfn);
	struct zone *zone = page_zone(page);
	u64 since = ktime_get_ns();

	spin_lock_irq(&zone->lock);
	ir_kernel.put_back(page, block->order, ir_migratetype(page));
	spin_unlock_irq(&zone->lock);
	ir_cost_add(&ir_statistics.put_back, ktime_get_ns() - since);
}

void ir_release(struct ir_block *block)
{
	if (block->hold == IR_ISOLATE)
		undo_isolate(block);
	else
		put_back(block);
	ir_cost_add(&ir_statistics.held, ktime_get_ns() - block->since);
}

/* The free block around @pfn of at least this order. Exact only under the zone's lock. */
static bool free_around(unsigned long pfn, unsigned int least, struct ir_block *block)
{
	unsigned int order;

	for (order = least; order <= MAX_PAGE_ORDER; order++) {
		unsigned long first = ALIGN_DOWN(pfn, 1UL << order);
		struct page *page = pfn_to_online_page(first);
		unsigned long found;

		if (!page || !PageBuddy(page))
			continue;
		found = READ_ONCE(page->private);
		if (found < order || found > MAX_PAGE_ORDER)
			continue;
		block->pfn = first;
		block->order = found;
		return true;
	}
	return false;
}

/*
 * A zone near its low watermark keeps what it has, as with mainline's reporting. What is held
 * counts as used already, and the pass lets that go first.
 */
static bool spares(struct zone *zone, const struct ir_block *block)
{
	unsigned long kept = low_wmark_pages(zone) + (1UL << block->order);

	return !READ_ONCE(ir_settings.watermark) || zone_page_state(zone, NR_FREE_PAGES) > kept;
}

static enum ir_outcome hold_online(unsigned long pfn, unsigned int least, struct ir_block *block)
{
	struct page *page = pfn_to_online_page(pfn);
	struct zone *zone;

	if (!page)
		return IR_NOT_FREE;
	if (!free_around(pfn, least, block)) {
		bool found;

		if (!READ_ONCE(ir_settings.second_look))
			return IR_NOT_FREE;
		/* On its way from one list to another a free block does not look like one. */
		zone = page_zone(page);
		ir_statistics.second_looks++;
		spin_lock_irq(&zone->lock);
		found = free_around(pfn, least, block);
		spin_unlock_irq(&zone->lock);
		if (!found)
			return IR_NOT_FREE;
		ir_statistics.second_looks_free++;
	}
	page = pfn_to_page(block->pfn);
	zone = page_zone(page);
	if (!spares(zone, block))
		return IR_LOW;
	if (!IR_ISOLATION_KEEPS_TYPE && block->hold == IR_ISOLATE &&
	    ir_migratetype(page) == MIGRATE_HIGHATOMIC)
		return IR_SKIPPED;
	return block->hold == IR_ISOLATE ? isolate(block) : pull(block);
}

enum ir_outcome ir_hold_around(unsigned long pfn, unsigned int least, struct ir_block *block)
{
	enum ir_outcome outcome;

	block->hold = READ_ONCE(ir_settings.hold);
	if (!percpu_down_read_trylock(ir_kernel.hotplug_lock))
		return IR_BUSY;
	outcome = hold_online(pfn, least, block);
	percpu_up_read(ir_kernel.hotplug_lock);
	block->since = ktime_get_ns();
	return outcome;
}
