/*
 * A program of either side, a test guest and the host, for what socat cannot do: many connections at the same time, and
 * messages (SOCK_SEQPACKET) whose lengths are looked at.
 *
 *   vsock-peer echo TYPE ADDRESS                takes any number of connections and sends back what comes
 *   vsock-peer exchange ADDRESS COUNT BYTES     COUNT streams that are all open before the first byte; each sends BYTES
 *                                               of its own, ends its direction, and expects them back and then the end
 *   vsock-peer messages ADDRESS LENGTH...       one connection of messages; each has to come back as it was sent
 *
 * TYPE is stream or seqpacket. ADDRESS is vsock:CID:PORT, unix:PATH, or hybrid:PORT:PATH, which connects to PATH and asks
 * there for PORT. Prints what it did; a failure is a sentence on stderr and status 1.
 */

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { MAX_CONNECTIONS = 1024, MAX_MESSAGE = 1 << 20, TIMEOUT_MS = 60000, IN_A_ROW = 64 };

static char buffer[MAX_MESSAGE + 1];
static char received[MAX_MESSAGE + 1];

static void fail(const char *what) {
    fprintf(stderr, "vsock-peer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int type_of(const char *name) { return strcmp(name, "seqpacket") == 0 ? SOCK_SEQPACKET : SOCK_STREAM; }

struct peer {
    struct sockaddr_storage address;
    socklen_t length;
    unsigned port; /* to ask for, or 0 */
};

static struct peer parse(const char *text) {
    struct peer peer = {.length = 0};
    struct sockaddr_vm *vm = (struct sockaddr_vm *)&peer.address;
    struct sockaddr_un *un = (struct sockaddr_un *)&peer.address;
    int start = 0;
    if (sscanf(text, "vsock:%u:%u", &vm->svm_cid, &vm->svm_port) == 2) {
        vm->svm_family = AF_VSOCK;
        peer.length = sizeof *vm;
        return peer;
    }
    if (sscanf(text, "hybrid:%u:%n", &peer.port, &start) != 1 && strncmp(text, "unix:", 5) == 0) start = 5;
    if (start == 0 || strlen(text + start) >= sizeof un->sun_path) {
        fprintf(stderr, "vsock-peer: not an address: %s\n", text);
        exit(2);
    }
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, text + start);
    peer.length = sizeof *un;
    return peer;
}

static int open_socket(const struct peer *peer, int type) {
    int fd = socket(peer->address.ss_family, type, 0);
    int room = MAX_MESSAGE;
    if (fd < 0) fail("socket");
    /* A message that is longer is refused. */
    if (peer->address.ss_family == AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    return fd;
}

static int connect_to(const struct peer *peer, int type) {
    int fd = open_socket(peer, type);
    char line[32];
    size_t length;
    if (connect(fd, (const struct sockaddr *)&peer->address, peer->length) < 0) fail("connect");
    if (peer->port == 0) return fd;
    length = (size_t)snprintf(line, sizeof line, "CONNECT %u\n", peer->port);
    if (send(fd, line, length, MSG_NOSIGNAL) != (ssize_t)length) fail("CONNECT");
    length = 0;
    do {
        ssize_t got = recv(fd, line + length, type == SOCK_SEQPACKET ? sizeof line : 1, 0);
        if (got < 0) fail("answer to CONNECT");
        if (got == 0) {
            fprintf(stderr, "vsock-peer: CONNECT %u: refused\n", peer->port);
            exit(1);
        }
        length += (size_t)got;
    } while (line[length - 1] != '\n' && length < sizeof line);
    if (strncmp(line, "OK ", 3) != 0) {
        fprintf(stderr, "vsock-peer: CONNECT %u: %.*s\n", peer->port, (int)length, line);
        exit(1);
    }
    return fd;
}

/* Bytes that tell which connection or message they belong to, and where in it they are. */
static char pattern(unsigned which, size_t position) { return (char)(which * 31 + position + (position >> 8)); }

static void fill(unsigned which, size_t length) {
    for (size_t i = 0; i < length; i++) buffer[i] = pattern(which, i);
}

static void send_all(int fd, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t sent = send(fd, buffer + done, length - done, MSG_NOSIGNAL);
        if (sent < 0) fail("send");
        done += (size_t)sent;
    }
}

static void echo(int type, const struct peer *peer) {
    static struct pollfd fds[MAX_CONNECTIONS + 1];
    int count = 1;
    fds[0].fd = open_socket(peer, type);
    fds[0].events = POLLIN;
    if (bind(fds[0].fd, (const struct sockaddr *)&peer->address, peer->length) < 0) fail("bind");
    if (listen(fds[0].fd, MAX_CONNECTIONS) < 0) fail("listen");
    puts("listening");
    fflush(stdout);
    for (;;) {
        if (poll(fds, (nfds_t)count, -1) < 0) fail("poll");
        for (int i = count - 1; i > 0; i--) {
            if (fds[i].revents == 0) continue;
            ssize_t length = recv(fds[i].fd, buffer, sizeof buffer, 0);
            if (length > 0 && send(fds[i].fd, buffer, (size_t)length, MSG_NOSIGNAL) == length) continue;
            close(fds[i].fd);
            fds[i] = fds[--count];
        }
        if (fds[0].revents != 0 && count <= MAX_CONNECTIONS) {
            fds[count].fd = accept(fds[0].fd, NULL, NULL);
            if (fds[count].fd < 0) fail("accept");
            int room = MAX_MESSAGE;
            if (peer->address.ss_family == AF_UNIX) setsockopt(fds[count].fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
            fds[count++].events = POLLIN;
        }
    }
}

static void expect_back(int fd, unsigned which, size_t length) {
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    size_t done = 0;
    for (;;) {
        if (poll(&readable, 1, TIMEOUT_MS) != 1) fail("nothing came back");
        ssize_t got = recv(fd, received, sizeof received, 0);
        if (got < 0) fail("recv");
        if (got == 0) break;
        for (ssize_t i = 0; i < got; i++, done++) {
            if (done >= length || received[i] != pattern(which, done)) {
                fprintf(stderr, "vsock-peer: connection %u: byte %zu of %zu is not what was sent\n", which, done, length);
                exit(1);
            }
        }
    }
    if (done != length) {
        fprintf(stderr, "vsock-peer: connection %u: the end after %zu of %zu bytes\n", which, done, length);
        exit(1);
    }
}

static void exchange(const struct peer *peer, int count, size_t length) {
    static int fds[MAX_CONNECTIONS];
    if (count > MAX_CONNECTIONS || length > MAX_MESSAGE) exit(2);
    for (int i = 0; i < count; i++) fds[i] = connect_to(peer, SOCK_STREAM);
    for (int i = 0; i < count; i++) {
        fill((unsigned)i, length);
        send_all(fds[i], length);
        if (shutdown(fds[i], SHUT_WR) < 0) fail("shutdown");
    }
    for (int i = 0; i < count; i++) {
        expect_back(fds[i], (unsigned)i, length);
        close(fds[i]);
    }
    printf("exchanged %zu bytes on %d connections\n", length, count);
}

static void send_message(int fd, unsigned which, size_t length) {
    fill(which, length);
    if (send(fd, buffer, length, MSG_NOSIGNAL | MSG_EOR) != (ssize_t)length) fail("send");
}

static void expect_message(int fd, unsigned which, size_t length) {
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    if (poll(&readable, 1, TIMEOUT_MS) != 1) fail("nothing came back");
    ssize_t got = recv(fd, received, sizeof received, 0);
    if (got < 0) fail("recv");
    fill(which, length);
    if ((size_t)got != length || memcmp(buffer, received, length) != 0) {
        fprintf(stderr, "vsock-peer: message %u of %zu bytes came back as %zd bytes\n", which, length, got);
        exit(1);
    }
}

static void messages(const struct peer *peer, int count, char **lengths) {
    int fd = connect_to(peer, SOCK_SEQPACKET);
    for (int i = 0; i < count; i++) {
        size_t length = strtoul(lengths[i], NULL, 10);
        if (length > MAX_MESSAGE) exit(2);
        send_message(fd, (unsigned)i, length);
        expect_message(fd, (unsigned)i, length);
    }
    /* Messages that wait in a row stay apart. */
    for (unsigned i = 0; i < IN_A_ROW; i++) send_message(fd, i, 1 + i);
    for (unsigned i = 0; i < IN_A_ROW; i++) expect_message(fd, i, 1 + i);
    close(fd);
    printf("%d messages came back\n", count + IN_A_ROW);
}

int main(int argc, char **argv) {
    struct rlimit files = {.rlim_cur = MAX_CONNECTIONS + 64, .rlim_max = MAX_CONNECTIONS + 64};
    setrlimit(RLIMIT_NOFILE, &files);
    if (argc == 4 && strcmp(argv[1], "echo") == 0) {
        struct peer peer = parse(argv[3]);
        echo(type_of(argv[2]), &peer);
    } else if (argc == 5 && strcmp(argv[1], "exchange") == 0) {
        struct peer peer = parse(argv[2]);
        exchange(&peer, atoi(argv[3]), strtoul(argv[4], NULL, 10));
    } else if (argc >= 4 && strcmp(argv[1], "messages") == 0) {
        struct peer peer = parse(argv[2]);
        messages(&peer, argc - 3, argv + 3);
    } else {
        return 2;
    }
    return 0;
}
