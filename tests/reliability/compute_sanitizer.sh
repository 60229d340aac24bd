#!/usr/bin/env bash
# Every test case that runs on the GPU, under compute-sanitizer: memcheck for all; initcheck and racecheck for those of
# the ops and tasks, whose kernels are graft's own. Needs a GPU and the tests built with GRAFT_CUDA=ON.
#
#   tests/reliability/compute_sanitizer.sh [--build DIR] [--jobs N] [--gpus N] [--seconds PER_JOB] [--logs DIR]
#       [--tools "memcheck initcheck racecheck"] [--programs "engine ops ..."] [--cases REGEX] [--skip REGEX]
#       [--steps N]
#
# Each case is a process of its own, and a long one several: GRAFT_TEST_SHARD=K/N makes a process take every N-th of
# the case's comparisons or trained models from the K-th on, and print which models these are. shards() below says
# which N a case has: in train a share is about 12000 kernel launches at most, two minutes if one takes 10 ms. Cases
# of train whose number of steps does not matter make at most --steps of them (GRAFT_TEST_STEPS, 20 if not given).
# A job that finds something or does not end in time fails the script. Left out are a test of timing, and initcheck and
# racecheck of cases that multiply matrices: initcheck does not follow how cuBLASLt's kernels write, and racecheck
# cannot run them.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$here/../../build
jobs=$(nproc)
gpus=1
seconds=1800
steps=20
tools="memcheck initcheck racecheck"
programs="engine ops models tasks train"
cases=.
skip='^$'
logs=
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2 ;;
    --jobs) jobs=$2 ;;
    --gpus) gpus=$2 ;;
    --seconds) seconds=$2 ;;
    --steps) steps=$2 ;;
    --tools) tools=$2 ;;
    --programs) programs=$2 ;;
    --cases) cases=$2 ;;
    --skip) skip=$2 ;;
    --logs) logs=$2 ;;
    *) sed -n '5,7s/^# *//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not on PATH (it comes with the CUDA toolkit)" >&2; exit 3; }
logs=${logs:-$(mktemp -d "${TMPDIR:-/tmp}/graft-sanitizer-XXXXXX")}
mkdir -p "$logs"

# shards PROGRAM CASE TOOL: among how many processes the case is shared
shards() {
  case $1:$2:$3 in
    ops:residual_norm:\ CUDA*:memcheck) echo 8 ;;
    ops:residual_norm:\ CUDA*) echo 12 ;;
    ops:ssd:\ CUDA\ matches*:racecheck) echo 22 ;;
    ops:selective_scan:\ CUDA*:racecheck) echo 8 ;;
    ops:ssd:*:\ CUDA\ matches*:racecheck | ops:causal_attention:\ CUDA\ matches\ CPU:racecheck) echo 3 ;;
    train:numerics:\ CUDA:\ ten\ in\ a\ row*:memcheck) echo 21 ;;
    train:presets:\ CUDA:\ training\ is*:memcheck) echo 18 ;;
    train:presets:\ CUDA:\ training\ on\ token\ ids*:memcheck) echo 15 ;;
    train:interruption:\ CUDA:\ *in-context-learning\ study*:memcheck) echo 15 ;;
    train:step:\ CUDA:\ captured\ equals\ eager*:memcheck) echo 9 ;;
    train:interruption:\ CUDA:\ *retrieval\ study*:memcheck) echo 7 ;;
    train:recompute:\ CUDA:*:memcheck) echo 7 ;;
    train:resume:\ CUDA:*:memcheck) echo 6 ;;
    train:numerics:\ CUDA:\ the\ launch\ whose*:memcheck | train:numerics:\ CUDA:\ a\ NaN*:memcheck) echo 3 ;;
    train:step:\ CUDA:\ a\ model\ of\ common\ size*:memcheck | train:sweep:\ CUDA:*:memcheck) echo 3 ;;
    train:interruption:\ CUDA:\ signals*:memcheck) echo 2 ;;
    *) echo 1 ;;
  esac
}

wanted() {
  case $1:$3:$2 in
    train:*:*"save holds the device up"*) return 1 ;;
    *:memcheck:*) return 0 ;;
    ops:*:linear:* | ops:*:mlp:* | tasks:*:chain_of_thought:\ CUDA:*) return 1 ;;
    ops:* | tasks:*) return 0 ;;
    *) return 1 ;;
  esac
}

# The longest first, so that none of them starts when all others are done: the shares of ops, then the shorter ones of
# train, and then what is not shared.
list() {
  local program tool name k n length
  for program in $programs; do
    "$build/graft_tests_$program" -tc="*CUDA*" -tse=slow -ltc -ntl 2> /dev/null | grep CUDA | sed 's/^ *//' | grep -E "$cases" | grep -vE "$skip" |
      while read -r name; do
        for tool in $tools; do
          wanted "$program" "$name" "$tool" || continue
          n=$(shards "$program" "$name" "$tool")
          length=$n
          [[ $program = train || $n = 1 ]] || length=$((100 + n))
          for ((k = 0; k < n; ++k)); do echo "$length|$program|$tool|$k/$n|$name"; done
        done
      done
  done | sort -t'|' -k1,1nr -s | awk -F'|' -v OFS='|' -v gpus="$gpus" '{ $1 = NR % gpus; print }'
}

run_one() {
  local gpu=$1 program=$2 tool=$3 shard=$4 name=$5 log status start
  local options=(--tool "$tool" --error-exitcode 99)
  [ "$tool" != memcheck ] || options+=(--report-api-errors no) # a test asks for more memory than there is
  log=$logs/${tool}_${program}_$(echo "${name}_$shard" | tr -c 'a-zA-Z0-9\n' '_').log
  start=$(date +%s)
  # doctest takes a comma for the end of a pattern
  CUDA_VISIBLE_DEVICES=$gpu GRAFT_TEST_SHARD=$shard GRAFT_TEST_STEPS=$steps timeout "$seconds" compute-sanitizer "${options[@]}" \
    "$build/graft_tests_$program" -tc="${name//,/*}" > "$log" 2>&1
  status=$?
  case $status in
    0) status=clean ;;
    99) status=reports ;;
    124) status="out of time" ;;
    *) status="exit $status" ;;
  esac
  echo "$tool|$status|$program|$name|$shard|$(($(date +%s) - start)) s" | tee -a "$logs/summary"
}
export -f run_one
export build seconds steps logs
: > "$logs/summary"
list | xargs -P "$jobs" -d '\n' -I{} bash -c 'IFS="|" read -ra job <<< "$1"; run_one "${job[@]}"' _ {} > /dev/null
[ -s "$logs/summary" ] || { echo "no test case in $build runs on a GPU: is it built with GRAFT_CUDA=ON?" >&2; exit 3; }
echo "logs: $logs"
cut -d'|' -f1,2 "$logs/summary" | sort | uniq -c | sed 's/|/: /'
if grep -v '|clean|' "$logs/summary"; then exit 1; fi
