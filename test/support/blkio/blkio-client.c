/*
 * A client of vhost-user-blk back ends on libblkio, a front end that shares no code with anything here. Each argument
 * after the settings is one operation; they run in order, each to its end, on all queues at once (a thread a queue).
 *
 *   blkio-client SOCKET [queues=N] [depth=N] [block=BYTES] [poll] [regions=N | memory=GIB] OPERATION...
 *
 *     regions                         spreads the buffers over N memory regions
 *     memory                          one region of so many GiB, most of it never touched; each buffer lies across
 *                                     another multiple of 1 GiB
 *
 *     info                            properties of the device, "name=value" a line
 *     fill:OFFSET:LENGTH:SEED         writes the pattern of SEED, blocks in random order, every other one vectored
 *     check:OFFSET:LENGTH:SEED        reads and compares it likewise
 *     zeroes:OFFSET:LENGTH            reads and expects zeroes
 *     flush
 *     discard:OFFSET:LENGTH
 *     write-zeroes:OFFSET:LENGTH      may free the space
 *     write-zeroes-keep:OFFSET:LENGTH must not
 *
 * The pattern: the 32-bit word number i of the disk is (i * 2654435761 + SEED) ^ (i >> 13), little endian.
 */

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <blkio.h>

enum { MAX_QUEUES = 16, MAX_DEPTH = 256, SEGMENTS = 3, TIMEOUT_S = 30 };

typedef enum { FILL, CHECK, ZEROES } Mode;

struct slot {
    uint8_t *buffer;
    uint64_t offset;
    struct iovec segments[SEGMENTS];
};

struct work {
    struct blkioq *queue;
    struct slot *slots;
    Mode mode;
    uint64_t offset, blocks, first, step;
    uint32_t seed;
    pthread_t thread;
};

static int queues = 1, depth = 1, poll_queues, regions = 1, memory_gib;
static size_t block_size = 4096;
static struct blkio *device;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void must(int result, const char *what)
{
    if (result < 0) die("%s: %s (%s)", what, blkio_get_error_msg(), strerror(-result));
}

static uint32_t word_at(uint64_t index, uint32_t seed)
{
    uint32_t i = (uint32_t)index;
    return (i * 2654435761u + seed) ^ (i >> 13);
}

static void wait_for(struct blkioq *queue, struct blkio_completion *completion)
{
    struct timespec timeout = { .tv_sec = TIMEOUT_S };
    int n = blkioq_do_io(queue, completion, 1, 1, &timeout);
    if (n != 1) die("no completion within %d s: %s", TIMEOUT_S, strerror(-n));
    if (completion->ret != 0) die("request failed: %s", strerror(-completion->ret));
}

static void verify(const struct work *work, const struct slot *slot)
{
    const uint32_t *words = (const uint32_t *)slot->buffer;
    for (size_t i = 0; i < block_size / 4; i++) {
        uint32_t expected = work->mode == ZEROES ? 0 : word_at(slot->offset / 4 + i, work->seed);
        if (words[i] != expected)
            die("byte %llu of the disk: read %08x, expected %08x", (unsigned long long)(slot->offset + 4 * i), words[i],
                expected);
    }
}

static void submit(const struct work *work, struct slot *slot, uint64_t block)
{
    slot->offset = work->offset + block * block_size;
    uint32_t *words = (uint32_t *)slot->buffer;
    for (size_t i = 0; i < block_size / 4; i++)
        words[i] = work->mode == FILL ? word_at(slot->offset / 4 + i, work->seed) : 0xdeadbeef;

    /* Uneven segments in buffer order: what a chain of several descriptors looks like. */
    int vectored = block % 2 == 1 && block_size >= 2048;
    size_t lengths[SEGMENTS] = { 512, block_size - 1536, 1024 };
    for (size_t i = 0, at = 0; i < SEGMENTS; at += lengths[i++])
        slot->segments[i] = (struct iovec){ slot->buffer + at, lengths[i] };

    if (work->mode == FILL && vectored)
        blkioq_writev(work->queue, slot->offset, slot->segments, SEGMENTS, slot, 0);
    else if (work->mode == FILL)
        blkioq_write(work->queue, slot->offset, slot->buffer, block_size, slot, 0);
    else if (vectored)
        blkioq_readv(work->queue, slot->offset, slot->segments, SEGMENTS, slot, 0);
    else
        blkioq_read(work->queue, slot->offset, slot->buffer, block_size, slot, 0);
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Visits the blocks first, first + step, ... in an order that jumps about: a stride that shares no factor with them. */
static void *run(void *argument)
{
    struct work *work = argument;
    uint64_t count = work->blocks <= work->first ? 0 : (work->blocks - work->first + work->step - 1) / work->step;
    uint64_t stride = count / 3 * 2 + 1, submitted = 0, completed = 0, position = 0;
    while (count > 1 && common_divisor(stride, count) != 1) stride++;
    struct blkio_completion completion;
    while (completed < count) {
        struct slot *slot;
        if (submitted < count && submitted - completed < (uint64_t)depth) {
            slot = &work->slots[submitted];
            if (submitted >= (uint64_t)depth) die("slot %llu is not free", (unsigned long long)submitted);
        } else {
            wait_for(work->queue, &completion);
            completed++;
            slot = completion.user_data;
            if (work->mode != FILL) verify(work, slot);
            if (submitted == count) continue;
        }
        submit(work, slot, work->first + position * work->step);
        position = (position + stride) % count;
        submitted++;
    }
    return NULL;
}

static void run_all(struct slot slots[][MAX_DEPTH], Mode mode, uint64_t offset, uint64_t length, uint32_t seed)
{
    struct work works[MAX_QUEUES];
    for (int i = 0; i < queues; i++) {
        struct blkioq *queue = poll_queues ? blkio_get_poll_queue(device, i) : blkio_get_queue(device, i);
        works[i] = (struct work){ queue, slots[i], mode, offset, length / block_size, i, queues, seed, 0 };
        if (pthread_create(&works[i].thread, NULL, run, &works[i]) != 0) die("pthread_create failed");
    }
    for (int i = 0; i < queues; i++) pthread_join(works[i].thread, NULL);
}

static void print_properties(void)
{
    static const char *const names[] = { "capacity", "max-queues", "request-alignment", "optimal-io-alignment",
        "optimal-io-size", "max-segments", "max-segment-len", "max-transfer", "max-discard-len",
        "max-write-zeroes-len", "discard-alignment", "max-mem-regions", "flush-needed", "max-queue-size" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *value;
        if (blkio_get_str(device, names[i], &value) < 0) continue;
        printf("%s=%s\n", names[i], value);
        free(value);
    }
}

static uint8_t *allocate(size_t length)
{
    struct blkio_mem_region region;
    uint64_t alignment = 1;
    must(blkio_get_uint64(device, "mem-region-alignment", &alignment), "mem-region-alignment");
    must(blkio_alloc_mem_region(device, &region, (length + alignment - 1) / alignment * alignment), "allocate memory");
    must(blkio_map_mem_region(device, &region), "map memory");
    return region.addr;
}

static void allocate_buffers(struct slot slots[][MAX_DEPTH])
{
    const size_t gib = (size_t)1 << 30, count = (size_t)queues * depth;
    const size_t per_region = (count + regions - 1) / regions;
    if (memory_gib != 0 && count >= (size_t)memory_gib) die("%zu buffers, %d multiples of 1 GiB", count, memory_gib - 1);
    uint8_t *memory = memory_gib != 0 ? allocate(memory_gib * gib) : NULL;
    for (size_t i = 0; i < count; i++) {
        struct slot *slot = &slots[i / depth][i % depth];
        if (memory_gib != 0) {
            /* Region addresses are no multiples of 1 GiB, but the offsets that back ends cut windows at are. */
            slot->buffer = memory + (i + 1) * memory_gib / (count + 1) * gib - block_size / 2;
        } else {
            if (i % per_region == 0) memory = allocate(per_region * block_size);
            slot->buffer = memory + i % per_region * block_size;
        }
    }
}

static void operate(struct slot slots[][MAX_DEPTH], const char *operation)
{
    unsigned long long offset = 0, length = 0;
    unsigned seed = 0;
    struct blkioq *queue = poll_queues ? blkio_get_poll_queue(device, 0) : blkio_get_queue(device, 0);
    struct blkio_completion completion;
    if (strcmp(operation, "info") == 0) {
        print_properties();
        return;
    }
    if (sscanf(operation, "fill:%llu:%llu:%u", &offset, &length, &seed) == 3) {
        run_all(slots, FILL, offset, length, seed);
        return;
    }
    if (sscanf(operation, "check:%llu:%llu:%u", &offset, &length, &seed) == 3) {
        run_all(slots, CHECK, offset, length, seed);
        return;
    }
    if (sscanf(operation, "zeroes:%llu:%llu", &offset, &length) == 2) {
        run_all(slots, ZEROES, offset, length, 0);
        return;
    }
    if (strcmp(operation, "flush") == 0)
        blkioq_flush(queue, NULL, 0);
    else if (sscanf(operation, "discard:%llu:%llu", &offset, &length) == 2)
        blkioq_discard(queue, offset, length, NULL, 0);
    else if (sscanf(operation, "write-zeroes:%llu:%llu", &offset, &length) == 2)
        blkioq_write_zeroes(queue, offset, length, NULL, 0);
    else if (sscanf(operation, "write-zeroes-keep:%llu:%llu", &offset, &length) == 2)
        blkioq_write_zeroes(queue, offset, length, NULL, BLKIO_REQ_NO_UNMAP);
    else
        die("unknown operation %s", operation);
    wait_for(queue, &completion);
}

int main(int argc, char **argv)
{
    static struct slot slots[MAX_QUEUES][MAX_DEPTH];
    int next = 2;
    if (argc < 3) die("usage: blkio-client SOCKET [queues=N] [depth=N] [block=BYTES] [poll] OPERATION...");
    for (; next < argc; next++) {
        if (sscanf(argv[next], "queues=%d", &queues) == 1 || sscanf(argv[next], "depth=%d", &depth) == 1 ||
            sscanf(argv[next], "block=%zu", &block_size) == 1 || sscanf(argv[next], "regions=%d", &regions) == 1 ||
            sscanf(argv[next], "memory=%d", &memory_gib) == 1)
            continue;
        if (strcmp(argv[next], "poll") != 0) break;
        poll_queues = 1;
    }
    if (queues < 1 || queues > MAX_QUEUES || depth < 1 || depth > MAX_DEPTH) die("queues or depth out of range");

    must(blkio_create("virtio-blk-vhost-user", &device), "create");
    must(blkio_set_str(device, "path", argv[1]), "path");
    must(blkio_connect(device), "connect");
    must(blkio_set_int(device, "num-queues", poll_queues ? 0 : queues), "num-queues");
    must(blkio_set_int(device, "num-poll-queues", poll_queues ? queues : 0), "num-poll-queues");
    must(blkio_start(device), "start");
    allocate_buffers(slots);

    for (; next < argc; next++) operate(slots, argv[next]);
    blkio_destroy(&device);
    return 0;
}
