// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Switches, and the order in which things start and stop. */
#include "isolation_reporting.h"

#include <linux/memory.h>
#include <linux/module.h>
#include <linux/string.h>

static const char * const tracker_names[IR_TRACKERS] = {
	[IR_SECTION_BIT] = "section-bit",
	[IR_SECTION_BITMAP] = "section-bitmap",
	[IR_ZONE_BITMAP] = "zone-bitmap",
};

static const char * const hold_names[IR_HOLDS] = {
	[IR_ISOLATE] = "isolate",
	[IR_PULL] = "pull",
};

static const char * const hook_names[IR_HOOKS] = {
	[IR_NOTIFY_SITE] = "notify-site",
	[IR_FREE_PATHS] = "free-paths",
};

/* A switch with named positions. A change of @rebuilds makes another tracker. */
struct choice {
	const char * const *names;
	size_t nr;
	unsigned int *value;
	bool rebuilds;
};

static unsigned int tracker_kind = IR_SECTION_BITMAP;
static unsigned int granule_order;
static bool running;

static int rebuild(void)
{
	int error = running ? ir_tracker_set(tracker_kind, granule_order) : 0;

	/* All memory is marked, and no free tells of that. */
	if (running && !error)
		ir_kernel.notify();
	return error;
}

static int choice_set(const char *text, const struct kernel_param *param)
{
	const struct choice *choice = param->arg;
	int position = __sysfs_match_string(choice->names, choice->nr, text);
	unsigned int before = *choice->value;
	int error = 0;

	if (position < 0)
		return position;
	WRITE_ONCE(*choice->value, position);
	if (choice->rebuilds)
		error = rebuild();
	if (error)
		WRITE_ONCE(*choice->value, before);
	return error;
}

static int choice_get(char *buffer, const struct kernel_param *param)
{
	const struct choice *choice = param->arg;

	return sysfs_emit(buffer, "%s\n", choice->names[READ_ONCE(*choice->value)]);
}

static const struct kernel_param_ops choice_ops = { .set = choice_set, .get = choice_get };

static struct choice tracker_choice = { tracker_names, IR_TRACKERS, &tracker_kind, true };
module_param_cb(tracker, &choice_ops, &tracker_choice, 0644);
MODULE_PARM_DESC(tracker, "where marks are kept: section-bit, section-bitmap or zone-bitmap");

static struct choice hold_choice = { hold_names, IR_HOLDS, (unsigned int *)&ir_settings.hold };
module_param_cb(hold, &choice_ops, &hold_choice, 0644);
MODULE_PARM_DESC(hold, "how blocks are held: isolate or pull");

static struct choice hook_choice = { hook_names, IR_HOOKS, (unsigned int *)&ir_settings.hook };
module_param_cb(hook, &choice_ops, &hook_choice, 0444);
MODULE_PARM_DESC(hook, "where frees are heard: notify-site (this build only) or free-paths");

static int order_set(const char *text, const struct kernel_param *param)
{
	unsigned int order, before = granule_order;
	int error = kstrtouint(text, 0, &order);

	if (error)
		return error;
	if (order < pageblock_order || order > MAX_PAGE_ORDER)
		return -EINVAL;
	granule_order = order;
	error = rebuild();
	if (error)
		granule_order = before;
	return error;
}

static const struct kernel_param_ops order_ops = { .set = order_set, .get = param_get_uint };
module_param_cb(order, &order_ops, &granule_order, 0644);
MODULE_PARM_DESC(order, "order of a granule, from that of a pageblock to the largest");

static int batch_set(const char *text, const struct kernel_param *param)
{
	return param_set_uint_minmax(text, param, 1, PAGE_REPORTING_CAPACITY);
}

static const struct kernel_param_ops batch_ops = { .set = batch_set, .get = param_get_uint };
module_param_cb(batch, &batch_ops, &ir_settings.batch, 0644);
MODULE_PARM_DESC(batch, "blocks a report, 1 to 32");

module_param_named(watermark, ir_settings.watermark, bool, 0644);
MODULE_PARM_DESC(watermark, "keep out of zones near their low watermark");
module_param_named(second_look, ir_settings.second_look, bool, 0644);
MODULE_PARM_DESC(second_look, "look again under the zone's lock at what does not seem free");
module_param_named(clear_first, ir_settings.clear_first, bool, 0644);
MODULE_PARM_DESC(clear_first, "take a mark before the look (known bad without)");
module_param_named(hear_itself, ir_settings.hear_itself, bool, 0644);
MODULE_PARM_DESC(hear_itself, "hear what its own isolation moves (known bad)");
module_param_named(window_ms, ir_settings.window_ms, uint, 0644);
MODULE_PARM_DESC(window_ms, "sleep after a look that finds nothing free, to see what comes in between");

int ir_hook_verify(void)
{
	return ir_settings.hook == IR_NOTIFY_SITE ? ir_notify_site_verify() : 0;
}

static int hook_start(void)
{
	return ir_settings.hook == IR_NOTIFY_SITE ? ir_notify_site_start() : ir_free_paths_start();
}

static void hook_stop(void)
{
	if (ir_settings.hook == IR_NOTIFY_SITE)
		ir_notify_site_stop();
	else
		ir_free_paths_stop();
}

static int memory_changes(struct notifier_block *block, unsigned long action, void *data)
{
	struct memory_notify *memory = data;
	unsigned long end = memory->start_pfn + memory->nr_pages;

	if (action == MEM_GOING_ONLINE)
		return notifier_from_errno(ir_tracker_grow(end));
	if (action == MEM_OFFLINE)
		ir_tracker_forget(memory->start_pfn, end);
	return NOTIFY_OK;
}

static struct notifier_block memory_block = { .notifier_call = memory_changes };

static int __init start(void)
{
	int error = ir_find_symbols();

	if (error)
		return error;
	if (!granule_order)
		granule_order = pageblock_order;
	error = ir_tracker_set(tracker_kind, granule_order);
	if (error)
		return error;
	running = true;
	error = register_memory_notifier(&memory_block);
	if (error)
		goto no_notifier;
	error = hook_start();
	if (error)
		goto no_hook;
	error = ir_take_over();
	if (error)
		goto no_device;
	ir_statistics_start();
	return 0;
no_device:
	hook_stop();
no_hook:
	unregister_memory_notifier(&memory_block);
no_notifier:
	ir_tracker_free();
	return error;
}

static void __exit stop(void)
{
	ir_statistics_stop();
	ir_give_back();
	hook_stop();
	unregister_memory_notifier(&memory_block);
	running = false;
	ir_tracker_free();
}

module_init(start);
module_exit(stop);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("Free page reporting by isolation of pageblocks");
