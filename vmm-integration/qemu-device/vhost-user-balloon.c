/* SPDX-License-Identifier: GPL-2.0-or-later */

/*
 * A virtio-balloon device whose queues another process serves by vhost-user.
 *
 * The configuration space is QEMU's own copy, so that the guest can read it and
 * the monitor can set a target whether or not a back-end is there. When the
 * back-end is gone for longer than a grace time, QEMU returns the guest's
 * chains itself: a driver that waits for one can be unloaded, and the guest be
 * powered off. A back-end that connects again goes on with the rings as they
 * are, and is told what the driver has written to the configuration space.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "qapi/qapi-events-machine.h"
#include "exec/cpu-common.h"
#include "hw/boards.h"
#include "hw/mem/memory-device.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "hw/virtio/virtio-bus.h"
#include "migration/qemu-file-types.h"
#include "migration/vmstate.h"
#include "standard-headers/linux/vhost_types.h"
#include "system/address-spaces.h"
#include "system/balloon.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "vhost-user-balloon.h"

/* Queues by index. The others depend on what was negotiated. */
#define INFLATE 0
#define STATISTICS 2
/* Where the specification has the queue of reports. */
#define REPORTS 4

#define NUM_PAGES offsetof(struct virtio_balloon_config, num_pages)
#define ACTUAL offsetof(struct virtio_balloon_config, actual)
#define POISON_VAL offsetof(struct virtio_balloon_config, poison_val)

/* Bits of vhost-user that are no features of the device. */
#define NOT_FOR_GUESTS \
    ((1ULL << VHOST_F_LOG_ALL) | (1ULL << VHOST_USER_F_PROTOCOL_FEATURES))

#define PAGE_BYTES (1ULL << VIRTIO_BALLOON_PFN_SHIFT)

static void balloon_event(void *opaque, QEMUChrEvent event);

static int64_t virtual_ms(void)
{
    return qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL);
}

static bool has_driver(VirtIODevice *vdev)
{
    return vdev->status & VIRTIO_CONFIG_S_DRIVER_OK;
}

/* Without a driver a change is owed to the next one. */
static void notify_driver(VHostUserBalloon *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    if (has_driver(vdev)) {
        virtio_notify_config(vdev);
    } else {
        s->change_owed = true;
    }
}

/*
 * The queue of reports: where the specification has it, or, if the driver has
 * set up no such queue, behind those that were negotiated, as Linux numbers
 * them. Negative without reports.
 */
static int reports_index(VirtIODevice *vdev)
{
    if (!virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_REPORTING)) {
        return -1;
    }
    if (virtio_queue_get_desc_addr(vdev, REPORTS)) {
        return REPORTS;
    }
    return 2 + virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_STATS_VQ) +
           virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_FREE_PAGE_HINT);
}

/* Whether pages that the guest does not need may read as zeros afterwards. */
static bool may_discard(VHostUserBalloon *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    if (!s->outage_discard || ram_block_discard_is_disabled()) {
        return false;
    }
    return !virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_PAGE_POISON) ||
           !s->config.poison_val;
}

/* Discards the whole pages among `bytes` at `offset`. */
static void discard(RAMBlock *block, ram_addr_t offset, size_t bytes)
{
    size_t page = qemu_ram_pagesize(block);
    ram_addr_t from = ROUND_UP(offset, page);
    ram_addr_t to = ROUND_DOWN(offset + bytes, page);

    if (from < to) {
        ram_block_discard_range(block, from, to - from);
    }
}

/* Discards what a chain of the queue of reports names. */
static void discard_reported(const VirtQueueElement *chain)
{
    for (unsigned int i = 0; i < chain->in_num; i++) {
        const struct iovec *range = &chain->in_sg[i];
        ram_addr_t offset;
        RAMBlock *block;

        block = qemu_ram_block_from_host(range->iov_base, false, &offset);
        if (block) {
            discard(block, offset, range->iov_len);
        }
    }
}

/* Discards the pages whose numbers are in a chain of the queue of inflation. */
static void discard_inflated(const VirtQueueElement *chain)
{
    size_t at = 0;
    uint32_t number;

    while (iov_to_buf(chain->out_sg, chain->out_num, at, &number,
                      sizeof(number)) == sizeof(number)) {
        hwaddr address = (hwaddr)le32_to_cpu(number) << VIRTIO_BALLOON_PFN_SHIFT;
        MemoryRegionSection section;

        at += sizeof(number);
        section = memory_region_find(get_system_memory(), address, PAGE_BYTES);
        if (!section.mr) {
            continue;
        }
        if (memory_region_is_ram(section.mr) &&
            !memory_region_is_rom(section.mr)) {
            ram_addr_t offset;
            RAMBlock *block;
            void *host = (uint8_t *)memory_region_get_ram_ptr(section.mr) +
                         section.offset_within_region;

            block = qemu_ram_block_from_host(host, false, &offset);
            if (block) {
                discard(block, offset, int128_get64(section.size));
            }
        }
        memory_region_unref(section.mr);
    }
}

/* Returns what is in a queue with a used length of zero, as a back-end would. */
static void return_chains(VHostUserBalloon *s, int index)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtQueue *vq = s->vqs[index];
    VirtQueueElement *chain;
    bool returned = false;

    /* The buffer for statistics is the device's until it wants some. */
    if (index == STATISTICS &&
        virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_STATS_VQ)) {
        return;
    }
    while ((chain = virtqueue_pop(vq, sizeof(VirtQueueElement)))) {
        if (may_discard(s)) {
            if (index == reports_index(vdev)) {
                discard_reported(chain);
            } else if (index == INFLATE) {
                discard_inflated(chain);
            }
        }
        virtqueue_push(vq, chain, 0);
        g_free(chain);
        returned = true;
    }
    if (returned) {
        virtio_notify(vdev, vq);
    }
}

/* The grace time is over. */
static void stand_in(void *opaque)
{
    VHostUserBalloon *s = opaque;
    uint32_t round = le32_to_cpu(s->config.free_page_hint_cmd_id);

    s->standing_in = true;
    /* The driver keeps what it has hinted until the round is over. */
    if (round > VIRTIO_BALLOON_CMD_ID_DONE) {
        s->config.free_page_hint_cmd_id = cpu_to_le32(VIRTIO_BALLOON_CMD_ID_DONE);
        notify_driver(s);
    }
    for (int i = 0; i < VHOST_USER_BALLOON_QUEUES; i++) {
        return_chains(s, i);
    }
}

/* A driver is there, and no back-end serves its queues. */
static void begin_outage(VHostUserBalloon *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    if (s->standing_in || timer_pending(s->grace)) {
        return;
    }
    /* The back-end may have returned chains and not said so. */
    for (int i = 0; i < VHOST_USER_BALLOON_QUEUES; i++) {
        if (virtio_queue_get_desc_addr(vdev, i)) {
            virtio_notify(vdev, s->vqs[i]);
        }
    }
    timer_mod(s->grace, MAX(virtual_ms(), s->lost_at + s->grace_ms));
}

static void end_outage(VHostUserBalloon *s)
{
    timer_del(s->grace);
    s->standing_in = false;
}

static void balloon_handle_output(VirtIODevice *vdev, VirtQueue *vq)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(vdev);

    if (s->standing_in) {
        return_chains(s, virtio_get_queue_index(vq));
    }
}

/* Tells the back-end part of the configuration space. */
static int tell_config(VHostUserBalloon *s, size_t offset,
                       VhostSetConfigType type)
{
    return vhost_dev_set_config(&s->vhost, (uint8_t *)&s->config + offset,
                                offset, sizeof(uint32_t), type);
}

/* What a driver may write. */
static void tell_written(VHostUserBalloon *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    tell_config(s, ACTUAL, VHOST_SET_CONFIG_TYPE_FRONTEND);
    if (virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_PAGE_POISON)) {
        tell_config(s, POISON_VAL, VHOST_SET_CONFIG_TYPE_FRONTEND);
    }
}

/*
 * The target may be written by the device only. To a back-end that is the
 * configuration of a guest that has come from elsewhere; one that has its
 * targets from its own operator refuses it.
 */
static bool tell_target(VHostUserBalloon *s)
{
    struct virtio_balloon_config shown;

    if (tell_config(s, NUM_PAGES, VHOST_SET_CONFIG_TYPE_MIGRATION) ||
        vhost_dev_get_config(&s->vhost, (uint8_t *)&shown, sizeof(shown), NULL) ||
        shown.num_pages != s->config.num_pages) {
        return false;
    }
    s->backend_target = shown.num_pages;
    return true;
}

/* Takes over what the back-end has changed, and tells the driver. */
static void take_config(VHostUserBalloon *s, const struct virtio_balloon_config *shown,
                        bool take_target)
{
    bool changed = false;

    s->backend_target = shown->num_pages;
    if (take_target) {
        changed = s->config.num_pages != shown->num_pages;
        s->config.num_pages = shown->num_pages;
        s->monitor_target = false;
    }
    if (s->config.free_page_hint_cmd_id != shown->free_page_hint_cmd_id) {
        s->config.free_page_hint_cmd_id = shown->free_page_hint_cmd_id;
        changed = true;
    }
    if (changed) {
        notify_driver(s);
    }
}

/*
 * Later than what asks for it: a back-end may wait for the answer to its
 * message, and a driver that has just begun cannot be notified yet.
 */
static void refresh_config(void *opaque)
{
    VHostUserBalloon *s = opaque;
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    struct virtio_balloon_config shown;
    Error *err = NULL;

    if (s->change_owed && has_driver(vdev)) {
        s->change_owed = false;
        virtio_notify_config(vdev);
    }
    if (!s->connected) {
        return;
    }
    if (vhost_dev_get_config(&s->vhost, (uint8_t *)&shown, sizeof(shown), &err)) {
        warn_report_err(err);
        return;
    }
    take_config(s, &shown, shown.num_pages != s->backend_target);
}

static int config_changed(struct vhost_dev *vhost)
{
    VHostUserBalloon *s = container_of(vhost, VHostUserBalloon, vhost);

    qemu_bh_schedule(s->refresh);
    return 0;
}

static const VhostDevConfigOps config_ops = {
    .vhost_dev_config_notifier = config_changed,
};

/* Takes the queues from the back-end. Of one that is gone nothing is asked. */
static void stop_serving(VHostUserBalloon *s, bool gone)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    BusState *bus = qdev_get_parent_bus(DEVICE(s));
    VirtioBusClass *bus_class = VIRTIO_BUS_GET_CLASS(bus);

    if (!s->serving) {
        return;
    }
    s->serving = false;
    if (gone) {
        vhost_dev_force_stop(&s->vhost, vdev, false);
    } else if (vhost_dev_stop(&s->vhost, vdev, true) < 0) {
        warn_report("%s: the back-end did not stop all queues", vdev->name);
    }
    if (bus_class->set_guest_notifiers(bus->parent, s->vhost.nvqs, false) < 0) {
        error_report("%s: cannot take the notifiers of the guest back", vdev->name);
    }
    vhost_dev_disable_notifiers(&s->vhost, vdev);
}

/* Gives the back-end the queues. */
static void start_serving(VHostUserBalloon *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    BusState *bus = qdev_get_parent_bus(DEVICE(s));
    VirtioBusClass *bus_class = VIRTIO_BUS_GET_CLASS(bus);
    int ret;

    if (!bus_class->set_guest_notifiers) {
        error_report("%s: the bus has no notifiers for the guest", vdev->name);
        return;
    }
    ret = vhost_dev_enable_notifiers(&s->vhost, vdev);
    if (ret < 0) {
        error_report("%s: cannot set up notifiers: %s", vdev->name, strerror(-ret));
        return;
    }
    ret = bus_class->set_guest_notifiers(bus->parent, s->vhost.nvqs, true);
    if (ret < 0) {
        error_report("%s: cannot set up notifiers of the guest: %s", vdev->name,
                     strerror(-ret));
        goto no_guest_notifiers;
    }
    s->vhost.acked_features = vdev->guest_features;
    /* The queues run once the back-end knows what the driver has written. */
    ret = vhost_dev_start(&s->vhost, vdev, false);
    if (ret < 0) {
        error_report("%s: the back-end does not start: %s", vdev->name, strerror(-ret));
        goto not_started;
    }
    if (s->inherited) {
        tell_written(s);
    }
    ret = s->vhost.vhost_ops->vhost_set_vring_enable(&s->vhost, 1);
    if (ret < 0) {
        error_report("%s: the back-end does not enable queues: %s", vdev->name,
                     strerror(-ret));
        vhost_dev_stop(&s->vhost, vdev, false);
        goto not_started;
    }
    s->serving = true;
    s->inherited = false;
    qemu_bh_schedule(s->refresh);
    /* A kick may have gone to the back-end before. */
    for (int i = 0; i < VHOST_USER_BALLOON_QUEUES; i++) {
        if (virtio_queue_get_desc_addr(vdev, i)) {
            event_notifier_set(virtio_queue_get_host_notifier(s->vqs[i]));
        }
    }
    return;

not_started:
    bus_class->set_guest_notifiers(bus->parent, s->vhost.nvqs, false);
no_guest_notifiers:
    vhost_dev_disable_notifiers(&s->vhost, vdev);
}

/* Brings the queues to where they belong for a driver with this status. */
static void settle(VHostUserBalloon *s, uint8_t status)
{
    bool runs = virtio_device_should_start(VIRTIO_DEVICE(s), status);

    if (!runs) {
        stop_serving(s, false);
        end_outage(s);
        return;
    }
    if (s->connected && !s->serving) {
        end_outage(s);
        start_serving(s);
    }
    if (!s->serving) {
        begin_outage(s);
    }
}

static int balloon_set_status(VirtIODevice *vdev, uint8_t status)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(vdev);

    /* A driver begins: a back-end does not tell it what it reads by itself. */
    if (status && !vdev->status) {
        refresh_config(s);
    }
    settle(s, status);
    if (s->change_owed && (status & VIRTIO_CONFIG_S_DRIVER_OK)) {
        qemu_bh_schedule(s->refresh);
    }
    return 0;
}

/* The features of a back-end, as far as they are the guest's. */
static uint64_t guest_features(VHostUserBalloon *s)
{
    return s->vhost.features & ~NOT_FOR_GUESTS;
}

static uint64_t balloon_get_features(VirtIODevice *vdev, uint64_t requested,
                                     Error **errp)
{
    /* Of these the machine has properties. */
    uint64_t of_rings = (1ULL << VIRTIO_RING_F_INDIRECT_DESC) |
                        (1ULL << VIRTIO_RING_F_EVENT_IDX) |
                        (1ULL << VIRTIO_F_RING_PACKED) |
                        (1ULL << VIRTIO_F_RING_RESET) |
                        (1ULL << VIRTIO_F_IOMMU_PLATFORM);

    return VHOST_USER_BALLOON(vdev)->offered & (~of_rings | requested);
}

static void balloon_get_config(VirtIODevice *vdev, uint8_t *config)
{
    memcpy(config, &VHOST_USER_BALLOON(vdev)->config,
           sizeof(struct virtio_balloon_config));
}

static ram_addr_t guest_bytes(void)
{
    return current_machine->ram_size + get_plugged_memory_size();
}

/* What the guest has without the pages in its balloon. */
static ram_addr_t left_bytes(VHostUserBalloon *s)
{
    ram_addr_t taken = (ram_addr_t)le32_to_cpu(s->config.actual)
                       << VIRTIO_BALLOON_PFN_SHIFT;

    return guest_bytes() - MIN(taken, guest_bytes());
}

static void balloon_set_config(VirtIODevice *vdev, const uint8_t *bytes)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(vdev);
    struct virtio_balloon_config written;
    bool actual_changed, poison_changed;

    memcpy(&written, bytes, sizeof(written));
    actual_changed = written.actual != s->config.actual;
    poison_changed =
        virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_PAGE_POISON) &&
        (written.poison_val != s->config.poison_val || !has_driver(vdev));
    s->config.actual = written.actual;
    if (poison_changed) {
        s->config.poison_val = written.poison_val;
    }
    if (!s->connected) {
        s->inherited = true;
    } else {
        if (actual_changed) {
            tell_config(s, ACTUAL, VHOST_SET_CONFIG_TYPE_FRONTEND);
        }
        if (poison_changed) {
            tell_config(s, POISON_VAL, VHOST_SET_CONFIG_TYPE_FRONTEND);
        }
    }
    if (actual_changed) {
        qapi_event_send_balloon_change(left_bytes(s));
    }
}

/* The monitor's `balloon`: what is to be left to the guest. */
static void monitor_target(void *opaque, ram_addr_t left)
{
    VHostUserBalloon *s = opaque;
    ram_addr_t all = guest_bytes();
    ram_addr_t pages = (all - MIN(left, all)) >> VIRTIO_BALLOON_PFN_SHIFT;

    s->config.num_pages = cpu_to_le32(MIN(pages, UINT32_MAX));
    s->monitor_target = true;
    if (s->connected) {
        tell_target(s);
    }
    notify_driver(s);
}

/* The monitor's `query-balloon`. */
static void monitor_query(void *opaque, BalloonInfo *info)
{
    info->actual = left_bytes(opaque);
}

static void balloon_reset(VirtIODevice *vdev)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(vdev);

    s->config.actual = 0;
    s->config.poison_val = 0;
    s->inherited = false;
}

/* Whether there is memory of the guest that another process can map. */
static bool has_shared_memory(VHostUserBalloon *s)
{
    for (int i = 0; i < s->vhost.n_mem_sections; i++) {
        MemoryRegion *memory = s->vhost.mem_sections[i].mr;

        if (memory_region_get_fd(memory) >= 0 && memory->ram_block &&
            qemu_ram_is_shared(memory->ram_block)) {
            return true;
        }
    }
    return false;
}

/* Sets up what is known of a back-end that has just connected. */
static bool meet_backend(VHostUserBalloon *s, bool first, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    struct virtio_balloon_config shown;
    uint64_t lacking;

    s->vhost.nvqs = VHOST_USER_BALLOON_QUEUES;
    s->vhost.vqs = s->vhost_vqs;
    memset(s->vhost_vqs, 0, sizeof(s->vhost_vqs));
    vhost_dev_set_config_notifier(&s->vhost, &config_ops);
    if (vhost_dev_init(&s->vhost, &s->user, VHOST_BACKEND_TYPE_USER, 0, errp) < 0) {
        return false;
    }
    lacking = s->offered & ~guest_features(s);
    if (lacking) {
        error_setg(errp, "%s: the back-end lacks the features 0x%" PRIx64
                   " that the guest was offered: start it with the options of "
                   "the one before", vdev->name, lacking);
        goto refused;
    }
    if (vhost_dev_get_config(&s->vhost, (uint8_t *)&shown, sizeof(shown), errp)) {
        goto refused;
    }
    if (first && !has_shared_memory(s)) {
        error_setg(errp, "%s: no memory of the guest is shared: give its memory "
                   "backend share=on", vdev->name);
        goto refused;
    }
    s->connected = true;
    s->lacking = 0;
    if (first) {
        s->offered = guest_features(s);
        take_config(s, &shown, true);
        s->change_owed = false;
    } else {
        bool told = tell_target(s);

        take_config(s, &shown, !told && !s->monitor_target);
        if (told) {
            s->backend_target = s->config.num_pages;
        }
    }
    return true;

refused:
    s->lacking = lacking;
    vhost_dev_cleanup(&s->vhost);
    return false;
}

/* The connection is gone. */
static void lose_backend(DeviceState *dev)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(dev);
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);

    if (s->connected) {
        s->connected = false;
        s->lost_at = virtual_ms();
        s->inherited |= vdev->status != 0;
        stop_serving(s, true);
        vhost_dev_cleanup(&s->vhost);
        settle(s, vdev->status);
    }
    qemu_chr_fe_set_handlers(&s->chardev, NULL, NULL, balloon_event, NULL, dev,
                             NULL, true);
}

static void balloon_event(void *opaque, QEMUChrEvent event)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(opaque);
    VirtIODevice *vdev = VIRTIO_DEVICE(opaque);
    uint64_t lacking = s->lacking;
    Error *err = NULL;

    switch (event) {
    case CHR_EVENT_OPENED:
        if (s->connected) {
            break;
        }
        if (meet_backend(s, false, &err)) {
            settle(s, vdev->status);
            break;
        }
        /* It comes again, with each attempt. */
        if (lacking && lacking == s->lacking) {
            error_free(err);
        } else {
            error_report_err(err);
        }
        qemu_chr_fe_disconnect(&s->chardev);
        break;
    case CHR_EVENT_CLOSED:
        vhost_user_async_close(DEVICE(s), &s->chardev, &s->vhost, lose_backend);
        break;
    case CHR_EVENT_BREAK:
    case CHR_EVENT_MUX_IN:
    case CHR_EVENT_MUX_OUT:
        break;
    }
}

static void delete_queues(VHostUserBalloon *s)
{
    for (int i = 0; i < VHOST_USER_BALLOON_QUEUES; i++) {
        virtio_delete_queue(s->vqs[i]);
    }
}

static void balloon_realize(DeviceState *dev, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VHostUserBalloon *s = VHOST_USER_BALLOON(dev);

    if (!qemu_chr_fe_backend_connected(&s->chardev)) {
        error_setg(errp, "vhost-user-balloon: give it a chardev");
        return;
    }
    if (!is_power_of_2(s->queue_size) || s->queue_size > VIRTQUEUE_MAX_SIZE) {
        error_setg(errp, "vhost-user-balloon: queue-size is %u: expected a power "
                   "of two, at most %u", s->queue_size, VIRTQUEUE_MAX_SIZE);
        return;
    }
    s->user.supports_config = true;
    if (!vhost_user_init(&s->user, &s->chardev, errp)) {
        return;
    }
    virtio_init(vdev, VIRTIO_ID_BALLOON, sizeof(struct virtio_balloon_config));
    /* The bus masks vectors by itself. */
    vdev->use_guest_notifier_mask = false;
    for (int i = 0; i < VHOST_USER_BALLOON_QUEUES; i++) {
        s->vqs[i] = virtio_add_queue(vdev, s->queue_size, balloon_handle_output);
    }
    s->refresh = qemu_bh_new_guarded(refresh_config, s, &dev->mem_reentrancy_guard);
    s->grace = timer_new_ms(QEMU_CLOCK_VIRTUAL, stand_in, s);

    if (qemu_chr_fe_wait_connected(&s->chardev, errp) < 0 ||
        !meet_backend(s, true, errp)) {
        goto failed;
    }
    if (qemu_add_balloon_handler(monitor_target, monitor_query, s) < 0) {
        error_setg(errp, "vhost-user-balloon: the machine has a balloon already");
        vhost_dev_cleanup(&s->vhost);
        s->connected = false;
        goto failed;
    }
    qemu_chr_fe_set_handlers(&s->chardev, NULL, NULL, balloon_event, NULL, dev,
                             NULL, true);
    return;

failed:
    timer_free(s->grace);
    qemu_bh_delete(s->refresh);
    vhost_user_cleanup(&s->user);
    delete_queues(s);
    virtio_cleanup(vdev);
}

static void balloon_unrealize(DeviceState *dev)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VHostUserBalloon *s = VHOST_USER_BALLOON(dev);

    qemu_remove_balloon_handler(s);
    balloon_set_status(vdev, 0);
    qemu_chr_fe_set_handlers(&s->chardev, NULL, NULL, NULL, NULL, NULL, NULL, false);
    if (s->connected) {
        s->connected = false;
        vhost_dev_cleanup(&s->vhost);
    }
    timer_free(s->grace);
    qemu_bh_delete(s->refresh);
    vhost_user_cleanup(&s->user);
    delete_queues(s);
    virtio_cleanup(vdev);
}

static struct vhost_dev *balloon_get_vhost(VirtIODevice *vdev)
{
    return &VHOST_USER_BALLOON(vdev)->vhost;
}

/* The back-end's own state, behind a byte that says whether there is one. */
static int save_backend(QEMUFile *f, void *field, size_t size,
                        const VMStateField *description, JSONWriter *json)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(field);
    bool saved = s->connected && vhost_supports_device_state(&s->vhost);
    Error *err = NULL;
    int ret;

    qemu_put_byte(f, saved);
    if (!saved) {
        return 0;
    }
    ret = vhost_save_backend_state(&s->vhost, f, &err);
    if (ret < 0) {
        error_reportf_err(err, "%s: saving the back-end: ", VIRTIO_DEVICE(s)->name);
    }
    return ret;
}

static int load_backend(QEMUFile *f, void *field, size_t size,
                        const VMStateField *description)
{
    VHostUserBalloon *s = VHOST_USER_BALLOON(field);
    Error *err = NULL;
    int ret;

    if (!qemu_get_byte(f)) {
        return 0;
    }
    if (!s->connected || !vhost_supports_device_state(&s->vhost)) {
        error_report("%s: the state of a back-end has come, and none is there "
                     "that takes it", VIRTIO_DEVICE(s)->name);
        return -EINVAL;
    }
    ret = vhost_load_backend_state(&s->vhost, f, &err);
    if (ret < 0) {
        error_reportf_err(err, "%s: restoring the back-end: ", VIRTIO_DEVICE(s)->name);
    }
    return ret;
}

static int balloon_post_load(void *opaque, int version)
{
    VHostUserBalloon *s = opaque;

    s->inherited = true;
    if (s->connected && !tell_target(s) && !s->monitor_target) {
        refresh_config(s);
    }
    return 0;
}

static const VMStateInfo backend_state = {
    .name = "back-end of vhost-user-balloon",
    .get = load_backend,
    .put = save_backend,
};

static const VMStateDescription vmstate_device = {
    .name = "vhost-user-balloon-device",
    .version_id = 1,
    .minimum_version_id = 1,
    .post_load = balloon_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_BUFFER_UNSAFE(config, VHostUserBalloon, 0,
                              sizeof(struct virtio_balloon_config)),
        VMSTATE_BOOL(monitor_target, VHostUserBalloon),
        {
            .name = "back-end",
            .info = &backend_state,
            .flags = VMS_SINGLE,
        },
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_balloon = {
    .name = "vhost-user-balloon",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_VIRTIO_DEVICE,
        VMSTATE_END_OF_LIST()
    },
};

static const Property balloon_properties[] = {
    DEFINE_PROP_CHR("chardev", VHostUserBalloon, chardev),
    DEFINE_PROP_UINT16("queue-size", VHostUserBalloon, queue_size, 128),
    DEFINE_PROP_UINT32("grace-ms", VHostUserBalloon, grace_ms, 1000),
    DEFINE_PROP_BOOL("outage-discard", VHostUserBalloon, outage_discard, true),
};

static void balloon_class_init(ObjectClass *klass, const void *data)
{
    DeviceClass *device = DEVICE_CLASS(klass);
    VirtioDeviceClass *virtio = VIRTIO_DEVICE_CLASS(klass);

    device_class_set_props(device, balloon_properties);
    device->vmsd = &vmstate_balloon;
    set_bit(DEVICE_CATEGORY_MISC, device->categories);
    virtio->vmsd = &vmstate_device;
    virtio->realize = balloon_realize;
    virtio->unrealize = balloon_unrealize;
    virtio->get_features = balloon_get_features;
    virtio->get_config = balloon_get_config;
    virtio->set_config = balloon_set_config;
    virtio->set_status = balloon_set_status;
    virtio->reset = balloon_reset;
    virtio->get_vhost = balloon_get_vhost;
}

static const TypeInfo balloon_types[] = {
    {
        .name = TYPE_VHOST_USER_BALLOON,
        .parent = TYPE_VIRTIO_DEVICE,
        .instance_size = sizeof(VHostUserBalloon),
        .class_init = balloon_class_init,
    },
};

DEFINE_TYPES(balloon_types)
