/*
 * tap-guest: a guest whose kernel is the host's.
 *
 *   tap-guest NAME SOCKET
 *
 * The driver's side of a virtio-net device, joined to a TAP named NAME: what the TCP stack of this network namespace sends goes into
 * the transmit ring of the back end at SOCKET, and what the back end receives comes back. Frames, headers and offloads pass as they
 * are. To the back end it is a Linux guest with mergeable buffers and segmentation offloads, at the speed of this machine's kernel and
 * without a virtual machine: the same for every back end.
 *
 * It sleeps when there is nothing to do, until the TAP is readable or the back end has signalled a ring.
 */
#define _GNU_SOURCE
#include "tap.h"
#include "vhost-guest.h"

#include <poll.h>

#define TRANSMIT_BUFFERS 64u
/* Header and frame, in whole pages. */
#define TRANSMIT_BYTES (17 * PAGE_BYTES)
#define CHECKSUMS (1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM)
#define SENT_SEGMENTS (1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_HOST_TSO6)
#define RECEIVED_SEGMENTS (1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6)

static struct guest guest;
static uint16_t idle_buffers[TRANSMIT_BUFFERS];
static unsigned idle_count;

/*
 * A back end that says "the checksum has been seen to be right" (and may not have written one) is believed by virtio-net, but a TAP
 * does not know that flag. "The checksum is still to be made" has the same effect on a receiver: it does not look at it.
 */
static void pass_on_validity(const struct iovec *first)
{
    struct virtio_net_hdr *header = first->iov_base;
    uint8_t *frame = (uint8_t *)first->iov_base + VNET_HEADER_BYTES;
    const struct iphdr *ip = (const struct iphdr *)(frame + IP_OFFSET);
    if (!(header->flags & VIRTIO_NET_HDR_F_DATA_VALID) || header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ||
        first->iov_len < VNET_HEADER_BYTES + TCP_HEADERS_BYTES || frame[12] != 0x08 || frame[13] != 0 || ip->protocol != IPPROTO_TCP)
        return;
    header->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    header->csum_start = (uint16_t)(IP_OFFSET + ip->ihl * 4u);
    header->csum_offset = offsetof(struct tcphdr, check);
}

/* Returns whether there was anything. */
static bool receive(int tap)
{
    static struct iovec pieces[RING_ENTRIES];
    static uint16_t descriptors[RING_ENTRIES];
    bool any = false;
    for (unsigned count; (count = take_frame(&guest, pieces, descriptors)) > 0; any = true) {
        pass_on_validity(&pieces[0]);
        /* A full queue or a frame that this kernel refuses is a lost frame, as on any network. */
        if (writev(tap, pieces, (int)count) < 0 && errno != EAGAIN && errno != EINVAL && errno != ENOBUFS)
            fail("write to the TAP: %s", strerror(errno));
        for (unsigned i = 0; i < count; i++)
            post(&guest, RECEIVE, descriptors[i]);
        /* Frame by frame: a ring of pages holds 16 large ones. */
        publish(&guest, RECEIVE);
    }
    return any;
}

static void take_back_sent(void)
{
    for (uint16_t count = count_used(&guest, TRANSMIT); count > 0; count--)
        idle_buffers[idle_count++] = (uint16_t)next_used(&guest, TRANSMIT)->id;
}

static bool transmit(int tap)
{
    bool any = false;
    take_back_sent();
    while (idle_count > 0) {
        uint16_t id = idle_buffers[idle_count - 1];
        uint8_t *buffer = guest.transmit_buffers + id * TRANSMIT_BYTES;
        ssize_t bytes = read(tap, buffer, TRANSMIT_BYTES);
        if (bytes < 0 && errno == EAGAIN)
            break;
        check(bytes, "read from the TAP");
        guest.rings[TRANSMIT].desc[id] = (struct vring_desc){(uintptr_t)buffer, (uint32_t)bytes, 0, 0};
        post(&guest, TRANSMIT, id);
        publish(&guest, TRANSMIT);
        idle_count--;
        any = true;
    }
    return any;
}

static void want_calls(bool wanted)
{
    guest.rings[RECEIVE].avail->flags = wanted ? 0 : VRING_AVAIL_F_NO_INTERRUPT;
    /* A call for sent frames matters when there is no buffer left to send with. */
    guest.rings[TRANSMIT].avail->flags = wanted && idle_count == 0 ? 0 : VRING_AVAIL_F_NO_INTERRUPT;
    /* The wish is visible before the rings are looked at for the last time. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void sleep_until_something_happens(int tap)
{
    struct pollfd events[] = {
        {.fd = idle_count > 0 ? tap : -1, .events = POLLIN},
        {.fd = guest.call[RECEIVE], .events = POLLIN},
        {.fd = guest.call[TRANSMIT], .events = POLLIN},
    };
    eventfd_t count;
    want_calls(true);
    if (count_used(&guest, RECEIVE) == 0 && (idle_count > 0 || count_used(&guest, TRANSMIT) == 0))
        check(poll(events, 3, -1), "poll");
    want_calls(false);
    for (unsigned index = 0; index < 2; index++)
        if (events[index + 1].revents & POLLIN)
            eventfd_read(guest.call[index], &count);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: tap-guest NAME SOCKET");
    attach_guest(&guest, argv[2], CHECKSUMS | SENT_SEGMENTS | RECEIVED_SEGMENTS, true, TRANSMIT_BUFFERS * TRANSMIT_BYTES);
    unsigned offloads = 0;
    if (guest.features & 1ull << VIRTIO_NET_F_CSUM) {
        offloads |= TUN_F_CSUM;
        offloads |= guest.features & 1ull << VIRTIO_NET_F_HOST_TSO4 ? TUN_F_TSO4 : 0;
        offloads |= guest.features & 1ull << VIRTIO_NET_F_HOST_TSO6 ? TUN_F_TSO6 : 0;
    }
    int tap = open_tap(argv[1], false, offloads);
    for (uint16_t id = 0; id < TRANSMIT_BUFFERS; id++)
        idle_buffers[idle_count++] = id;
    for (;;) {
        bool received = receive(tap), sent = transmit(tap);
        if (!received && !sent)
            sleep_until_something_happens(tap);
    }
}
