/*
 * A guest without a virtual machine: a vhost-user front end with the driver of a virtio-net device, for packet-load (which receives)
 * and tap-guest (which does both).
 *
 * One region of shared memory: two rings (receive, transmit), receive buffers, transmit buffers. A receive buffer is one descriptor
 * with room for the 12-byte header; a frame that needs more takes several (VIRTIO_NET_F_MRG_RXBUF).
 *
 * Source: vhost-user protocol (QEMU, docs/interop/vhost-user.rst); VIRTIO 1.2, 2.7 Split Virtqueues, 5.1.6 Device Operation.
 */
#ifndef RINGSIDE_BENCHMARK_VHOST_GUEST_H
#define RINGSIDE_BENCHMARK_VHOST_GUEST_H

#include "frames.h"

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define RING_ENTRIES 256u
#define RING_BYTES 16384u
#define PAGE_BYTES 4096u

enum {
    VHOST_USER_GET_FEATURES = 1,
    VHOST_USER_SET_FEATURES = 2,
    VHOST_USER_SET_OWNER = 3,
    VHOST_USER_SET_MEM_TABLE = 5,
    VHOST_USER_SET_VRING_NUM = 8,
    VHOST_USER_SET_VRING_ADDR = 9,
    VHOST_USER_SET_VRING_BASE = 10,
    VHOST_USER_SET_VRING_KICK = 12,
    VHOST_USER_SET_VRING_CALL = 13,
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    VHOST_USER_SET_VRING_ENABLE = 18,
};
#define VHOST_USER_VERSION 1u
#define VHOST_USER_F_PROTOCOL_FEATURES 30

#define RECEIVE 0u
#define TRANSMIT 1u

struct guest {
    int socket, kick[2], call[2];
    uint64_t features;
    uint8_t *memory;
    size_t memory_bytes, receive_bytes;
    uint8_t *transmit_buffers;
    struct vring rings[2];
    /* Used entries looked at, and entries made available, since the start. */
    uint16_t seen[2], posted[2];
};

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct {
            uint32_t index, number;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t descriptors, used, available, log;
        } address;
        struct {
            uint32_t count, padding;
            uint64_t guest_address, bytes, user_address, mmap_offset;
        } memory;
    } payload;
} __attribute__((packed));

static void send_message(struct guest *guest, struct message *message, uint32_t request, size_t size, int fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec piece = {.iov_base = message, .iov_len = offsetof(struct message, payload) + size};
    struct msghdr header = {.msg_iov = &piece, .msg_iovlen = 1};
    message->request = request;
    message->flags = VHOST_USER_VERSION;
    message->size = (uint32_t)size;
    if (fd >= 0) {
        header.msg_control = control.space;
        header.msg_controllen = sizeof(control.space);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
    }
    check(sendmsg(guest->socket, &header, 0), "vhost-user message");
}

static void send_number(struct guest *guest, uint32_t request, uint64_t number, int fd)
{
    struct message message = {.payload.number = number};
    send_message(guest, &message, request, sizeof(number), fd);
}

static void send_state(struct guest *guest, uint32_t request, uint32_t index, uint32_t number)
{
    struct message message = {.payload.state = {index, number}};
    send_message(guest, &message, request, sizeof(message.payload.state), -1);
}

static uint64_t ask_number(struct guest *guest, uint32_t request)
{
    struct message message = {0};
    size_t bytes = offsetof(struct message, payload) + sizeof(uint64_t);
    send_message(guest, &message, request, 0, -1);
    if (recv(guest->socket, &message, bytes, MSG_WAITALL) != (ssize_t)bytes || message.request != request)
        fail("no answer to vhost-user request %u", request);
    return message.payload.number;
}

static void negotiate(struct guest *guest, uint64_t wanted)
{
    uint64_t offered = ask_number(guest, VHOST_USER_GET_FEATURES);
    uint64_t needed = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_NET_F_MRG_RXBUF;
    wanted |= needed | 1ull << VHOST_USER_F_PROTOCOL_FEATURES;
    if ((offered & needed) != needed)
        fail("the back end offers features %#llx, not those that are needed", (unsigned long long)offered);
    if (offered & 1ull << VHOST_USER_F_PROTOCOL_FEATURES) {
        ask_number(guest, VHOST_USER_GET_PROTOCOL_FEATURES);
        send_number(guest, VHOST_USER_SET_PROTOCOL_FEATURES, 0, -1);
    }
    struct message owner = {0};
    send_message(guest, &owner, VHOST_USER_SET_OWNER, 0, -1);
    guest->features = offered & wanted;
    send_number(guest, VHOST_USER_SET_FEATURES, guest->features, -1);
}

static void share_memory(struct guest *guest, size_t transmit_bytes)
{
    size_t transmit_offset = 2 * RING_BYTES + RING_ENTRIES * guest->receive_bytes;
    guest->memory_bytes = transmit_offset + transmit_bytes;
    guest->memory_bytes = (guest->memory_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    int fd = (int)check(memfd_create("guest", MFD_CLOEXEC), "memfd_create");
    check(ftruncate(fd, (off_t)guest->memory_bytes), "ftruncate");
    guest->memory = mmap(NULL, guest->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (guest->memory == MAP_FAILED)
        fail("guest memory: %s", strerror(errno));
    guest->transmit_buffers = guest->memory + transmit_offset;
    uint64_t address = (uintptr_t)guest->memory;
    struct message table = {.payload.memory = {1, 0, address, guest->memory_bytes, address, 0}};
    send_message(guest, &table, VHOST_USER_SET_MEM_TABLE, sizeof(table.payload.memory), fd);
    close(fd);
}

static void start_ring(struct guest *guest, uint32_t index)
{
    struct vring *ring = &guest->rings[index];
    vring_init(ring, RING_ENTRIES, guest->memory + index * RING_BYTES, PAGE_BYTES);
    ring->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    struct message address = {.payload.address = {index, 0, (uintptr_t)ring->desc, (uintptr_t)ring->used, (uintptr_t)ring->avail, 0}};
    send_state(guest, VHOST_USER_SET_VRING_NUM, index, RING_ENTRIES);
    send_state(guest, VHOST_USER_SET_VRING_BASE, index, 0);
    send_message(guest, &address, VHOST_USER_SET_VRING_ADDR, sizeof(address.payload.address), -1);
    guest->call[index] = (int)check(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
    guest->kick[index] = (int)check(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
    send_number(guest, VHOST_USER_SET_VRING_CALL, index, guest->call[index]);
    send_number(guest, VHOST_USER_SET_VRING_KICK, index, guest->kick[index]);
    send_state(guest, VHOST_USER_SET_VRING_ENABLE, index, 1);
}

/* Announced by `publish`. */
static void post(struct guest *guest, unsigned index, uint16_t descriptor)
{
    guest->rings[index].avail->ring[guest->posted[index]++ % RING_ENTRIES] = descriptor;
}

static void publish(struct guest *guest, unsigned index)
{
    struct vring *ring = &guest->rings[index];
    if (ring->avail->idx == guest->posted[index])
        return;
    /* The device reads entries after the index that announces them; the index is visible before its wish to be kicked is read. */
    __atomic_store_n(&ring->avail->idx, guest->posted[index], __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&ring->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY))
        eventfd_write(guest->kick[index], 1);
}

/* Used entries that are there and not yet looked at. */
static uint16_t count_used(struct guest *guest, unsigned index)
{
    return (uint16_t)(__atomic_load_n(&guest->rings[index].used->idx, __ATOMIC_ACQUIRE) - guest->seen[index]);
}

static struct vring_used_elem *next_used(struct guest *guest, unsigned index)
{
    return &guest->rings[index].used->ring[guest->seen[index]++ % RING_ENTRIES];
}

/*
 * Takes a frame that has come: pieces of it, the header first, and the descriptors of their buffers, to be posted again.
 * Returns their number, 0 when there is no frame.
 */
static unsigned take_frame(struct guest *guest, struct iovec *pieces, uint16_t *descriptors)
{
    uint16_t there = count_used(guest, RECEIVE), count = 1;
    if (there == 0)
        return 0;
    for (unsigned i = 0; i < count; i++) {
        struct vring_used_elem *used = next_used(guest, RECEIVE);
        descriptors[i] = (uint16_t)used->id;
        pieces[i].iov_base = (void *)(uintptr_t)guest->rings[RECEIVE].desc[used->id % RING_ENTRIES].addr;
        pieces[i].iov_len = used->len;
        /* All buffers of a frame are published together. */
        if (i == 0)
            count = ((struct virtio_net_hdr_v1 *)pieces[0].iov_base)->num_buffers;
        if (count == 0 || count > there)
            fail("a frame in %u buffers, of which %u are there", count, there);
    }
    return count;
}

/*
 * Connects to a back end and posts all receive buffers, pages with `large`: Linux, too, posts pages once it has seen that frames are
 * large. `wanted` are features; those that are offered are in guest->features.
 */
static void attach_guest(struct guest *guest, const char *path, uint64_t wanted, bool large, size_t transmit_bytes)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    guest->receive_bytes = large ? PAGE_BYTES : 2048 + 128;
    guest->socket = (int)check(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    check(connect(guest->socket, (struct sockaddr *)&address, sizeof(address)), path);
    negotiate(guest, wanted);
    share_memory(guest, transmit_bytes);
    for (uint32_t index = 0; index < 2; index++)
        start_ring(guest, index);
    for (uint16_t id = 0; id < RING_ENTRIES; id++) {
        uint64_t buffer = (uintptr_t)guest->memory + 2 * RING_BYTES + id * guest->receive_bytes;
        guest->rings[RECEIVE].desc[id] = (struct vring_desc){buffer, (uint32_t)guest->receive_bytes, VRING_DESC_F_WRITE, 0};
        post(guest, RECEIVE, id);
    }
    publish(guest, RECEIVE);
}

#endif
