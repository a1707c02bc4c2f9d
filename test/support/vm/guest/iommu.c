/* The IOMMU's requests and reports, and devices put behind it. See iommu.h. */

#include "iommu.h"

#define REQUEST_ENTRIES 64
#define EVENT_ENTRIES 16
#define REQUEST_BYTES 128
/* A request and its answer: two descriptors. */
#define AT_ONCE (REQUEST_ENTRIES / 2)

struct iommu_head {
  u8 type;
  u8 reserved[3];
  u32 domain;
};

struct iommu_map {
  struct iommu_head head;
  u64 from, to, physical;
  u32 flags;
} __attribute__((packed));

struct device iommu;
struct queue iommu_requests, iommu_events;

static u8 *slots;
static struct iommu_fault *reports;
static bool is_open;

bool open_iommu(void) {
  is_open = false;
  if (!find_device(DEVICE_IOMMU, 0, &iommu) || !negotiate(&iommu, ~FEATURE_ACCESS_PLATFORM)) return false;
  if (!set_up_queue(&iommu_requests, &iommu, 0, REQUEST_ENTRIES, false)) return false;
  if (!set_up_queue(&iommu_events, &iommu, 1, EVENT_ENTRIES, false)) return false;
  if (slots == NULL) {
    slots = allocate(AT_ONCE * REQUEST_BYTES * 2);
    reports = allocate(EVENT_ENTRIES * sizeof *reports);
  }
  set_driver_ok(&iommu);
  for (u32 i = 0; i < EVENT_ENTRIES; i++) {
    set_descriptor(&iommu_events, i, &reports[i], sizeof *reports, DESC_WRITE, 0);
    offer(&iommu_events, (u16)i);
  }
  publish(&iommu_events);
  is_open = true;
  return true;
}

static u8 *bytes_of(u32 slot) { return slots + slot * REQUEST_BYTES * 2; }
static u8 *answer_of(u32 slot) { return bytes_of(slot) + REQUEST_BYTES; }

static void offer_request(u32 slot, const void *bytes, u32 length, u32 room) {
  u16 head = (u16)(2 * slot), first = length > 0 ? head : (u16)(head + 1);
  copy_bytes(bytes_of(slot), bytes, length);
  fill_words(answer_of(slot), 0xeeeeeeeeeeeeeeee, (room + 7) / 8);
  set_descriptor(&iommu_requests, head, bytes_of(slot), length, room > 0 ? DESC_NEXT : 0, (u16)(head + 1));
  set_descriptor(&iommu_requests, head + 1u, answer_of(slot), room, DESC_WRITE, 0);
  offer(&iommu_requests, first);
}

/* The status is at the end of what was written. */
static u32 status_of(u32 slot, u32 length) {
  return length < 4 ? IOMMU_UNTOUCHED : answer_of(slot)[length - 4];
}

u32 iommu_request(const void *bytes, u32 length, u32 room) {
  u32 head, used;
  offer_request(0, bytes, length, room);
  publish_and_kick(&iommu_requests);
  // A back end that lets go of a mapping finishes what it does there.
  if (!await_used(&iommu_requests, &head, &used, 30)) return IOMMU_LOST;
  return status_of(0, used);
}

u32 iommu_attach(u32 domain, u32 endpoint, u32 flags) {
  u32 words[5] = {1, domain, endpoint, flags, 0};
  return iommu_request(words, sizeof words, 4);
}

u32 iommu_detach(u32 domain, u32 endpoint) {
  u32 words[5] = {2, domain, endpoint, 0, 0};
  return iommu_request(words, sizeof words, 4);
}

u32 iommu_map(u32 domain, u64 from, u64 to, u64 physical, u32 flags) {
  struct iommu_map map = {{3, {0}, domain}, from, to, physical, flags};
  return iommu_request(&map, sizeof map, 4);
}

u32 iommu_unmap(u32 domain, u64 from, u64 to) {
  struct {
    struct iommu_head head;
    u64 from, to;
    u32 reserved;
  } __attribute__((packed)) unmap = {{4, {0}, domain}, from, to, 0};
  return iommu_request(&unmap, sizeof unmap, 4);
}

u32 iommu_probe(u32 endpoint) {
  u32 words[18] = {5, endpoint};
  return iommu_request(words, sizeof words, 68);
}

u32 iommu_map_page(u32 domain, u64 iova, const void *page, u32 flags) {
  return iommu_map(domain, iova, iova + 4095, (u64)page, flags);
}

u32 iommu_unmap_page(u32 domain, u64 iova) { return iommu_unmap(domain, iova, iova + 4095); }

u64 iommu_map_many(u32 domain, u64 iova, const void *page, u64 count, u32 *status) {
  u64 mapped = 0;
  *status = IOMMU_OK;
  for (u64 done = 0; done < count && *status == IOMMU_OK; done += AT_ONCE) {
    for (u32 i = 0; i < AT_ONCE; i++, iova += 8192) {
      struct iommu_map *map = (struct iommu_map *)bytes_of(i);
      if (done == 0) {
        struct iommu_map first = {{3, {0}, domain}, 0, 0, (u64)page, IOMMU_READ};
        offer_request(i, &first, sizeof first, 4);
      } else {
        offer(&iommu_requests, (u16)(2 * i));
      }
      map->from = iova;
      map->to = iova + 4095;
    }
    publish_and_kick(&iommu_requests);
    for (u32 i = 0; i < AT_ONCE; i++) {
      u32 head, used;
      if (!await_used(&iommu_requests, &head, &used, 30)) {
        *status = IOMMU_LOST;
        return mapped;
      }
      u32 answer = status_of(head / 2, used);
      if (answer == IOMMU_OK) mapped++;
      else *status = answer;
    }
  }
  return mapped;
}

bool take_fault(struct iommu_fault *fault) {
  u32 head, length;
  if (!await_used(&iommu_events, &head, &length, 1)) return false;
  *fault = reports[head];
  if (length != sizeof *fault) fault->reason = 0xff;
  offer(&iommu_events, (u16)head);
  publish(&iommu_events);
  return true;
}

/* All RAM, in pieces, where it is. */
static u32 map_all(u32 domain) {
  u64 piece = number_parameter("piece_kb", 64) << 10;
  u32 failures = 0;
  for (u32 i = 0; i < memory_map_entries; i++) {
    if (memory_map[i].type != 1) continue;
    u64 from = (memory_map[i].start + 4095) & ~4095ull;
    u64 end = (memory_map[i].start + memory_map[i].length) & ~4095ull;
    for (u64 next; from < end; from = next) {
      next = (from | (piece - 1)) + 1 < end ? (from | (piece - 1)) + 1 : end;
      failures += iommu_map(domain, from, next - 1, from, IOMMU_READ_WRITE) != IOMMU_OK;
    }
  }
  return failures;
}

static u32 domain_of[32];

u32 domain_behind_iommu(const struct device *device) { return domain_of[device->index]; }

u64 put_behind_iommu(struct device *device) {
  static u32 domains;
  char how[8];
  if (!text_parameter("iommu", how, sizeof how) || device->id == DEVICE_IOMMU) return 0;
  if ((offered_features(device) & FEATURE_ACCESS_PLATFORM) == 0) return 0;
  if (!is_open && !open_iommu()) {
    print("error=no IOMMU\n");
    return FEATURE_ACCESS_PLATFORM;
  }
  // Each time another domain: the last one ends with its only endpoint.
  u32 domain = 1 + domains++ % 1000, failures = 0;
  if (same_text(how, "map")) failures = iommu_attach(domain, device->index, 0) + map_all(domain);
  if (same_text(how, "bypass")) failures = iommu_attach(domain, device->index, 1);
  domain_of[device->index] = same_text(how, "none") ? 0 : domain;
  if (failures != 0) report("error", "iommu", failures);
  return FEATURE_ACCESS_PLATFORM;
}
