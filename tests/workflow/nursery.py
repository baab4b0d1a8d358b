"""A process that has imported everything and forks one child per trial, so that a trial costs seconds, not ten.

Reads requests as JSON lines: {"arguments": [...], "environment": {...}, "double": ..., "compiled": ...,
"initial_scale": ..., "ledger": ...}. A child runs `openspectra <arguments>` as a program would, in float64 where
`double` is set, with compiled blocks where `compiled` is, with a loss scaler that starts at `initial_scale`, and notes
the numbers of the sequences it reads in the file `ledger`. Answers {"pid": ...} at once and {"code": ...} when the child has ended.
"""

import json
import os
import sys
from functools import partial

import torch

from openspectra import cli
from openspectra.training import batches, config, pretrain  # the heavy imports, once for all children


def child(request: dict) -> None:
    os.setsid()
    os.environ.update(request["environment"])
    sys.argv = ["openspectra", *request["arguments"]]
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if request.get("compiled"):
        config.COMPILED_FROM_FLOPS = 0
    if request.get("double"):
        torch.set_default_dtype(torch.float64)
    if scale := request.get("initial_scale"):
        pretrain.LossScaler = partial(pretrain.LossScaler, initial_scale=scale)
    if ledger := request.get("ledger"):
        look_up = batches.sequence_at

        def sequence_at(numbers, *rest):
            with open(ledger, "a") as file:
                file.writelines(f"{number}\n" for number in numbers)
            return look_up(numbers, *rest)

        batches.sequence_at = sequence_at
    code = 0
    try:
        cli.main()
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    for line in sys.stdin:
        requests = json.loads(line)
        pids = []
        for request in requests:
            pid = os.fork()
            if pid == 0:
                child(request)
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes}), flush=True)


if __name__ == "__main__":
    main()
