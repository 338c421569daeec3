#!/usr/bin/env bash
# The first thing to run on a host with a GPU: does kvray measure the truth there? At most eight minutes on one H100.
#
#   benchmarks/gpu/first_light.sh [FOLDER] [OPTIONS OF first_light.py]
#
# FOLDER (default: $OUT, else the working folder) gets first_light.txt and first_light.json, both written line by line,
# so that a run that is cut short leaves what it had found.
set -euo pipefail
folder=${OUT:-$PWD}
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  folder=$1
  shift
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/../.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
"$python" benchmarks/gpu/first_light.py --json "$folder/first_light.json" "$@" 2>&1 | tee "$folder/first_light.txt"
