#!/usr/bin/env bash
# Measures the library on the device at hand: see run.py. With --table, prints the markdown instead.
# Installs what it needs only where something is not importable; PYTHON chooses the interpreter.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$root:$root/benchmarks:$root/tests/helpers${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import diffrax, flax, jax, jaxtyping, optax, pytest, safetensors, scipy, tqdm' ||
    "$python" -m pip install --quiet "$root[models]" pytest

program=run.py
[ "${1:-}" != --table ] || { program=report.py && shift; }
exec "$python" "$root/benchmarks/device/$program" "$@"
