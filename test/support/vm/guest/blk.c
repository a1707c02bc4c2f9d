/* Disks: opening one, single requests, and the job that writes, reads and compares in every shape of chain. See blk.h. */

#include "blk.h"

static u32 open_count;

bool open_disk(struct disk *disk, u32 n, u32 queues) {
  if (!find_device(DEVICE_BLK, n, &disk->device)) {
    report("error", "no_disk", n);
    return false;
  }
  copy_bytes(disk->name, "disk0", 6);
  disk->name[4] = (char)('0' + n);
  u64 wanted = BLK_SEG_MAX | BLK_RO | BLK_BLK_SIZE | BLK_FLUSHES | BLK_CONFIG_WCE | BLK_MQ | FEATURE_INDIRECT;
  if (!negotiate(&disk->device, wanted)) {
    report_text(disk->name, "error", "features");
    return false;
  }
  u32 size = (u32)number_parameter("queue_size", 256);
  // Every second time the rings are above 4 GiB, where there is such memory.
  bool high = (open_count++ & 1) != 0;
  for (disk->queue_count = 0; disk->queue_count < queues; disk->queue_count++) {
    u32 i = disk->queue_count;
    if (!set_up_queue(&disk->queues[i], &disk->device, i, size, high)) break;
    u32 entries = disk->queues[i].size;
    disk->headers[i] = allocate(entries * sizeof(struct blk_header));
    disk->statuses[i] = allocate(entries);
  }
  if (disk->queue_count == 0) {
    report_text(disk->name, "error", "queue");
    return false;
  }
  disk->indirect = allocate(4096);
  set_driver_ok(&disk->device);
  disk->capacity = read_config64(&disk->device, 0);
  return true;
}

u32 blk_request(struct disk *disk, u32 q, u32 type, u64 sector, const struct segment *segments, u32 count,
                bool indirect) {
  struct queue *queue = &disk->queues[q];
  struct blk_header *header = &disk->headers[q][0];
  volatile u8 *status = &disk->statuses[q][0];
  *header = (struct blk_header){type, 0, sector};
  *status = 0xff;
  struct descriptor *table = indirect ? disk->indirect : queue->descriptors;
  u16 data = type == BLK_OUT ? DESC_NEXT : DESC_NEXT | DESC_WRITE;
  table[0] = (struct descriptor){(u64)header, 16, DESC_NEXT, 1};
  for (u32 i = 0; i < count; i++) {
    table[1 + i] = (struct descriptor){(u64)segments[i].at, segments[i].length, data, (u16)(2 + i)};
  }
  table[1 + count] = (struct descriptor){(u64)status, 1, DESC_WRITE, 0};
  if (indirect) set_descriptor(queue, 0, table, (2 + count) * 16, DESC_INDIRECT, 0);
  offer(queue, 0);
  publish_and_kick(queue);
  u32 head, length;
  if (!await_used(queue, &head, &length, 20)) return BLK_LOST;
  return *status;
}

u32 blk_transfer(struct disk *disk, u32 queue, u32 type, u64 sector, void *at, u32 length) {
  struct segment segment = {at, length};
  return blk_request(disk, queue, type, sector, &segment, 1, false);
}

void stamp_sectors(void *at, u64 sector, u64 count, u64 seed) {
  for (u64 *words = at; count-- > 0; words += SECTOR_WORDS, sector++) {
    u64 word = mix(sector ^ seed << 40);
    fill_words(words, word, SECTOR_WORDS);
    words[1] = sector;
    words[SECTOR_WORDS - 1] = ~word;
  }
}

u64 count_mismatches(const void *at, u64 sector, u64 count, u64 seed) {
  u64 mismatches = 0;
  for (const u64 *words = at; count-- > 0; words += SECTOR_WORDS, sector++) {
    u64 word = mix(sector ^ seed << 40);
    bool good = words[0] == word && words[1] == sector && words_are(words + 2, word, SECTOR_WORDS - 3) &&
                words[SECTOR_WORDS - 1] == ~word;
    mismatches += !good;
  }
  return mismatches;
}

/* The shapes of requests: how many segments of how many bytes. */
static const struct {
  u32 segments;
  u32 bytes;
} shapes[] = {{1, 4096}, {1, 512}, {3, 512}, {16, 4096}, {1, 65536}, {2, 1536}, {40, 512}, {7, 8192}, {125, 512}};
#define SHAPES (sizeof shapes / sizeof shapes[0])
#define MOST_BYTES 65536

/* Every second segment from the far end of the buffer, so that no two neighbours are adjacent. */
static u32 lay_out(struct segment *segments, u32 shape, u8 *buffer) {
  u32 count = shapes[shape].segments, bytes = shapes[shape].bytes;
  for (u32 i = 0; i < count; i++) {
    u32 place = (i & 1) == 0 ? i / 2 : count - 1 - i / 2;
    segments[i] = (struct segment){buffer + place * bytes, bytes};
  }
  return count;
}

static void stamp_or_count(const struct segment *segments, u32 count, u64 sector, u64 seed, bool stamp, u64 *mismatches) {
  for (u32 i = 0; i < count; i++) {
    u64 sectors = segments[i].length / SECTOR;
    if (stamp) stamp_sectors(segments[i].at, sector, sectors, seed);
    else *mismatches += count_mismatches(segments[i].at, sector, sectors, seed);
    sector += sectors;
  }
}

static void exercise(struct disk *disk, u64 first, u64 sectors, u64 seed, u8 *buffers[2]) {
  struct segment segments[128];
  u64 mismatches = 0, failures = 0, requests = 0;
  u32 most_segments = (disk->device.features & BLK_SEG_MAX) ? read_register(&disk->device, REGISTER_CONFIG + 12) : 1;
  for (u32 pass = 0; pass < 2; pass++) {
    // The second pass starts with another shape: what was written in one is read in others.
    u32 shape = pass * 4;
    for (u64 sector = first; sector < first + sectors;) {
      shape = (shape + 1) % SHAPES;
      bool indirect = (disk->device.features & FEATURE_INDIRECT) != 0 && (requests & 3) == 3;
      u32 bytes = shapes[shape].segments * shapes[shape].bytes;
      u32 room = indirect ? 256 : disk->queues[0].size;
      if (shapes[shape].segments > most_segments || shapes[shape].segments + 2 > room) continue;
      u32 count = lay_out(segments, shape, buffers[requests & 1]);
      if (bytes / SECTOR > first + sectors - sector) {
        segments[0] = (struct segment){buffers[requests & 1], SECTOR};
        count = 1;
        bytes = SECTOR;
      }
      if (pass == 0) stamp_or_count(segments, count, sector, seed, true, NULL);
      else fill_words(buffers[requests & 1], 0, bytes / 8);
      failures += blk_request(disk, 0, pass == 0 ? BLK_OUT : BLK_IN, sector, segments, count, indirect) != BLK_OK;
      if (pass == 1) stamp_or_count(segments, count, sector, seed, false, &mismatches);
      sector += bytes / SECTOR;
      requests++;
    }
    if (pass == 0 && (disk->device.features & BLK_FLUSHES) != 0) {
      report(disk->name, "flush", blk_request(disk, 0, BLK_FLUSH, 0, NULL, 0, false));
    }
  }
  report(disk->name, "requests", requests);
  report(disk->name, "failures", failures);
  report(disk->name, "mismatches", mismatches);
}

/* job=blk: disk=N start=SECTOR kb=SIZE seed=S. */
static void exercise_disk(u32 n) {
  static struct disk disk;
  if (!open_disk(&disk, n, 1)) return;
  u8 vector = fresh_vector();
  route_interrupt(interrupt_of(&disk.device), vector);
  report(disk.name, "capacity", disk.capacity);
  report(disk.name, "readonly", (disk.device.features & BLK_RO) != 0);
  report(disk.name, "queue_size", disk.queues[0].size);
  char *id = allocate(4096);
  fill_words(id, 0, 8);
  if (blk_transfer(&disk, 0, BLK_GET_ID, 0, id, 20) == BLK_OK) report_text(disk.name, "id", id);
  // The completion came; so has its interrupt, or does so in a moment.
  for (u64 start = ticks(); !interrupt_pending(vector) && ticks() - start < second();) relax();
  report(disk.name, "interrupt", interrupt_pending(vector));

  u8 *buffers[2] = {allocate(MOST_BYTES), allocate_high(MOST_BYTES)};
  report(disk.name, "high", (u64)buffers[1] >= 0x100000000);
  report_hex(disk.name, "buffer", (u64)buffers[1]);
  report_hex(disk.name, "ring", (u64)disk.queues[0].descriptors);
  u64 start = number_parameter("start", 0);
  if ((disk.device.features & BLK_RO) == 0) {
    exercise(&disk, start, number_parameter("kb", 1024) * 2, number_parameter("seed", 1), buffers);
  } else {
    report(disk.name, "write", blk_transfer(&disk, 0, BLK_OUT, start, buffers[0], SECTOR));
  }
  report(disk.name, "beyond", blk_transfer(&disk, 0, BLK_IN, disk.capacity, buffers[0], SECTOR));
  report(disk.name, "unknown", blk_transfer(&disk, 0, 0x7777, 0, buffers[0], SECTOR));
  write_register(&disk.device, REGISTER_INTERRUPT_ACK, read_register(&disk.device, REGISTER_INTERRUPT_STATUS));
  report(disk.name, "needs_reset", (read_register(&disk.device, REGISTER_STATUS) & STATUS_NEEDS_RESET) != 0);
}

void job_blk(void) {
  u32 first = (u32)number_parameter("disk", 0);
  for (u32 n = first; n < first + (u32)number_parameter("disks", 1); n++) exercise_disk(n);
}

/* job=boots: a counter in the first sector of disk 0, which is what survives a reset. until=N switches off at N. */
void job_boots(void) {
  static struct disk disk;
  if (!open_disk(&disk, 0, 1)) return;
  u64 *words = allocate(4096);
  u32 status = blk_transfer(&disk, 0, BLK_IN, 0, words, SECTOR);
  words[0]++;
  report("", "boots", words[0]);
  status |= blk_transfer(&disk, 0, BLK_OUT, 0, words, SECTOR);
  if (status != BLK_OK) report("boots", "failures", status);
  if (words[0] >= number_parameter("until", 2)) power_off();
}

/* job=resize: waits until the configuration changes, and reads the last sector of what the disk has become. */
void job_resize(void) {
  static struct disk disk;
  if (!open_disk(&disk, (u32)number_parameter("disk", 0), 1)) return;
  u8 vector = fresh_vector();
  route_interrupt(interrupt_of(&disk.device), vector);
  report("resize", "before", disk.capacity);
  print("resize.waiting=1\n");
  for (u64 start = ticks(); (read_register(&disk.device, REGISTER_INTERRUPT_STATUS) & 2) == 0;) {
    if (ticks() - start > 30 * second()) {
      print("resize.error=no change\n");
      return;
    }
    relax();
  }
  disk.capacity = read_config64(&disk.device, 0);
  report("resize", "after", disk.capacity);
  for (u64 start = ticks(); !interrupt_pending(vector) && ticks() - start < second();) relax();
  report("resize", "interrupt", interrupt_pending(vector));
  write_register(&disk.device, REGISTER_INTERRUPT_ACK, 2);
  for (u64 start = ticks(); (read_register(&disk.device, REGISTER_INTERRUPT_STATUS) & 2) != 0;) {
    if (ticks() - start > second()) break;
  }
  report("resize", "acknowledged", (read_register(&disk.device, REGISTER_INTERRUPT_STATUS) & 2) == 0);
  report("resize", "last", blk_transfer(&disk, 0, BLK_IN, disk.capacity - 1, allocate(4096), SECTOR));
}
