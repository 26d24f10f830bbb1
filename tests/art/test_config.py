"""The config of ART's attacks: any parameter, frozen, through JSON and back, without torch."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from phalanx.art.config import ArtAttackConfig
from phalanx.config import UseAttack
from phalanx.specs import L2


def test_json_round_trip():
    config = ArtAttackConfig(name="AdversarialPatchPyTorch", threat="l2:1", patch_shape=(1, 4, 4))
    again = ArtAttackConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert hash(again) == hash(config)
    assert again.threat == L2(1.0)
    assert again.parameters == {"patch_shape": [1, 4, 4]}


def test_parameters_tell_configs_apart():
    assert ArtAttackConfig(name="DeepFool", max_iter=3) != ArtAttackConfig(name="DeepFool")


def test_frozen():
    config = ArtAttackConfig(name="DeepFool", max_iter=3)
    with pytest.raises(ValidationError):
        config.max_iter = 4


def test_by_its_registered_name():
    use = UseAttack.model_validate({"use": "art/DeepFool", "params": {"max_iter": 3}})
    assert use.params == ArtAttackConfig(name="DeepFool", max_iter=3)
    assert UseAttack.model_validate(use.model_dump()) == use
    assert UseAttack.model_validate(use) == use


def test_torch_free():
    code = (
        "import sys, phalanx.art.config; "
        "assert not {'torch', 'art', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
