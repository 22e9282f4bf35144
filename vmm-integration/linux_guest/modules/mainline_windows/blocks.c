// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Free and used blocks, and the reporting worker.
 */
#include <linux/delay.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

#include "windows.h"

/* A pass is due after 2 s at most, and a guest that frees much needs many. */
#define PATIENCE_MS	60000
#define LOOK_EVERY_MS	10

struct blocks *new_blocks(void)
{
	return vzalloc(sizeof(struct blocks));
}

/* Allocates up to @count blocks of order LARGE. */
void take(struct blocks *blocks, gfp_t gfp, unsigned int count)
{
	struct page *page;

	while (count-- && blocks->count < MAX_BLOCKS) {
		page = alloc_pages(gfp, LARGE);
		if (!page)
			break;
		blocks->of[blocks->count++] = page;
	}
}

void give_back(struct blocks *blocks)
{
	while (blocks->count)
		__free_pages(blocks->of[--blocks->count], LARGE);
}

/* Allocates a block whose halves can be freed one by one. */
struct page *take_halves(gfp_t gfp)
{
	struct page *page = alloc_pages(gfp, LARGE);

	if (page)
		init_page_count(page + HALF_PAGES);
	return page;
}

/* Whether a page is the head of a free block of that order. Racy without the zone's lock. */
bool is_free(struct page *page, unsigned int order)
{
	return PageBuddy(page) && page_private(page) == order;
}

static const char *type_name(int type)
{
	switch (type) {
	case MIGRATE_UNMOVABLE:
		return "unmovable";
	case MIGRATE_MOVABLE:
		return "movable";
	case MIGRATE_RECLAIMABLE:
		return "reclaimable";
	case MIGRATE_HIGHATOMIC:
		return "highatomic";
	case MIGRATE_ISOLATE:
		return "isolate";
	default:
		return "other";
	}
}

static const char *state_name(void)
{
	static const char * const names[] = { "idle", "requested", "active" };
	unsigned int state = atomic_read(&reporting->state);

	return state < ARRAY_SIZE(names) ? names[state] : "unknown";
}

static void look_at_worker(void)
{
	say(" worker=%s reports=%d blocks=%d\n", state_name(), atomic_read(&tap.reports),
	    atomic_read(&tap.blocks));
}

/* Says the exact state of the block that begins with @page. */
void look(const char *step, struct page *page)
{
	struct zone *zone = page_zone(page);
	bool buddy, reported;
	unsigned long flags;
	int order;

	spin_lock_irqsave(&zone->lock, flags);
	buddy = PageBuddy(page);
	order = buddy ? (int)page_private(page) : -1;
	reported = buddy && PageReported(page);
	spin_unlock_irqrestore(&zone->lock, flags);
	say("step=%s pfn=0x%lx zone=%s free=%d order=%d reported=%d first=%s second=%s", step,
	    page_to_pfn(page), zone->name, buddy, order, reported, type_name(type_of(page)),
	    type_name(type_of(page + HALF_PAGES)));
	look_at_worker();
}

/* Says how many of several blocks of order LARGE are free as a whole, and reported. */
void look_at_all(const char *step, struct page **pages, unsigned int count)
{
	struct zone *zone = page_zone(pages[0]);
	unsigned int i, whole = 0, reported = 0;
	unsigned long flags;

	for (i = 0; i < count; i++) {
		spin_lock_irqsave(&zone->lock, flags);
		if (is_free(pages[i], LARGE)) {
			whole++;
			reported += PageReported(pages[i]);
		}
		spin_unlock_irqrestore(&zone->lock, flags);
	}
	say("step=%s zone=%s of=%u free=%u reported=%u free-pages=%lu min=%lu low=%lu", step,
	    zone->name, count, whole, reported, free_pages_of(zone), min_wmark_pages(zone),
	    low_wmark_pages(zone));
	look_at_worker();
}

/* Waits until no pass runs and none is asked for. */
int settle(void)
{
	unsigned long end = jiffies + msecs_to_jiffies(PATIENCE_MS);

	while (atomic_read(&reporting->state) || work_busy(&reporting->work.work)) {
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
		if (msleep_interruptible(LOOK_EVERY_MS))
			return -EINTR;
	}
	return 0;
}

/*
 * Watches that no pass is asked for; a guest in which something else frees a large block is of no
 * use, and tried again.
 */
int stay_quiet(void)
{
	unsigned long end = jiffies + msecs_to_jiffies(quiet_ms);
	int reports = atomic_read(&tap.reports);

	do {
		if (atomic_read(&reporting->state) || atomic_read(&tap.reports) != reports)
			return -EAGAIN;
		if (msleep_interruptible(LOOK_EVERY_MS))
			return -EINTR;
	} while (time_before(jiffies, end));
	return 0;
}

/* Does what something else may do some day: frees a large block, which asks for a pass. */
int free_a_large_block(gfp_t gfp)
{
	struct page *page = alloc_pages(gfp, LARGE);

	if (!page)
		return -ENOMEM;
	__free_pages(page, LARGE);
	return settle();
}

unsigned long free_pages_of(struct zone *zone)
{
	return zone_page_state(zone, NR_FREE_PAGES);
}
