/* The jobs that are no disk's (those are in blk.h). */

#ifndef JOBS_H
#define JOBS_H

#include "platform.h"

void job_info(void);
void job_memory(void);
void job_cpus(void);
void job_serial(void);
void job_echo(void);
void job_exits(void);
void job_net(void);
void job_fs(void);
void job_vsock(void);
void job_hostile(void);
void job_mem(void);
void job_pattern(void);
_Noreturn void job_dirty(void);
void job_hotplug(void);

/* The network and the sockets as job=pattern uses them, on another processor: nothing of this is reported. */
bool open_net(void);
bool resolve_peer(void);
/* Whether the peer answers, at the latest when asked 20 times. */
bool ping_peer(u32 sequence, u32 size, u64 *resent, u64 *mismatches);

struct talks {
  u64 begun, complete, resets, mismatches;
};
/* For connections that a reset of the transport may end. */
bool open_moving_vsock(void);
/* One connection on which so many bytes go there and come back. False when it ends early, but for a reset. */
bool talk(u32 total, struct talks *talks);

/* The memory device as job=pattern uses it. */
bool open_memory(void);
/* Whether another size is requested than was followed last. */
bool memory_is_requested(void);
/* Plugs or unplugs as much; nobody may use what may go. */
void follow_memory(void);
u64 memory_blocks(void);
/* NULL where it is not plugged. Its first and last page are the device driver's own. */
u8 *memory_block(u64 n);

/* Disks that come and go, as job=pattern uses them. `now` is the number of the report to come. */
void open_hotplug(void);
/* Takes what came. What is wanted back goes `keep` reports later. */
void follow_hotplug(u64 now);
/* Reads all of what was written to each, and writes it once more. */
void visit_hotplugged(void);

#endif
