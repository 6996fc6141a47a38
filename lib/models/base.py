"""The base class of all networks: features, the forward pass, and saving."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_model
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from lib.pooling import SimPool


class Features(NamedTuple):
    """The output of a network for a batch of images."""

    cls: Tensor  # Float[B, D], the class token or the pooled vector
    patches: Tensor  # Float[B, N, D], row-major
    grid: tuple[int, int]  # (H, W) with N = H W
    # Float[B, heads, N], of the pooled token over the patches; None for a pooling without attention. The softmax of a class token
    # includes the token itself, so its N values sum to less than 1.
    attention: Tensor | None


class Model(
    PyTorchModelHubMixin,
    nn.Module,
    ABC,
    library_name="pytorch",
    tags=["attmask", "simpool", "image-feature-extraction"],
    paper_url="https://arxiv.org/abs/2309.06891",
):
    """A network with ``features``. ``save_pretrained``, ``push_to_hub`` and ``Model.from_pretrained`` store and read the arguments of
    ``create_model`` together with the weights and a model card.
    """

    pooling: nn.Module | None
    embed_dim: int  # D, channels of the patches
    num_features: int  # D as well, under timm's name
    statistics: tuple[Sequence[float], Sequence[float]] | None = None  # mean and std of the network's own inputs, see ``own_inputs``
    get_classifier: Callable[[], nn.Module]  # timm's
    factory: ClassVar[Callable[..., "Model"]]  # lib.models.factory.create_model, which registers itself here

    def features(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of images Float[B, 3, h, w]. If there are several pooled vectors, ``cls`` is their maximum in each channel."""
        features = self.pool(images, mask)
        return features._replace(cls=features.cls.amax(1)) if features.cls.ndim == 3 else features

    def own_inputs(self, images: Tensor) -> Tensor:
        """Views, which are normalised by ImageNet's mean and standard deviation, normalised by the network's own instead. timm's ViTs, for
        one, were trained with 0.5 and 0.5. All networks take the same views, and those with other ``statistics`` convert them first.
        """
        if self.statistics is None:
            return images
        mean, std, own_mean, own_std = (
            images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, *self.statistics)
        )
        return (images * std + mean - own_mean) / own_std

    def last_cls(self, images: Tensor, blocks: int = 1) -> Tensor:
        """The class tokens after each of the last blocks, normalised and concatenated: Float[B, blocks D], in the order of the blocks.

        Raises:
            ValueError: more blocks than the network has, or more than one for a network without a class token.
        """
        if blocks != 1:
            raise ValueError(f"blocks: got {blocks}, a network without a class token accepts 1, its pooled vector")
        return self.features(images).cls

    @abstractmethod
    def keys(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The keys of the last attention layer, Float[B, N, D], and the grid (H, W) of the patches. The last attention layer is SimPool
        or, without it, the last block of a transformer. A network without attention returns its patches.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Float[B, 3, h, w] -> logits Float[B, num_classes], or the pooled vector [B, D] without a classifier."""
        return self.logits(self.pool(images).cls)

    def logits(self, vector: Tensor) -> Tensor:
        """Pooled vectors Float[B, D] or [B, k, D] -> logits Float[B, num_classes]. With k vectors, the logit of a class is the largest
        of its k logits (SimPool, appendix, for Slot).
        """
        logits = self.classify(vector)
        return logits.amax(1) if logits.ndim == 3 else logits

    @abstractmethod
    def pool(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Like ``features``, but with all k pooled vectors: cls is [B, D] or [B, k, D]."""

    @property
    def classifier(self) -> nn.Module:
        """The last layer: ``nn.Linear`` [num_classes, D], or the identity without a classifier."""
        return self.get_classifier()

    @abstractmethod
    def classify(self, vector: Tensor) -> Tensor:
        """Float[..., D] -> logits Float[..., num_classes]."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "Model":  # type: ignore[override]  # another name of the argument
        """Load a saved network from a folder or the Hub; ``options`` are those of ``PyTorchModelHubMixin.from_pretrained``.

        Raises:
            ValueError: a missing or damaged file, which is named, or another option: a saved network has the arguments with which it was built.
        """
        try:
            return super().from_pretrained(name, **options)
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}: config.json is missing or damaged ({error})") from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id,
        revision,
        cache_dir,
        force_download,
        local_files_only,
        token,
        config=None,
        map_location="cpu",
        strict=True,
        **others,
    ):
        if not isinstance(config, dict) or "arch" not in config:
            raise ValueError(f"{model_id}: config.json is missing or has no arch, accepts the files of save_pretrained")
        other = {key: value for key, value in others.items() if key not in config or config[key] != value}  # the mixin hands on the config
        if other:
            raise ValueError(f"options: got {other}, {model_id} accepts map_location, strict and the options of the Hub")
        file = f"{model_id}/model.safetensors"
        model = cls.factory(**config)
        try:
            if not Path(model_id).is_dir():
                hub: dict[str, Any] = dict(revision=revision, cache_dir=cache_dir, force_download=force_download, token=token)
                file = hf_hub_download(model_id, "model.safetensors", local_files_only=local_files_only, **hub)
            load_model(model, file, strict=strict, device=map_location)
        except Exception as error:
            raise ValueError(f"{file}: missing or damaged weights ({error})") from error
        return model


def simpool_keys(pooling: SimPool, patches: Tensor) -> Tensor:
    """K = LN(X) W_K^T (SimPool, eq. 14) of patches Float[B, N, D]."""
    return pooling.wk(pooling.norm_patches(patches))
