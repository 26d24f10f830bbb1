"""PDD from checkpoints: all three members from one file of another number of classes."""

import timm
import torch
from safetensors.torch import save_file

import phalanx
import phalanx.nn  # registers our backbones in timm


def test_three_members_from_one_file(tmp_path):
    torch.manual_seed(2)
    tensors = timm.create_model("small_cnn", num_classes=100, in_chans=3).state_dict()
    save_file(tensors, tmp_path / "small.safetensors")
    config = {
        "data": {"use": "digits", "limit": 64},
        "defense": {"use": "pdd", "params": {"members": 3, "backbone": "small_cnn"}},
        "init": {"from": tmp_path / "small.safetensors"},
        "training": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-30}},
    }
    run = phalanx.train(config, out=tmp_path / "run")
    heads = []
    for member in run.model.members:
        own = member.backbone.state_dict()
        head = member.backbone.classifier_name
        convolutions = [name for name in tensors if tensors[name].ndim == 4]
        first, *others = convolutions
        assert torch.allclose(own[first], tensors[first].sum(1, keepdim=True))
        assert others
        assert all(torch.equal(own[name], tensors[name]) for name in others)
        heads.append(own[f"{head}.weight"])
    assert not torch.equal(heads[0], heads[1]), "each member keeps the head that it was built with"
