#!/usr/bin/env bash
# shellcheck disable=SC2154 # options sets variables
# A run that saves at every step is killed (kill -9) at random times, again and again in the same directory. Every
# start has to go on from a step no earlier than the one before, and the last one has to end with the weights, moments
# and metrics of a run that was never touched.
#
#   tests/reliability/kill_while_saving.sh [--graft PATH] [--trials 300] [--seed 1] [--longest MILLISECONDS]
#       [--device cpu|cuda]
#
# A kill comes at most --longest (250) after the start; twice that after five in a row that came before the resume.

# shellcheck source=tests/reliability/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options trials=300 longest=250 -- "$@"
start_work
write_config "$work/tiny.toml"
run="$work/run"

train "$run" 2 || fail "the first two steps: $(tail -n 1 "$work/run.out")"
reached=2 resumed=0 halfway=0 early=0 in_a_row=0
for ((trial = 1; trial <= trials || (resumed == 0 && trial <= trials + 50); ++trial)); do
  "$graft" train "$work/tiny.toml" --run-dir "$run" --device "$device" --threads 1 -o train.steps=1000000 \
    > "$work/run.out" 2>&1 &
  process=$!
  life=$((20 + RANDOM % longest))
  sleep "$(printf '%d.%03d' $((life / 1000)) $((life % 1000)))"
  kill -9 "$process" || fail "trial $trial: the run ended by itself: $(tail -n 1 "$work/run.out")"
  wait "$process" 2> /dev/null
  ls -d "$run"/ckpt/.tmp-* > /dev/null 2>&1 && halfway=$((halfway + 1))
  grep -q "skipped" "$work/run.out" && fail "trial $trial: $(grep skipped "$work/run.out")"
  step=$(sed -n 's/^continuing after step //p' "$work/run.out")
  if [ -z "$step" ]; then
    early=$((early + 1)) # killed before it had looked
    in_a_row=$((in_a_row + 1))
    [ $((in_a_row % 5)) -ne 0 ] || [ $longest -ge 15000 ] || longest=$((2 * longest)) # the start takes longer, as on a GPU
  else
    [ "$step" -ge "$reached" ] || fail "trial $trial: went on from step $step, $reached was safe"
    reached=$step
    resumed=$((resumed + 1))
    in_a_row=0
  fi
  good=$(newest_good "$run")
  [ -n "$good" ] && [ "$good" -ge "$reached" ] || fail "trial $trial: the newest good checkpoint is '$good', $reached was safe"
  reached=$good
done
[ $resumed -gt 0 ] || fail "no start of $((trial - 1)) came as far as its resume"
steps=$((reached + 3))
train "$run" "$steps" || fail "the end: $(tail -n 1 "$work/run.out")"
train "$work/whole" "$steps" -o checkpoint.every=0 || fail "the run that was not touched: $(tail -n 1 "$work/whole.out")"
same_run "$run" "$work/whole" "$steps" || fail "after $steps steps the run differs from one that was not killed"
echo "$((trial - 1)) kills ($halfway left a half-written checkpoint, $early came before the resume): all $resumed resumes went on," \
  "and after $steps steps weights, moments and metrics are those of an uninterrupted run, bit for bit"
