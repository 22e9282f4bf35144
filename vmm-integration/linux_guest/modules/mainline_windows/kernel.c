// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Functions of the kernel that are not exported, by name.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/page-isolation.h>
#include <linux/version.h>

#include "windows.h"

/* From 6.17 on the isolation is a bit of its own, and needs no type to go back to. */
#define ISOLATE_IS_A_BIT (LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0))

static struct {
#if ISOLATE_IS_A_BIT
	int (*start_isolate_page_range)(unsigned long start, unsigned long end,
					enum pb_isolate_mode mode);
	void (*undo_isolate_page_range)(unsigned long start, unsigned long end);
	int (*test_pages_isolated)(unsigned long start, unsigned long end,
				   enum pb_isolate_mode mode);
	int (*alloc_contig_range_noprof)(unsigned long start, unsigned long end,
					 acr_flags_t flags, gfp_t gfp);
	enum migratetype (*get_pfnblock_migratetype)(const struct page *page,
						     unsigned long pfn);
#else
	int (*start_isolate_page_range)(unsigned long start, unsigned long end,
					int type, int flags, gfp_t gfp);
	void (*undo_isolate_page_range)(unsigned long start, unsigned long end,
					int type);
	int (*test_pages_isolated)(unsigned long start, unsigned long end,
				   int flags);
	int (*alloc_contig_range_noprof)(unsigned long start, unsigned long end,
					 unsigned int type, gfp_t gfp);
	unsigned long (*get_pfnblock_flags_mask)(const struct page *page,
						 unsigned long pfn,
						 unsigned long mask);
#endif
	int (*__isolate_free_page)(struct page *page, unsigned int order);
	void (*__putback_isolated_page)(struct page *page, unsigned int order,
					int type);
	void (*drain_all_pages)(struct zone *zone);
	void (*setup_per_zone_wmarks)(void);
	struct module *(*__module_address)(unsigned long address);
	int *min_free_kbytes;
	struct page_reporting_dev_info **pr_dev_info;
} kernel;

struct page_reporting_dev_info *reporting;
static struct module *owner;

static unsigned long (*lookup)(const char *name);

static int find_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int err = register_kprobe(&probe);

	if (err) {
		pr_err("no kprobe on kallsyms_lookup_name: error %d\n", err);
		return err;
	}
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	return 0;
}

#define FIND(name) { #name, (void **)&kernel.name }

int find_kernel(void)
{
	static const struct {
		const char *name;
		void **where;
	} wanted[] = {
		FIND(start_isolate_page_range),
		FIND(undo_isolate_page_range),
		FIND(test_pages_isolated),
		FIND(alloc_contig_range_noprof),
#if ISOLATE_IS_A_BIT
		FIND(get_pfnblock_migratetype),
#else
		FIND(get_pfnblock_flags_mask),
#endif
		FIND(__isolate_free_page),
		FIND(__putback_isolated_page),
		FIND(drain_all_pages),
		FIND(setup_per_zone_wmarks),
		FIND(__module_address),
		FIND(min_free_kbytes),
		FIND(pr_dev_info),
	};
	unsigned int i;
	int err = find_lookup();

	if (err)
		return err;
	if (pageblock_order != HALF) {
		pr_err("a pageblock is of order %u: expected %u\n", pageblock_order, HALF);
		return -EOPNOTSUPP;
	}
	for (i = 0; i < ARRAY_SIZE(wanted); i++) {
		*wanted[i].where = (void *)lookup(wanted[i].name);
		if (!*wanted[i].where) {
			pr_err("this kernel has no symbol %s\n", wanted[i].name);
			return -ENOENT;
		}
	}

	reporting = READ_ONCE(*kernel.pr_dev_info);
	if (!reporting) {
		pr_err("no device reports free pages: load virtio_balloon first\n");
		return -ENODEV;
	}
	/* The driver must not go while its function is replaced. */
	preempt_disable();
	owner = kernel.__module_address((unsigned long)reporting->report);
	if (owner && !try_module_get(owner))
		err = -ENODEV;
	preempt_enable();
	return err;
}

void release_kernel(void)
{
	if (owner)
		module_put(owner);
}

/* Isolates pageblocks as alloc_contig_range() does. */
int isolate(unsigned long start, unsigned long end)
{
#if ISOLATE_IS_A_BIT
	return kernel.start_isolate_page_range(start, end, PB_ISOLATE_MODE_OTHER);
#else
	return kernel.start_isolate_page_range(start, end, MIGRATE_MOVABLE, 0, GFP_KERNEL);
#endif
}

void undo_isolate(unsigned long start, unsigned long end)
{
#if ISOLATE_IS_A_BIT
	kernel.undo_isolate_page_range(start, end);
#else
	kernel.undo_isolate_page_range(start, end, MIGRATE_MOVABLE);
#endif
}

int test_isolated(unsigned long start, unsigned long end)
{
#if ISOLATE_IS_A_BIT
	return kernel.test_pages_isolated(start, end, PB_ISOLATE_MODE_OTHER);
#else
	return kernel.test_pages_isolated(start, end, 0);
#endif
}

/* Allocates a range, and frees it again if that succeeds; returns the error. */
int take_contig(unsigned long start, unsigned long end)
{
	unsigned long pfn;
	int err;

#if ISOLATE_IS_A_BIT
	err = kernel.alloc_contig_range_noprof(start, end, ACR_FLAGS_NONE, GFP_KERNEL);
#else
	err = kernel.alloc_contig_range_noprof(start, end, MIGRATE_MOVABLE, GFP_KERNEL);
#endif
	for (pfn = start; !err && pfn < end; pfn++)
		__free_page(pfn_to_page(pfn));
	return err;
}

/* The migratetype of a page's pageblock. */
int type_of(struct page *page)
{
#if ISOLATE_IS_A_BIT
	return kernel.get_pfnblock_migratetype(page, page_to_pfn(page));
#else
	return kernel.get_pfnblock_flags_mask(page, page_to_pfn(page), MIGRATETYPE_MASK);
#endif
}

int pull(struct page *page, unsigned int order)
{
	return kernel.__isolate_free_page(page, order);
}

void put_back(struct page *page, unsigned int order, int type)
{
	kernel.__putback_isolated_page(page, order, type);
}

/* Frees the pages on the lists of all CPUs. */
void drain_lists(void)
{
	kernel.drain_all_pages(NULL);
}

/* Sets vm.min_free_kbytes; returns the value before. */
int set_min_free(int kbytes)
{
	int before = *kernel.min_free_kbytes;

	*kernel.min_free_kbytes = kbytes;
	kernel.setup_per_zone_wmarks();
	return before;
}
