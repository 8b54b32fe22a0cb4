"""Names and layouts of the official CMT state dicts, both ways, by rule.

Each rule maps one family of names; together they are a bijection between the four published variants and this
project's models. A sparse convolution's kernel is (out, kz, ky, kx, in) there and (kz, ky, kx, in, out) here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from cmt_aqr.weights.files import WeightsError

Naming = Literal["official", "ours", "backbone"]

OFFICIAL_PREFIXES = (
    "pts_middle_encoder.",
    "pts_backbone.",
    "pts_neck.",
    "pts_bbox_head.",
    "img_backbone.",
    "img_neck.",
)
OUR_PREFIXES = ("lidar.", "image.", "decoder.", "aqr.", "head.reference_points", "head.bev_embedding")

_FIELD = re.compile(r"\{([a-z]+)([+-]\d+)?\}")


@dataclass(frozen=True)
class Template:
    """A parameter name with fields.

    ``{rest}`` is anything, any other ``{field}`` a number; ``{field+1}`` is that number plus one. A field
    that stands twice must say the same twice.
    """

    text: str

    @cached_property
    def _shifts(self) -> list[tuple[str, int]]:
        return [(field, int(shift or 0)) for field, shift in _FIELD.findall(self.text)]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        pattern = ""
        for index, part in enumerate(re.split(r"(\{[^}]*\})", self.text)):
            if index % 2 == 0:
                pattern += re.escape(part)
            else:
                pattern += "(.+)" if part == "{rest}" else r"(\d+)"
        return re.compile(pattern)

    def parse(self, name: str) -> dict[str, str | int] | None:
        """Read the fields of ``name``, or return ``None`` if it is no such name."""
        match = self._regex.fullmatch(name)
        if match is None:
            return None
        fields: dict[str, str | int] = {}
        for (field, shift), text in zip(self._shifts, match.groups(), strict=True):
            value = text if field == "rest" else int(text) - shift
            if fields.setdefault(field, value) != value:
                return None
        return fields

    def fill(self, fields: Mapping[str, str | int]) -> str:
        """Write the name with these fields."""

        def write(match: re.Match[str]) -> str:
            value, shift = fields[match[1]], int(match[2] or 0)
            return str(value + shift if isinstance(value, int) else value)

        return _FIELD.sub(write, self.text)


@dataclass(frozen=True)
class Rule:
    """One family of names, official and ours."""

    official: Template
    ours: Template


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(Template(official), Template(ours)) for official, ours in pairs)


LIDAR_RULES = _rules(
    ("pts_middle_encoder.conv_input.0.{rest}", "lidar.encoder.input.conv.{rest}"),
    ("pts_middle_encoder.conv_input.1.{rest}", "lidar.encoder.input.norm.{rest}"),
    *(
        (
            f"pts_middle_encoder.encoder_layers.encoder_layer{{s}}.{{b}}.{theirs}{{k}}.{{rest}}",
            f"lidar.encoder.stages.{{s-1}}.blocks.{{b}}.{ours}{{k}}.{{rest}}",
        )
        for theirs, ours in (("conv", "conv"), ("bn", "norm"))
    ),
    (
        "pts_middle_encoder.encoder_layers.encoder_layer{s}.2.0.{rest}",
        "lidar.encoder.stages.{s-1}.down.conv.{rest}",
    ),
    (
        "pts_middle_encoder.encoder_layers.encoder_layer{s}.2.1.{rest}",
        "lidar.encoder.stages.{s-1}.down.norm.{rest}",
    ),
    ("pts_middle_encoder.conv_out.0.{rest}", "lidar.encoder.output.conv.{rest}"),
    ("pts_middle_encoder.conv_out.1.{rest}", "lidar.encoder.output.norm.{rest}"),
    ("pts_backbone.blocks.{n}.{rest}", "lidar.backbone.blocks.{n}.{rest}"),
    ("pts_neck.deblocks.{n}.{rest}", "lidar.neck.blocks.{n}.{rest}"),
)

VOVNET_RULES = _rules(
    ("img_backbone.stem.stem_{n}/conv.{rest}", "image.backbone.stem_{n-1}.conv.{rest}"),
    ("img_backbone.stem.stem_{n}/norm.{rest}", "image.backbone.stem_{n-1}.bn.{rest}"),
    *(
        (
            f"img_backbone.stage{{s}}.OSA{{s}}_{{b}}.{theirs}.{{rest}}",
            f"image.backbone.stages_{{s-2}}.blocks.{{b-1}}.{ours}.{{rest}}",
        )
        for theirs, ours in (
            ("layers.{k}.OSA{s}_{b}_{k}/conv", "conv_mid.{k}.conv"),
            ("layers.{k}.OSA{s}_{b}_{k}/norm", "conv_mid.{k}.bn"),
            ("concat.OSA{s}_{b}_concat/conv", "conv_concat.conv"),
            ("concat.OSA{s}_{b}_concat/norm", "conv_concat.bn"),
            ("ese.fc", "attn.fc"),
        )
    ),
)

IMAGE_RULES = (
    *VOVNET_RULES,
    *_rules(
        ("img_backbone.conv1.{rest}", "image.backbone.conv1.{rest}"),
        ("img_backbone.bn1.{rest}", "image.backbone.bn1.{rest}"),
        ("img_backbone.layer{n}.{rest}", "image.backbone.layer{n}.{rest}"),
        ("img_neck.lateral_convs.{n}.conv.{rest}", "image.neck.lateral.{n}.{rest}"),
        ("img_neck.fpn_convs.0.conv.{rest}", "image.neck.output.{rest}"),
    ),
)

_LAYER = "pts_bbox_head.transformer.decoder.layers.{n}."

HEAD_RULES = _rules(
    ("pts_bbox_head.shared_conv.conv.{rest}", "head.shared_conv.0.{rest}"),
    ("pts_bbox_head.shared_conv.bn.{rest}", "head.shared_conv.1.{rest}"),
    ("pts_bbox_head.reference_points.weight", "head.reference_points"),
    ("pts_bbox_head.bev_embedding.{rest}", "head.bev_embedding.{rest}"),
    ("pts_bbox_head.rv_embedding.{rest}", "head.rv_embedding.{rest}"),
    ("pts_bbox_head.task_heads.0.{rest}", "head.task.{rest}"),
    ("pts_bbox_head.transformer.decoder.post_norm.{rest}", "decoder.norm.{rest}"),
    (_LAYER + "attentions.0.attn.{rest}", "decoder.layers.{n}.self_attention.{rest}"),
    (_LAYER + "attentions.1.attn.{rest}", "decoder.layers.{n}.cross_attention.{rest}"),
    (_LAYER + "ffns.0.layers.0.0.{rest}", "decoder.layers.{n}.linear1.{rest}"),
    (_LAYER + "ffns.0.layers.1.{rest}", "decoder.layers.{n}.linear2.{rest}"),
    (_LAYER + "norms.{k}.{rest}", "decoder.layers.{n}.norm{k+1}.{rest}"),
)

RULES: tuple[Rule, ...] = (*LIDAR_RULES, *IMAGE_RULES, *HEAD_RULES)


def our_name(official: str) -> str | None:
    """Our name of an official parameter, or ``None`` if no rule knows it."""
    return _first(official, ((rule.official, rule.ours) for rule in RULES))


def official_name(ours: str) -> str | None:
    """The official name of one of our parameters, or ``None`` if no rule knows it."""
    return _first(ours, ((rule.ours, rule.official) for rule in RULES))


def _first(name: str, templates: Iterable[tuple[Template, Template]]) -> str | None:
    for source, target in templates:
        fields = source.parse(name)
        if fields is not None:
            return target.fill(fields)
    return None


def our_layout(value: Tensor) -> Tensor:
    """A sparse kernel (out, kz, ky, kx, in) becomes (kz, ky, kx, in, out); all else stays as it is."""
    return value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value


def official_layout(value: Tensor) -> Tensor:
    """Inverse of :func:`our_layout`."""
    return value.permute(4, 0, 1, 2, 3).contiguous() if value.ndim == 5 else value


def naming_of(names: Iterable[str]) -> Naming:
    """Tell whose names these are: the official CMT's, ours, or a bare backbone's."""
    names = list(names)
    if any(name.startswith(OFFICIAL_PREFIXES) for name in names):
        return "official"
    if any(name.startswith(OUR_PREFIXES) for name in names):
        return "ours"
    return "backbone"


def to_ours(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an official state dict to ours.

    Raises:
        WeightsError: where a name is not one of the published models'.
    """
    return _convert(official, our_name, our_layout, "here")


def to_official(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert one of our state dicts to the official names and layouts: the inverse of :func:`to_ours`.

    Raises:
        WeightsError: where a name has no official counterpart, as everything of AQR.
    """
    return _convert(ours, official_name, official_layout, "in the official CMT")


def convert(state: Mapping[str, Tensor], to: Literal["official", "ours"] | None = None) -> dict[str, Tensor]:
    """Convert a state dict to the naming asked for, or to the one that it is not in.

    Raises:
        WeightsError: where a parameter has no counterpart, or the names are a bare backbone's.
    """
    naming = naming_of(state)
    if naming == "backbone":
        raise WeightsError(
            f"names like {', '.join(list(state)[:3])} are neither the official CMT's nor ours, so there is "
            "nothing to convert; a backbone's file can be given as weights= as it is"
        )
    to = to or ("ours" if naming == "official" else "official")
    if to == naming:
        return dict(state)
    return to_ours(state) if to == "ours" else to_official(state)


def _convert(
    state: Mapping[str, Tensor],
    rename: Callable[[str], str | None],
    layout: Callable[[Tensor], Tensor],
    where: str,
) -> dict[str, Tensor]:
    renamed = {name: rename(name) for name in state}
    unknown = [name for name, new in renamed.items() if new is None]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} of {len(state)} parameters have no counterpart {where}, e.g. {unknown[0]}; only "
            "the published CMT models convert"
        )
    return {str(renamed[name]): layout(value) for name, value in state.items()}
