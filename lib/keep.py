"""The few small trained networks that are kept in ``records/checkpoints``, for notebooks to show.

python -m lib.train small/ibot_cpu masking=block --keep ibot_cpu-block
"""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

from lib import paths
from lib.engine.seeds import seeded
from lib.models import Model, create_model, network_of
from lib.results.runs import Run
from lib.results.titles import POOLINGS, STRATEGIES, TITLES
from lib.tensors import load_tensors, save_tensors


def keep(name: str, run: Run) -> None:
    """Keep a finished run's encoder under a name, in half precision, with its configuration and result beside the weights."""
    weights = {key: value.half() for key, value in run.encoder_weights().items()}
    result = run.result()
    about = {key: json.dumps(result[key]) for key in ("entry", "key", "config", "metrics", "device", "commit", "data")}
    save_tensors(_file(name), weights, about)


def kept_names() -> list[str]:
    """The names of the kept networks."""
    return sorted(file.stem for file in _file("*").parent.glob("*.safetensors"))


def fingerprint(name: str) -> str:
    """The hash of a kept network's file, by which runs say which network guided them; errors as of ``load_kept``."""
    _check(name)
    return hashlib.sha256(_file(name).read_bytes()).hexdigest()[:12]


def load_kept(name: str, device="cpu") -> Model:
    """A kept encoder in float32, in evaluation mode.

    Raises:
        ValueError: no such network, or a damaged file.
    """
    _check(name)
    weights, about = load_tensors(_file(name))
    try:
        encoder = network_of(json.loads(about["config"]))
        encoder.load_state_dict({key: value.float() for key, value in weights.items()})
    except Exception as error:
        raise ValueError(f"{_file(name)}: damaged checkpoint ({error})") from error
    return encoder.to(device).eval()


def best_kept() -> str:
    """The name of the kept network whose attention is best on objects, of those that were trained without labels and checked what masks hide:
    that by which AttMask-High would hide the most of the objects in held-out photographs, over what AttMask-Low would hide.

    Raises:
        ValueError: no kept network made the check.
    """
    contrast = {}
    for name in kept_names():
        metrics = json.loads(_metadata(name)["metrics"])
        if "hidden_attmask_high" in metrics:
            contrast[name] = metrics["hidden_attmask_high"] / metrics["hidden_attmask_low"]
    if not contrast:
        raise ValueError("network: got best, but no kept network has checked what masks hide in its training; accepts a name")
    return max(contrast, key=lambda name: contrast[name])


def network_to_show(name: str, device="cpu") -> Model:
    """A network whose attention is to be looked at.

    Args:
        name: ``best``, as ``best_kept`` finds it; the name of a kept network; or ``timm:NAME``, a pre-trained Vision Transformer of timm, such
            as DINO's ``timm:vit_small_patch16_224.dino``, whose weights timm downloads.
        device: where it lies.

    Raises:
        ValueError: no such network, or weights that could not be downloaded.
    """
    kind, _, arch = name.partition(":")
    if kind != "timm":
        return load_kept(best_kept() if name == "best" else name, device)
    try:
        return create_model(arch, pretrained=True).to(device).eval()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"network: got {name!r}, whose weights could not be downloaded ({error}); accepts best, {', '.join(kept_names())}"
        ) from error


def kept_networks(*methods: str, device="cpu") -> dict[str, Model]:
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


def _check(name: str) -> None:
    if name not in kept_names():
        raise ValueError(f"name: got {name!r}, accepts {', '.join(kept_names())}")


def _file(name: str) -> Path:
    return paths.RECORDS / "checkpoints" / f"{name}.safetensors"


def _metadata(name: str) -> dict[str, str]:
    with safe_open(_file(name), "pt") as stream:
        return stream.metadata()


def _config(name: str) -> dict:
    return json.loads(_metadata(name)["config"])
