"""The accuracy predictor (FBNetV3, section 3.1) as plain arrays: saved, loaded and scored without torch.

Architecture features pass through an embedding layer; the *proxy head* predicts FLOPs and parameters from it (stage 1);
the *accuracy head* is one hidden layer on the embedding and the recipe features (stage 2). `fit.py` fits both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.cores import thread_count
from pynas.errors import PynasError
from pynas.space.budget import COSTS
from pynas.space.space import Space, contiguous

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYERS = ("embedding", "proxy", "hidden", "output")
_OPTIONAL = ("proxy.weight", "proxy.bias")
PROXIES = ("flops", "params")  # what the proxy head predicts, in order
_FORMATS = (1, 2)  # 2 has `inputs`; a predictor without any is saved as 1, which every pynas reads


@dataclass(frozen=True)
class Predictor:
    """Weights of the two-headed MLP for one space.

    `weights` holds ``<layer>.weight`` (out, in) and ``<layer>.bias`` (out,) float32 for the layers embedding, proxy,
    hidden and output; those of the proxy head may be absent. `accuracy_scale` and `proxy_scale` are (mean, standard
    deviation) of the labels, float64 ``(2,)`` and ``(2, 2)``: heads predict standardised values. `fingerprint` names
    the space. `inputs` are statistics (logarithms of counted costs) among the inputs of the embedding, after the
    architecture's features: names out of ``flops``, ``macs``, ``params`` and ``parameters``, whose logarithms are
    natural, of max(cost, 1), and not standardised.
    """

    fingerprint: str
    weights: Mapping[str, NDArray[np.float32]]
    accuracy_scale: NDArray[np.float64]
    proxy_scale: NDArray[np.float64]
    inputs: tuple[str, ...] = ()
    _compiled: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def for_space(self, space: Space) -> Any:
        """The compiled scorer for `space`; raises PynasError if the predictor was made for another one."""
        if space.fingerprint != self.fingerprint:
            raise PynasError(
                f"this predictor was made for a space with fingerprint {self.fingerprint}; "
                f"{space.name} has {space.fingerprint} (another table, or other pinned variables)"
            )
        # Folding the weights onto a space takes as long as scoring thousands of genomes: it is kept for the last space.
        if self._compiled and self._compiled[0] is space.core:
            return self._compiled[1]
        from pynas import _core

        w = self.weights
        mean, scale = map(float, self.accuracy_scale)
        embedding, hidden = (w["embedding.weight"], w["embedding.bias"]), (w["hidden.weight"], w["hidden.bias"])
        output = (w["output.weight"].reshape(-1), w["output.bias"])
        try:
            core = _core.Predictor(space.core, self.inputs, *embedding, *hidden, *output, mean, scale)
        except ValueError as error:
            raise PynasError(f"this predictor does not fit {space.name}: {error}") from None
        self._compiled[:] = [space.core, core]
        return self._compiled[1]

    def score(self, space: Space, genomes: NDArray[np.uint8], *, threads: int = 0) -> NDArray[np.float32]:
        """Predicted accuracy of genomes ``(n, variables)``: float32 ``(n,)``, computed in the compiled core."""
        scorer = self.for_space(space)
        try:
            return scorer.score(contiguous(genomes), thread_count(threads), "auto")
        except ValueError as error:
            raise PynasError(f"{space.name}: {error}") from None

    def statistics(self, space: Space, genomes: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """What the proxy head predicts: ``flops`` and ``params``, float64 ``(n,)`` each.

        Raises PynasError for a predictor that has no proxy head.
        """
        w = self.weights
        if missing := [name for name in _OPTIONAL if name not in w]:
            raise PynasError(f"this predictor has no proxy head ({missing[0]} is absent): it predicts accuracy only")
        features = space.features(genomes)[:, : space.architecture_features]
        if self.inputs:
            costs = space.costs(genomes)
            logarithms = [np.log(np.maximum(costs[name], 1)) for name in self.inputs]
            features = np.column_stack([features, *logarithms])
        embedding = np.maximum(features @ w["embedding.weight"].T + w["embedding.bias"], 0)
        proxy = (embedding @ w["proxy.weight"].T + w["proxy.bias"]).astype(np.float64)
        mean, scale = self.proxy_scale
        return {name: proxy[:, i] * scale[i] + mean[i] for i, name in enumerate(PROXIES)}

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file under a temporary name and move it into place."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        arrays: dict[str, Any] = {"format": np.array(1), "fingerprint": np.array(self.fingerprint)}
        if self.inputs:
            arrays |= {"format": np.array(2), "inputs": np.array(self.inputs)}
        arrays |= {"accuracy_scale": self.accuracy_scale, "proxy_scale": self.proxy_scale, **self.weights}
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read what `save` wrote. Raises PynasError for a file that is missing or is not a predictor."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            version = int(arrays.pop("format"))
            names = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
            weights = {name: arrays[name] for name in names if name in arrays or name not in _OPTIONAL}
            fingerprint = str(arrays["fingerprint"])
            inputs = arrays["inputs"] if version == 2 else np.array((), str)
            accuracy_scale, proxy_scale = arrays["accuracy_scale"], arrays["proxy_scale"]
        except FileNotFoundError:
            raise PynasError(
                f"{path}: no such file; a finished search leaves its predictor at STUDY/predictor.npz"
            ) from None
        except Exception as error:  # a zip, pickle, key or shape error: whatever it is, the file is not a predictor
            raise PynasError(f"{path}: not a pynas predictor ({type(error).__name__}: {error})") from None
        if version not in _FORMATS:
            formats = " and ".join(map(str, _FORMATS))
            raise PynasError(f"{path}: predictor format {version}; this pynas reads formats {formats}")
        if complaint := _complaint(weights, accuracy_scale, proxy_scale, inputs):
            raise PynasError(f"{path}: not a pynas predictor: {complaint}")
        return cls(fingerprint, weights, accuracy_scale, proxy_scale, tuple(map(str, inputs)))


def _complaint(weights: Mapping[str, Any], accuracy_scale: Any, proxy_scale: Any, inputs: Any) -> str | None:
    """What is wrong with the arrays of a file, or None."""
    if inputs.ndim != 1 or inputs.dtype.kind != "U":
        return f"inputs has shape {inputs.shape} and dtype {inputs.dtype}; expected (n,) names"
    if unknown := [str(name) for name in inputs if name not in COSTS]:
        return f"inputs holds {unknown[0]!r}; allowed: {', '.join(COSTS)}"
    if len(set(inputs)) != len(inputs):
        return f"inputs holds a name twice: {', '.join(inputs)}"
    if len(found := [name for name in _OPTIONAL if name in weights]) == 1:
        return f"has {found[0]} alone; a proxy head is {' and '.join(_OPTIONAL)}"
    width, hidden = len(weights["embedding.bias"]), len(weights["hidden.bias"])
    shapes = {"embedding.weight": (width, None), "proxy.weight": (len(PROXIES), width), "proxy.bias": (len(PROXIES),)}
    shapes |= {"hidden.weight": (hidden, None), "output.weight": (1, hidden), "output.bias": (1,)}
    for name, shape in shapes.items():
        if name in _OPTIONAL and name not in weights:
            continue
        found = weights[name].shape
        if len(found) != len(shape) or any(e not in (None, f) for e, f in zip(shape, found, strict=True)):
            return f"{name} has shape {found}"
    if any(w.dtype != np.float32 for w in weights.values()):
        return "weights are not float32"
    if accuracy_scale.shape != (2,) or proxy_scale.shape != (2, len(PROXIES)):
        return f"scales have shapes {accuracy_scale.shape} and {proxy_scale.shape}"
    if not all(np.isfinite(array).all() for array in (*weights.values(), accuracy_scale, proxy_scale)):
        return "holds values that are not finite"
    return None
