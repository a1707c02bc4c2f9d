/*
 * read-loop: threads that read random blocks of a file by pread, each for itself. What the cores, the memory and the page cache
 * give to one thread and to two, without any rings: the limit of what queues on several threads can gain.
 *
 *     read-loop FILE BLOCK-BYTES DEPTH THREADS WARMUP-MS MS
 *
 * The threads share DEPTH buffers of BLOCK-BYTES in a memfd, as guest memory is one; each uses its part of them in turn.
 * Result: one JSON object on stdout. Errors: one line on stderr, exit 1.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 64

/* A cache line of its own, so that counting does not slow the others down. */
struct loop {
    _Alignas(128) pthread_t thread;
    const char *path;
    char *buffers;
    uint64_t block_bytes, blocks, random;
    unsigned depth;
    atomic_uint_fast64_t count;
};

static atomic_bool stopping;

static void __attribute__((noreturn)) fail(const char *what)
{
    fprintf(stderr, "read-loop: ");
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_ms(uint64_t ms)
{
    struct timespec time = { .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 };
    nanosleep(&time, NULL);
}

static void *run(void *argument)
{
    struct loop *loop = argument;
    /* A file description of its own: nothing is shared but the pages. */
    int file = open(loop->path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail(loop->path);
    for (unsigned turn = 0; !atomic_load_explicit(&stopping, memory_order_relaxed); turn = (turn + 1) % loop->depth) {
        loop->random ^= loop->random >> 12;
        loop->random ^= loop->random << 25;
        loop->random ^= loop->random >> 27;
        uint64_t block = (uint64_t)(((unsigned __int128)(loop->random * 0x2545f4914f6cdd1du) * loop->blocks) >> 64);
        ssize_t got = pread(file, loop->buffers + turn * loop->block_bytes, loop->block_bytes, (off_t)(block * loop->block_bytes));
        if (got != (ssize_t)loop->block_bytes)
            fail("pread");
        uint64_t count = atomic_load_explicit(&loop->count, memory_order_relaxed);
        atomic_store_explicit(&loop->count, count + 1, memory_order_relaxed);
    }
    close(file);
    return NULL;
}

static uint64_t total(struct loop *loops, unsigned threads)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++)
        sum += atomic_load_explicit(&loops[i].count, memory_order_relaxed);
    return sum;
}

int main(int argc, char **argv)
{
    static struct loop loops[MAX_THREADS];
    struct stat status;
    if (argc != 7) {
        fputs("usage: read-loop FILE BLOCK-BYTES DEPTH THREADS WARMUP-MS MS\n", stderr);
        return 1;
    }
    uint64_t block_bytes = strtoull(argv[2], NULL, 10);
    unsigned depth = (unsigned)atoi(argv[3]), threads = (unsigned)atoi(argv[4]);
    uint64_t warmup_ms = strtoull(argv[5], NULL, 10), ms = strtoull(argv[6], NULL, 10);
    if (block_bytes == 0 || threads == 0 || threads > MAX_THREADS || depth < threads || ms == 0) {
        fputs("read-loop: numbers out of range\n", stderr);
        return 1;
    }
    if (stat(argv[1], &status) < 0)
        fail(argv[1]);
    size_t bytes = (size_t)depth * block_bytes;
    int memory = memfd_create("read-loop", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, (off_t)bytes) < 0)
        fail("memfd");
    char *buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (buffers == MAP_FAILED)
        fail("mmap");
    memset(buffers, 1, bytes);
    unsigned share = depth / threads;
    for (unsigned i = 0; i < threads; i++) {
        loops[i].path = argv[1];
        loops[i].buffers = buffers + (size_t)i * share * block_bytes;
        loops[i].block_bytes = block_bytes;
        loops[i].blocks = (uint64_t)status.st_size / block_bytes;
        loops[i].random = 0x9e3779b97f4a7c15u * (i + 1);
        loops[i].depth = share;
        if (pthread_create(&loops[i].thread, NULL, run, &loops[i]) != 0)
            fail("pthread_create");
    }
    sleep_ms(warmup_ms);
    uint64_t count = total(loops, threads), begin = now_ns();
    sleep_ms(ms);
    count = total(loops, threads) - count;
    uint64_t elapsed = now_ns() - begin;
    atomic_store(&stopping, true);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(loops[i].thread, NULL);
    printf("{\"ios\": %" PRIu64 ", \"elapsedNs\": %" PRIu64 "}\n", count, elapsed);
    return 0;
}
