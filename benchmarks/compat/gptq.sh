#!/usr/bin/env bash
# Load GPTQ exports in auto-gptq and in transformers; prints a row for each folder and program. Usage: gptq.sh FOLDER...
set -euo pipefail
here=$(dirname "$0")
if [ ! -e .compat/auto-gptq/done ]; then
  python -m venv --clear .compat/auto-gptq
  .compat/auto-gptq/bin/python -m pip install --quiet torch==2.13.0 transformers==4.40.2 tokenizers==0.19.1 \
    accelerate==0.30.1 peft==0.10.0 "numpy>=2" auto-gptq==0.7.1
  touch .compat/auto-gptq/done
fi
if [ ! -e .compat/optimum/done ]; then
  python -m venv --clear .compat/optimum
  python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > "$(echo .compat/optimum/lib/python3.*/site-packages)/project.pth"
  .compat/optimum/bin/python -m pip install --quiet --no-deps optimum==2.3.0
  touch .compat/optimum/done
fi
echo "| folder | program | largest logit difference | deviation of the logits | same argmax, % |"
echo "|---|---|---:|---:|---:|"
python "$here/gptq_logits.py" ours .compat/logits.npz "$@"
.compat/auto-gptq/bin/python "$here/gptq_logits.py" auto-gptq .compat/logits.npz "$@"
.compat/optimum/bin/python "$here/gptq_logits.py" transformers .compat/logits.npz "$@"
