/*
 * job=iommu: case=all or one of the names below, disk=N. Drives a disk through the IOMMU with every page of its rings,
 * headers and data somewhere else than where the device sees it. Each case begins with everything as new and reports how
 * often something was not as it has to be, `iommu.CASE=0`, and what the cases say besides.
 */

#include "blk.h"
#include "iommu.h"

#define PAGE 4096
#define ENTRIES 64
#define SECTORS (PAGE / SECTOR)
#define DOMAIN 5

/* Where the device sees things: no two next to each other, none where it is, one at the end of all addresses. */
#define RINGS_IOVA 0x7ffe12345000ull
#define USED_IOVA 0x0000beef1000ull
#define HEADERS_IOVA 0xfffffffff000ull
#define STATUSES_IOVA 0x000000003000ull
#define DATA_IOVA 0x123456789000ull

static struct device disk;
static struct queue ring;
static u8 *rings, *used, *headers, *statuses, *pages[8];
static u32 wrong;

static void expect_status(u32 seen, u32 wanted) {
  if (seen == wanted) return;
  wrong++;
  print("iommu.unexpected=");
  print_number(seen);
  print(",");
  print_number(wanted);
  print("\n");
}
static void expect_true(bool good) { expect_status(good, true); }

/* A request whose data the device sees at `iova`; its place in the ring is `slot`. Not published. */
static void offer_transfer(u32 slot, u32 type, u64 sector, u64 iova) {
  struct blk_header *header = (struct blk_header *)headers + slot;
  *header = (struct blk_header){type, 0, sector};
  statuses[slot] = 0xff;
  u16 direction = type == BLK_OUT ? DESC_NEXT : DESC_NEXT | DESC_WRITE;
  set_descriptor(&ring, 3 * slot, (void *)(HEADERS_IOVA + slot * sizeof *header), 16, DESC_NEXT, (u16)(3 * slot + 1));
  set_descriptor(&ring, 3 * slot + 1, (void *)iova, PAGE, direction, (u16)(3 * slot + 2));
  set_descriptor(&ring, 3 * slot + 2, (void *)(STATUSES_IOVA + slot), 1, DESC_WRITE, 0);
  offer(&ring, (u16)(3 * slot));
}

static u32 await_transfer(void) {
  u32 head, length;
  return await_used(&ring, &head, &length, 20) ? *(volatile u8 *)(statuses + head / 3) : BLK_LOST;
}

static u32 transfer(u32 type, u64 sector, u64 iova) {
  offer_transfer(0, type, sector, iova);
  publish_and_kick(&ring);
  return await_transfer();
}

static void map_rings(u32 domain) {
  expect_status(iommu_map_page(domain, RINGS_IOVA, rings, IOMMU_READ), IOMMU_OK);
  expect_status(iommu_map_page(domain, USED_IOVA, used, IOMMU_READ_WRITE), IOMMU_OK);
  expect_status(iommu_map_page(domain, HEADERS_IOVA, headers, IOMMU_READ), IOMMU_OK);
  expect_status(iommu_map_page(domain, STATUSES_IOVA, statuses, IOMMU_WRITE), IOMMU_OK);
}

/* The disk, as new, with its rings where `map_rings` has them. */
static void start_disk(void) {
  expect_true(negotiate(&disk, FEATURE_ACCESS_PLATFORM));
  expect_true((disk.features & FEATURE_ACCESS_PLATFORM) != 0);
  fill_words(rings, 0, PAGE / 8);
  fill_words(used, 0, PAGE / 8);
  ring = (struct queue){
      .device = &disk,
      .size = ENTRIES,
      .descriptors = (struct descriptor *)RINGS_IOVA,
      .available = (volatile u16 *)(RINGS_IOVA + 16 * ENTRIES),
      .used = (volatile u16 *)USED_IOVA,
  };
  place_queue(&ring);
  ring.descriptors = (struct descriptor *)rings;
  ring.available = (volatile u16 *)(rings + 16 * ENTRIES);
  ring.used = (volatile u16 *)used;
  set_driver_ok(&disk);
}

static void write_bypass(u8 value) { *(volatile u8 *)(iommu.base + REGISTER_CONFIG + IOMMU_CONFIG_BYPASS) = value; }
static u8 read_bypass(void) { return *(volatile u8 *)(iommu.base + REGISTER_CONFIG + IOMMU_CONFIG_BYPASS); }

/* Whether a block that is written at one address comes back at another. */
static void check_data(u64 iova, u8 *page, u64 sector, u64 seed) {
  stamp_sectors(page, sector, SECTORS, seed);
  expect_status(transfer(BLK_OUT, sector, iova), BLK_OK);
  fill_words(page, 0, PAGE / 8);
  expect_status(transfer(BLK_IN, sector, iova), BLK_OK);
  expect_status((u32)count_mismatches(page, sector, SECTORS, seed), 0);
}

/* What the IOMMU says of itself, and how its requests end. */
static void requests(void) {
  expect_true(read_config64(&iommu, 0) == 0xfffffffffffff000);
  expect_true(read_config64(&iommu, 8) == 0 && read_config64(&iommu, 16) == 0xffffffffffff);
  expect_status(iommu_probe(disk.index), IOMMU_OK);
  expect_status(iommu_probe(iommu.index), IOMMU_NOENT);
  expect_status(iommu_attach(DOMAIN, 77, 0), IOMMU_NOENT);
  expect_status(iommu_map(DOMAIN + 1, 0, 4095, (u64)rings, IOMMU_READ), IOMMU_NOENT);
  expect_status(iommu_unmap(DOMAIN + 1, 0, 4095), IOMMU_NOENT);
  expect_status(iommu_detach(DOMAIN + 1, disk.index), IOMMU_INVAL);
  expect_status(iommu_map(DOMAIN, 4096, 8191, (u64)rings, 8), IOMMU_INVAL);
  expect_status(iommu_map(DOMAIN, 4097, 8192, (u64)rings, IOMMU_READ), IOMMU_RANGE);
  expect_status(iommu_map(DOMAIN, 4096, 8191, 0xd0000000, IOMMU_READ), IOMMU_FAULT);
  expect_status(iommu_map(DOMAIN, 4096, 8191, 0xfffffffffffff000, IOMMU_READ), IOMMU_FAULT);
  expect_status(iommu_map(DOMAIN, 0, ~0ull, 0, IOMMU_READ), IOMMU_RANGE);
  expect_status(iommu_map(DOMAIN, 0xfffffffffffff000, 0xffffffffffffffff, 0, IOMMU_READ), IOMMU_RANGE);
  expect_status(iommu_map(DOMAIN, 0x10000, 0x17fff, (u64)rings & ~0xfffull, IOMMU_READ), IOMMU_OK);
  expect_status(iommu_map(DOMAIN, 0x17000, 0x18fff, (u64)rings, IOMMU_READ), IOMMU_INVAL);
  expect_status(iommu_unmap(DOMAIN, 0x10000, 0x13fff), IOMMU_RANGE);
  expect_status(iommu_unmap(DOMAIN, 0x12000, 0x1ffff), IOMMU_RANGE);
  expect_status(iommu_unmap(DOMAIN, 0, 0xfffff), IOMMU_OK);
  expect_status(iommu_unmap(DOMAIN, 0x10000, 0x17fff), IOMMU_OK);
}

/* Rings and data are where the IOMMU says, and nowhere when it says so. */
static void mappings(void) {
  map_rings(DOMAIN);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[0], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  for (u64 seed = 1; seed < 9; seed++) check_data(DATA_IOVA, pages[0], SECTORS * seed, seed);
  struct iommu_fault fault;
  fill_words(pages[0], 0x5a5a5a5a5a5a5a5a, PAGE / 8);
  expect_status(iommu_unmap_page(DOMAIN, DATA_IOVA), IOMMU_OK);
  expect_status(transfer(BLK_IN, SECTORS, DATA_IOVA), BLK_IOERR);
  expect_true(words_are(pages[0], 0x5a5a5a5a5a5a5a5a, PAGE / 8));
  expect_true(take_fault(&fault));
  expect_status(fault.reason, 2);
  expect_status(fault.flags, 0x102);
  expect_status(fault.endpoint, disk.index);
  expect_true(fault.address == DATA_IOVA);
  // The same address, another page.
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[1], IOMMU_READ_WRITE), IOMMU_OK);
  expect_status(transfer(BLK_IN, SECTORS, DATA_IOVA), BLK_OK);
  expect_status((u32)count_mismatches(pages[1], SECTORS, SECTORS, 1), 0);
  expect_true(words_are(pages[0], 0x5a5a5a5a5a5a5a5a, PAGE / 8));
  // The first page elsewhere, only to be read.
  expect_status(iommu_map_page(DOMAIN, 2 * DATA_IOVA, pages[0], IOMMU_READ), IOMMU_OK);
  expect_status(transfer(BLK_IN, SECTORS, 2 * DATA_IOVA), BLK_IOERR);
  expect_true(words_are(pages[0], 0x5a5a5a5a5a5a5a5a, PAGE / 8));
  expect_true(take_fault(&fault));
  expect_true(fault.reason == 2 && fault.flags == 0x102 && fault.address == 2 * DATA_IOVA);
  expect_status(transfer(BLK_OUT, 0, 2 * DATA_IOVA), BLK_OK);
  expect_status(transfer(BLK_IN, 0, DATA_IOVA), BLK_OK);
  expect_true(words_are(pages[1], 0x5a5a5a5a5a5a5a5a, PAGE / 8));
}

/* Endpoints without a domain, of another one, in bypass mode; rings that are taken away. */
static void domains(void) {
  struct iommu_fault fault;
  write_bypass(0);
  expect_status(read_bypass(), 0);
  map_rings(DOMAIN);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[0], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  check_data(DATA_IOVA, pages[0], 0, 1);
  expect_status(iommu_detach(DOMAIN, disk.index), IOMMU_OK);
  // Its rings are not there: nothing is done until a reset.
  offer_transfer(0, BLK_IN, 0, DATA_IOVA);
  publish(&ring);
  kick(&ring);
  expect_true(take_fault(&fault));
  expect_true(fault.reason == 1 && fault.endpoint == disk.index && (fault.flags & 0x100) != 0);
  expect_status(ring.used[1], ring.next_used);
  reset_device(&disk);
  // A domain of the same number is a new one.
  expect_status(iommu_attach(DOMAIN, disk.index, 0), IOMMU_OK);
  expect_status(iommu_unmap(DOMAIN, 0, ~0ull), IOMMU_OK);
  map_rings(DOMAIN);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[2], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  check_data(DATA_IOVA, pages[2], 0, 2);
  // Two domains, the endpoint moves from one to the other.
  reset_device(&disk);
  expect_status(iommu_attach(DOMAIN + 1, disk.index, 0), IOMMU_OK);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[3], IOMMU_READ), IOMMU_NOENT);
  map_rings(DOMAIN + 1);
  expect_status(iommu_map_page(DOMAIN + 1, DATA_IOVA, pages[3], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  check_data(DATA_IOVA, pages[3], 0, 3);
  // In bypass mode, by a domain and by the configuration: addresses are those of the guest.
  for (u32 way = 0; way < 2; way++) {
    reset_device(&disk);
    if (way == 0) expect_status(iommu_attach(DOMAIN + 2, disk.index, 1), IOMMU_OK);
    else expect_status(iommu_detach(DOMAIN + 2, disk.index), IOMMU_OK);
    if (way == 1) write_bypass(1);
    struct disk plain;
    expect_true(open_disk(&plain, (u32)number_parameter("disk", 0), 1));
    disk = plain.device;
    stamp_sectors(pages[4], 16, SECTORS, 7 + way);
    expect_status(blk_transfer(&plain, 0, BLK_OUT, 16, pages[4], PAGE), BLK_OK);
    expect_status(blk_transfer(&plain, 0, BLK_IN, 16, pages[5], PAGE), BLK_OK);
    expect_status((u32)count_mismatches(pages[5], 16, SECTORS, 7 + way), 0);
  }
}

/*
 * rounds=N. Maps a page, reads into it, and takes it away while the request may be under way: when the answer is there, the
 * page does not change any more. All the while other requests go on at addresses that stay.
 */
static void rounds(void) {
  u64 count = number_parameter("rounds", 1000), changed = 0, failed = 0, other = 0;
  map_rings(DOMAIN);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[0], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  stamp_sectors(pages[0], 0, SECTORS, 3);
  expect_status(transfer(BLK_OUT, 0, DATA_IOVA), BLK_OK);
  for (u64 round = 0; round < count; round++) {
    u64 iova = 0x200000000000 + (mix(round) & 0xffffffff000);
    u8 *page = pages[1 + round % 7];
    fill_words(page, round, PAGE / 8);
    expect_status(iommu_map_page(DOMAIN, iova, page, IOMMU_READ_WRITE), IOMMU_OK);
    offer_transfer(0, BLK_IN, 0, iova);
    offer_transfer(1, BLK_IN, 0, DATA_IOVA);
    publish_and_kick(&ring);
    // Every second time it is there first.
    if ((round & 1) == 0) await_transfer();
    expect_status(iommu_unmap_page(DOMAIN, iova), IOMMU_OK);
    bool is_old = words_are(page, round, PAGE / 8);
    u64 mark = is_old ? round : 0;
    // Whoever writes there still is seen.
    if (!is_old) fill_words(page, mark, PAGE / 8);
    if ((round & 1) != 0) await_transfer();
    await_transfer();
    changed += !words_are(page, mark, PAGE / 8);
    failed += statuses[0] != BLK_OK;
    other += statuses[1] != BLK_OK;
  }
  report("iommu", "rounds_done", count);
  report("iommu", "rounds_too_late", failed);
  expect_status((u32)changed, 0);
  expect_status((u32)other, 0);
  expect_status((u32)count_mismatches(pages[0], 0, SECTORS, 3), 0);
}

/* Requests that are none, and more mappings than there can be. The disk goes on all the while. */
static void hostile(void) {
  static u8 bytes[128];
  map_rings(DOMAIN);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[0], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  for (u32 type = 0; type < 256; type += type < 8 ? 1 : 31) {
    for (u32 length = 0; length <= 76; length += 4) {
      for (u32 room = 0; room <= 72; room += room < 8 ? 1 : 16) {
        bytes[0] = (u8)type;
        // Domains and endpoints that are not there: what is well formed changes nothing.
        fill_words(bytes + 4, 0xffffffffffffffff, 14);
        if (length + room == 0) continue;
        u32 status = iommu_request(bytes, length, room);
        bool isKnown = type >= 1 && type <= 5 && room >= 4;
        u32 least = type <= 2 ? 20 : type == 3 ? 36 : type == 4 ? 28 : 72;
        expect_true(isKnown && length >= least ? status != IOMMU_OK && status < 16 : status == IOMMU_UNTOUCHED);
      }
    }
  }
  check_data(DATA_IOVA, pages[0], 0, 4);
  // A ring that is broken is good again after a reset, which ends all domains.
  iommu_requests.available[1] = (u16)(iommu_requests.next_available + 1000);
  kick(&iommu_requests);
  for (u64 start = ticks(); (read_register(&iommu, REGISTER_STATUS) & STATUS_NEEDS_RESET) == 0;) {
    if (ticks() - start > 5 * second()) break;
  }
  expect_true((read_register(&iommu, REGISTER_STATUS) & STATUS_NEEDS_RESET) != 0);
  check_data(DATA_IOVA, pages[0], 8, 5);
}

/* limit=N: the most mappings that there can be. */
static void limit(void) {
  u64 most = number_parameter("limit", 131072);
  u32 status;
  map_rings(DOMAIN);
  expect_status(iommu_map_page(DOMAIN, DATA_IOVA, pages[0], IOMMU_READ_WRITE), IOMMU_OK);
  start_disk();
  u64 mapped = iommu_map_many(DOMAIN, 0x400000000000, pages[7], most + 64, &status);
  expect_status(status, IOMMU_NOMEM);
  report("iommu", "mapped", mapped + 5);
  check_data(DATA_IOVA, pages[0], 0, 6);
  expect_status(iommu_unmap(DOMAIN, 0x400000000000, 0x7fffffffffff & ~0xfffffffffull), IOMMU_OK);
  expect_status(iommu_map_page(DOMAIN, 0x400000000000, pages[1], IOMMU_READ_WRITE), IOMMU_OK);
  check_data(0x400000000000, pages[1], 8, 7);
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    {"requests", requests}, {"mappings", mappings}, {"domains", domains},
    {"rounds", rounds},     {"hostile", hostile},   {"limit", limit},
};

void job_iommu(void) {
  char which[16];
  if (!text_parameter("case", which, sizeof which)) copy_bytes(which, "all", 4);
  if (!find_device(DEVICE_BLK, (u32)number_parameter("disk", 0), &disk)) {
    report("error", "no_disk", 0);
    return;
  }
  rings = allocate(PAGE);
  used = allocate(PAGE);
  headers = allocate(PAGE);
  statuses = allocate(PAGE);
  for (u32 i = 0; i < 8; i++) pages[i] = (i & 1) != 0 ? allocate_high(PAGE) : allocate(PAGE);
  for (u32 i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    // The most mappings take a while: only where that is asked for.
    bool isAsked = same_text(which, cases[i].name);
    if (!isAsked && (!same_text(which, "all") || same_text(cases[i].name, "limit"))) continue;
    wrong = 0;
    reset_device(&disk);
    expect_true(open_iommu());
    write_bypass(1);
    expect_status(iommu_attach(DOMAIN, disk.index, 0), IOMMU_OK);
    cases[i].run();
    report("iommu", cases[i].name, wrong);
  }
}
