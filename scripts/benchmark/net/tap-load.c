/*
 * tap-load: a bare loop on a TAP, the limit that scripts/bench compares a network back end with.
 *
 *   tap-load write NAME BYTES [gso]   write(2), one frame a call
 *   tap-load uring NAME BYTES [gso]   the same by io_uring in batches of 32, registered file
 *   tap-load read NAME                reads what comes, asks again at once when there is nothing
 *   tap-load echo NAME                sleeps in read(2), answers ICMP echo requests
 *
 * It makes the interface NAME in its network namespace, with the 12-byte header of a modern virtio-net device and all offloads, and
 * runs until it is killed. It counts nothing: the interface's own counters do, for every participant alike.
 *
 * The frames written are 256 in turn, as many as a ring holds, so that large ones come from memory and not from the first cache.
 */
#define _GNU_SOURCE
#include "tap.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FRAMES 256
#define BATCH 32

struct slot {
    uint8_t *start;
    size_t bytes;
};

static struct slot slots[FRAMES];

static void prepare_frames(size_t bytes, bool gso)
{
    for (unsigned i = 0; i < FRAMES; i++) {
        slots[i].bytes = VNET_HEADER_BYTES + bytes;
        slots[i].start = calloc(1, slots[i].bytes);
        if (slots[i].start == NULL)
            fail("no memory");
        write_frame((struct virtio_net_hdr *)slots[i].start, slots[i].start + VNET_HEADER_BYTES, bytes, gso);
    }
}

static void write_loop(int fd)
{
    for (unsigned i = 0;; i = (i + 1) % FRAMES)
        if (write(fd, slots[i].start, slots[i].bytes) < 0 && errno != EAGAIN)
            fail("write: %s", strerror(errno));
}

static void *map_ring(int ring, size_t bytes, off_t offset)
{
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset);
    if (address == MAP_FAILED)
        fail("mmap of the ring: %s", strerror(errno));
    return address;
}

static void uring_loop(int fd)
{
    struct io_uring_params params = {0};
    int ring = (int)check(syscall(SYS_io_uring_setup, BATCH, &params), "io_uring_setup");
    check(syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &fd, 1), "IORING_REGISTER_FILES");
    if (!(params.features & IORING_FEAT_SINGLE_MMAP))
        fail("this kernel's io_uring maps its rings one by one");
    size_t submission_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t completion_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    uint8_t *rings =
        map_ring(ring, submission_bytes > completion_bytes ? submission_bytes : completion_bytes, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries = map_ring(ring, params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    unsigned *tail = (unsigned *)(rings + params.sq_off.tail), *array = (unsigned *)(rings + params.sq_off.array);
    unsigned *done_head = (unsigned *)(rings + params.cq_off.head), *done_tail = (unsigned *)(rings + params.cq_off.tail);
    unsigned done_mask = params.cq_entries - 1;
    struct io_uring_cqe *done = (struct io_uring_cqe *)(rings + params.cq_off.cqes);

    for (unsigned i = 0; i < BATCH; i++)
        array[i] = i;
    for (unsigned first = 0;; first = (first + BATCH) % FRAMES) {
        for (unsigned i = 0; i < BATCH; i++) {
            struct slot *slot = &slots[first + i];
            entries[i] = (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .flags = IOSQE_FIXED_FILE, .fd = 0,
                                               .addr = (uintptr_t)slot->start, .len = (uint32_t)slot->bytes};
        }
        /* The kernel reads the entries after it has seen the new tail. */
        __atomic_store_n(tail, *tail + BATCH, __ATOMIC_RELEASE);
        long taken = check(syscall(SYS_io_uring_enter, ring, BATCH, BATCH, IORING_ENTER_GETEVENTS, NULL, 0), "io_uring_enter");
        if (taken != BATCH)
            fail("io_uring took %ld of %d entries", taken, BATCH);
        unsigned head = *done_head, end = __atomic_load_n(done_tail, __ATOMIC_ACQUIRE);
        for (; head != end; head++)
            if (done[head & done_mask].res < 0 && done[head & done_mask].res != -EAGAIN)
                fail("write by io_uring: %s", strerror(-done[head & done_mask].res));
        __atomic_store_n(done_head, head, __ATOMIC_RELEASE);
    }
}

static void read_loop(int fd)
{
    for (unsigned i = 0;; i = (i + 1) % FRAMES)
        while (read(fd, slots[i].start, slots[i].bytes) < 0)
            if (errno != EAGAIN)
                fail("read: %s", strerror(errno));
}

static void swap(uint8_t *a, uint8_t *b, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint8_t kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

static void echo_loop(int fd)
{
    uint8_t buffer[VNET_HEADER_BYTES + 2048], *frame = buffer + VNET_HEADER_BYTES;
    struct iphdr *ip = (struct iphdr *)(frame + IP_OFFSET);
    struct icmphdr *icmp = (struct icmphdr *)(frame + TRANSPORT_OFFSET);
    for (;;) {
        ssize_t bytes = check(read(fd, buffer, sizeof(buffer)), "read");
        if (bytes < (ssize_t)(VNET_HEADER_BYTES + TRANSPORT_OFFSET + sizeof(*icmp)) || frame[12] != 0x08 || frame[13] != 0 ||
            ip->protocol != IPPROTO_ICMP || icmp->type != ICMP_ECHO)
            continue;
        swap(frame, frame + ETH_ALEN, ETH_ALEN);
        swap((uint8_t *)&ip->saddr, (uint8_t *)&ip->daddr, sizeof(ip->saddr));
        icmp->type = ICMP_ECHOREPLY;
        icmp->checksum = 0;
        icmp->checksum = internet_checksum(icmp, (size_t)bytes - VNET_HEADER_BYTES - TRANSPORT_OFFSET);
        memset(buffer, 0, VNET_HEADER_BYTES);
        check(write(fd, buffer, (size_t)bytes), "write");
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        fail("usage: tap-load write|uring|read|echo NAME [BYTES [gso]]");
    const char *mode = argv[1], *name = argv[2];
    size_t bytes = argc > 3 ? parse_number(argv[3], MAX_FRAME_BYTES) : MAX_FRAME_BYTES;
    bool gso = argc > 4 && strcmp(argv[4], "gso") == 0;

    prepare_frames(bytes, gso);
    int fd = open_tap(name, strcmp(mode, "echo") == 0, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
    if (strcmp(mode, "write") == 0)
        write_loop(fd);
    if (strcmp(mode, "uring") == 0)
        uring_loop(fd);
    if (strcmp(mode, "read") == 0)
        read_loop(fd);
    if (strcmp(mode, "echo") == 0)
        echo_loop(fd);
    fail("no mode %s", mode);
}
