/*
 * Both ends of AF_UNIX connections: what the host's side of a socket device is, and the load when there is no socket device.
 *
 *   unix-load serve PREFIX PORT                   listens at PREFIX_PORT (takes everything), PREFIX_PORT+1 (sends for ever) and
 *                                                 PREFIX_PORT+2 (sends back), until it is killed
 *   unix-load tx|rx|rr|connect PATH CONNECTIONS BYTES RAMP_MS TIME_MS
 *                                                 sends, receives, goes back and forth, or opens and ends connections
 *
 * A load prints one JSON object. A connection is opened, half-closed and at its end when the other side's end has come.
 */
#define _GNU_SOURCE
#include "../latency-histogram.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_BYTES (1 << 20)
#define BACKLOG 4096
#define EVENTS 256

enum role { SINK, SOURCE, ECHO, LISTENER_SINK, LISTENER_SOURCE, LISTENER_ECHO };

struct connection {
    int fd;
    enum role role;
    size_t missing;
    uint64_t since_ns;
};

static char buffer[MAX_BYTES];
static int epoll;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("unix-load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static int check(int result, const char *what)
{
    if (result < 0)
        fail("%s: %s", what, strerror(errno));
    return result;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        fail("%s is too long for the path of a socket", path);
    strcpy(address.sun_path, path);
    return address;
}

static void watch(struct connection *connection, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event), "epoll_ctl");
}

static struct connection *add(int fd, enum role role, uint32_t events)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    if (connection == NULL)
        fail("no memory");
    connection->fd = fd;
    connection->role = role;
    watch(connection, events);
    return connection;
}

static void drop(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

static void listen_at(const char *prefix, unsigned long port, enum role role)
{
    char path[256];
    snprintf(path, sizeof(path), "%s_%lu", prefix, port);
    struct sockaddr_un address = address_of(path);
    int fd = check(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    unlink(path);
    check(bind(fd, (struct sockaddr *)&address, sizeof(address)), path);
    check(listen(fd, BACKLOG), path);
    add(fd, role, EPOLLIN);
}

/* Whether a connection goes on after what a read or write of it returned. */
static bool goes_on(ssize_t moved)
{
    return moved > 0 || (moved < 0 && (errno == EAGAIN || errno == EINTR));
}

/* What is small enough for a socket's buffer, as the load makes sure, is written at once. */
static bool send_back(int fd, ssize_t length)
{
    for (ssize_t done = 0; done < length;) {
        ssize_t written = send(fd, buffer + done, (size_t)(length - done), MSG_NOSIGNAL);
        if (!goes_on(written))
            return false;
        if (written > 0)
            done += written;
    }
    return true;
}

static void serve_event(struct connection *connection)
{
    ssize_t moved;
    int fd = connection->fd;
    switch (connection->role) {
    case LISTENER_SINK:
    case LISTENER_SOURCE:
    case LISTENER_ECHO:
        while ((fd = accept4(connection->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
            enum role role = (enum role)(connection->role - LISTENER_SINK);
            add(fd, role, role == SOURCE ? EPOLLOUT : EPOLLIN);
        }
        return;
    case SINK:
        moved = read(fd, buffer, 65536);
        break;
    case SOURCE:
        moved = send(fd, buffer, 65536, MSG_NOSIGNAL);
        break;
    default:
        moved = read(fd, buffer, 65536);
        if (moved > 0 && !send_back(fd, moved))
            moved = 0;
    }
    if (!goes_on(moved))
        drop(connection);
}

static void serve(const char *prefix, unsigned long port)
{
    struct epoll_event events[EVENTS];
    listen_at(prefix, port, LISTENER_SINK);
    listen_at(prefix, port + 1, LISTENER_SOURCE);
    listen_at(prefix, port + 2, LISTENER_ECHO);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++)
            serve_event(events[i].data.ptr);
    }
}

enum load { TX, RX, RR, CONNECT };

static struct histogram latency;
static uint64_t bytes, operations;

static int connect_to(const char *path)
{
    struct sockaddr_un address = address_of(path);
    int fd = check(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    check(connect(fd, (struct sockaddr *)&address, sizeof(address)), path);
    check(fcntl(fd, F_SETFL, O_NONBLOCK), "fcntl");
    return fd;
}

static void ask(struct connection *connection, size_t length)
{
    connection->missing = length;
    connection->since_ns = now_ns();
    if (!send_back(connection->fd, (ssize_t)length))
        fail("the connection ended");
}

static void dial(struct connection *connection, const char *path, enum load load, size_t length)
{
    connection->since_ns = now_ns();
    connection->fd = connect_to(path);
    watch(connection, load == TX ? EPOLLOUT : EPOLLIN);
    if (load == RR)
        ask(connection, length);
    if (load == CONNECT)
        shutdown(connection->fd, SHUT_WR);
}

static void load_event(struct connection *connection, const char *path, enum load load, size_t length)
{
    ssize_t moved = load == TX ? send(connection->fd, buffer, length, MSG_NOSIGNAL) : read(connection->fd, buffer, 65536);
    if (load == CONNECT && (moved == 0 || (moved < 0 && errno == ECONNRESET))) {
        record(&latency, now_ns() - connection->since_ns);
        operations++;
        close(connection->fd);
        dial(connection, path, load, length);
        return;
    }
    if (!goes_on(moved))
        fail("the other side ended a connection");
    if (moved <= 0)
        return;
    bytes += (uint64_t)moved;
    if (load != RR || (connection->missing -= (size_t)moved) > 0)
        return;
    record(&latency, now_ns() - connection->since_ns);
    operations++;
    ask(connection, length);
}

static void run(enum load load, const char *path, unsigned long count, size_t length, uint64_t ramp_ns, uint64_t time_ns)
{
    struct epoll_event events[EVENTS];
    for (unsigned long i = 0; i < count; i++) {
        struct connection *connection = calloc(1, sizeof(*connection));
        if (connection == NULL)
            fail("no memory");
        dial(connection, path, load, length);
    }
    uint64_t begin = now_ns() + ramp_ns, now;
    bool measures = false;
    do {
        int ready = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < ready; i++)
            load_event(events[i].data.ptr, path, load, length);
        now = now_ns();
        if (!measures && now >= begin) {
            measures = true;
            begin = now;
            bytes = operations = 0;
            memset(&latency, 0, sizeof(latency));
        }
    } while (!measures || now - begin < time_ns);
    double seconds = (double)(now - begin) / 1e9;
    printf("{\"bytesPerSecond\":%.0f,\"operationsPerSecond\":%.1f,\"latencyUs\":{\"p50\":%.1f,\"p99\":%.1f}}\n", (double)bytes / seconds,
           (double)operations / seconds, (double)percentile_ns(&latency, 0.5) / 1e3, (double)percentile_ns(&latency, 0.99) / 1e3);
}

int main(int count, char **arguments)
{
    static const char *const names[] = {"tx", "rx", "rr", "connect"};
    signal(SIGPIPE, SIG_IGN);
    epoll = check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    if (count == 4 && strcmp(arguments[1], "serve") == 0)
        serve(arguments[2], strtoul(arguments[3], NULL, 10));
    for (unsigned load = 0; count == 7 && load < 4; load++) {
        if (strcmp(arguments[1], names[load]) != 0)
            continue;
        size_t length = strtoul(arguments[4], NULL, 10);
        if (length < 1 || length > MAX_BYTES)
            fail("writes of %zu bytes: from 1 to %d are possible", length, MAX_BYTES);
        run((enum load)load, arguments[2], strtoul(arguments[3], NULL, 10), length, strtoul(arguments[5], NULL, 10) * 1000000u,
            strtoul(arguments[6], NULL, 10) * 1000000u);
        return 0;
    }
    fail("usage: unix-load serve PREFIX PORT | tx|rx|rr|connect PATH CONNECTIONS BYTES RAMP_MS TIME_MS");
}
