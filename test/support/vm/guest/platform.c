/*
 * Boot information, command line, serial output and memory. Sources: Xen public/arch-x86/hvm/start_info.h; Linux
 * Documentation/arch/x86/zero-page.rst; 16550 data sheet.
 */

#include "platform.h"

#define COM1 0x3f8
#define MAX_RANGES 64
#define HEAP_START 0x400000ull
#define FOUR_GIB 0x100000000ull
#define GIB 0x40000000ull

enum boot boot;
u64 rsdp;
u64 initramfs_start, initramfs_length;
struct memory_range memory_map[MAX_RANGES];
u32 memory_map_entries;

extern u64 directory_pointers[512];

static char line[4096];
static u64 heap = HEAP_START;
static u64 high_heap, high_heap_end;

void *memset(void *at, int value, size_t count) {
  u8 *bytes = at;
  for (size_t i = 0; i < count; i++) bytes[i] = (u8)value;
  return at;
}

void *memcpy(void *to, const void *from, size_t count) {
  copy_bytes(to, from, count);
  return to;
}

static u64 at64(u64 address) { return *(u64 *)address; }
static u32 at32(u64 address) { return *(u32 *)address; }

static void add_range(u64 start, u64 length, u32 type) {
  if (memory_map_entries < MAX_RANGES) memory_map[memory_map_entries++] = (struct memory_range){start, length, type};
}

static void copy_line(u64 address) {
  const char *from = reach(address);
  u32 length = 0;
  while (length < sizeof line - 1 && from[length] != 0) {
    line[length] = from[length];
    length++;
  }
}

void read_boot_information(enum boot how, u64 information) {
  boot = how;
  reach(information);
  if (how == BOOT_PVH) {
    u64 map = at64(information + 40);
    u32 entries = at32(information + 48);
    if (at32(information) != 0x336ec578) print("error=start_info has no magic\n");
    report("", "start_info.version", at32(information + 4));
    reach(map);
    for (u32 i = 0; i < entries; i++) add_range(at64(map + i * 24), at64(map + i * 24 + 8), at32(map + i * 24 + 16));
    if (at32(information + 12) > 0) {
      u64 module = at64(information + 16);
      initramfs_start = at64(module);
      initramfs_length = at64(module + 8);
    }
    copy_line(at64(information + 24));
    rsdp = at64(information + 32);
    return;
  }
  u32 entries = *(u8 *)(information + 0x1e8);
  for (u32 i = 0; i < entries; i++) {
    u64 entry = information + 0x2d0 + i * 20;
    add_range(at64(entry), at64(entry + 8), at32(entry + 16));
  }
  initramfs_start = at32(information + 0x218) | (u64)at32(information + 0x0c0) << 32;
  initramfs_length = at32(information + 0x21c) | (u64)at32(information + 0x0c4) << 32;
  copy_line(at32(information + 0x228) | (u64)at32(information + 0x0c8) << 32);
  rsdp = at64(information + 0x070);
}

/*
 * Waits for a bit of the line status register, not forever: the port may have nobody at it. second() is not known yet when
 * the first line is printed.
 */
static void await_line_status(u8 bit) {
  for (u64 start = ticks(); (in8(COM1 + 5) & bit) == 0 && ticks() - start < 1000000000;) relax();
}

void print(const char *text) {
  static bool ready;
  // Enables the FIFOs.
  if (!ready) out8(COM1 + 2, 1);
  ready = true;
  u64 count = 0;
  while (text[count] != 0) count++;
  while (count > 0) {
    // The transmitter's FIFO is empty: there is room for 16.
    await_line_status(0x20);
    u64 some = count < 16 ? count : 16;
    count -= some;
    __asm__ volatile("rep outsb" : "+S"(text), "+c"(some) : "d"(COM1) : "memory");
  }
}

void drain_serial(void) { await_line_status(0x40); }

static void print_digits(u64 value, u32 base) {
  char digits[21];
  u32 at = sizeof digits - 1;
  digits[at] = 0;
  do {
    digits[--at] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  print(digits + at);
}

void print_number(u64 value) { print_digits(value, 10); }

void print_hex(u64 value) {
  print("0x");
  print_digits(value, 16);
}

static void print_name(const char *prefix, const char *name) {
  if (prefix[0] != 0) {
    print(prefix);
    print(".");
  }
  print(name);
  print("=");
}

void report(const char *prefix, const char *name, u64 value) {
  print_name(prefix, name);
  print_number(value);
  print("\n");
}

void report_hex(const char *prefix, const char *name, u64 value) {
  print_name(prefix, name);
  print_hex(value);
  print("\n");
}

void report_text(const char *prefix, const char *name, const char *value) {
  print_name(prefix, name);
  print(value);
  print("\n");
}

const char *command_line(void) { return line; }

static const char *find_parameter(const char *name) {
  for (const char *at = line; *at != 0; at++) {
    if (at != line && at[-1] != ' ') continue;
    u32 i = 0;
    while (name[i] != 0 && at[i] == name[i]) i++;
    if (name[i] == 0 && at[i] == '=') return at + i + 1;
  }
  return NULL;
}

bool text_parameter(const char *name, char *value, u32 size) {
  const char *at = find_parameter(name);
  u32 i = 0;
  for (; at != NULL && i < size - 1 && at[i] != 0 && at[i] != ' '; i++) value[i] = at[i];
  value[i] = 0;
  return at != NULL;
}

u64 parse_number(const char **text) {
  const char *at = *text;
  u32 base = 10;
  u64 value = 0;
  if (at[0] == '0' && at[1] == 'x') {
    base = 16;
    at += 2;
  }
  for (;; at++) {
    u32 digit = *at >= '0' && *at <= '9' ? (u32)(*at - '0') : *at >= 'a' && *at <= 'f' ? (u32)(*at - 'a' + 10) : 99;
    if (digit >= base) break;
    value = value * base + digit;
  }
  *text = at;
  return value;
}

u64 number_parameter(const char *name, u64 otherwise) {
  const char *at = find_parameter(name);
  return at == NULL ? otherwise : parse_number(&at);
}

bool same_text(const char *a, const char *b) {
  while (*a != 0 && *a == *b) a++, b++;
  return *a == *b;
}

void *reach(u64 address) {
  u64 gib = address / GIB;
  if (gib < 512 && directory_pointers[gib] == 0) {
    u64 *directory = allocate(4096);
    for (u64 i = 0; i < 512; i++) directory[i] = gib * GIB + (i << 21) + 0x83;
    directory_pointers[gib] = (u64)directory + 3;
  }
  return (void *)address;
}

void *allocate(u64 bytes) {
  // Several processors may ask at once.
  return (void *)__atomic_fetch_add(&heap, (bytes + 4095) & ~4095ull, __ATOMIC_SEQ_CST);
}

u64 heap_end(void) { return heap; }

void *allocate_high(u64 bytes) {
  for (u32 i = 0; high_heap == 0 && i < memory_map_entries; i++) {
    struct memory_range *range = &memory_map[i];
    if (range->type != 1 || range->start < FOUR_GIB) continue;
    // A page away from the edge, which the memory job writes to; high=ADDRESS is where it is to be.
    u64 from = number_parameter("high", range->start);
    high_heap = from < range->start || from >= range->start + range->length ? range->start : from;
    high_heap += 4096;
    high_heap_end = range->start + range->length - 4096;
  }
  bytes = (bytes + 4095) & ~4095ull;
  if (bytes > high_heap_end - high_heap) return allocate(bytes);
  u64 at = high_heap;
  high_heap += bytes;
  for (u64 address = at; address < high_heap; address += GIB) reach(address);
  return reach(high_heap - 1) == NULL ? NULL : (void *)at;
}

u64 second(void) {
  static u64 count;
  if (count == 0) count = number_parameter("tsc_mhz", 2000) * 1000000;
  return count;
}

void wait_ticks(u64 count) {
  for (u64 start = ticks(); ticks() - start < count;) relax();
}
