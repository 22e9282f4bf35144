/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Free page reporting by isolation of pageblocks, as proposed on linux-mm in November 2019.
 *
 * A hook hears of each large block that is freed and marks where it lies; a pass takes the marks,
 * holds the free blocks it finds there, and reports them through the device that mainline's free
 * page reporting serves. While the module is loaded its pass runs in place of mainline's.
 */
#ifndef _ISOLATION_REPORTING_H
#define _ISOLATION_REPORTING_H

/* Before the first header of the kernel: how its messages begin. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/page-isolation.h>
#include <linux/page_reporting.h>
#include <linux/rcupdate.h>
#include <linux/version.h>
#include <linux/workqueue.h>

/* Isolation takes modes, and keeps the migrate type of a pageblock that it isolates. */
#define IR_ISOLATION_KEEPS_TYPE	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0))

#if !IR_ISOLATION_KEEPS_TYPE
enum pb_isolate_mode { PB_ISOLATE_MODE_OTHER, PB_ISOLATE_MODE_CMA_ALLOC };
#endif

/* What the kernel does not export. */
struct ir_kernel {
#if IR_ISOLATION_KEEPS_TYPE
	int (*start_isolate)(unsigned long start, unsigned long end, enum pb_isolate_mode mode);
	int (*test_isolated)(unsigned long start, unsigned long end, enum pb_isolate_mode mode);
	void (*undo_isolate)(unsigned long start, unsigned long end);
	enum migratetype (*migratetype)(const struct page *page, unsigned long pfn);
#else
	int (*start_isolate)(unsigned long start, unsigned long end, int type, int flags,
			     gfp_t gfp);
	int (*test_isolated)(unsigned long start, unsigned long end, int flags);
	void (*undo_isolate)(unsigned long start, unsigned long end, int type);
	unsigned long (*block_flags)(const struct page *page, unsigned long pfn,
				     unsigned long mask);
#endif
	int (*pull)(struct page *page, unsigned int order);
	void (*put_back)(struct page *page, unsigned int order, int type);
	struct percpu_rw_semaphore *hotplug_lock;
	void (*notify)(void);
	struct page_reporting_dev_info **device;
	struct mutex *device_mutex;
	void *free_one_page_inner;	/* __free_one_page */
	unsigned int *order;		/* page_reporting_order */
	unsigned int *delay_ms;		/* page_reporting_delay_ms; NULL: two seconds */
	struct tracepoint *pcpu_drain;
	unsigned long *max_pfn;
	unsigned long *max_possible_pfn;	/* with memory that may be added; or NULL */
};

extern struct ir_kernel ir_kernel;
int ir_find_symbols(void);

static inline int ir_migratetype(struct page *page)
{
#if IR_ISOLATION_KEEPS_TYPE
	return ir_kernel.migratetype(page, page_to_pfn(page));
#else
	return ir_kernel.block_flags(page, page_to_pfn(page), MIGRATETYPE_MASK);
#endif
}

/* Switches; each may change at any time and counts from the next pass. */
enum ir_tracker_kind { IR_SECTION_BIT, IR_SECTION_BITMAP, IR_ZONE_BITMAP, IR_TRACKERS };
enum ir_hold { IR_ISOLATE, IR_PULL, IR_HOLDS };
enum ir_hook { IR_NOTIFY_SITE, IR_FREE_PATHS, IR_HOOKS };

struct ir_settings {
	enum ir_hold hold;
	enum ir_hook hook;
	unsigned int batch;	/* blocks a report */
	bool watermark;		/* keep out of zones near their low watermark */
	bool second_look;	/* look again under the zone's lock at what does not seem free */
	bool clear_first;	/* take a mark before the look; otherwise known bad */
	bool hear_itself;	/* hear what its own isolation moves; known bad */
	unsigned int window_ms;	/* sleep after a look that finds nothing free */
};

extern struct ir_settings ir_settings;

/* A free block, held or about to be. */
struct ir_block {
	unsigned long pfn;
	unsigned int order;
	enum ir_hold hold;
	u64 since;		/* when it was held, ns */
#if !IR_ISOLATION_KEEPS_TYPE
	int types[1 << (MAX_PAGE_ORDER - 9 > 0 ? MAX_PAGE_ORDER - 9 : 0)];
#endif
};

enum ir_outcome { IR_HELD, IR_NOT_FREE, IR_BUSY, IR_LOST, IR_LOW, IR_SKIPPED, IR_OUTCOMES };

/* Holds the free block around @pfn that has at least the order @least. */
enum ir_outcome ir_hold_around(unsigned long pfn, unsigned int least, struct ir_block *block);
void ir_release(struct ir_block *block);
/* Whether the caller is the pass that moves blocks itself at this moment. */
bool ir_is_own_move(void);

/* The marks. */
struct ir_zone_bits {
	struct zone *zone;
	unsigned long start;	/* first page frame, aligned to a granule */
	unsigned long nr;	/* granules */
	atomic_long_t set;	/* bits that are set */
	unsigned long bits[];
};

struct ir_tracker {
	enum ir_tracker_kind kind;
	unsigned int order;	/* of a granule */
	unsigned long sections;
	unsigned long *dirty;	/* a bit a section: something there is marked */
	unsigned long *granules;	/* a bit a granule, for IR_SECTION_BITMAP */
	struct ir_zone_bits __rcu *zones[MAX_NUMNODES * MAX_NR_ZONES];
	atomic_t outside;	/* marks that no bit exists for */
	size_t bytes;
};

extern struct ir_tracker __rcu *ir_tracker;
int ir_tracker_set(enum ir_tracker_kind kind, unsigned int order);
void ir_tracker_lock(void);
void ir_tracker_unlock(void);
struct ir_tracker *ir_tracker_locked(void);
int ir_tracker_grow(unsigned long end_pfn);
void ir_tracker_free(void);
void ir_tracker_forget(unsigned long start_pfn, unsigned long end_pfn);
/* @whole: the block is as large as it became on its list: a smaller one is none to report. */
void ir_mark(unsigned long pfn, unsigned int order, bool whole);
bool ir_anything_marked(void);
struct ir_zone_bits *ir_zone_bits_alloc(struct zone *zone, unsigned int order);

static inline unsigned int ir_granules_of_section(const struct ir_tracker *tracker)
{
	return 1U << (PFN_SECTION_SHIFT - tracker->order);
}

/* The kernel's own walk over zones is not exported. Do not leave it by break. */
#define ir_for_each_zone(nid, zone)						\
	for_each_online_node(nid)						\
		for ((zone) = NODE_DATA(nid)->node_zones;			\
		     (zone) < NODE_DATA(nid)->node_zones + MAX_NR_ZONES; (zone)++)	\
			if (populated_zone(zone))

static inline unsigned long ir_zone_slot(const struct zone *zone)
{
	return zone_to_nid(zone) * MAX_NR_ZONES + zone_idx(zone);
}

/* A pass's way through the marks. */
struct ir_walk {
	struct ir_tracker *tracker;
	bool clear_first;
	unsigned long at;	/* granule to look at next */
	unsigned long section;	/* that the walk is in; tracker->sections: none yet */
	unsigned long next;	/* first section or zone slot that was not visited */
	bool grown;		/* marks found no bit */
	struct ir_zone_bits *zone;	/* taken out of the tracker, owned by the walk */
};

void ir_walk_start(struct ir_walk *walk);
bool ir_walk_next(struct ir_walk *walk, unsigned long *pfn);
void ir_walk_looked(struct ir_walk *walk, unsigned long pfn);
void ir_walk_took(struct ir_walk *walk, unsigned long pfn, unsigned int order);
void ir_walk_end(struct ir_walk *walk);

/* The hooks. */
int ir_hook_verify(void);
int ir_notify_site_start(void);
int ir_notify_site_verify(void);
void ir_notify_site_stop(void);
int ir_free_paths_start(void);
void ir_free_paths_stop(void);
unsigned long ir_free_paths_missed(void);

/* In place of mainline's pass. */
int ir_take_over(void);
void ir_give_back(void);
void ir_pass(struct work_struct *work);

/* Figures. A count is written by the pass only, or is atomic. */
struct ir_cost {
	u64 count;
	u64 total;	/* ns */
	u64 most;	/* ns */
	u64 by_power[40];	/* by the highest bit of the ns */
};

struct ir_statistics {
	u64 passes, empty_passes, outcomes[IR_OUTCOMES], second_looks, second_looks_free;
	u64 chains, failed_chains, blocks, pages, pass_ns;
	struct ir_cost start, test, undo, pull, put_back, report, held, pass;
	atomic64_t heard, deaf, marks, verified, mismatches;
};

extern struct ir_statistics ir_statistics;
void ir_cost_add(struct ir_cost *cost, u64 ns);
void ir_statistics_start(void);
void ir_statistics_stop(void);

/* What the pass holds at the moment, for statistics. */
extern struct ir_block ir_held[PAGE_REPORTING_CAPACITY];
extern unsigned int ir_held_count;

#endif
