/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Trace events: one a pass, one a block that was reported. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM isolation_reporting

#if !defined(_ISOLATION_REPORTING_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _ISOLATION_REPORTING_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(isolation_reporting_pass,
	TP_PROTO(const u64 *before, const u64 *after, u64 reported, int error, u64 ns),
	TP_ARGS(before, after, reported, error, ns),
	TP_STRUCT__entry(
		__field(u64, held)
		__field(u64, not_free)
		__field(u64, busy)
		__field(u64, lost)
		__field(u64, low)
		__field(u64, reported)
		__field(int, error)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->held = after[IR_HELD] - before[IR_HELD];
		__entry->not_free = after[IR_NOT_FREE] - before[IR_NOT_FREE];
		__entry->busy = after[IR_BUSY] - before[IR_BUSY];
		__entry->lost = after[IR_LOST] - before[IR_LOST];
		__entry->low = after[IR_LOW] - before[IR_LOW];
		__entry->reported = reported;
		__entry->error = error;
		__entry->ns = ns;
	),
	TP_printk("held=%llu not_free=%llu busy=%llu lost=%llu low=%llu reported=%llu error=%d ns=%llu",
		  __entry->held, __entry->not_free, __entry->busy, __entry->lost, __entry->low,
		  __entry->reported, __entry->error, __entry->ns)
);

TRACE_EVENT(isolation_reporting_block,
	TP_PROTO(unsigned long pfn, unsigned int order, unsigned int hold, int error, u64 report_ns,
		 u64 held_ns),
	TP_ARGS(pfn, order, hold, error, report_ns, held_ns),
	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, order)
		__field(unsigned int, hold)
		__field(int, error)
		__field(u64, report_ns)
		__field(u64, held_ns)
	),
	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->order = order;
		__entry->hold = hold;
		__entry->error = error;
		__entry->report_ns = report_ns;
		__entry->held_ns = held_ns;
	),
	TP_printk("pfn=%lu order=%u hold=%s error=%d report_ns=%llu held_ns=%llu", __entry->pfn,
		  __entry->order, __entry->hold ? "pull" : "isolate", __entry->error,
		  __entry->report_ns, __entry->held_ns)
);

#endif

#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
