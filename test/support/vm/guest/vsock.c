/*
 * job=vsock: port=P bytes=N rounds=R. Connects to a port of the host, sends N bytes that have to come back, and ends the
 * connection; then waits for a reset of the transport and does it again, R times in all. A port where nobody listens is
 * a connection that is reset. Source: VIRTIO 1.3, 5.10 Socket Device.
 */

#include "jobs.h"
#include "virtio.h"

#define HOST_CID 2
#define OWN_PORT 1000

#define TYPE_STREAM 1
#define OP_REQUEST 1
#define OP_RESPONSE 2
#define OP_RST 3
#define OP_SHUTDOWN 4
#define OP_RW 5
#define OP_CREDIT_UPDATE 6
#define OP_CREDIT_REQUEST 7
#define SHUTDOWN_BOTH 3

#define HEADER 44
#define BUFFER 4096
#define RECEIVE_BUFFERS 32
#define EVENT_BUFFERS 4
#define PAYLOAD 3000
/* What may be under way to us, and what we let be under way there and back. */
#define OUR_ALLOCATION (128 * 1024)
#define WINDOW (64 * 1024)

struct packet {
  u64 from_cid, to_cid;
  u32 from_port, to_port;
  u32 length;
  u16 type, operation;
  u32 flags, allocation, forwarded;
  u8 payload[];
} __attribute__((packed));

static struct device device;
static struct queue receive, transmit, events;
static u8 *receive_buffers, *event_buffers;
static struct packet *packet;
static u64 cid;
static u32 port, own_port;
static u32 sent, received, peer_allocation, peer_forwarded, mismatches;
/* Whether events are looked for while packets are, and how many came. */
static bool is_watching;
static u32 resets;

static u8 pattern(u32 at) { return (u8)(at * 7 + (at >> 8) + own_port); }

static bool send(u16 operation, u32 flags, u32 length) {
  packet->from_cid = cid;
  packet->to_cid = HOST_CID;
  packet->from_port = own_port;
  packet->to_port = port;
  packet->length = length;
  packet->type = TYPE_STREAM;
  packet->operation = operation;
  packet->flags = flags;
  packet->allocation = OUR_ALLOCATION;
  packet->forwarded = received;
  set_descriptor(&transmit, 0, packet, HEADER + length, 0, 0);
  offer(&transmit, 0);
  publish_and_kick(&transmit);
  u32 head, used;
  return await_used(&transmit, &head, &used, 30);
}

static void post(struct queue *queue, u8 *buffers, u32 n, u32 bytes) {
  set_descriptor(queue, n, buffers + (u64)n * bytes, bytes, DESC_WRITE, 0);
  offer(queue, (u16)n);
}

/* Whether the transport was reset: connections are gone, and the CID may be another one. */
static bool was_reset(void) {
  u32 head, used;
  if (!is_watching || !take_used(&events, &head, &used)) return false;
  post(&events, event_buffers, head, 8);
  publish_and_kick(&events);
  cid = read_config64(&device, 0);
  resets++;
  return true;
}

static bool await_packet(u32 *head, u32 *used) {
  for (u64 start = ticks(); ticks() - start < 30 * second();) {
    if (take_used(&receive, head, used)) return true;
    if (was_reset()) return false;
    relax();
  }
  return false;
}

/* Takes the next packet for our connection and gives its buffer back. Returns its operation, 0 when none comes. */
static u16 next_packet(void) {
  u32 head, used;
  for (;;) {
    if (!await_packet(&head, &used) || head >= RECEIVE_BUFFERS || used < HEADER) return 0;
    const struct packet *got = (const struct packet *)(receive_buffers + (u64)head * BUFFER);
    bool ours = got->from_cid == HOST_CID && got->to_cid == cid && got->from_port == port &&
                got->to_port == own_port && got->length == used - HEADER;
    u16 operation = got->operation;
    if (ours) {
      peer_allocation = got->allocation;
      peer_forwarded = got->forwarded;
      for (u32 i = 0; i < got->length; i++, received++) mismatches += got->payload[i] != pattern(received);
    }
    post(&receive, receive_buffers, head, BUFFER);
    publish_and_kick(&receive);
    if (ours) return operation;
  }
}

static void send_what_fits(u32 total) {
  while (sent < total && sent - received < WINDOW && sent - peer_forwarded < peer_allocation) {
    u32 length = total - sent;
    u32 room = peer_allocation - (sent - peer_forwarded);
    if (length > room) length = room;
    if (length > PAYLOAD) length = PAYLOAD;
    for (u32 i = 0; i < length; i++) packet->payload[i] = pattern(sent + i);
    if (!send(OP_RW, 0, length)) return;
    sent += length;
  }
}

/* One connection from its beginning to its end. Returns the operation that it ended with. */
static u16 exchange(u32 total) {
  sent = received = 0;
  if (!send(OP_REQUEST, 0, 0)) return 0;
  u16 operation = next_packet();
  if (!is_watching) report("vsock", "answer", operation);
  if (operation != OP_RESPONSE) return operation;
  while (received < total) {
    send_what_fits(total);
    operation = next_packet();
    if (operation == 0 || operation == OP_RST || operation == OP_SHUTDOWN) return operation;
    if (operation == OP_CREDIT_REQUEST || sent == total) send(OP_CREDIT_UPDATE, 0, 0);
  }
  send(OP_SHUTDOWN, SHUTDOWN_BOTH, 0);
  do operation = next_packet();
  while (operation != OP_RST && operation != 0);
  return operation;
}

static bool open_vsock(void) {
  if (!find_device(DEVICE_VSOCK, 0, &device)) {
    print("error=no socket device\n");
    return false;
  }
  if (!negotiate(&device, 0) || !set_up_queue(&receive, &device, 0, RECEIVE_BUFFERS, true) ||
      !set_up_queue(&transmit, &device, 1, 16, false) || !set_up_queue(&events, &device, 2, EVENT_BUFFERS, false)) {
    print("error=socket device set-up\n");
    return false;
  }
  set_driver_ok(&device);
  cid = read_config64(&device, 0);
  report("vsock", "cid", cid);
  receive_buffers = allocate_high(RECEIVE_BUFFERS * BUFFER);
  event_buffers = allocate(EVENT_BUFFERS * 8);
  packet = allocate(BUFFER);
  for (u32 i = 0; i < RECEIVE_BUFFERS; i++) post(&receive, receive_buffers, i, BUFFER);
  publish_and_kick(&receive);
  fill_words(event_buffers, ~0ull, EVENT_BUFFERS);
  for (u32 i = 0; i < EVENT_BUFFERS; i++) post(&events, event_buffers, i, 8);
  publish_and_kick(&events);

  port = (u32)number_parameter("port", 5000);
  return true;
}

bool open_moving_vsock(void) {
  is_watching = true;
  return open_vsock();
}

bool talk(u32 total, struct talks *talks) {
  u32 resets_before = resets;
  own_port = OWN_PORT + ++talks->begun % 1000;
  u16 end = exchange(total);
  // Who lost the connection may say so before it says why.
  for (u64 start = ticks(); received != total && resets == resets_before && ticks() - start < 20 * second();) was_reset();
  talks->resets = resets;
  talks->mismatches = mismatches;
  if (resets != resets_before) return true;
  talks->complete += received == total;
  // Nobody reset anything, and the connection did not come to its end.
  return end == OP_RST && received == total;
}

void job_vsock(void) {
  if (!open_vsock()) return;
  u32 total = (u32)number_parameter("bytes", 100000);
  u32 rounds = (u32)number_parameter("rounds", 1);
  for (u32 round = 1; round <= rounds; round++) {
    own_port = OWN_PORT + round;
    u16 end = exchange(total);
    report("vsock", "sent", sent);
    report("vsock", "received", received);
    report("vsock", "mismatches", mismatches);
    report("vsock", "end", end);
    report("vsock", "round", round);
    if (round == rounds) break;
    u32 head, used;
    if (!await_used(&events, &head, &used, 60)) return;
    report("vsock", "event", head < EVENT_BUFFERS && used == 4 ? *(u32 *)(event_buffers + 8 * head) : ~0u);
  }
}
