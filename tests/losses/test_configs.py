"""What a recipe may say of a loss, and what that asks of a teacher."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from limbeck.interfaces import Needs
from limbeck.losses import PLUGINS

BY_NAME = {plugin.name: plugin for plugin in PLUGINS}


def test_trls_beta_is_the_teachers_weight() -> None:
    assert BY_NAME["jsd"].config.model_validate({"beta": 0.3}) == BY_NAME["jsd"].config(teacher_weight=0.3)


@pytest.mark.parametrize(("beta", "plugin"), [(0, "forward_kl"), (1.0, "reverse_kl")])
def test_betas_ends_name_the_loss_that_they_are(beta: float, plugin: str) -> None:
    with pytest.raises(ValidationError, match=plugin):
        BY_NAME["jsd"].config.model_validate({"beta": beta})


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="beta"):
        BY_NAME["jsd"].config.model_validate({"beta": 0.3, "teacher_weight": 0.3})


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("forward_kl", {"temperature": 0.0}),
        ("forward_kl", {"temperature": float("nan")}),
        ("forward_kl", {"tail": "keep"}),
        ("forward_kl", {"top_k": 0}),
        ("forward_kl", {"weight": -1.0}),
        ("forward_kl", {"weight": "1e-4"}),
        ("jsd", {"teacher_weight": 1.0}),
        ("contrastive", {"beta": 0.0}),
        ("cross_entropy", {"temperature": 2.0}),
        ("hidden_mse", {}),
        ("hidden_mse", {"layers": [[1]]}),
    ],
)
def test_values_out_of_range_are_refused(plugin: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BY_NAME[plugin].config.model_validate(options)


def test_a_knob_may_be_a_schedule() -> None:
    schedule = {"plugin": "linear", "start": 2.0, "end": 1.0}
    config = BY_NAME["forward_kl"].config.model_validate({"temperature": schedule, "weight": schedule})
    assert config.temperature.plugin == "linear"  # type: ignore[attr-defined]


def test_what_each_asks_of_the_teacher() -> None:
    def needs(name: str, **options: object) -> Needs:
        return BY_NAME[name].needs(BY_NAME[name].config.model_validate(options))

    assert {needs(name).primitive for name in ("forward_kl", "reverse_kl", "jsd")} == {"top_k"}
    assert needs("cross_entropy") == Needs()
    assert needs("sequence_kd") == Needs(teacher_text=True)
    assert needs("contrastive") == Needs("target", normaliser="pairs", pairs=True)
    hidden = needs("hidden_mse", layers=[[2, 4], [1, 2], [2, -1]])
    assert (hidden.student_layers, hidden.teacher_layers) == ((1, 2), (-1, 2, 4))


def test_configs_and_needs_import_no_torch() -> None:
    code = (
        "import sys; from limbeck.losses import PLUGINS\n"
        "[p.needs(p.config.model_validate({'layers': [[1, 1]]} if p.name == 'hidden_mse' else {})) for p in PLUGINS]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
