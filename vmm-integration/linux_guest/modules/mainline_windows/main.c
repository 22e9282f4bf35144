// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Commands and results in debugfs.
 *
 * To write "WINDOW VARIANT" to mainline_windows/run makes a window, and returns when it is closed.
 * Then mainline_windows/result has a line a step, of words KEY=VALUE, and a last line result=ERROR.
 */
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "windows.h"

unsigned int quiet_ms = 3000;
module_param(quiet_ms, uint, 0644);
MODULE_PARM_DESC(quiet_ms, "How long a guest must be quiet, in milliseconds");

struct tap tap;

static const struct {
	const char *name;
	int (*make)(const char *variant);
} windows[] = {
	{ "freed-while-isolated", freed_while_isolated },
	{ "half-isolated", half_isolated },
	{ "contig-of-isolated", contig_of_isolated },
	{ "pass-ends", pass_ends },
	{ "low-zone", low_zone },
	{ "pull-cost", pull_cost },
};

static DEFINE_MUTEX(running);
/* The result, and its length; a window says some 20 lines. */
static char text[2 * PAGE_SIZE];
static size_t used;
static struct dentry *folder;
static int (*device_report)(struct page_reporting_dev_info *reporting, struct scatterlist *list,
			    unsigned int count);

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	used += vscnprintf(text + used, sizeof(text) - used, format, args);
	va_end(args);
}

static int tapped_report(struct page_reporting_dev_info *info, struct scatterlist *list,
			 unsigned int count)
{
	int (*before)(struct scatterlist *list, unsigned int count) = READ_ONCE(tap.before);
	int err = before ? before(list, count) : 0;

	if (err)
		return err;
	atomic_inc(&tap.reports);
	atomic_add(count, &tap.blocks);
	return device_report(info, list, count);
}

static int run_window(const char *name, const char *variant)
{
	unsigned int i;
	int err;

	for (i = 0; i < ARRAY_SIZE(windows); i++) {
		if (strcmp(name, windows[i].name))
			continue;
		err = settle();
		return err ?: windows[i].make(variant);
	}
	return -EINVAL;
}

static ssize_t run_write(struct file *file, const char __user *from, size_t size, loff_t *offset)
{
	char line[64], *variant = line, *name;
	int err;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, size))
		return -EFAULT;
	line[size] = '\0';
	variant = strim(line);
	name = strsep(&variant, " ");
	if (!variant)
		return -EINVAL;
	if (mutex_lock_interruptible(&running))
		return -EINTR;
	used = 0;
	err = run_window(name, variant);
	say("result=%d\n", err);
	if (used + 1 >= sizeof(text))
		err = -EOVERFLOW;
	mutex_unlock(&running);
	return err ?: size;
}

static ssize_t result_read(struct file *file, char __user *to, size_t size, loff_t *offset)
{
	ssize_t read;

	if (mutex_lock_interruptible(&running))
		return -EINTR;
	read = simple_read_from_buffer(to, size, offset, text, used);
	mutex_unlock(&running);
	return read;
}

static const struct file_operations run_file = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = run_write,
};

static const struct file_operations result_file = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = result_read,
};

static int __init start(void)
{
	int err = find_kernel();

	if (err)
		return err;
	device_report = reporting->report;
	WRITE_ONCE(reporting->report, tapped_report);
	folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("run", 0200, folder, NULL, &run_file);
	debugfs_create_file("result", 0400, folder, NULL, &result_file);
	return 0;
}

static void __exit stop(void)
{
	debugfs_remove(folder);
	WRITE_ONCE(reporting->report, device_report);
	/* A pass may be in the function that goes. */
	flush_work(&reporting->work.work);
	release_kernel();
}

module_init(start);
module_exit(stop);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("Windows in the kernel's own free page reporting");
