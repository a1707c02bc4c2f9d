/* A disk as the guest's jobs use it. Source: VIRTIO 1.3, 5.2 Block Device. */

#ifndef BLK_H
#define BLK_H

#include "virtio.h"

#define BLK_IN 0
#define BLK_OUT 1
#define BLK_FLUSH 4
#define BLK_GET_ID 8

#define BLK_OK 0
#define BLK_IOERR 1
#define BLK_UNSUPP 2
/* No answer came. */
#define BLK_LOST 0x100

#define BLK_SEG_MAX (1ull << 2)
#define BLK_RO (1ull << 5)
#define BLK_BLK_SIZE (1ull << 6)
#define BLK_FLUSHES (1ull << 9)
#define BLK_CONFIG_WCE (1ull << 11)
#define BLK_MQ (1ull << 12)

#define SECTOR 512
#define SECTOR_WORDS 64
#define MAX_DISK_QUEUES 16

struct blk_header {
  u32 type;
  u32 reserved;
  u64 sector;
};

struct disk {
  struct device device;
  struct queue queues[MAX_DISK_QUEUES];
  u32 queue_count;
  u64 capacity;
  /* Headers and status bytes, a slot for each descriptor of each queue. */
  struct blk_header *headers[MAX_DISK_QUEUES];
  volatile u8 *statuses[MAX_DISK_QUEUES];
  struct descriptor *indirect;
  char name[8];
};

struct segment {
  void *at;
  u32 length;
};

/* Resets disk `n`, negotiates and sets up to `queues` queues up. Reports what is wrong and returns false if it cannot. */
bool open_disk(struct disk *disk, u32 n, u32 queues);
/* One request on its own and its status. `indirect`: its chain in a table of its own. */
u32 blk_request(struct disk *disk, u32 queue, u32 type, u64 sector, const struct segment *segments, u32 count,
                bool indirect);
u32 blk_transfer(struct disk *disk, u32 queue, u32 type, u64 sector, void *at, u32 length);

/* Sectors that know their place and a seed. */
void stamp_sectors(void *at, u64 sector, u64 count, u64 seed);
/* How many of them are not as stamped. */
u64 count_mismatches(const void *at, u64 sector, u64 count, u64 seed);

void job_blk(void);
void job_boots(void);
void job_resize(void);
void job_kicks(void);
void job_load(void);
void job_bench(void);
void job_smp(void);
void job_race(void);

#endif
