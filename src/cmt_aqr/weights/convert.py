"""Conversion of names and layouts between the official CMT state dicts and ours, by rule.

Each rule maps one family of names; together they are a bijection between the four published variants and this
project's models. A sparse convolution's kernel is (out, kz, ky, kx, in) there and (kz, ky, kx, in, out) here.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from cmt_aqr.weights.files import WeightsError

Naming = Literal["official", "ours", "backbone"]

_BLOCK = "pts_middle_encoder.encoder_layers.encoder_layer{s}."
_OSA = "img_backbone.stage{s}.OSA{s}_{b}."
_OUR_OSA = "image.backbone.stages_{s-2}.blocks.{b-1}."
_LAYER = "pts_bbox_head.transformer.decoder.layers.{n}."

RULES = (
    ("pts_middle_encoder.conv_input.0.{rest}", "lidar.encoder.input.conv.{rest}"),
    ("pts_middle_encoder.conv_input.1.{rest}", "lidar.encoder.input.norm.{rest}"),
    (_BLOCK + "{b}.conv{k}.{rest}", "lidar.encoder.stages.{s-1}.blocks.{b}.conv{k}.{rest}"),
    (_BLOCK + "{b}.bn{k}.{rest}", "lidar.encoder.stages.{s-1}.blocks.{b}.norm{k}.{rest}"),
    (_BLOCK + "2.0.{rest}", "lidar.encoder.stages.{s-1}.down.conv.{rest}"),
    (_BLOCK + "2.1.{rest}", "lidar.encoder.stages.{s-1}.down.norm.{rest}"),
    ("pts_middle_encoder.conv_out.0.{rest}", "lidar.encoder.output.conv.{rest}"),
    ("pts_middle_encoder.conv_out.1.{rest}", "lidar.encoder.output.norm.{rest}"),
    ("pts_backbone.blocks.{n}.{rest}", "lidar.backbone.blocks.{n}.{rest}"),
    ("pts_neck.deblocks.{n}.{rest}", "lidar.neck.blocks.{n}.{rest}"),
    ("img_backbone.stem.stem_{n}/conv.{rest}", "image.backbone.stem_{n-1}.conv.{rest}"),
    ("img_backbone.stem.stem_{n}/norm.{rest}", "image.backbone.stem_{n-1}.bn.{rest}"),
    (_OSA + "layers.{k}.OSA{s}_{b}_{k}/conv.{rest}", _OUR_OSA + "conv_mid.{k}.conv.{rest}"),
    (_OSA + "layers.{k}.OSA{s}_{b}_{k}/norm.{rest}", _OUR_OSA + "conv_mid.{k}.bn.{rest}"),
    (_OSA + "concat.OSA{s}_{b}_concat/conv.{rest}", _OUR_OSA + "conv_concat.conv.{rest}"),
    (_OSA + "concat.OSA{s}_{b}_concat/norm.{rest}", _OUR_OSA + "conv_concat.bn.{rest}"),
    (_OSA + "ese.fc.{rest}", _OUR_OSA + "attn.fc.{rest}"),
    ("img_backbone.conv1.{rest}", "image.backbone.conv1.{rest}"),
    ("img_backbone.bn1.{rest}", "image.backbone.bn1.{rest}"),
    ("img_backbone.layer{n}.{rest}", "image.backbone.layer{n}.{rest}"),
    ("img_neck.lateral_convs.{n}.conv.{rest}", "image.neck.lateral.{n}.{rest}"),
    ("img_neck.fpn_convs.0.conv.{rest}", "image.neck.output.{rest}"),
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
"""Families of names, official and ours.

``{rest}`` matches anything, any other ``{field}`` a number, ``{field+1}`` that number plus one. A field that
occurs twice in a name has the same value in both places.
"""

_FIELD = re.compile(r"\{([a-z]+)([+-]\d+)?\}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a family of names, with a group per field."""
    fields = set()

    def group(field: re.Match[str]) -> str:
        if field[1] in fields:
            return f"(?P={field[1]})"
        fields.add(field[1])
        return f"(?P<{field[1]}>{'.+' if field[1] == 'rest' else '[0-9]+'})"

    return re.compile(_FIELD.sub(group, template.replace(".", r"\.")))


def renamed(name: str, source: str, target: str) -> str | None:
    """Rename a parameter of the family ``source`` to ``target``; ``None`` if it is not of that family."""
    match = _pattern(source).fullmatch(name)
    if match is None:
        return None
    shifts = dict(_FIELD.findall(source))

    def write(field: re.Match[str]) -> str:
        text = match[field[1]]
        if field[1] == "rest":
            return text
        return str(int(text) - int(shifts[field[1]] or 0) + int(field[2] or 0))

    return _FIELD.sub(write, target)


def our_name(official: str) -> str | None:
    """Our name of an official parameter, or ``None`` if no rule matches."""
    names = (renamed(official, source, target) for source, target in RULES)
    return next((name for name in names if name is not None), None)


def official_name(ours: str) -> str | None:
    """The official name of one of our parameters, or ``None`` if no rule matches."""
    names = (renamed(ours, source, target) for target, source in RULES)
    return next((name for name in names if name is not None), None)


def our_layout(value: Tensor) -> Tensor:
    """Permute a sparse kernel (out, kz, ky, kx, in) to (kz, ky, kx, in, out); return other tensors unchanged."""
    return value.movedim(0, -1).contiguous() if value.ndim == 5 else value


def naming_of(names: Iterable[str]) -> Naming:
    """Whose names these are: the official CMT's, ours, or a bare backbone's."""
    names = list(names)
    if any(our_name(name) for name in names):
        return "official"
    if any(name.startswith("aqr.") or official_name(name) for name in names):
        return "ours"
    return "backbone"


def to_ours(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an official state dict to ours.

    Raises:
        WeightsError: a name is not one of the published models'.
    """
    names = _require_names({name: our_name(name) for name in official}, "here")
    return {names[name]: our_layout(value) for name, value in official.items()}


def to_official(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert one of our state dicts to the official names and layouts: the inverse of :func:`to_ours`.

    Raises:
        WeightsError: a name has no official counterpart, as AQR's parameters.
    """
    names = _require_names({name: official_name(name) for name in ours}, "in the official CMT")
    return {
        names[name]: value.movedim(-1, 0).contiguous() if value.ndim == 5 else value
        for name, value in ours.items()
    }


def _require_names(names: Mapping[str, str | None], where: str) -> dict[str, str]:
    """Refuse names without a counterpart."""
    unknown = [name for name, counterpart in names.items() if counterpart is None]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} of {len(names)} parameters have no counterpart {where}, e.g. {unknown[0]}; only "
            "the published CMT models can be converted"
        )
    return {name: counterpart for name, counterpart in names.items() if counterpart is not None}


def convert(state: Mapping[str, Tensor], to: Literal["official", "ours"] | None = None) -> dict[str, Tensor]:
    """Convert a state dict to the naming ``to``; by default to the other one.

    Raises:
        WeightsError: a parameter has no counterpart, or the names are a bare backbone's.
    """
    naming = naming_of(state)
    if naming == "backbone":
        raise WeightsError(
            f"names such as {', '.join(list(state)[:3])} are neither the official CMT's nor ours, so there is "
            "nothing to convert; train.py starts from a backbone's file as it is"
        )
    to = to or ("ours" if naming == "official" else "official")
    if to == naming:
        return dict(state)
    return to_ours(state) if to == "ours" else to_official(state)
