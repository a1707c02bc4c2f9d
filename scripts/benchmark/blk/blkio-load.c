/*
 * blkio-load: one block workload through libblkio's virtio-blk-vhost-user driver, on one thread and one queue.
 *
 * The neutral front end of scripts/bench: the same binary drives every back end. It keeps --qd requests in flight, refills what
 * has completed, and lets libblkio submit and wait in one call, so that apart from the clock (vDSO) it costs nothing that a VMM's
 * I/O thread would not. Without --poll it blocks on libblkio's completion eventfd when nothing is complete.
 *
 * With --rate it sends bursts of --qd requests at fixed times instead and sleeps between them: equal load for every back end, so
 * that the CPU time a back end needs for one request can be compared. With --idle it attaches, sends one read and waits.
 *
 * CPU time of the back end (--backend-pid) is read from that process's CPU clock at both ends of the timed window: nanoseconds,
 * all threads, io_uring workers included.
 *
 * Result: one JSON object on stdout. Errors: one line on stderr, exit 1.
 */
#define _GNU_SOURCE
#include "../latency-histogram.h"

#include <blkio.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEPTH 1024

struct options {
    const char *socket;
    double seconds, warmup;
    unsigned depth;
    uint64_t block_bytes, span_bytes, rate;
    bool write, sequential, poll, idle;
    int cpu;
    pid_t backend;
    int queue_size;
};

struct load {
    struct options options;
    struct blkio *device;
    struct blkioq *queue;
    char *buffers;
    uint64_t blocks, next_block, random;
    uint64_t submitted_ns[MAX_DEPTH];
    struct blkio_completion done[MAX_DEPTH];
    struct histogram latency;
    uint64_t waits;
};

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("blkio-load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void check(int result, const char *what)
{
    if (result < 0)
        fail("%s: %s (%s)", what, strerror(-result), blkio_get_error_msg());
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) < 0)
        fail("clock_gettime: %s", strerror(errno));
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t backend_cpu_ns(pid_t pid)
{
    clockid_t clock;
    if (pid == 0)
        return 0;
    int result = clock_getcpuclockid(pid, &clock);
    if (result != 0)
        fail("CPU clock of process %d: %s", (int)pid, strerror(result));
    return clock_ns(clock);
}

/* What ran on any CPU outside of interrupts, and what the hypervisor took: scripts/bench finds out by it who else was running. */
static void machine_ticks(uint64_t *busy, uint64_t *steal)
{
    uint64_t user, nice, system, idle, iowait, irq, softirq;
    FILE *file = fopen("/proc/stat", "r");
    if (file == NULL || fscanf(file, "cpu %" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64,
                               &user, &nice, &system, &idle, &iowait, &irq, &softirq, steal) != 8)
        fail("/proc/stat cannot be read");
    fclose(file);
    *busy = user + nice + system;
}

static uint64_t next_offset(struct load *load)
{
    uint64_t block;
    if (load->options.sequential) {
        block = load->next_block;
        load->next_block = block + 1 == load->blocks ? 0 : block + 1;
    } else {
        /* xorshift64*, scaled to the range by the high half of a product: no division on the way of a request. */
        load->random ^= load->random >> 12;
        load->random ^= load->random << 25;
        load->random ^= load->random >> 27;
        uint64_t high = (load->random * 0x2545f4914f6cdd1du) >> 32;
        block = (high * load->blocks) >> 32;
    }
    return block * load->options.block_bytes;
}

static void submit(struct load *load, uint64_t slot, uint64_t now)
{
    uint64_t length = load->options.block_bytes;
    char *buffer = load->buffers + slot * length;
    load->submitted_ns[slot] = now;
    if (load->options.write)
        blkioq_write(load->queue, next_offset(load), buffer, length, (void *)(uintptr_t)slot, 0);
    else
        blkioq_read(load->queue, next_offset(load), buffer, length, (void *)(uintptr_t)slot, 0);
}

/* Submits what is staged and takes what is complete; with minimum > 0 waits for that many. */
static int reap(struct load *load, int minimum)
{
    int count = blkioq_do_io(load->queue, load->done, minimum, (int)load->options.depth, NULL);
    check(count, "I/O");
    for (int i = 0; i < count; i++)
        if (load->done[i].ret != 0)
            fail("request failed: %s (%s)", strerror(-load->done[i].ret),
                 load->done[i].error_msg ? load->done[i].error_msg : "no message");
    load->waits++;
    return count;
}

/* Keeps the queue at its depth until the deadline; requests still in flight then are left to the next call. */
static void run_closed(struct load *load, uint64_t deadline)
{
    int minimum = load->options.poll ? 0 : 1;
    uint64_t now;
    do {
        int count = reap(load, minimum);
        now = now_ns();
        for (int i = 0; i < count; i++) {
            uint64_t slot = (uint64_t)(uintptr_t)load->done[i].user_data;
            record(&load->latency, now - load->submitted_ns[slot]);
            submit(load, slot, now);
        }
    } while (now < deadline);
}

static void drain(struct load *load, unsigned in_flight)
{
    while (in_flight > 0)
        in_flight -= (unsigned)reap(load, load->options.poll ? 0 : 1);
}

/* One burst of --qd requests every qd/rate seconds; latency counts from the time a burst was due, so a stall is not hidden. */
static void run_paced(struct load *load, uint64_t deadline)
{
    double interval = 1e9 * load->options.depth / (double)load->options.rate;
    uint64_t start = now_ns();
    for (uint64_t burst = 0;; burst++) {
        uint64_t due = start + (uint64_t)((double)burst * interval);
        if (due >= deadline)
            return;
        struct timespec when = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
        for (unsigned slot = 0; slot < load->options.depth; slot++)
            submit(load, slot, due);
        for (unsigned left = load->options.depth; left > 0;) {
            int count = reap(load, load->options.poll ? 0 : 1);
            uint64_t now = now_ns();
            for (int i = 0; i < count; i++)
                record(&load->latency, now - due);
            left -= (unsigned)count;
        }
    }
}

static void attach(struct load *load)
{
    const struct options *options = &load->options;
    struct blkio_mem_region region;
    uint64_t capacity;

    check(blkio_create("virtio-blk-vhost-user", &load->device), "blkio_create");
    check(blkio_set_str(load->device, "path", options->socket), "path");
    check(blkio_connect(load->device), "connect");
    check(blkio_set_int(load->device, "num-queues", options->poll ? 0 : 1), "num-queues");
    check(blkio_set_int(load->device, "num-poll-queues", options->poll ? 1 : 0), "num-poll-queues");
    check(blkio_set_int(load->device, "queue-size", options->queue_size), "queue-size");
    check(blkio_start(load->device), "start");
    check(blkio_get_uint64(load->device, "capacity", &capacity), "capacity");
    if (options->span_bytes != 0 && options->span_bytes < capacity)
        capacity = options->span_bytes;
    load->blocks = capacity / options->block_bytes;
    if (load->blocks == 0 || load->blocks > UINT32_MAX)
        fail("a capacity of %" PRIu64 " bytes cannot be split into blocks of %" PRIu64, capacity, options->block_bytes);

    uint64_t length = (options->depth * options->block_bytes + 4095) & ~(uint64_t)4095;
    check(blkio_alloc_mem_region(load->device, &region, length), "memory");
    check(blkio_map_mem_region(load->device, &region), "map");
    load->buffers = region.addr;
    for (uint64_t i = 0; i < length; i++)
        load->buffers[i] = (char)(i * 131 + (i >> 12));
    load->queue = options->poll ? blkio_get_poll_queue(load->device, 0) : blkio_get_queue(load->device, 0);
}

static void sleep_seconds(double seconds)
{
    struct timespec time = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

static void run(struct load *load)
{
    const struct options *options = &load->options;
    uint64_t second = 1000000000u;
    uint64_t warm_ns = (uint64_t)(options->warmup * (double)second), run_ns = (uint64_t)(options->seconds * (double)second);
    unsigned in_flight = 0;

    if (options->idle) {
        submit(load, 0, now_ns());
        drain(load, 1);
        sleep_seconds(options->warmup);
    } else {
        /* At full speed also before a paced run: a back end that compiles its hot path while it runs has done so by then. */
        for (unsigned slot = 0; slot < options->depth; slot++)
            submit(load, slot, now_ns());
        run_closed(load, now_ns() + warm_ns);
        in_flight = options->depth;
        if (options->rate != 0) {
            drain(load, in_flight);
            in_flight = 0;
        }
    }

    uint64_t busy, steal, busy_end, steal_end;
    load->latency = (struct histogram){0};
    load->waits = 0;
    machine_ticks(&busy, &steal);
    uint64_t backend = backend_cpu_ns(options->backend), own = clock_ns(CLOCK_PROCESS_CPUTIME_ID), start = now_ns();
    if (options->idle)
        sleep_seconds(options->seconds);
    else if (options->rate != 0)
        run_paced(load, start + run_ns);
    else
        run_closed(load, start + run_ns);
    uint64_t elapsed = now_ns() - start;
    backend = backend_cpu_ns(options->backend) - backend;
    own = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own;
    machine_ticks(&busy_end, &steal_end);
    uint64_t tick_ns = second / (uint64_t)sysconf(_SC_CLK_TCK), count = load->latency.count, waits = load->waits;
    drain(load, in_flight);

    const struct histogram *latency = &load->latency;
    printf("{\"ios\":%" PRIu64 ",\"elapsedNs\":%" PRIu64 ",\"iops\":%.1f,\"bytesPerSecond\":%.0f,\"batches\":%" PRIu64
           ",\"backendCpuNs\":%" PRIu64 ",\"clientCpuNs\":%" PRIu64 ",\"machineCpuNs\":%" PRIu64
           ",\"stolenNs\":%" PRIu64 ",\"latencyNs\":{\"mean\":%.0f,\"p50\":%" PRIu64
           ",\"p90\":%" PRIu64 ",\"p99\":%" PRIu64 ",\"p999\":%" PRIu64 ",\"max\":%" PRIu64 "}}\n",
           count, elapsed, (double)count * 1e9 / (double)elapsed,
           (double)(count * options->block_bytes) * 1e9 / (double)elapsed, waits, backend, own,
           (busy_end - busy) * tick_ns, (steal_end - steal) * tick_ns,
           count ? (double)latency->sum_ns / (double)count : 0.0, percentile_ns(latency, 0.5), percentile_ns(latency, 0.9),
           percentile_ns(latency, 0.99), percentile_ns(latency, 0.999), latency->max_ns);
}

static double number(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == '\0' || *end != '\0' || value < 0)
        fail("not a number: %s", text);
    return value;
}

static void parse(struct options *options, int argc, char **argv)
{
    static const struct option names[] = {
        {"socket", 1, 0, 's'},  {"seconds", 1, 0, 't'}, {"warmup", 1, 0, 'w'}, {"qd", 1, 0, 'q'},
        {"bs", 1, 0, 'b'},      {"span", 1, 0, 'S'},    {"rw", 1, 0, 'r'},     {"rate", 1, 0, 'R'},
        {"cpu", 1, 0, 'c'},     {"poll", 0, 0, 'p'},    {"idle", 0, 0, 'i'},   {"backend-pid", 1, 0, 'B'},
        {"queue-size", 1, 0, 'Q'}, {0, 0, 0, 0},
    };
    *options = (struct options){.seconds = 3, .warmup = 0.5, .depth = 32, .block_bytes = 4096, .cpu = -1, .queue_size = 256};
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (name) {
        case 's': options->socket = optarg; break;
        case 't': options->seconds = number(optarg); break;
        case 'w': options->warmup = number(optarg); break;
        case 'q': options->depth = (unsigned)number(optarg); break;
        case 'b': options->block_bytes = (uint64_t)number(optarg); break;
        case 'S': options->span_bytes = (uint64_t)number(optarg); break;
        case 'R': options->rate = (uint64_t)number(optarg); break;
        case 'c': options->cpu = (int)number(optarg); break;
        case 'p': options->poll = true; break;
        case 'i': options->idle = true; break;
        case 'Q': options->queue_size = (int)number(optarg); break;
        case 'B': options->backend = (pid_t)number(optarg); break;
        case 'r':
            options->write = strcmp(optarg, "randwrite") == 0 || strcmp(optarg, "write") == 0;
            options->sequential = strcmp(optarg, "read") == 0 || strcmp(optarg, "write") == 0;
            if (!options->write && !options->sequential && strcmp(optarg, "randread") != 0)
                fail("--rw is randread, randwrite, read or write");
            break;
        default: exit(2);
        }
    }
    if (options->socket == NULL)
        fail("--socket is required");
    if (options->depth < 1 || options->depth > MAX_DEPTH)
        fail("--qd is 1 to %d", MAX_DEPTH);
    if (options->block_bytes < 512 || options->block_bytes % 512 != 0)
        fail("--bs is a multiple of 512");
}

int main(int argc, char **argv)
{
    static struct load load = {.random = 0x9e3779b97f4a7c15u};

    parse(&load.options, argc, argv);
    if (load.options.cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET((unsigned)load.options.cpu, &cpus);
        if (sched_setaffinity(0, sizeof(cpus), &cpus) < 0)
            fail("CPU %d: %s", load.options.cpu, strerror(errno));
    }
    attach(&load);
    run(&load);
    blkio_destroy(&load.device);
    return 0;
}
