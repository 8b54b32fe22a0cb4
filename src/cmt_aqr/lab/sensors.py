"""Simulated sensors in place of the branches: feature maps made from a frame's boxes and from its damage."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.constants import CAMERAS, CLASSES
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import BEVGrid, cell_of_pixel, project_to_images
from cmt_aqr.lab.scenes import GROUP_OF, GROUPS
from cmt_aqr.model.cmt import CMT
from cmt_aqr.structures import Batch, sample_index

Draw = Callable[[int], Tensor]  # n random numbers per frame: (batch, n) uniform in [0, 1)
_WAVES = (0.1, 0.25)  # frequencies of the position encoding that cameras show, radians per metre


@dataclass(frozen=True)
class Signatures:
    """What one sensor shows of objects, clutter included.

    Attributes:
        values: (object, feature).
        strength: (object,), 0 for an invisible object.
        map: (object,) int64, index of its map (frame, or frame and view).
        cell: (object, 2), continuous (column, row); cell i covers [i, i + 1).
    """

    values: Tensor
    strength: Tensor
    map: Tensor
    cell: Tensor


class SimulatedMaps(nn.Module):
    """Writes signatures into cells through a fixed random projection, adds noise, and applies two learned layers.

    Args:
        features: size of a signature.
        channels: of the simulated map.
        outputs: channels of the branch's output.
        noise: standard deviation where the sensor is intact; a signature's own is about 1.
        broken_noise: relative increase of the noise where all is lost: dirt and echoes have structure, too.
        fading: metres over which a signature falls to 1 / e.
        clutter: false objects per map.
    """

    projection: Tensor

    def __init__(
        self,
        features: int,
        channels: int,
        outputs: int,
        noise: float,
        broken_noise: float,
        fading: float,
        clutter: int,
    ) -> None:
        super().__init__()
        self.noise = noise
        self.broken_noise = broken_noise
        self.fading = fading
        self.clutter = clutter
        projection = torch.randn(features + 2, channels, generator=torch.Generator().manual_seed(features))
        self.register_buffer("projection", projection / features**0.5)
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 1),
        )

    def noise_count(self, rows: int, columns: int) -> int:
        """Random numbers for the noise of a map, an even number."""
        count = self.projection.shape[1] * rows * columns
        return count + count % 2

    def forward(self, signatures: Signatures, lost: Tensor, noise: Tensor) -> Tensor:
        """Features (map, output, row, column).

        Args:
            signatures: of all objects.
            lost: (map, row, column), the sensor's damage, 0 to 1.
            noise: (map, channel, row, column), standard normal.
        """
        maps, rows, columns = lost.shape
        corner = signatures.cell.floor()
        inside = ((corner >= 0) & (corner < corner.new_tensor((columns, rows)))).all(dim=1)
        column, row = (corner * inside[:, None]).long().unbind(-1)
        cell = (signatures.map * rows + row) * columns + column
        strength = signatures.strength * inside * (1 - lost.flatten()[cell])
        offset = signatures.cell - corner - 0.5  # of the object from the centre of its cell
        features = torch.cat((signatures.values, 2 * offset), dim=1) @ self.projection
        drawn = noise.new_zeros(maps * rows * columns, noise.shape[1])
        drawn = drawn.index_add(0, cell, features * strength[:, None])
        drawn = drawn.view(maps, rows, columns, -1).permute(0, 3, 1, 2)
        return self.backbone(drawn + noise * (self.noise * (1 + self.broken_noise * lost))[:, None])


def _direction(angle: Tensor) -> Tensor:
    """Sine and cosine (..., 2)."""
    return torch.stack((angle.sin(), angle.cos()), dim=-1)


class LabLidar(SimulatedMaps):
    """A LiDAR that shows position, size, heading and speed well, but only the group of the class.

    Args:
        grid: of the BEV map.
        **maps: settings of :class:`SimulatedMaps` except ``features``.
    """

    group_of: Tensor

    def __init__(self, grid: BEVGrid, **maps: Any) -> None:
        super().__init__(len(GROUPS) + 9, **maps)
        self.grid = grid
        self.register_buffer("group_of", GROUP_OF, persistent=False)

    def simulate(self, batch: Batch, draw: Draw) -> Tensor:
        """The map (batch, output, row, column) of a batch's boxes."""
        rows, columns = self.grid.bev_shape
        random = draw(8 * self.clutter + self.noise_count(rows, columns))
        group, strength, boxes, noise = random.split(
            (self.clutter, self.clutter, 6 * self.clutter, random.shape[1] - 8 * self.clutter), dim=1
        )
        frame = sample_index(batch.box_counts, batch.boxes.device)
        objects = torch.cat((batch.boxes, self._clutter_boxes(boxes)))
        groups = torch.cat((self.group_of[batch.labels], (group * len(GROUPS)).long().flatten()))
        fading = torch.exp(-objects[:, :2].norm(dim=1) / self.fading)
        fading[len(batch.boxes) :] *= strength.flatten()
        values = (
            functional.one_hot(groups, len(GROUPS)),
            objects[:, 3:6].log(),
            2 * _direction(objects[:, 6]),
            objects[:, 7:9] / 3,
            objects[:, 2:3],
            torch.ones_like(objects[:, :1]),
        )
        frames = torch.arange(batch.size, device=frame.device)
        signatures = Signatures(
            values=torch.cat(values, dim=1),
            strength=fading,
            map=torch.cat((frame, frames.repeat_interleave(self.clutter))),
            cell=self.grid.cell_of(objects[:, :2]),
        )
        lost = random.new_zeros(batch.size, rows, columns)
        if batch.damage is not None:
            cells = (torch.arange(side, device=random.device) + 0.5 for side in (rows, columns))
            centres = self.grid.metres_of(torch.cartesian_prod(*cells).flip(-1))
            places = functional.pad(centres, (0, 1)).expand(batch.size, -1, -1)
            lost = batch.damage.at(places)[0].view(batch.size, rows, columns)
        return self(signatures, lost, _normal(noise).view(batch.size, -1, rows, columns))

    def _clutter_boxes(self, random: Tensor) -> Tensor:
        """Boxes (false object, 9) of any position, size and heading, from (batch, 6 * clutter) uniform numbers."""
        part = random.reshape(-1, 6)
        x0, y0, _, x1, y1, _ = self.grid.point_range
        boxes = part.new_zeros(len(part), 9)
        boxes[:, 0], boxes[:, 1] = x0 + part[:, 0] * (x1 - x0), y0 + part[:, 1] * (y1 - y0)
        boxes[:, 2] = -1.0
        boxes[:, 3:6] = 0.5 + 3 * part[:, 2:5]
        boxes[:, 6] = 6.28 * part[:, 5]
        return boxes


class LabCamera(SimulatedMaps):
    """Cameras that show class and direction well, but distance less well; near objects hide far ones.

    Args:
        stride: pixels per cell.
        depth_error: relative standard deviation of the distance shown.
        hidden: strength of an object behind a nearer one in the same cell.
        **maps: settings of :class:`SimulatedMaps` except ``features``.
    """

    def __init__(self, stride: int, depth_error: float, hidden: float, **maps: Any) -> None:
        super().__init__(len(CLASSES) + 7 + 4 * len(_WAVES), **maps)
        self.stride = stride
        self.depth_error = depth_error
        self.hidden = hidden

    def simulate(self, batch: Batch, draw: Draw) -> Tensor:
        """The maps (batch, view, output, row, column) of a batch's boxes."""
        assert batch.images is not None
        size = (batch.images.shape[-2], batch.images.shape[-1])
        rows, columns = size[0] // self.stride, size[1] // self.stride
        views, maps = len(CAMERAS), batch.size * len(CAMERAS)
        clutter = views * 5 * self.clutter
        random = draw(clutter + views * self.noise_count(rows, columns))
        noise = _normal(random[:, clutter:]).view(maps, -1, rows, columns)

        frame = sample_index(batch.box_counts, batch.boxes.device)
        lidar2img = batch.lidar2img if batch.damage is None else _true_lidar2img(batch, size)
        projected = project_to_images(batch.boxes[:, None, :3], lidar2img[frame], size)
        pixels, depth, seen = (value[:, :, 0] for value in projected)  # (box, view, ...)
        map_index = frame[:, None] * views + torch.arange(views, device=frame.device)  # (box, view)
        cell = cell_of_pixel(pixels, size, (rows, columns)).nan_to_num().clamp(-1, max(rows, columns))
        distance = torch.where(seen, depth, depth.new_full((), torch.inf))
        occluded = distance > _nearest(distance, map_index, cell, (maps, rows, columns)) + 0.1
        strength = seen * torch.where(occluded, self.hidden, 1.0) * torch.exp(-depth.clamp(min=0) / self.fading)

        # The first row of the noise doubles as the error of the distances.
        error = noise[map_index, 0, 0, (torch.arange(len(frame), device=frame.device) % columns)[:, None]]
        values = self._values(batch, depth.clamp(min=1), error)
        signatures = Signatures(values.flatten(0, 1), strength.flatten(), map_index.flatten(), cell.flatten(0, 1))
        signatures = self._with_clutter(
            signatures, random[:, :clutter].reshape(maps, self.clutter, 5), (rows, columns)
        )
        lost = noise.new_zeros(maps, rows, columns)
        if batch.damage is not None:
            lost = functional.interpolate(batch.damage.cameras, (rows, columns), mode="area").flatten(0, 1)
        return self(signatures, lost, noise).view(batch.size, views, -1, rows, columns)

    def _values(self, batch: Batch, depth: Tensor, error: Tensor) -> Tensor:
        """Values (box, view, feature) of the boxes' signatures, from depth in metres and its error (box, view)."""
        shown_depth = depth * torch.exp(self.depth_error * error)
        ratio = (shown_depth / depth)[..., None]
        shown_xy = ratio * batch.boxes[:, None, :2]  # along the ray
        waves = shown_xy[..., None] * shown_xy.new_tensor(_WAVES)
        bearing = torch.atan2(batch.boxes[:, 1], batch.boxes[:, 0])
        classes = functional.one_hot(batch.labels, len(CLASSES)).to(depth.dtype)
        of_box = (2 * classes, 2 * _direction(batch.boxes[:, 6] - bearing), batch.boxes[:, 5:6].log())
        values = (
            torch.cat(of_box, dim=1)[:, None].expand(-1, depth.shape[1], -1),
            torch.cat((waves.sin(), waves.cos()), dim=-1).flatten(-2),  # like the position encoding of queries
            shown_xy / 18,
            shown_depth.log()[..., None] - 2.5,
            torch.ones_like(ratio),
        )
        return torch.cat(values, dim=-1)

    def _with_clutter(self, signatures: Signatures, random: Tensor, map_size: tuple[int, int]) -> Signatures:
        """Signatures with ``clutter`` false objects per map, from uniform numbers (map, object, 5)."""
        part = random.flatten(0, 1)
        values = part.new_zeros(len(part), signatures.values.shape[1])
        values[:, : len(CLASSES)] = 2 * functional.one_hot((part[:, 0] * len(CLASSES)).long(), len(CLASSES))
        values[:, -1] = 1.0
        values[:, -4:-1] = 2 * part[:, 2:5] - 1
        maps = torch.arange(len(random), device=part.device).repeat_interleave(self.clutter)
        cell = part[:, 1:3] * part.new_tensor((map_size[1], map_size[0]))
        return Signatures(
            torch.cat((signatures.values, values)),
            torch.cat((signatures.strength, part[:, 3])),
            torch.cat((signatures.map, maps)),
            torch.cat((signatures.cell, cell)),
        )


def _nearest(distance: Tensor, map_index: Tensor, cell: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Distance (box, view) of the nearest object in each object's cell (box, view, 2) of maps of that shape."""
    maps, rows, columns = shape
    corner = cell.floor().long().clamp(min=0)
    column, row = corner[..., 0].clamp(max=columns - 1), corner[..., 1].clamp(max=rows - 1)
    key = (map_index * rows + row) * columns + column
    nearest = distance.new_full((maps * rows * columns,), torch.inf)
    return nearest.scatter_reduce(0, key.flatten(), distance.flatten(), "amin")[key]


def _true_lidar2img(batch: Batch, size: tuple[int, int]) -> Tensor:
    """The calibration (batch, view, 4, 4) that the images were taken with, in pixels of ``size``."""
    assert batch.damage is not None
    scale = batch.lidar2img.new_tensor((size[1], size[0], 1.0, 1.0))[:, None]
    return scale * batch.damage.projection @ batch.damage.to_read[:, None]


class LabCMT(CMT):
    """CMT with simulated sensors.

    Noise and clutter come from the global generator in training, and from the frame's token in evaluation, so that
    every model gets the same input.
    """

    def lidar_map(self, batch: Batch) -> Tensor:
        """The simulated LiDAR's map (batch, channel, row, column)."""
        if not isinstance(self.lidar, LabLidar):
            raise UserError("model=lab has simulated sensors: model.network.lidar must be a cmt_aqr.lab.LabLidar")
        return self.lidar.simulate(batch, partial(self._draw, batch, "lidar"))

    def image_maps(self, batch: Batch) -> Tensor:
        """The simulated cameras' maps (batch, view, channel, row, column)."""
        if not isinstance(self.image, LabCamera):
            raise UserError("model=lab has simulated sensors: model.network.image must be a cmt_aqr.lab.LabCamera")
        return self.image.simulate(batch, partial(self._draw, batch, "camera"))

    def _draw(self, batch: Batch, sensor: str, count: int) -> Tensor:
        """(batch, count) uniform in [0, 1)."""
        device = batch.boxes.device
        if self.training:
            return torch.rand(batch.size, count, device=device)
        seeds = [zlib.crc32(f"{sensor} {token}".encode()) for token in batch.tokens]
        return torch.stack(
            [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        ).to(device)


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from as many uniform ones (..., even), by the Box-Muller transform."""
    radius, angle = uniform.chunk(2, dim=-1)
    length = (-2 * torch.log1p(-radius)).sqrt()
    return torch.cat((length * torch.cos(6.283185 * angle), length * torch.sin(6.283185 * angle)), dim=-1)
