"""The few small trained networks that are kept in ``records/checkpoints``, for notebooks to show.

python -m lib.keep ibot_cpu-block small/ibot_cpu masking=block
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib import files, paths, recipes
from lib.engine.seeds import seeded
from lib.models import network_of
from lib.results.runs import Run
from lib.results.titles import POOLINGS, STRATEGIES, TITLES
from lib.train import find_run


def keep(name: str, run: Run) -> None:
    """Keep a finished run's encoder under a name, in half precision, with its configuration and result beside the weights."""
    weights = {key: value.half().contiguous() for key, value in run.encoder_weights().items()}
    result = run.result()
    about = {key: json.dumps(result[key]) for key in ("entry", "key", "config", "metrics", "device", "commit", "data")}
    with files.replacing(_file(name)) as partial:
        save_file(weights, partial, metadata=about)


def kept_names() -> list[str]:
    """The names of the kept networks."""
    return sorted(file.stem for file in _file("*").parent.glob("*.safetensors"))


def load_kept(name: str, device="cpu") -> torch.nn.Module:
    """A kept encoder in float32, in evaluation mode.

    Raises:
        ValueError: no such network, or a damaged file.
    """
    if name not in kept_names():
        raise ValueError(f"name: got {name!r}, accepts {', '.join(kept_names())}")
    try:
        with safe_open(_file(name), "pt") as stream:
            weights = {key: stream.get_tensor(key).float() for key in stream.keys()}
        encoder = network_of(_config(name))
        encoder.load_state_dict(weights)
    except Exception as error:
        raise ValueError(f"{_file(name)}: damaged checkpoint ({error})") from error
    return encoder.to(device).eval()


def kept_networks(*methods: str, device="cpu") -> dict[str, torch.nn.Module]:
    """The kept encoders by what they have learned, after one network of each pooling that has learned nothing.

    Args:
        methods: of which the encoders are wanted, as configurations name them; none takes all.
        device: where they lie.
    """
    networks, untrained = {}, {}
    for name in reversed(kept_names()):
        config = _config(name)
        if methods and config["method"] not in methods:
            continue
        method = TITLES.get(config["method"], config["method"])
        masking, pooling = config.get("masking", "none"), "[CLS]" if config["pooling"] == "none" else POOLINGS[config["pooling"]]
        networks[f"{method}, {pooling if masking == 'none' else STRATEGIES[masking]}"] = load_kept(name, device)
        with seeded(config["seed"]):
            untrained[f"untrained, {pooling}"] = network_of(config).to(device).eval()
    return untrained | networks


def _file(name: str) -> Path:
    return paths.RECORDS / "checkpoints" / f"{name}.safetensors"


def _config(name: str) -> dict:
    with safe_open(_file(name), "pt") as stream:
        return json.loads(stream.metadata()["config"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.keep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="under which the network is kept")
    parser.add_argument("entry", metavar="ENTRY", help="recipe entry of a finished run, scale/name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the entry and other values for them")
    options = parser.parse_args(arguments)
    try:
        keep(options.name, find_run(options.entry, **dict(recipes.parse(assignment) for assignment in options.overrides)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
