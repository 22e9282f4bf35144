/* SPDX-License-Identifier: GPL-2.0-or-later */

/* A virtio-balloon device whose queues another process serves by vhost-user. */

#ifndef HW_VIRTIO_VHOST_USER_BALLOON_H
#define HW_VIRTIO_VHOST_USER_BALLOON_H

#include "hw/virtio/vhost.h"
#include "hw/virtio/vhost-user.h"
#include "hw/virtio/virtio.h"
#include "standard-headers/linux/virtio_balloon.h"

#define TYPE_VHOST_USER_BALLOON "vhost-user-balloon"
OBJECT_DECLARE_SIMPLE_TYPE(VHostUserBalloon, VHOST_USER_BALLOON)

/* Inflate, deflate, statistics, free page hints, free page reports. */
#define VHOST_USER_BALLOON_QUEUES 5

struct VHostUserBalloon {
    VirtIODevice parent_obj;

    /* Properties. */
    CharFrontend chardev;
    uint16_t queue_size;
    uint32_t grace_ms;
    bool outage_discard;

    VirtQueue *vqs[VHOST_USER_BALLOON_QUEUES];

    /* The back-end. Without a connection `vhost` is all zeros. */
    VhostUserState user;
    struct vhost_dev vhost;
    struct vhost_virtqueue vhost_vqs[VHOST_USER_BALLOON_QUEUES];
    bool connected;
    /* The back-end has the queues. */
    bool serving;
    /* What the guest was offered: each later back-end has to offer it, too. */
    uint64_t offered;
    /* Features that the last back-end lacked; said once. */
    uint64_t lacking;

    /* What the guest reads and writes. */
    struct virtio_balloon_config config;
    /* The target that the back-end has shown last. */
    uint32_t backend_target;
    /* The target is from the monitor, and not from the back-end. */
    bool monitor_target;
    /* A change that came without a driver. */
    bool change_owed;
    /* The driver began with another back-end: this one has to be told what it wrote. */
    bool inherited;
    QEMUBH *refresh;

    /* While no back-end serves the queues. */
    QEMUTimer *grace;
    int64_t lost_at;
    bool standing_in;
};

#endif
