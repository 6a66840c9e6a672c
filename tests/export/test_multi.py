"""One file holds every width: what is stored once gives each width's codes, and an input chooses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import ptmq_lightning as ptmq
from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.nested import nested_of
from ptmq_lightning.export import onnx_packed
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.folder import read_manifest
from ptmq_lightning.export.onnx_shared import Shared, SharedWriter, shared
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.portable import as_portable
from ptmq_lightning.export.session import Session, inference_session
from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.model import weights_of
from ptmq_lightning.runtime.weights import CommittedWeight, MultiBitWeight
from tests.export.test_packed import EveryLayer, every_layer, exact_session
from tests.networks import images, small_model

WIDTHS = tuple(range(2, 9))


def weight(kind: str, *, tied: bool, moved: bool = False) -> MultiBitWeight:
    """A weight (6, 5, 3, 3) with a rounding of a kind, its steps powers of two apart or not; moved: with zero points at
    2 to 6 bits."""
    generator = torch.Generator().manual_seed(0)
    latent, step = grid.latent(torch.randn(6, 5, 3, 3, generator=generator))
    apart = torch.tensor([2.0 ** (8 - b) if tied else 1.83 ** (8 - b) for b in WIDTHS]).reshape(-1, 1)
    steps = (8 * step).expand(7, 6) * apart
    zeros = torch.randint(-2, 1, (7, 6), generator=generator, dtype=torch.int8)
    zeros[5:] = 0
    made = MultiBitWeight(latent, step, WIDTHS, steps, zero_points=zeros if moved else None)
    bits = torch.randint(0, 2, (2, *latent.shape), generator=generator, dtype=torch.uint8)
    if kind == "one plane":
        made.set_rounding("planes", bits[:1], dict.fromkeys(WIDTHS, 0))
    elif kind == "planes":
        made.set_rounding("planes", bits, {2: 0, 3: 0, 4: 1, 5: 1})
    elif kind == "offset":
        made.set_rounding("offset", 17 * bits[:1], {})
    elif kind == "latent":
        made.set_rounding("latent", latent[None] + bits[:1].short(), {})
    return made


KINDS = ("nearest", "one plane", "planes", "offset", "latent")


def written(way: Shared, codes: dict[int, Array], turned: bool) -> dict[int, Array]:
    """What the operators of a file make of a way to store a weight."""
    found = {}
    for bits, code in codes.items():
        wanted = (code.T if turned else code) * np.int8(2 ** max(0, 7 - way.held(bits)))
        w = Writer({"l.weight": np.ascontiguousarray(wanted)})
        SharedWriter({"l": (way, turned)}).write(w, "l", bits, "name")
        model = w.model([("l.weight", np.int8, wanted.shape)], {})
        found[bits] = inference_session(model.SerializeToString(), 1).run(None, {})[0]
        assert np.array_equal(found[bits], wanted), bits
    return found


STEPS = {"free": (False, False), "tied": (True, False), "zero points": (False, True), "some tied": (True, True)}


@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "transposed"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_once_gives_the_codes_of_every_width(kind: str, steps: str, turned: bool) -> None:
    tied, moved = STEPS[steps]
    made = weight(kind, tied=tied, moved=moved)
    way = shared(made, WIDTHS)
    codes = {bits: made.multiples(bits)[0].numpy() for bits in WIDTHS}
    if turned:
        codes = {bits: code[:, :, 0, 0] for bits, code in codes.items()}
        flat = MultiBitWeight(
            made.latent[:, :, 0, 0], made.latent_step, WIDTHS, made.steps, zero_points=made.zero_points
        )
        flat.set_rounding(made.kind, made.rounding[:, :, :, 0, 0], made.plane_of)
        way = shared(flat, WIDTHS)
    written(way, codes, turned)


@pytest.mark.parametrize(
    ("kind", "tied", "widths", "bits"),
    [
        ("one plane", True, WIDTHS, 9),  # the floor code of 8 bits and a plane
        ("one plane", False, WIDTHS, 12),  # the latent of 11 bits and a plane
        ("nearest", True, WIDTHS, 9),
        ("nearest", False, WIDTHS, 11),
        ("planes", False, (3, 4), 7),  # codes by themselves: no latent for two narrow widths
        ("planes", True, (2, 3, 8), 12),  # the floor code of 3 bits and a plane, and codes of 8 bits
        ("offset", False, (4, 8), 12),
    ],
)
def test_a_layer_is_stored_in_the_fewest_bits(kind: str, tied: bool, widths: tuple[int, ...], bits: int) -> None:
    way = shared(weight(kind, tied=tied), widths)
    assert way.size <= bits


def test_zero_points_take_no_bit_of_a_layer() -> None:
    for kind in KINDS:
        assert (
            shared(weight(kind, tied=False, moved=True), WIDTHS).size == shared(weight(kind, tied=False), WIDTHS).size
        )


def test_a_nested_artifact_gives_the_codes_that_it_stores() -> None:
    nested: CommittedWeight = nested_of(weight("one plane", tied=True))
    way = shared(nested, WIDTHS)
    assert way.size == 9
    written(way, {bits: nested.code(bits).numpy() for bits in WIDTHS}, turned=False)


@pytest.mark.parametrize("zero_points", [False, True])
def test_every_width_is_the_static_file_of_that_width_in_any_order(zero_points: bool, tmp_path: Path) -> None:
    model, x = every_layer(zero_points)
    widths = [f"w{bits}a8" for bits in WIDTHS]
    write_export(model, tmp_path / "multi", x, widths, form="multi")
    draft = Draft(model, x, widths)
    session = Session(tmp_path / "multi")
    for bits in (8, 2, 5, 3, 8, 7, 4, 6):
        alone = exact_session(draft.static(f"w{bits}a8"))
        session.switch(f"w{bits}a8")
        assert np.array_equal(session(x.numpy()), alone.run(None, {"images": x.numpy()})[0]), bits


def test_a_nested_artifact_is_exported_as_it_was(tmp_path: Path) -> None:
    _, x = every_layer()
    tied = ptmq.quantize(EveryLayer().eval(), x, bits=[["w3a8"], ["w5a8"], ["w8a8"]], overrides=["step_size=nested"])
    artifact.save(tied, tmp_path / "model", packing="nested")
    loaded = artifact.load(tmp_path / "model")
    one, other = (Draft(made, x, ["w3a8", "w8a8", "w5a8"]).multi() for made in (tied, loaded))
    runs = [inference_session(made.SerializeToString(), 1) for made in (one, other)]
    for bits in (3, 5, 8):
        feed = {"images": x.numpy(), "bits": np.array(bits)}
        assert np.array_equal(*(run.run(None, feed)[0] for run in runs))


def test_a_file_with_every_width_is_plain_onnx_and_packed_once() -> None:
    model, x = every_layer()
    draft = Draft(model, x, [f"w{bits}a8" for bits in WIDTHS])
    made = draft.multi()
    onnx.checker.check_model(made, full_check=True)
    onnx.checker.check_model(as_portable(made, "onnx"), full_check=True)
    assert [i.name for i in made.graph.input] == ["images", "bits"]
    names = [tensor.name for tensor in made.graph.initializer]
    assert len(names) == len(set(names))
    weights = {t.name for t in made.graph.initializer if ".weight." in t.name}
    packed = sum(len(t.raw_data) for t in made.graph.initializer if t.name in weights)
    count = sum(w.code(8).numel() for _, w in weights_of(model))
    assert 8 * packed / count < 11.6  # latents of 11 bits, rounded to nearest, and whole bytes of small layers


def test_branches_read_packed_weights_and_nothing_else_of_the_graph_around_them() -> None:
    model, x = every_layer()
    made = Draft(model, x, ["w2a8", "w4a8", "w8a8"]).multi()
    outer = {t.name: t.data_type for t in made.graph.initializer if ".weight." in t.name}
    assert set(outer.values()) == {onnx.TensorProto.UINT8}  # onnxruntime-web fails on scales and zero points there


def test_widths_that_are_no_uniform_ones_are_chosen_by_an_index(tmp_path: Path) -> None:
    model = small_model()
    mixed = {name: "w8a8" if name.endswith("conv2") else "w3a3" for name, i in model.layers.items() if not i.pinned}
    model.assignments["mixed"] = model.resolve(mixed)
    write_export(model, tmp_path / "out", images(), ["w4a4", "mixed", "w4a8"], form="multi")
    opened = exact_session((tmp_path / "out" / "model.onnx").read_bytes())
    names = json.loads(opened.get_modelmeta().custom_metadata_map["ptmq.assignment"])
    assert names == {"w4a4": 0, "mixed": 1, "w4a8": 2} == read_manifest(tmp_path / "out")["choice"]["values"]
    session = Session(tmp_path / "out")
    for name, index in names.items():
        session.switch(name)
        feed = {"images": images().numpy(), "assignment": np.array(index)}
        assert np.array_equal(session(images().numpy()), opened.run(None, feed)[0])


def test_a_width_that_is_not_in_the_file_is_an_error_and_no_other_width() -> None:
    model, x = every_layer()
    opened = inference_session(Draft(model, x, ["w2a8", "w4a8"]).multi().SerializeToString(), 1)
    for bits in (3, 8):
        with pytest.raises(Exception, match="out of data bounds"):
            opened.run(None, {"images": x.numpy(), "bits": np.array(bits)})


def test_a_session_refuses_a_width_that_is_not_in_the_file(tmp_path: Path) -> None:
    write_export(small_model(), tmp_path / "out", images(), ["w4a4", "w8a8"], form="multi")
    session = Session(tmp_path / "out")
    with pytest.raises(ConfigError, match="was not exported; found w4a4, w8a8"):
        session.switch("w3a3")


def test_one_width_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found one width, w4a4.*form=static"):
        write_export(small_model(), tmp_path / "out", images(), ["w4a4"], form="multi")


def test_an_export_tells_how_to_choose_and_what_opening_costs(tmp_path: Path) -> None:
    write_export(small_model(), tmp_path / "out", images(), ["w4a4", "w8a8"], form="multi")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["choice"] == {"input": "bits", "values": {"w4a4": 4, "w8a8": 8}}
    assert 0 < manifest["opening"]["seconds"] < 60
    held, trimmed = (manifest["opening"][key] for key in ("held", "trimmed"))
    assert (held is None and trimmed is None) or 0 < trimmed <= held
    assert set(manifest["alone"]) == {"w4a4", "w8a8"}
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| w4a4 | 4 |" in page and "opening it takes" in page


def test_a_session_hands_back_what_opening_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_export(small_model(), tmp_path / "out", images(), ["w4a4", "w8a8"], form="multi")
    calls: list[int] = []
    monkeypatch.setattr("ptmq_lightning.export.session.release_freed_memory", lambda: calls.append(1))
    Session(tmp_path / "out")
    assert calls == [1]


def test_an_altered_page_is_noticed_and_an_export_replaces_its_own(tmp_path: Path) -> None:
    for widths in (["w4a4", "w8a8"], ["w4a4", "w3a3"]):
        write_export(small_model(), tmp_path / "out", images(), widths, form="multi")
    (tmp_path / "out" / "README.md").write_text("other", encoding="utf-8")
    with pytest.raises(ExportError, match=r"README\.md"):
        Session(tmp_path / "out")


def test_a_bias_that_widens_a_channel_leaves_the_other_widths_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_packed, "WORTH", 0)
    made = weight("one plane", tied=True)
    way = shared(made, WIDTHS)
    wanted = made.code(4).numpy() * np.int8(8)
    wanted[0] = wanted[0] // 3  # as values._widen_for_bias does
    w = Writer({"l.weight": wanted})
    SharedWriter({"l": (way, False)}).write(w, "l", 4, "w4a4")
    model = w.model([("l.weight", np.int8, wanted.shape)], {})
    assert np.array_equal(inference_session(model.SerializeToString(), 1).run(None, {})[0], wanted)
