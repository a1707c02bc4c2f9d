/*
 * job=pattern: kb=SIZE touch=N disk=0|1 blocks=N steps=N every=N. A guest that can tell whether it was moved whole. Each page of a
 * range of RAM is filled with a word that depends on the page and on how often it was written (every fourth time it is
 * zero); each block of a disk likewise. All of it is verified and written again, all the time, with requests in flight.
 * With net=1 or vsock=1 a second processor pings the peer of job=net, and talks to the port of job=vsock, in turns.
 * With iommu=map the disk sees its buffers at addresses that move; what is not mapped any more has to fail. With mem=1
 * memory is plugged and unplugged as it is requested, is verified as the rest, and has the disk's buffers in it. With
 * hotplug=1 disks come and go.
 * Each step also writes one word of N more pages, which is what makes much dirty at little cost.
 * Reports `pattern.progress` every so many steps, `pattern.wrong` for each page or block that is not as it was left.
 * steps=0: for ever.
 */

#include "blk.h"
#include "iommu.h"
#include "jobs.h"
#include "machine.h"

#define PAGE 4096
#define WORDS (PAGE / 8)
#define DEPTH 4
#define MOST_REPORTS 20

static u8 *pages;
static u32 *generations;
static u64 page_count, wrong;

/* Of each page its first word: how often it was written. */
static u8 *touched;

static struct disk disk;
static bool has_disk;
static u32 *block_generations;
static u64 block_count, requests, next_block, faults;
static struct {
  u8 *low, *buffer;
  /* Where the disk sees the buffer, and where it saw it before. */
  u64 iova, last_iova;
  u64 block;
  u32 type, uses;
  bool is_stale;
} slots[DEPTH];
static u32 domain;

static u64 word_of(u64 what, u64 generation) { return generation % 4 == 0 ? 0 : mix(what << 24 ^ generation); }

/* A page that is not what it was: which, how often it was written, what it begins with. */
static void complain(const char *what, u64 index, u64 generation, const u64 *words) {
  if (wrong++ >= MOST_REPORTS) return;
  print("pattern.wrong=");
  print(what);
  print(",");
  print_number(index);
  print(",");
  print_number(generation);
  for (u32 i = 0; i < 2; i++) {
    print(",");
    print_hex(words[i * (WORDS - 1)]);
  }
  print(",");
  print_hex(word_of(index, generation));
  print("\n");
}

static void verify_page(u64 page) {
  const u64 *words = (const u64 *)(pages + page * PAGE);
  if (!words_are(words, word_of(page, generations[page]), WORDS)) complain("page", page, generations[page], words);
}

static void write_page(u64 page) {
  generations[page]++;
  fill_words(pages + page * PAGE, word_of(page, generations[page]), WORDS);
}

/* The block's number is part of its words, and no page has it. */
static u64 block_word(u64 block) { return word_of(~block, block_generations[block]); }

static bool has_grown, uses_grown;

/* A page for a slot in memory that was plugged. */
static u8 *grown_buffer(u32 n) {
  static u64 next;
  for (u64 i = 0; uses_grown && i < memory_blocks(); i++) {
    next = (next + 7) % memory_blocks();
    if (memory_block(next) != NULL) return reach((u64)memory_block(next) + (16 + n) * PAGE);
  }
  return slots[n].low;
}

/* Another buffer for a slot that is idle; behind an IOMMU at another address, the last of which is gone. */
static void place_buffer(u32 n) {
  static u64 places;
  slots[n].buffer = grown_buffer(n);
  slots[n].uses = 0;
  if (domain == 0) return;
  slots[n].last_iova = slots[n].iova;
  slots[n].iova = 0x100000000000 + (places++ << 13);
  u32 status = iommu_map_page(domain, slots[n].iova, slots[n].buffer, IOMMU_READ_WRITE);
  if (slots[n].last_iova != 0) status |= iommu_unmap_page(domain, slots[n].last_iova);
  if (status != IOMMU_OK) complain("iommu", n, status, (const u64 *)slots[n].low);
}

static void offer_request(u32 n, u32 type) {
  struct queue *queue = &disk.queues[0];
  void *seen = domain == 0 ? slots[n].buffer : (void *)(slots[n].is_stale ? slots[n].last_iova : slots[n].iova);
  slots[n].type = type;
  if (type == BLK_OUT) {
    block_generations[slots[n].block]++;
    fill_words(slots[n].buffer, block_word(slots[n].block), WORDS);
  } else {
    fill_words(slots[n].buffer, 0x5555555555555555, WORDS);
  }
  disk.headers[0][n] = (struct blk_header){type, 0, slots[n].block * (PAGE / SECTOR)};
  disk.statuses[0][n] = 0xff;
  u16 first = (u16)(3 * n);
  set_descriptor(queue, first, &disk.headers[0][n], 16, DESC_NEXT, (u16)(first + 1));
  set_descriptor(queue, first + 1u, seen, PAGE, type == BLK_OUT ? DESC_NEXT : DESC_NEXT | DESC_WRITE,
                 (u16)(first + 2));
  set_descriptor(queue, first + 2u, (const void *)&disk.statuses[0][n], 1, DESC_WRITE, 0);
  offer(queue, first);
}

static u64 free_block(void) {
  for (;;) {
    u64 block = next_block;
    next_block = (next_block + 1) % block_count;
    bool taken = false;
    for (u32 n = 0; n < DEPTH; n++) taken |= slots[n].block == block;
    if (!taken) return block;
  }
}

/* A read to where nothing is mapped any more: it failed, nothing was written, and the IOMMU has reported it. */
static void expect_fault(u32 n) {
  struct iommu_fault fault = {0};
  slots[n].is_stale = false;
  if (disk.statuses[0][n] == BLK_IOERR && words_are(slots[n].buffer, 0x5555555555555555, WORDS) && take_fault(&fault) &&
      fault.endpoint == disk.device.index && fault.address == slots[n].last_iova) {
    faults++;
    return;
  }
  complain("fault", n, disk.statuses[0][n], (const u64 *)slots[n].buffer);
}

/* Each slot writes a block, reads it, and goes on to the next one that nobody has. */
static void poll_disk(void) {
  u32 head, length;
  if (!has_disk || !take_used(&disk.queues[0], &head, &length)) return;
  u32 n = head / 3;
  if (head % 3 == 0 && n < DEPTH && slots[n].is_stale) {
    expect_fault(n);
    offer_request(n, BLK_OUT);
    publish_and_kick(&disk.queues[0]);
    return;
  }
  if (head % 3 != 0 || n >= DEPTH || disk.statuses[0][n] != BLK_OK) {
    report("pattern", "failed_request", (u64)head << 8 | (n < DEPTH ? disk.statuses[0][n] : 0));
    wrong++;
    has_disk = false;
    return;
  }
  requests++;
  u64 block = slots[n].block;
  if (slots[n].type == BLK_IN) {
    if (!words_are(slots[n].buffer, block_word(block), WORDS)) {
      complain("block", block, block_generations[block], (const u64 *)slots[n].buffer);
    }
    slots[n].block = free_block();
    if (++slots[n].uses % 16 == 0) {
      place_buffer(n);
      slots[n].is_stale = domain != 0;
    }
    offer_request(n, slots[n].is_stale ? BLK_IN : BLK_OUT);
  } else {
    offer_request(n, BLK_IN);
  }
  publish_and_kick(&disk.queues[0]);
}

static void start_disk(void) {
  has_disk = number_parameter("disk", 0) != 0 && open_disk(&disk, 0, 1);
  if (!has_disk) return;
  domain = domain_behind_iommu(&disk.device);
  block_count = number_parameter("blocks", 64);
  block_generations = allocate(4 * block_count);
  fill_words(block_generations, 0, (block_count + 1) / 2);
  for (u32 n = 0; n < DEPTH; n++) {
    slots[n].low = allocate(PAGE);
    slots[n].block = n;
    place_buffer(n);
    offer_request(n, BLK_OUT);
  }
  next_block = DEPTH;
  publish_and_kick(&disk.queues[0]);
}

static void touch_pages(u64 count, u64 step) {
  for (u64 i = 0; i < count; i++) {
    u64 *word = (u64 *)(touched + i * PAGE);
    if (*word != step - 1) complain("touched", i, step - 1, word);
    *word = step;
  }
}

#define MOST_BLOCKS 1024
/* Of each plugged block how often its second page was written; 0: not at all. */
static u32 block_writes[MOST_BLOCKS];

static bool is_grown(const u8 *at) { return (u64)at >= 0x100000000; }

/* Nobody uses what may go: buffers move to where they were before. */
static void leave_grown(void) {
  uses_grown = false;
  for (u64 start = ticks(); ticks() - start < 20 * second(); poll_disk()) {
    bool any = false;
    for (u32 n = 0; n < DEPTH; n++) any |= is_grown(slots[n].buffer);
    if (!any || !has_disk) return;
    for (u32 n = 0; n < DEPTH; n++) slots[n].uses = 15;
  }
  complain("buffers", 0, 0, (const u64 *)pages);
}

/* Follows what is requested, and verifies and writes one block of what is there. */
static void use_grown(u64 step) {
  if (!has_grown) return;
  if (memory_is_requested()) {
    leave_grown();
    follow_memory();
    for (u64 n = 0; n < memory_blocks(); n++) {
      if (memory_block(n) == NULL) block_writes[n] = 0;
    }
    uses_grown = true;
  }
  u64 n = step % memory_blocks();
  if (memory_block(n) == NULL) return;
  u64 *words = reach((u64)memory_block(n) + PAGE);
  if (block_writes[n] > 0 && !words_are(words, word_of(n + (1 << 20), block_writes[n]), WORDS)) {
    complain("grown", n, block_writes[n], words);
  }
  fill_words(words, word_of(n + (1 << 20), ++block_writes[n]), WORDS);
}

static bool has_net, has_vsock;
static volatile u64 answers;
static u64 unanswered, resent, net_mismatches, broken_talks;
static struct talks talks;

static void use_network(u32 processor) {
  (void)processor;
  for (u32 sequence = 0;; sequence++) {
    if (has_net) {
      if (ping_peer(sequence & 0xffff, 400, &resent, &net_mismatches)) answers++;
      else unanswered++;
    }
    if (has_vsock && !talk(6000, &talks)) broken_talks++;
  }
}

static void start_network(void) {
  has_net = number_parameter("net", 0) != 0 && open_net();
  if (has_net && !resolve_peer()) complain("net", 0, 0, (const u64 *)pages);
  has_vsock = number_parameter("vsock", 0) != 0 && open_moving_vsock();
  if (has_net || has_vsock) start_processors(1, use_network);
}

static void report_network(void) {
  if (has_net) {
    report("net", "answers", answers);
    report("net", "resent", resent);
    report("net", "unanswered", unanswered);
    report("net", "mismatches", net_mismatches);
  }
  if (!has_vsock) return;
  report("vsock", "complete", talks.complete);
  report("vsock", "broken", broken_talks);
  report("vsock", "resets", talks.resets);
  report("vsock", "mismatches", talks.mismatches);
}

void job_pattern(void) {
  u64 touch = number_parameter("touch", 0);
  page_count = number_parameter("kb", 4096) / 4;
  u64 steps = number_parameter("steps", 0), every = number_parameter("every", 200);
  pages = allocate(page_count * PAGE);
  generations = allocate(4 * page_count);
  fill_words(generations, 0, (page_count + 1) / 2);
  for (u64 page = 0; page < page_count; page++) write_page(page);
  touched = allocate(touch * PAGE);
  for (u64 i = 0; i < touch; i++) *(u64 *)(touched + i * PAGE) = 0;
  has_grown = number_parameter("mem", 0) != 0 && open_memory() && memory_blocks() <= MOST_BLOCKS;
  bool has_hotplug = number_parameter("hotplug", 0) != 0;
  if (has_hotplug) open_hotplug();
  start_disk();
  start_network();
  print("pattern.started=1\n");
  for (u64 step = 1; steps == 0 || step <= steps; step++) {
    u64 page = (mix(step) >> 20) % page_count;
    verify_page(page);
    write_page(page);
    verify_page(step % page_count);
    touch_pages(touch, step);
    poll_disk();
    use_grown(step);
    if (has_hotplug) follow_hotplug(step / every);
    if (step % every != 0) continue;
    if (has_hotplug) visit_hotplugged();
    if (domain != 0) report("pattern", "faults", faults);
    report_network();
    report("pattern", "progress", step);
  }
  for (u64 page = 0; page < page_count; page++) verify_page(page);
  report_network();
  report("pattern", "requests", requests);
  report("pattern", "mismatches", wrong);
}
