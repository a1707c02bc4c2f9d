# shellcheck shell=sh
# The network: two guests on one bridge, in a network namespace of the demo's own. Nothing of the host's network is
# touched, and the namespace ends with its last process. Read by scripts/demo.

# A process that keeps the namespace, and how to enter it.
namespace=
enter=

# Makes the namespace. Without privileges it is one of a user namespace in which we are root, where the host permits that.
make_namespace() {
  if unshare --net true 2>/dev/null; then
    user=
  elif unshare --user --map-root-user --net true 2>/dev/null; then
    user='--user --map-root-user'
  else
    return 1
  fi
  # shellcheck disable=SC2086 # none, or two options
  unshare $user --net sleep 300 &
  namespace=$!
  children="$namespace $children"
  await_until 'a network namespace' 5 is_sleep "$namespace"
  enter="--target $namespace --net${user:+ --user --preserve-credentials}"
}

is_sleep() { [ "$(cat "/proc/$1/comm")" = sleep ]; }

# Runs a command in the namespace.
# shellcheck disable=SC2086 # several options
in_net() { nsenter $enter "$@"; }

# Shows and runs a command of the namespace, as `run` does.
run_in_net() {
  show_command "$@"
  in_net "$@" >"$work/out" 2>&1 || {
    indent "$work/out"
    fail "this failed: $*"
  }
  indent "$work/out"
}

# Prints what keeps the network from being shown; nothing if nothing does.
why_no_net() {
  if ! command -v ip >/dev/null; then
    echo 'not installed: ip (scripts/setup --peers installs what is needed)'
  elif [ -z "$namespace" ]; then
    echo 'the host lets us make no network namespace (that needs CAP_SYS_ADMIN)'
  elif [ ! -c /dev/net/tun ]; then
    echo 'the host has no /dev/net/tun'
  elif ! in_net ip tuntap add probe mode tap 2>/dev/null; then
    echo 'the host lets us make no TAP (that needs CAP_NET_ADMIN and /dev/net/tun)'
  elif ! in_net ip link del probe || ! in_net ip link add br0 type bridge 2>/dev/null; then
    echo 'the kernel of the host has no bridges'
  fi
}

# start_port NUMBER: a back end on TAP vmNUMBER of the bridge; leaves the process in $port.
start_port() {
  show_command "vhost-user-net --socket-path=$work/net$1.sock --tap=vm$1 --bridge=br0 --mac=52:54:00:00:00:0$1 &"
  # shellcheck disable=SC2086 # several options
  become_backend nsenter $enter node dist/backends/net/main.js --socket-path="$work/net$1.sock" --tap="vm$1" --bridge=br0 \
    --mac="52:54:00:00:00:0$1" --log-format=json 2>"$work/net$1.log" &
  port=$!
  children="$port $children"
}

show_net() {
  make_namespace || true
  reason=$(why_no_net)
  if [ -n "$reason" ]; then
    say "The network is not shown: $reason."
    return
  fi
  say "A bridge with two ports, in a network namespace of the demo's own. Each port is a TAP with a back end:"
  # Without this the kernel's own IPv6 packets would be in between.
  in_net sh -c 'for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done' 2>/dev/null || true
  in_net ip link set lo up
  show_command ip link add br0 type bridge # done above
  run_in_net ip addr add 192.0.2.1/24 dev br0
  run_in_net ip link set br0 up
  start_port 1
  port1=$port
  start_port 2
  port2=$port
  await_backend "$port1" "$work/net1.sock"
  await_backend "$port2" "$work/net2.sock"
  run ringside info "$work/net1.sock"

  show_packets
  show_net_in_guests

  say 'The back ends are asked to stop, and say what went through them, as the guest sees it:'
  for port in $port1 $port2; do stop_backend "$port"; done
  grep -h '"msg":"packets since the start"' "$work/net1.log" "$work/net2.log" | indent
  kill "$namespace"
  await "$namespace" 2>/dev/null
}

# Two front ends without a guest: one pings the host, the other one captures what it hears of that.
show_packets() {
  say 'No guest yet: our front end asks the host for its address and pings it. At the other port another one listens:'
  show_command "ringside net pcap $work/net2.sock $work/heard.pcap &"
  become_ringside net pcap "$work/net2.sock" "$work/heard.pcap" >"$work/pcap" 2>&1 &
  capture=$!
  children="$capture $children"
  await_until 'a capture file' 10 test -s "$work/heard.pcap"
  run ringside net ping "$work/net1.sock" 192.0.2.1 --ip 192.0.2.11/24 --count 3 --interval 200ms
  show_command kill -INT "$capture"
  kill -INT "$capture"
  await "$capture"
  indent "$work/pcap"
  # An ARP request is a broadcast; replies and pings are not for the other port.
  if [ "$status" != 0 ] || ! od -A n -v -t x1 "$work/heard.pcap" | tr -d ' \n' | grep -q "$arp_request"; then
    fail 'the other port did not hear the ARP request'
  fi
  if command -v tcpdump >/dev/null; then run tcpdump -n -e -r "$work/heard.pcap"; fi
}

# 52:54:00:00:00:01 asks all, by ARP: who has an address?
arp_request='ffffffffffff52540000000108060001080006040001'

show_net_in_guests() {
  modules='failover net_failover virtio_net'
  reason=$(why_no_guest "$modules" iperf3)
  if [ -n "$reason" ]; then
    say "Linux guests in this network are not shown: $reason."
    return
  fi
  say 'Now two Linux guests (User-mode Linux). They ping the host and each other, and measure TCP by iperf3:'
  make_initrd net "$modules" iperf3 <<'INIT'
busybox ip link set lo up
step busybox ip addr add $address dev eth0
step busybox ip link set eth0 up
if [ "$role" = server ]; then
  step iperf3 --server --one-off --forceflush
else
  step busybox ping -c 3 -i 0.2 192.0.2.1
  step busybox ping -c 3 -i 0.2 192.0.2.12
  step iperf3 -c 192.0.2.12 -t 2
  step iperf3 -c 192.0.2.1 -t 2
fi
INIT
  show_command 'iperf3 --server --one-off &'
  # shellcheck disable=SC2086 # several options
  become_backend nsenter $enter iperf3 --server --one-off >"$work/iperf3" 2>&1 &
  server=$!
  children="$server $children"
  boot two "$work/net.initrd" "$work/net2.sock:1" role=server address=192.0.2.12/24
  guest2=$guest
  await_until 'iperf3 in the second guest' 30 grep -q 'Server listening' "$work/guest-two.log"
  boot one "$work/net.initrd" "$work/net1.sock:1" role=client address=192.0.2.11/24
  await_guest one "$guest"
  show_guest one 'bytes from|packets transmitted|sender|receiver'
  await_guest two "$guest2"
  await "$server"
  if [ "$status" != 0 ]; then fail "iperf3 on the host ended with status $status"; fi
}
