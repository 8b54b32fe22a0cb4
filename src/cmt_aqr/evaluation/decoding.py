"""Decoding of the last decoder layer into boxes; CMT needs no non-maximum suppression."""

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.geometry import decode_boxes
from cmt_aqr.outputs import Detections, QueryOutputs
from cmt_aqr.tensors import from_host

CENTRE_RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
"""Range of the centres of kept boxes, in metres, LiDAR frame (CMT's post_center_range)."""


def decode(
    outputs: QueryOutputs,
    max_detections: int = 300,
    score_threshold: float = 0.0,
    tokens: Sequence[str] = (),
) -> list[Detections]:
    """Detections per frame, best first, on the outputs' device.

    As in CMT's release, the best ``max_detections`` pairs of query and class are selected, and those with a centre
    outside :data:`CENTRE_RANGE` dropped.

    Args:
        outputs: of the matching queries; only the last layer is read.
        max_detections: maximum number of boxes per frame.
        score_threshold: boxes with a lower score are dropped; 0 keeps all, as in CMT's release.
        tokens: sample token per frame, for the message.

    Raises:
        UserError: outputs or boxes are not finite.
    """
    scores = outputs.logits[-1].float().sigmoid()
    classes = scores.shape[-1]
    scores, index = scores.flatten(1).topk(min(max_detections, scores[0].numel()), dim=1)
    labels = index % classes
    query = torch.div(index, classes, rounding_mode="floor")
    codes = outputs.codes[-1].float().gather(1, query[..., None].expand(-1, -1, outputs.codes.shape[-1]))
    boxes = decode_boxes(codes)
    low, high = from_host(CENTRE_RANGE, boxes.device, boxes.dtype).view(2, 3)
    kept = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(dim=-1)
    kept &= scores >= score_threshold
    # A box of finite codes may still be infinite: its size is an exponential.
    _require_finite(outputs, boxes.isfinite() | ~kept[..., None], tokens)
    return [
        Detections(boxes=boxes[i, kept[i]], scores=scores[i, kept[i]], labels=labels[i, kept[i]])
        for i in range(len(boxes))
    ]


def _require_finite(outputs: QueryOutputs, finite_boxes: Tensor, tokens: Sequence[str]) -> None:
    """Check that outputs (layer, frame, ...) and boxes (frame, ...) are finite; synchronises once per batch."""
    finite = (outputs.logits[-1].isfinite(), outputs.codes[-1].isfinite(), finite_boxes)
    scores, codes, boxes = (values.flatten(1).all(dim=1) for values in finite)
    bad = ~torch.stack((scores, codes & boxes))
    for name, flags in zip(("scores", "boxes"), bad.tolist(), strict=True):
        if any(flags):
            frames = compress(tokens or map(str, range(len(flags))), flags)
            raise UserError(
                f"sample {', '.join(frames)}: the model's {name} are not finite; check the checkpoint's weights "
                "and this sample's points, images and calibration"
            )
