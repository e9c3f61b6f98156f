from __future__ import annotations

import json

from limbeck.cli import main


def test_the_listing_has_kind_owner_and_summary_of_each(capfd):
    assert main.run(["plugins", "--json"]) == 0
    listing = json.loads(capfd.readouterr().out)
    rows = {(row["kind"], row["name"]): row for row in listing["plugins"]}
    row = rows["loss", "forward_kl"]
    assert row["distribution"] == "limbeck"
    assert row["version"]
    assert row["summary"]
    assert {"teacher", "generator", "loss", "scheduler"} == {kind for kind, _ in rows}
    assert listing["clashes"] == []


def test_people_get_a_table_and_the_failures(limbeck, noisy_site):
    done = limbeck("plugins", site=noisy_site)
    assert done.code == 0
    assert "forward_kl" in done.out
    assert "failed: noisy-plugin 1.0 (noisy): offers nothing" in done.out


def test_show_tells_each_field(capsys):
    assert main.run(["plugins", "show", "jsd"]) == 0
    text = capsys.readouterr().out
    assert "jsd (loss, limbeck" in text
    for field in ("weight", "temperature", "teacher_weight", "top_k", "tail"):
        assert f"\n {field} " in text
    assert "Share w of the teacher" in text


def test_show_for_machines_has_the_schema(capfd):
    assert main.run(["plugins", "show", "jsd", "--json"]) == 0
    (plugin,) = json.loads(capfd.readouterr().out)
    assert plugin["loss_kind"] == "token"
    fields = {field["name"]: field for field in plugin["fields"]}
    assert fields["teacher_weight"]["knob"]
    assert fields["top_k"] == {
        "name": "top_k",
        "required": False,
        "knob": False,
        "default": 64,
        "description": fields["top_k"]["description"],
    }
    assert plugin["schema"]["properties"]["plugin"]["const"] == "jsd"


def test_show_of_an_unknown_name_gives_the_nearest(capsys):
    assert main.run(["plugins", "show", "forwardkl"]) == 2
    assert "did you mean 'forward_kl'?" in capsys.readouterr().err


def test_show_of_one_kind_only(capsys):
    assert main.run(["plugins", "show", "jsd", "--kind", "teacher"]) == 2
    assert "no teacher is called 'jsd'" in capsys.readouterr().err
