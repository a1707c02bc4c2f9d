/*
 * packet-load: the host's side of a TAP, by a packet socket.
 *
 *   packet-load send NAME BYTES udp|gso [SOCKET]   sends frames into the interface NAME as fast as it can, until it is killed; with
 *                                               SOCKET it is also the guest that a vhost-user back end hands them to, and prints
 *                                               ten times a second how many have come (JSON lines)
 *   packet-load ping NAME COUNT INTERVAL_US     sends COUNT ICMP echo requests and prints round-trip times as JSON
 *
 * A packet socket with PACKET_QDISC_BYPASS hands frames to the TAP's queue directly. What finds the queue full is dropped and counted
 * by the interface. The reader frees the frames on its own core and returns them to the socket's account there; with one socket the
 * cores pull at this account for each frame (0.83 - 1.06 M frames/s), with SOCKETS in turn the reader is the slower one (1.16 M/s).
 */
#define _GNU_SOURCE
#include "../latency-histogram.h"
#include "vhost-guest.h"

#include <inttypes.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define LARGE_BATCH 4
#define SOCKETS 16
#define REPORT_NS 100000000u
#define PING_FRAME_BYTES 98 /* what ping(8) sends: 56 bytes of data */
#define GSO_FEATURES (1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6)
#define PING_WARMUP 2000
#define REPLY_TIMEOUT_S 2

static void set_option(int fd, int level, int option, int value, const char *name)
{
    check(setsockopt(fd, level, option, &value, sizeof(value)), name);
}

static int open_packet_socket(const char *name, uint16_t protocol)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol)};
    int fd = (int)check(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), "packet socket");
    address.sll_ifindex = (int)if_nametoindex(name);
    if (address.sll_ifindex == 0)
        fail("no interface %s", name);
    check(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");
    set_option(fd, SOL_PACKET, PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS");
    return fd;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct tally {
    uint64_t frames, bytes;
};

/* Counts what has come and posts the buffers again. */
static void count_frames(struct guest *guest, struct tally *tally)
{
    static struct iovec pieces[RING_ENTRIES];
    static uint16_t descriptors[RING_ENTRIES];
    for (unsigned count; (count = take_frame(guest, pieces, descriptors)) > 0; tally->frames++) {
        tally->bytes -= VNET_HEADER_BYTES;
        for (unsigned i = 0; i < count; i++) {
            tally->bytes += pieces[i].iov_len;
            post(guest, RECEIVE, descriptors[i]);
        }
    }
    publish(guest, RECEIVE);
}

static void report(const struct tally *tally, uint64_t now)
{
    printf("{\"ns\":%" PRIu64 ",\"frames\":%" PRIu64 ",\"bytes\":%" PRIu64 "}\n", now, tally->frames, tally->bytes);
    fflush(stdout);
}

static void send_loop(const char *name, size_t bytes, bool gso, const char *back_end)
{
    static uint8_t buffer[sizeof(struct virtio_net_hdr) + MAX_FRAME_BYTES];
    uint8_t *frame = buffer + sizeof(struct virtio_net_hdr);
    struct iovec piece = {.iov_base = frame, .iov_len = bytes};
    struct mmsghdr messages[BATCH] = {0};
    static struct guest guest;
    struct tally tally = {0};
    int sockets[SOCKETS];
    /* A ring of pages holds 16 large frames: fewer are sent before it is looked at. */
    unsigned batch = gso ? LARGE_BATCH : BATCH;
    uint64_t reported = 0;

    write_frame((struct virtio_net_hdr *)buffer, frame, bytes, gso);
    if (gso)
        piece = (struct iovec){.iov_base = buffer, .iov_len = sizeof(struct virtio_net_hdr) + bytes};
    for (unsigned i = 0; i < SOCKETS; i++) {
        sockets[i] = open_packet_socket(name, 0);
        if (gso)
            set_option(sockets[i], SOL_PACKET, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR");
    }
    for (unsigned i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_iov = &piece;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    if (back_end != NULL)
        attach_guest(&guest, back_end, gso ? GSO_FEATURES : 0, gso, 0);
    for (unsigned i = 0;; i = (i + 1) % SOCKETS) {
        /* Not blocking: what it would wait for may be waiting for the guest. */
        if (sendmmsg(sockets[i], messages, batch, MSG_DONTWAIT) < 0 && errno != ENOBUFS && errno != EAGAIN)
            fail("sendmmsg: %s", strerror(errno));
        if (back_end == NULL)
            continue;
        count_frames(&guest, &tally);
        uint64_t now = now_ns();
        if (now - reported >= REPORT_NS) {
            report(&tally, now);
            reported = now;
        }
    }
}

static void sleep_until(uint64_t ns)
{
    struct timespec when = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
}

/* One request and its reply; frames that are not the reply are passed over. */
static uint64_t round_trip_ns(int fd, uint8_t *request, uint16_t sequence)
{
    uint8_t reply[2048];
    struct icmphdr *icmp = (struct icmphdr *)(request + TRANSPORT_OFFSET), *answer = (struct icmphdr *)(reply + TRANSPORT_OFFSET);
    icmp->type = ICMP_ECHO;
    icmp->un.echo.id = htons(0x5249);
    icmp->un.echo.sequence = htons(sequence);
    icmp->checksum = 0;
    icmp->checksum = internet_checksum(icmp, PING_FRAME_BYTES - TRANSPORT_OFFSET);

    uint64_t start = now_ns();
    check(send(fd, request, PING_FRAME_BYTES, 0), "send");
    for (;;) {
        ssize_t bytes = recv(fd, reply, sizeof(reply), 0);
        if (bytes < 0)
            fail("no reply to ping %u: %s", sequence, strerror(errno));
        if (bytes == PING_FRAME_BYTES && ((struct iphdr *)(reply + IP_OFFSET))->protocol == IPPROTO_ICMP &&
            answer->type == ICMP_ECHOREPLY && answer->un.echo.sequence == icmp->un.echo.sequence)
            return now_ns() - start;
    }
}

static void ping(const char *name, size_t count, uint64_t interval_ns)
{
    static struct histogram latency;
    uint8_t request[PING_FRAME_BYTES] = {0};
    struct timeval timeout = {.tv_sec = REPLY_TIMEOUT_S};
    int fd = open_packet_socket(name, ETH_P_IP);
    check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), "SO_RCVTIMEO");
    write_ethernet_and_ip(request, PING_FRAME_BYTES, IPPROTO_ICMP);

    uint64_t due = now_ns();
    for (size_t i = 0; i < PING_WARMUP + count; i++) {
        uint64_t elapsed = round_trip_ns(fd, request, (uint16_t)i);
        if (i >= PING_WARMUP)
            record(&latency, elapsed);
        due += interval_ns;
        sleep_until(due);
    }
    printf("{\"count\":%" PRIu64 ",\"latencyNs\":{\"mean\":%.0f,\"p50\":%" PRIu64 ",\"p99\":%" PRIu64 ",\"max\":%" PRIu64 "}}\n",
           latency.count, (double)latency.sum_ns / (double)latency.count, percentile_ns(&latency, 0.5),
           percentile_ns(&latency, 0.99), latency.max_ns);
}

int main(int argc, char **argv)
{
    if (argc < 5)
        fail("usage: packet-load send NAME BYTES udp|gso [SOCKET] | packet-load ping NAME COUNT INTERVAL_US");
    if (strcmp(argv[1], "send") == 0)
        send_loop(argv[2], parse_number(argv[3], MAX_FRAME_BYTES), strcmp(argv[4], "gso") == 0, argc > 5 ? argv[5] : NULL);
    if (strcmp(argv[1], "ping") != 0)
        fail("no mode %s", argv[1]);
    ping(argv[2], parse_number(argv[3], 10000000), 1000 * (uint64_t)parse_number(argv[4], 1000000));
    return 0;
}
