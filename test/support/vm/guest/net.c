/*
 * job=net: ip=A peer=B count=N size=BYTES. Asks for the peer's hardware address by ARP and then pings it, N times, and
 * compares every byte of the answers. Sources: VIRTIO 1.3, 5.1 Network Device; RFC 826, RFC 791, RFC 792.
 */

#include "jobs.h"
#include "virtio.h"

#define NET_MTU (1ull << 3)
#define NET_MAC (1ull << 5)
#define NET_MRG_RXBUF (1ull << 15)
#define NET_STATUS (1ull << 16)

#define HEADER 12
#define ETHERNET 14
#define BUFFER 2048
#define RECEIVE_BUFFERS 32
#define ICMP (HEADER + ETHERNET + 20)

static struct device device;
static struct queue receive, transmit;
static u8 *receive_buffers, *packet;
static u8 mac[6], peer_mac[6];
static u8 address[4], peer[4];

static void parse_address(const char *name, const char *otherwise, u8 *to) {
  char text[20];
  const char *at = text_parameter(name, text, sizeof text) ? text : otherwise;
  for (u32 i = 0; i < 4; i++) {
    to[i] = (u8)parse_number(&at);
    if (*at == '.') at++;
  }
}

static void put16(u8 *at, u32 value) {
  at[0] = (u8)(value >> 8);
  at[1] = (u8)value;
}
static u32 get16(const u8 *at) { return (u32)at[0] << 8 | at[1]; }

static bool same_bytes(const u8 *a, const u8 *b, u32 count) {
  for (u32 i = 0; i < count; i++) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

/* RFC 1071. `count` is even. */
static u32 checksum(const u8 *at, u32 count) {
  u32 sum = 0;
  for (u32 i = 0; i < count; i += 2) sum += get16(at + i);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}

/* Sends `packet`, `length` bytes behind the header, and waits until the device has it. */
static bool send(u32 length) {
  fill_words(packet, 0, 1);
  *(u32 *)(packet + 8) = 0;
  set_descriptor(&transmit, 0, packet, HEADER + length, 0, 0);
  offer(&transmit, 0);
  publish_and_kick(&transmit);
  u32 head, used;
  return await_used(&transmit, &head, &used, 10);
}

static void ethernet_header(u8 *at, const u8 *to, u32 type) {
  copy_bytes(at, to, 6);
  copy_bytes(at + 6, mac, 6);
  put16(at + 12, type);
}

static bool send_arp(u32 operation, const u8 *target_mac, const u8 *target) {
  static const u8 start[6] = {0, 1, 8, 0, 6, 4};
  static const u8 everyone[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  u8 *at = packet + HEADER;
  fill_words(at, 0, 8);
  ethernet_header(at, operation == 1 ? everyone : target_mac, 0x0806);
  copy_bytes(at + 14, start, 6);
  put16(at + 20, operation);
  copy_bytes(at + 22, mac, 6);
  copy_bytes(at + 28, address, 4);
  if (operation != 1) copy_bytes(at + 32, target_mac, 6);
  copy_bytes(at + 38, target, 4);
  return send(60);
}

static bool send_ping(u32 sequence, u32 size) {
  u8 *at = packet + HEADER;
  ethernet_header(at, peer_mac, 0x0800);
  u8 *ip = at + ETHERNET;
  fill_words(ip, 0, 3);
  ip[0] = 0x45;
  put16(ip + 2, 28 + size);
  ip[8] = 64;
  ip[9] = 1;
  copy_bytes(ip + 12, address, 4);
  copy_bytes(ip + 16, peer, 4);
  put16(ip + 10, checksum(ip, 20));
  u8 *icmp = ip + 20;
  icmp[0] = 8;
  icmp[1] = 0;
  put16(icmp + 2, 0);
  put16(icmp + 4, 0x5249);
  put16(icmp + 6, sequence);
  for (u32 i = 0; i < size; i++) icmp[8 + i] = (u8)(sequence + i * 7);
  put16(icmp + 2, checksum(icmp, 8 + size));
  return send(ETHERNET + 28 + size);
}

static void offer_receive_buffer(u32 n) {
  set_descriptor(&receive, n, receive_buffers + n * BUFFER, BUFFER, DESC_WRITE, 0);
  offer(&receive, (u16)n);
}

/* The next packet, or NULL when none comes for a second. Its buffer is the caller's until release(). */
static const u8 *next_packet(u32 *n, u32 *length) {
  u32 used;
  if (!await_used(&receive, n, &used, 1)) return NULL;
  *length = used;
  return receive_buffers + *n * BUFFER;
}

static void release(u32 n) {
  offer_receive_buffer(n);
  publish_and_kick(&receive);
}

bool resolve_peer(void) {
  for (u32 attempt = 0; attempt < 10; attempt++) {
    if (!send_arp(1, NULL, peer)) return false;
    const u8 *at;
    for (u32 n, length; (at = next_packet(&n, &length)) != NULL;) {
      const u8 *arp = at + HEADER + ETHERNET;
      bool answer = get16(at + HEADER + 12) == 0x0806 && get16(arp + 6) == 2 && same_bytes(arp + 14, peer, 4);
      if (answer) copy_bytes(peer_mac, arp + 8, 6);
      release(n);
      if (answer) return true;
    }
  }
  return false;
}

static bool is_answer(const u8 *at, u32 length, u32 sequence, u32 size) {
  const u8 *icmp = at + ICMP;
  return length >= ICMP + 8 + size && get16(at + HEADER + 12) == 0x0800 && at[HEADER + ETHERNET + 9] == 1 &&
         icmp[0] == 0 && get16(icmp + 4) == 0x5249 && get16(icmp + 6) == sequence;
}

/* Whether ping `sequence` is answered; other packets that arrive are looked at as far as they concern us. */
static bool await_answer(u32 sequence, u32 size, u64 *mismatches) {
  const u8 *at;
  for (u32 n, length; (at = next_packet(&n, &length)) != NULL;) {
    bool answer = is_answer(at, length, sequence, size);
    if (answer) *mismatches += !same_bytes(at + ICMP + 8, packet + ICMP + 8, size);
    const u8 *arp = at + HEADER + ETHERNET;
    bool question = get16(at + HEADER + 12) == 0x0806 && get16(arp + 6) == 1 && same_bytes(arp + 24, address, 4);
    if (question) {
      u8 who[10];
      copy_bytes(who, arp + 8, 10);
      // The packet buffer holds the ping that answers are compared with.
      u8 *kept = packet;
      packet += BUFFER;
      send_arp(2, who, who + 6);
      packet = kept;
    }
    release(n);
    if (answer) return true;
  }
  return false;
}

bool open_net(void) {
  if (!find_device(DEVICE_NET, 0, &device)) {
    print("error=no network\n");
    return false;
  }
  u64 wanted = NET_MTU | NET_MAC | NET_STATUS | NET_MRG_RXBUF;
  if (!negotiate(&device, wanted) || !set_up_queue(&receive, &device, 0, 64, true) ||
      !set_up_queue(&transmit, &device, 1, 64, false)) {
    print("error=network set-up\n");
    return false;
  }
  receive_buffers = allocate_high(RECEIVE_BUFFERS * BUFFER);
  packet = allocate(2 * BUFFER);
  for (u32 n = 0; n < RECEIVE_BUFFERS; n++) offer_receive_buffer(n);
  set_driver_ok(&device);
  publish(&receive);
  kick(&receive);
  copy_bytes(mac, "\x52\x54\x00\x72\x73\x01", 6);
  if ((device.features & NET_MAC) != 0) {
    for (u32 i = 0; i < 6; i++) mac[i] = *(volatile u8 *)(device.base + REGISTER_CONFIG + i);
  }
  parse_address("ip", "10.7.0.2", address);
  parse_address("peer", "10.7.0.1", peer);
  return true;
}

bool ping_peer(u32 sequence, u32 size, u64 *resent, u64 *mismatches) {
  for (u32 attempt = 0; attempt < 20; attempt++) {
    if (send_ping(sequence, size) && await_answer(sequence, size, mismatches)) return true;
    (*resent)++;
  }
  return false;
}

void job_net(void) {
  if (!open_net()) return;
  u8 vector = fresh_vector();
  route_interrupt(interrupt_of(&device), vector);
  u64 number = 0;
  for (u32 i = 0; i < 6; i++) number = number << 8 | mac[i];
  report_hex("net", "mac", number);
  if ((device.features & NET_STATUS) != 0) {
    report("net", "link", *(volatile u16 *)(device.base + REGISTER_CONFIG + 6) & 1);
  }
  if ((device.features & NET_MTU) != 0) report("net", "mtu", *(volatile u16 *)(device.base + REGISTER_CONFIG + 10));
  if (!resolve_peer()) {
    print("net.error=no answer to ARP\n");
    return;
  }
  print("net.resolved=1\n");
  u32 count = (u32)number_parameter("count", 100), size = (u32)number_parameter("size", 56) & ~1u, answers = 0;
  u64 mismatches = 0, resent = 0;
  for (u32 sequence = 0; sequence < count; sequence++) {
    if (count >= 16 && sequence % (count / 16) == 0) report("net", "progress", sequence);
    if (!ping_peer(sequence, size, &resent, &mismatches)) break;
    answers++;
  }
  report("net", "interrupt", interrupt_pending(vector));
  report("net", "answers", answers);
  report("net", "resent", resent);
  report("net", "mismatches", mismatches);
}
