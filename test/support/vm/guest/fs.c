/*
 * job=fs: file=NAME. Speaks FUSE to a virtio-fs device: INIT, and then LOOKUP, OPEN and READ of a file in its root, whose
 * text it reports. Sources: VIRTIO 1.3, 5.11 File System Device; linux/fuse.h.
 */

#include "jobs.h"
#include "virtio.h"

#define FUSE_LOOKUP 1
#define FUSE_OPEN 14
#define FUSE_READ 15
#define FUSE_INIT 26

static struct queue requests;
static u8 *question, *answer;
static u64 unique;

/* One request with `length` bytes of arguments behind the header. Returns the error of the answer, or -1 without one. */
static u32 ask(u32 operation, u64 node, u32 length) {
  u32 *header = (u32 *)question;
  header[0] = 40 + length;
  header[1] = operation;
  *(u64 *)(question + 8) = ++unique;
  *(u64 *)(question + 16) = node;
  fill_words(question + 24, 0, 2);
  fill_words(answer, 0, 32);
  set_descriptor(&requests, 0, question, 40 + length, DESC_NEXT, 1);
  set_descriptor(&requests, 1, answer, 4096, DESC_WRITE, 0);
  offer(&requests, 0);
  publish_and_kick(&requests);
  u32 head, used;
  if (!await_used(&requests, &head, &used, 10) || used < 16 || *(u64 *)(answer + 8) != unique) return ~0u;
  return 0 - *(u32 *)(answer + 4);
}

void job_fs(void) {
  static struct device device;
  if (!find_device(DEVICE_FS, 0, &device)) {
    print("error=no file system\n");
    return;
  }
  // Queue 0 is for requests of high priority.
  static struct queue high_priority;
  if (!negotiate(&device, 0) || !set_up_queue(&high_priority, &device, 0, 64, false) ||
      !set_up_queue(&requests, &device, 1, 64, true)) {
    print("error=file system set-up\n");
    return;
  }
  set_driver_ok(&device);
  question = allocate(4096);
  answer = allocate_high(4096);
  char tag[40] = {0};
  for (u32 i = 0; i < 36; i++) tag[i] = *(volatile char *)(device.base + REGISTER_CONFIG + i);
  report_text("fs", "tag", tag);
  report("fs", "queues", read_register(&device, REGISTER_CONFIG + 36));

  u32 *arguments = (u32 *)(question + 40);
  arguments[0] = 7;
  arguments[1] = 31;
  arguments[2] = 4096;
  arguments[3] = 0;
  report("fs", "init", ask(FUSE_INIT, 0, 16));
  report("fs", "major", *(u32 *)(answer + 16));
  report("fs", "minor", *(u32 *)(answer + 20));

  char name[64];
  if (!text_parameter("file", name, sizeof name)) return;
  u32 length = 0;
  do question[40 + length] = (u8)name[length];
  while (name[length++] != 0);
  u32 error = ask(FUSE_LOOKUP, 1, length);
  report("fs", "lookup", error);
  if (error != 0) return;
  u64 node = *(u64 *)(answer + 16);
  fill_words(arguments, 0, 1);
  report("fs", "open", ask(FUSE_OPEN, node, 8));
  u64 handle = *(u64 *)(answer + 16);
  fill_words(arguments, 0, 5);
  *(u64 *)arguments = handle;
  arguments[4] = 2048;
  report("fs", "read", ask(FUSE_READ, node, 40));
  report("fs", "length", *(u32 *)answer - 16);
  answer[*(u32 *)answer & 0xfff] = 0;
  report_text("fs", "text", (char *)answer + 16);
}
