#!/usr/bin/env bash
# Are the images whose labels networks doubt worth training on (the paper's section 6)? Trains AlexNet on all training
# images, without the 5% that two other AlexNets doubt most, and without as many at random. Writes to runs/exclusion. Stop
# it at any time: started again, it resumes. For other flags, delete runs/exclusion first.
#
#   results/exclusion.sh [--FLAG=VALUE OF train.py, FOR EVERY RUN]
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs/exclusion
data=()
for flag in "$@"; do
  case $flag in --dataset=* | --data_dir=* | --archive=*) data+=("$flag") ;; esac
done

choose() { python -m reporting.exclusion --out="$out" ${data[@]+"${data[@]}"}; }
train() { python train.py "${@:2}" --model=alexnet --run_dir="$out/$1"; }

[ -e "$out/half_2.txt" ] || choose
train half_1 "$@" --exclude="$out/half_1.txt" --nofinal_scores
train half_2 "$@" --exclude="$out/half_2.txt" --nofinal_scores
[ -e "$out/random.txt" ] || choose
train alexnet "$@"
train alexnet_without_worst "$@" --exclude="$out/worst.txt"
train alexnet_without_random "$@" --exclude="$out/random.txt"
python report.py --runs="$out/alexnet*"
