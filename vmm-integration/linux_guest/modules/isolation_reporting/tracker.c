// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Where something is marked: a bit a section; that with a bitmap of granules in each section; or a
 * bitmap of granules a zone.
 *
 * A mark is made after its block has come to the free list, a pass takes the mark before it looks.
 * Both are full barriers: either the look finds the block or the mark stays for the next pass.
 */
#include "isolation_reporting.h"

#include <linux/mutex.h>
#include <linux/vmalloc.h>

struct ir_tracker __rcu *ir_tracker;
/* Changes of the tracker as a whole. A pass holds it while it walks. */
static DEFINE_MUTEX(replacing);

void ir_tracker_lock(void)
{
	mutex_lock(&replacing);
}

void ir_tracker_unlock(void)
{
	mutex_unlock(&replacing);
}

struct ir_tracker *ir_tracker_locked(void)
{
	return rcu_dereference_protected(ir_tracker, lockdep_is_held(&replacing));
}

static void free_tracker(struct ir_tracker *tracker)
{
	unsigned long slot;

	if (!tracker)
		return;
	for (slot = 0; slot < ARRAY_SIZE(tracker->zones); slot++)
		vfree(rcu_dereference_protected(tracker->zones[slot], true));
	vfree(tracker->dirty);
	vfree(tracker->granules);
	vfree(tracker);
}

struct ir_zone_bits *ir_zone_bits_alloc(struct zone *zone, unsigned int order)
{
	unsigned long start = ALIGN_DOWN(zone->zone_start_pfn, 1UL << order);
	unsigned long nr = DIV_ROUND_UP(zone_end_pfn(zone) - start, 1UL << order);
	struct ir_zone_bits *bits = vzalloc(struct_size(bits, bits, BITS_TO_LONGS(nr)));

	if (bits) {
		bits->zone = zone;
		bits->start = start;
		bits->nr = nr;
	}
	return bits;
}

/* A tracker of its size in which everything is marked. */
static struct ir_tracker *new_tracker(enum ir_tracker_kind kind, unsigned int order,
				      unsigned long end_pfn)
{
	struct ir_tracker *tracker = vzalloc(sizeof(*tracker));
	unsigned long words;
	struct zone *zone;
	int nid;

	if (!tracker)
		return NULL;
	tracker->kind = kind;
	tracker->order = order;
	if (kind == IR_ZONE_BITMAP) {
		ir_for_each_zone(nid, zone) {
			struct ir_zone_bits *bits = ir_zone_bits_alloc(zone, order);

			if (!bits)
				goto failed;
			bitmap_fill(bits->bits, bits->nr);
			atomic_long_set(&bits->set, bits->nr);
			tracker->bytes += sizeof(*bits) + BITS_TO_LONGS(bits->nr) * sizeof(long);
			RCU_INIT_POINTER(tracker->zones[ir_zone_slot(zone)], bits);
		}
		return tracker;
	}
	tracker->sections = pfn_to_section_nr(end_pfn + PAGES_PER_SECTION - 1);
	words = BITS_TO_LONGS(tracker->sections);
	tracker->dirty = vzalloc(words * sizeof(long));
	tracker->bytes = words * sizeof(long);
	if (!tracker->dirty)
		goto failed;
	bitmap_fill(tracker->dirty, tracker->sections);
	if (kind == IR_SECTION_BITMAP) {
		unsigned long granules = tracker->sections * ir_granules_of_section(tracker);

		words = BITS_TO_LONGS(granules);
		tracker->granules = vzalloc(words * sizeof(long));
		tracker->bytes += words * sizeof(long);
		if (!tracker->granules)
			goto failed;
		bitmap_fill(tracker->granules, granules);
	}
	return tracker;
failed:
	free_tracker(tracker);
	return NULL;
}

/* With room for what may be added, so that adding it seldom has to wait for a pass. */
static unsigned long end_of_memory(void)
{
	unsigned long end = READ_ONCE(*ir_kernel.max_pfn);

	return ir_kernel.max_possible_pfn ? max(end, READ_ONCE(*ir_kernel.max_possible_pfn)) : end;
}

static bool has_room(const struct ir_tracker *tracker, unsigned long end_pfn)
{
	return !tracker || tracker->kind == IR_ZONE_BITMAP ||
	       tracker->sections >= pfn_to_section_nr(end_pfn + PAGES_PER_SECTION - 1);
}

/* Starts over with another tracker. All memory counts as not reported. */
int ir_tracker_set(enum ir_tracker_kind kind, unsigned int order)
{
	struct ir_tracker *tracker = new_tracker(kind, order, end_of_memory());
	struct ir_tracker *old;

	if (!tracker)
		return -ENOMEM;
	/* A pass has it for as long as a report is out. */
	if (mutex_lock_killable(&replacing)) {
		free_tracker(tracker);
		return -EINTR;
	}
	old = rcu_replace_pointer(ir_tracker, tracker, lockdep_is_held(&replacing));
	mutex_unlock(&replacing);
	synchronize_rcu();
	free_tracker(old);
	return 0;
}

/* Makes room for memory up to @end_pfn, before it comes online. */
int ir_tracker_grow(unsigned long end_pfn)
{
	struct ir_tracker *old, *tracker;
	int error = 0;
	bool room;

	rcu_read_lock();
	room = has_room(rcu_dereference(ir_tracker), end_pfn);
	rcu_read_unlock();
	/* A pass has the mutex for as long as a report is out. */
	if (room)
		return 0;
	mutex_lock(&replacing);
	old = ir_tracker_locked();
	if (has_room(old, end_pfn))
		goto out;
	tracker = new_tracker(old->kind, old->order, end_pfn);
	if (!tracker) {
		error = -ENOMEM;
		goto out;
	}
	bitmap_zero(tracker->dirty, tracker->sections);
	if (tracker->granules)
		bitmap_zero(tracker->granules,
			    tracker->sections * ir_granules_of_section(tracker));
	rcu_assign_pointer(ir_tracker, tracker);
	/* Nobody marks in the old one any more: what it has is carried over. */
	synchronize_rcu();
	if (tracker->granules) {
		unsigned long bit, nr = old->sections * ir_granules_of_section(old);

		for_each_set_bit(bit, old->granules, nr)
			set_bit(bit, tracker->granules);
	}
	{
		unsigned long section;

		for_each_set_bit(section, old->dirty, old->sections)
			set_bit(section, tracker->dirty);
	}
	free_tracker(old);
out:
	mutex_unlock(&replacing);
	return error;
}

void ir_tracker_free(void)
{
	struct ir_tracker *old;

	mutex_lock(&replacing);
	old = rcu_replace_pointer(ir_tracker, NULL, lockdep_is_held(&replacing));
	mutex_unlock(&replacing);
	synchronize_rcu();
	free_tracker(old);
}

/* Takes away the marks of memory that has gone offline. */
void ir_tracker_forget(unsigned long start_pfn, unsigned long end_pfn)
{
	struct ir_tracker *tracker;
	unsigned long section, end;

	rcu_read_lock();
	tracker = rcu_dereference(ir_tracker);
	/* A zone's bits may stay: a look finds no memory there. */
	if (!tracker || tracker->kind == IR_ZONE_BITMAP)
		goto out;
	end = min(pfn_to_section_nr(end_pfn), tracker->sections);
	for (section = pfn_to_section_nr(start_pfn); section < end; section++) {
		unsigned int granules = ir_granules_of_section(tracker), granule;

		clear_bit(section, tracker->dirty);
		/* One by one: other sections may have bits in the same word. */
		for (granule = 0; tracker->granules && granule < granules; granule++)
			clear_bit(section * granules + granule, tracker->granules);
	}
out:
	rcu_read_unlock();
}

static void mark_zone(struct ir_tracker *tracker, struct zone *zone, unsigned long pfn,
		      unsigned long nr)
{
	struct ir_zone_bits *bits = rcu_dereference(tracker->zones[ir_zone_slot(zone)]);
	unsigned long granule;

	for (granule = 0; granule < nr; granule++) {
		unsigned long at = pfn + (granule << tracker->order);
		unsigned long bit = (at - (bits ? bits->start : 0)) >> tracker->order;

		/* The zone has grown since, or is a new one: the next pass makes room. */
		if (!bits || at < bits->start || bit >= bits->nr) {
			atomic_inc(&tracker->outside);
			continue;
		}
		if (!test_and_set_bit(bit, bits->bits))
			atomic_long_inc(&bits->set);
	}
}

void ir_mark(unsigned long pfn, unsigned int order, bool whole)
{
	struct ir_tracker *tracker;
	unsigned long nr, section;
	struct page *page = pfn_to_page(pfn);

	rcu_read_lock();
	tracker = rcu_dereference(ir_tracker);
	if (!tracker || (whole && order < tracker->order))
		goto out;
	nr = order > tracker->order ? 1UL << (order - tracker->order) : 1;
	pfn = ALIGN_DOWN(pfn, 1UL << tracker->order);
	atomic64_inc(&ir_statistics.marks);
	/* After the block has come to its list, before the look at what is marked already. */
	smp_mb();
	if (tracker->kind == IR_ZONE_BITMAP) {
		mark_zone(tracker, page_zone(page), pfn, nr);
		goto out;
	}
	section = pfn_to_section_nr(pfn);
	if (section >= tracker->sections) {
		atomic_inc(&tracker->outside);
		goto out;
	}
	if (tracker->granules) {
		unsigned long bit = pfn >> tracker->order;

		for (; nr; nr--, bit++)
			if (!test_bit(bit, tracker->granules))
				set_bit(bit, tracker->granules);
		/* The granule's bit before that of its section, which a pass takes first. */
		smp_mb();
	}
	if (!test_bit(section, tracker->dirty))
		set_bit(section, tracker->dirty);
out:
	rcu_read_unlock();
}

bool ir_anything_marked(void)
{
	struct ir_tracker *tracker;
	bool marked = false;
	unsigned long slot;

	rcu_read_lock();
	tracker = rcu_dereference(ir_tracker);
	if (!tracker)
		goto out;
	if (tracker->kind != IR_ZONE_BITMAP) {
		marked = !bitmap_empty(tracker->dirty, tracker->sections);
		goto out;
	}
	marked = atomic_read(&tracker->outside);
	for (slot = 0; slot < ARRAY_SIZE(tracker->zones) && !marked; slot++) {
		struct ir_zone_bits *bits = rcu_dereference(tracker->zones[slot]);

		marked = bits && atomic_long_read(&bits->set);
	}
out:
	rcu_read_unlock();
	return marked;
}
