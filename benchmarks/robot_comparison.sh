#!/bin/sh
# Learned against fixed prior, cyclical against monotonic beta, teacher forcing throughout against its decay:
# 2 x 2 x 2 settings, three seeds, equal steps, on the straying arm. Then one figure and two tables of the test
# split: FOLDER/comparison.png, .md (one row per setting) and .csv (one row per run).
#
#   sh benchmarks/robot_comparison.sh [FOLDER]
#
# FOLDER (default: robot-comparison) gets the data and the runs. Existing ones are not made again, so that an
# interrupted comparison continues. 24 runs of 250 steps of 8 windows, each with its validation about 50
# seconds on one idle core. The runs are short: the settings are compared at the start of a training, not at its end.
set -eu
folder=${1:-robot-comparison}
mkdir -p "$folder" && cd "$folder"

[ -d straying ] || cvae data synth straying --kind robot --height 32 --width 32 --stray 0.06 \
    --train-clips 1024 --test-clips 32 --quiet

names=""
for seed in 42 43 44; do
    for prior in learned fixed; do
        for schedule in cyclical monotonic; do
            for decay in 0 0.25; do # of the teacher-forcing ratio per epoch: 1 throughout, or from 1 to 0
                name=$prior-$schedule-$decay-$seed
                names="$names $name"
                [ -f "runs/$name/eval/test/metrics.json" ] && continue
                rm -rf "runs/$name"
                cvae train --config robot-futures --name "$name" --quiet data.root=straying seed=$seed \
                    train.epochs=5 train.steps_per_epoch=50 eval.every=0 eval.batch_size=32 \
                    model.prior=$prior kl.values=null kl.schedule=$schedule \
                    teacher_forcing.decay=$decay teacher_forcing.coin=batch >/dev/null
                cvae validate "$name" --split test --samples 4 --quiet >/dev/null
            done
        done
    done
done

# shellcheck disable=SC2086  # the names are words
cvae plot compare $names --split test --out comparison.png
