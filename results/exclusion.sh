#!/usr/bin/env bash
# Are all images worth training on (the paper's section 6)? Trains two AlexNets, or networks of --model, on halves of the
# training images. Each scores the labels of the other half. Then trains one without the 5% of the images with the lowest
# margin, one without as many random images, and one on all.
# Writes to runs/exclusion. Stop it at any time: started again, it resumes. For other flags, delete runs/exclusion first.
#
#   results/exclusion.sh [--model=NAME] [--FLAG=VALUE OF train.py, FOR EVERY RUN]
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs/exclusion
model=alexnet
data=()
for flag in "$@"; do
  case $flag in
    --model=*) model=${flag#--model=} ;;
    --dataset=* | --data_dir=* | --archive=*) data+=("$flag") ;;
    --model | --dataset | --data_dir | --archive | --help | -h | [!-]*)
      echo "usage: results/exclusion.sh [--model=NAME] [--FLAG=VALUE OF train.py, FOR EVERY RUN]" >&2
      exit 2
      ;;
  esac
done

choose() { python -m reporting.exclusion --out="$out" ${data[@]+"${data[@]}"}; }
train() { python train.py "${@:2}" --model="$model" --run_dir="$out/$1"; }

[ -e "$out/half_2.txt" ] || choose
train half_1 "$@" --exclude="$out/half_1.txt" --nofinal_scores
train half_2 "$@" --exclude="$out/half_2.txt" --nofinal_scores
[ -e "$out/random.txt" ] || choose
train "${model}_without_worst" "$@" --exclude="$out/worst.txt"
train "${model}_without_random" "$@" --exclude="$out/random.txt"
train "$model" "$@"
python report.py --runs="$out/$model*"
