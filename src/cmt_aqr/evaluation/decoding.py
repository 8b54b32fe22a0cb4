"""From the last decoder layer to boxes: CMT needs no non-maximum suppression."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.geometry import decode_boxes
from cmt_aqr.outputs import Detections, QueryOutputs
from cmt_aqr.tensors import from_host

CENTRE_RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
"""Centres kept, in metres, LiDAR frame (CMT's post_center_range)."""


def decode(
    outputs: QueryOutputs,
    max_detections: int = 300,
    centre_range: Sequence[float] = CENTRE_RANGE,
    score_threshold: float = 0.0,
    tokens: Sequence[str] = (),
) -> list[Detections]:
    """Detections of every frame, best first.

    The best ``max_detections`` pairs of query and class are taken, then those with a centre outside
    ``centre_range`` are dropped, as in CMT's release.

    Args:
        outputs: of the matching queries; only the last layer is read.
        max_detections: at most this many boxes per frame.
        centre_range: x0, y0, z0, x1, y1, z1 in metres, LiDAR frame.
        score_threshold: boxes scored lower are dropped; 0 keeps all, as CMT's release does.
        tokens: of the frames, for the message.

    Returns:
        One :class:`Detections` a frame, on the outputs' device.

    Raises:
        UserError: outputs or boxes that are not finite, which no comparison would find.
    """
    scores = outputs.logits[-1].float().sigmoid()
    classes = scores.shape[-1]
    scores, index = scores.flatten(1).topk(min(max_detections, scores[0].numel()), dim=1)
    labels = index % classes
    query = torch.div(index, classes, rounding_mode="floor")
    codes = outputs.codes[-1].float().gather(1, query[..., None].expand(-1, -1, outputs.codes.shape[-1]))
    boxes = decode_boxes(codes)
    low, high = from_host(centre_range, boxes.device, boxes.dtype).view(2, 3)
    kept = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(dim=-1)
    kept &= scores >= score_threshold
    # Of finite codes, too, a box may be infinite: its size is their exponential.
    _require_finite(outputs, boxes.isfinite() | ~kept[..., None], tokens)
    return [
        Detections(boxes=boxes[i, kept[i]], scores=scores[i, kept[i]], labels=labels[i, kept[i]])
        for i in range(len(boxes))
    ]


def _require_finite(outputs: QueryOutputs, finite_boxes: Tensor, tokens: Sequence[str]) -> None:
    """See that outputs (layer, frame, ...) and boxes (frame, ...) are finite; synchronises once per batch."""
    good = {"scores": outputs.logits[-1].isfinite(), "boxes": outputs.codes[-1].isfinite()}
    bad = {name: ~values.flatten(1).all(dim=1) for name, values in good.items()}
    bad["boxes"] |= ~finite_boxes.flatten(1).all(dim=1)
    for name, flags in zip(bad, torch.stack(list(bad.values())).tolist(), strict=True):
        if any(flags):
            frames = [
                token for token, flag in zip(tokens or map(str, range(len(flags))), flags, strict=True) if flag
            ]
            raise UserError(
                f"sample {', '.join(frames)}: the model's {name} are not finite; look at the checkpoint's weights "
                "and at this sample's points, images and calibration"
            )
