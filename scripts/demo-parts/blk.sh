# shellcheck shell=sh
# The disk: read, written, verified and measured; a back end that is killed at work; a guest that makes a file system.
# Read by scripts/demo.

start_disk() {
  show_command "vhost-user-blk --socket-path=$disk_socket --blk-file=$image &"
  become_backend node dist/backends/blk/main.js --socket-path="$disk_socket" --blk-file="$image" --log-level=warn \
    2>"$work/disk.log" &
  disk=$!
  children="$disk $children"
}

checksum() { sha256sum | cut -d ' ' -f 1; }

show_blk() {
  image=$work/disk.img
  disk_socket=$work/disk.sock
  say 'A disk of 256 MiB is a sparse file, served over a Unix socket:'
  run truncate -s 256M "$image"
  start_disk
  await_backend "$disk" "$disk_socket"

  say 'What is at the other end of that socket? The suite has a front end of its own that asks:'
  run ringside info "$disk_socket"

  say '32 MiB of random data are written through the virtqueues, and read back:'
  head -c 33554432 /dev/urandom >"$work/data"
  run ringside blk write "$disk_socket" --offset 1M -i "$work/data"
  run ringside blk read "$disk_socket" --offset 1M --length 32M -o "$work/back"
  written=$(checksum <"$work/data")
  read_back=$(checksum <"$work/back")
  on_host=$(dd if="$image" bs=1M skip=1 count=32 2>/dev/null | checksum)
  printf '  sha256 of what was written  %s\n' "$written"
  printf '  sha256 of what came back    %s\n' "$read_back"
  printf '  sha256 of it in the image   %s\n' "$on_host"
  if [ "$written" != "$read_back" ] || [ "$written" != "$on_host" ]; then fail 'the checksums differ'; fi

  say 'The whole disk is written with a pattern that knows its place, and compared:'
  run ringside blk verify "$disk_socket" --seed 42

  say 'How fast is that? Random reads of 4 KiB from the page cache, 32 in flight:'
  run ringside blk bench "$disk_socket" --rw randread --qd 32 --time 3s

  show_disk_killed
  show_disk_in_guest

  say 'The back end is asked to stop, finishes what is in flight, and exits:'
  stop_backend "$disk"
}

show_disk_killed() {
  say 'The back end is killed with 32 writes in flight, and started again. No request is lost:'
  show_command "ringside blk bench $disk_socket --rw randwrite --qd 32 --time 3s &"
  become_ringside blk bench "$disk_socket" --rw randwrite --qd 32 --time 3s >"$work/bench" 2>&1 &
  load=$!
  children="$load $children"
  sleep 1.5
  show_command kill -9 "$disk"
  kill -9 "$disk"
  await "$disk" 2>/dev/null
  start_disk
  await "$load"
  indent "$work/bench"
  if [ "$status" != 0 ]; then fail 'the load did not survive'; fi
  grep -q 'the back end is back' "$work/bench" || fail 'the load did not notice that the back end was away'
}

show_disk_in_guest() {
  reason=$(why_no_guest virtio_blk debugfs)
  if [ -n "$reason" ]; then
    say "A Linux guest on this disk is not shown: $reason."
    return
  fi
  say 'Now a real Linux kernel (User-mode Linux) boots with that disk, makes a file system on it and writes a file:'
  make_initrd disk virtio_blk <<'INIT'
echo "guest: $(busybox uname -sr), $(busybox cat /sys/block/vda/size) sectors in /dev/vda"
step busybox mke2fs -F /dev/vda
step busybox mount -t ext2 /dev/vda /mnt
echo "Hello from $(busybox uname -sr), written through a virtqueue." >/mnt/hello.txt
step busybox cat /mnt/hello.txt
step busybox umount /mnt
INIT
  boot disk "$work/disk.initrd" "$disk_socket:2"
  await_guest disk "$guest"
  show_guest disk '^Hello'
  say 'The guest is off. The host finds its file in the image:'
  show_command "debugfs -R 'cat /hello.txt' $image"
  debugfs -R 'cat /hello.txt' "$image" 2>/dev/null >"$work/out"
  indent "$work/out"
  grep -q 'written through a virtqueue' "$work/out" || fail 'the file of the guest is not in the image'
}
