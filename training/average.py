"""``python -m training.average``: the weighted mean of two models that began as one, in a folder of its own.

What a run learns new costs some of what its start could do; between both there is often a better one than either
(model soups: Wortsman et al. 2022). Which share is best, `training.evaluate` tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.export import export, load


def main() -> None:
    """Read the command line and average."""
    reader = argparse.ArgumentParser("python -m training.average", description=__doc__)
    reader.add_argument("start", type=Path, help="the model folder that the run began from")
    reader.add_argument("end", type=Path, help="the one that it ended with; its tokenizer is taken")
    reader.add_argument("--share", type=float, required=True, help="of the end, 0 to 1")
    reader.add_argument("--out", type=Path, required=True, help="where the mean is put")
    options = reader.parse_args()
    model, tokenizer = load(options.end)
    before = load(options.start)[0].state_dict()
    mean = {name: before[name].lerp(value, options.share) for name, value in model.state_dict().items()}
    model.load_state_dict(mean)
    export(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
