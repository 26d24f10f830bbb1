"""A defended model as a classifier of the Adversarial Robustness Toolbox.

`Estimator` is a `PyTorchClassifier`, because ART's attacks test for that class itself; what it
computes is `phalanx.art.module.ArtModule`. It adds what ART's own class lacks: integer labels,
layers by dotted names, pickles without files, weights without pickle, and calls that leave
torch's global random state and the model's modes alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.utils import check_and_transform_label_format
from torch import Tensor, nn

from phalanx.art import weights
from phalanx.art.module import ArtModule
from phalanx.defense import DefendedModel
from phalanx.errors import ConfigError
from phalanx.randomness import seeded


def as_art(
    model: DefendedModel,
    view: str = "deployed",
    *,
    seed: int = 0,
    input_shape: tuple[int, int, int] | None = None,
    nb_classes: int | None = None,
) -> Estimator:
    """A defended model as an estimator that ART's attacks, trainers and metrics take.

    Args:
        model: shares its weights with the estimator; stays where it is, on the CPU or a GPU.
        view: which of ``model.views()`` is predicted and differentiated.
        seed: opens the view; a stochastic model draws afresh at each call, keyed by it.
        input_shape: ``(C, H, W)`` of one image; absent: that of the model's task.
        nb_classes: number of classes K; absent: that of the model's task.

    Raises:
        ConfigError: for an unknown view, or a model without a task where shape or classes lack.
    """
    if model.task is not None:
        input_shape = input_shape or model.task.shape
        nb_classes = nb_classes or model.task.classes
    problems = [
        f"{key}: the model has no task to take it from; pass as_art(model, {key}=…)"
        for key, value in (("input_shape", input_shape), ("nb_classes", nb_classes))
        if value is None
    ]
    if problems:
        raise ConfigError(problems, source="as_art")
    return Estimator(model, None, input_shape, nb_classes, view=view, seed=seed)


def load(model: DefendedModel, filename: str, path: str | None = None) -> Estimator:
    """The estimator that `Estimator.save` wrote: its weights into `model`, its view and seed.

    Raises:
        ArtifactError: if the file is missing, damaged or of another model.
    """
    header = weights.header(weights.file(filename, path))
    shape = tuple(header["input_shape"])
    estimator = Estimator(
        model, None, shape, header["nb_classes"], view=header["view"], seed=header["seed"]
    )
    estimator.load(filename, path)
    return estimator


class Estimator(PyTorchClassifier):
    """ART's PyTorch classifier around one view of a defended model.

    Images are ``(N, C, H, W)`` in [0, 1] of any real dtype, labels ``(N,)`` or one-hot ``(N, K)``;
    scores ``(N, K)`` are such that their softmax is the served probability.

    Args:
        model: a defended model, any module, or an `ArtModule`, which is not wrapped again.
        loss: cross-entropy of the scores unless given.
        input_shape: ``(C, H, W)``.
        nb_classes: K.
        optimizer: for `fit`; absent: SGD (0.01, momentum 0.9) over the model when it is fitted.
        view: which view of a defended model.
        seed: opens the view.
        art: further keywords of ART's class.
    """

    estimator_params: ClassVar[list[str]] = [*PyTorchClassifier.estimator_params, "view", "seed"]

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | None,
        input_shape: tuple[int, ...] | None,
        nb_classes: int | None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        view: str = "deployed",
        seed: int = 0,
        **art: Any,
    ) -> None:
        module = model if isinstance(model, ArtModule) else ArtModule(model, view, seed)
        device = _device(module)
        settings = {"clip_values": (0.0, 1.0), "preprocessing": None, **art}
        settings.setdefault("device_type", "gpu" if device.type == "cuda" else "cpu")
        # ART moves the model to the current GPU: make that the one where the model is.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            super().__init__(
                model=module,
                loss=nn.CrossEntropyLoss() if loss is None else loss,
                input_shape=input_shape,
                nb_classes=nb_classes,
                optimizer=optimizer,
                **settings,
            )
        self._optimizer: torch.optim.Optimizer | None = optimizer
        self.is_rnn = False  # else ART takes gradients in training mode
        self._layer_names = list(module.layers())
        self._fits = 0  # calls of `fit`, so that each draws afresh

    @property
    def view(self) -> str:
        """Name of the view; setting it opens the other view afresh."""
        return str(self.model.view)

    @view.setter
    def view(self, view: str) -> None:
        self.model.open(view, self.seed)

    @property
    def seed(self) -> int:
        """What opened the view; setting it opens the view afresh."""
        return int(self.model.seed)

    @seed.setter
    def seed(self, seed: int) -> None:
        self.model.open(self.view, seed)

    def predict(
        self,
        x: np.ndarray,
        batch_size: int = 128,
        training_mode: bool = False,  # noqa: FBT001, FBT002  # ART's signature
        **kwargs: Any,
    ) -> np.ndarray:
        """Scores ``(N, K)`` as float32; torch's global random state stays as it was."""
        x, _ = self._apply_preprocessing(x, y=None, fit=False)
        scores = np.zeros((len(x), self.nb_classes), dtype=np.float32)
        with self._mode(training_mode), torch.no_grad():
            for start in range(0, len(x), batch_size):
                rows = np.ascontiguousarray(x[start : start + batch_size])
                out = self.model(torch.from_numpy(rows).to(self._device))
                scores[start : start + batch_size] = out.float().cpu().numpy()
        predictions: np.ndarray = self._apply_postprocessing(preds=scores, fit=False)
        return predictions

    def loss_gradient(
        self,
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor,
        training_mode: bool = False,  # noqa: FBT001, FBT002  # ART's signature
        **kwargs: Any,
    ) -> np.ndarray | Tensor:
        """Gradient of the mean loss with respect to `x`, of its shape and type."""
        with self._mode(training_mode):
            gradient: np.ndarray | Tensor = super().loss_gradient(
                _floating(x), self._one_hot(y), training_mode=training_mode, **kwargs
            )
        return gradient

    def class_gradient(
        self,
        x: np.ndarray,
        label: int | list[int] | np.ndarray | None = None,
        training_mode: bool = False,  # noqa: FBT001, FBT002  # ART's signature
        **kwargs: Any,
    ) -> np.ndarray:
        """Gradients of the scores ``(N, K, C, H, W)``, or ``(N, 1, C, H, W)`` of one label each."""
        with self._mode(training_mode):
            gradient: np.ndarray = super().class_gradient(
                _floating(x), label=label, training_mode=training_mode, **kwargs
            )
        return gradient

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,  # noqa: FBT001, FBT002  # ART's signature
        **kwargs: Any,
    ) -> None:
        """Train the view as a whole on the estimator's loss: not the defense's own training.

        Shuffling, Dropout and the like are drawn from the estimator's seed, afresh at each call.

        Raises:
            ConfigError: with ``training_mode=False``, in which the parameters are frozen.
        """
        if not training_mode:
            raise ConfigError(
                [
                    "training_mode: must be True, for the parameters are frozen in evaluation "
                    "mode; to keep batch normalisation still, train with phalanx.train"
                ],
                source="fit",
            )
        if self._optimizer is None:
            self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        draws = seeded("fit", self.seed, self._fits)
        self._fits += 1
        with draws, self._mode(training_mode):
            super().fit(x, y, batch_size=batch_size, nb_epochs=nb_epochs, **kwargs)

    def get_activations(
        self,
        x: np.ndarray | Tensor,
        layer: int | str,
        batch_size: int = 128,
        framework: bool = False,  # noqa: FBT001, FBT002  # ART's signature
    ) -> np.ndarray | Tensor:
        """Output of a layer, by index into `layer_names` or by name: ``networks.0.layer2``.

        Where a call runs the layer several times, its last output; with `framework`, a tensor
        that can be differentiated, of all images at once.

        Raises:
            ConfigError: for an unknown layer, one whose output is no tensor, or one that this
                view did not run on every image.
        """
        layers = self.model.layers()
        name = self._layer_names[layer] if isinstance(layer, int) else layer
        if name not in layers:
            raise ConfigError(
                [f"layer: no layer {name!r}; layer_names lists {len(layers)}"],
                source="get_activations",
            )
        kept: list[object] = []
        handle = layers[name].register_forward_hook(lambda *call: kept.append(call[2]))
        x, _ = self._apply_preprocessing(x, y=None, fit=False, no_grad=not framework)
        inputs = x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
        outputs = []
        try:
            with self._mode(False), torch.set_grad_enabled(framework):  # noqa: FBT003  # positional in torch
                for rows in torch.split(
                    inputs.to(self._device), len(x) if framework else batch_size
                ):
                    kept.clear()
                    self.model(rows)
                    outputs.append(self._kept(kept, name, len(rows)))
        finally:
            handle.remove()
        output = torch.cat(outputs)
        return output if framework else output.cpu().numpy()

    def clone_for_refitting(self) -> Estimator:
        """A copy with fresh weights, the same view, and an optimizer of the same kind if any."""
        module = copy.deepcopy(self.model)
        old = self._optimizer
        optimizer = None if old is None else type(old)(module.parameters(), **old.defaults)
        clone = type(self)(module, self._loss, self.input_shape, self.nb_classes, optimizer)
        clone.reset()
        params = self.get_params()
        clone.set_params(**{k: v for k, v in params.items() if k not in ("model", "optimizer")})
        return clone

    def save(self, filename: str, path: str | None = None) -> None:
        """Write ART's own files, and ``filename.safetensors``, the one that `load` reads.

        Args:
            filename: without extension.
            path: folder; absent: ART's data folder.
        """
        super().save(filename, path)
        header = {
            "view": self.view,
            "seed": self.seed,
            "input_shape": list(self.input_shape),
            "nb_classes": self.nb_classes,
        }
        weights.write(weights.file(filename, path), self.model.model.state_dict(), header)

    def load(self, filename: str, path: str | None = None) -> None:
        """Read the weights that `save` wrote into this estimator's model; nothing is unpickled.

        Raises:
            ArtifactError: if the file is missing, damaged or of another model.
        """
        weights.read(weights.file(filename, path), self.model.model.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        """All in memory: ART's own version writes a file into its data folder each time."""
        state = self.__dict__.copy()
        state["_model"] = self.model
        state.pop("_model_wrapper", None)  # a local class, which pickle refuses
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._model = self._make_model_wrapper(state["_model"])
        self._model.eval()

    def _kept(self, kept: list[object], name: str, N: int) -> Tensor:
        """The last of a layer's outputs, which has to be a tensor of N rows."""
        problem = f"layer: view {self.view!r} did not run {name!r} in this draw"
        if kept:
            output = kept[-1]
            if isinstance(output, Tensor) and output.shape[:1] == (N,):
                return output
            if not isinstance(output, Tensor):
                kind = type(output).__name__
                problem = f"layer: the output of {name!r} is no tensor but of type {kind}"
        raise ConfigError([problem], source="get_activations")

    def _one_hot(self, y: np.ndarray | Tensor) -> np.ndarray | Tensor:
        if not isinstance(y, Tensor):
            one_hot: np.ndarray = check_and_transform_label_format(np.asarray(y), self.nb_classes)
            return one_hot
        if y.ndim == 2 and y.shape[1] > 1:
            return y
        return nn.functional.one_hot(y.reshape(-1).long(), self.nb_classes).float()

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:  # noqa: FBT001  # ART's training_mode, passed on
        """This mode inside, the model's own after."""
        self._model.train(training)
        try:
            yield
        finally:
            self._model.eval()


def _floating(x: Any) -> Any:
    """Integer images as float32, for only floating ones have a gradient."""
    if isinstance(x, Tensor):
        return x if x.is_floating_point() else x.float()
    return x if x.dtype.kind == "f" else x.astype(np.float32)


def _device(module: nn.Module) -> torch.device:
    tensor = next(module.parameters(), next(module.buffers(), torch.empty(0)))
    if tensor.device.type not in ("cpu", "cuda"):
        raise ConfigError(
            [f"device: ART runs on cpu or cuda, and the model is on {tensor.device}: move it"],
            source="as_art",
        )
    return tensor.device
