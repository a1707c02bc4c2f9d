/* Disks under load: many requests in flight, from one processor or several, with verification or for speed. */

#include "blk.h"
#include "machine.h"

#define BLOCK 4096
#define BLOCK_SECTORS 8
#define MAX_DEPTH 64

/* A stamp that costs little: three words a sector. Place, and how often the block was written. */
static void stamp_block(u8 *at, u64 sector, u64 generation) {
  for (u32 i = 0; i < BLOCK_SECTORS; i++, at += SECTOR, sector++) {
    u64 *words = (u64 *)at;
    words[0] = mix(sector);
    words[1] = generation;
    words[SECTOR_WORDS - 1] = mix(sector) ^ generation;
  }
}

static u64 wrong_sectors(const u8 *at, u64 sector, u64 generation) {
  u64 wrong = 0;
  for (u32 i = 0; i < BLOCK_SECTORS; i++, at += SECTOR, sector++) {
    const u64 *words = (const u64 *)at;
    wrong += words[0] != mix(sector) || words[1] != generation || words[SECTOR_WORDS - 1] != (mix(sector) ^ generation);
  }
  return wrong;
}

struct slot {
  u8 *buffer;
  u64 block;
  /* BLK_OUT, BLK_FLUSH where it is asked for, BLK_IN: what it does with each block, in this order. */
  u32 type;
};

static struct disk disk;
static struct slot slots[MAX_DEPTH];

/* Three descriptors a slot, of which only the data's direction changes. */
static void prepare_slot(u32 n, u32 length) {
  struct queue *queue = &disk.queues[0];
  slots[n].buffer = (n & 1) != 0 ? allocate_high(length) : allocate(length);
  set_descriptor(queue, 3 * n, &disk.headers[0][n], 16, DESC_NEXT, (u16)(3 * n + 1));
  set_descriptor(queue, 3 * n + 1, slots[n].buffer, length, DESC_NEXT, (u16)(3 * n + 2));
  set_descriptor(queue, 3 * n + 2, (const void *)&disk.statuses[0][n], 1, DESC_WRITE, 0);
}

static void offer_slot(u32 n, u32 type, u64 sector) {
  disk.headers[0][n] = (struct blk_header){type, 0, sector};
  disk.statuses[0][n] = 0xff;
  struct descriptor *chain = &disk.queues[0].descriptors[3 * n];
  chain[0].next = (u16)(type == BLK_FLUSH ? 3 * n + 2 : 3 * n + 1);
  chain[1].flags = type == BLK_OUT ? DESC_NEXT : DESC_NEXT | DESC_WRITE;
  offer(&disk.queues[0], (u16)(3 * n));
}

static u32 open_with_depth(void) {
  if (!open_disk(&disk, (u32)number_parameter("disk", 0), 1)) return 0;
  u32 depth = (u32)number_parameter("qd", 16);
  if (depth > MAX_DEPTH) depth = MAX_DEPTH;
  return depth > disk.queues[0].size / 3 ? disk.queues[0].size / 3 : depth;
}

/*
 * job=load: requests=N qd=D kb=SIZE flush=0|1. Each slot writes a block of its own, flushes if asked for, reads it,
 * compares, and goes on to its next one; at the end all are read once more. Marks `load.progress` 16 times on the way.
 * Flushes take long: with them requests are done in another order than they are made.
 */
void job_load(void) {
  bool flush = number_parameter("flush", 0) != 0;
  u32 depth = open_with_depth();
  if (depth == 0) return;
  u64 blocks = number_parameter("kb", 1024) / 4, requests = number_parameter("requests", 1000);
  u64 first = number_parameter("start", 0), mismatches = 0, failures = 0, done = 0;
  u32 *generations = allocate(4 * blocks);
  fill_words(generations, 0, (blocks + 1) / 2);
  report("load", "depth", depth);
  for (u32 n = 0; n < depth; n++) {
    prepare_slot(n, BLOCK);
    slots[n].block = n;
    slots[n].type = BLK_OUT;
    stamp_block(slots[n].buffer, first + n * BLOCK_SECTORS, ++generations[n]);
    offer_slot(n, BLK_OUT, first + n * BLOCK_SECTORS);
  }
  publish_and_kick(&disk.queues[0]);
  for (u64 in_flight = depth, mark = requests / 16; in_flight > 0;) {
    u32 head, length;
    if (!await_used(&disk.queues[0], &head, &length, 60)) {
      report("load", "lost", in_flight);
      failures += in_flight;
      break;
    }
    done++;
    in_flight--;
    if (head % 3 != 0 || head / 3 >= depth) {
      report("load", "strange_head", head);
      break;
    }
    struct slot *slot = &slots[head / 3];
    u64 sector = first + slot->block * BLOCK_SECTORS;
    failures += disk.statuses[0][head / 3] != BLK_OK;
    u32 done_type = slot->type;
    if (done_type == BLK_IN) {
      mismatches += wrong_sectors(slot->buffer, sector, generations[slot->block]);
      slot->block += depth;
      if (slot->block >= blocks) slot->block = head / 3;
    }
    slot->type = done_type == BLK_IN ? BLK_OUT : done_type == BLK_OUT && flush ? BLK_FLUSH : BLK_IN;
    if (done >= mark) {
      report("load", "progress", done);
      mark += requests / 16;
    }
    // A block that was written is also read.
    if (done + in_flight >= requests && slot->type == BLK_OUT) continue;
    sector = first + slot->block * BLOCK_SECTORS;
    if (slot->type == BLK_OUT) stamp_block(slot->buffer, sector, ++generations[slot->block]);
    if (slot->type == BLK_IN) fill_words(slot->buffer, 0, 2);
    offer_slot(head / 3, slot->type, slot->type == BLK_FLUSH ? 0 : sector);
    publish_and_kick(&disk.queues[0]);
    in_flight++;
  }
  for (u64 block = 0; block < blocks; block++) {
    if (generations[block] == 0) continue;
    u64 sector = first + block * BLOCK_SECTORS;
    failures += blk_transfer(&disk, 0, BLK_IN, sector, slots[0].buffer, BLOCK) != BLK_OK;
    mismatches += wrong_sectors(slots[0].buffer, sector, generations[block]);
  }
  report("load", "requests", done);
  report("load", "failures", failures);
  report("load", "mismatches", mismatches);
}

/*
 * job=bench: qd=D requests=N bs=BYTES write=0|1 sequential=0|1 span_kb=SIZE. The lines `bench.start` and `bench.end` are
 * printed around it: the clock is the reader's.
 */
void job_bench(void) {
  u32 depth = open_with_depth();
  if (depth == 0) return;
  u32 bytes = (u32)number_parameter("bs", 4096), type = number_parameter("write", 0) != 0 ? BLK_OUT : BLK_IN;
  u64 requests = number_parameter("requests", 10000), failures = 0;
  bool sequential = number_parameter("sequential", 0) != 0;
  u64 blocks = number_parameter("span_kb", disk.capacity / 2) * 1024 / bytes, block = 0, random = 0x853c49e6748fea9b;
  for (u32 n = 0; n < depth; n++) prepare_slot(n, bytes);
  report("bench", "depth", depth);
  print("bench.start=1\n");
  u64 start = ticks(), offered = 0, done = 0;
  u32 ready[MAX_DEPTH], ready_count = depth;
  for (u32 n = 0; n < depth; n++) ready[n] = n;
  while (done < requests) {
    u32 before = ready_count;
    while (ready_count > 0 && offered < requests) {
      random ^= random << 13;
      random ^= random >> 7;
      random ^= random << 17;
      // The high half of a product: a remainder takes longer.
      block = sequential ? (block + 1 == blocks ? 0 : block + 1) : ((random >> 32) * blocks) >> 32;
      offer_slot(ready[--ready_count], type, block * (bytes / SECTOR));
      offered++;
    }
    if (ready_count != before) publish_and_kick(&disk.queues[0]);
    u32 head, length;
    if (!await_used(&disk.queues[0], &head, &length, 60)) {
      report("bench", "lost", offered - done);
      return;
    }
    do {
      failures += disk.statuses[0][head / 3] != BLK_OK;
      ready[ready_count++] = head / 3;
      done++;
    } while (take_used(&disk.queues[0], &head, &length));
  }
  u64 end = ticks();
  print("bench.end=1\n");
  report("bench", "ticks", end - start);
  report("bench", "requests", done);
  report("bench", "failures", failures);
}

/*
 * job=kicks: n=N requests, one at a time, each with a kick whether the device asks for one or not, a look at registers
 * and the acknowledgement of the interrupt.
 */
void job_kicks(void) {
  if (open_with_depth() == 0) return;
  u64 count = number_parameter("n", 1000), done = 0;
  prepare_slot(0, BLOCK);
  print("kicks.start=1\n");
  for (; done < count; done++) {
    u32 head, length;
    offer_slot(0, BLK_IN, done % 8);
    publish(&disk.queues[0]);
    kick(&disk.queues[0]);
    if (!await_used(&disk.queues[0], &head, &length, 20) || disk.statuses[0][0] != BLK_OK) break;
    if ((read_register(&disk.device, REGISTER_INTERRUPT_STATUS) & 1) == 0) break;
    write_register(&disk.device, REGISTER_INTERRUPT_ACK, 1);
    if (read_register(&disk.device, REGISTER_STATUS) != 0xf) break;
  }
  report("kicks", "done", done);
}

static volatile u64 processor_requests[MAX_PROCESSORS], processor_mismatches[MAX_PROCESSORS];
static volatile bool processor_done[MAX_PROCESSORS];
static u8 *processor_buffers[MAX_PROCESSORS];
static u64 processor_share, processor_start;

/* Blocks that a processor writes to, one after the other and again from the first. */
#define PROCESSOR_BLOCKS 64

static void load_queue(u32 processor) {
  u8 *buffer = processor_buffers[processor];
  for (u64 i = 0; i < processor_share; i++) {
    u64 sector = processor_start + (processor * PROCESSOR_BLOCKS + i % PROCESSOR_BLOCKS) * BLOCK_SECTORS;
    stamp_block(buffer, sector, processor + i);
    u32 status = blk_transfer(&disk, processor, BLK_OUT, sector, buffer, BLOCK);
    stamp_block(buffer, 0, 0);
    status |= blk_transfer(&disk, processor, BLK_IN, sector, buffer, BLOCK);
    processor_mismatches[processor] += status != BLK_OK ? BLOCK_SECTORS : wrong_sectors(buffer, sector, processor + i);
    processor_requests[processor] += 2;
  }
  processor_done[processor] = true;
}

static u32 processor_count(void) {
  u32 count = (u32)number_parameter("cpus", 2);
  return count > MAX_PROCESSORS ? MAX_PROCESSORS : count;
}

/* Waits for the work of all and reports it. */
static void report_processors(const char *job, u32 count) {
  u64 requests = 0, mismatches = 0;
  for (u32 n = 0; n < count; n++) {
    for (u64 start = ticks(); !processor_done[n] && ticks() - start < 30 * second();) relax();
    if (!processor_done[n]) report(job, "stuck", n);
    requests += processor_requests[n];
    mismatches += processor_mismatches[n];
  }
  report(job, "requests", requests);
  report(job, "mismatches", mismatches);
}

/* job=smp: cpus=N requests=R start=SECTOR. Every processor has a queue of disk 0 for itself. */
void job_smp(void) {
  u32 count = processor_count();
  if (!open_disk(&disk, 0, count)) return;
  report("smp", "queues", disk.queue_count);
  if (disk.queue_count < count) return;
  processor_share = number_parameter("requests", 100) / 2;
  processor_start = number_parameter("start", 0);
  for (u32 n = 0; n < count; n++) processor_buffers[n] = allocate(BLOCK);
  second();
  u32 started = start_processors(count - 1, load_queue);
  report("smp", "started", 1 + started);
  load_queue(0);
  report_processors("smp", 1 + started);
}

/* Opens the disk with the processor's number again and again: its registers, at the same time as those of the others. */
static void reopen_disk(u32 processor) {
  static struct disk disks[MAX_PROCESSORS];
  u8 *buffer = processor_buffers[processor];
  for (u64 round = 0; round < processor_share; round++) {
    bool good = open_disk(&disks[processor], processor, 1);
    stamp_block(buffer, 0, round);
    good = good && blk_transfer(&disks[processor], 0, BLK_OUT, 0, buffer, BLOCK) == BLK_OK;
    stamp_block(buffer, 0, ~0ull);
    good = good && blk_transfer(&disks[processor], 0, BLK_IN, 0, buffer, BLOCK) == BLK_OK;
    processor_mismatches[processor] += good ? wrong_sectors(buffer, 0, round) : BLOCK_SECTORS;
    processor_requests[processor] += 2;
  }
  processor_done[processor] = true;
}

/* job=race: cpus=N rounds=R. Every processor has a disk for itself. */
void job_race(void) {
  u32 count = processor_count();
  processor_share = number_parameter("rounds", 20);
  for (u32 n = 0; n < count; n++) processor_buffers[n] = allocate(BLOCK);
  second();
  u32 started = start_processors(count - 1, reopen_disk);
  report("race", "started", 1 + started);
  reopen_disk(0);
  report_processors("race", 1 + started);
}
