#!/usr/bin/env bash
# shellcheck disable=SC2154 # options sets variables
# A small run is killed (kill -9, SIGTERM, SIGINT) at random times for an hour and started again each time. At the end
# its weights, moments, metrics and evaluations have to be those of a run that nobody disturbed, and no process may
# have grown while it lived, in memory or in open descriptors.
#
#   tests/reliability/soak.sh [--graft PATH] [--minutes 60 | --seconds N] [--longest SECONDS] [--seed 1]
#       [--report FILE] [--device cpu|cuda]

# shellcheck source=tests/reliability/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options minutes=60 seconds= longest=60 report= -- "$@"
duration=${seconds:-$((minutes * 60))}
start_work
name=$(basename "$graft")
name=${name:0:15} # as the kernel keeps it
report=${report:-$work/processes.tsv}
write_config "$work/tiny.toml"
run="$work/run"
settings=(-o model.preset=mambaformer -o model.width=32 -o model.layers=2 -o train.batch=16 -o checkpoint.every=20
  -o eval.every=100 -o train.log_every=20)
settle=1500 # milliseconds after a first evaluation: a process then has allocated all that it needs
growth_allowed=2048 # KiB: what the heap may move by while nothing leaks

# In KiB, and a number; nothing when the process has gone.
memory_of() { awk '/^VmRSS/ {print $2}' "/proc/$1/status" 2> /dev/null; }
descriptors_of() { find "/proc/$1/fd" -mindepth 1 2> /dev/null | wc -l; }
evaluations_of() { sed 's/,"seconds":[^,}]*//' "$1/eval.jsonl"; } # without what a clock wrote
milliseconds() { date +%s%3N; }

echo -e "life_ms\tsignal\tresumed_from\tmemory_early_kib\tmemory_late_kib\tdescriptors_early\tdescriptors_late" > "$report"
end=$(($(date +%s) + duration))
lives=0 watched=0 resumed=0 reached=0 most_memory=0 most_growth=0 most_descriptors=0
declare -A sent=([KILL]=0 [TERM]=0 [INT]=0)
while [ "$(date +%s)" -lt "$end" ]; do
  lives=$((lives + 1))
  # Short lives are common, long ones happen: the square of a uniform number.
  fraction=$((RANDOM % 1000))
  life=$((30 + longest * fraction * fraction / 1000))
  signals=(KILL KILL TERM INT)
  signal=${signals[RANDOM % 4]}
  # A shell lets its background processes ignore SIGINT, which env takes back.
  env --default-signal=INT "$graft" train "$work/tiny.toml" --run-dir "$run" --device "$device" --threads 1 \
    -o train.steps=1000000000 "${settings[@]}" > "$work/run.out" 2>&1 &
  process=$!
  # Until it is graft, SIGINT is still ignored and would leave it running.
  while command=$(cat "/proc/$process/comm" 2> /dev/null) && [ "$command" != "$name" ]; do sleep 0.001; done
  started=$(milliseconds)
  memory=() descriptors=() evaluated=
  while :; do
    left=$((life - ($(milliseconds) - started)))
    [ $left -gt 0 ] || break
    sleep "$(printf '%d.%03d' $((left > 1000 ? 1 : 0)) $((left > 1000 ? 0 : left)))"
    if [ -z "$evaluated" ]; then
      ! grep -q "^eval at step" "$work/run.out" || evaluated=$(milliseconds)
    elif [ $(($(milliseconds) - evaluated)) -gt $settle ] && kibibytes=$(memory_of $process) && [ -n "$kibibytes" ]; then
      memory+=("$kibibytes")
      descriptors+=("$(descriptors_of $process)")
    fi
  done
  kill -s "$signal" "$process" 2> /dev/null || fail "life $lives: the run ended by itself: $(tail -n 1 "$work/run.out")"
  sent[$signal]=$((sent[$signal] + 1))
  { wait "$process"; status=$?; } 2> /dev/null
  case $signal-$status in
    KILL-137 | TERM-143 | INT-130) ;;
    *) fail "life $lives: exit status $status after SIG$signal: $(tail -n 1 "$work/run.out")" ;;
  esac
  step=$(sed -n 's/^continuing after step //p' "$work/run.out")
  if [ -n "$step" ]; then
    [ "$step" -ge "$reached" ] || fail "life $lives: went on from step $step, $reached was safe"
    reached=$step
    resumed=$((resumed + 1))
  fi
  if [ ${#memory[@]} -ge 2 ]; then
    watched=$((watched + 1))
    grown=$((memory[-1] - memory[0]))
    [ $grown -le $most_growth ] || most_growth=$grown
    [ "${memory[-1]}" -le $most_memory ] || most_memory=${memory[-1]}
    for count in "${descriptors[@]}"; do [ "$count" -le $most_descriptors ] || most_descriptors=$count; done
    [ $grown -le $growth_allowed ] || fail "life $lives: memory went from ${memory[0]} to ${memory[-1]} KiB"
  fi
  {
    echo -ne "$life\t$signal\t${step:--}\t"
    if [ ${#memory[@]} -ge 2 ]; then
      echo -e "${memory[0]}\t${memory[-1]}\t${descriptors[0]}\t${descriptors[-1]}"
    else
      echo -e "-\t-\t-\t-"
    fi
  } >> "$report"
done
steps=$(newest_good "$run")
[ -n "$steps" ] || fail "no checkpoint is good after $lives lives"
steps=$(((steps / 100 + 1) * 100)) # where a checkpoint, an evaluation and a line of metrics fall together
train "$run" "$steps" "${settings[@]}" || fail "the end: $(tail -n 1 "$work/run.out")"
train "$work/whole" "$steps" "${settings[@]}" || fail "the run that was not touched: $(tail -n 1 "$work/whole.out")"
same_run "$run" "$work/whole" "$steps" || fail "after $steps steps the run differs from one that was not killed"
[ "$(evaluations_of "$run")" = "$(evaluations_of "$work/whole")" ] || fail "after $steps steps the evaluations differ"
echo "$duration seconds, $lives lives (${sent[KILL]} kill -9, ${sent[TERM]} SIGTERM, ${sent[INT]} SIGINT), $resumed resumes:" \
  "after $steps steps weights, moments, metrics and evaluations are those of an uninterrupted run, bit for bit;" \
  "in $watched lives long enough to tell: most memory $most_memory KiB, most growth in a life $most_growth KiB, most descriptors $most_descriptors"
