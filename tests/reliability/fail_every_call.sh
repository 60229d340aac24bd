#!/usr/bin/env bash
# shellcheck disable=SC2154 # options sets variables
# Every system call that changes a file while checkpoints are written (open, pwrite, fsync, close, rename, mkdir) goes
# wrong once, in a run of its own:
#   ENOSPC EIO EDQUOT   it fails once; the run has to go on, say so where a save was hit, and end like any other
#   kill                the process dies before it
#   crash               the process dies and files lose what was not synced
#   crash-names         the same, and names whose directory was not synced never were
# After each, the newest good checkpoint must be the last one or the one being written, and going on must give the
# weights, moments and metrics of a run that nothing happened to, bit for bit.
#
#   tests/reliability/fail_every_call.sh [--graft PATH] [--faults "ENOSPC EIO EDQUOT kill crash crash-names"] [--every 1]
#       [--device cpu|cuda]

# shellcheck source=tests/reliability/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options faults="ENOSPC EIO EDQUOT kill crash crash-names" every=1 -- "$@"
start_work
build_shim
write_config "$work/tiny.toml"

train "$work/base" 4 || fail "the first four steps: $(tail -n 1 "$work/base.out")"
train "$work/whole" 6 || fail "the run that was not touched: $(tail -n 1 "$work/whole.out")"

run="$work/run"
# fresh ROOT: a copy of the four steps, and the part of it in which calls fail
fresh() {
  rm -rf "$run" "$run".lost-* "$run"/ckpt.lost-*
  cp -r "$work/base" "$run"
  rm -f "$run/.lock" "$work/calls"
}
try() { # FAULT NUMBER ROOT
  FAIL_IO_ROOT=$3 FAIL_IO_DO=$1 FAIL_IO_AT=$2 FAIL_IO_LOG=$work/calls LD_PRELOAD=$shim train "$run" 6
}

for fault in $faults; do
  case $fault in
    E*) root="$run/ckpt" ;; # calls of saves; run.json and the logs have their own
    *) root="$run" ;;       # a crash is one everywhere
  esac
  fresh
  try none 0 "$root" || fail "with the library loaded and nothing failing: $(tail -n 1 "$work/run.out")"
  calls=$(wc -l < "$work/calls")
  [ "$calls" -ge 40 ] || fail "only $calls calls were seen; are they intercepted?"
  trials=0 told=0 from_new=0
  for ((number = 1; number <= calls; number += every)); do
    fresh
    try "$fault" "$number" "$root"
    status=$?
    call=$(sed -n "${number}p" "$work/calls")
    trials=$((trials + 1))
    case $fault in
      E*)
        [ $status -eq 0 ] || fail "$fault at call $call: exit $status: $(tail -n 1 "$work/run.out")"
        if grep -q "warning" "$work/run.out"; then
          told=$((told + 1))
        else
          silent="${silent:-}  $fault at $call"$'\n'
        fi
        ;;
      *) [ $status -eq 137 ] || [ $status -eq 0 ] || fail "$fault at call $call: exit $status: $(tail -n 1 "$work/run.out")" ;;
    esac
    good=$(newest_good "$run")
    [ -n "$good" ] && [ "$good" -ge 4 ] || fail "$fault at call $call: the newest good checkpoint is '$good', expected 4 or more"
    [ "$good" -gt 4 ] && from_new=$((from_new + 1))
    train "$run" 6 || fail "$fault at call $call: going on: $(tail -n 1 "$work/run.out")"
    same_run "$run" "$work/whole" 6 || fail "$fault at call $call: the run differs from one that nothing happened to"
  done
  case $fault in
    E*) echo "$fault: $trials calls failed once each: all runs went on ($told said so) and ended bit for bit alike" ;;
    crash-names) # a run that begins in folders that are not there yet: their names have to survive too
      at=0
      for what in none "$fault"; do
        rm -rf "$work/new" "$work/calls"
        mkdir "$work/new"
        FAIL_IO_ROOT=$work/new FAIL_IO_DO=$what FAIL_IO_AT=$at FAIL_IO_LOG=$work/calls LD_PRELOAD=$shim \
          train "$work/new/a/b/c" 6
        at=$(($(wc -l < "$work/calls") - 3))
      done
      good=$(newest_good "$work/new/a/b/c")
      [ -n "$good" ] && [ "$good" -ge 4 ] || fail "$fault in new folders: the newest good checkpoint is '$good', expected 4 or more"
      echo "$fault: $trials moments, and one in new folders: all resumed ($from_new from a checkpoint of that process) and ended bit for bit alike"
      ;;
    *) echo "$fault: $trials moments: all resumed ($from_new from a checkpoint of that process) and ended bit for bit alike" ;;
  esac
done
if [ -n "${silent:-}" ]; then printf 'without a word (no file of a checkpoint was hit):\n%s' "$silent"; fi
