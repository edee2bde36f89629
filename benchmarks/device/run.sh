#!/usr/bin/env bash
# Measures the library on the device at hand: see run.py. With --table, prints the markdown instead.
# The interpreter is $PYTHON, else that of .venv, else python3; where the last lacks a package,
# .venv is made beside what it has. Nothing else is installed.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root:$root/benchmarks:$root/tests/helpers${PYTHONPATH:+:$PYTHONPATH}"
own="$root/.venv/bin/python"
needed='import diffrax, flax, jax, jaxtyping, optax, pytest, safetensors, scipy, tqdm'

python=${PYTHON:-$own}
[ -x "$(command -v "$python")" ] || python=python3
if ! "$python" -c "$needed"; then
    [ "$python" = python3 ] || exit 1
    python3 -m venv --system-site-packages "$root/.venv"
    "$own" -m pip install --quiet "$root[models]" pytest
    python=$own
fi

program=run.py
[ "${1:-}" != --table ] || { program=report.py && shift; }
exec "$python" "$root/benchmarks/device/$program" "$@"
