/*
 * job=hostile: case=all or one of the names below. Each does to the first disk what no driver should; the machine and the
 * back end have to live, and a reset has to make everything good: the job verifies that with one request after each case.
 */

#include "blk.h"
#include "jobs.h"

static struct disk disk;

static void ready(u64 descriptors, u64 available, u64 used, u32 size) {
  struct queue queue = disk.queues[0];
  queue.descriptors = (struct descriptor *)descriptors;
  queue.available = (volatile u16 *)available;
  queue.used = (volatile u16 *)used;
  queue.size = size;
  place_queue(&queue);
}

/* Rings at addresses of all kinds, started and kicked. */
static void rings(void) {
  static const u64 places[] = {
      0x7ffffffff000,     0xfffffffffffff000, 0x8000000000000000, 0xd0000000, 0xbffffff0,
      0xfffffffffffffff0, 0xfee00000,         0x100001,           0,
  };
  for (u32 i = 0; i < sizeof places / sizeof places[0]; i++) {
    for (u32 which = 0; which < 3; which++) {
      negotiate(&disk.device, 0);
      u64 good = (u64)disk.indirect;
      ready(which == 0 ? places[i] : good, which == 1 ? places[i] : good + 1024, which == 2 ? places[i] : good + 2048, 16);
      set_driver_ok(&disk.device);
      kick(&disk.queues[0]);
    }
  }
}

static void sizes(void) {
  static const u32 values[] = {0, 1, 3, 0x7fff, 0x8000, 0xffff, 0x10000, 0xffffffff};
  for (u32 i = 0; i < sizeof values / sizeof values[0]; i++) {
    negotiate(&disk.device, 0);
    u64 good = (u64)disk.indirect;
    ready(good, good + 1024, good + 2048, values[i]);
    set_driver_ok(&disk.device);
    kick(&disk.queues[0]);
  }
}

/* Every register, with values of all kinds in every state. */
static void registers(void) {
  static const u32 values[] = {0, 1, 0x7fffffff, 0xffffffff, 0x5a5a5a5a};
  for (u32 i = 0; i < sizeof values / sizeof values[0]; i++) {
    for (u32 offset = 0; offset < 0x140; offset += 4) write_register(&disk.device, offset, values[i]);
    for (u32 offset = 0x140; offset < 0x200; offset += 0x40) write_register(&disk.device, offset, values[i]);
  }
  for (u32 offset = 0; offset < 0x110; offset += 3) {
    *(volatile u8 *)(disk.device.base + offset) = 0xff;
    *(volatile u16 *)(disk.device.base + offset) = 0xffff;
    *(volatile u64 *)(disk.device.base + offset) = ~0ull;
    (void)*(volatile u16 *)(disk.device.base + offset);
    (void)*(volatile u64 *)(disk.device.base + offset);
  }
}

static void notifies(void) {
  static const u32 values[] = {1, 2, 255, 256, 0xffff, 0x10000, 0xffffffff};
  for (u32 round = 0; round < 2; round++) {
    if (round == 0) reset_device(&disk.device);
    else open_disk(&disk, 0, 1);
    for (u32 i = 0; i < sizeof values / sizeof values[0]; i++) {
      write_register(&disk.device, REGISTER_QUEUE_NOTIFY, values[i]);
      write_register(&disk.device, REGISTER_QUEUE_SEL, values[i]);
      write_register(&disk.device, REGISTER_QUEUE_NUM, 16);
      write_register(&disk.device, REGISTER_QUEUE_READY, 1);
    }
  }
}

/* Status bits in the wrong order, features that nobody offered. */
static void states(void) {
  reset_device(&disk.device);
  write_register(&disk.device, REGISTER_STATUS, STATUS_DRIVER_OK);
  write_register(&disk.device, REGISTER_STATUS, 0xff);
  reset_device(&disk.device);
  write_register(&disk.device, REGISTER_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
  for (u32 i = 0; i < 2; i++) {
    write_register(&disk.device, REGISTER_DRIVER_FEATURES_SEL, i);
    write_register(&disk.device, REGISTER_DRIVER_FEATURES, 0xffffffff);
  }
  write_register(&disk.device, REGISTER_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
  report("hostile", "features_refused", (read_register(&disk.device, REGISTER_STATUS) & STATUS_FEATURES_OK) == 0);
  write_register(&disk.device, REGISTER_STATUS, 0x0f);
  write_register(&disk.device, REGISTER_DRIVER_FEATURES_SEL, 0xffffffff);
  write_register(&disk.device, REGISTER_DEVICE_FEATURES_SEL, 0xffffffff);
  report_hex("hostile", "features_beyond", read_register(&disk.device, REGISTER_DEVICE_FEATURES));
  // The ring is taken away while the device may use it.
  if (open_disk(&disk, 0, 1)) {
    write_register(&disk.device, REGISTER_QUEUE_SEL, 0);
    write_register(&disk.device, REGISTER_QUEUE_READY, 0);
    write_register(&disk.device, REGISTER_QUEUE_READY, 1);
    write_register(&disk.device, REGISTER_STATUS, 0x8f);
  }
}

/* A chain that goes round, one that leaves the table, data outside RAM; the ring may be broken after each. */
static void chains(void) {
  for (u32 which = 0; which < 6; which++) {
    if (!open_disk(&disk, 0, 1)) return;
    struct queue *queue = &disk.queues[0];
    disk.headers[0][0] = (struct blk_header){BLK_IN, 0, 0};
    set_descriptor(queue, 0, disk.headers[0], 16, DESC_NEXT, 1);
    set_descriptor(queue, 1, disk.indirect, 512, DESC_NEXT | DESC_WRITE, 2);
    set_descriptor(queue, 2, (const void *)disk.statuses[0], 1, DESC_WRITE, 0);
    if (which == 0) set_descriptor(queue, 1, disk.indirect, 512, DESC_NEXT | DESC_WRITE, 1);
    if (which == 1) set_descriptor(queue, 1, disk.indirect, 512, DESC_NEXT | DESC_WRITE, 60000);
    if (which == 2) set_descriptor(queue, 1, (void *)0x7ffffffff000, 512, DESC_NEXT | DESC_WRITE, 2);
    if (which == 3) set_descriptor(queue, 1, (void *)0xd0000000, 512, DESC_NEXT | DESC_WRITE, 2);
    if (which == 4) set_descriptor(queue, 2, (void *)0xfffffffffffffff0, 0xffffffff, DESC_WRITE, 0);
    offer(queue, which == 5 ? 60000 : 0);
    publish(queue);
    kick(queue);
    // An available index that runs ahead of the ring by more than its size.
    queue->available[1] = (u16)(queue->next_available + 5 * queue->size);
    kick(queue);
  }
}

/* Requests in flight while the device is reset, again and again. */
static void resets(void) {
  for (u32 round = 0; round < 10; round++) {
    if (!open_disk(&disk, 0, 1)) return;
    struct queue *queue = &disk.queues[0];
    for (u32 n = 0; n < 16; n++) {
      disk.headers[0][n] = (struct blk_header){BLK_IN, 0, 0};
      set_descriptor(queue, 3 * n, &disk.headers[0][n], 16, DESC_NEXT, (u16)(3 * n + 1));
      set_descriptor(queue, 3 * n + 1, disk.indirect, 4096, DESC_NEXT | DESC_WRITE, (u16)(3 * n + 2));
      set_descriptor(queue, 3 * n + 2, (const void *)&disk.statuses[0][n], 1, DESC_WRITE, 0);
      offer(queue, (u16)(3 * n));
    }
    publish(queue);
    kick(queue);
    reset_device(&disk.device);
  }
}

/* Addresses and ports that nobody has. */
static void nobody(void) {
  static const u64 addresses[] = {0xc0000000, 0xcffffffc, 0xd0013000, 0xd0101000, 0xe0000000, 0xfed00000, 0xfffffff8};
  for (u32 i = 0; i < sizeof addresses / sizeof addresses[0]; i++) {
    volatile u32 *at = reach(addresses[i]);
    *at = 0;
    report_hex("hostile", "read", *at);
  }
  static const u16 ports[] = {0x0001, 0x0400, 0x0604, 0x1234, 0xfffc};
  for (u32 i = 0; i < sizeof ports / sizeof ports[0]; i++) {
    out8(ports[i], 0);
    out16(ports[i], 0);
    out32(ports[i], 0);
    report_hex("hostile", "in", in32(ports[i]));
  }
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    {"rings", rings},   {"sizes", sizes},   {"registers", registers}, {"notifies", notifies},
    {"states", states}, {"chains", chains}, {"resets", resets},       {"nobody", nobody},
};

/* A write and a read of one block after everything. */
static bool works(u64 seed) {
  if (!open_disk(&disk, 0, 1)) return false;
  u8 *buffer = (u8 *)disk.indirect;
  stamp_sectors(buffer, 0, 8, seed);
  if (blk_transfer(&disk, 0, BLK_OUT, 0, buffer, 4096) != BLK_OK) return false;
  fill_words(buffer, 0, 512);
  return blk_transfer(&disk, 0, BLK_IN, 0, buffer, 4096) == BLK_OK && count_mismatches(buffer, 0, 8, seed) == 0;
}

void job_hostile(void) {
  char which[16];
  if (!text_parameter("case", which, sizeof which)) copy_bytes(which, "all", 4);
  if (!open_disk(&disk, 0, 1)) return;
  for (u32 i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    if (!same_text(which, "all") && !same_text(which, cases[i].name)) continue;
    cases[i].run();
    report("hostile", cases[i].name, works(i + 2));
  }
}
