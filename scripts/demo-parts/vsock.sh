# shellcheck shell=sh
# Sockets between host and guests: a shell in a guest, a file that is copied, a guest that uses the shell of another. Read
# by scripts/demo.

# vm_shell NUMBER COMMANDS: runs them in the shell of a guest.
vm_shell() {
  show_command "(echo CONNECT 1234; echo '$2') | socat -t 20 - UNIX-CONNECT:$work/vm$1"
  ask_vm_shell "$1" "$2" >"$work/out" 2>&1 || {
    indent "$work/out"
    fail "guest $1 does not answer"
  }
  indent "$work/out"
}

ask_vm_shell() { (echo CONNECT 1234; echo "$2") | socat -t 20 - "UNIX-CONNECT:$work/vm$1"; }
has_vm_shell() { ask_vm_shell "$1" exit | grep -q '^OK'; }

show_vsock() {
  modules='vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport'
  reason=$(why_no_guest "$modules" socat)
  if [ -n "$reason" ]; then
    say "Sockets between host and guests are not shown: $reason."
    return
  fi
  say 'One daemon with the sockets of two guests, which may connect to each other:'
  first=guest-cid=3,socket=$work/vsock3.sock,uds-path=$work/vm3
  second=guest-cid=4,socket=$work/vsock4.sock,uds-path=$work/vm4
  show_command "vhost-user-vsock --vm $first --vm $second &"
  become_backend node dist/backends/vsock/main.js --vm "$first" --vm "$second" --log-format=json 2>"$work/vsock.log" &
  vsock=$!
  children="$vsock $children"
  await_backend "$vsock" "$work/vsock4.sock"
  run ringside info "$work/vsock3.sock"

  say 'Two Linux guests (User-mode Linux). In each, socat offers a shell at port 1234:'
  make_initrd vsock "$modules" socat <<'INIT'
busybox hostname $name
socat -t 20 VSOCK-LISTEN:1234,fork EXEC:'/bin/busybox sh' &
until [ -e /off ]; do busybox usleep 50000; done
INIT
  boot vm3 "$work/vsock.initrd" "$work/vsock3.sock:19" name=vm3
  vm3=$guest
  boot vm4 "$work/vsock.initrd" "$work/vsock4.sock:19" name=vm4
  vm4=$guest
  await_until 'a shell in guest 3' 30 has_vm_shell 3
  await_until 'a shell in guest 4' 30 has_vm_shell 4
  vm_shell 3 'busybox uname -a; echo $((6 * 7))'
  grep -q '^42' "$work/out" || fail 'guest 3 did not compute'

  say 'A file of the guest is copied to the host, which listens at its port 5000:'
  show_command "socat -u UNIX-LISTEN:$work/vm3_5000 CREATE:$work/copy &"
  socat -u "UNIX-LISTEN:$work/vm3_5000" "CREATE:$work/copy" &
  copy=$!
  children="$copy $children"
  await_until 'a listener' 5 test -S "$work/vm3_5000"
  vm_shell 3 'busybox dd if=/dev/urandom of=/file bs=1M count=32; busybox sha256sum /file; socat -u -b 65536 OPEN:/file VSOCK-CONNECT:2:5000'
  in_guest=$(sed -n "s/^\([0-9a-f]\{64\}\) .*/\1/p" "$work/out")
  await "$copy"
  if [ "$(wc -c <"$work/copy")" != 33554432 ]; then fail 'the copy does not have 32 MiB'; fi
  run sha256sum "$work/copy"
  if [ "$(cut -d ' ' -f 1 <"$work/out")" != "$in_guest" ]; then fail 'the copy differs from the file'; fi

  say 'From the shell of one guest to that of the other, by its CID:'
  vm_shell 4 'echo "busybox hostname; busybox rm /file; busybox touch /off" | socat -t 20 - VSOCK-CONNECT:3:1234; busybox touch /off'
  grep -q '^vm3' "$work/out" || fail 'guest 3 did not answer guest 4'
  await_guest vm3 "$vm3"
  await_guest vm4 "$vm4"

  say 'The daemon is asked to stop, and says what went through it:'
  stop_backend "$vsock"
  grep -h '"msg":"packets since the start"' "$work/vsock.log" | indent
}
