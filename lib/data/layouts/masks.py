"""Images and videos with masks: folders of images and masks, and DAVIS."""

from pathlib import Path

import pyarrow as pa

from lib.data.layouts.common import images_in, lines_of, natural, table_of_files


def read_masked(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<images>:<masks>``: two folders with an image and a mask of the same name each."""
    images, masks = (folder / part for part in split.split(":"))
    if not images.is_dir():
        return None
    files = sorted(images_in(images))
    if not files:
        raise ValueError(f"{images}: holds no images")
    return table_of_files(files, masks=[_beside(masks, file) for file in files])


def read_davis(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<folder>/<list>``: ``{JPEGImages,Annotations}/480p/<sequence>/<frame>``. The lines of ``ImageSets/<folder>/<list>.txt`` name
    sequences or their frames; without that file, all sequences are taken.
    """
    frames, masks = folder / "JPEGImages" / "480p", folder / "Annotations" / "480p"
    if not frames.is_dir():
        return None
    listing = folder / "ImageSets" / f"{split}.txt"
    if listing.is_file():
        lines = [line.split()[0] for line in lines_of(listing)]
        sequences = list(dict.fromkeys(Path(name).parent.name if "/" in name else name for name in lines))
    else:
        sequences = sorted(p.name for p in frames.iterdir() if p.is_dir())
    if not sequences:
        raise ValueError(f"{frames}: holds no sequences")
    files = [(sequence, file) for sequence in sequences for file in sorted(images_in(frames / sequence), key=lambda f: natural(f.name))]
    empty = set(sequences) - {sequence for sequence, _ in files}
    if empty:
        raise ValueError(f"{frames / min(empty)}: holds no images")
    return table_of_files([f for _, f in files], masks=[_beside(masks / s, f) for s, f in files], sequence=[s for s, _ in files])


def _beside(folder: Path, image: Path) -> Path:
    """The mask file of an image. Whether it exists shows where it is read."""
    return folder / f"{image.stem}.png"
