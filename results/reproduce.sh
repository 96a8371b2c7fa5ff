#!/usr/bin/env bash
# Trains and scores the paper's networks and their main variants, one after the other, to runs/NAME, and writes the
# tables and figures to runs/report. Stop it at any time: started again, it leaves out finished runs and resumes the one
# that was stopped. RUNS names another folder than runs.
#
#   results/reproduce.sh [FLAGS OF train.py, FOR EVERY RUN]
#
# A trial, without a download:
#   RUNS=runs/trial results/reproduce.sh --dataset=synthetic --num_epochs=1 --nofinal_scores --noexport
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${RUNS:-runs}
runs=()
while read -r name flags; do
  echo "== $name"
  # shellcheck disable=SC2086  # flags are several words.
  python train.py --run_dir="$folder/$name" $flags "$@" </dev/null
  runs+=("$folder/$name")
done <<'LIST'
baseline                     --model=baseline
baseline_seed1               --model=baseline --seed=1
baseline_seed2               --model=baseline --seed=2
baseline_one_cosine          --model=baseline --num_cycles=1
baseline_uniform             --model=baseline --augmentation=uniform
baseline_uniform_one_cosine  --model=baseline --augmentation=uniform --num_cycles=1
alexnet                      --model=alexnet
alexnet_uniform              --model=alexnet --augmentation=uniform
resnet20                     --model=resnet20
resnet20_one_cosine          --model=resnet20 --num_cycles=1
googlenet                    --model=googlenet
plain20                      --model=plain20
squeezenet                   --model=squeezenet
LIST
python report.py --runs="$(IFS=, && echo "${runs[*]}")"
