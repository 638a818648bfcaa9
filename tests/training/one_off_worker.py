"""Measure a study's runs by a clock that everything which a process does only once puts forward, by `ONE_OFF` each.

A program of its own, `python one_off_worker.py FOLDER KERNEL train|plan FIELDS`: prints the seconds of the runs and
what put the clock forward.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import torch
from torch._dynamo.callback import callback_handler

from shiftproof.data import DATASETS
from shiftproof.optim.genie import build
from shiftproof.studies import Study, make_plan, study_costs
from shiftproof.training import train

ONE_OFF = 1000.0  # seconds
_clock, _late = time.perf_counter, []


def _put_forward(cause):
    _late.append(cause)


def main(folder, kernel, what, fields):
    study = Study(steps=4, checkpoint_freq=2, targets=("30",), trials=1, **fields)
    plan = make_plan(study)
    digits = DATASETS["rotated_digits"].open(None, None)

    def compile_kernel(target):
        _put_forward("genie")
        shutil.copy(kernel, target)

    build.PREBUILT, build.compile_kernel = folder / "none", compile_kernel
    compiled = torch.nn.Module.compile
    torch.nn.Module.compile = lambda self: compiled(self, backend="eager")
    callback_handler.register_start_callback(lambda _: _put_forward("torch.compile"))
    sys.addaudithook(lambda event, arguments: _put_forward(arguments[0]) if event == "import" else None)
    time.perf_counter = lambda: _clock() + ONE_OFF * len(_late)
    if what == "plan":
        return [3600 * cost.hours for cost in study_costs(study, plan, plan.distinct)]
    results = [train(spec, digits, folder / spec.name, device=torch.device("cpu")) for spec in plan.distinct]
    return [sum(result["seconds"].values()) + (result["annealer"] or {"seconds": 0})["seconds"] for result in results]


if __name__ == "__main__":
    folder, kernel, what, fields = sys.argv[1:]
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(fields).items()}
    print(json.dumps([main(Path(folder), kernel, what, lists), _late]))
