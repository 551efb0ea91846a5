"""The distribution over architectures P(A | alpha), FP-NAS, sections 3.1 and 3.3.

A distribution is a product of independent categorical factors over the variables of a space. A factor is over one
variable (FD, the factorised distribution of equation 5) or over the joint choices of all variables of a layer (JD). A
layer is a row of the table. A variable that several rows share belongs to the first of them alone: tied layers have
equal choices in every sample, and entropies and probabilities count them once.

alpha lives on the CPU in float64, in one tensor, padded with -inf: sampling and entropy are a few operations on it,
however many layers there are. V variables, F factors, M joint choices of the largest factor.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pynas.errors import PynasError
from pynas.space.space import Space
from pynas.space.table import Variable

MOST_CHOICES = 1 << 18
"""Joint choices of a layer: 2 MB of alpha, and more than the paper's searches draw architectures (Table 5)."""


class Distribution:
    """P(A | alpha) with logits `alpha`, float64 (F, M), that may be given to an optimizer.

    `factors` holds the variables' indices, factor by factor.
    """

    def __init__(self, space: Space, factors: Sequence[Sequence[int]], alpha: Tensor | None = None) -> None:
        self.space = space
        self.factors = tuple(tuple(factor) for factor in factors)
        self._choices = [len(variable.values) for variable in space.variables]
        self.sizes = [math.prod(self._choices[v] for v in factor) for factor in self.factors]
        for factor, size in zip(self.factors, self.sizes, strict=True):
            if size > MOST_CHOICES:
                names = ", ".join(space.variables[v].name for v in factor)
                raise PynasError(
                    f"{space.name}: the joint distribution of {names} has {size} choices; allowed: up to "
                    f"{MOST_CHOICES}. Use the factorised one, or pin some of them"
                )
        self._padding = torch.arange(max(self.sizes, default=0)) >= torch.tensor(self.sizes).unsqueeze(1)
        if alpha is None:
            alpha = torch.zeros(self._padding.shape, dtype=torch.float64)
        self.alpha = alpha.detach().masked_fill(self._padding, -math.inf).requires_grad_()

    @classmethod
    def joint(cls, space: Space) -> Distribution:
        """Uniform, with one factor a layer (JD)."""
        return cls(space, layers(space))

    @classmethod
    def factorised(cls, space: Space) -> Distribution:
        """Uniform, with one factor a variable (FD)."""
        return cls(space, [(variable,) for layer in layers(space) for variable in layer])

    def to_joint(self) -> Distribution:
        """The same distribution with one factor a layer: logits are sums of the variables' log-probabilities.

        Probabilities and entropy stay as they are, up to rounding (section 3.3).
        """
        logs = dict(zip(self.factors, self._log_probabilities().detach(), strict=True))
        joint = Distribution.joint(self.space)
        alpha = torch.zeros_like(joint.alpha)
        for row, layer in enumerate(joint.factors):
            inside = [factor for factor in self.factors if set(factor) <= set(layer)]
            if sorted(v for factor in inside for v in factor) != sorted(layer):
                raise PynasError(f"{self.space.name}: a factor goes over several layers; nothing joint holds it")
            digits = self._digits(layer)
            for factor in inside:
                index = self._index(factor, {v: digits[:, i] for i, v in enumerate(layer)})
                alpha[row, : joint.sizes[row]] += logs[factor][index]
        return Distribution(self.space, joint.factors, alpha)

    # probabilities --------------------------------------------------------------------------------------------------

    def _log_probabilities(self) -> Tensor:
        """Log-probabilities of every factor's choices, (F, M), with -inf where there is no choice."""
        return torch.log_softmax(self.alpha, dim=1)

    def entropy(self) -> float:
        """H(P(A | alpha)) in nats: the sum of the factors' entropies."""
        return float(torch.special.entr(torch.softmax(self.alpha.detach(), dim=1)).sum())

    def log_probability(self, genomes: NDArray[np.uint8]) -> Tensor:
        """log P(A | alpha) of genomes, uint8 (n, V), as a float64 tensor (n,) with gradients to alpha."""
        genes = {v: torch.from_numpy(genomes[:, v].astype(np.int64)) for v in range(genomes.shape[1])}
        indices = torch.stack([self._index(factor, genes) for factor in self.factors])
        return self._log_probabilities().gather(1, indices).sum(0)

    def marginals(self) -> dict[str, list[float]]:
        """The probability of every choice of every variable, by the variable's name."""
        probabilities = self._log_probabilities().detach().exp()
        found: dict[int, list[float]] = {}
        for row, (factor, size) in enumerate(zip(self.factors, self.sizes, strict=True)):
            table = probabilities[row, :size].reshape([self._choices[v] for v in factor])
            for axis, variable in enumerate(factor):
                others = [other for other in range(len(factor)) if other != axis]
                found[variable] = (table.sum(others) if others else table).tolist()
        return {self.space.variables[v].name: found[v] for v in sorted(found)}

    # architectures --------------------------------------------------------------------------------------------------

    def sample(self, count: int, random: np.random.Generator) -> NDArray[np.uint8]:
        """`count` genomes, uint8 (count, V): for each factor the choice at which its cumulated probability passes a
        uniform number of `random`.
        """
        cumulated = self._log_probabilities().detach().exp().cumsum(1)
        uniform = torch.from_numpy(random.random((len(self.factors), count))) * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, uniform, right=True)
        return self._genomes(torch.minimum(chosen, torch.tensor(self.sizes).unsqueeze(1) - 1).numpy())

    def mode(self) -> NDArray[np.uint8]:
        """The most probable architecture, uint8 (V,): what a search finds. Of equal ones the first in table order."""
        networks = self.networks()
        return networks._genomes(networks.alpha.detach().argmax(1, keepdim=True).numpy())[0]

    def most_probable(self, count: int) -> NDArray[np.uint8]:
        """The `count` most probable architectures, or all where there are fewer, from the mode on: uint8 (count, V)."""
        networks = self.networks()
        logs, order = networks._log_probabilities().detach().sort(dim=1, descending=True, stable=True)
        loss = (logs[:, :1] - logs).numpy()  # of taking the n-th best choice of a factor in place of its best
        start = (0,) * len(networks.factors)
        waiting, seen = [(0.0, start)], {start}
        found: list[tuple[int, ...]] = []
        while waiting and len(found) < count:
            total, ranks = heapq.heappop(waiting)
            found.append(ranks)
            for factor, rank in enumerate(ranks):
                if rank + 1 == networks.sizes[factor]:
                    continue
                after = (*ranks[:factor], rank + 1, *ranks[factor + 1 :])
                cost = total - loss[factor, rank] + loss[factor, rank + 1]
                if after not in seen and math.isfinite(cost):
                    seen.add(after)
                    heapq.heappush(waiting, (cost, after))
        ranked = torch.tensor(found, dtype=torch.int64).reshape(-1, len(networks.factors))
        chosen = order.gather(1, ranked.t())
        return networks._genomes(chosen.numpy())

    def networks(self) -> Distribution:
        """The distribution of networks, where this one is of their names: of genomes that make the same network one has
        the probability of all, and the others none.

        In a row whose kernel is 0 nothing but its width and number counts. There a joint factor has many names for one
        skip, and its most probable name would seldom be of a skip. It is joint but where layers are too large.
        """
        layer_sizes = (math.prod(self._choices[v] for v in layer) for layer in layers(self.space))
        joint = self.to_joint() if max(layer_sizes, default=0) <= MOST_CHOICES else self
        idle, zero = skips(self.space)
        logs = joint._log_probabilities().detach()
        for row, (factor, size) in enumerate(zip(joint.factors, joint.sizes, strict=True)):
            names = joint._digits(factor)
            for kernel in idle.keys() & {*factor}:
                skipped = names[:, factor.index(kernel)] == zero[kernel]
                names[skipped.unsqueeze(1) & torch.tensor([v in idle[kernel] for v in factor])] = 0
            first = joint._index(factor, {v: names[:, i] for i, v in enumerate(factor)})
            logs[row, :size] = torch.zeros(size, dtype=torch.float64).index_add_(0, first, logs[row, :size].exp()).log()
        return Distribution(self.space, joint.factors, logs)

    def _genomes(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Genomes (n, V) of the factors' choices (F, n)."""
        genomes = np.zeros((chosen.shape[1], len(self._choices)), np.uint8)
        for factor, joint in zip(self.factors, chosen, strict=True):
            digits = np.unravel_index(joint, [self._choices[v] for v in factor])
            for variable, digit in zip(factor, digits, strict=True):
                genomes[:, variable] = digit
        return genomes

    def _index(self, factor: Sequence[int], genes: dict[int, Tensor]) -> Tensor:
        """Where a factor has its joint choice: the last variable counts fastest."""
        index = torch.zeros((), dtype=torch.int64)
        for variable in factor:
            index = index * self._choices[variable] + genes[variable]
        return index

    def _digits(self, factor: Sequence[int]) -> Tensor:
        """The choices of its variables for every joint choice of a factor, int64 (size, variables)."""
        sizes = [self._choices[v] for v in factor]
        return torch.from_numpy(np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1))

    # state ----------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes it again bit for bit: the logits factor by factor."""
        alpha = self.alpha.detach()
        logits = [row[:size].tolist() for row, size in zip(alpha, self.sizes, strict=True)]
        return {"factors": [[*factor] for factor in self.factors], "alpha": logits}

    @classmethod
    def from_dict(cls, space: Space, values: Mapping[str, Any]) -> Distribution:
        rows = [torch.tensor(row, dtype=torch.float64) for row in values["alpha"]]
        return cls(space, values["factors"], pad_sequence(rows, batch_first=True, padding_value=-math.inf))


def skips(space: Space) -> tuple[dict[int, set[int]], dict[int, int]]:
    """Of each kernel size that may be 0 the variables that then change nothing, and the place of 0 among its choices.

    They are expansion, splits and activation of the kernel's rows, as far as no other row has them.
    """
    index = {variable: i for i, variable in enumerate(space.variables)}

    def indices(fields: Iterable[Any]) -> set[int]:
        return {index[field] for field in fields if isinstance(field, Variable)}

    idle: dict[int, set[int]] = {}
    zero: dict[int, int] = {}
    for kernel, k in index.items():
        mine = [row for row in space.table.rows if row.k == (kernel, kernel)]
        if mine and 0 in kernel.values:
            others = set().union(*(indices(row.fields) for row in space.table.rows if row not in mine))
            idle[k] = set().union(*(indices((*(row.e or ()), row.se, row.act)) for row in mine)) - others
            zero[k] = kernel.values.index(0)
    return idle, zero


def layers(space: Space) -> list[tuple[int, ...]]:
    """The variables of each row of the table, each with the first row it stands in, and the resolution by itself."""
    index = {variable: i for i, variable in enumerate(space.variables)}
    if recipe := [variable.name for variable in space.variables if variable.group == "recipe"]:
        raise PynasError(
            f"{space.name}: FP-NAS searches architectures, and {', '.join(recipe)} belong to the recipe; pin them"
        )
    taken: set[int] = set()
    found = []
    for row in space.table.rows:
        mine = dict.fromkeys(index[field] for field in row.fields if isinstance(field, Variable))
        found.append(tuple(v for v in mine if v not in taken))
        taken.update(mine)
    found.append(tuple(v for v in range(len(space.variables)) if v not in taken))
    return [layer for layer in found if layer]
