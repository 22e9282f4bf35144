/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Windows in the kernel's own free page reporting.
 *
 * main.c       commands and results in debugfs
 * kernel.c     functions that the kernel does not export
 * blocks.c     free and used blocks, and the reporting worker
 * isolation.c  a block that is isolated while it is freed, reported or asked for
 * request.c    passes that end without asking for another one
 * pull.c       the cost of taking a block off its free list
 */
#ifndef MAINLINE_WINDOWS_H
#define MAINLINE_WINDOWS_H

#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/page_reporting.h>

/* The largest block, of two pageblocks, and one of a pageblock. */
#define LARGE		MAX_PAGE_ORDER
#define LARGE_PAGES	(1UL << LARGE)
#define HALF		(MAX_PAGE_ORDER - 1)
#define HALF_PAGES	(1UL << HALF)

/* More blocks than a guest of this experiment has. */
#define MAX_BLOCKS	4096

/* Allocations in ZONE_MOVABLE, if there is memory, and in ZONE_DMA32; nothing is reclaimed. */
#define FROM_MOVABLE	((GFP_HIGHUSER_MOVABLE & ~__GFP_RECLAIM) | __GFP_NOWARN)
#define FROM_DMA32	(__GFP_DMA32 | __GFP_NOWARN)

/* kernel.c */
int find_kernel(void);
void release_kernel(void);
int isolate(unsigned long start, unsigned long end);
void undo_isolate(unsigned long start, unsigned long end);
int test_isolated(unsigned long start, unsigned long end);
int take_contig(unsigned long start, unsigned long end);
int type_of(struct page *page);
int pull(struct page *page, unsigned int order);
void put_back(struct page *page, unsigned int order, int type);
void drain_lists(void);
int set_min_free(int kbytes);

extern struct page_reporting_dev_info *reporting;

/* main.c */
extern unsigned int quiet_ms;
void say(const char *format, ...) __printf(1, 2);

/* What a window does to reports, and their number. */
struct tap {
	/* If set, called before the device gets a report; an error ends the pass. */
	int (*before)(struct scatterlist *list, unsigned int count);
	/* Reports and blocks in them since the module was loaded. */
	atomic_t reports;
	atomic_t blocks;
};

extern struct tap tap;

/* blocks.c */
struct blocks {
	struct page *of[MAX_BLOCKS];
	unsigned int count;
};

struct blocks *new_blocks(void);
void take(struct blocks *blocks, gfp_t gfp, unsigned int count);
void give_back(struct blocks *blocks);
struct page *take_halves(gfp_t gfp);
bool is_free(struct page *page, unsigned int order);
void look(const char *step, struct page *page);
void look_at_all(const char *step, struct page **pages, unsigned int count);
int settle(void);
int stay_quiet(void);
int free_a_large_block(gfp_t gfp);
unsigned long free_pages_of(struct zone *zone);

/* isolation.c, request.c, pull.c */
int freed_while_isolated(const char *variant);
int half_isolated(const char *variant);
int contig_of_isolated(const char *variant);
int pass_ends(const char *variant);
int low_zone(const char *variant);
int pull_cost(const char *variant);

#endif
