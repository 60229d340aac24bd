# Shared by the scripts of this folder: a run small enough to be killed thousands of times, and ways to compare two.
# shellcheck shell=bash disable=SC2034 # its variables are the scripts'

set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
graft=${GRAFT:-$here/../../build/graft}
device=cpu
seed=1
work=

fail() {
  echo "FAILED: $*" >&2
  [ -n "$work" ] && echo "left for a look: $work" >&2
  work=
  exit 1
}

# options NAME=DEFAULT... -- ARGUMENTS: variables from --NAME VALUE; --graft, --device and --seed are everybody's
options() {
  local names=(graft device seed) name
  for (( ; ; )); do
    name=$1
    shift
    [ "$name" != -- ] || break
    names+=("${name%%=*}")
    printf -v "${name%%=*}" %s "${name#*=}"
  done
  while [ $# -gt 0 ]; do
    name=${1#--}
    if [ "$name" = "$1" ] || [ $# -lt 2 ] || [[ " ${names[*]} " != *" $name "* ]]; then
      echo "$1: expected one of ${names[*]/#/--}, each with a value" >&2
      exit 2
    fi
    printf -v "$name" %s "$2"
    shift 2
  done
}

# start_work: checks the program and makes a folder that goes away at the end
start_work() {
  [ -x "$graft" ] || { echo "no program at $graft; build it, or say --graft PATH" >&2; exit 2; }
  graft=$(realpath "$graft")
  work=$(mktemp -d "${TMPDIR:-/tmp}/graft-reliability-XXXXXX")
  trap 'clean_up' EXIT
  RANDOM=$seed
}

clean_up() {
  if [ -n "$work" ]; then
    mountpoint -q "$work/disk" 2>/dev/null && umount "$work/disk"
    rm -rf "$work"
  fi
}

# write_config FILE: everything that a checkpoint has to carry changes during the first sixty steps
write_config() {
  cat > "$1" <<'CONFIG'
[run]
name = "tiny"
seed = 5
[task]
name = "linear_regression"
dim = 3
points = 5
[task.curriculum]
enabled = true
dims_start = 1
dims_increment = 1
dims_interval = 7
points_start = 2
points_increment = 1
points_interval = 13
[model]
preset = "transformer"
width = 16
layers = 1
heads = 2
[optimizer]
name = "adamw"
lr = 3e-3
weight_decay = 0.01
[schedule]
name = "cosine"
warmup = 6
total = 60
final = 0.1
[train]
batch = 4
steps = 6
log_every = 2
[eval]
every = 0
prompts = 8
batch = 8
bootstrap = 5
[checkpoint]
every = 1
keep = 2
CONFIG
}

# train DIR STEPS [arguments]: in the foreground, one thread; stdout, then stderr in $work/<name of DIR>.out
train() {
  local directory=$1 steps=$2 out status
  shift 2
  out="$work/$(basename "$directory").out"
  { # the shell has no need to say that the process was killed
    "$graft" train "$work/tiny.toml" --run-dir "$directory" --device "$device" --threads 1 -o "train.steps=$steps" "$@" \
      > "$out" 2> "$out.err"
    status=$?
  } 2> /dev/null
  cat "$out.err" >> "$out"
  return $status
}

# Lines of metrics.jsonl without what a clock wrote.
metrics_of() { sed 's/,"steps_per_s":[^,}]*//' "$1/metrics.jsonl"; }

# same_run A B STEP: whether both runs have the same weights and moments at STEP and the same metrics
same_run() {
  local file
  for file in model.safetensors optimizer.safetensors; do
    cmp -s "$1/ckpt/step_$3/$file" "$2/ckpt/step_$3/$file" || return 1
  done
  [ "$(metrics_of "$1")" = "$(metrics_of "$2")" ]
}

# newest_good DIR: the step from which a resume would go on; empty if there is none
newest_good() {
  local checkpoint
  for checkpoint in $(ls -d "$1"/ckpt/step_* 2>/dev/null | sort -t_ -k2 -Vr); do
    if "$graft" ckpt verify "$checkpoint" > /dev/null 2>&1; then
      echo "${checkpoint##*_}"
      return
    fi
  done
}

# build_shim: the library that makes system calls fail, into $work/fail_io.so
build_shim() {
  "${CC:-cc}" -shared -fPIC -O1 -o "$work/fail_io.so" "$here/fail_io.c" -ldl -lpthread || fail "fail_io.c does not compile"
  shim="$work/fail_io.so"
}
