#!/usr/bin/env bash
# Everything from nothing: tokenizer, training in two resumable calls, export, evaluation, goldens, card.
set -euo pipefail
cd "$(dirname "$0")"
model=..
work=${WORK:-$model/.work}
mkdir -p "$work" results ../eval
python3 make_tokenizer.py "$model"
python3 train.py --out "$work" --seconds 500
python3 train.py --out "$work" --seconds 430 --resume "$work"
python3 export.py "$work" "$model"
python3 polish.py "$model" --state "$work/state.json" --out "$work" --seconds 38
python3 export.py "$work" "$model"
cp "$work/state.json" results/state.json
python3 evaluate.py "$model" --count 500 --unseen 100 --out results/evaluation.json
python3 evaluate.py "$model" --cases 200 --out ../eval/cases.jsonl
python3 ablate.py "$model" --out results/ablation.json
python3 make_goldens.py "$model" ../../../tests/data/goldens
python3 card.py "$model"
