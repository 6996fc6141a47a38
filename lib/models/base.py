"""What all networks share: features, a forward pass, and saving."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_model
from torch import Tensor, nn

from lib.pooling import SimPool


class Features(NamedTuple):
    """What a network makes of images.

    cls: Float[B, D] pooled token, or None; patches: Float[B, N, D], row-major; grid: (H, W) with N = H W;
    attention: Float[B, heads, N], of the pooled token over the patches (of a class token, the softmax includes the token
    itself), or None where the pooling has none.
    """

    cls: Tensor | None
    patches: Tensor
    grid: tuple[int, int]
    attention: Tensor | None


class Model(
    PyTorchModelHubMixin,
    ABC,
    library_name="pytorch",
    tags=["attmask", "simpool", "image-feature-extraction"],
    paper_url="https://arxiv.org/abs/2309.06891",
):
    """A network with ``features``. ``save_pretrained``, ``push_to_hub`` and ``Model.from_pretrained`` keep the arguments of
    ``create_model`` beside the weights, and a model card.
    """

    pooling: nn.Module | None
    factory: ClassVar[Callable[..., "Model"]]  # lib.models.factory.create_model, which registers itself here

    def features(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of images Float[B, 3, h, w]. Of several pooled vectors, ``cls`` is the largest of each channel."""
        found = self.pool(images, mask)
        return found._replace(cls=found.cls.amax(1)) if found.cls.ndim == 3 else found

    def last_cls(self, images: Tensor, blocks: int = 1) -> Tensor:
        """The class tokens of the last blocks, each through the final norm, joined: Float[B, blocks D], the last block's last.

        Raises:
            ValueError: more than one block of a network without a class token, or more than it has.
        """
        if blocks != 1:
            raise ValueError(f"blocks: got {blocks}, a network without a class token accepts 1, its pooled vector")
        return self.features(images).cls

    @abstractmethod
    def keys(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The keys of the last attention layer, Float[B, N, D], and the patches' grid (H, W): SimPool's, else those of a transformer's last
        block. A network without attention gives its patches.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Float[B, 3, h, w] -> logits Float[B, num_classes], or the pooled vector [B, D] without a classifier.

        Of several pooled vectors, each class takes its largest logit (SimPool, appendix, for Slot).
        """
        return self.logits(self.pool(images).cls)

    def logits(self, vector: Tensor) -> Tensor:
        """Pooled vectors Float[B, D] or [B, k, D] -> logits Float[B, num_classes]."""
        logits = self.classify(vector)
        return logits.amax(1) if logits.ndim == 3 else logits

    @abstractmethod
    def pool(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """As ``features``, with all k pooled vectors: cls is [B, D] or [B, k, D]."""

    @property
    def classifier(self) -> nn.Module:
        """The last layer: ``nn.Linear`` [num_classes, D], or the identity without a classifier."""
        return self.get_classifier()

    @abstractmethod
    def classify(self, vector: Tensor) -> Tensor:
        """Float[..., D] -> logits Float[..., num_classes]."""

    @classmethod
    def from_pretrained(cls, name, **options):
        """A saved network, from a folder or the Hub; arguments as of ``PyTorchModelHubMixin.from_pretrained``.

        Raises:
            ValueError: a missing or damaged file, named.
        """
        try:
            return super().from_pretrained(name, **options)
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}: config.json is missing or damaged ({error})") from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id, revision, cache_dir, force_download, local_files_only, token, config=None, map_location="cpu", strict=True, **_
    ):
        if not isinstance(config, dict) or "arch" not in config:
            raise ValueError(f"{model_id}: config.json is missing or has no arch, accepts what save_pretrained wrote")
        file = f"{model_id}/model.safetensors"
        model = cls.factory(**config)
        try:
            if not Path(model_id).is_dir():
                hub = dict(revision=revision, cache_dir=cache_dir, force_download=force_download, token=token)
                file = hf_hub_download(model_id, "model.safetensors", local_files_only=local_files_only, **hub)
            load_model(model, file, strict=strict, device=map_location)
        except Exception as error:
            raise ValueError(f"{file}: missing or damaged weights ({error})") from error
        return model


def simpool_keys(pooling: SimPool, patches: Tensor) -> Tensor:
    """K = LN(X) W_K^T (SimPool, eq. 11) of patches Float[B, N, D]."""
    return pooling.wk(pooling.norm_patches(patches))
