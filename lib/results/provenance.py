"""When, where and with what something was computed."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from lib import paths
from lib.data.reading import processors

PACKAGES = ("torch", "torchvision", "timm", "numpy")


def provenance(device: torch.device) -> dict:
    """When, where and with what something was measured."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": _commit(),
    }


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {processors()} cores"


def _commit() -> str:
    """The commit of the sources, with ``+`` when they were changed since; of a repository that is the project itself."""
    try:
        git = ["git", "-C", str(paths.ROOT)]
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout.strip()
        if Path(top).resolve() != paths.ROOT:  # the project was copied into another one
            return "unknown"
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "lib", "recipes"], capture_output=True, text=True, check=True).stdout
        return commit + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
