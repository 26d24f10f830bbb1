"""``phalanx convert``: a state dict that torch.save wrote becomes safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phalanx.cli.common import echo
from phalanx.cli.foreign_model import build_network, options_of
from phalanx.errors import InputError
from phalanx.storage import check_output

if TYPE_CHECKING:
    from phalanx.nn.weights import Weights

EPILOG = """Examples:

  phalanx convert resnet20.th resnet20.safetensors

  phalanx convert resnet20.th resnet20.safetensors --model resnet20_cifar \\
      --model-option shortcut=pad --classes 10
"""


def command(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A file of torch.save, or of safetensors.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="What is written.")],
    model: Annotated[
        str | None, typer.Option(help="Hold it against this classifier of timm's registry.")
    ] = None,
    model_option: Annotated[
        list[str] | None, typer.Option(help="key=value of --model; may be repeated.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Of --model; absent: its own default.")
    ] = None,
) -> None:
    """Turn a state dict over into safetensors, unpickling no code.

    Without --model the tensors keep their names. With it they get the model's name for its
    classifier, and must fit: if they do not, what is missing or left over is said, nothing is
    written, and the exit code is 2.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: what is written is safetensors; give it the ending .safetensors")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file")
    if model is None and (model_option or classes is not None):
        raise InputError("--model-option and --classes describe a --model NAME, and none is given")
    options = options_of(model_option or ())
    check_output(out.parent, "the folder of OUT,")

    from phalanx.nn.weights import read_weights
    from phalanx.training.files import write_tensors

    weights = read_weights(source)
    tensors, told = dict(weights.tensors), ""
    if model is not None:
        from phalanx.nn.fit import fit

        plan = fit(build_network(model, options, classes=classes), weights.tensors)
        if plan.problem:
            raise _misfit(weights, model, plan.problem)
        tensors = dict(plan.tensors)
        told = f"; fits {model}: nothing missing, nothing left over"
        told += "".join(f", {old!r} is now {new!r}" for old, new in plan.fit.renamed.items())
    digest = write_tensors(out, tensors)
    echo(f"{source}: {len(tensors)} tensors{told}")
    echo(f"wrote {out}")
    echo(f"sha256 {digest}")


def _misfit(weights: Weights, model: str, problem: str) -> InputError:
    return InputError(f"{weights.path} does not fit {model}: {problem}; nothing was written")
