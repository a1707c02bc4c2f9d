/*
 * Interrupt controllers, other processors, ACPI tables and the ends of a guest. Sources: Intel SDM volume 3, chapter 11
 * (APIC); 82093AA I/O APIC data sheet; ACPI 6.5, 5.2.5 RSDP, 5.2.8 XSDT, 5.2.9 FADT, 5.2.12 MADT, 4.8.3.7 sleep control.
 */

#include "machine.h"
#include "platform.h"

#define IO_APIC 0xfec00000u
#define APIC_SPURIOUS 0xf0
#define APIC_IRR 0x200
#define APIC_COMMAND_LOW 0x300
#define APIC_COMMAND_HIGH 0x310
#define ALL_BUT_SELF 0xc0000
#define INIT_ASSERT 0x4500
#define STARTUP 0x4600
#define TRAMPOLINE 0x10000

extern u8 trampoline[], trampoline_end[];
extern volatile u64 processors_started;

static u8 next_vector = 0x40;

u8 fresh_vector(void) { return next_vector++; }

static void io_apic_write(u32 index, u32 value) {
  *(volatile u32 *)(uintptr_t)IO_APIC = index;
  *(volatile u32 *)(uintptr_t)(IO_APIC + 0x10) = value;
}

void route_interrupt(u32 pin, u8 vector) {
  *local_apic(APIC_SPURIOUS) = 0x1ff;
  io_apic_write(0x10 + 2 * pin, 0x10000);
  io_apic_write(0x11 + 2 * pin, 0);
  io_apic_write(0x10 + 2 * pin, vector);
}

bool interrupt_pending(u8 vector) {
  return (*local_apic(APIC_IRR + (vector / 32) * 0x10) >> (vector % 32)) & 1;
}

static void send_to_all(u32 command) {
  *local_apic(APIC_COMMAND_HIGH) = 0;
  *local_apic(APIC_COMMAND_LOW) = ALL_BUT_SELF | command;
}

static void (*volatile processor_work)(u32 processor);

_Noreturn void processor_main(u32 processor) {
  while (processor_work == NULL) relax();
  processor_work(processor);
  for (;;) __asm__ volatile("cli; hlt");
}

u32 start_processors(u32 count, void (*work)(u32 processor)) {
  processor_work = work;
  processors_started = 0;
  copy_bytes(reach(TRAMPOLINE), trampoline, (u64)(trampoline_end - trampoline));
  *local_apic(APIC_SPURIOUS) = 0x1ff;
  send_to_all(INIT_ASSERT);
  wait_ticks(second() / 100);
  send_to_all(STARTUP | TRAMPOLINE >> 12);
  wait_ticks(second() / 1000);
  send_to_all(STARTUP | TRAMPOLINE >> 12);
  for (u64 start = ticks(); processors_started < count && ticks() - start < 5 * second();) relax();
  return (u32)processors_started;
}

static bool sums_to_zero(const u8 *table, u32 length) {
  u8 sum = 0;
  for (u32 i = 0; i < length; i++) sum += table[i];
  return sum == 0;
}

static bool is_signature(const u8 *table, const char *signature) {
  for (u32 i = 0; i < 4; i++) {
    if (table[i] != (u8)signature[i]) return false;
  }
  return true;
}

static const u8 *table_at(u64 address) {
  reach(address + 4096);
  return reach(address);
}

static void report_table(const u8 *table) {
  char name[5] = {(char)table[0], (char)table[1], (char)table[2], (char)table[3], 0};
  report_text("acpi", name, sums_to_zero(table, *(const u32 *)(table + 4)) ? "ok" : "checksum");
}

/* Loaders that know no better leave the pointer where a BIOS has it: ACPI 6.5, 5.2.5.1. */
static void find_pointer(void) {
  for (u64 at = 0xe0000; rsdp == 0 && at < 0x100000; at += 16) {
    if (is_signature((const u8 *)at, "RSD ") && is_signature((const u8 *)at + 4, "PTR ")) rsdp = at;
  }
}

/* The table with a signature, or NULL. */
static const u8 *find_table(const char *signature) {
  find_pointer();
  if (rsdp == 0) return NULL;
  const u8 *xsdt = table_at(*(const u64 *)(table_at(rsdp) + 24));
  for (u32 at = 36; at + 8 <= *(const u32 *)(xsdt + 4); at += 8) {
    const u8 *table = table_at(*(const u64 *)(xsdt + at));
    if (is_signature(table, signature)) return table;
  }
  return NULL;
}

/* The nodes of a virtual I/O topology: ACPI 6.5, 5.2, Virtual I/O Translation Table. */
static void report_viot(const u8 *table) {
  report_table(table);
  const u8 *node = table + *(const u16 *)(table + 38);
  for (u32 left = *(const u16 *)(table + 36); left > 0; left--, node += *(const u16 *)(node + 2)) {
    print("acpi.viot=");
    print_number(node[0]);
    print(",");
    print_number(*(const u32 *)(node + 4));
    print(",");
    print_hex(*(const u64 *)(node + 8));
    print("\n");
  }
}

void report_acpi(void) {
  find_pointer();
  report_hex("acpi", "rsdp", rsdp);
  if (rsdp == 0) return;
  const u8 *pointer = table_at(rsdp);
  if (!sums_to_zero(pointer, 20) || !sums_to_zero(pointer, 36)) print("acpi.RSDP=checksum\n");
  report_table(table_at(*(const u64 *)(pointer + 24)));
  const u8 *table = find_table("FACP");
  if (table != NULL) {
    report_table(table);
    // HW_REDUCED_ACPI is bit 20 of the flags; X_DSDT is at 140.
    report("acpi", "hardware_reduced", (*(const u32 *)(table + 112) >> 20) & 1);
    report_hex("acpi", "reset_register", *(const u64 *)(table + 120));
    report_hex("acpi", "sleep_control", *(const u64 *)(table + 248));
    report_table(table_at(*(const u64 *)(table + 140)));
  }
  table = find_table("VIOT");
  if (table != NULL) report_viot(table);
  table = find_table("APIC");
  if (table == NULL) return;
  report_table(table);
  u32 processors = 0;
  for (u32 entry = 44; entry + 2 <= *(const u32 *)(table + 4) && table[entry + 1] != 0; entry += table[entry + 1]) {
    if (table[entry] == 0 && (*(const u32 *)(table + entry + 4) & 1) != 0) processors++;
  }
  report("acpi", "processors", processors);
}

/* Writes a byte to the register that the FADT describes at `offset`: address space (0 memory, 1 ports) and address. */
static void write_acpi_register(u32 offset, u8 value) {
  const u8 *table = find_table("FACP");
  if (table == NULL) return;
  u64 address = *(const u64 *)(table + offset + 4);
  if (table[offset] == 1) out8((u16)address, value);
  else *(volatile u8 *)reach(address) = value;
}

_Noreturn void halt(void) {
  for (;;) __asm__ volatile("cli; hlt");
}

_Noreturn void power_off(void) {
  drain_serial();
  // SLEEP_CONTROL_REG: SLP_EN with SLP_TYP 5.
  write_acpi_register(244, 1 << 5 | 5 << 2);
  halt();
}

static _Noreturn void triple_fault(void) {
  static const struct {
    u16 limit;
    u64 base;
  } __attribute__((packed)) none = {0, 0};
  __asm__ volatile("lidt %0; ud2" : : "m"(none));
  halt();
}

_Noreturn void end_guest(const char *how) {
  report_text("", "end", how);
  drain_serial();
  // RESET_REG, and RESET_VALUE at 128.
  if (same_text(how, "reset")) write_acpi_register(116, find_table("FACP")[128]);
  if (same_text(how, "i8042")) out8(0x64, 0xfe);
  if (same_text(how, "triplefault")) triple_fault();
  if (same_text(how, "halt")) halt();
  // Code where nothing is: the machine cannot go on.
  if (same_text(how, "lost")) ((void (*)(void))(uintptr_t)reach(0xd8000000))();
  if (same_text(how, "spin")) {
    for (;;) relax();
  }
  power_off();
}
