# shellcheck shell=sh
# A virtual machine on KVM whose disk is a process of its own, managed over HTTP. Its guest is the small program without an
# operating system that the tests have too, which runs where KVM only emulates as well. Read by scripts/demo.

why_no_vm() {
  if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
    echo 'there is no /dev/kvm, or no right to it'
  elif [ "$(uname -m)" != x86_64 ]; then
    echo 'the machine of this VMM is x86-64'
  elif ! command -v gcc >/dev/null; then
    echo 'not installed: gcc, which compiles the guest (scripts/setup --peers installs it)'
  fi
}

compile_guest() {
  (
    cd test/support/vm/guest
    gcc -m64 -ffreestanding -nostdlib -static -fno-pic -no-pie -O2 -mgeneral-regs-only -mno-red-zone \
      -fcf-protection=none -fno-stack-protector -fno-asynchronous-unwind-tables -Wl,--build-id=none \
      -Wl,-z,noexecstack,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments -T guest.ld -DPVH -Wl,-e,pvh_start \
      -o "$1" boot.S ./*.c
  ) >"$work/out" 2>&1 || {
    indent "$work/out"
    fail 'the guest cannot be compiled'
  }
}

ctl() { ringside ctl --api-socket "$api" "$@"; }
said() { grep -q "^$1" "$work/serial.log"; }

show_vm() {
  reason=$(why_no_vm)
  if [ -n "$reason" ]; then
    say "A virtual machine is not shown: $reason."
    return
  fi
  guest_program=$work/guest.elf
  compile_guest "$guest_program"
  vm_image=$work/vm.img
  truncate -s 64M "$vm_image"

  say 'A virtual machine of 96 GiB (the host gives pages when they are touched). The VMM starts the back end of its disk:'
  run ringside vm run --kernel "$guest_program" --cmdline 'job=info,memory,blk disk=0 mb=4' --memory 96G \
    --disk "path=$vm_image"
  if ! grep -q '^disk0.mismatches=0' "$work/out" || ! grep -q '^memory.mismatches=0' "$work/out"; then
    fail 'the guest did not find what it wrote'
  fi

  show_vm_api
}

show_vm_api() {
  api=$work/api.sock
  disk_socket=$work/vm-disk.sock
  image=$vm_image
  say 'Over the HTTP API of Cloud Hypervisor: a VMM waits, and the disk is served by a daemon that somebody else started:'
  start_disk
  await_backend "$disk" "$disk_socket"
  show_command "ringside vm serve --api-socket $api &"
  become_ringside vm serve --api-socket "$api" --log-level warn 2>"$work/vmm.log" </dev/null &
  vmm=$!
  children="$vmm $children"
  await_until 'the VMM' 20 ctl ping
  cat >"$work/vm.json" <<JSON
{ "payload": { "kernel": "$guest_program", "cmdline": "job=load requests=12000 qd=32" },
  "memory": { "size": 268435456 },
  "disks": [{ "vhost_user": true, "vhost_socket": "$disk_socket" }],
  "serial": { "mode": "File", "file": "$work/serial.log" } }
JSON
  indent "$work/vm.json"
  run ringside ctl --api-socket "$api" create "$work/vm.json"
  run ringside ctl --api-socket "$api" boot
  await_until 'the first requests of the guest' 20 said load.progress

  say 'The guest reads and writes. Its back end is killed and started again, the machine is held and goes on:'
  show_command kill -9 "$disk"
  kill -9 "$disk"
  await "$disk" 2>/dev/null
  start_disk
  run ringside ctl --api-socket "$api" pause
  say 'What left the guest so far? No kick did: they go from the processor to the back end.'
  run ringside ctl --api-socket "$api" counters
  if ! grep -q '"queue_0_notify_exits": 0' "$work/out"; then fail 'kicks left the guest'; fi
  run ringside ctl --api-socket "$api" resume
  await_until 'the end of the load' 60 said done=load
  tr -d '\r' <"$work/serial.log" | grep '^load' | grep -v progress >"$work/out" || true
  indent "$work/out"
  if ! grep -q '^load.mismatches=0' "$work/out" || ! grep -q '^load.failures=0' "$work/out"; then
    fail 'the guest did not find what it wrote'
  fi
  run ringside ctl --api-socket "$api" shutdown-vmm
  await "$vmm"
  if [ "$status" != 0 ]; then fail "the VMM ended with status $status"; fi
  stop_backend "$disk"
}
