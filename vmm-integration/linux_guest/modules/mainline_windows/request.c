// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Passes that end, or skip a zone, and ask for no other pass.
 */
#include <linux/scatterlist.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "windows.h"

#define MIB_PAGES	((1UL << 20) >> PAGE_SHIFT)
/* The zone must have so much above its low watermark, or the pass skips it. */
#define GUARD_PAGES	((unsigned long)PAGE_REPORTING_CAPACITY << pageblock_order)

static int fail(struct scatterlist *list, unsigned int count)
{
	/* Only once. */
	WRITE_ONCE(tap.before, NULL);
	return -EIO;
}

/* Looks at blocks after the pass, in the quiet guest, and after another large free. */
static int look_three_times(struct page **pages, unsigned int count, gfp_t gfp)
{
	int err = settle();

	look_at_all("after-pass", pages, count);
	err = err ?: stay_quiet();
	look_at_all("quiet", pages, count);
	err = err ?: free_a_large_block(gfp);
	/* A zone with many blocks needs some passes, which ask for each other. */
	look_at_all("after-large-free", pages, count);
	return err;
}

static int report_fails(bool fails)
{
	struct blocks *blocks = new_blocks();
	unsigned int count;
	int err;

	if (!blocks)
		return -ENOMEM;
	take(blocks, FROM_MOVABLE, 8);
	count = blocks->count;
	if (!count) {
		err = -ENOMEM;
		goto out;
	}
	err = settle();
	look_at_all("in-use", blocks->of, count);
	if (fails)
		WRITE_ONCE(tap.before, fail);
	give_back(blocks);
	look_at_all("freed", blocks->of, count);
	err = err ?: look_three_times(blocks->of, count, FROM_MOVABLE);
	WRITE_ONCE(tap.before, NULL);
out:
	vfree(blocks);
	return err;
}

/* Allocates all large blocks of ZONE_DMA32, and none of ZONE_DMA, which is too small for a pass. */
static void take_dma32(struct blocks *blocks)
{
	unsigned int i, kept = 0;

	take(blocks, FROM_DMA32, MAX_BLOCKS);
	for (i = 0; i < blocks->count; i++) {
		if (page_zonenum(blocks->of[i]) == ZONE_DMA32)
			blocks->of[kept++] = blocks->of[i];
		else
			__free_pages(blocks->of[i], LARGE);
	}
	blocks->count = kept;
}

/*
 * Nearly all of the zone is in use; then @victims blocks are freed, and the min watermark is set so
 * that the pass begins, and cannot pull them all.
 */
static int pull_fails(void)
{
	const unsigned int victims = 40;
	struct blocks *blocks = new_blocks();
	struct page **victim;
	unsigned long unused;
	struct zone *zone;
	int before, err;
	unsigned int i;

	if (!blocks)
		return -ENOMEM;
	take_dma32(blocks);
	if (blocks->count < victims + 1) {
		err = -ENOMEM;
		goto out;
	}
	err = settle();
	zone = page_zone(blocks->of[0]);
	victim = blocks->of + blocks->count - victims;
	look_at_all("in-use", victim, victims);
	for (i = 0; i < victims; i++)
		__free_pages(victim[i], LARGE);
	blocks->count -= victims;
	/* With the low watermark at five fourths of the min watermark, and 4 MiB to spare. */
	unused = free_pages_of(zone) - GUARD_PAGES - 4 * MIB_PAGES;
	before = set_min_free(unused / 5 * 4 * (PAGE_SIZE >> 10));
	look_at_all("freed", victim, victims);
	err = err ?: settle();
	look_at_all("after-pass", victim, victims);
	set_min_free(before);
	err = err ?: stay_quiet();
	look_at_all("quiet", victim, victims);
	/* As the trigger some of the rest is freed. */
	__free_pages(blocks->of[--blocks->count], LARGE);
	err = err ?: settle();
	look_at_all("after-large-free", victim, victims);
out:
	give_back(blocks);
	vfree(blocks);
	return err ?: settle();
}

/*
 * none       reports succeed
 * error      the report fails once
 * watermark  __isolate_free_page() fails
 */
int pass_ends(const char *variant)
{
	if (!strcmp(variant, "none"))
		return report_fails(false);
	if (!strcmp(variant, "error"))
		return report_fails(true);
	if (!strcmp(variant, "watermark"))
		return pull_fails();
	return -EINVAL;
}

/* Frees every other quarter of blocks, which merges with nothing. */
static void free_quarters(struct blocks *blocks, struct zone *zone, unsigned long until)
{
	const unsigned long quarter = LARGE_PAGES / 4;
	struct page *page;
	unsigned int i, q;

	for (i = 0; i < blocks->count && free_pages_of(zone) < until; i++) {
		page = blocks->of[i];
		for (q = 1; q < 4; q++)
			init_page_count(page + q * quarter);
		__free_pages(page, LARGE - 2);
		__free_pages(page + 2 * quarter, LARGE - 2);
		/* What is left begins with the second quarter. */
		blocks->of[i] = page + quarter;
	}
}

static void free_other_quarters(struct blocks *blocks)
{
	const unsigned long quarter = LARGE_PAGES / 4;
	struct page *page;

	while (blocks->count) {
		page = blocks->of[--blocks->count];
		if (page_to_pfn(page) & (LARGE_PAGES - 1)) {
			__free_pages(page, LARGE - 2);
			__free_pages(page + 2 * quarter, LARGE - 2);
		} else {
			__free_pages(page, LARGE);
		}
	}
}

/*
 * The zone is so low when a pass comes that it is skipped. Memory that comes back in small pieces
 * asks for no other pass.
 *
 * low      the memory comes back after the pass
 * in-time  it comes back before
 */
int low_zone(const char *variant)
{
	bool low = !strcmp(variant, "low");
	const unsigned int victims = 8;
	struct blocks *blocks;
	struct page **victim;
	struct zone *zone;
	unsigned long enough;
	unsigned int i;
	int err;

	if (!low && strcmp(variant, "in-time"))
		return -EINVAL;
	blocks = new_blocks();
	if (!blocks)
		return -ENOMEM;
	take_dma32(blocks);
	if (blocks->count < victims + 40) {
		give_back(blocks);
		err = -ENOMEM;
		goto out;
	}
	err = settle();
	zone = page_zone(blocks->of[0]);
	enough = low_wmark_pages(zone) + GUARD_PAGES + 8 * MIB_PAGES;
	blocks->count -= victims;
	victim = blocks->of + blocks->count;
	look_at_all("in-use", victim, victims);
	for (i = 0; i < victims; i++)
		__free_pages(victim[i], LARGE);
	look_at_all("freed", victim, victims);
	if (!low) {
		free_quarters(blocks, zone, enough);
		look_at_all("memory-is-back", victim, victims);
	}
	err = err ?: settle();
	look_at_all("after-pass", victim, victims);
	if (low) {
		free_quarters(blocks, zone, enough);
		look_at_all("memory-is-back", victim, victims);
	}
	err = err ?: stay_quiet();
	look_at_all("quiet", victim, victims);
	__free_pages(blocks->of[--blocks->count], LARGE);
	err = err ?: settle();
	look_at_all("after-large-free", victim, victims);
	free_other_quarters(blocks);
	err = err ?: settle();
out:
	vfree(blocks);
	return err;
}
