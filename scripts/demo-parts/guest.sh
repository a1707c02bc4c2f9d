# shellcheck shell=sh
# Linux guests of the demo: a User-mode Linux kernel and an initramfs made on the fly. Read by scripts/demo.

find_module() { find /usr/lib/uml/modules -name "$1.ko" 2>/dev/null | head -n 1; }

# why_no_guest MODULES [PROGRAM...]: prints what keeps a guest with these kernel modules from being shown; nothing if
# nothing does.
why_no_guest() {
  modules=$1
  shift
  lacking=
  for program in linux.uml busybox cpio "$@"; do
    command -v "$program" >/dev/null || lacking="$lacking $program"
  done
  if [ -n "$lacking" ]; then
    echo "not installed:$lacking (scripts/setup --peers installs what is needed)"
    return
  fi
  for module in $modules; do
    if [ -z "$(find_module "$module")" ]; then
      echo "/usr/lib/uml/modules has no $module.ko for User-mode Linux"
      return
    fi
  done
  if ldd "$(command -v busybox)" >/dev/null 2>&1; then
    echo 'busybox is not the static one (package busybox-static)'
  fi
}

# make_initrd NAME MODULES [PROGRAM...] <COMMANDS: makes $work/NAME.initrd, whose init loads the modules and runs the
# commands. In them, `step` shows a command, runs it, and ends the guest when it fails.
make_initrd() {
  root=$work/$1.root
  initrd=$work/$1.initrd
  modules=$2
  shift 2
  mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/mnt" "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for module in $modules; do cp "$(find_module "$module")" "$root/$module.ko"; done
  for program in "$@"; do
    cp "$(command -v "$program")" "$root/bin/"
    # Shared libraries, where the program looks for them.
    ldd "$(command -v "$program")" | grep -o '/[^ ]*' | while read -r library; do
      cp -L --parents "$library" "$root"
    done
  done
  {
    cat <<'INIT'
#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
step() {
  echo "guest# $*"
  "$@" 2>&1 || { echo "guest: failed: $*"; busybox poweroff -f; }
}
INIT
    for module in $modules; do echo "busybox insmod /$module.ko"; done
    cat
    echo "echo 'guest: done'"
    echo 'busybox poweroff -f'
  } >"$root/init"
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) >"$initrd"
  rm -rf "$root"
}

# boot NAME INITRD DEVICE [NAME=VALUE...]: leaves the process in $guest and what it prints in $work/guest-NAME.log.
# The values are in the environment of init.
boot() {
  name=$1
  initrd=$2
  device=$3
  shift 3
  show_command "linux.uml mem=192M initrd=... virtio_uml.device=$device${*:+ $*} &"
  # It keeps control files in the home directory. Its output goes to a file: on a pipe it would spin if the back end
  # went away.
  HOME=$work linux.uml mem=192M "initrd=$initrd" con=null con0=null,fd:1 ssl=null quiet loglevel=2 panic=-1 \
    "virtio_uml.device=$device" "$@" >"$work/guest-$name.log" 2>&1 </dev/null &
  guest=$!
  children="$guest $children"
  guests="$guest $guests"
}

has_ended() { ! grep -q '^State:[[:space:]]*[^ZX]' "/proc/$1/status"; }

# await_guest NAME PID: waits for its end.
await_guest() {
  await_until "the end of guest $1" 60 has_ended "$2"
  await "$2"
  guests=$(without "$2" "$guests")
  grep -q '^guest: done' "$work/guest-$1.log" || fail "guest $1 did not come to its end"
}

# show_guest NAME PATTERN: what it said and did, and lines that match.
show_guest() { tr -d '\r' <"$work/guest-$1.log" | grep -E "^guest|$2" | sed 's/busybox //' | indent; }
