// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* A pass's way through the marks of each tracker. */
#include "isolation_reporting.h"

#include <linux/sched.h>
#include <linux/vmalloc.h>

void ir_walk_start(struct ir_walk *walk)
{
	ir_tracker_lock();
	*walk = (struct ir_walk){
		.tracker = ir_tracker_locked(),
		.clear_first = READ_ONCE(ir_settings.clear_first),
	};
	walk->section = walk->tracker->sections;
	/* Before any bitmap is swapped: what is outside of the new ones counts again. */
	walk->grown = atomic_xchg(&walk->tracker->outside, 0);
}

/* Goes to the next section that is marked, and takes the section's mark away. */
static bool next_section(struct ir_walk *walk)
{
	struct ir_tracker *tracker = walk->tracker;

	/* Known bad: a mark that was made during the look is lost with it. */
	if (!walk->clear_first && walk->section < tracker->sections)
		clear_bit(walk->section, tracker->dirty);
	walk->section = find_next_bit(tracker->dirty, tracker->sections, walk->next);
	if (walk->section >= tracker->sections)
		return false;
	walk->next = walk->section + 1;
	walk->at = walk->section * ir_granules_of_section(tracker);
	if (walk->clear_first)
		clear_bit(walk->section, tracker->dirty);
	/* The section's bit before those of its granules, which are marked before it. */
	smp_mb__after_atomic();
	return true;
}

static bool next_of_sections(struct ir_walk *walk, unsigned long *pfn)
{
	struct ir_tracker *tracker = walk->tracker;
	unsigned int granules = ir_granules_of_section(tracker);

	for (;;) {
		unsigned long end = (walk->section + 1) * granules;

		if (walk->section < tracker->sections) {
			if (tracker->granules)
				walk->at = find_next_bit(tracker->granules, end, walk->at);
			if (walk->at < end)
				break;
		}
		if (!next_section(walk))
			return false;
		cond_resched();
	}
	if (tracker->granules && walk->clear_first) {
		clear_bit(walk->at, tracker->granules);
		/* The mark before the look. */
		smp_mb__after_atomic();
	}
	*pfn = walk->at++ << tracker->order;
	return true;
}

/*
 * Takes the bitmap of the next zone that has marks, and leaves an empty one of the zone's size in
 * its place. Markers that found the old one are waited for, then it is the pass's own.
 */
static bool swap_zone(struct ir_walk *walk)
{
	struct ir_tracker *tracker = walk->tracker;
	struct ir_zone_bits *bits, *fresh;
	struct zone *zone;
	unsigned long slot = 0;
	int nid;

	vfree(walk->zone);
	walk->zone = NULL;
	ir_for_each_zone(nid, zone) {
		if (slot++ < walk->next)
			continue;
		walk->next = slot;
		bits = rcu_dereference_protected(tracker->zones[ir_zone_slot(zone)], true);
		if (bits && !atomic_long_read(&bits->set) && !walk->grown)
			continue;
		fresh = ir_zone_bits_alloc(zone, tracker->order);
		if (!fresh)
			return false;
		rcu_assign_pointer(tracker->zones[ir_zone_slot(zone)], fresh);
		synchronize_rcu();
		if (!bits || bits->start != fresh->start || bits->nr != fresh->nr) {
			/* The zone has changed: marks may have found no bit. */
			vfree(bits);
			bits = ir_zone_bits_alloc(zone, tracker->order);
			if (!bits)
				return false;
			bitmap_fill(bits->bits, bits->nr);
		}
		walk->zone = bits;
		walk->at = 0;
		return true;
	}
	return false;
}

static bool next_of_zones(struct ir_walk *walk, unsigned long *pfn)
{
	struct ir_zone_bits *bits;

	for (;;) {
		bits = walk->zone;
		if (bits) {
			walk->at = find_next_bit(bits->bits, bits->nr, walk->at);
			if (walk->at < bits->nr)
				break;
		}
		if (!swap_zone(walk))
			return false;
		cond_resched();
	}
	__clear_bit(walk->at, bits->bits);
	*pfn = bits->start + (walk->at++ << walk->tracker->order);
	return true;
}

/* The next granule that was marked; its mark is taken. False when there is none. */
bool ir_walk_next(struct ir_walk *walk, unsigned long *pfn)
{
	return walk->tracker->kind == IR_ZONE_BITMAP ? next_of_zones(walk, pfn) :
						       next_of_sections(walk, pfn);
}

/* The granule at @pfn was looked at. Only now is its mark taken if marks are cleared late. */
void ir_walk_looked(struct ir_walk *walk, unsigned long pfn)
{
	struct ir_tracker *tracker = walk->tracker;

	if (!walk->clear_first && tracker->granules)
		clear_bit(pfn >> tracker->order, tracker->granules);
}

/*
 * All of a block is held: its other granules need no look, nor does a section's walk come back to
 * them. No mark is lost: nothing in a block that is held can be freed.
 */
void ir_walk_took(struct ir_walk *walk, unsigned long pfn, unsigned int order)
{
	struct ir_tracker *tracker = walk->tracker;
	unsigned long first = pfn >> tracker->order;
	unsigned long nr = 1UL << (order - tracker->order);

	if (tracker->granules)
		for (; nr; nr--, first++)
			clear_bit(first, tracker->granules);
	else if (walk->zone)
		bitmap_clear(walk->zone->bits, first - (walk->zone->start >> tracker->order), nr);
	else
		walk->at = max(walk->at, first + nr);
}

/* Marks again what the walk took and did not come to. */
void ir_walk_end(struct ir_walk *walk)
{
	struct ir_tracker *tracker = walk->tracker;
	struct ir_zone_bits *bits = walk->zone;

	if (tracker->kind != IR_ZONE_BITMAP) {
		if (walk->section < tracker->sections) {
			if (walk->at < (walk->section + 1) * ir_granules_of_section(tracker))
				set_bit(walk->section, tracker->dirty);
		}
	} else if (bits) {
		unsigned long bit;

		for_each_set_bit_from(walk->at, bits->bits, bits->nr) {
			bit = bits->start + (walk->at << tracker->order);
			if (pfn_to_online_page(bit))
				ir_mark(bit, tracker->order, false);
		}
		vfree(bits);
	}
	ir_tracker_unlock();
}
