// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * A block that is isolated while it is freed, reported or asked for.
 */
#include <linux/delay.h>
#include <linux/scatterlist.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "windows.h"

/*
 * A pageblock is isolated, and freed as a block of order 9 whose buddy is in use. Then the
 * isolation ends, as when memory offlining gives up.
 *
 * held   it ends after the pass that the free has asked for
 * brief  it ends before that pass
 * none   nothing is isolated
 */
int freed_while_isolated(const char *variant)
{
	bool held = !strcmp(variant, "held"), brief = !strcmp(variant, "brief");
	struct page *page;
	unsigned long pfn;
	int err;

	if (!held && !brief && strcmp(variant, "none"))
		return -EINVAL;
	page = take_halves(FROM_MOVABLE);
	if (!page)
		return -ENOMEM;
	pfn = page_to_pfn(page);
	err = settle();
	if (!err && (held || brief))
		err = isolate(pfn, pfn + HALF_PAGES);
	if (err) {
		__free_pages(page, HALF);
		goto out;
	}
	look("in-use", page);
	__free_pages(page, HALF);
	/* Elsewhere a block of this order stays on a per-CPU list. */
	drain_lists();
	look("freed", page);
	if (brief)
		undo_isolate(pfn, pfn + HALF_PAGES);
	err = settle();
	look("after-pass", page);
	if (held) {
		undo_isolate(pfn, pfn + HALF_PAGES);
		look("isolation-ended", page);
	}
	err = err ?: stay_quiet();
	look("quiet", page);
	err = err ?: free_a_large_block(FROM_MOVABLE);
	look("after-large-free", page);
out:
	__free_pages(page + HALF_PAGES, HALF);
	drain_lists();
	return err ?: settle();
}

/* The part of a reported block that is isolated, in pages from its start. */
static unsigned long isolate_from, isolate_to;
/* The block, while it is out of the allocator. */
static struct page *victim;
static int isolate_error;

static void set_part(unsigned long from, unsigned long to)
{
	isolate_from = from;
	isolate_to = to;
}

static int isolate_part(struct scatterlist *list, unsigned int count)
{
	struct scatterlist *entry;
	unsigned long pfn;
	unsigned int i;

	if (victim)
		return 0;
	for_each_sg(list, entry, count, i) {
		if (entry->length != PAGE_SIZE << LARGE)
			continue;
		victim = sg_page(entry);
		pfn = page_to_pfn(victim);
		if (isolate_from != isolate_to)
			isolate_error = isolate(pfn + isolate_from, pfn + isolate_to);
		look("pulled", victim);
		break;
	}
	return 0;
}

/* Allocates blocks until there is none, or this one is allocated. */
static void allocate_until(struct blocks *blocks, struct page *wanted)
{
	bool handed_out;
	unsigned int count;

	do {
		count = blocks->count;
		take(blocks, FROM_MOVABLE, 1);
		handed_out = blocks->count > count && blocks->of[count] == wanted;
	} while (blocks->count > count && !handed_out);
	say("step=allocation allocated=%u handed-out=%d\n", blocks->count, handed_out);
}

/*
 * A part of a block of order 10 is isolated while a report has it. Then blocks are allocated until
 * the whole zone, or this block, is allocated.
 */
int half_isolated(const char *variant)
{
	struct blocks *blocks;
	unsigned long pfn;
	int err;

	if (!strcmp(variant, "second"))
		set_part(HALF_PAGES, LARGE_PAGES);
	else if (!strcmp(variant, "first"))
		set_part(0, HALF_PAGES);
	else if (!strcmp(variant, "whole"))
		set_part(0, LARGE_PAGES);
	else if (!strcmp(variant, "none"))
		set_part(0, 0);
	else
		return -EINVAL;
	blocks = new_blocks();
	if (!blocks)
		return -ENOMEM;
	take(blocks, FROM_MOVABLE, 8);
	err = settle();
	victim = NULL;
	isolate_error = 0;
	WRITE_ONCE(tap.before, isolate_part);
	give_back(blocks);
	err = err ?: settle();
	WRITE_ONCE(tap.before, NULL);
	if (err || !victim || isolate_error) {
		err = err ?: isolate_error ?: -ENODATA;
		goto out;
	}
	pfn = page_to_pfn(victim);
	look("put-back", victim);
	if (isolate_from != isolate_to)
		say("step=test-isolated error=%d\n",
		    test_isolated(pfn + isolate_from, pfn + isolate_to));
	allocate_until(blocks, victim);
	look("allocated", victim);
	give_back(blocks);
	look("freed", victim);
	if (isolate_from != isolate_to)
		undo_isolate(pfn + isolate_from, pfn + isolate_to);
	look("isolation-ended", victim);
	err = settle();
	look("after-pass", victim);
out:
	vfree(blocks);
	return err;
}

/*
 * A free block of order 10 is isolated, and alloc_contig_range() is asked for it, which must fail.
 *
 * asked  alloc_contig_range() is asked
 * alone  nobody asks
 */
int contig_of_isolated(const char *variant)
{
	bool asked = !strcmp(variant, "asked");
	struct blocks *blocks;
	unsigned long pfn;
	int err;

	if (!asked && strcmp(variant, "alone"))
		return -EINVAL;
	blocks = new_blocks();
	if (!blocks)
		return -ENOMEM;
	take(blocks, FROM_MOVABLE, 1);
	err = blocks->count ? 0 : -ENOMEM;
	if (err)
		goto out;
	victim = blocks->of[0];
	pfn = page_to_pfn(victim);
	give_back(blocks);
	/* Until it is reported. */
	err = settle();
	err = err ?: isolate(pfn, pfn + LARGE_PAGES);
	if (err)
		goto out;
	look("isolated", victim);
	if (asked)
		say("step=contig error=%d\n", take_contig(pfn, pfn + LARGE_PAGES));
	look("after-contig", victim);
	allocate_until(blocks, victim);
	look("allocated", victim);
	give_back(blocks);
	undo_isolate(pfn, pfn + LARGE_PAGES);
	look("isolation-ended", victim);
	err = settle();
out:
	vfree(blocks);
	return err;
}
