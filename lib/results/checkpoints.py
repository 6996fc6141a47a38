"""The few small trained networks that are kept in ``records/checkpoints``, for notebooks to show."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib import paths
from lib.models import network_of
from lib.results.figures import NAMES
from lib.results.runs import Run
from lib.training import seeded

FOLDER = paths.RECORDS / "checkpoints"
METHODS = {"dino": "DINO", "mst": "MST", "ibot": "iBOT"}  # others are named by their own names


def save_checkpoint(name: str, run: Run) -> None:
    """Keep a finished run's encoder under a name, in half precision, with its configuration and result beside the weights."""
    weights = {key: value.half().contiguous() for key, value in run.encoder_weights().items()}
    result = run.result()
    about = {key: json.dumps(result[key]) for key in ("entry", "key", "config", "metrics", "device", "commit", "data")}
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(weights, FOLDER / f"{name}.safetensors", metadata=about)


def checkpoint_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def load_checkpoint(name: str, device="cpu") -> torch.nn.Module:
    """A kept encoder in float32, in evaluation mode.

    Raises:
        ValueError: no such checkpoint, or a damaged file.
    """
    file = FOLDER / f"{name}.safetensors"
    if not file.is_file():
        raise ValueError(f"name: got {name!r}, accepts {', '.join(checkpoint_names())}")
    try:
        with safe_open(file, "pt") as stream:
            config = json.loads(stream.metadata()["config"])
            weights = {key: stream.get_tensor(key).float() for key in stream.keys()}
    except Exception as error:
        raise ValueError(f"{file}: damaged checkpoint ({error})") from error
    encoder = network_of(config)
    encoder.load_state_dict(weights)
    return encoder.to(device).eval()


def kept_networks(*methods: str, device="cpu") -> dict[str, torch.nn.Module]:
    """The kept encoders by what they have learned, after one network of each pooling that has learned nothing.

    Args:
        methods: of which the encoders are wanted, as configurations name them; none takes all.
        device: where they lie.
    """
    networks, untrained = {}, {}
    for name in reversed(checkpoint_names()):
        config = _config(name)
        if methods and config["method"] not in methods:
            continue
        method = METHODS.get(config["method"], config["method"])
        masking, pooling = config.get("masking", "none"), "[CLS]" if config["pooling"] == "none" else NAMES[config["pooling"]]
        networks[f"{method}, {pooling if masking == 'none' else NAMES[masking]}"] = load_checkpoint(name, device)
        with seeded(config["seed"]):
            untrained[f"untrained, {pooling}"] = network_of(config).to(device).eval()
    return untrained | networks


def _config(name: str) -> dict:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as stream:
        return json.loads(stream.metadata()["config"])


def main() -> None:
    """Keep the encoder of a finished run: ``python -m lib.results.checkpoints NAME ENTRY [key=value …]``."""
    import argparse

    from lib import recipes
    from lib.train import find_run

    parser = argparse.ArgumentParser(
        prog="python -m lib.results.checkpoints", description="Keep the encoder of a finished run in records/checkpoints."
    )
    parser.add_argument("name")
    parser.add_argument("entry", help="recipe entry, scale/name")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    save_checkpoint(options.name, find_run(options.entry, **dict(recipes.parse(a) for a in options.overrides)))


if __name__ == "__main__":
    main()
