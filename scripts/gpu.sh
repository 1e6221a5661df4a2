#!/usr/bin/env bash
# The table of speed on a machine that has a GPU, Python and torch, and perhaps nothing else of ours nor a network.
#
#   scripts/gpu.sh --pets PETS --output FOLDER            the options of scripts/gpu.py
#   WHEELS=FOLDER scripts/gpu.sh                          install what is missing from wheels that were brought along
#
# Wheels are brought along by, on a machine with a network and for the Python of the other one:
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
#       --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d wheels NAME ...
#   python -m pip wheel --no-deps -w wheels antlr4-python3-runtime==4.9.3      # which comes as source alone
# Beside torch, torchvision, timm, lightning, scipy, pandas, matplotlib and OpenCV these names are 36 MB in November 2026:
#   albucore albumentations annotated-types distro googleapis-common-protos hydra-core kornia kornia-rs omegaconf
#   opentelemetry-{api,sdk,proto,semantic-conventions} opentelemetry-exporter-{http-transport,otlp-common}
#   opentelemetry-exporter-otlp-proto-{common,http} platformdirs pydantic pydantic-core segmentation-models-pytorch
#   simsimd sniffio stringzilla typing-inspection wandb, in the versions of `pip freeze` where unetseg is installed
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export NO_ALBUMENTATIONS_UPDATE=1 HF_HUB_OFFLINE=1 WANDB_SILENT=true PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
needed="albumentations hydra kornia pydantic segmentation_models_pytorch wandb"
if ! "$python" -c "import sys; from importlib.util import find_spec as f; sys.exit(not all(map(f, sys.argv[1:])))" $needed
then
    "$python" -m pip install --quiet --editable '.[device]'
fi
PYTHONPATH="$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" "$python" scripts/gpu.py "$@"
