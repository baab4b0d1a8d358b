#!/usr/bin/env bash
# Export a model as GGUF and run each file in llama.cpp; prints a row per format. Usage: llama_cpp.sh MODEL [FORMAT...]
set -euo pipefail
model=$1; shift
formats=("$@"); [ $# -gt 0 ] || formats=(gguf-f16 gguf-tq1_0 gguf-tq2_0)
env=.compat/llama
if [ ! -e $env/done ]; then
  python -m venv --clear $env
  python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > "$(echo $env/lib/python3.*/site-packages)/project.pth"
  $env/bin/python -m pip install --no-deps diskcache==5.6.3 llama-cpp-python==0.3.36
  touch $env/done
fi
echo "| model | format | texts with equal ids | same argmax, % | largest logit difference | tokens/s | prompt tokens/s |"
echo "|---|---|---:|---:|---:|---:|---:|"
for format in "${formats[@]}"; do
  out=.compat/exports/$(basename "$(dirname "$model")")/$(basename "$model")/$format
  $env/bin/python -m openspectra.cli export "$model" --format "$format" --out "$out" --log .compat/export.log
  python - "$out" <<'PY'
import json, sys
run, made = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("run", "certificate"))
said = run["llama_cpp"]
cells = [made["model"], made["format"], f"{said['num_texts_with_equal_ids']} of {said['num_texts']}"]
cells += [f"{100 * said['argmax_agreement']:.3f}", f"{said['largest_logit_difference']:.4f}"]
cells += [f"{said['tokens_per_second']:,.0f}", f"{said['prompt_tokens_per_second']:,.0f}"]
print(f"| {' | '.join(cells)} |")
PY
done
