// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Figures in debugfs: isolation_reporting/statistics and isolation_reporting/held. */
#include "isolation_reporting.h"

#include <linux/debugfs.h>
#include <linux/log2.h>
#include <linux/seq_file.h>

#define CREATE_TRACE_POINTS
#include "trace.h"

struct ir_statistics ir_statistics;

static const char * const outcome_names[IR_OUTCOMES] = {
	[IR_HELD] = "held",	[IR_NOT_FREE] = "not-free", [IR_BUSY] = "busy",
	[IR_LOST] = "lost",	[IR_LOW] = "low",	    [IR_SKIPPED] = "skipped",
};

void ir_cost_add(struct ir_cost *cost, u64 ns)
{
	unsigned int power = ns ? ilog2(ns) : 0;

	cost->count++;
	cost->total += ns;
	cost->most = max(cost->most, ns);
	cost->by_power[min_t(unsigned int, power, ARRAY_SIZE(cost->by_power) - 1)]++;
}

static void show_cost(struct seq_file *file, const char *name, const struct ir_cost *cost)
{
	unsigned int power;

	seq_printf(file, "%s count %llu total-ns %llu most-ns %llu", name, cost->count, cost->total,
		   cost->most);
	/* Durations by the power of two that they reach: POWER:COUNT. */
	for (power = 0; power < ARRAY_SIZE(cost->by_power); power++)
		if (cost->by_power[power])
			seq_printf(file, " %u:%llu", power, cost->by_power[power]);
	seq_puts(file, "\n");
}

static int statistics_show(struct seq_file *file, void *unused)
{
	struct ir_statistics *statistics = &ir_statistics;
	struct ir_tracker *tracker;
	unsigned int i;

	seq_printf(file, "passes %llu\nempty-passes %llu\n", statistics->passes,
		   statistics->empty_passes);
	for (i = 0; i < IR_OUTCOMES; i++)
		seq_printf(file, "%s %llu\n", outcome_names[i], statistics->outcomes[i]);
	seq_printf(file, "second-looks %llu\nsecond-looks-free %llu\n", statistics->second_looks,
		   statistics->second_looks_free);
	seq_printf(file, "chains %llu\nfailed-chains %llu\nblocks %llu\npages %llu\n",
		   statistics->chains, statistics->failed_chains, statistics->blocks,
		   statistics->pages);
	seq_printf(file, "heard %lld\ndeaf %lld\nmarks %lld\nverified %lld\nmismatches %lld\n",
		   atomic64_read(&statistics->heard), atomic64_read(&statistics->deaf),
		   atomic64_read(&statistics->marks), atomic64_read(&statistics->verified),
		   atomic64_read(&statistics->mismatches));
	seq_printf(file, "missed %lu\n", ir_free_paths_missed());
	rcu_read_lock();
	tracker = rcu_dereference(ir_tracker);
	seq_printf(file, "tracker-bytes %zu\n", tracker ? tracker->bytes : 0);
	rcu_read_unlock();
	show_cost(file, "start", &statistics->start);
	show_cost(file, "test", &statistics->test);
	show_cost(file, "undo", &statistics->undo);
	show_cost(file, "pull", &statistics->pull);
	show_cost(file, "put-back", &statistics->put_back);
	show_cost(file, "report", &statistics->report);
	show_cost(file, "held", &statistics->held);
	show_cost(file, "pass", &statistics->pass);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(statistics);

/* One block a line: its first page frame, order and section. */
static int held_show(struct seq_file *file, void *unused)
{
	unsigned int nr = READ_ONCE(ir_held_count), i;

	for (i = 0; i < nr; i++)
		seq_printf(file, "%lu %u %lu\n", ir_held[i].pfn, ir_held[i].order,
			   pfn_to_section_nr(ir_held[i].pfn));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(held);

static struct dentry *folder;

void ir_statistics_start(void)
{
	folder = debugfs_create_dir("isolation_reporting", NULL);
	debugfs_create_file("statistics", 0444, folder, NULL, &statistics_fops);
	debugfs_create_file("held", 0444, folder, NULL, &held_fops);
}

void ir_statistics_stop(void)
{
	debugfs_remove(folder);
}
