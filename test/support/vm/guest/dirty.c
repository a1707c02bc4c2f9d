/*
 * job=dirty: mb=SIZE rate=N disk=0|1 qd=D tick_us=T report_ms=T. A guest to be measured while it moves. It writes one word of each
 * page of a range, page after page and again from the first, N pages a second or as many as it can; with disk=1 it reads
 * random blocks of 4 KiB meanwhile. An empty line every T us shows that it runs. Reports `dirty=TICKS,PAGES,REQUESTS`: what
 * it has done by which time of its clock.
 */

#include "blk.h"
#include "jobs.h"

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

static void report_work(u64 now, u64 pages) {
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
  u64 page_count = number_parameter("mb", 1) * 256, rate = number_parameter("rate", 0), page = 0, pages = 0;
  // Pages times ticks. What it could not do for a hundredth of a second it does not make up for.
  u64 batch = BATCH * second(), most = batch + second() / 100 * rate, owed = 0;
  u64 tick = second() / 1000000 * number_parameter("tick_us", 2000);
  u64 period = second() / 1000 * number_parameter("report_ms", 100);
  u8 *range = allocate(page_count * PAGE);
  for (u64 i = 0; i < page_count; i += BATCH) write_pages(range + i * PAGE, 1);
  start_reads();
  print("dirty.started=1\n");
  u64 next_tick = 0, next_report = 0, last = ticks();
  for (;;) {
    u64 now = ticks();
    owed += (now - last) * rate;
    if (owed > most) owed = most;
    last = now;
    if (owed >= batch) {
      write_pages(range + page * PAGE, pages);
      page = page + BATCH == page_count ? 0 : page + BATCH;
      pages += BATCH;
      owed -= batch;
    }
    if (depth > 0) poll_reads();
    if (now >= next_tick) {
      print("\n");
      next_tick = now + tick;
    }
    if (now < next_report) continue;
    report_work(now, pages);
    next_report = now + period;
  }
}
