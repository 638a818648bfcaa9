"""Takes a GENIE step where nothing can be compiled: what a wheel with the kernel must be able to do."""

import os
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    cache = Path(folder) / "cache"
    os.environ.update(PATH="", CXX="", SHIFTPROOF_CACHE=str(cache))

    import torch

    from shiftproof.optim import GENIE

    param = torch.ones(3)
    param.grad = torch.ones(3)
    optimizer = GENIE([param], fused=True)
    optimizer.step()
    if "group 0: fused (" not in repr(optimizer) or cache.exists():
        raise SystemExit(f"the kernel did not come with the package: {optimizer!r}")
    print(repr(optimizer))
