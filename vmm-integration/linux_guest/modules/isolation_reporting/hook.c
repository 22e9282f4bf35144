// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The hook in __free_one_page, where a block has come to its free list under the zone's lock.
 *
 * The function ends there with "order >= page_reporting_order? tell page reporting": a comparison
 * of a register with that variable, a jump if below, and an epilogue that leaves to
 * __page_reporting_notify. The comparison names the register of the order. The register of the page
 * is found by freeing blocks that are known: it is the one that holds them all.
 */
#include "isolation_reporting.h"

#include <linux/kprobes.h>
#include <linux/sched.h>

/* Longest body of __free_one_page that is searched, bytes. */
#define BODY	0x1000
/* How many blocks are freed to find the register of the page. */
#define ROUNDS	4

/* Registers by their number in an instruction, as far as a call preserves them. */
static const int preserved[16] = {
	[3] = offsetof(struct pt_regs, bx), [5] = offsetof(struct pt_regs, bp),
	[12] = offsetof(struct pt_regs, r12), [13] = offsetof(struct pt_regs, r13),
	[14] = offsetof(struct pt_regs, r14), [15] = offsetof(struct pt_regs, r15),
};

static const u16 preserved_mask = BIT(3) | BIT(5) | BIT(12) | BIT(13) | BIT(14) | BIT(15);

static unsigned int order_register;
static int page_register = -1;
static bool registered;

/* While the hook is verified. */
static struct task_struct *verifier;
static struct page *verified_page;
static u16 candidates;
static unsigned int seen_order;
static unsigned int hits;

static unsigned long value_of(struct pt_regs *regs, unsigned int number)
{
	return *(unsigned long *)((char *)regs + preserved[number]);
}

static void verify_hit(struct pt_regs *regs)
{
	unsigned int number;

	for (number = 0; number < 16; number++)
		if (candidates & BIT(number) &&
		    value_of(regs, number) != (unsigned long)verified_page)
			candidates &= ~BIT(number);
	seen_order = value_of(regs, order_register);
	hits++;
}

static int heard(struct kprobe *probe, struct pt_regs *regs)
{
	struct page *page;
	unsigned int order;

	if (READ_ONCE(verifier) == current)
		verify_hit(regs);
	if (page_register < 0)
		return 0;
	page = (struct page *)value_of(regs, page_register);
	order = value_of(regs, order_register);
	if (unlikely(order > MAX_PAGE_ORDER || !PageBuddy(page) || page_private(page) != order)) {
		atomic64_inc(&ir_statistics.mismatches);
		return 0;
	}
	atomic64_inc(&ir_statistics.heard);
	if (ir_is_own_move() && !READ_ONCE(ir_settings.hear_itself)) {
		atomic64_inc(&ir_statistics.deaf);
		return 0;
	}
	ir_mark(page_to_pfn(page), order, true);
	return 0;
}

static struct kprobe probe = { .pre_handler = heard };

/* The target of a displacement of 32 bits that ends an instruction before @next. */
static void *target(const u8 *next)
{
	s32 displacement;

	memcpy(&displacement, next - 4, 4);
	return (void *)next + displacement;
}

/* Whether an epilogue from @at leaves to __page_reporting_notify. */
static bool leaves_to_notify(const u8 *at)
{
	const u8 *end = at + 32;

	if (at[0] == 0x48 && at[1] == 0x83 && at[2] == 0xc4)	/* add $n,%rsp */
		at += 4;
	while (at < end) {
		if (*at >= 0x58 && *at <= 0x5f)			/* pop */
			at++;
		else if (at[0] == 0x41 && at[1] >= 0x58 && at[1] <= 0x5f)
			at += 2;
		else
			break;
	}
	return *at == 0xe9 && target(at + 5) == (void *)ir_kernel.notify;
}

static int find_site(void)
{
	const u8 *body = ir_kernel.free_one_page_inner;
	unsigned int at;

	if (!body) {
		pr_err("refused: this kernel has no __free_one_page to hook (try hook=free-paths)\n");
		return -ENOENT;
	}
	for (at = 0; at < BODY; at++) {
		const u8 *code = body + at;
		unsigned int rex = 0;

		/* cmp page_reporting_order(%rip),%reg; jb rel32 */
		if (*code == 0x44) {
			rex = 8;
			code++;
		}
		if (code[0] != 0x3b || (code[1] & 0xc7) != 0x05 ||
		    target(code + 6) != (void *)ir_kernel.order ||
		    code[6] != 0x0f || code[7] != 0x82)
			continue;
		order_register = rex | (code[1] >> 3 & 7);
		code += 12;
		if (!(preserved_mask & BIT(order_register)) || !leaves_to_notify(code))
			continue;
		probe.addr = (kprobe_opcode_t *)code;
		return 0;
	}
	pr_err("refused: __free_one_page of this build does not end as known (try hook=free-paths)\n");
	return -ENOEXEC;
}

int ir_notify_site_start(void)
{
	int error = find_site();

	if (error)
		return error;
	error = register_kprobe(&probe);
	if (error) {
		pr_err("refused: no probe at __free_one_page+0x%lx (%d)\n",
		       (unsigned long)probe.addr - (unsigned long)ir_kernel.free_one_page_inner,
		       error);
		return error;
	}
	registered = true;
	return 0;
}

/*
 * Frees blocks of the largest order, which go to their list at once and cannot merge further, and
 * looks for the register that holds each of them. Reporting must be enabled.
 */
int ir_notify_site_verify(void)
{
	struct page *pages[ROUNDS];
	unsigned int got, i;
	int error = 0;

	if (page_register >= 0)
		return 0;
	for (got = 0; got < ROUNDS; got++) {
		pages[got] = alloc_pages(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY, MAX_PAGE_ORDER);
		if (!pages[got])
			break;
	}
	if (got < 2) {
		pr_err("refused: no free blocks of order %d to verify the hook with\n",
		       MAX_PAGE_ORDER);
		error = -ENOMEM;
	}
	candidates = preserved_mask & ~BIT(order_register);
	for (i = 0; i < got; i++) {
		hits = 0;
		verified_page = pages[i];
		WRITE_ONCE(verifier, current);
		__free_pages(pages[i], MAX_PAGE_ORDER);
		WRITE_ONCE(verifier, NULL);
		if (!hits || seen_order != MAX_PAGE_ORDER) {
			pr_err_once("refused: the hook heard a freed block %u times, as order %u\n",
				    hits, seen_order);
			error = error ?: -ENOEXEC;
		}
	}
	if (error)
		return error;
	if (hweight16(candidates) != 1) {
		pr_err("refused: %u registers hold a freed block in __free_one_page, not one\n",
		       hweight16(candidates));
		return -ENOEXEC;
	}
	page_register = __ffs(candidates);
	atomic64_add(got, &ir_statistics.verified);
	pr_info("hook at __free_one_page+0x%lx, page in register %d, order in register %u\n",
		(unsigned long)probe.addr - (unsigned long)ir_kernel.free_one_page_inner,
		page_register, order_register);
	return 0;
}

void ir_notify_site_stop(void)
{
	if (registered)
		unregister_kprobe(&probe);
	registered = false;
	page_register = -1;
	probe = (struct kprobe){ .pre_handler = heard };
}
