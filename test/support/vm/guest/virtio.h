/*
 * The driver's side of virtio-mmio and of split virtqueues. Source: VIRTIO 1.3, 4.2 Virtio Over MMIO, 2.7 Split
 * Virtqueues; numbers are written out here and not shared with the code under test.
 */

#ifndef VIRTIO_H
#define VIRTIO_H

#include "platform.h"

#define REGISTER_MAGIC 0x000
#define REGISTER_VERSION 0x004
#define REGISTER_DEVICE_ID 0x008
#define REGISTER_VENDOR_ID 0x00c
#define REGISTER_DEVICE_FEATURES 0x010
#define REGISTER_DEVICE_FEATURES_SEL 0x014
#define REGISTER_DRIVER_FEATURES 0x020
#define REGISTER_DRIVER_FEATURES_SEL 0x024
#define REGISTER_QUEUE_SEL 0x030
#define REGISTER_QUEUE_NUM_MAX 0x034
#define REGISTER_QUEUE_NUM 0x038
#define REGISTER_QUEUE_READY 0x044
#define REGISTER_QUEUE_NOTIFY 0x050
#define REGISTER_INTERRUPT_STATUS 0x060
#define REGISTER_INTERRUPT_ACK 0x064
#define REGISTER_STATUS 0x070
#define REGISTER_QUEUE_DESC 0x080
#define REGISTER_QUEUE_DRIVER 0x090
#define REGISTER_QUEUE_DEVICE 0x0a0
#define REGISTER_CONFIG_GENERATION 0x0fc
#define REGISTER_CONFIG 0x100

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define STATUS_NEEDS_RESET 64

#define DEVICE_NET 1
#define DEVICE_BLK 2
#define DEVICE_VSOCK 19
#define DEVICE_FS 26

#define FEATURE_INDIRECT (1ull << 28)
#define FEATURE_VERSION_1 (1ull << 32)

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

struct descriptor {
  u64 address;
  u32 length;
  u16 flags;
  u16 next;
};

struct device {
  u64 base;
  u32 index;
  u32 id;
  u64 features;
};

struct queue {
  struct device *device;
  u32 index;
  u32 size;
  struct descriptor *descriptors;
  volatile u16 *available;
  volatile u16 *used;
  u16 next_available;
  u16 next_used;
};

static inline u32 read_register(const struct device *device, u32 offset) {
  return *(volatile u32 *)(device->base + offset);
}
static inline void write_register(const struct device *device, u32 offset, u32 value) {
  *(volatile u32 *)(device->base + offset) = value;
}
u64 read_config64(const struct device *device, u32 offset);

/* How many transports have a device. */
u32 count_devices(void);
/* The `n`th transport, whatever is there. False when there is none with a device. */
bool probe_device(u32 n, struct device *device);
/* The `n`th device of a kind. */
bool find_device(u32 id, u32 n, struct device *device);
/* The global system interrupt of a device. */
u32 interrupt_of(const struct device *device);

void reset_device(struct device *device);
/* Resets and negotiates the features of `wanted` that are offered. False when the device does not accept them. */
bool negotiate(struct device *device, u64 wanted);
u64 offered_features(const struct device *device);
void set_driver_ok(struct device *device);

/* Sets up queue `index` with at most `size` entries, its rings above 4 GiB if `high`. False when it does not exist. */
bool set_up_queue(struct queue *queue, struct device *device, u32 index, u32 size, bool high);
/* Tells the device where the queue is, from the fields of `queue`. */
void place_queue(const struct queue *queue);
void set_descriptor(struct queue *queue, u32 n, const void *at, u32 length, u16 flags, u16 next);
/* Stages a chain. */
void offer(struct queue *queue, u16 head);
/* Makes what was staged visible. */
void publish(struct queue *queue);
void kick(struct queue *queue);
/* Publishes, and kicks unless the device asks for none. */
void publish_and_kick(struct queue *queue);
/* Takes one used entry if there is one. */
bool take_used(struct queue *queue, u32 *head, u32 *length);
/* Takes one used entry; false when none comes for `seconds`. */
bool await_used(struct queue *queue, u32 *head, u32 *length, u64 seconds);

#endif
