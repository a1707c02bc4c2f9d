/*
 * job=mem: rounds=N [hostile=1 [hold=1]]. Memory that comes and goes: plugs and unplugs blocks as the device requests it, while a disk
 * reads and writes, through buffers in that memory where there is some. Source: VIRTIO 1.3, 5.15 Memory Device.
 *
 * Each time that as much is plugged as is requested it prints mem.size=BYTES and waits for another size, N times.
 */

#include "blk.h"
#include "jobs.h"

#define REQ_PLUG 0
#define REQ_UNPLUG 1
#define REQ_UNPLUG_ALL 2
#define REQ_STATE 3
#define RESP_ACK 0
#define RESP_NACK 1
#define RESP_ERROR 3
/* Nothing was written, or nothing came back. */
#define RESP_NONE 0xffff
#define RESP_LOST 0x10000

#define MAX_BLOCKS 4096
#define SLOTS 8
#define SLOT_BYTES 4096
#define SLOT_SECTORS 8
/* The first sectors are those of job=boots. */
#define FIRST_SECTOR 64

struct mem_request {
  u16 type;
  u16 padding[3];
  u64 address;
  u16 blocks;
  u16 padding2[3];
};

static struct device device;
static struct queue queue;
static struct mem_request *request;
static volatile u16 *response;
static u64 block_bytes, region, region_bytes;
static u8 plugged[MAX_BLOCKS];
static u64 wrong;

static u64 usable(void) { return read_config64(&device, 32); }
static u64 plugged_bytes(void) { return read_config64(&device, 40); }
static u64 requested_bytes(void) { return read_config64(&device, 48); }

/* The disk's requests: each slot writes its sectors and reads them again, for ever. */
static struct disk disk;
static struct {
  u8 *low, *at;
  u64 generation;
  bool reading, in_flight;
} slots[SLOTS];
static bool hot;
static u64 requests, failures, mismatches;

/* Both ends of each sector: a stamp that costs little. */
static void stamp(u8 *at, u64 sector, u64 generation, bool clear) {
  for (u32 i = 0; i < SLOT_SECTORS; i++, at += SECTOR) {
    u64 *words = (u64 *)at;
    words[0] = clear ? 0 : mix(sector + i);
    words[SECTOR_WORDS - 1] = clear ? 0 : mix(sector + i) ^ generation;
  }
}

static u64 wrong_sectors(const u8 *at, u64 sector, u64 generation) {
  u64 count = 0;
  for (u32 i = 0; i < SLOT_SECTORS; i++, at += SECTOR) {
    const u64 *words = (const u64 *)at;
    count += words[0] != mix(sector + i) || words[SECTOR_WORDS - 1] != (mix(sector + i) ^ generation);
  }
  return count;
}

static u8 *hot_buffer(u32 slot) {
  static u32 next;
  u32 count = (u32)(region_bytes / block_bytes);
  for (u32 i = 0; i < count; i++) {
    next = (next + 7) % count;
    if (plugged[next] == 1) return reach(region + next * block_bytes + slot * SLOT_BYTES);
  }
  return slots[slot].low;
}

static void start_slot(u32 n) {
  u64 sector = FIRST_SECTOR + n * SLOT_SECTORS;
  if (!slots[n].reading) slots[n].generation++;
  slots[n].at = hot && (n & 1) != 0 ? hot_buffer(n) : slots[n].low;
  stamp(slots[n].at, sector, slots[n].generation, slots[n].reading);
  disk.headers[0][n] = (struct blk_header){slots[n].reading ? BLK_IN : BLK_OUT, 0, sector};
  disk.statuses[0][n] = 0xff;
  u16 data = slots[n].reading ? DESC_NEXT | DESC_WRITE : DESC_NEXT;
  set_descriptor(&disk.queues[0], 3 * n, &disk.headers[0][n], 16, DESC_NEXT, (u16)(3 * n + 1));
  set_descriptor(&disk.queues[0], 3 * n + 1, slots[n].at, SLOT_BYTES, data, (u16)(3 * n + 2));
  set_descriptor(&disk.queues[0], 3 * n + 2, (const void *)&disk.statuses[0][n], 1, DESC_WRITE, 0);
  slots[n].in_flight = true;
  offer(&disk.queues[0], (u16)(3 * n));
  publish_and_kick(&disk.queues[0]);
}

/* Takes one request: a disk that answers as fast as it is asked must not keep the guest from everything else. */
static void poll_disk(void) {
  u32 head, length;
  if (disk.queue_count > 0 && take_used(&disk.queues[0], &head, &length)) {
    u32 n = head / 3;
    requests++;
    slots[n].in_flight = false;
    failures += disk.statuses[0][n] != BLK_OK;
    u64 sector = FIRST_SECTOR + n * SLOT_SECTORS;
    if (slots[n].reading) mismatches += wrong_sectors(slots[n].at, sector, slots[n].generation);
    slots[n].reading = !slots[n].reading;
    start_slot(n);
  }
  relax();
}

static void start_disk(void) {
  if (!open_disk(&disk, 0, 1)) return;
  for (u32 n = 0; n < SLOTS; n++) {
    if (slots[n].low == NULL) slots[n].low = allocate(SLOT_BYTES);
    slots[n].reading = false;
    start_slot(n);
  }
}

static bool is_hot(const u8 *at) { return (u64)at >= region && (u64)at < region + region_bytes; }

/* Until no request is in memory that goes. */
static void leave_hot(void) {
  hot = false;
  for (u64 start = ticks(); ticks() - start < 20 * second();) {
    bool any = false;
    for (u32 n = 0; n < SLOTS; n++) any |= slots[n].in_flight && is_hot(slots[n].at);
    if (!any) return;
    poll_disk();
  }
  print("mem.error=the disk does not answer\n");
}

static u32 await_response(void) {
  u32 head, length;
  for (u64 start = ticks(); !take_used(&queue, &head, &length); poll_disk()) {
    if (ticks() - start > 20 * second()) return RESP_LOST;
  }
  return length == 0 ? RESP_NONE : response[0];
}

static u32 ask_with(u32 type, u64 address, u64 blocks, u32 request_bytes, u32 response_bytes) {
  *request = (struct mem_request){.type = (u16)type, .address = address, .blocks = (u16)blocks};
  for (u32 i = 0; i < 5; i++) response[i] = RESP_NONE;
  set_descriptor(&queue, 0, request, request_bytes, DESC_NEXT, 1);
  set_descriptor(&queue, 1, (const void *)response, response_bytes, DESC_WRITE, 0);
  offer(&queue, 0);
  publish_and_kick(&queue);
  return await_response();
}

static u32 ask(u32 type, u64 address, u64 blocks) { return ask_with(type, address, blocks, 24, 10); }

static void expect(const char *what, u64 found, u64 expected) {
  if (found == expected) return;
  wrong++;
  report("mem.wrong", what, found);
}

static bool open_mem(void) {
  if (!find_device(24, 0, &device) || !negotiate(&device, 1 << 1) || !set_up_queue(&queue, &device, 0, 16, false)) {
    print("mem.error=no device\n");
    return false;
  }
  request = allocate(4096);
  response = allocate(4096);
  set_driver_ok(&device);
  block_bytes = read_config64(&device, 0);
  region = read_config64(&device, 16);
  region_bytes = read_config64(&device, 24);
  report("mem", "block", block_bytes);
  report_hex("mem", "region", region);
  report("mem", "region_bytes", region_bytes);
  report("mem", "requested", requested_bytes());
  return region_bytes / block_bytes <= MAX_BLOCKS;
}

/* A driver that has to, and does not, accept UNPLUGGED_INACCESSIBLE. */
static void refuse_features(void) {
  if (find_device(24, 0, &device)) report("mem", "without_feature", negotiate(&device, 0));
}

static u64 count_plugged(void) {
  u64 count = 0;
  for (u64 i = 0; i < region_bytes / block_bytes; i++) count += plugged[i];
  return count;
}

/* Writes to both ends of a run of new blocks and reads that again. */
static void touch(u64 first, u64 count) {
  for (u64 i = first; i < first + count; i++) {
    volatile u64 *begin = reach(region + i * block_bytes);
    volatile u64 *end = begin + block_bytes / 8 - 1;
    *begin = mix(i);
    *end = ~mix(i);
    mismatches += *begin != mix(i) || *end != ~mix(i);
  }
}

/* Whether the far ends, which no buffer reaches, are as they were. */
static void look_again(u64 first, u64 count) {
  for (u64 i = first; i < first + count; i++) {
    volatile u64 *end = reach(region + (i + 1) * block_bytes - 8);
    mismatches += *end != ~mix(i);
  }
}

/* Plugs or unplugs up to `most` blocks at a time until the sizes agree; upwards, or from the end down. */
static void reach_request(u64 most, bool upwards) {
  u64 wanted = requested_bytes() / block_bytes, have = count_plugged(), last = usable() / block_bytes;
  bool plug = wanted > have;
  u64 missing = plug ? wanted - have : have - wanted;
  if (!plug) leave_hot();
  for (u64 i = 0; i < last && missing > 0;) {
    u64 first = upwards ? i : last - 1 - i, count = 1;
    i++;
    if (plugged[first] != !plug) continue;
    while (upwards && count < most && count < missing && first + count < last && plugged[first + count] == !plug) count++;
    i += count - 1;
    if (!plug) look_again(first, count);
    expect(plug ? "plug" : "unplug", ask(plug ? REQ_PLUG : REQ_UNPLUG, region + first * block_bytes, count), RESP_ACK);
    for (u64 b = first; b < first + count; b++) plugged[b] = plug;
    if (plug) touch(first, count);
    missing -= count;
  }
  expect("plugged_size", plugged_bytes(), count_plugged() * block_bytes);
  hot = count_plugged() > 0;
}

static void hostile_requests(void) {
  static const u64 addresses[] = {0, 0x100000, 0xd0000000, 0x8000000000000000, 0xffffffffffe00000, 0xffffffffffffffff};
  u64 blocks = requested_bytes() / block_bytes;
  for (u32 type = REQ_PLUG; type <= REQ_STATE; type++) {
    if (type == REQ_UNPLUG_ALL) continue;
    for (u32 i = 0; i < sizeof addresses / sizeof addresses[0]; i++) {
      expect("outside", ask(type, addresses[i], 1), RESP_ERROR);
      expect("outside.many", ask(type, addresses[i], 0xffff), RESP_ERROR);
    }
    expect("unaligned", ask(type, region + 4096, 1), RESP_ERROR);
    expect("none", ask(type, region, 0), RESP_ERROR);
    expect("below", ask(type, region - block_bytes, 2), RESP_ERROR);
    expect("above", ask(type, region + usable(), 1), RESP_ERROR);
    expect("across", ask(type, region + usable() - block_bytes, 2), RESP_ERROR);
    expect("far", ask(type, region + region_bytes, 1), RESP_ERROR);
    expect("short", ask_with(type, region, 1, 23, 10), RESP_NONE);
    expect("no_room", ask_with(type, region, 1, 24, 9), RESP_NONE);
  }
  expect("unknown", ask(4, region, 1), RESP_ERROR);
  expect("unknown.all", ask(0xffff, region, 1), RESP_ERROR);
  expect("unplug.nothing", ask(REQ_UNPLUG, region, 1), RESP_ERROR);
  expect("plug.one", ask(REQ_PLUG, region + block_bytes, 1), RESP_ACK);
  expect("plug.again", ask(REQ_PLUG, region + block_bytes, 1), RESP_ERROR);
  expect("plug.overlap", ask(REQ_PLUG, region, 2), RESP_ERROR);
  expect("unplug.overlap", ask(REQ_UNPLUG, region, 2), RESP_ERROR);
  expect("state", ask(REQ_STATE, region, 2), RESP_ACK);
  expect("state.mixed", response[4], 2);
  expect("state.one", ask(REQ_STATE, region + block_bytes, 1) + response[4], 0);
  expect("plug.rest", ask(REQ_PLUG, region + 2 * block_bytes, blocks - 1), RESP_ACK);
  expect("plug.more", ask(REQ_PLUG, region, 1), RESP_NACK);

  // Requests and answers in memory that is not there.
  set_descriptor(&queue, 0, (void *)(region + region_bytes), 24, DESC_NEXT, 1);
  offer(&queue, 0);
  publish_and_kick(&queue);
  expect("request.nowhere", await_response(), RESP_NONE);
  set_descriptor(&queue, 0, request, 24, DESC_NEXT, 1);
  set_descriptor(&queue, 1, (void *)(region - 4), 10, DESC_WRITE, 0);
  offer(&queue, 0);
  publish_and_kick(&queue);
  expect("response.nowhere", await_response(), RESP_NONE);
  for (u32 i = 0; i < 64; i += 8) *(volatile u64 *)(device.base + REGISTER_CONFIG + i) = ~0ull;
}

/* Takes memory from under the disk: its buffers, and then its ring. With hold=1 until another size is requested. */
static void pull_away(void) {
  static struct disk victim;
  u8 *there = reach(region + 2 * block_bytes);
  reset_device(&disk.device);
  disk.queue_count = 0;
  if (!open_disk(&victim, 0, 1)) return;
  expect("dma", blk_transfer(&victim, 0, BLK_IN, 0, there, 65536), BLK_OK);
  report("mem", "dma_outside", blk_transfer(&victim, 0, BLK_IN, 0, reach(region + region_bytes), 4096));
  set_descriptor(&victim.queues[0], 0, &victim.headers[0][0], 16, DESC_NEXT, 1);
  set_descriptor(&victim.queues[0], 1, there, 262144, DESC_NEXT | DESC_WRITE, 2);
  set_descriptor(&victim.queues[0], 2, (const void *)&victim.statuses[0][0], 1, DESC_WRITE, 0);
  offer(&victim.queues[0], 0);
  publish_and_kick(&victim.queues[0]);
  expect("unplug_all.in_use", ask(REQ_UNPLUG_ALL, 0, 0), RESP_ACK);
  u32 head, length;
  report("mem", "answered", await_used(&victim.queues[0], &head, &length, 20));
  (void)*(volatile u64 *)there;
  *(volatile u64 *)there = 1;

  expect("plug.for_ring", ask(REQ_PLUG, region + 2 * block_bytes, 1), RESP_ACK);
  negotiate(&victim.device, 0);
  fill_words(there, 0, 4096);
  victim.queues[0].descriptors = (struct descriptor *)there;
  victim.queues[0].available = (volatile u16 *)(there + 8192);
  victim.queues[0].used = (volatile u16 *)(there + 16384);
  victim.queues[0].next_available = victim.queues[0].next_used = 0;
  place_queue(&victim.queues[0]);
  set_driver_ok(&victim.device);
  expect("ring", blk_transfer(&victim, 0, BLK_IN, 0, slots[0].low, SLOT_BYTES), BLK_OK);
  expect("unplug_all.ring", ask(REQ_UNPLUG_ALL, 0, 0), RESP_ACK);
  kick(&victim.queues[0]);
  expect("plugged", plugged_bytes(), 0);
  if (number_parameter("hold", 0) != 0) {
    u64 size = requested_bytes();
    print("mem.pulled=1\n");
    for (u64 start = ticks(); requested_bytes() == size && ticks() - start < 60 * second();) relax();
    write_register(&device, REGISTER_INTERRUPT_ACK, 2);
  }
  for (u32 n = 0; n < SLOTS; n++) slots[n].in_flight = false;
  start_disk();
}

void job_mem(void) {
  u64 rounds = number_parameter("rounds", 1), most = number_parameter("run", 64);
  refuse_features();
  if (!open_mem()) return;
  start_disk();
  print("mem.ready=1\n");
  for (u64 round = 0, size = 0; round < rounds; round++) {
    for (u64 start = ticks(); requested_bytes() == size; poll_disk()) {
      if (ticks() - start < 60 * second()) continue;
      print("mem.error=no other size is requested\n");
      return;
    }
    size = requested_bytes();
    for (u64 start = ticks(); (read_register(&device, REGISTER_INTERRUPT_STATUS) & 2) == 0;) {
      if (ticks() - start < second()) continue;
      expect("told", 0, 1);
      break;
    }
    write_register(&device, REGISTER_INTERRUPT_ACK, 2);
    if (round == 0 && number_parameter("hostile", 0) != 0) {
      hostile_requests();
      pull_away();
      size = requested_bytes();
    }
    reach_request(most, (round & 2) == 0);
    // Nothing that was asked for is told.
    expect("told_of_own", read_register(&device, REGISTER_INTERRUPT_STATUS) & 2, 0);
    for (u64 done = requests, start = ticks(); requests < done + 2 * SLOTS && ticks() - start < 20 * second();) poll_disk();
    report("mem", "size", plugged_bytes());
  }
  leave_hot();
  report("mem", "requests", requests);
  report("mem", "failures", failures);
  report("mem", "mismatches", mismatches);
  report("mem", "wrong", wrong);
  reset_device(&disk.device);
  expect("kept", plugged_bytes(), count_plugged() * block_bytes);
}

/* The device as job=pattern uses it: whatever is requested is followed at once, and no disk of this job is there. */
static u64 followed;

bool open_memory(void) { return open_mem(); }
bool memory_is_requested(void) { return requested_bytes() != followed; }

void follow_memory(void) {
  followed = requested_bytes();
  write_register(&device, REGISTER_INTERRUPT_ACK, 2);
  reach_request(64, true);
  report("mem", "size", plugged_bytes());
  if (wrong + mismatches != 0) report("pattern", "wrong", wrong + mismatches);
}

u64 memory_blocks(void) { return region_bytes / block_bytes; }
u8 *memory_block(u64 n) { return n < memory_blocks() && plugged[n] ? (u8 *)(region + n * block_bytes) : NULL; }
