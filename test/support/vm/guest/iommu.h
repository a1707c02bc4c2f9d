/* The driver's side of the IOMMU. Source: VIRTIO 1.3, 5.13 IOMMU Device; an endpoint is the slot of its device. */

#ifndef IOMMU_H
#define IOMMU_H

#include "virtio.h"

#define DEVICE_IOMMU 23
#define FEATURE_ACCESS_PLATFORM (1ull << 33)

#define IOMMU_OK 0
#define IOMMU_DEVERR 3
#define IOMMU_INVAL 4
#define IOMMU_RANGE 5
#define IOMMU_NOENT 6
#define IOMMU_FAULT 7
#define IOMMU_NOMEM 8
/* The request came back as it was. */
#define IOMMU_UNTOUCHED 0x100
/* It did not come back. */
#define IOMMU_LOST 0x200

#define IOMMU_READ 1
#define IOMMU_WRITE 2
#define IOMMU_READ_WRITE 3

#define IOMMU_CONFIG_BYPASS 36

struct iommu_fault {
  u8 reason;
  u8 reserved[3];
  u32 flags;
  u32 endpoint;
  u32 reserved1;
  u64 address;
};

/* The IOMMU of the machine; set up by the first call that needs it. */
extern struct device iommu;
extern struct queue iommu_requests, iommu_events;

/* Resets the IOMMU and sets it up. False when there is none. */
bool open_iommu(void);
/* Statuses, or one of the two above. Ends of ranges are inclusive. */
u32 iommu_attach(u32 domain, u32 endpoint, u32 flags);
u32 iommu_detach(u32 domain, u32 endpoint);
u32 iommu_map(u32 domain, u64 from, u64 to, u64 physical, u32 flags);
u32 iommu_unmap(u32 domain, u64 from, u64 to);
u32 iommu_probe(u32 endpoint);
/* A page. */
u32 iommu_map_page(u32 domain, u64 iova, const void *page, u32 flags);
u32 iommu_unmap_page(u32 domain, u64 iova);
/* `length` bytes as they are, with room for `room` bytes of an answer. */
u32 iommu_request(const void *bytes, u32 length, u32 room);
/* Maps at least `count` pages, many requests at a time. Returns how many were mapped before one was not. */
u64 iommu_map_many(u32 domain, u64 iova, const void *page, u64 count, u32 *status);
/* Takes a fault report; false when none comes for a second. */
bool take_fault(struct iommu_fault *fault);

/*
 * With `iommu=` on the command line every device that has an IOMMU before it is put behind it as it is negotiated with:
 * `map` into a domain in which all RAM is mapped at its own addresses, in pieces of `piece_kb` (64); `bypass` into a bypass
 * domain; `none` into no domain. Returns the features to ask for in addition.
 */
u64 put_behind_iommu(struct device *device);
/* The domain that it put a device into last; 0: none. */
u32 domain_behind_iommu(const struct device *device);

void job_iommu(void);

#endif
