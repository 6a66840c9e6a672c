"""Graphs survive JSON, and nothing outside their tables can be named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import fx

from ptmq_lightning.artifact.graph import describe, rebuild, require_storable
from ptmq_lightning.models.graph import trace
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.model import weights_of
from tests.networks import images, small_model, small_network


@pytest.fixture
def parts() -> tuple[dict[str, Any], dict[str, torch.Tensor], fx.GraphModule]:
    block = small_model().blocks[3]  # attention: products, a softmax, splits and reshapes
    assert isinstance(block, fx.GraphModule)
    data, tensors = describe(block)
    return json.loads(json.dumps(data)), tensors, block


def test_a_graph_comes_back_bitwise(parts: Any) -> None:
    data, tensors, block = parts
    x = torch.randn(2, 64, 8)
    assert torch.equal(rebuild(data, tensors)(x), block(x))


def node_of(data: dict[str, Any], op: str) -> dict[str, Any]:
    return next(node for node in data["nodes"] if node["op"] == op)


@pytest.mark.parametrize("name", ["os.system", "torch.load", "operator.attrgetter", "builtins.eval", "F.__dict__"])
def test_functions_outside_the_table_cannot_be_called(parts: Any, name: str) -> None:
    data, tensors, _ = parts
    node_of(data, "call_function")["target"] = name
    with pytest.raises(ArtifactError) as error:
        rebuild(data, tensors)
    assert str(error.value) == (
        f"a graph that calls the function {name!r} is refused; expected one of its table. Use an artifact that this "
        "version wrote, from a source you trust."
    )


@pytest.mark.parametrize("name", ["__class__", "__reduce__", "numpy", "backward", "apply_"])
def test_methods_outside_the_table_cannot_be_called(parts: Any, name: str) -> None:
    data, tensors, _ = parts
    node = node_of(data, "call_function")
    node["op"], node["target"] = "call_method", name
    with pytest.raises(ArtifactError, match="is refused; expected one of its table"):
        rebuild(data, tensors)


@pytest.mark.parametrize("kind", ["LSTM", "__import__", "Module", "os"])
def test_module_classes_outside_the_table_cannot_be_built(parts: Any, kind: str) -> None:
    data, tensors, _ = parts
    next(iter(data["modules"].values()))["type"] = kind
    with pytest.raises(ArtifactError, match="is refused"):
        rebuild(data, tensors)


@pytest.mark.parametrize("name", ["a b", "x; import os", "1x", "class", ""])
def test_names_that_are_no_names_never_reach_the_generated_code(parts: Any, name: str) -> None:
    data, tensors, _ = parts
    node_of(data, "placeholder")["target"] = name
    with pytest.raises(ArtifactError, match="is refused"):
        rebuild(data, tensors)


@pytest.mark.parametrize("last", ["class", "None", "a b", "x;y"])
def test_paths_that_are_no_names_never_reach_the_generated_code(parts: Any, last: str) -> None:
    data, tensors, _ = parts
    node = next(node for node in data["nodes"] if data["modules"].get(node["target"], {}).get("type") == "LayerNorm")
    path, node["target"] = node["target"], f"{node['target']}.{last}"
    data["modules"][node["target"]] = data["modules"].pop(path)
    with pytest.raises(ArtifactError) as error:
        rebuild(data, tensors)
    assert str(error.value) == (
        f"a graph with the path {node['target']!r} is refused; expected names of letters, digits, _ and - that are no "
        "keywords, joined by dots. Use an artifact that this version wrote, from a source you trust."
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("kind", "plane", "the packing 'latent' and the rounding 'plane' is refused; expected one of nearest, "),
        ("packing", "zip", "the packing 'zip' and the rounding 'nearest' is refused; expected latent "),
    ],
)
def test_a_rounding_that_is_none_is_refused(parts: Any, key: str, value: str, says: str) -> None:
    data, tensors, _ = parts
    path = next(path for path, module in data["modules"].items() if "weight" in module)
    data["modules"][path]["weight"][key] = value
    with pytest.raises(ArtifactError) as error:
        rebuild(data, tensors)
    assert str(error.value).startswith(f"a graph whose weight '{path}.weight' has {says}")


def test_an_operation_that_cannot_be_stored_is_named() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 0)

    with pytest.raises(ArtifactError) as error:
        describe(fx.symbolic_trace(Odd()))
    assert "cumsum" in str(error.value)


def test_a_whole_model_is_storable() -> None:
    model, x = small_model(), images(2)
    rebuilt = torch.nn.Sequential(*[rebuild(*describe(block)) for block in model.blocks])  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(rebuilt(x), model(x))


@pytest.mark.parametrize(
    ("kind", "plane_of", "says"),
    [("planes", {"2": 0}, "planes for the widths [2]"), ("offset", {"3": 0}, "no offset for some of its widths")],
)
def test_planes_of_no_width_and_widths_without_an_offset_are_refused(
    parts: Any, kind: str, plane_of: dict[str, int], says: str
) -> None:
    data, tensors, _ = parts
    path = next(path for path, module in data["modules"].items() if len(module.get("weight", {}).get("widths", [])) > 1)
    data["modules"][path]["weight"] |= {"kind": kind, "planes": 1, "plane_of": plane_of}
    with pytest.raises(ArtifactError) as error:
        rebuild(data, tensors)
    assert f"whose weight '{path}.weight' has {says}" in str(error.value)


def test_a_weight_some_of_whose_widths_have_a_plane_is_rebuilt_with_its_codes() -> None:
    block = small_model().blocks[1]
    for _, weight in weights_of(block):
        weight.set_rounding("planes", torch.ones((1, *weight.shape), dtype=torch.uint8), {weight.widths[0]: 0})
    for (_, weight), (_, found) in zip(weights_of(block), weights_of(rebuild(*describe(block))), strict=True):
        assert all(torch.equal(found.code(bits), weight.code(bits)) for bits in weight.widths)


def test_all_that_cannot_be_stored_is_named_with_its_module_before_anything_is_fitted() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1).cummax(1)[0]

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Odd(), torch.nn.AlphaDropout(), torch.nn.Conv2d(4, 2, 1))
    network[2].forward = lambda x: x.clone()  # type: ignore[method-assign]  # no table knows the class
    gm = trace(network, (3, 8, 8))
    with pytest.raises(ArtifactError) as error:
        require_storable([gm])
    assert all(part in str(error.value) for part in ("cumsum", "'cummax'", "(in '1')", "AlphaDropout", "'2'"))


def test_everything_a_float_block_of_the_small_network_holds_is_storable() -> None:
    require_storable([trace(small_network(), (3, 8, 8))])
