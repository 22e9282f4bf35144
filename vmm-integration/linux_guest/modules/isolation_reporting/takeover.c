// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The module's pass in place of mainline's: the work of the registered device gets another
 * function.
 *
 * Mainline then schedules, freezes and cancels our pass as its own. A pass of mainline that is
 * under way goes on to its end; the two never run at the same time, since they are the same work.
 */
#include "isolation_reporting.h"

#include <linux/kprobes.h>
#include <linux/mutex.h>

/* Mainline's pass, while ours is in its place. */
static work_func_t mainline;
static struct page_reporting_dev_info *taken;

/* With the mutex of the device held. */
static int take_device(void)
{
	struct page_reporting_dev_info *device = *ir_kernel.device;
	int error;

	if (!device || device->work.work.func == ir_pass)
		return 0;
	error = ir_hook_verify();
	if (error)
		return error;
	mainline = device->work.work.func;
	WRITE_ONCE(device->work.work.func, ir_pass);
	taken = device;
	/* All is marked: ask for a pass. */
	ir_kernel.notify();
	pr_info("reports in place of mainline\n");
	return 0;
}

static void take_new_device(struct work_struct *work)
{
	mutex_lock(ir_kernel.device_mutex);
	take_device();
	mutex_unlock(ir_kernel.device_mutex);
}

static DECLARE_WORK(new_device, take_new_device);

static int registered(struct kretprobe_instance *call, struct pt_regs *regs)
{
	schedule_work(&new_device);
	return 0;
}

static struct kretprobe registration = {
	.kp.symbol_name = "page_reporting_register",
	.handler = registered,
};

/* Takes the device that is there, and those to come. */
int ir_take_over(void)
{
	int error = register_kretprobe(&registration);

	if (error)
		return error;
	mutex_lock(ir_kernel.device_mutex);
	error = take_device();
	mutex_unlock(ir_kernel.device_mutex);
	if (error) {
		unregister_kretprobe(&registration);
		cancel_work_sync(&new_device);
	}
	return error;
}

/* Waits for a report that is out: its blocks are held until the device has answered. */
void ir_give_back(void)
{
	struct page_reporting_dev_info *device;

	unregister_kretprobe(&registration);
	cancel_work_sync(&new_device);
	mutex_lock(ir_kernel.device_mutex);
	device = *ir_kernel.device;
	if (device && device == taken && device->work.work.func == ir_pass) {
		WRITE_ONCE(device->work.work.func, mainline);
		cancel_delayed_work_sync(&device->work);
		atomic_set(&device->state, 0);
		ir_kernel.notify();
	}
	mutex_unlock(ir_kernel.device_mutex);
}
