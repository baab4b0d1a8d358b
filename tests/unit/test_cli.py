"""The command line answers at once and imports nothing heavy to do so."""

import subprocess
import sys

HEAVY = ("torch", "lightning", "transformers", "lm_eval", "mlflow", "pandas", "matplotlib", "gptqmodel", "datasets")


def test_help_lists_every_stage_and_loads_nothing_heavy():
    code = f"""
import sys
sys.argv = ["openspectra", "--help"]
from openspectra.cli import main
try:
    main()
except SystemExit as exit:
    assert exit.code == 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for stage in ("corpus", "tokenizer", "tokens", "pretrain", "quantize", "tasks", "evaluate", "report", "track"):
        assert f"\n  {stage} " in finished.stdout
