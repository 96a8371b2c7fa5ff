#!/usr/bin/env bash
# Are ambiguous images worth training on (the paper's section 6)? Trains AlexNet without the 5% of the training images
# whose labels two other AlexNets doubt most, and without as many at random. Writes to runs/exclusion. Stop it at any
# time: started again, it resumes.
#
#   results/exclusion.sh [FLAGS OF train.py, FOR EVERY RUN]
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs/exclusion
data=()
for flag in "$@"; do
  case $flag in --dataset=* | --data_dir=* | --archive=*) data+=("$flag") ;; esac
done

choose() { python -m reporting.exclusion --out="$out" "${data[@]}"; }
train() { python train.py --model=alexnet --exclude="$out/$1.txt" --run_dir="$out/$2" "${@:3}"; }

[ -e "$out/half_2.txt" ] || choose
train half_1 half_1 --noexport --nofinal_scores "$@"
train half_2 half_2 --noexport --nofinal_scores "$@"
[ -e "$out/random.txt" ] || choose
train worst alexnet_without_worst "$@"
train random alexnet_without_random "$@"
python report.py --runs="$out/alexnet_*"
