#!/usr/bin/env bash
# Does a start from drawn animals help 30 real pictures? The whole experiment with one command, which goes on where it was
# stopped:
#     bash scripts/fine_tuning.sh PETS [OVERRIDES of the ten runs, such as jobs=2]
# PETS is a folder in the layout of Oxford-IIIT Pet. Every 11th line of its trainval.txt, 34 in all, makes a set of 30
# training and 4 validation pictures; the test pictures stay. No other real picture is ever seen by a network.
set -euo pipefail
pets=$(realpath "$1")
shift
root=data/pets30
mkdir -p $root/annotations
ln -sfn "$pets/images" $root/images
ln -sfn "$pets/annotations/trimaps" $root/annotations/trimaps
awk '!/^#/ && ++n % 11 == 1 && ++kept <= 34' "$pets/annotations/trainval.txt" > $root/annotations/trainval.txt
cp "$pets/annotations/test.txt" $root/annotations/
[ -f runs/drawn_animals/summary.json ] ||
    python -m unetseg.train data=synthetic data.train_images=1000 seed=1000 name=drawn_animals
python -m unetseg.ablate experiment=fine_tuning name=fine_tuning data.root=$root "$@"
python -m unetseg.report runs=runs/fine_tuning
