"""Every architecture's network within the supernet is the one that `pynas.nets` builds, with the supernet's weights."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import pynas
from pynas.fpnas.supernet import Supernet
from pynas.nets.attention import SplitAttention
from pynas.nets.blocks import MBConv
from pynas.nets.build import build_network
from pynas.space.space import Space
from pynas.space.table import TABLES, parse_table

NAMES = ["fbnetv2_f_28", "fbnetv2_f_fine_28", "fbnetv2_fpp_28"]
SPACES = {name: pynas.load_space(name) for name in NAMES}

ODD = """
name: odd
input_channels: 2
resolution: [12, 16]
stages: |
  | block  | k            | e                    | c          | n      | s | se        | act             | se_from |
  | conv   | [3, 5]       | -                    | (8, 12, 2) | 1      | 2 | -         | hswish          | -       |
  | mbconv | [0, 3] / [5] | 1                    | [8, 9, 20] | (1, 3) | 1 | [0, 1, 4] | [relu, swish]   | in      |
  | mbconv | [3, 7]       | [0.75, 3]^1 / [2, 1] | (8, 40, 8) | (1, 2) | 2 | [1, 2]    | relu            | mid     |
  | mbconv | [0, 3]       | [0.75, 3]^1          | (8, 40, 8) | 2      | 1 | 0         | [relu, hswish]  | -       |
  | mbpool | -            | [2, 4]               | [16, 24]   | 1      | - | -         | [hswish, relu]  | -       |
  | fc     | -            | -                    | 5          | 1      | - | -         | -               | -       |
"""


def odd() -> Space:
    return Space(parse_table(ODD, "odd.yaml"))


def with_weights_of(network: nn.Module, path: nn.Module) -> nn.Module:
    """`network` with copies of the path's weights, normalising by the batch as the path does."""
    for mine, theirs in zip(network.parameters(), path.parameters(), strict=True):
        mine.data.copy_(theirs)
    return network.train()


@pytest.mark.parametrize("name", [*NAMES, "odd"])
def test_a_path_is_the_network_that_would_be_built_with_these_weights(name: str) -> None:
    space = odd() if name == "odd" else SPACES[name]
    supernet = Supernet(space, seed=1)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in supernet.parameters():  # zeros and ones would hide what is sliced wrongly
            weight.add_(0.1 * torch.randn(weight.shape, generator=random))
    for genome in space.sample(20, seed=2):
        architecture, _ = space.decode(genome)
        images = torch.randn(3, space.table.input_channels, *[architecture.resolution] * 2, generator=random)
        labels = torch.randint(0, 5, (3,), generator=random)
        network = with_weights_of(build_network(architecture), supernet.path(architecture)[0])
        supernet.zero_grad()
        logits, expected = supernet(images, architecture), network(images)
        torch.testing.assert_close(logits, expected)
        functional.cross_entropy(logits, labels).backward()
        functional.cross_entropy(expected, labels).backward()
        total = sum(float(p.grad.double().square().sum()) for p in supernet.parameters() if p.grad is not None)
        assert total == pytest.approx(
            sum(float(p.grad.double().square().sum()) for p in network.parameters() if p.grad is not None), rel=1e-3
        )


@pytest.mark.parametrize("name", [path.stem for path in TABLES.glob("*.yaml") if "fbnetv3" not in path.stem])
def test_every_shipped_space_has_weights_for_its_architectures(name: str) -> None:
    space = pynas.load_space(name)
    supernet = Supernet(space)
    used = set()
    for genome in space.sample(20, seed=0):
        network = supernet.path(space.decode(genome)[0])[0]
        used |= {id(p._base) if p._base is not None else id(p) for p in network.parameters()}
    spare = [n for n, p in supernet.named_parameters() if id(p) not in used]
    assert len(spare) < 0.3 * len(supernet.weights)  # most are met within 20 samples


def test_what_is_shared_and_what_is_not() -> None:
    space = SPACES["fbnetv2_fpp_28"]
    supernet = Supernet(space)
    names = [variable.name for variable in space.variables]
    base = np.zeros(len(names), np.uint8)
    base[[i for i, name in enumerate(names) if name.endswith(".k")]] = 1

    def trained(**choices: int) -> set[str]:
        """The parameters of row 3 that get a gradient."""
        genome = base.copy()
        for column, choice in choices.items():
            genome[names.index(f"stage3.{column}")] = choice
        supernet.zero_grad()
        supernet(torch.randn(4, 1, 28, 28), space.decode(genome)[0]).sum().backward()
        found = {name for name, p in supernet.named_parameters() if p.grad is not None}
        return {name.removeprefix("weights.") for name in found if name.startswith("weights.3/")}

    assert trained(act=0) == trained(act=1) == trained(e=2) == trained(c=1)
    three, five = trained(k=1), trained(k=2)
    assert three ^ five == {f"3/{i}/splits 0/depthwise{k}/weight" for i in range(2) for k in (3, 5)}
    for splits in range(1, 4):
        assert not three & trained(se=splits)
    assert not any("splits" in name for name in trained(k=0))


def test_the_weights_double_with_two_more_numbers_of_splits() -> None:
    """Section 4: "the total model weights of the supernet will double as extra choices {2, 4} are introduced"."""
    sizes = {}
    for name in ("fbnetv2_f", "fbnetv2_fpp"):
        weights = Supernet(pynas.load_space(name)).weights
        shared = ("/expand/weight", "/project/weight")  # of each split as many as of any other
        sizes[name] = sum(p.numel() for key, p in weights.items() if "splits" in key and key.endswith(shared))
    assert sizes["fbnetv2_fpp"] == 2 * sizes["fbnetv2_f"]


def largest(space: Space, genome: np.ndarray, *endings: str) -> np.ndarray:
    """`genome` with the variables of these columns at their largest."""
    found = genome.copy()
    for i, variable in enumerate(space.variables):
        if variable.name.endswith(endings):
            found[i] = np.argmax(variable.values)
    return found


def test_n_channels_are_the_first_n_of_a_wider_path() -> None:
    """Of Split-Attention's second layer they are the first of every split."""
    space = odd()
    supernet = Supernet(space)
    narrower = set()
    for genome in space.sample(40, seed=4):
        wide, _ = supernet.path(space.decode(largest(space, genome, ".c", ".e", ".e.first"))[0])
        expected = [weight.detach().clone() for weight in wide.parameters()]
        kinds = [type(module) for module in wide.modules()]
        network, _ = supernet.path(space.decode(genome)[0])
        if [type(module) for module in network.modules()] != kinds:
            continue  # an expansion by 1 is none at some widths
        attention = [module for module in network.modules() if isinstance(module, SplitAttention)]
        splits = {id(weight): module.splits for module in attention for weight in module.expand.parameters()}
        for mine, theirs in zip(network.parameters(), expected, strict=True):
            parts = splits.get(id(mine), 1)
            found, whole = (weight.unflatten(0, (parts, -1)) for weight in (mine, theirs))
            assert torch.equal(found, whole[tuple(map(slice, found.shape))])
            if found.shape != whole.shape:
                narrower.add(parts)
    assert narrower == {1, 2, 4}


def test_initial_weights_are_spread_as_a_network_s_of_the_largest_blocks() -> None:
    space = odd()
    columns = (".k", ".k.first", ".e", ".e.first", ".e.rest", ".c", ".n", ".se")
    genome = largest(space, np.zeros(len(space.variables), np.uint8), *columns)
    architecture, _ = space.decode(genome)
    supernet = Supernet(space)
    position, row, zeros = 0, -1, 0
    built = build_network(architecture).blocks
    for block, mine, theirs in zip(architecture.blocks(), supernet.path(architecture)[0], built, strict=True):
        position, row = (position + 1 if block.row == row else 0), block.row
        for weight, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
            if isinstance(theirs, MBConv) and expected is theirs.norm.weight:
                zeros += position > 0
                expected = torch.full_like(expected, float(position == 0))  # residual in every network, or not
            if expected.min() == expected.max():
                assert torch.equal(weight, expected)
            elif weight.numel() >= 100:
                assert float(weight.detach().std()) == pytest.approx(float(expected.detach().std()), rel=0.3)
    assert zeros


def test_weights_are_a_function_of_the_seed() -> None:
    first, same, other = (Supernet(SPACES["fbnetv2_f_28"], seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_images_are_scaled_to_the_architecture_s_resolution() -> None:
    space = odd()
    supernet = Supernet(space)
    architecture, _ = space.decode(space.sample(1, seed=0)[0])
    assert supernet(torch.randn(2, 2, 30, 30), architecture).shape == (2, 5)
    images = torch.zeros(1, 2, 48, 48, requires_grad=True)
    supernet.scaled(images, architecture).sum().backward()
    assert images.grad is not None
    assert (images.grad > 0).all()  # antialiased: every pixel counts


def test_what_a_step_holds_does_not_grow_with_the_number_of_choices() -> None:
    """Saved tensors of one architecture's step in a space and in that space with twice the choices: the same."""

    def held(name: str) -> int:
        space = SPACES[name]
        supernet = Supernet(space)
        architecture, _ = SPACES["fbnetv2_f_28"].decode(np.full(len(SPACES["fbnetv2_f_28"].variables), 1, np.uint8))
        own = {p.untyped_storage().data_ptr() for p in supernet.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        images = torch.randn(8, 1, 28, 28).contiguous(memory_format=torch.channels_last)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = supernet(images, architecture).sum()
        loss.backward()
        return sum(saved.values())

    assert held("fbnetv2_fpp_28") == held("fbnetv2_f_28") > 0


def test_it_can_be_copied_after_use() -> None:
    space = SPACES["fbnetv2_f_28"]
    supernet = Supernet(space)
    architecture, _ = space.decode(space.sample(1, seed=0)[0])
    images = torch.randn(4, 1, 28, 28)
    logits = supernet(images, architecture)
    copied = copy.deepcopy(supernet)
    assert torch.equal(copied(images, architecture), logits)
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert torch.equal(supernet(images, architecture), logits)


def test_nothing_of_a_path_outlives_its_step() -> None:
    space = SPACES["fbnetv2_f_28"]
    supernet = Supernet(space)
    logits = supernet(torch.randn(4, 1, 28, 28), space.decode(space.sample(1, seed=0)[0])[0])
    graph = weakref.ref(logits)
    logits.sum().backward()
    del logits
    gc.collect()
    assert graph() is None
