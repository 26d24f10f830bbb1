"""RLS normalises with constants of its own, which a warm start must not mistake."""

import pytest

import phalanx
from phalanx.errors import ConfigError


def config(defense, *, source=None, **params):
    return {
        "data": {"use": "digits", "limit": 32},
        "defense": {"use": defense, "params": {"members": 3, "backbone": "small_cnn", **params}},
        "training": {"epochs": 1, "batch_size": 32},
        **({} if source is None else {"init": {"from": str(source)}}),
    }


def test_weights_of_another_normalisation_are_refused(tmp_path):
    first = phalanx.train(config("none"), out=tmp_path / "first")
    with pytest.raises(
        ConfigError,
        match=r"weights of first were trained with mean \(0\.3061,\), and this defense normalises "
        r"with \(0\.5,\); set normalization = 'dataset'",
    ):
        phalanx.train(config("rls", source=first.path), out=tmp_path / "second")
    second = phalanx.train(
        config("rls", source=first.path, normalization="dataset"), out=tmp_path / "second"
    )
    assert second.task.mean == first.task.mean


def test_its_weights_bring_its_own_constants(tmp_path):
    first = phalanx.train(config("rls"), out=tmp_path / "first")
    for defense in ("rls", "none"):
        run = phalanx.train(config(defense, source=first.path), out=tmp_path / defense)
        assert run.task.mean == (0.5,)
