/*
 * job=dirty: mb=SIZE rate=N cpus=P disk=0|1 qd=D tick_us=T report_ms=T. A guest to be measured while it moves. Each processor
 * writes one word of each page of a range of its own, page after page and again from the first, N pages a second or as many
 * as it can; with disk=1 the first one reads random blocks of 4 KiB meanwhile. An empty line every T us shows that the guest
 * runs. Reports `dirty=TICKS,PAGES,REQUESTS`: what it has done by which time of its clock.
 */

#include "blk.h"
#include "jobs.h"
#include "machine.h"

#define PAGE 4096
#define BATCH 64
#define MAX_DEPTH 32

static struct disk disk;
static u32 depth;
static u64 block_count, requests, failures, random = 0x853c49e6748fea9b;
static u8 *buffers;

static void offer_read(u32 n) {
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  disk.headers[0][n] = (struct blk_header){BLK_IN, 0, (((random >> 32) * block_count) >> 32) * (PAGE / SECTOR)};
  offer(&disk.queues[0], (u16)(3 * n));
}

static void start_reads(void) {
  if (number_parameter("disk", 0) == 0 || !open_disk(&disk, 0, 1)) return;
  depth = (u32)number_parameter("qd", 16);
  if (depth > MAX_DEPTH) depth = MAX_DEPTH;
  if (depth > disk.queues[0].size / 3) depth = disk.queues[0].size / 3;
  block_count = disk.capacity / (PAGE / SECTOR);
  buffers = allocate(depth * PAGE);
  for (u32 n = 0; n < depth; n++) {
    set_descriptor(&disk.queues[0], 3 * n, &disk.headers[0][n], 16, DESC_NEXT, (u16)(3 * n + 1));
    set_descriptor(&disk.queues[0], 3 * n + 1, buffers + n * PAGE, PAGE, DESC_NEXT | DESC_WRITE, (u16)(3 * n + 2));
    set_descriptor(&disk.queues[0], 3 * n + 2, (const void *)&disk.statuses[0][n], 1, DESC_WRITE, 0);
    offer_read(n);
  }
  publish_and_kick(&disk.queues[0]);
}

static void poll_reads(void) {
  u32 head, length, taken = 0;
  while (taken < depth && take_used(&disk.queues[0], &head, &length)) {
    failures += disk.statuses[0][head / 3] != BLK_OK;
    offer_read(head / 3);
    taken++;
  }
  requests += taken;
  if (taken > 0) publish_and_kick(&disk.queues[0]);
}

/* As few instructions a page as there can be: the processor may be an emulator. */
static void write_pages(u8 *at, u64 word) {
  for (u32 i = 0; i < BATCH; i += 8, at += 8 * PAGE) {
    *(volatile u64 *)(at + 0 * PAGE) = word;
    *(volatile u64 *)(at + 1 * PAGE) = word;
    *(volatile u64 *)(at + 2 * PAGE) = word;
    *(volatile u64 *)(at + 3 * PAGE) = word;
    *(volatile u64 *)(at + 4 * PAGE) = word;
    *(volatile u64 *)(at + 5 * PAGE) = word;
    *(volatile u64 *)(at + 6 * PAGE) = word;
    *(volatile u64 *)(at + 7 * PAGE) = word;
  }
}

/* What a processor writes to. */
struct range {
  u8 *pages;
  u64 next, last, owed;
  volatile u64 written;
};

static struct range ranges[MAX_PROCESSORS];
static u64 page_count, rate;
/* BATCH pages, and all that can be owed: in pages times ticks. What was missed for a hundredth of a second is not made up for. */
static u64 batch, most_owed;

static void start_writing(struct range *range) {
  range->pages = allocate(page_count * PAGE);
  for (u64 page = 0; page < page_count; page += BATCH) write_pages(range->pages + page * PAGE, 1);
  range->last = ticks();
}

/* Writes a batch if it is time to. */
static void write_some(struct range *range, u64 now) {
  range->owed += (now - range->last) * rate;
  if (range->owed > most_owed) range->owed = most_owed;
  range->last = now;
  if (range->owed < batch) return;
  range->owed -= batch;
  write_pages(range->pages + range->next * PAGE, range->written);
  range->next = range->next + BATCH == page_count ? 0 : range->next + BATCH;
  range->written += BATCH;
}

static void write_for_ever(u32 processor) {
  start_writing(&ranges[processor]);
  for (;;) write_some(&ranges[processor], ticks());
}

static void report_work(u64 now) {
  u64 pages = 0;
  for (u32 n = 0; n < MAX_PROCESSORS; n++) pages += ranges[n].written;
  print("dirty=");
  print_number(now);
  print(",");
  print_number(pages);
  print(",");
  print_number(requests);
  print("\n");
  if (failures > 0) report("dirty", "failures", failures);
}

_Noreturn void job_dirty(void) {
  page_count = number_parameter("mb", 1) * 256;
  rate = number_parameter("rate", 0);
  batch = BATCH * second();
  most_owed = batch + second() / 100 * rate;
  u64 tick = second() / 1000000 * number_parameter("tick_us", 2000);
  u64 period = second() / 1000 * number_parameter("report_ms", 100);
  u32 others = (u32)number_parameter("cpus", 1) - 1;
  if (others > 0 && start_processors(others, write_for_ever) != others) print("error=a processor does not start\n");
  start_writing(&ranges[0]);
  start_reads();
  for (u64 next_tick = 0, next_report = 0;;) {
    u64 now = ticks();
    write_some(&ranges[0], now);
    if (depth > 0) poll_reads();
    if (now >= next_tick) {
      print("\n");
      next_tick = now + tick;
    }
    if (now < next_report) continue;
    report_work(now);
    next_report = now + period;
  }
}
