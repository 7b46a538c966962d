#!/usr/bin/env bash
# The tests of everything with numerics, in an environment of its own with the lowest or the highest version that
# pyproject.toml allows of every dependency. Usage: tests/versions.sh lowest|highest
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
    lowest) resolution=lowest-direct ;;
    highest) resolution=highest ;;
    *)
        echo "usage: tests/versions.sh lowest|highest" >&2
        exit 2
        ;;
esac
folder=.versions/$1
numerics=(tests/unit/optim tests/unit/models tests/unit/data/images/policies tests/unit/data/images/test_augment.py
    tests/unit/data/images/test_crops.py tests/unit/data/images/test_decode.py tests/unit/data/images/test_masks.py tests/unit/data/test_mixing.py
    tests/unit/data/images/test_opening.py tests/unit/data/order/test_order.py tests/unit/data/images/test_resize.py
    tests/unit/data/images/test_turbojpeg.py tests/unit/evaluation tests/unit/objectives tests/golden
    tests/distributed/test_equality_laws.py tests/distributed/test_norms.py tests/distributed/test_backbones.py
    tests/distributed/test_elastic.py tests/distributed/test_optimizers.py)

uv=(.venv/bin/python -m uv --quiet)
mkdir -p .versions
"${uv[@]}" pip compile --resolution "$resolution" --extra parquet --extra test --no-header pyproject.toml \
    --output-file "$folder.txt"
[ -e "$folder" ] || "${uv[@]}" venv --python .venv/bin/python "$folder"
"${uv[@]}" pip sync --python "$folder" "$folder.txt"
"${uv[@]}" pip install --python "$folder" --no-deps --editable .
echo "$1: $(grep -E '^(accelerate|deepspeed|numpy|opencv-python-headless|pillow|safetensors|scikit-learn|scipy|simplejpeg|timm|torch|torchvision|webdataset)==' "$folder.txt" | tr '\n' ' ')"
# Old versions warn of each other; what counts here are numbers.
OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -m "not slow" -W default --timeout 900 "${numerics[@]}"
