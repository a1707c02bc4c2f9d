/*
 * Devices that come and go while the guest runs. The registers of the slots and their bits are those of the machine's
 * ACPI methods (PRES, ADDE, REMV, ACKA, ACKR, EJCT, BTNS, ACKB in its DSDT), written out here.
 */

#include "blk.h"
#include "jobs.h"
#include "virtio.h"

#define HOTPLUG 0xd0100000u
#define PRESENT 0x00
#define ADDED 0x04
#define REMOVING 0x08
#define ACKNOWLEDGE_ADDED 0x0c
#define ACKNOWLEDGE_REMOVING 0x10
#define EJECT 0x14
#define BUTTONS 0x18
#define ACKNOWLEDGE_BUTTONS 0x1c
#define INTERRUPT 3
#define SLOTS 19
#define BATCH 32
#define MARK 0x5a5a5a5a5a5a5a5aull

static struct disk disks[SLOTS];
static u8 *buffer;
static u64 mismatches, failures, after_eject;

static volatile u32 *hotplug(u32 offset) { return (volatile u32 *)(uintptr_t)(HOTPLUG + offset); }

/* Which of the disks is in a slot. */
static u32 disk_number(u32 slot) {
  struct device device;
  u32 n = 0;
  for (u32 i = 0; i < slot; i++) n += probe_device(i, &device) && device.id == DEVICE_BLK;
  return n;
}

static void check_disk(struct disk *disk, u64 seed) {
  u64 kb = number_parameter("kb", 32);
  for (u64 sector = 0; sector < kb * 2; sector += 8) {
    stamp_sectors(buffer, sector, 8, seed);
    failures += blk_transfer(disk, 0, BLK_OUT, sector, buffer, 8 * SECTOR) != BLK_OK;
  }
  for (u64 sector = 0; sector < kb * 2; sector += 8) {
    fill_words(buffer, 0, 8 * SECTOR_WORDS);
    failures += blk_transfer(disk, 0, BLK_IN, sector, buffer, 8 * SECTOR) != BLK_OK;
    mismatches += count_mismatches(buffer, sector, 8, seed);
  }
}

/* Whether the power button was pressed. */
static bool asked_to_end(void) {
  u32 buttons = *hotplug(BUTTONS);
  if (buttons == 0) return false;
  *hotplug(ACKNOWLEDGE_BUTTONS) = buttons;
  report("hotplug", "button", buttons);
  report("hotplug", "button_left", *hotplug(BUTTONS));
  return true;
}

/* Drives what has come into a slot. */
static void take(u32 slot, u64 seed) {
  struct device device;
  if (!probe_device(slot, &device)) {
    report("hotplug", "empty", slot);
    return;
  }
  if (device.id == DEVICE_BLK) {
    if (!open_disk(&disks[slot], disk_number(slot), 1)) return;
    check_disk(&disks[slot], seed);
  } else {
    struct queue queues[2];
    if (!negotiate(&device, 0) || !set_up_queue(&queues[0], &device, 0, 64, false) ||
        !set_up_queue(&queues[1], &device, 1, 64, false)) {
      report("hotplug", "refused", slot);
      return;
    }
    set_driver_ok(&device);
  }
}

/* Leaves the device of a slot with reads on their way. */
static void leave_busy(struct disk *disk) {
  struct queue *queue = &disk->queues[0];
  for (u16 i = 0; i < BATCH; i++) {
    disk->headers[0][i] = (struct blk_header){BLK_IN, 0, i * 8};
    set_descriptor(queue, 3 * i, &disk->headers[0][i], 16, DESC_NEXT, 3 * i + 1);
    set_descriptor(queue, 3 * i + 1, buffer + i * 4096, 4096, DESC_NEXT | DESC_WRITE, 3 * i + 2);
    set_descriptor(queue, 3 * i + 2, (const void *)&disk->statuses[0][i], 1, DESC_WRITE, 0);
    offer(queue, 3 * i);
  }
  publish(queue);
  kick(queue);
}

/* Lets go of the device of a slot. busy=1: in the middle of requests, and every second time without a reset. */
static void let_go(u32 slot, u64 round) {
  bool busy = number_parameter("busy", 0) != 0;
  struct device device;
  if (!probe_device(slot, &device)) return;
  if (busy && device.id == DEVICE_BLK) leave_busy(&disks[slot]);
  if (!busy || (round & 1) != 0) reset_device(&device);
  *hotplug(EJECT) = slot;
  // From here on nobody writes to it.
  fill_words(buffer, MARK, BATCH * 512);
  bool present = (*hotplug(PRESENT) >> slot & 1) != 0;
  if (present || read_register(&device, REGISTER_MAGIC) != 0x74726976 || read_register(&device, REGISTER_DEVICE_ID) != 0)
    report("hotplug", "kept", slot);
  // Registers of an empty slot: nothing comes of it.
  write_register(&device, REGISTER_QUEUE_NOTIFY, 0);
  write_register(&device, REGISTER_STATUS, STATUS_ACKNOWLEDGE);
  if (read_register(&device, REGISTER_STATUS) != 0) report("hotplug", "status", slot);
  if (!busy) return;
  wait_ticks(second() / 100);
  after_eject += !words_are(buffer, MARK, BATCH * 512);
}

/* Writes to the registers what a guest has no reason to write, and ejects what nobody wants back. */
static void misbehave(void) {
  static const u32 numbers[] = {19, 31, 32, 0x80000000, 0xffffffff};
  for (u32 offset = 0; offset < 4096; offset += 4) {
    // Ejecting comes below.
    if (offset != EJECT) *hotplug(offset) = 0xffffffff;
  }
  *(volatile u16 *)hotplug(EJECT) = 1;
  *(volatile u8 *)hotplug(EJECT) = 1;
  *(volatile u64 *)hotplug(ADDED) = ~0ull;
  for (u32 i = 0; i < sizeof numbers / sizeof numbers[0]; i++) *hotplug(EJECT) = numbers[i];
  report_hex("hotplug", "before", *hotplug(PRESENT));
  for (u32 slot = 0; slot < SLOTS; slot++) {
    *hotplug(EJECT) = slot;
    *hotplug(EJECT) = slot;
  }
  report_hex("hotplug", "after", *hotplug(PRESENT));
}

/*
 * job=hotplug: rounds=N kb=SIZE busy=0|1 load=0|1 bad=0|1. Takes what is added, lets go of what is wanted back, until N
 * devices are gone or the power button is pressed. With load=1 it writes to and reads from the first disk of the machine meanwhile; with bad=1 it does
 * first what it is not to do.
 */
void job_hotplug(void) {
  static struct disk loaded;
  u64 rounds = number_parameter("rounds", 1), gone = 0, came = 0, requests = 0;
  bool load = number_parameter("load", 0) != 0;
  u8 vector = fresh_vector();
  buffer = allocate(BATCH * 4096);
  u8 *own = allocate(8 * SECTOR);
  reach(HOTPLUG);
  route_interrupt(INTERRUPT, vector);
  if (load && !open_disk(&loaded, 0, 1)) return;
  report_hex("hotplug", "present", *hotplug(PRESENT));
  if (number_parameter("bad", 0) != 0) misbehave();
  print("hotplug.ready=1\n");
  for (u64 start = ticks(); gone < rounds;) {
    if (ticks() - start > 60 * second()) {
      print("hotplug.error=nothing comes and nothing goes\n");
      break;
    }
    if (load) {
      u64 sector = requests++ % 64 * 8;
      stamp_sectors(own, sector, 8, requests);
      failures += blk_transfer(&loaded, 0, BLK_OUT, sector, own, 8 * SECTOR) != BLK_OK;
      fill_words(own, 0, 8 * SECTOR_WORDS);
      failures += blk_transfer(&loaded, 0, BLK_IN, sector, own, 8 * SECTOR) != BLK_OK;
      mismatches += count_mismatches(own, sector, 8, requests);
    }
    if (asked_to_end()) break;
    u32 added = *hotplug(ADDED), removing = *hotplug(REMOVING);
    if ((added | removing) == 0) {
      relax();
      continue;
    }
    if (added != 0) *hotplug(ACKNOWLEDGE_ADDED) = added;
    if (removing != 0) *hotplug(ACKNOWLEDGE_REMOVING) = removing;
    for (u32 slot = 0; slot < SLOTS; slot++) {
      if ((added >> slot & 1) != 0) {
        take(slot, ++came);
        report("hotplug", "added", slot);
      }
      if ((removing >> slot & 1) != 0) {
        let_go(slot, ++gone);
        report("hotplug", "removed", slot);
      }
    }
    start = ticks();
  }
  report("hotplug", "interrupt", interrupt_pending(vector));
  report("hotplug", "came", came);
  report("hotplug", "gone", gone);
  report("hotplug", "requests", requests);
  report("hotplug", "failures", failures);
  report("hotplug", "mismatches", mismatches);
  report("hotplug", "after_eject", after_eject);
}

/* The devices as job=pattern uses them. Of each slot with a disk how often that was written, and when it goes. */
static u64 written[SLOTS], leaves[SLOTS];
/* With hold=1 what is wanted back stays until a byte comes in by the serial port. */
static bool is_held;

void open_hotplug(void) {
  buffer = allocate(BATCH * 4096);
  reach(HOTPLUG);
}

/* Whether a disk is as it was left, and then all of it once more. */
static void visit(u32 slot) {
  u64 kb = number_parameter("hot_kb", 32);
  for (u64 sector = 0; sector < kb * 2; sector += 8) {
    if (written[slot] > 0) {
      fill_words(buffer, 0, 8 * SECTOR_WORDS);
      failures += blk_transfer(&disks[slot], 0, BLK_IN, sector, buffer, 8 * SECTOR) != BLK_OK;
      mismatches += count_mismatches(buffer, sector, 8, written[slot]);
    }
    stamp_sectors(buffer, sector, 8, written[slot] + 1);
    failures += blk_transfer(&disks[slot], 0, BLK_OUT, sector, buffer, 8 * SECTOR) != BLK_OK;
  }
  written[slot]++;
}

void follow_hotplug(u64 now) {
  asked_to_end();
  u32 added = *hotplug(ADDED), removing = *hotplug(REMOVING);
  if (added != 0) *hotplug(ACKNOWLEDGE_ADDED) = added;
  if (removing != 0) *hotplug(ACKNOWLEDGE_REMOVING) = removing;
  if (is_held && (in8(0x3fd) & 1) != 0) {
    in8(0x3f8);
    is_held = false;
  }
  for (u32 slot = 0; slot < SLOTS; slot++) {
    if ((added >> slot & 1) != 0) {
      written[slot] = 0;
      if (!open_disk(&disks[slot], disk_number(slot), 1)) failures++;
      else visit(slot);
      report("hotplug", "added", slot);
    }
    if ((removing >> slot & 1) != 0) {
      leaves[slot] = now + number_parameter("keep", 0) + 1;
      is_held = number_parameter("hold", 0) != 0;
      report("hotplug", "wanted_back", slot);
    }
    if (leaves[slot] == 0 || now < leaves[slot] || is_held) continue;
    leaves[slot] = written[slot] = 0;
    let_go(slot, 0);
    report("hotplug", "removed", slot);
  }
}

void visit_hotplugged(void) {
  for (u32 slot = 0; slot < SLOTS; slot++) {
    if (written[slot] > 0) visit(slot);
  }
  report("hotplug", "mismatches", mismatches);
  if (mismatches + failures != 0) report("pattern", "wrong", mismatches << 32 | failures);
}
