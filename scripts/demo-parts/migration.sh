# shellcheck shell=sh
# A running guest that goes from one host to another. The hosts are two network namespaces of the demo's own with a cable
# between them; the guest has a disk that both reach, and talks through a bridge of each. Read by scripts/demo, after net.sh
# and vm.sh, whose functions it uses.

# The second host: a process that keeps its namespace, and how to enter it. The first is what make_namespace makes.
namespace2=
enter2=

make_second_namespace() {
  # shellcheck disable=SC2086 # several options
  nsenter $enter unshare --net sleep 300 &
  namespace2=$!
  children="$namespace2 $children"
  await_until 'a second network namespace' 5 is_sleep "$namespace2"
  enter2="--target $namespace2 --net${user:+ --user --preserve-credentials}"
}

# on HOST COMMAND...
# shellcheck disable=SC2086 # several options
on() {
  if [ "$1" = 1 ]; then host=$enter; else host=$enter2; fi
  shift
  nsenter $host "$@"
}

# Prints what keeps two hosts from being shown; nothing if nothing does.
why_no_hosts() {
  why_no_vm
  why_no_net
  if [ -z "$namespace" ] || ! on 1 ip link add cable type veth peer name cable netns "$namespace2" 2>/dev/null; then
    echo 'the kernel of the host has no pairs of virtual Ethernet devices'
  fi
}

# The bridge br0 with the cable; why_no_hosts has made the cable and the first bridge.
wire_host() {
  on "$1" sh -c 'for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done' 2>/dev/null || true
  on "$1" ip link set cable master br0
  on "$1" ip link set cable up
  on "$1" ip addr add "198.51.100.$1/24" dev br0
  on "$1" ip link set br0 up
  # The daemon of the guest's network finds it there, and leaves it there.
  on "$1" ip tuntap add vm1 mode tap
  on "$1" ip link set vm1 master br0 up
}

# ask HOST COMMAND...: asks the VMM of a host; run_ask shows it, as `run` does.
ask() {
  api=$work/host$1.sock
  shift
  ctl "$@"
}
run_ask() {
  api=$work/host$1.sock
  shift
  run ringside ctl --api-socket "$api" "$@"
}

# said_on HOST TEXT: the guest said that there.
said_on() { grep -q "^$2" "$work/host$1.out"; }

# works_on HOST COUNT: it has reported so many times there.
works_on() { [ "$(grep -c '^pattern.progress' "$work/host$1.out")" -ge "$2" ]; }

# start_vmm HOST ARGUMENT...: leaves the process in $vmm. Its output is what the guest says.
start_vmm() {
  host=$1
  shift
  show_command "ringside vm $* &"
  if [ "$host" = 1 ]; then into=$enter; else into=$enter2; fi
  # shellcheck disable=SC2086 # several options
  exec_ringside_in "$into" "$@" >"$work/host$host.out" 2>"$work/host$host.log" </dev/null &
  vmm=$!
  children="$vmm $children"
  await_until "the VMM of host $host" 20 ask "$host" ping
}
# shellcheck disable=SC2086 # several options
exec_ringside_in() {
  into=$1
  shift
  exec nsenter $into node dist/vmm-client/cli/main.js vm "$@"
}

start_hosts() {
  say 'Two hosts, each with a bridge, and a cable between them. On the first one a guest runs: it drives its disk and pings.'
  moving_image=$work/moving.img
  truncate -s 16M "$moving_image"
  megahertz=$(sed -n 's/^cpu MHz[[:space:]]*: \([0-9]*\).*/\1/p' /proc/cpuinfo | head -n 1)
  start_vmm 1 run --kernel "$guest_program" --cpus 2 --memory 128M \
    --cmdline "tsc_mhz=${megahertz:-2000} job=hotplug,pattern kb=256 touch=500 every=20 disk=1 net=1 ip=198.51.100.77 peer=198.51.100.1" \
    --disk "path=$moving_image,id=disk" --net tap=vm1,mac=52:54:00:00:00:77 --api-socket "$work/host1.sock"
  vmm1=$vmm
  start_vmm 2 serve --api-socket "$work/host2.sock"
  vmm2=$vmm
  await_until 'the guest' 20 said_on 1 hotplug.ready=1
}

show_devices_that_come() {
  say 'It gets another disk while it runs, writes to it and reads it, and gives it back:'
  truncate -s 16M "$work/more.img"
  run_ask 1 add-disk "path=$work/more.img,id=more"
  await_until 'the guest to take the disk' 20 said_on 1 hotplug.added
  run_ask 1 remove-device more
  await_until 'the guest to let go of the disk' 20 said_on 1 hotplug.removed
  await_until 'the guest at work' 20 works_on 1 1
  tr -d '\r' <"$work/host1.out" | grep '^hotplug' | indent
  if ! said_on 1 hotplug.mismatches=0 || ! said_on 1 hotplug.failures=0; then fail 'the guest did not find what it wrote'; fi
}

show_snapshot() {
  say 'It is held and saved. What it never touched takes no room:'
  run_ask 1 pause
  run_ask 1 snapshot "$work/saved"
  run ls -sh "$work/saved"
  run_ask 1 resume
}

show_move() {
  say 'Now the second host waits for it, and it is sent there while it runs:'
  show_command "ringside ctl --api-socket $work/host2.sock receive-migration tcp:198.51.100.2:4444 &"
  become_ringside ctl --api-socket "$work/host2.sock" receive-migration tcp:198.51.100.2:4444 >"$work/received" 2>&1 &
  receiver=$!
  children="$receiver $children"
  await_until 'the second host to listen' 10 waits_on 2
  run_ask 1 send-migration tcp:198.51.100.2:4444
  await "$receiver"
  indent "$work/received"
  if [ "$status" != 0 ]; then fail "receive-migration ended with status $status"; fi
  await "$vmm1"
  grep migrated "$work/host1.log" | indent
  if [ "$status" != 0 ]; then fail "the VMM of the first host ended with status $status"; fi

  say 'It goes on there, with its disk, and is still answered by the first host. Of anything that is not as it was it'
  echo 'would say pattern.wrong. What does it say there?'
  await_until 'the guest to work on the second host' 30 works_on 2 3
  tr -d '\r' <"$work/host2.out" | grep -E '^(pattern|net)\.' | tail -n 5 | indent
  for host in 1 2; do
    if said_on "$host" 'pattern.wrong' || said_on "$host" 'pattern.failed' || said_on "$host" 'net.mismatches=[1-9]'; then
      fail 'the guest did not find what it had before'
    fi
  done
  if ! said_on 2 net.mismatches=0; then fail 'the guest does not reach its network'; fi
}

show_upgrade() {
  say 'A new VMM takes it over on the same host, with the memory itself, which is not sent; its network gets another TAP:'
  on 2 ip tuntap add vm1b mode tap
  on 2 ip link set vm1b master br0 up
  start_vmm 3 serve --api-socket "$work/host3.sock"
  vmm3=$vmm
  show_command "ringside ctl --api-socket $work/host3.sock receive-migration unix:$work/move.sock --device id=_net0,tap=vm1b &"
  become_ringside ctl --api-socket "$work/host3.sock" receive-migration "unix:$work/move.sock" \
    --device id=_net0,tap=vm1b >"$work/received" 2>&1 &
  receiver=$!
  children="$receiver $children"
  await_until 'the new VMM to listen' 10 waits_on 3
  run_ask 2 send-migration "unix:$work/move.sock" --local
  await "$receiver"
  indent "$work/received"
  if [ "$status" != 0 ]; then fail "receive-migration ended with status $status"; fi
  await_until 'the guest to work in the new VMM' 30 works_on 3 3
  tr -d '\r' <"$work/host3.out" | grep -E '^(pattern|net)\.' | tail -n 5 | indent
  if said_on 3 'pattern.wrong' || said_on 3 'pattern.failed' || ! said_on 3 net.mismatches=0; then
    fail 'the guest did not find what it had before'
  fi
  for host in 2 3; do run_ask "$host" shutdown-vmm; done
  for vmm in "$vmm2" "$vmm3"; do
    await "$vmm"
    if [ "$status" != 0 ]; then fail "a VMM of the second host ended with status $status"; fi
  done
  for pid in $namespace2 $namespace; do
    kill "$pid"
    await "$pid" 2>/dev/null
  done
}

waits_on() { ask "$1" progress | grep -q '"phase": "waiting"'; }

show_migration() {
  make_namespace || true
  if [ -n "$namespace" ]; then make_second_namespace; fi
  reason=$(why_no_hosts | head -n 1)
  if [ -n "$reason" ]; then
    say "A guest that moves is not shown: $reason."
    return
  fi
  on 2 ip link add br0 type bridge
  wire_host 1
  wire_host 2
  guest_program=$work/guest.elf
  if [ ! -f "$guest_program" ]; then compile_guest "$guest_program"; fi
  start_hosts
  show_devices_that_come
  show_snapshot
  show_move
  show_upgrade
}
