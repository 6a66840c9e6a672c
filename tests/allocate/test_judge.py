"""The judge of whole answers: nothing is lost at float's own answers, and labels are counted where there are some."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptmq_lightning.allocate.judge import Judge
from ptmq_lightning.artifact import artifact
from ptmq_lightning.runtime.model import passthrough
from tests.artifact.tiny import tiny_model
from tests.networks import images, small_model


def test_agreement_and_divergence_are_those_of_the_logits() -> None:
    model, x = small_model(), images(32)
    judge, low = Judge(model, x, batch=10), model.resolve("w3a3")
    answers = judge.ask(low)
    with torch.no_grad():
        with passthrough(model):
            p = model(x).double().log_softmax(1)
        model.switch("w3a3")
        q = model(x).double().log_softmax(1)
    assert answers.divergence == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)  # float32 logits
    assert answers.agreement == 100 * float((p.argmax(1) == q.argmax(1)).double().mean())
    assert float(judge.divergences(low).mean()) == answers.divergence and len(judge.divergences(low)) == 32
    assert answers.top1 is None and judge.drop(low) == 100 - answers.agreement
    assert judge.asked == 1


def test_with_labels_the_drop_is_of_accuracy() -> None:
    model, x = small_model(), images(32)
    with passthrough(model), torch.no_grad():
        labels = model(x).argmax(1)
    judge, low = Judge(model, x, labels), model.resolve("w3a3")
    assert judge.top1 == 100 and judge.measures == "top-1"
    assert judge.drop(low) == 100 - (judge.ask(low).top1 or 0)


def test_the_selection_is_the_same_afterwards() -> None:
    model = small_model()
    model.switch("w4a4")
    Judge(model, images(4)).ask(model.resolve("w3a3"))
    assert model.active == model.resolve("w4a4")


def test_a_model_without_float_is_held_against_its_widest_pair(tmp_path: Path) -> None:
    model = artifact.load(artifact.save(tiny_model(), tmp_path / "tiny", "nested"))
    answers = Judge(model, torch.randn(8, 3)).ask(model.resolve(max(model.pairs)))
    assert not model.has_float and (answers.divergence, answers.agreement) == (0, 100)
