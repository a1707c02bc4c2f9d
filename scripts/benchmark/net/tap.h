/* A TAP with the 12-byte header of a modern virtio-net device, made in the network namespace of the process. */
#ifndef RINGSIDE_BENCHMARK_TAP_H
#define RINGSIDE_BENCHMARK_TAP_H

#include "frames.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void bring_up(const char *name)
{
    struct ifreq request = {0};
    int socket_fd = (int)check(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    check(ioctl(socket_fd, SIOCGIFFLAGS, &request), "SIOCGIFFLAGS");
    request.ifr_flags |= IFF_UP;
    check(ioctl(socket_fd, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
    close(socket_fd);
}

static int open_tap(const char *name, bool blocking, unsigned offloads)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header_bytes = VNET_HEADER_BYTES;
    int fd = (int)check(open("/dev/net/tun", O_RDWR | O_CLOEXEC | (blocking ? 0 : O_NONBLOCK)), "/dev/net/tun");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    check(ioctl(fd, TUNSETIFF, &request), "TUNSETIFF");
    check(ioctl(fd, TUNSETVNETHDRSZ, &header_bytes), "TUNSETVNETHDRSZ");
    check(ioctl(fd, TUNSETOFFLOAD, offloads), "TUNSETOFFLOAD");
    bring_up(name);
    return fd;
}

#endif
