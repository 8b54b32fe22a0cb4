"""CMT's head: reference points, position encodings of both sensors, outputs of every decoder layer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.errors import SettingError
from cmt_aqr.geometry import BEVGrid, inverse_sigmoid, pixel_of_cell, project_to_images
from cmt_aqr.model.positions import depth_bins, ray_points, sine_embedding
from cmt_aqr.ops.batch_norm import BatchNorm2d
from cmt_aqr.ops.pointwise import PointwiseLinear
from cmt_aqr.structures import QueryOutputs

OUTPUTS = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "cls_logits": None}
"""Channels of each output of the task head; the logits have one a class."""


class GroupLayerNorm(nn.Module):
    """Layer norm over the channels of each group of (batch, group * channel, query), eps 1e-6."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise over each group's channels; the variance is the biased one."""
        grouped = hidden.unflatten(1, (self.groups, -1))
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normalised = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return normalised * self.weight[:, None] + self.bias[:, None]


class TaskHead(nn.Module):
    """The outputs of every decoder layer at once: one convolution group a layer.

    Args:
        embed_dims: channels of the decoder.
        layers: decoder layers.
        classes: number of classes.
        hidden: channels between the two convolutions, a layer.
        kernel: width of the convolutions along the queries: 1, or 3 in the published LiDAR-only model.
        prior: class probability that the logits start at (focal loss, Lin et al., ICCV 2017).
    """

    def __init__(
        self,
        embed_dims: int,
        layers: int,
        classes: int = 10,
        hidden: int = 64,
        kernel: int = 1,
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise SettingError(f"model.task_kernel={kernel}: must be odd")
        self.layers = layers
        for name, channels in OUTPUTS.items():
            out = classes if channels is None else channels
            branch = nn.Sequential(
                nn.Conv1d(
                    layers * embed_dims,
                    layers * hidden,
                    kernel,
                    padding=kernel // 2,
                    groups=layers,
                    bias=False,
                ),
                GroupLayerNorm(layers * hidden, layers),
                nn.ReLU(),
                nn.Conv1d(layers * hidden, layers * out, kernel, padding=kernel // 2, groups=layers),
            )
            self.add_module(name, branch)
        logits = self.get_submodule("cls_logits").get_submodule("3")
        nn.init.constant_(logits.get_parameter("bias"), -math.log((1 - prior) / prior))

    def forward(self, decoded: Tensor) -> dict[str, Tensor]:
        """Map (layer, batch, query, channel) to (layer, batch, query, output channel) for each output."""
        stacked = decoded.permute(1, 0, 3, 2).flatten(1, 2)
        return {
            name: self.get_submodule(name)(stacked).unflatten(1, (self.layers, -1)).permute(1, 0, 3, 2)
            for name in OUTPUTS
        }


def _waits_for_nothing(device: torch.device) -> bool:
    """Whether picking out rows by a mask costs no wait for the device, so that it pays to compute fewer."""
    return device.type == "cpu"


def _embedding(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(PointwiseLinear(inputs, hidden), nn.ReLU(inplace=True), PointwiseLinear(hidden, outputs))


@torch.no_grad()
def _tell_apart(layers: nn.Sequential, inputs: Tensor, scale: float) -> None:
    """Start an embedding so that it tells its inputs apart.

    The position encodings change slowly over the range and have a large common part: under PyTorch's default
    start all cells look alike to attention, and a run from nothing first spends thousands of steps on
    learning what "near" means. Here every hidden unit has mean 0 and deviation 1 over the inputs, and every
    output mean 0 and deviation ``scale`` (data-dependent start, Krähenbühl et al., ICLR 2016).

    Args:
        layers: linear, ReLU, linear.
        inputs: (sample, channel), spread over what the embedding will see.
        scale: deviation of the outputs.
    """
    for layer, deviation in ((layers[0], 1.0), (layers[2], scale)):
        if not isinstance(layer, nn.Linear):
            raise TypeError("an embedding is linear, ReLU, linear")
        nn.init.kaiming_normal_(layer.weight)
        spread, mean = torch.std_mean(layer(inputs), dim=0)
        layer.weight.mul_(deviation / spread.clamp(min=1e-6)[:, None])
        layer.bias.copy_((layer.bias - mean) * deviation / spread.clamp(min=1e-6))
        inputs = functional.relu(layer(inputs))


class Head(nn.Module):
    """Everything around the decoder: queries and positions before it, outputs after it.

    Args:
        grid: the voxel grid; its range scales the reference points and its BEV map gives the cells.
        embed_dims: channels of the decoder.
        layers: decoder layers.
        queries: number of learned queries.
        bev_channels: channels of the LiDAR branch's map; ``None`` for a model without LiDAR.
        cameras: whether the model looks at images.
        classes: number of classes.
        depths: points on the ray of a pixel (position encoding of the cameras).
        nearest_depth: depth of the first of them, in metres; the last lies short of the range's end along x.
        rv_hidden: hidden channels of the camera encoding.
        task_hidden: hidden channels of the task head, a layer.
        task_kernel: width of the task head's convolutions along the queries.
        prior: class probability that the logits start at.
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
        self.depths = depths
        self.nearest_depth = nearest_depth
        # Buffers, so that no step copies a constant to the device; the table of sines is large, so it is made
        # when it is needed and no buffer, which DDP would send around.
        low, high = torch.tensor(grid.point_range, dtype=torch.float32).view(2, 3)
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("extent", high - low, persistent=False)
        self.register_buffer(
            "ray_depths", depth_bins(depths, nearest_depth, grid.point_range[3]), persistent=False
        )
        self._bev_sines: Tensor | None = None
        self.reference_points = nn.Parameter(torch.rand(queries, 3))
        self.bev_embedding = _embedding(2 * embed_dims, embed_dims, embed_dims)
        if bev_channels is not None:
            self.shared_conv = nn.Sequential(
                nn.Conv2d(bev_channels, embed_dims, 3, padding=1, bias=False),
                BatchNorm2d(embed_dims),
                nn.ReLU(inplace=True),
            )
        if cameras:
            self.rv_embedding = _embedding(3 * depths, rv_hidden, embed_dims)
        self.task = TaskHead(embed_dims, layers, classes, task_hidden, task_kernel, prior)
        self._bev_positions: tuple[object, Tensor] | None = None
        self._start_embeddings()

    def _start_embeddings(self, scale: float = 2.0) -> None:
        """Let both embeddings tell places apart from the first step on."""
        _tell_apart(self.bev_embedding, sine_embedding(torch.rand(2048, 2), self.embed_dims), scale)
        if hasattr(self, "rv_embedding"):
            # Rays from the origin in all horizontal directions, up to 20 degrees up or down.
            azimuth, slope = 2 * math.pi * torch.rand(2048), 0.7 * torch.rand(2048) - 0.35
            rays = torch.stack((azimuth.sin(), azimuth.cos(), slope), dim=-1)
            points = ray_points(rays, torch.eye(4), self.ray_depths)
            _tell_apart(self.rv_embedding, ((points - self.low) / self.extent).flatten(1), scale)

    @property
    def point_range(self) -> Sequence[float]:
        """The range (x0, y0, z0, x1, y1, z1) in metres that [0, 1] stands for."""
        return self.grid.point_range

    def to_metres(self, unit: Tensor) -> Tensor:
        """Points (..., 3) of the unit cube in metres, LiDAR frame, with the range already on the device."""
        return unit * self.extent + self.low

    def all_reference_points(self, batch: int, extra: Tensor | None) -> tuple[Tensor, ...]:
        """Reference points (batch, query, 3) in (0, 1): of ``extra`` (batch, any, 3) if given, and the learned."""
        learned = inverse_sigmoid(self.reference_points).sigmoid().expand(batch, -1, -1)
        if extra is None:
            return (learned,)
        return inverse_sigmoid(extra.to(learned.dtype)).sigmoid(), learned

    def bev_position(self) -> Tensor:
        """Position embedding (cell, channel) of the BEV cells, row-major.

        It depends on weights only, so without gradients it is computed once and kept until they change. A fused
        optimiser changes them without counting a version up; it does so after a pass with gradients only.
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
            with torch.inference_mode(False):  # kept for training, too
                self._bev_sines = sine_embedding(self.grid.unit_cell_centres(device), self.embed_dims)
        with torch.autocast(device.type, enabled=False):
            return self.bev_embedding(self._bev_sines.to(self.reference_points.dtype))

    def _embed_rays(self, rays: Tensor, img2lidar: Tensor) -> Tensor:
        """Embed rays (..., pixel, 3) as (u, v, 1), given img2lidar (..., 4, 4): (..., pixel, channel)."""
        points = ray_points(rays, img2lidar, self.ray_depths)
        return self.rv_embedding(((points - self.low) / self.extent).flatten(-2))

    def image_position(self, img2lidar: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
        """Position embedding (batch, view, cell, channel) of the image cells, row-major.

        Args:
            img2lidar: (batch, view, 4, 4) float32 or better, inverse of lidar2img.
            image_size: height and width of the padded images in pixels.
            map_size: height and width of their feature maps.
        """
        device = img2lidar.device
        with torch.autocast(device.type, enabled=False):
            v, u = torch.meshgrid(
                torch.arange(map_size[0], device=device, dtype=img2lidar.dtype),
                torch.arange(map_size[1], device=device, dtype=img2lidar.dtype),
                indexing="ij",
            )
            cells = torch.stack((u, v), dim=-1).reshape(-1, 2)
            pixels = pixel_of_cell(cells, image_size, map_size)
            return self._embed_rays(functional.pad(pixels, (0, 1), value=1.0), img2lidar)

    def query_embedding(
        self, reference_points: Tensor, lidar2img: Tensor, img2lidar: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """Query embedding (batch, query, channel) of reference points (batch, query, 3) in (0, 1).

        The BEV encoding of x and y, plus, for every view that sees the point, the encoding of its ray there.
        """
        with torch.autocast(reference_points.device.type, enabled=False):
            embedding = self.bev_embedding(sine_embedding(reference_points[..., :2], self.embed_dims))
            if hasattr(self, "rv_embedding"):
                embedding = embedding + self._camera_query_embedding(
                    reference_points, lidar2img, img2lidar, image_size
                )
        return embedding

    def _camera_query_embedding(
        self, reference_points: Tensor, lidar2img: Tensor, img2lidar: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        places = self.to_metres(reference_points)
        pixels, depth, seen = project_to_images(places, lidar2img, image_size)
        # The third coordinate is 1, but in the release it carries the gradient of depth / depth.detach().
        unit = 1 + (depth - depth.detach()) / depth.detach().clamp(min=1e-6)
        rays = torch.cat((pixels, unit[..., None]), dim=-1)
        batch, _, queries = seen.shape
        if not _waits_for_nothing(seen.device):
            embedded = self._embed_rays(torch.where(seen[..., None], rays, 0.0), img2lidar)
            return (embedded * seen[..., None]).sum(dim=1)
        sample, view, query = seen.nonzero(as_tuple=True)
        embedded = self._embed_rays(rays[sample, view, query][:, None], img2lidar[sample, view])[:, 0]
        total = embedded.new_zeros(batch * queries, self.embed_dims)
        return total.index_add(0, sample * queries + query, embedded).unflatten(0, (batch, queries))

    def forward(self, decoded: Tensor, reference_points: Tensor) -> QueryOutputs:
        """Turn decoder outputs (layer, batch, query, channel) into codes in metres, and logits.

        The code's columns are center, height, dim, rot, vel as the release concatenates them, and are read
        as cx, cy, log l, log w, cz, log h, ...: column 2 went through the z range although it is log l.
        """
        with torch.autocast(decoded.device.type, enabled=False):
            exact = torch.promote_types(decoded.dtype, torch.float32)
            outputs = self.task(decoded.to(exact))
            offset = torch.cat((outputs["center"], outputs["height"]), dim=-1)
            unit = (offset + inverse_sigmoid(reference_points.to(exact))).sigmoid()
            place = self.to_metres(unit)
            codes = torch.cat((place, outputs["dim"], outputs["rot"], outputs["vel"]), dim=-1)
        return QueryOutputs(codes=codes, logits=outputs["cls_logits"])

    def share(self, bev: Tensor) -> Tensor:
        """Bring the LiDAR branch's map (batch, channel, row, column) to the decoder's channels."""
        return functional.relu(self.shared_conv[1](self.shared_conv[0](bev)), inplace=True)
