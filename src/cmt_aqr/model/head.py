"""CMT's head: queries and position encodings before the decoder, outputs after it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.checks import require_odd
from cmt_aqr.geometry import BEVGrid, inverse_sigmoid, pixel_of_cell, project_to_images
from cmt_aqr.model.positions import depth_bins, initialise_apart, position_embedding, ray_points, sine_embedding
from cmt_aqr.model.task import TaskHead
from cmt_aqr.ops.batch_norm import BatchNorm2d
from cmt_aqr.ops.devices import masks_are_free
from cmt_aqr.outputs import QueryOutputs
from cmt_aqr.structures import DenoisingQueries, Queries, Sensors, Views


class Head(nn.Module):
    """The parts of CMT around the decoder: queries, position encodings and outputs.

    Args:
        grid: the voxel grid; its range scales the reference points, and its BEV map defines the cells.
        embed_dims: channels of the decoder.
        layers: of the decoder.
        queries: number of learned queries.
        bev_channels: of the LiDAR branch's map; ``None`` for a model without LiDAR.
        cameras: whether the model reads images.
        classes: number of classes.
        depths: number of points on a pixel's ray (position encoding of the cameras).
        nearest_depth: of the first of them, in metres; the last lies short of the range's end along x.
        rv_hidden: hidden channels of the camera encoding.
        task_hidden: hidden channels of the task head per layer.
        task_kernel: width of the task head's convolutions along the queries, odd.
        prior: initial class probability.
    """

    low: Tensor
    extent: Tensor
    ray_depths: Tensor

    def __init__(
        self,
        grid: BEVGrid,
        embed_dims: int = 256,
        layers: int = 6,
        queries: int = 900,
        bev_channels: int | None = 512,
        cameras: bool = True,
        classes: int = 10,
        depths: int = 64,
        nearest_depth: float = 1.0,
        rv_hidden: int = 1024,
        task_hidden: int = 64,
        task_kernel: int = 1,
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed_dims = embed_dims
        # Buffers, so that no step copies constants to the device. The table of sines is no buffer, because DDP
        # would broadcast it and it is large; it is built when first needed.
        low, high = torch.tensor(grid.point_range, dtype=torch.float32).view(2, 3)
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("extent", high - low, persistent=False)
        ray_depths = depth_bins(depths, nearest_depth, grid.point_range[3])
        self.register_buffer("ray_depths", ray_depths, persistent=False)
        self._bev_sines: Tensor | None = None
        self.reference_points = nn.Parameter(torch.rand(queries, 3))
        self.bev_embedding = position_embedding(2 * embed_dims, embed_dims, embed_dims)
        if bev_channels is not None:
            self.shared_conv = nn.Sequential(
                nn.Conv2d(bev_channels, embed_dims, 3, padding=1, bias=False),
                BatchNorm2d(embed_dims),
                nn.ReLU(inplace=True),
            )
        if cameras:
            self.rv_embedding = position_embedding(3 * depths, rv_hidden, embed_dims)
        require_odd("task_kernel", task_kernel)
        self.task = TaskHead(embed_dims, layers, classes, task_hidden, task_kernel, prior)
        self._bev_positions: tuple[object, Tensor] | None = None
        self._initialise_embeddings()

    def _initialise_embeddings(self, scale: float = 2.0) -> None:
        """Initialise both embeddings so that they distinguish positions from the first step on."""
        initialise_apart(self.bev_embedding, sine_embedding(torch.rand(2048, 2), self.embed_dims), scale)
        if hasattr(self, "rv_embedding"):
            # Rays from the origin in all horizontal directions, up to 20 degrees above or below the horizon.
            azimuth, slope = 2 * math.pi * torch.rand(2048), 0.7 * torch.rand(2048) - 0.35
            rays = torch.stack((azimuth.sin(), azimuth.cos(), slope), dim=-1)
            points = ray_points(rays, torch.eye(4), self.ray_depths)
            initialise_apart(self.rv_embedding, ((points - self.low) / self.extent).flatten(1), scale)

    @property
    def point_range(self) -> Sequence[float]:
        """The range (x0, y0, z0, x1, y1, z1) in metres that [0, 1] stands for."""
        return self.grid.point_range

    def to_metres(self, unit: Tensor) -> Tensor:
        """Unit cube (..., 3) to metres, LiDAR frame, without copying the range to the device."""
        return unit * self.extent + self.low

    def sensors(
        self, bev: Tensor | None = None, images: Tensor | None = None, views: Views | None = None
    ) -> Sensors:
        """Combine the maps of the available sensors with the position embeddings of their cells.

        Args:
            bev: (batch, channel, row, column).
            images: (batch, view, channel, row, column).
            views: geometry of the cameras.
        """
        sensors = Sensors()
        if bev is not None:
            sensors = sensors.replace(bev=bev, bev_position=self.bev_position(), grid=self.grid)
        if images is not None and views is not None:
            position = self.image_position(views, (images.shape[-2], images.shape[-1]))
            sensors = sensors.replace(images=images, image_position=position, views=views)
        return sensors

    def queries(self, batch: int, views: Views | None, denoising: DenoisingQueries | None = None) -> Queries:
        """The queries of ``batch`` frames: denoising queries, if any, then learned queries."""
        learned = inverse_sigmoid(self.reference_points).sigmoid().expand(batch, -1, -1)
        if denoising is None:
            return Queries(self.query_embedding(learned, views), learned, self.to_metres(learned))
        noised = inverse_sigmoid(denoising.reference_points.to(learned.dtype)).sigmoid()
        # Embedded separately, because the last bits of a joint embedding depend on the number of denoising
        # queries.
        embeddings = [self.query_embedding(points, views) for points in (noised, learned)]
        points = torch.cat((noised, learned), dim=1)
        padding = denoising.padding
        return Queries(
            embedding=torch.cat(embeddings, dim=1),
            reference_points=points,
            places=self.to_metres(points),
            denoising=padding.shape[1],
            attention_mask=denoising.attention_mask,
            valid=torch.cat((~padding, padding.new_ones(batch, learned.shape[1])), dim=1),
        )

    def bev_position(self) -> Tensor:
        """Position embedding (cell, channel) of the BEV cells, row-major.

        It depends on weights only, so without gradients it is cached until they change. A fused optimiser changes
        them without incrementing their version, but only after a pass with gradients, which clears the cache.
        """
        if torch.is_grad_enabled():
            self._bev_positions = None
            return self._compute_bev_position()
        key = tuple((p.data_ptr(), p._version, p.device) for p in self.bev_embedding.parameters())
        if self._bev_positions is None or self._bev_positions[0] != key:
            self._bev_positions = key, self._compute_bev_position()
        return self._bev_positions[1]

    def _compute_bev_position(self) -> Tensor:
        device = self.reference_points.device
        if self._bev_sines is None or self._bev_sines.device != device:
            with torch.inference_mode(False):  # training uses the cache, too
                self._bev_sines = sine_embedding(self.grid.unit_cell_centres(device), self.embed_dims)
        with torch.autocast(device.type, enabled=False):
            return self.bev_embedding(self._bev_sines.to(self.reference_points.dtype))

    def _embed_rays(self, rays: Tensor, img2lidar: Tensor) -> Tensor:
        """Embedding (..., pixel, channel) of rays (..., pixel, 3) as (u, v, 1), given img2lidar (..., 4, 4)."""
        points = ray_points(rays, img2lidar, self.ray_depths)
        return self.rv_embedding(((points - self.low) / self.extent).flatten(-2))

    def image_position(self, views: Views, map_size: tuple[int, int]) -> Tensor:
        """Position embedding (batch, view, cell, channel) of image cells, row-major, in float32 or better."""
        img2lidar = views.img2lidar
        device = img2lidar.device
        with torch.autocast(device.type, enabled=False):
            rows, columns = (torch.arange(side, device=device, dtype=img2lidar.dtype) for side in map_size)
            cells = torch.cartesian_prod(rows, columns).flip(-1)  # (cell, 2) as (column, row)
            pixels = pixel_of_cell(cells, views.size, map_size)
            return self._embed_rays(functional.pad(pixels, (0, 1), value=1.0), img2lidar)

    def query_embedding(self, reference_points: Tensor, views: Views | None) -> Tensor:
        """Query embedding (batch, query, channel) of reference points (batch, query, 3) in (0, 1).

        The sum of the BEV encoding of x and y, and of the ray encodings in all views that see the point.
        """
        with torch.autocast(reference_points.device.type, enabled=False):
            embedding = self.bev_embedding(sine_embedding(reference_points[..., :2], self.embed_dims))
            if views is not None:
                embedding = embedding + self._camera_query_embedding(reference_points, views)
        return embedding

    def _camera_query_embedding(self, reference_points: Tensor, views: Views) -> Tensor:
        places = self.to_metres(reference_points)
        pixels, depth, seen = project_to_images(places, views.lidar2img, views.size)
        # The third coordinate is 1; in the release it carries the gradient of depth / depth.detach().
        unit = 1 + (depth - depth.detach()) / depth.detach().clamp(min=1e-6)
        rays = torch.cat((pixels, unit[..., None]), dim=-1)  # (batch, view, query, 3)
        batch, _, queries = seen.shape
        if not masks_are_free(seen.device):
            embedded = self._embed_rays(torch.where(seen[..., None], rays, 0.0), views.img2lidar)
            return (embedded * seen[..., None]).sum(dim=1)
        sample, view, query = seen.nonzero(as_tuple=True)
        embedded = self._embed_rays(rays[sample, view, query][:, None], views.img2lidar[sample, view])[:, 0]
        total = embedded.new_zeros(batch * queries, self.embed_dims)
        return total.index_add(0, sample * queries + query, embedded).unflatten(0, (batch, queries))

    def forward(self, decoded: Tensor, reference_points: Tensor) -> QueryOutputs:
        """Turn decoder outputs (layer, batch, query, channel) into codes in metres and logits.

        The release concatenates center, height, dim, rot, vel and reads the columns as cx, cy, log l, log w, cz,
        log h, ...: so column 2 is scaled to the z range although it is log l.
        """
        with torch.autocast(decoded.device.type, enabled=False):
            exact = torch.promote_types(decoded.dtype, torch.float32)
            outputs = self.task(decoded.to(exact))
            offset = torch.cat((outputs["center"], outputs["height"]), dim=-1)
            unit = (offset + inverse_sigmoid(reference_points.to(exact))).sigmoid()
            place = self.to_metres(unit)
            codes = torch.cat((place, outputs["dim"], outputs["rot"], outputs["vel"]), dim=-1)
        return QueryOutputs(codes=codes, logits=outputs["cls_logits"])
