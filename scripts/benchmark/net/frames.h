/*
 * The frames of the network benchmark, and what its two programs share.
 *
 * A frame is Ethernet, IPv4 and UDP (TCP for a frame that is to be segmented), with the addresses that testpmd's txonly uses, so
 * that the kernel does the same work for frames of every origin: it sees a foreign Ethernet address and drops them in ip_rcv.
 */
#ifndef RINGSIDE_BENCHMARK_FRAMES_H
#define RINGSIDE_BENCHMARK_FRAMES_H

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/virtio_net.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VNET_HEADER_BYTES 12
#define IP_OFFSET sizeof(struct ethhdr)
#define TRANSPORT_OFFSET (IP_OFFSET + sizeof(struct iphdr))
#define TCP_HEADERS_BYTES (TRANSPORT_OFFSET + sizeof(struct tcphdr))
#define MAX_FRAME_BYTES 65535
#define MSS 1448

static void __attribute__((noreturn, format(printf, 1, 2), unused)) fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static long __attribute__((unused)) check(long result, const char *what)
{
    if (result < 0)
        fail("%s: %s", what, strerror(errno));
    return result;
}

static size_t __attribute__((unused)) parse_number(const char *text, size_t largest)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value == 0 || value > largest)
        fail("not a number from 1 to %zu: %s", largest, text);
    return value;
}

/* RFC 1071 over an even number of bytes. */
static uint16_t internet_checksum(const void *data, size_t bytes)
{
    const uint8_t *byte = data;
    uint32_t sum = 0;
    for (size_t i = 0; i < bytes; i += 2)
        sum += (uint32_t)(byte[i] << 8 | byte[i + 1]);
    sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~(sum + (sum >> 16)));
}

static void write_ethernet_and_ip(uint8_t *frame, size_t bytes, uint8_t protocol)
{
    static const struct ethhdr ethernet = {
        .h_dest = {0x02, 0, 0, 0, 0, 0}, .h_source = {0x02, 0, 0, 0, 0, 0x01}, .h_proto = 0};
    struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = protocol, .tot_len = htons((uint16_t)(bytes - IP_OFFSET)),
                       .saddr = htonl(0xc6120001), .daddr = htonl(0xc6120002)};
    memcpy(frame, &ethernet, sizeof(ethernet));
    frame[12] = 0x08;
    frame[13] = 0x00;
    ip.check = internet_checksum(&ip, sizeof(ip));
    memcpy(frame + IP_OFFSET, &ip, sizeof(ip));
}

/* Fills header and frame; with `gso` the frame is one TCP segment that is to be cut into pieces of MSS bytes. */
static void __attribute__((unused)) write_frame(struct virtio_net_hdr *header, uint8_t *frame, size_t bytes, bool gso)
{
    memset(header, 0, sizeof(*header));
    memset(frame, 0, bytes);
    if (bytes < (gso ? TCP_HEADERS_BYTES : TRANSPORT_OFFSET + sizeof(struct udphdr)))
        fail("%zu bytes do not hold the headers of a frame", bytes);
    write_ethernet_and_ip(frame, bytes, gso ? IPPROTO_TCP : IPPROTO_UDP);
    if (!gso) {
        struct udphdr udp = {.source = htons(9), .dest = htons(9), .len = htons((uint16_t)(bytes - TRANSPORT_OFFSET))};
        memcpy(frame + TRANSPORT_OFFSET, &udp, sizeof(udp));
        return;
    }
    struct tcphdr tcp = {.source = htons(9), .dest = htons(9), .doff = 5, .ack = 1, .window = htons(65535)};
    memcpy(frame + TRANSPORT_OFFSET, &tcp, sizeof(tcp));
    *header = (struct virtio_net_hdr){
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .hdr_len = TCP_HEADERS_BYTES,
        .gso_size = MSS, .csum_start = TRANSPORT_OFFSET, .csum_offset = offsetof(struct tcphdr, check)};
}

#endif
