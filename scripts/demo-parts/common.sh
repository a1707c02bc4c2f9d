# shellcheck shell=sh
# What all parts of the demo use: the work directory, children and their end, and how commands are shown. Read by
# scripts/demo.

PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d "${TMPDIR:-/tmp}/ringside-demo.XXXXXX")
# Processes that were started and not waited for, the latest first, and those of them that are guests.
children=
guests=

clean_up() {
  status=$?
  trap - EXIT INT TERM HUP
  # A guest is a session of several processes, some of them stopped.
  for pid in $guests; do kill -KILL -- "-$pid" 2>/dev/null || true; done
  # One after the other: a front end whose back end goes away waits for it.
  for pid in $children; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '\n%s\n' "$*"; }

# Ends the demo. Back ends and guests write their logs to files of $work.
fail() {
  printf 'demo: %s\n' "$*" >&2
  for log in "$work"/*.log; do
    if [ ! -s "$log" ]; then continue; fi
    printf 'demo: %s:\n' "${log##*/}" >&2
    tail -n 20 "$log" >&2
  done
  exit 1
}

show_command() { printf '  $ %s\n' "$*"; }
# Shows what a command printed.
indent() { sed 's/^/    /' "$@"; }

# Shows a command as a user would type it, and runs it. The commands are what package.json names them.
run() {
  show_command "$@"
  "$@" >"$work/out" 2>&1 || {
    indent "$work/out"
    fail "this failed: $*"
  }
  indent "$work/out"
}

# Replaces the shell that runs it by a back end, so that $! is the back end itself. Ctrl-C is not for back ends: they are
# stopped when all else has ended.
become_backend() { exec setsid "$@"; }
ringside() { node dist/vmm-client/cli/main.js "$@"; }
become_ringside() { exec node dist/vmm-client/cli/main.js "$@"; }

# without PID LIST: prints the list without it.
without() {
  for each in $2; do
    if [ "$each" != "$1" ]; then printf '%s ' "$each"; fi
  done
}

# Waits for a child; leaves its exit status in $status.
await() {
  status=0
  wait "$1" || status=$?
  children=$(without "$1" "$children")
}

# await_until WHAT SECONDS COMMAND...: tries the command until it succeeds.
await_until() {
  awaited=$1
  tries=$(($2 * 10))
  shift 2
  until "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ $tries -le 0 ]; then fail "waited in vain for $awaited"; fi
    sleep 0.1
  done
}

# await_backend PID SOCKET. A socket file may be left over from a back end that was killed: only an answer counts.
await_backend() {
  tries=0
  until ringside info "$2" --timeout 1s >/dev/null 2>&1; do
    kill -0 "$1" 2>/dev/null || fail 'the back end ended at once'
    tries=$((tries + 1))
    if [ $tries -ge 100 ]; then fail 'the back end does not answer'; fi
    sleep 0.1
  done
}

# stop_backend PID
stop_backend() {
  show_command kill -TERM "$1"
  kill -TERM "$1"
  await "$1"
  if [ "$status" != 0 ]; then fail "the back end ended with status $status"; fi
}
