#!/usr/bin/env bash
# shellcheck disable=SC2154 # options sets variables
# Disks of twenty sizes, from too small for one checkpoint to ample: a tmpfs of each size (needs root; otherwise the
# library that answers for one), then a quota of each size that nothing announces, then a disk that became read-only.
# The run must end with a message (the bytes needed and available where the system tells them) or finish, never crash;
# the last good checkpoint stays; and with more room the same command ends like a run on an ample disk, bit for bit.
#
#   tests/reliability/disk_full.sh [--graft PATH] [--sizes 20] [--device cpu|cuda]

# shellcheck source=tests/reliability/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options sizes=20 -- "$@"
start_work
build_shim
write_config "$work/tiny.toml"
sed -i 's/^width = 16/width = 64/' "$work/tiny.toml"

train "$work/base" 4 || fail "the first four steps: $(tail -n 1 "$work/base.out")"
train "$work/whole" 8 || fail "the run on an ample disk: $(tail -n 1 "$work/whole.out")"
base_bytes=$(du -sb "$work/base" | cut -f1)
each=$(du -sb "$work/base/ckpt/step_4" | cut -f1)
mkdir "$work/disk"
on_tmpfs=no
mount -t tmpfs -o size=1m tmpfs "$work/disk" 2> /dev/null && umount "$work/disk" && on_tmpfs=yes

check() { # WHAT STATUS: after a run on a small disk
  local good
  case $2 in
    0) finished=$((finished + 1)) ;;
    3)
      refused=$((refused + 1))
      tail -n 1 "$work/run.out" | grep -q "^graft: error: " || fail "$1: no last line that says what happened"
      grep -Eq "bytes are needed.* and [0-9]+ are available" "$work/run.out" || fail "$1: $(tail -n 1 "$work/run.out")"
      ;;
    *) fail "$1: exit $2: $(tail -n 1 "$work/run.out")" ;;
  esac
  good=$(newest_good "$run")
  [ -n "$good" ] && [ "$good" -ge 4 ] || fail "$1: the newest good checkpoint is '$good', expected 4 or more"
}

go_on() { # WHAT: with room
  train "$run" 8 || fail "$1: with room: $(tail -n 1 "$work/run.out")"
  same_run "$run" "$work/whole" 8 || fail "$1: the run differs from one on an ample disk"
}

for kind in told hidden; do
  refused=0 finished=0
  for ((i = 0; i < sizes; ++i)); do
    # between nothing beside what is there and room for three more
    size=$((base_bytes + 16384 + each * 3 * i / sizes))
    if [ $kind = told ] && [ $on_tmpfs = yes ]; then
      run="$work/disk/run"
      # files take whole pages, and so do directories here: more than du counts
      mount -t tmpfs -o "size=$((size + 131072))" tmpfs "$work/disk" || fail "cannot mount a tmpfs"
      cp -r "$work/base" "$run"
      train "$run" 8
      status=$?
      mount -o remount,size=64m "$work/disk"
      check "tmpfs of $size bytes" $status
      go_on "tmpfs of $size bytes"
      umount "$work/disk"
    else
      run="$work/run"
      rm -rf "$run"
      cp -r "$work/base" "$run"
      if [ $kind = hidden ]; then export FAIL_IO_DISK_HIDDEN=1; fi
      FAIL_IO_ROOT=$run FAIL_IO_DISK=$size LD_PRELOAD=$shim train "$run" 8
      check "$kind limit of $size bytes" $?
      unset FAIL_IO_DISK_HIDDEN
      go_on "$kind limit of $size bytes"
    fi
  done
  what="a disk that says how much room it has"
  [ $kind = hidden ] && what="a quota that nothing announces"
  [ $kind = told ] && [ $on_tmpfs = yes ] && what="$what (tmpfs)"
  echo "$what: $sizes sizes, $finished finished, $refused ended with exit 3, naming the bytes needed and available;" \
    "the last good checkpoint stayed, and with room all ended bit for bit alike"
done

# await WHAT COMMAND...: until the command holds; the training process has to be alive for that long
await() {
  local what=$1 tries
  shift
  for ((tries = 0; tries < 600; ++tries)); do
    "$@" && return
    kill -0 $process 2> /dev/null || fail "read-only while training: the run ended before $what: $(tail -n 1 "$work/run.out")"
    sleep 0.1
  done
  kill -KILL $process
  fail "read-only while training: no sign of $what in a minute: $(tail -n 1 "$work/run.out")"
}

if [ $on_tmpfs = yes ]; then
  run="$work/disk/run"
  mount -t tmpfs -o size=64m tmpfs "$work/disk"
  cp -r "$work/base" "$run"
  mount -o remount,ro "$work/disk"
  train "$run" 8
  status=$?
  [ $status -eq 3 ] || fail "read-only disk: exit $status: $(tail -n 1 "$work/run.out")"
  grep -q "^graft: error: .*Read-only file system" "$work/run.out" || fail "read-only disk: $(tail -n 1 "$work/run.out")"
  [ "$(newest_good "$run")" = 4 ] || fail "read-only disk: the last good checkpoint is gone"
  mount -o remount,rw "$work/disk"
  go_on "read-only disk"
  # Read-only while it trains: the saves fail, the run says so, and the last good one stays.
  rm -rf "$run"
  cp -r "$work/base" "$run"
  "$graft" train "$work/tiny.toml" --run-dir "$run" --device "$device" --threads 1 -o train.steps=1000000 \
    -o checkpoint.every=20 > "$work/run.out" 2>&1 &
  process=$!
  saved() { [ -n "$(find "$run/ckpt" -maxdepth 1 -name 'step_*0')" ]; } # of its own: those copied are 3 and 4
  await "a checkpoint while training" saved
  # A file system with files open for writing cannot be made read-only, and neither can a mount of it: so a view of the
  # folder becomes read-only elsewhere, where nobody writes, and then takes the folder's place at once.
  mkdir "$work/disk/view"
  mount --bind "$run/ckpt" "$work/disk/view" && mount -o remount,ro,bind "$work/disk/view" &&
    mount --bind "$work/disk/view" "$run/ckpt" || { kill -KILL $process; fail "cannot mount a read-only view"; }
  reported() { grep -q "warning: checkpoint of step .* not saved.*Read-only file system" "$work/run.out"; }
  await "a warning that a checkpoint was not saved" reported
  kill -TERM $process
  wait $process
  status=$?
  umount "$run/ckpt" "$work/disk/view"
  [ $status -eq 3 ] || fail "read-only while training: exit $status: $(tail -n 1 "$work/run.out")"
  good=$(newest_good "$run")
  [ -n "$good" ] && [ "$good" -gt 4 ] || fail "read-only while training: the newest good checkpoint is '$good'"
  umount "$work/disk"
  echo "read-only, from the start and while training: exit 3, the failed saves were reported, the last good checkpoint stayed"
else
  echo "read-only disk: skipped, since mounting needs root"
fi
