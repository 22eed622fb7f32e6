"""The survey from end to end, on stub families: files, rows that fail, resuming, interrupts."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.datasets import load
from ppgen.datasets.split import DataSet
from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.checkpoint import load_model
from ppgen.inference.run import Run
from ppgen.inference.svi import fit
from ppgen.models.family import Family
from ppgen.report import plan
from ppgen.report.survey import SurveyResult, survey
from ppgen.report.table import Row, read_table
from tests.report.stubs import Implicit, Normal, PageChecker, Unnormalised, broken, family, images, points


class Given(Normal):
    """A density given a context, which it asks for and does not use."""

    context_dim = 2


FAMILIES = [
    family("plain"),
    family("nameless", Implicit),
    family("energy", Unnormalised, view="binary"),
    family("broken", build=broken),
]


def run(out: Path, families: list[Family], data: DataSet | None = None, **options: Any) -> SurveyResult:
    given = {"budget": 600.0, "device": "cpu", "num_samples": 40, "progress": False, **options}
    return survey(images() if data is None else data, families=families, out=out, **given)


def by_name(result: SurveyResult) -> dict[str, Row]:
    return {row.name: row for row in result.rows if row.group == "family"}


@pytest.fixture(name="done", scope="module")
def finished_survey(tmp_path_factory: pytest.TempPathFactory) -> SurveyResult:
    return run(tmp_path_factory.mktemp("survey"), FAMILIES)


def test_rows_say_what_they_are(done: SurveyResult) -> None:
    rows = by_name(done)
    assert list(rows) == ["plain", "nameless", "broken", "energy"]  # rows of one view stand together
    plain = rows["plain"].bits_per_dim
    assert plain is not None
    assert plain.kind == "upper_bound"
    assert rows["plain"].epochs == 3
    assert rows["nameless"].notes["bits_per_dim"] == "none (implicit)"
    assert rows["energy"].values == "binary"
    assert not done.ok


def test_what_is_done_has_no_reason_and_the_rest_have_one(done: SurveyResult) -> None:
    rows = by_name(done)
    assert {name: row.reason is None for name, row in rows.items()} == {
        name: row.status == "done" for name, row in rows.items()
    }


def test_all_leaves_out_what_is_not_for_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that wants a context is skipped among all, and fails where it is named."""
    given = family("given", Given)
    known = {"plain": FAMILIES[0], "given": given}
    monkeypatch.setattr(plan, "registered_families", lambda: known)
    options: dict[str, Any] = {"budget": 600.0, "device": "cpu", "num_samples": 40, "progress": False}
    among = survey(images(), families=["all"], out=tmp_path / "all", **options)
    assert {n: r.status for n, r in by_name(among).items()} == {"plain": "done", "given": "skipped"}
    assert among.ok
    named = by_name(survey(images(), families=["given"], out=tmp_path / "named", **options))
    assert named["given"].status == "failed"
    assert "given a context" in str(named["given"].reason)


def test_one_failing_family_does_not_stop_the_others(done: SurveyResult) -> None:
    row = by_name(done)["broken"]
    assert row.status == "failed"
    assert row.reason == "ValueError: no network for <this> shape"
    assert by_name(done)["energy"].kid is None or by_name(done)["energy"].status == "done"


def test_the_files_agree(done: SurveyResult) -> None:
    out = done.path.parent
    rows, environment = read_table(out / "table.json")
    assert rows == done.rows
    assert environment == done.environment
    assert {"python", "torch", "pyro", "ppgen", "device", "seed", "seconds", "date"} <= set(environment)
    frame = done.to_frame()
    assert (out / "table.csv").read_text().splitlines()[0].split(",") == list(frame.columns)
    assert len((out / "table.csv").read_text().splitlines()) == 1 + len(done.rows)
    for name in ("samples.png", "data.png", "curves.png", "curves-dark.png"):
        assert (out / "families" / "plain" / name).read_bytes().startswith(b"\x89PNG")
    model = load_model(out / "families" / "plain" / "model")
    assert isinstance(model, Normal)
    assert not torch.equal(model.loc, torch.zeros_like(model.loc))


def test_the_page_is_whole_and_needs_nothing_beside_it(done: SurveyResult) -> None:
    text = done.path.read_text()
    page = PageChecker(text)
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))
    assert page.images
    assert all(image.get("alt") for image in page.images)
    assert all(url.startswith("data:image/png;base64,") for url in page.urls)
    assert "http" not in re.sub(r'"data:image/png;base64,[^"]*"', "", text)
    assert "url(" not in text
    assert "<script" not in text
    anchors = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids)
    for row in done.rows:
        assert any(row.title in line for line in page.rows), row.title
    (failed,) = [line for line in page.rows if "Stub broken" in line]
    assert "failed" in failed
    assert "ValueError: no network for <this> shape" in failed
    (nameless,) = [line for line in page.rows if "Stub nameless" in line]
    assert "none (implicit)" in nameless
    (energy,) = [line for line in page.rows if "Stub energy" in line]
    assert "unnormalised" in energy
    assert "cannot be compared with those in the other" in page.text
    assert "How to read plain & <others>." in page.text
    assert done.environment["torch"] in page.text


def test_a_broken_page_would_be_noticed() -> None:
    assert PageChecker("<div><p>x</div>").faults


def test_a_second_run_keeps_what_is_done(
    done: SurveyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, FAMILIES[:2])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr("ppgen.report.survey.fit", refuse)
    second = run(tmp_path, FAMILIES[:2])
    assert by_name(second) == by_name(first)
    assert second.findings == first.findings
    # Another seed is another survey.
    assert by_name(run(tmp_path, FAMILIES[:1], seed=1))["plain"].status == "failed"


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "record.json").write_text('{"schema": 1'),
        lambda place: (place / "model" / "tensors.safetensors").write_bytes(b"cut"),
        lambda place: (place / "samples.png").unlink(),
    ],
    ids=["record", "model", "picture"],
)
def test_what_is_damaged_is_measured_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    first = by_name(run(tmp_path, FAMILIES[:1]))["plain"]
    place = tmp_path / "families" / "plain"
    damage(place)
    second = by_name(run(tmp_path, FAMILIES[:1]))["plain"]
    assert second.status == "done"
    assert second.bits_per_dim == first.bits_per_dim
    assert json.loads((place / "record.json").read_text())["schema"] == 1
    assert (place / "samples.png").is_file()
    load_model(place / "model")


class Interrupting(Normal):
    """Presses Ctrl-C at a given draw."""

    presses = 0

    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        if Interrupting.presses > 0:
            Interrupting.presses -= 1
            raise KeyboardInterrupt
        return super().sample(num, context, seed=seed)


def test_ctrl_c_leaves_a_page_and_the_next_run_goes_on(tmp_path: Path) -> None:
    families = [family("first"), family("second", Interrupting), family("third")]
    Interrupting.presses = 1
    stopped = run(tmp_path, families)
    assert stopped.interrupted
    assert not stopped.ok
    assert [r.status for r in by_name(stopped).values()] == ["done", "interrupted", "pending"]
    page = PageChecker(stopped.path.read_text())
    assert page.faults == []
    assert "goes on from where it stopped" in page.text
    # The training of the second was over: its checkpoint is there, and nothing is trained anew.
    assert list((tmp_path / "families" / "second").glob("checkpoint-*/step-*"))
    resumed = run(tmp_path, families)
    assert resumed.ok
    assert "interrupted" not in PageChecker(resumed.path.read_text()).text
    assert not list((tmp_path / "families" / "second").glob("checkpoint-*"))


def test_an_interrupted_training_goes_on_to_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_name(run(tmp_path / "whole", FAMILIES[:1]))["plain"]
    original = Run._end_epoch
    ended: list[int] = []

    def press(self: Any) -> None:
        original(self)
        ended.append(self.result.epochs)
        if len(ended) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "_end_epoch", press)
    stopped = by_name(run(tmp_path / "cut", FAMILIES[:1]))["plain"]
    assert stopped.status == "interrupted"
    assert stopped.reason is not None
    assert "2 epochs" in stopped.reason
    resumed = by_name(run(tmp_path / "cut", FAMILIES[:1]))["plain"]
    assert ended == [1, 2, 3]
    for figure in ("bits_per_dim", "fid", "epochs", "steps"):
        assert getattr(resumed, figure) == getattr(whole, figure), figure


def test_points_are_drawn_as_points_and_binary_families_say_no(tmp_path: Path) -> None:
    families = [family("plain"), family("bits", view="binary")]
    result = run(tmp_path, families, points())
    rows = {row.name: row for row in result.rows}
    assert rows["plain"].status == "done"
    assert rows["plain"].values == "real"
    assert rows["bits"].status == "failed"
    assert "binary data" in str(rows["bits"].reason)
    assert rows["truth"].bits_per_dim is not None
    page = PageChecker(result.path.read_text())
    assert page.faults == []
    assert any("scatter" in str(image["alt"]) for image in page.images)
    assert not (tmp_path / "families" / "plain" / "data.png").exists()


def test_families_that_are_not_for_the_data_are_skipped_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {f.name: f for f in (family("plain"), family("bits", view="binary"))}
    monkeypatch.setattr("ppgen.report.plan.registered_families", lambda: known)
    given: dict[str, Any] = {"budget": 600.0, "device": "cpu", "num_samples": 40, "progress": False}
    result = survey(points(), out=tmp_path, **given)
    assert {name: row.status for name, row in by_name(result).items()} == {
        "plain": "done",
        "bits": "skipped",
    }
    assert result.ok
    assert "1 of 2 families measured, 1 skipped" in str(result)
    (line,) = [text for text in PageChecker(result.path.read_text()).rows if "Stub bits" in text]
    assert "skipped" in line
    asked = survey(points(), families=["bits"], out=tmp_path, **given)
    assert by_name(asked)["bits"].status == "failed"
    assert not asked.ok


def test_a_row_is_kept_only_if_it_had_about_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[float] = []

    def note(*given: Any, **options: Any) -> Any:
        trained.append(options["max_seconds"])
        return fit(*given, **options)

    monkeypatch.setattr("ppgen.report.survey.fit", note)
    # No number of epochs ends them.
    one, other = (family(name, fit_options={"learning_rate": 0.05}) for name in ("one", "other"))
    run(tmp_path, [one, other], budget=2.0)
    assert len(trained) == 2
    run(tmp_path, [one, other], budget=2.0)
    assert len(trained) == 2
    # Alone, it may use the whole of the budget; with the others again, its share.
    run(tmp_path, [one], budget=2.0)
    assert trained[2:] == [2.0]
    run(tmp_path, [one, other], budget=2.0)
    assert trained[3] == 1.0


def test_a_row_that_did_all_its_epochs_is_kept_in_another_company(tmp_path: Path) -> None:
    first = by_name(run(tmp_path, FAMILIES[:2]))["plain"]
    assert by_name(run(tmp_path, FAMILIES[:1]))["plain"] == first


def test_other_labels_are_another_survey(tmp_path: Path) -> None:
    data = images()
    first = by_name(run(tmp_path, FAMILIES[:1], data))["plain"]
    assert data.train.y is not None
    shuffled = replace(data, train=replace(data.train, y=data.train.y.roll(1)))
    second = by_name(run(tmp_path, FAMILIES[:1], shuffled))["plain"]
    assert second.bits_per_dim == first.bits_per_dim
    assert second.fid != first.fid


def test_doubts_about_the_data_are_warned_of_and_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,flat\n" + "".join(f"{i * i % 17}.5,3.25\n" for i in range(40)))
    given: dict[str, Any] = {"families": [family("plain")], "device": "cpu", "progress": False}
    with pytest.warns(DataWarning, match="flat are constant"):
        result = survey(path, out=tmp_path / "out", **given)
    assert "column(s) flat are constant" in PageChecker(result.path.read_text()).text
    with pytest.warns(DataWarning):
        loaded = load(path)
    again = survey(loaded, out=tmp_path / "out", **given)
    assert "column(s) 1 are constant" in PageChecker(again.path.read_text()).text


def test_a_label_column_is_told(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,kind\n" + "".join(f"{i % 7}.5,{i * i % 11}.25,{'xy'[i % 2]}\n" for i in range(60)))
    given: dict[str, Any] = {"families": [family("plain")], "device": "cpu", "progress": False}
    result = survey(path, out=tmp_path / "out", load_options={"label": "kind"}, **given)
    assert result.ok
    with pytest.raises(ConfigError, match="load_options"):
        survey(points(), out=tmp_path, load_options={"label": "kind"}, **given)


def test_reasons_for_missing_figures_are_told_once(tmp_path: Path) -> None:
    data = images()
    few = replace(data, test=data.test.take(slice(0, 5)))
    page = PageChecker(run(tmp_path, FAMILIES[:2], few).path.read_text())
    assert page.text.count("needs 9 data or more") == 1
    assert "Stub plain, Stub nameless – no FID:" in page.text


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    result = run(tmp_path, [family("broken", build=broken)], threads=before + 1)
    assert result.environment["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="families: expected names among .*vae.* got 'nope'"):
        survey("digits", families=["nope"], out=tmp_path)
    with pytest.raises(ConfigError, match="each once"):
        run(tmp_path, [FAMILIES[0], FAMILIES[0]])
    with pytest.raises(ConfigError, match="one or more"):
        survey(images(), families=[], out=tmp_path)
    with pytest.raises(ConfigError, match="budget"):
        run(tmp_path, FAMILIES[:1], budget=0.0)
    with pytest.raises(ConfigError, match="threads"):
        run(tmp_path, FAMILIES[:1], threads=0)
    with pytest.raises(ConfigError, match="num_samples"):
        run(tmp_path, FAMILIES[:1], num_samples=1)
    with pytest.raises(ConfigError, match="seed"):
        run(tmp_path, FAMILIES[:1], seed=-1)
    data = images()
    with pytest.raises(DataError, match="2 training data or more"):
        run(tmp_path, FAMILIES[:1], replace(data, train=data.train.take(slice(0, 1))))
