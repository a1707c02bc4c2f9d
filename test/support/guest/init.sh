#!/bin/busybox sh
# The first process of a test guest. Loads modules, says that it is ready, and then runs what the host sends over the
# console: lines of "id base64-of-a-script", answered by "@@begin id@@", the script's output and "@@end id status@@".
# busybox runs its applets without links in $PATH, so none are made.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t tmpfs tmpfs /tmp
stty raw -echo
while read -r module; do
  insmod "/modules/$module" || echo "@@error insmod $module@@"
done </modules/order
echo '@@ready@@'
# In a process of its own: the first process is told of every orphan's end, and busybox's read, interrupted by that, loses
# the part of the line that it had.
(
  while read -r id script; do
    echo "$script" | base64 -d >"/tmp/$id"
    echo "@@begin $id@@"
    (. "/tmp/$id") </dev/null 2>&1
    echo "@@end $id $?@@"
  done
)
poweroff -f
