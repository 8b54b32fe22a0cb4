"""Loading weights of any origin into a model, with a report of what came from where."""

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
    """The module that a report counts a parameter under, e.g. ``image.backbone`` or ``decoder``."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("lidar", "image", "head") else parts[0]


@dataclass(frozen=True)
class LoadReport:
    """What became of every parameter and buffer.

    Attributes:
        source: file, or what the weights were called.
        naming: whose names the file uses.
        loaded: names in the model that were set.
        missing: names in the model that the file does not have.
        unexpected: names in the file (ours where they translate) that the model does not have.
        wrong_shape: names in both, whose shapes differ, with (file's shape, model's shape).
    """

    source: str
    naming: Naming
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Module -> number of names loaded, missing, unexpected and wrong_shape."""
        kinds = {kind: Counter(map(module_of, getattr(self, kind))) for kind in KINDS}
        modules = sorted(set().union(*kinds.values()))
        return {module: {kind: kinds[kind][module] for kind in KINDS} for module in modules}

    @property
    def fresh(self) -> tuple[str, ...]:
        """Modules of which the file has nothing: they keep the values they were made with."""
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
    """Load a checkpoint, official or ours, or a backbone's weights, into a model whose names are CMT's.

    Of several files each gives what those before it lack, as a LiDAR's and a camera's model to a fused one.

    A module counts as loaded when all of it was. A CMT checkpoint leaves AQR as it was made, a backbone-only
    file all but the backbone; anything else that the file does not cover is an error. What the file has and
    the model has not is reported, and an error only within a module that the model has. Where this raises, the
    model is as it was. The report has the first file's naming.

    Raises:
        FileNotFoundError: where there is no such file.
        WeightsError: where the file cannot be read, nothing of it fits, or a module would be half loaded.
    """
    own = model.state_dict()
    if isinstance(weights, Mapping):
        source, states = "a state dict", [unwrap(weights, "a state dict")]
    else:
        files = [weights] if isinstance(weights, str | Path) else weights
        source, states = ",".join(map(str, files)), [read_state_dict(file) for file in files]
    translated: dict[str, Tensor] = {}
    for state in states:
        translated = _translated(state, own) | translated

    wrong_shape = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in translated.items()
        if name in own and value.shape != own[name].shape
    }
    fitting = {name: value for name, value in translated.items() if name in own and name not in wrong_shape}
    report = LoadReport(
        source,
        naming_of(states[0]),
        loaded=tuple(fitting),
        # Old files lack the batch counters, which change nothing where momentum is a number.
        missing=tuple(n for n in own if n not in translated and not n.endswith("num_batches_tracked")),
        unexpected=tuple(name for name in translated if name not in own),
        wrong_shape=wrong_shape,
    )
    _check(report, {module_of(name) for name in own})
    model.load_state_dict(fitting, strict=False)
    return report


def _translated(state: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """A state dict with our names and layouts; what no rule knows keeps its name.

    Args:
        state: what was read.
        known: names in the model, which decide how a bare backbone's names are read.
    """
    match naming_of(state):
        case "ours":
            return dict(state)
        case "official":
            return {our_name(name) or name: our_layout(value) for name, value in state.items()}
    return {_backbone_name(name, known): value for name, value in state.items()}


def _backbone_name(name: str, known: Collection[str]) -> str:
    """Our name of a parameter of a timm, torchvision or mmdet-style backbone.

    timm's feature extractors flatten ``stages.0`` to ``stages_0``; mmdet-style files say ``backbone.`` first.
    """
    bare = name.removeprefix("backbone.")
    flat = re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", bare)
    for candidate in (f"{BACKBONE}.{bare}", f"{BACKBONE}.{flat}", our_name(f"img_backbone.{bare}")):
        if candidate in known:
            return candidate  # type: ignore[return-value]  # None is no name
    # A deeper backbone than the model's: what is too much still belongs to the backbone, not to the rest.
    for part in (bare, flat):
        if any(other.startswith(f"{BACKBONE}.{part.split('.')[0]}.") for other in known):
            return f"{BACKBONE}.{part}"
    return name


def _check(report: LoadReport, modules: set[str]) -> None:
    """Refuse what would leave a module half loaded, or the model untouched."""
    if not report.loaded:
        raise WeightsError(
            f"weights={report.source}: nothing of it fits the model; it has e.g. "
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
                f"e.g. {name} {list(theirs)}, the model {list(ours)}; use the model that the file is of"
            )
        whole = count["missing"] and not count["loaded"] and not count["unexpected"]
        if whole and (module == "aqr" or backbone_only):  # no published checkpoint has AQR
            continue
        if count["missing"] or count["unexpected"]:
            names = [name for name in (*report.missing, *report.unexpected) if module_of(name) == module]
            raise WeightsError(
                f"weights={report.source}: of {module}, {count['loaded']} parameters were found, "
                f"{count['missing']} are missing and {count['unexpected']} unknown, e.g. {names[0]}; use the "
                "model that the file is of"
            )
