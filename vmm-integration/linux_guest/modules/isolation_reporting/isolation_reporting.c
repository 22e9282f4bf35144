// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
#include <linux/module.h>
static int __init start(void){return 0;}
static void __exit stop(void){}
module_init(start);
module_exit(stop);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("x");
