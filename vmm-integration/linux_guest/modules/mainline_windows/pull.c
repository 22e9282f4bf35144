// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The cost of taking a block off its free list, and of putting it back, under the zone's lock.
 */
#include <linux/ktime.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "windows.h"

#define TIMES	201

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static u64 median(u64 *values)
{
	sort(values, TIMES, sizeof(*values), compare, NULL);
	return values[TIMES / 2];
}

/* Pulls the free block of @order that begins with @page, and puts it back, many times. */
static int measure(const char *step, struct page *page, unsigned int order, u64 *ns)
{
	u64 *pulls = ns, *backs = ns + TIMES, *looks = ns + 2 * TIMES;
	struct zone *zone = page_zone(page);
	u64 start, pulled, back, looked;
	unsigned int i, j, others;
	unsigned long flags;
	int type = 0;

	for (i = 0; i < TIMES; i++) {
		spin_lock_irqsave(&zone->lock, flags);
		if (!is_free(page, order)) {
			spin_unlock_irqrestore(&zone->lock, flags);
			return -EAGAIN;
		}
		type = type_of(page);
		start = ktime_get_ns();
		if (!pull(page, order)) {
			spin_unlock_irqrestore(&zone->lock, flags);
			return -ENOMEM;
		}
		pulled = ktime_get_ns();
		/* What the pull does with a pageblock, and as little else as can be. */
		for (j = 0, others = 0; j < pageblock_nr_pages; j++)
			others += PageBuddy(page + j);
		looked = ktime_get_ns();
		put_back(page, order, type);
		back = ktime_get_ns();
		spin_unlock_irqrestore(&zone->lock, flags);
		pulls[i] = pulled - start;
		looks[i] = looked - pulled;
		backs[i] = back - looked;
		if (order >= HALF && others)
			return -EUCLEAN;
		cond_resched();
	}
	say("step=%s order=%u type=%d pull-ns=%llu put-back-ns=%llu look-at-512-ns=%llu\n", step,
	    order, type, median(pulls), median(backs), median(looks));
	return 0;
}

/* Measures a block of @order; the rest of its 4 MiB is in use. */
static int measure_order(const char *step, unsigned int order, bool isolated, u64 *ns)
{
	struct page *page = alloc_pages(FROM_MOVABLE, LARGE);
	unsigned long pfn, piece;
	int err;

	if (!page)
		return -ENOMEM;
	pfn = page_to_pfn(page);
	for (piece = 1UL << order; piece < LARGE_PAGES; piece <<= 1)
		init_page_count(page + piece);
	err = isolated ? isolate(pfn, pfn + HALF_PAGES) : 0;
	__free_pages(page, order);
	drain_lists();
	/* A pass in between would take it away for a while. */
	err = err ?: settle();
	err = err ?: measure(step, page, order, ns);
	if (isolated)
		undo_isolate(pfn, pfn + HALF_PAGES);
	for (; order < LARGE; order++)
		__free_pages(page + (1UL << order), order);
	drain_lists();
	return err;
}

/* The only variant is "all". An isolated block is pulled without a look at its pageblock. */
int pull_cost(const char *variant)
{
	u64 *ns;
	int err;

	if (strcmp(variant, "all"))
		return -EINVAL;
	ns = vmalloc_array(3 * TIMES, sizeof(*ns));
	if (!ns)
		return -ENOMEM;
	err = measure_order("order-7", LARGE - 3, false, ns);
	err = err ?: measure_order("order-8", LARGE - 2, false, ns);
	err = err ?: measure_order("order-9", HALF, false, ns);
	err = err ?: measure_order("order-9-isolated", HALF, true, ns);
	err = err ?: measure_order("order-10", LARGE, false, ns);
	vfree(ns);
	return err ?: free_a_large_block(FROM_MOVABLE);
}
