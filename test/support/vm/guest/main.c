/*
 * The test guest's program: the jobs of its command line, one after the other, and then its end.
 *
 *     job=info,blk,... [parameters of the jobs] [end=poweroff|reset|i8042|triplefault|halt|lost|spin]
 *
 * It polls and takes no interrupts, so that it also runs where a hypervisor emulates and has no iret.
 */

#include "blk.h"
#include "iommu.h"
#include "jobs.h"
#include "machine.h"
#include "platform.h"
#include "virtio.h"

static const char *const boot_names[] = {"pvh", "linux32", "linux64"};

/* Prints what the machine told and what is in it. */
void job_info(void) {
  report_text("", "cmdline", command_line());
  for (u32 i = 0; i < memory_map_entries; i++) {
    print("map=");
    print_hex(memory_map[i].start);
    print(",");
    print_hex(memory_map[i].length);
    print(",");
    print_number(memory_map[i].type);
    print("\n");
  }
  report_acpi();
  report("", "initramfs", initramfs_length);
  if (initramfs_length >= 8) {
    reach(initramfs_start + initramfs_length);
    report_hex("", "initramfs.start", *(u64 *)reach(initramfs_start));
    report_hex("", "initramfs.end", *(u64 *)(initramfs_start + initramfs_length - 8));
  }
  report("", "devices", count_devices());
  struct device device;
  for (u32 n = 0; n < 32; n++) {
    if (!probe_device(n, &device)) continue;
    print("device=");
    print_number(n);
    print(",");
    print_number(device.id);
    print(",");
    print_hex(offered_features(&device));
    print("\n");
  }
}

/* Writes to the ends of each range of RAM, and to each GiB in it, and reads all of it again. */
void job_memory(void) {
  u64 bytes = 0, touched = 0, mismatches = 0;
  for (u32 pass = 0; pass < 2; pass++) {
    for (u32 i = 0; i < memory_map_entries; i++) {
      u64 start = memory_map[i].start, end = start + memory_map[i].length;
      if (memory_map[i].type != 1) continue;
      if (pass == 0) bytes += end - start;
      // The guest itself is in the second range.
      if (start < 0x100000) start = end - 8;
      else if (start < 0x100000000) start = 0x4000000;
      for (u64 at = start; at < end; at = at == end - 8 ? end : at + 0x40000000 < end ? at + 0x40000000 : end - 8) {
        volatile u64 *word = reach(at);
        if (pass == 0) *word = mix(at);
        else mismatches += *word != mix(at);
        touched++;
      }
    }
  }
  report("memory", "bytes", bytes);
  report("memory", "touched", touched / 2);
  report("memory", "mismatches", mismatches);
}

/* What a driver of a 16550 looks for: a scratch register, FIFOs, an empty transmitter. */
void job_serial(void) {
  drain_serial();
  out8(0x3ff, 0x5a);
  report_hex("serial", "scratch", in8(0x3ff));
  out8(0x3fa, 0x07);
  report("serial", "fifo", (in8(0x3fa) & 0xc0) == 0xc0);
  drain_serial();
  out8(0x3fb, 0x83);
  out8(0x3f8, 0x01);
  out8(0x3f9, 0x00);
  u32 divisor = in8(0x3f8) | (u32)in8(0x3f9) << 8;
  out8(0x3fb, 0x03);
  report_hex("serial", "divisor", divisor);
  report("serial", "empty", (in8(0x3fd) & 0x60) == 0x60);
}

/* Prints a line that comes in. */
void job_echo(void) {
  char text[80];
  u32 length = 0;
  print("echo.ready=1\n");
  for (u64 start = ticks(); length < sizeof text - 1 && ticks() - start < 60 * second();) {
    if ((in8(0x3fd) & 1) == 0) continue;
    text[length] = (char)in8(0x3f8);
    if (text[length] == '\n' || text[length] == '\r') break;
    length++;
  }
  text[length] = 0;
  report_text("echo", "text", text);
}

/*
 * job=exits: n=N port=P | address=A. Writes to where nothing is: each one leaves the guest and comes back. The clock is the
 * reader's, as in job=bench.
 */
void job_exits(void) {
  u64 address = number_parameter("address", 0), count = number_parameter("n", 1000);
  u16 port = (u16)number_parameter("port", 0);
  volatile u8 *at = reach(address);
  print("exits.start=1\n");
  drain_serial();
  for (u64 i = 0; i < count; i++) {
    if (address != 0) *at = 0;
    else out8(port, 0);
  }
  print("exits.end=1\n");
  report("exits", "count", count);
}

static volatile u64 seen_processors;

static void show_up(u32 processor) {
  (void)processor;
  // The identifier of a local APIC is in the high byte of its register.
  __atomic_fetch_or(&seen_processors, 1ull << (*local_apic(0x20) >> 24), __ATOMIC_SEQ_CST);
}

/* job=cpus: cpus=N. Starts the other processors; each shows that it runs by the number of its local APIC. */
void job_cpus(void) {
  u32 count = (u32)number_parameter("cpus", 2);
  show_up(0);
  report("cpus", "started", 1 + start_processors(count - 1, show_up));
  for (u64 start = ticks(); seen_processors != (1ull << count) - 1 && ticks() - start < 5 * second();) relax();
  report_hex("cpus", "seen", seen_processors);
}

static const struct {
  const char *name;
  void (*run)(void);
} jobs[] = {
    {"info", job_info},     {"memory", job_memory}, {"serial", job_serial}, {"echo", job_echo},
    {"blk", job_blk},       {"boots", job_boots},   {"resize", job_resize}, {"kicks", job_kicks},
    {"load", job_load},     {"bench", job_bench},   {"smp", job_smp},       {"net", job_net},
    {"fs", job_fs},         {"vsock", job_vsock},   {"hostile", job_hostile},
    {"cpus", job_cpus},     {"race", job_race},     {"exits", job_exits},
    {"iommu", job_iommu},
    {"pattern", job_pattern},
    {"dirty", job_dirty},
    {"hotplug", job_hotplug},
    {"mem", job_mem},
};

static void run_job(const char *name) {
  for (u32 i = 0; i < sizeof jobs / sizeof jobs[0]; i++) {
    if (!same_text(name, jobs[i].name)) continue;
    jobs[i].run();
    report_text("", "done", name);
    return;
  }
  report_text("", "unknown_job", name);
}

_Noreturn void guest_main(enum boot how, u64 information, u32 segments) {
  // First of all the sign of life: what was measured from exec to here is the time to the first instruction.
  report_text("", "boot", boot_names[how]);
  if (segments != 0) report_hex("", "segments", segments);
  read_boot_information(how, information);
  char list[128], end[16];
  if (!text_parameter("job", list, sizeof list)) copy_bytes(list, "info", 5);
  for (char *at = list, *name = list;; at++) {
    if (*at != ',' && *at != 0) continue;
    bool last = *at == 0;
    *at = 0;
    run_job(name);
    if (last) break;
    name = at + 1;
  }
  if (!text_parameter("end", end, sizeof end)) copy_bytes(end, "poweroff", 9);
  end_guest(end);
}
