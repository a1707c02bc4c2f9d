/* virtio-mmio transports and split queues, as a driver has them. See virtio.h. */

#include "iommu.h"
#include "virtio.h"

#define USED_NO_NOTIFY 1

static u64 transport_base = 0xd0000000, transport_stride = 0x1000;
static u32 transport_count = 19;

/* mmio=base,stride,count for machines that have them elsewhere. */
static void locate_transports(void) {
  static bool done;
  char where[64];
  if (done) return;
  done = true;
  if (!text_parameter("mmio", where, sizeof where)) return;
  const char *at = where;
  transport_base = parse_number(&at);
  if (*at == ',') at++;
  transport_stride = parse_number(&at);
  if (*at == ',') at++;
  transport_count = (u32)parse_number(&at);
}

bool probe_device(u32 n, struct device *device) {
  locate_transports();
  if (n >= transport_count) return false;
  *device = (struct device){.base = transport_base + n * transport_stride, .index = n};
  reach(device->base);
  if (read_register(device, REGISTER_MAGIC) != 0x74726976 || read_register(device, REGISTER_VERSION) != 2) return false;
  device->id = read_register(device, REGISTER_DEVICE_ID);
  return device->id != 0;
}

u32 count_devices(void) {
  struct device device;
  u32 count = 0;
  locate_transports();
  for (u32 n = 0; n < transport_count; n++) count += probe_device(n, &device);
  return count;
}

bool find_device(u32 id, u32 n, struct device *device) {
  locate_transports();
  // QEMU fills its transports from the last one down: order=last there.
  bool last = number_parameter("last", 0) != 0;
  for (u32 i = 0; i < transport_count; i++) {
    if (probe_device(last ? transport_count - 1 - i : i, device) && device->id == id && n-- == 0) return true;
  }
  return false;
}

u32 interrupt_of(const struct device *device) { return (u32)number_parameter("gsi", 5) + device->index; }

u64 read_config64(const struct device *device, u32 offset) {
  u32 before, low, high;
  do {
    before = read_register(device, REGISTER_CONFIG_GENERATION);
    low = read_register(device, REGISTER_CONFIG + offset);
    high = read_register(device, REGISTER_CONFIG + offset + 4);
  } while (read_register(device, REGISTER_CONFIG_GENERATION) != before);
  return (u64)high << 32 | low;
}

void reset_device(struct device *device) {
  write_register(device, REGISTER_STATUS, 0);
  for (u64 start = ticks(); read_register(device, REGISTER_STATUS) != 0;) {
    if (ticks() - start > 10 * second()) {
      print("error=status is not 0 after a reset\n");
      break;
    }
    relax();
  }
}

u64 offered_features(const struct device *device) {
  write_register(device, REGISTER_DEVICE_FEATURES_SEL, 1);
  u64 high = read_register(device, REGISTER_DEVICE_FEATURES);
  write_register(device, REGISTER_DEVICE_FEATURES_SEL, 0);
  return high << 32 | read_register(device, REGISTER_DEVICE_FEATURES);
}

bool negotiate(struct device *device, u64 wanted) {
  reset_device(device);
  write_register(device, REGISTER_STATUS, STATUS_ACKNOWLEDGE);
  write_register(device, REGISTER_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
  wanted |= put_behind_iommu(device);
  device->features = offered_features(device) & (wanted | FEATURE_VERSION_1);
  write_register(device, REGISTER_DRIVER_FEATURES_SEL, 0);
  write_register(device, REGISTER_DRIVER_FEATURES, (u32)device->features);
  write_register(device, REGISTER_DRIVER_FEATURES_SEL, 1);
  write_register(device, REGISTER_DRIVER_FEATURES, (u32)(device->features >> 32));
  write_register(device, REGISTER_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
  return (read_register(device, REGISTER_STATUS) & STATUS_FEATURES_OK) != 0;
}

void set_driver_ok(struct device *device) {
  write_register(device, REGISTER_STATUS,
                 STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

static void write_address(const struct device *device, u32 offset, u64 address) {
  write_register(device, offset, (u32)address);
  write_register(device, offset + 4, (u32)(address >> 32));
}

void place_queue(const struct queue *queue) {
  write_register(queue->device, REGISTER_QUEUE_SEL, queue->index);
  write_register(queue->device, REGISTER_QUEUE_NUM, queue->size);
  write_address(queue->device, REGISTER_QUEUE_DESC, (u64)queue->descriptors);
  write_address(queue->device, REGISTER_QUEUE_DRIVER, (u64)queue->available);
  write_address(queue->device, REGISTER_QUEUE_DEVICE, (u64)queue->used);
  write_register(queue->device, REGISTER_QUEUE_READY, 1);
}

bool set_up_queue(struct queue *queue, struct device *device, u32 index, u32 size, bool high) {
  write_register(device, REGISTER_QUEUE_SEL, index);
  u32 most = read_register(device, REGISTER_QUEUE_NUM_MAX);
  if (most == 0 || read_register(device, REGISTER_QUEUE_READY) != 0) return false;
  if (size > most) size = most;
  // 16 bytes a descriptor; 2 an available and 8 a used entry; 6 bytes of fields around each ring.
  u64 available = 16ull * size;
  u64 used = (available + 6 + 2ull * size + 7) & ~7ull;
  u64 bytes = used + 6 + 8ull * size;
  u8 *memory = high ? allocate_high(bytes) : allocate(bytes);
  fill_words(memory, 0, (bytes + 7) / 8);
  *queue = (struct queue){
      .device = device,
      .index = index,
      .size = size,
      .descriptors = (struct descriptor *)memory,
      .available = (volatile u16 *)(memory + available),
      .used = (volatile u16 *)(memory + used),
  };
  place_queue(queue);
  return read_register(device, REGISTER_QUEUE_READY) == 1;
}

void set_descriptor(struct queue *queue, u32 n, const void *at, u32 length, u16 flags, u16 next) {
  queue->descriptors[n] = (struct descriptor){(u64)at, length, flags, next};
}

void offer(struct queue *queue, u16 head) {
  queue->available[2 + (queue->next_available & (queue->size - 1))] = head;
  queue->next_available++;
}

void publish(struct queue *queue) {
  compiler_barrier();
  queue->available[1] = queue->next_available;
}

void kick(struct queue *queue) { write_register(queue->device, REGISTER_QUEUE_NOTIFY, queue->index); }

void publish_and_kick(struct queue *queue) {
  publish(queue);
  full_barrier();
  if ((queue->used[0] & USED_NO_NOTIFY) == 0) kick(queue);
}

bool take_used(struct queue *queue, u32 *head, u32 *length) {
  if (queue->used[1] == queue->next_used) return false;
  compiler_barrier();
  volatile u32 *entry = (volatile u32 *)(queue->used + 2) + 2 * (queue->next_used & (queue->size - 1));
  *head = entry[0];
  *length = entry[1];
  queue->next_used++;
  return true;
}

bool await_used(struct queue *queue, u32 *head, u32 *length, u64 seconds) {
  for (u64 start = ticks(); !take_used(queue, head, length);) {
    if (ticks() - start > seconds * second()) return false;
    relax();
  }
  return true;
}
