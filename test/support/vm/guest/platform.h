/*
 * The machine below the test guest: ports, serial output, the command line, the memory map, memory to use, interrupts.
 * Nothing here is about virtio.
 */

#ifndef PLATFORM_H
#define PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum boot { BOOT_PVH, BOOT_LINUX32, BOOT_LINUX64 };

/* A range of the memory map. Type 1 is RAM, in e820 and in PVH alike. */
struct memory_range {
  u64 start;
  u64 length;
  u32 type;
};

extern enum boot boot;
extern u64 rsdp;
extern u64 initramfs_start, initramfs_length;
extern struct memory_range memory_map[];
extern u32 memory_map_entries;

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u32 in32(u16 port) {
  u32 value;
  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u64 ticks(void) {
  u32 low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return (u64)high << 32 | low;
}
static inline void cpuid(u32 leaf, u32 subleaf, u32 registers[4]) {
  __asm__ volatile("cpuid"
                   : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]), "=d"(registers[3])
                   : "a"(leaf), "c"(subleaf));
}
static inline void relax(void) { __asm__ volatile("pause" : : : "memory"); }
static inline void compiler_barrier(void) { __asm__ volatile("" : : : "memory"); }
/* Stores before it are seen before loads behind it. A locked instruction: mfence is not emulated everywhere. */
static inline void full_barrier(void) { __asm__ volatile("lock; addl $0, (%%rsp)" : : : "memory"); }

static inline void fill_words(void *at, u64 word, u64 count) {
  __asm__ volatile("rep stosq" : "+D"(at), "+c"(count) : "a"(word) : "memory");
}
/* Whether `count` words are all `word`. */
static inline bool words_are(const void *at, u64 word, u64 count) {
  bool same;
  __asm__ volatile("repe scasq" : "+D"(at), "+c"(count), "=@cce"(same) : "a"(word) : "memory");
  return same;
}
static inline void copy_bytes(void *to, const void *from, u64 count) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}
/* A value that depends on every bit of `x`. */
static inline u64 mix(u64 x) { return (x + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9; }

/* Takes in what the loader left: memory map, command line, ACPI, initramfs. */
void read_boot_information(enum boot how, u64 information);

/* Serial output. A report is a line `name=value`, with `prefix` and a dot before it where there is one. */
void print(const char *text);
/* Waits until everything is out. */
void drain_serial(void);
void print_number(u64 value);
void print_hex(u64 value);
void report(const char *prefix, const char *name, u64 value);
void report_hex(const char *prefix, const char *name, u64 value);
void report_text(const char *prefix, const char *name, const char *value);

/* Parameters of the command line, `name=value`. */
const char *command_line(void);
bool text_parameter(const char *name, char *value, u32 size);
u64 number_parameter(const char *name, u64 otherwise);
/* Reads a number, decimal or 0x; moves `text` behind it. */
u64 parse_number(const char **text);
bool same_text(const char *a, const char *b);

/* Memory, aligned to pages and not cleared: below 4 GiB, or above where the machine has RAM there. */
void *allocate(u64 bytes);
void *allocate_high(u64 bytes);
u64 heap_end(void);
/* The address as a pointer, mapped now if it was not. */
void *reach(u64 address);

/* Ticks of about a second: tsc_mhz of the command line. */
u64 second(void);
void wait_ticks(u64 count);

/* Points a pin of the I/O APIC at a vector of this processor, edge triggered. */
void route_interrupt(u32 pin, u8 vector);
/* Whether the local APIC holds the vector, delivered and not taken: nobody takes interrupts here. */
bool interrupt_pending(u8 vector);
/* A vector that was not used yet. */
u8 fresh_vector(void);

#define LOCAL_APIC 0xfee00000u
static inline volatile u32 *local_apic(u32 offset) { return (volatile u32 *)(uintptr_t)(LOCAL_APIC + offset); }

_Noreturn void halt(void);
_Noreturn void power_off(void);

#endif
