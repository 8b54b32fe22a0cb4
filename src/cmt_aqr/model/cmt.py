"""CMT (Cross Modal Transformer, Yan et al., ICCV 2023): a detector for cameras and LiDAR."""

from torch import Tensor, nn

from cmt_aqr.aqr import AQR, AttentionBias
from cmt_aqr.errors import SettingError, UserError
from cmt_aqr.model.decoder import Decoder
from cmt_aqr.model.head import Head
from cmt_aqr.outputs import Predictions
from cmt_aqr.structures import Batch, DenoisingQueries, Sensors, Views


class CMT(nn.Module):
    """The detector, composed of its parts.

    Args:
        head: queries, position encodings and outputs.
        decoder: the transformer decoder.
        lidar: LiDAR branch, points and point counts to a BEV map (batch, channel, row, column).
        image: image branch, images (batch, view, 3, height, width) to maps (batch, view, channel, h, w).
        aqr: lets each query weigh the two sensors, on their maps or in the decoder; ``None``: plain CMT.

    Raises:
        SettingError: there is neither a LiDAR nor an image branch.
    """

    def __init__(
        self,
        head: Head,
        decoder: Decoder,
        lidar: nn.Module | None = None,
        image: nn.Module | None = None,
        aqr: AQR | AttentionBias | None = None,
    ) -> None:
        super().__init__()
        if lidar is None and image is None:
            raise SettingError("lidar=null and image=null: a detector needs at least one sensor")
        self.lidar = lidar
        self.image = image
        self.head = head
        self.decoder = decoder
        self.aqr = aqr

    def encode(self, batch: Batch) -> Sensors:
        """Features of the model's sensors, with the position embeddings of their cells."""
        bev = None if self.lidar is None else self.head.shared_conv(self.lidar_map(batch))
        if self.image is None:
            return self.head.sensors(bev).replace(damage=batch.damage)
        if batch.images is None:
            raise UserError("the model has an image branch, but the batch has no images: set data.cameras=true")
        views = Views.of(batch.lidar2img, (batch.images.shape[-2], batch.images.shape[-1]))
        return self.head.sensors(bev, self.image_maps(batch), views).replace(damage=batch.damage)

    def lidar_map(self, batch: Batch) -> Tensor:
        """BEV map (batch, channel, row, column) of the LiDAR branch."""
        assert self.lidar is not None
        return self.lidar(batch.points, batch.point_counts)

    def image_maps(self, batch: Batch) -> Tensor:
        """Image maps (batch, view, channel, row, column) of the image branch."""
        assert self.image is not None
        return self.image(batch.images)

    def forward(self, batch: Batch, denoising: DenoisingQueries | None = None) -> Predictions:
        """Predict boxes and logits of every decoder layer for the learned and, if given, the denoising queries."""
        sensors = self.encode(batch)
        queries = self.head.queries(batch.size, sensors.views, denoising)
        routed = None if self.aqr is None else self.aqr(queries, sensors)
        memory, positions = (sensors if routed is None else routed.apply(sensors)).tokens()
        bias = None if routed is None else routed.bias
        decoded = self.decoder(queries.embedding, memory, positions, queries.attention_mask, bias)
        outputs = self.head(decoded, queries.reference_points)
        return Predictions.of(outputs, queries.denoising, routed)
