"""CMT (Cross Modal Transformer, Yan et al., ICCV 2023): both sensors in, boxes out."""

from typing import Any

import torch
from torch import Tensor, nn

from cmt_aqr.errors import SettingError
from cmt_aqr.model.decoder import Decoder
from cmt_aqr.model.head import Head
from cmt_aqr.structures import AQROutput, Batch, DenoisingQueries, Predictions, QueryOutputs


class CMT(nn.Module):
    """The detector, with its parts given to it.

    Args:
        head: queries, position encodings and outputs.
        decoder: the transformer decoder.
        lidar: LiDAR branch: (points, point counts) to a BEV map (batch, channel, row, column).
        image: image branch: images (batch, view, 3, height, width) to maps (batch, view, channel, h, w).
        aqr: modulates the maps of both sensors by the queries; ``None`` is plain CMT.

    Raises:
        SettingError: when there is neither a LiDAR nor an image branch.
    """

    def __init__(
        self,
        head: Head,
        decoder: Decoder,
        lidar: nn.Module | None = None,
        image: nn.Module | None = None,
        aqr: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if lidar is None and image is None:
            raise SettingError("model.lidar and model.image are both null: a detector needs at least one sensor")
        self.lidar = lidar
        self.image = image
        self.head = head
        self.decoder = decoder
        self.aqr = aqr

    def encode(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """BEV map (batch, channel, row, column) and image maps (batch, view, channel, h, w)."""
        bev = images = None
        if self.lidar is not None:
            bev = self.head.share(self.lidar(batch.points, batch.point_counts))
        if self.image is not None:
            if batch.images is None:
                raise SettingError(
                    "the model has an image branch but the batch has no images: set data.cameras=true"
                )
            images = self.image(batch.images)
        return bev, images

    def forward(self, batch: Batch, denoising: DenoisingQueries | None = None) -> Predictions:
        """Detect in a batch; with denoising queries, answer for those, too."""
        bev, images = self.encode(batch)
        image_size = (0, 0) if batch.images is None else (batch.images.shape[-2], batch.images.shape[-1])
        img2lidar = torch.linalg.inv_ex(batch.lidar2img)[0]
        bev_position = None if bev is None else self.head.bev_position()
        image_position = (
            None if images is None else self.head.image_position(img2lidar, image_size, images.shape[-2:])  # type: ignore[arg-type]
        )
        extra = None if denoising is None else denoising.reference_points
        # Denoising and matching queries go apart as far as AQR: computed together, the matching ones' last bits
        # would depend on how many others there are.
        points = self.head.all_reference_points(batch.size, extra)
        embeddings = [self.head.query_embedding(part, batch.lidar2img, img2lidar, image_size) for part in points]

        routed: AQROutput | None = None
        if self.aqr is not None:
            first, draws = self._who_draws(denoising)
            routed = self.aqr(
                query_embedding=torch.cat(embeddings[first:], dim=1),
                reference_points=self.head.to_metres(torch.cat(points[first:], dim=1)),
                bev_features=bev,
                image_features=images,
                bev_position=bev_position,
                image_position=image_position,
                grid=None if bev is None else self.head.grid,
                lidar2img=batch.lidar2img,
                image_size=image_size,
                draws=draws,
            )
            bev, images = routed.bev_features, routed.image_features

        query_embedding, reference_points = torch.cat(embeddings, dim=1), torch.cat(points, dim=1)
        memory, positions = _tokens(bev, images, bev_position, image_position)
        decoded = self.decoder(
            query_embedding, memory, positions, None if denoising is None else denoising.attention_mask
        )
        outputs = self.head(decoded, reference_points)
        return _split(outputs, 0 if extra is None else extra.shape[1], routed)

    def _who_draws(self, denoising: DenoisingQueries | None) -> tuple[int, Tensor | None]:
        """The first part of the queries (denoising, matching) that AQR gets, and which of its queries draw.

        Denoising queries sit on the truth and draw nothing, unless ``aqr.draw=all``; padding never draws.
        """
        if denoising is None:
            return 0, None
        if getattr(self.aqr, "draw", "matching") != "all":
            return 1, None
        matching = denoising.padding.new_ones(len(denoising.padding), len(self.head.reference_points))
        return 0, torch.cat((~denoising.padding, matching), dim=1)


def _tokens(
    bev: Tensor | None, images: Tensor | None, bev_position: Tensor | None, image_position: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cells of both sensors as tokens (batch, token, channel), and their positions, BEV first."""
    memory: list[Tensor] = []
    positions: list[Tensor] = []
    if bev is not None and bev_position is not None:
        memory.append(bev.flatten(2).transpose(1, 2))
        positions.append(bev_position.expand(len(bev), -1, -1))
    if images is not None and image_position is not None:
        memory.append(images.permute(0, 1, 3, 4, 2).flatten(1, 3))
        positions.append(image_position.flatten(1, 2))
    return torch.cat(memory, dim=1), torch.cat(positions, dim=1)


def _split(outputs: QueryOutputs, denoising: int, routed: AQROutput | None) -> Predictions:
    """Part the outputs of the first ``denoising`` queries from those of the matching queries."""

    def part(rows: slice) -> dict[str, Any]:
        return {"codes": outputs.codes[:, :, rows], "logits": outputs.logits[:, :, rows]}

    return Predictions(
        matching=QueryOutputs(**part(slice(denoising, None))),
        denoising=QueryOutputs(**part(slice(0, denoising))) if denoising else None,
        aqr=routed,
    )
