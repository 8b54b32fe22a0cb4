"""Loading weights of any origin into a model, with a report of what was loaded."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from torch import Tensor, nn

from cmt_aqr.weights.convert import Naming, naming_of, our_layout, our_name
from cmt_aqr.weights.files import WeightsError, read_state_dict, unwrap

BACKBONE = "image.backbone"

KINDS = ("loaded", "missing", "unexpected", "wrong_shape")

Weights = str | Path | Mapping[str, Tensor] | Sequence[str | Path]


def module_of(name: str) -> str:
    """The module under which a report counts a parameter, e.g. ``image.backbone`` or ``decoder``."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("lidar", "image", "head") else parts[0]


@dataclass(frozen=True)
class LoadReport:
    """What became of every parameter and buffer."""

    source: str  # the file or files
    naming: Naming  # of the first file
    loaded: tuple[str, ...]  # names of the model that were set
    missing: tuple[str, ...]  # names of the model that are not in the file
    unexpected: tuple[str, ...]  # names in the file, translated where possible, that are not in the model
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # name -> (file's shape, model's shape)

    def counts(self) -> dict[str, dict[str, int]]:
        """Module -> number of names loaded, missing, unexpected and wrong_shape."""
        kinds = {kind: Counter(map(module_of, getattr(self, kind))) for kind in KINDS}
        modules = sorted(set().union(*kinds.values()))
        return {module: {kind: kinds[kind][module] for kind in KINDS} for module in modules}

    @property
    def fresh(self) -> tuple[str, ...]:
        """Modules without any parameter in the file: they keep their initial values."""
        return tuple(module for module, count in self.counts().items() if count["missing"] and not count["loaded"])

    def table(self) -> Table:
        """The counts by module, for a terminal."""
        table = Table("module", title=f"Weights from {self.source} ({self.naming} names)")
        for kind in KINDS:
            table.add_column(kind.replace("_", " "), justify="right")
        table.add_column("")
        for module, count in self.counts().items():
            numbers = [str(count[kind]) if count[kind] else "" for kind in KINDS]
            table.add_row(module, *numbers, "starts fresh" if module in self.fresh else "")
        return table


def load_weights(model: nn.Module, weights: Weights) -> LoadReport:
    """Load checkpoints, official or ours, or a backbone's weights, into a model whose names are CMT's.

    Of several files, each adds what is missing from those before it, such as a LiDAR and a camera model for a
    fused one.

    A module must be loaded completely or not at all. A CMT checkpoint leaves AQR at its initial values, a
    backbone's file everything but the backbone; any other missing parameter is an error. Parameters that the model
    does not have are reported; within a module that it does have, they are an error. On error the model is
    unchanged.

    Raises:
        FileNotFoundError: a file does not exist.
        WeightsError: a file cannot be read, nothing in it fits, or a module would be loaded in part.
    """
    model_state = model.state_dict()
    if isinstance(weights, Mapping):
        source, states = "a state dict", [unwrap(weights, "a state dict")]
    else:
        files = [weights] if isinstance(weights, str | Path) else weights
        source, states = ",".join(map(str, files)), [read_state_dict(file) for file in files]
    translated: dict[str, Tensor] = {}
    for state in states:
        translated = _translated(state, model_state) | translated

    wrong_shape = {
        name: (tuple(value.shape), tuple(model_state[name].shape))
        for name, value in translated.items()
        if name in model_state and value.shape != model_state[name].shape
    }
    fitting = {
        name: value for name, value in translated.items() if name in model_state and name not in wrong_shape
    }
    report = LoadReport(
        source,
        naming_of(states[0]),
        loaded=tuple(fitting),
        # Old files have no batch counters, which change nothing if momentum is a number.
        missing=tuple(n for n in model_state if n not in translated and not n.endswith("num_batches_tracked")),
        unexpected=tuple(name for name in translated if name not in model_state),
        wrong_shape=wrong_shape,
    )
    _check(report, {module_of(name) for name in model_state})
    model.load_state_dict(fitting, strict=False)
    return report


def _translated(state: Mapping[str, Tensor], model_names: Collection[str]) -> dict[str, Tensor]:
    """A state dict with our names and layouts; a name that no rule matches stays as it is.

    Args:
        state: as read.
        model_names: names in the model, which decide how a bare backbone's names are translated.
    """
    match naming_of(state):
        case "ours":
            return dict(state)
        case "official":
            return {our_name(name) or name: our_layout(value) for name, value in state.items()}
    return {_backbone_name(name, model_names): value for name, value in state.items()}


def _backbone_name(name: str, model_names: Collection[str]) -> str:
    """Our name of a parameter of a timm, torchvision or mmdet-style backbone.

    timm's feature extractors flatten ``stages.0`` to ``stages_0``; mmdet-style files prepend ``backbone.``.
    """
    bare = name.removeprefix("backbone.")
    flat = re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", bare)
    for candidate in (f"{BACKBONE}.{bare}", f"{BACKBONE}.{flat}", our_name(f"img_backbone.{bare}")):
        if candidate in model_names:
            return candidate  # type: ignore[return-value]  # None is not a name
    # The surplus of a deeper backbone still belongs to the backbone.
    for part in (bare, flat):
        if any(other.startswith(f"{BACKBONE}.{part.split('.')[0]}.") for other in model_names):
            return f"{BACKBONE}.{part}"
    return name


def _check(report: LoadReport, modules: set[str]) -> None:
    """Refuse to load part of a module, or nothing at all."""
    if not report.loaded:
        raise WeightsError(
            f"weights={report.source}: nothing in it fits the model; it has e.g. "
            f"{', '.join(report.unexpected[:3]) or ', '.join(list(report.wrong_shape)[:3])}, the model "
            f"{', '.join(report.missing[:3]) or 'the same names with other shapes'}"
        )
    backbone_only = {module_of(name) for name in report.loaded} == {BACKBONE}
    for module, count in report.counts().items():
        if module not in modules:
            continue
        if count["wrong_shape"]:
            name = next(name for name in report.wrong_shape if module_of(name) == module)
            theirs, ours = report.wrong_shape[name]
            raise WeightsError(
                f"weights={report.source}: {count['wrong_shape']} parameters of {module} have another shape, "
                f"e.g. {name} {list(theirs)}, the model {list(ours)}; use the model that the file belongs to"
            )
        absent = count["missing"] and not count["loaded"] and not count["unexpected"]
        if absent and (module == "aqr" or backbone_only):  # no published checkpoint has AQR
            continue
        if count["missing"] or count["unexpected"]:
            names = [name for name in (*report.missing, *report.unexpected) if module_of(name) == module]
            raise WeightsError(
                f"weights={report.source}: of {module}, {count['loaded']} parameters were found, "
                f"{count['missing']} are missing and {count['unexpected']} unknown, e.g. {names[0]}; use the "
                "model that the file belongs to"
            )
