// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `--help` says after the options. The man pages have the same text, a section for each heading.

use super::exit::{self, DaemonExit};

/// Returns the text after the options of the daemon.
pub(super) fn after() -> String {
    format!("{EXAMPLES}\n{SIGNALS}\nExit status:\n{}", exit::list::<DaemonExit>())
}

/// Returns the text after the options of `hostd`.
pub(super) fn after_hostd() -> String {
    let failed = |status: &DaemonExit| {
        matches!(status, DaemonExit::Done | DaemonExit::Failed | DaemonExit::Usage)
    };
    format!("{HOSTD}\nExit status:\n{}", exit::list_if(failed))
}

const HOSTD: &str = "\
Examples:
  Serve the metrics of all daemons, and steer them by a policy:

    vhost-device-balloon hostd --metrics-address 127.0.0.1:9143 --policy FILE
";

const EXAMPLES: &str = "\
Examples:
  Attach to QEMU 10.2 or later. Guest memory must be shared, and the guest must have no other balloon:

    vhost-device-balloon --socket-path /run/balloon.sock \\
      --control-socket /run/balloon.ctl --statistics &
    device=vhost-user-test-device-pci,chardev=balloon
    device=$device,virtio-id=5,num_vqs=5,vq_size=128,config_size=16
    qemu-system-x86_64 -m 4G -machine q35,memory-backend=mem \\
      -object memory-backend-memfd,id=mem,size=4G,share=on \\
      -chardev socket,id=balloon,path=/run/balloon.sock \\
      -device $device ...

  All four numbers of the device matter:

    virtio-id=5     the balloon
    num_vqs=5       enough for every set of options; the guest driver fails with fewer than 3
    vq_size=128     at least 32, or the driver of an older Linux gives up reporting
    config_size=16  with 0 the driver takes all memory, with 12 it loses its poison value

  Keep the VM's connection when the daemon is ended or updated:

    vhost-device-balloon --keeper --socket-path /run/balloon.sock &

  Start with a balloon of 1 GiB, and serve metrics to Prometheus on this machine:

    vhost-device-balloon --socket-path /run/balloon.sock --target 1G \\
      --metrics-address 127.0.0.1:9090 &
";

const SIGNALS: &str = "\
Signals:
  SIGTERM, SIGINT and SIGQUIT end the daemon. Shut the VM down first: what a running VM does without
  its backend depends on the VMM. crosvm ends the VM within a second. QEMU does not reconnect: the
  guest keeps its memory and its balloon until QEMU is restarted, its shutdown may hang, and QEMU 11.1
  aborts if the guest reads the device's configuration. cloud-hypervisor tries to reconnect for 60 s,
  and aborts if the guest reads the configuration meanwhile.

  SIGUSR1 logs the counters. SIGHUP and other signals that would end a process have no effect.
";
