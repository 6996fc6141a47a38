"""Figures of networks, as measurements compute them, from inputs that a test has made."""

from pathlib import Path

from lib.evaluation.backgrounds import variants_of
from lib.evaluation.base import Context, Inputs, Origin, evaluation_class
from lib.measure import _figures

# Settings that say what is read (these inputs are there already), and the usual ones of label propagation.
READ = dict(data="scenes", split="validation", canvas=64, train="train", radius=12, n_last=7, topk=5)


def twin_figures(name, network, untrained, test, train=None, **settings) -> dict[str, float]:
    """As ``lib.measure.measure`` computes them."""
    settings = {"progress": False, **settings}
    settings.pop("progress")
    kind = evaluation_class(name)
    known = kind.Settings.__dataclass_fields__
    evaluation = kind(kind.Settings.of(name, {key: value for key, value in READ.items() if key in known} | settings), Origin())
    if name == "localization":
        test = evaluation.objects_in(test)
    if name == "backgrounds":
        test = variants_of(test, train)
    inputs = Inputs(test, train)
    return _figures(evaluation, inputs, {True: lambda: network, False: lambda: untrained}, lambda trained: Path("none"), progress=False)


def trained_figures(name, network, train, test, settings, folder, *, budget=None, progress=False) -> dict[str, float] | None:
    """As a measurement that trains computes them, with checkpoints in a folder."""
    context = Context(folder=Path(folder), budget=budget, progress=progress)
    return evaluation_class(name)(settings, Origin()).measure(network, Inputs(test, train), context)
