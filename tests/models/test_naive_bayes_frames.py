"""Naive Bayes on DataFrames: names kept, scikit-learn as the oracle, gaps, bad tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import ppgen
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.metrics import nll
from ppgen.models.naive_bayes import NaiveBayes
from ppgen.ops.random import forked_rng


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def birds(num: int = 120) -> pandas.DataFrame:
    """Text, categories of which one is unseen, booleans, numbers, an index of names."""
    rng = np.random.default_rng(0)
    species = rng.choice(["Adelie", "Gentoo", "Chinstrap"], num)
    gentoo = species == "Gentoo"
    return pandas.DataFrame(
        {
            "bill": 40 + 8 * gentoo + rng.normal(size=num),
            "island": np.where(rng.random(num) < 0.2 + 0.6 * gentoo, "Biscoe", "Dream").astype(object),
            "tagged": rng.random(num) < 0.3 + 0.3 * (species == "Adelie"),
            "size": pandas.Categorical(rng.choice(["s", "m"], num), categories=["s", "m", "l"]),
            "species": species.astype(object),
        },
        index=[f"bird {i}" for i in range(num)],
    )


def fitted(frame: pandas.DataFrame, **options: Any) -> NaiveBayes:
    model = NaiveBayes.of_frame(frame, **{"label": "species"} | options).double()
    ppgen.fit(model, model.from_frame(frame), progress=False, device="cpu")
    return model


def scikit_learn(frame: pandas.DataFrame, model: NaiveBayes, real: list[str]) -> np.ndarray[Any, Any]:
    """Log p(x, y) of rows by two models of scikit-learn, one for each kind of column."""
    from sklearn.naive_bayes import CategoricalNB, GaussianNB

    y = frame[str(model.config["label"])].to_numpy()
    others = [name for name in frame.columns if name not in (*real, str(model.config["label"]))]
    codes = np.stack([pandas.factorize(frame[name], sort=True)[0] for name in others], 1)
    if "size" in others:
        codes[:, others.index("size")] = frame["size"].cat.codes
    sizes = [dict(zip(model.config["names"], model.config["columns"], strict=True))[name] for name in others]
    gaussian = GaussianNB(var_smoothing=0).fit(frame[real].to_numpy(), y)
    categorical = CategoricalNB(alpha=1.0, min_categories=sizes).fit(codes, y)
    assert tuple(gaussian.classes_) == model.class_names
    both = gaussian.predict_joint_log_proba(frame[real].to_numpy())
    found: np.ndarray[Any, Any] = both + categorical.predict_joint_log_proba(codes)
    return found - np.log(gaussian.class_prior_)


def test_columns_are_read_as_what_they_are() -> None:
    model = NaiveBayes.of_frame(birds(), label="species")
    assert (model.config["names"], model.config["columns"]) == (
        ["bill", "island", "tagged", "size"],
        [0, 2, 2, 3],
    )
    assert model.class_names == ("Adelie", "Chinstrap", "Gentoo")
    levels = {"tagged": None, "size": ["m", "s"], "species": ["Gentoo", "Adelie", "Chinstrap", "Emperor"]}
    other = NaiveBayes.of_frame(birds(), label="species", levels=levels)
    assert other.config["columns"] == [0, 2, 0, 2]
    assert other.class_names == tuple(levels["species"] or ())
    numbers = birds().assign(year=np.arange(120) % 3, visits=np.arange(120))
    assert NaiveBayes.of_frame(numbers, label="year").class_names == (0, 1, 2)
    assert NaiveBayes.of_frame(numbers, label="tagged").class_names == (False, True)
    assert NaiveBayes.of_frame(numbers, label="species").config["columns"] == [0, 2, 2, 3, 0, 0]


def test_fits_are_those_of_scikit_learn() -> None:
    frame = birds()
    model = fitted(frame)
    joint = scikit_learn(frame, model, ["bill"])
    found = model.log_joint(model.from_frame(frame).x).detach().numpy()
    np.testing.assert_allclose(found, joint, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        model.classify(frame).to_numpy(), torch.tensor(joint).softmax(-1), rtol=1e-5, atol=1e-9
    )


def test_real_tables(data_dir: Path) -> None:
    """Boston: prices in three classes of text, the river as a boolean, the reach of roads as text."""
    frame = pandas.read_csv(data_dir / "rdatasets_small" / "Boston.csv").drop(columns="rownames")
    price = pandas.cut(frame.pop("medv"), [0, 18, 24, 60], labels=["low", "middle", "high"]).astype(str)
    frame = frame.assign(chas=frame["chas"] == 1, rad=frame["rad"].map("road {}".format), price=price)
    model = fitted(frame, label="price")
    real = [name for name in frame.columns if name not in ("chas", "rad", "price")]
    found = model.log_joint(model.from_frame(frame).x).detach().numpy()
    joint = scikit_learn(frame, model, real)
    # The least variance is a share of each column's own here; no class of these is near it.
    np.testing.assert_allclose(found, joint, rtol=1e-6, atol=1e-5)
    assert (model.predict(frame) == frame["price"]).mean() > 0.65  # the largest class has 0.38


def test_what_is_said_of_a_frame_has_its_names() -> None:
    frame = birds()
    model = fitted(frame)
    guesses, shares = model.predict(frame.drop(columns="species")), model.classify(frame)
    assert guesses.index.equals(frame.index)
    assert guesses.name == "species"
    assert (guesses == frame["species"]).mean() > 0.6
    assert shares.index.equals(frame.index)
    assert list(shares.columns) == ["Adelie", "Chinstrap", "Gentoo"]
    assert shares.idxmax(axis=1).equals(guesses)
    x = model.from_frame(frame).x
    assert [model.class_names[k] for k in model.predict(x).tolist()] == guesses.tolist()
    row = frame.iloc[7]
    for one in (row, row.to_dict(), frame.iloc[[7]]):
        assert model.predict(one).tolist() == [guesses.iloc[7]]
    few = model.classify({"island": "Biscoe"})
    alone = model.classify(torch.tensor([[torch.nan, 0.0, torch.nan, torch.nan]], dtype=torch.float64))
    np.testing.assert_array_equal(few.to_numpy(), alone.detach())


def test_rows_come_back_as_they_were() -> None:
    frame = birds()
    frame.loc["bird 3", "island"], frame.loc["bird 4", "bill"] = None, np.nan
    frame.loc["bird 5", "species"] = None
    model = NaiveBayes.of_frame(frame, label="species").double()
    data = model.from_frame(frame)
    assert data.y is not None
    assert (data.y >= 0).tolist() == frame["species"].notna().tolist()
    again = model.to_frame(data.x, data.y)
    for name in frame.columns:
        theirs, ours = frame[name].tolist(), again[name].tolist()
        assert all(a == b or (pandas.isna(a) and pandas.isna(b)) for a, b in zip(theirs, ours, strict=True))
    assert model.from_frame(frame.drop(columns="species")).y is None
    assert model.from_frame(again.iloc[:, ::-1]).x.nan_to_num(-9.0).equal(data.x.nan_to_num(-9.0))


def test_gaps_are_left_out_and_drawn() -> None:
    frame = birds()
    frame.loc[frame.index[::4], "island"] = None
    model = fitted(frame)
    known = model.from_frame(frame[frame["island"].notna()])
    alone = NaiveBayes.of_frame(frame[["island", "species"]], label="species").double()
    alone.initialise(known.x[:, 1:2], known.y)
    of_column = torch.tensor([[torch.nan, 1.0, torch.nan, torch.nan]], dtype=torch.float64)
    torch.testing.assert_close(
        model.log_joint(of_column) - model.class_probs.log(),
        alone.log_joint(of_column[:, 1:2]) - alone.class_probs.log(),
    )
    x = model.from_frame(frame).x
    drawn = model.to_frame(model.condition(x, ~x.isnan(), seed=0)[0])
    assert set(drawn["island"]) == {"Biscoe", "Dream"}


def test_missing_labels_are_learnt_from_by_em() -> None:
    frame = birds()
    few = frame.copy()
    few.loc[frame.index[30:], "species"] = None
    model = fitted(few)
    assert (model.predict(frame) == frame["species"]).mean() > 0.5
    data = model.from_frame(few)
    assert data.y is not None
    assert float(nll(model, data, context=data.y).value) < float(
        nll(fitted(few[:30]), data, context=data.y).value
    )


def test_names_are_saved(tmp_path: Path) -> None:
    frame = birds().assign(year=np.arange(120) % 3)
    model = fitted(frame, levels={"year": np.array([0, 1, 2])})
    ppgen.save(model, tmp_path)
    again = ppgen.load(tmp_path)
    assert isinstance(again, NaiveBayes)
    assert again.predict(frame).equals(model.predict(frame))
    assert again.classify(frame).equals(model.classify(frame))
    assert again.to_frame(again.sample(5, seed=1)).equals(model.to_frame(model.sample(5, seed=1)))


def test_draws_have_names() -> None:
    model = fitted(birds())
    y = torch.tensor([2, 0, -1])
    frame = model.to_frame(model.sample(3, y, seed=0), y)
    assert frame["species"].tolist()[:2] == ["Gentoo", "Adelie"]
    assert bool(frame["species"].isna()[2])
    with pytest.raises(ShapeError, match="3 data"):
        model.to_frame(model.sample(3, y, seed=0), y[:2])


FRAMES: dict[str, tuple[Callable[[pandas.DataFrame], Any], type[Exception], str]] = {
    "unseen": (lambda f: f.assign(island="Mars"), DataError, r"'island' has no level 'Mars' \(row 0\)"),
    "text": (lambda f: f.assign(bill="long"), DataError, r"'bill' has 'long' \(row 0\), expected finite"),
    "infinite": (lambda f: f.assign(bill=np.inf), DataError, r"'bill' has inf \(row 0\)"),
    "column": (lambda f: f.drop(columns="size"), DataError, "no column 'size'"),
    "class": (lambda f: f.assign(species="Dodo"), DataError, r"'species' has no level 'Dodo' \(row 0\)"),
    "array": (lambda f: f.to_numpy(), DataError, "DataFrame"),
    "name": (lambda f: {"bil": 1.0}, ConfigError, "did you mean 'bill'"),
}


@pytest.mark.parametrize("which", FRAMES)
def test_rows_that_are_not_the_models(which: str) -> None:
    change, error, match = FRAMES[which]
    model = NaiveBayes.of_frame(birds(), label="species")
    with pytest.raises(error, match=match):
        model.from_frame(change(birds()))


TABLES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "label": ({"label": "specie"}, ConfigError, "did you mean 'species'"),
    "numbers": ({"label": "bill"}, ConfigError, r"label: expected .*levels=\{'bill'"),
    "levels": ({"levels": {"islnd": ["x"]}}, ConfigError, "did you mean 'island'"),
    "too few": ({"levels": {"island": ["Dream"]}}, DataError, "'Biscoe'"),
    "no data": ({"frame": birds()[["species"]]}, ConfigError, "beside columns of data"),
    "twice": ({"frame": birds()[["bill", "bill", "species"]]}, DataError, "one name"),
    "array": ({"frame": birds().to_numpy()}, DataError, "load_table"),
}


@pytest.mark.parametrize("which", TABLES)
def test_tables_that_are_none(which: str) -> None:
    options, error, match = TABLES[which]
    with pytest.raises(error, match=match):
        NaiveBayes.of_frame(**{"frame": birds(), "label": "species"} | options)


def test_models_without_names() -> None:
    with pytest.raises(ConfigError, match="of_frame"):
        NaiveBayes((2,), num_classes=2).predict(birds())
    for options, match in (
        ({"class_names": ["a"]}, "class_names: expected 2"),
        ({"columns": "bernoulli", "names": ["a", "b"]}, "columns"),
        ({"columns": (2, 0), "names": ["a", "b"], "level_names": [["x"], None]}, "levels"),
        ({"columns": (2, 0), "names": ["a", "class"]}, "label"),
        ({"columns": (2, 0), "names": ["a"]}, "names"),
    ):
        with pytest.raises(ConfigError, match=match):
            NaiveBayes((2,), num_classes=2, **options)
    numbered = NaiveBayes((2,), num_classes=2, columns=(3, 0), names=["a", "b"])
    assert numbered.predict({"a": 2}).isin([0, 1]).all()


def test_constant_columns_are_named_with_their_classes() -> None:
    frame = birds()
    frame = frame.assign(
        same=3.7, still=np.where(frame["species"] == "Gentoo", 1.0, np.arange(len(frame)) % 7)
    )
    model = NaiveBayes.of_frame(frame, label="species")
    with pytest.warns(
        UserWarning, match=r"'same' \(of every class\), 'still' \(of class 'Gentoo'\)"
    ) as found:
        ppgen.fit(model, model.from_frame(frame), progress=False, device="cpu")
    assert not any("states" in str(one.message) for one in found)


def test_units_do_not_matter() -> None:
    """Data of scale 1e-5 keep their variances, and a class that is constant its place."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64) + y[:, None]
    x[y == 1, 1] = 0.5
    shares = []
    for scale in (1.0, 1e-5, 1e5):
        model = NaiveBayes((2,), num_classes=3).double()
        model.initialise(scale * x, y)
        shares.append(model.classify(scale * x).detach())
    for other in shares[1:]:
        torch.testing.assert_close(other, shares[0], rtol=1e-6, atol=1e-9)
    absolute = NaiveBayes((2,), num_classes=3, min_variance=1e-6).double()
    absolute.initialise(1e-5 * x, y)
    assert float((absolute.classify(1e-5 * x).detach() - shares[0]).abs().max()) > 0.1
