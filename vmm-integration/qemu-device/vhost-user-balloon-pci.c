/* SPDX-License-Identifier: GPL-2.0-or-later */

/* vhost-user-balloon on PCI, with an interrupt vector for each queue. */

#include "qemu/osdep.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio-pci.h"
#include "vhost-user-balloon.h"

#define TYPE_VHOST_USER_BALLOON_PCI "vhost-user-balloon-pci-base"
OBJECT_DECLARE_SIMPLE_TYPE(VHostUserBalloonPCI, VHOST_USER_BALLOON_PCI)

struct VHostUserBalloonPCI {
    VirtIOPCIProxy parent_obj;
    VHostUserBalloon vdev;
};

static void balloon_pci_realize(VirtIOPCIProxy *proxy, Error **errp)
{
    VHostUserBalloonPCI *s = VHOST_USER_BALLOON_PCI(proxy);

    if (proxy->nvectors == DEV_NVECTORS_UNSPECIFIED) {
        /* One more for changes of the configuration. */
        proxy->nvectors = VHOST_USER_BALLOON_QUEUES + 1;
    }
    qdev_realize(DEVICE(&s->vdev), BUS(&proxy->bus), errp);
}

static const Property balloon_pci_properties[] = {
    DEFINE_PROP_UINT32("vectors", VirtIOPCIProxy, nvectors, DEV_NVECTORS_UNSPECIFIED),
    DEFINE_PROP_BIT("ioeventfd", VirtIOPCIProxy, flags,
                    VIRTIO_PCI_FLAG_USE_IOEVENTFD_BIT, true),
};

static void balloon_pci_class_init(ObjectClass *klass, const void *data)
{
    DeviceClass *device = DEVICE_CLASS(klass);
    PCIDeviceClass *pci = PCI_DEVICE_CLASS(klass);

    VIRTIO_PCI_CLASS(klass)->realize = balloon_pci_realize;
    device_class_set_props(device, balloon_pci_properties);
    set_bit(DEVICE_CATEGORY_MISC, device->categories);
    pci->vendor_id = PCI_VENDOR_ID_REDHAT_QUMRANET;
    /* virtio-pci sets it by the id of the device. */
    pci->device_id = 0;
    pci->revision = 0;
    pci->class_id = PCI_CLASS_OTHERS;
}

static void balloon_pci_init(Object *obj)
{
    VHostUserBalloonPCI *s = VHOST_USER_BALLOON_PCI(obj);

    virtio_instance_init_common(obj, &s->vdev, sizeof(s->vdev), TYPE_VHOST_USER_BALLOON);
}

static const VirtioPCIDeviceTypeInfo balloon_pci_type = {
    .base_name = TYPE_VHOST_USER_BALLOON_PCI,
    .non_transitional_name = "vhost-user-balloon-pci",
    .instance_size = sizeof(VHostUserBalloonPCI),
    .instance_init = balloon_pci_init,
    .class_init = balloon_pci_class_init,
};

static void balloon_pci_register(void)
{
    virtio_pci_types_register(&balloon_pci_type);
}

type_init(balloon_pci_register)
