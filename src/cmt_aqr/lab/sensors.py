"""Simulated sensors in place of the branches: maps made from a frame's boxes and from what faults broke."""

import zlib
from dataclasses import dataclass
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

_WAVES = (0.1, 0.25)
"""Of the places that cameras show, radians per metre."""


@dataclass(frozen=True)
class Signatures:
    """What one sensor shows of objects, true and false ones.

    Attributes:
        values: (object, feature).
        strength: (object,), 0: not to be seen.
        map: (object,) int64, number of the map (frame, or frame and view) that it stands on.
        cell: (object, 2), continuous (column, row); cell i covers [i, i + 1).
    """

    values: Tensor
    strength: Tensor
    map: Tensor
    cell: Tensor


class SimulatedMaps(nn.Module):
    """Signatures through a fixed random projection into cells, noise over all, and two layers that learn.

    Args:
        features: of a signature.
        channels: of the simulated map.
        outputs: of the branch.
        noise: standard deviation where nothing is broken; a signature's own is about 1.
        broken_noise: how much more there is where all is broken: dirt and echoes have structure, too.
        fading: metres over which a signature falls to 1 / e.
        clutter: false objects on each map.
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
        drawn = torch.randn(features + 2, channels, generator=torch.Generator().manual_seed(features))
        self.register_buffer("projection", drawn / features**0.5)
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 1),
        )

    def noise_numbers(self, rows: int, columns: int) -> int:
        """Random numbers that the noise of a map needs."""
        count = self.projection.shape[1] * rows * columns
        return count + count % 2

    def forward(self, shown: Signatures, lost: Tensor, noise: Tensor) -> Tensor:
        """Features (map, output, row, column).

        Args:
            shown: what stands on the maps.
            lost: (map, row, column), what faults broke, 0 to 1.
            noise: (map, channel, row, column), standard normal.
        """
        maps, rows, columns = lost.shape
        drawn = noise.new_zeros(maps * rows * columns, noise.shape[1])
        place = shown.cell.floor()
        inside = ((place >= 0) & (place < place.new_tensor((columns, rows)))).all(dim=1)
        column, row = (place * inside[:, None]).long().unbind(-1)
        number = (shown.map * rows + row) * columns + column
        kept = shown.strength * inside * (1 - lost.flatten()[number])
        within = shown.cell - place - 0.5  # where in its cell an object stands
        signature = torch.cat((shown.values, 2 * within), dim=1) @ self.projection
        drawn = drawn.index_add(0, number, signature * kept[:, None])
        drawn = drawn.view(maps, rows, columns, -1).permute(0, 3, 1, 2)
        spread = self.noise * (1 + self.broken_noise * lost)
        return self.backbone(drawn + noise * spread[:, None])


def headings(yaw: Tensor) -> Tensor:
    """(..., 2): sine and cosine."""
    return torch.stack((yaw.sin(), yaw.cos()), dim=-1)


class LabLidar(SimulatedMaps):
    """A LiDAR that knows place, size, heading and speed well, and of the class only its group.

    Args:
        grid: of the BEV map.
        **maps: settings of :class:`SimulatedMaps`, all but ``features``.
    """

    group_of: Tensor

    def __init__(self, grid: BEVGrid, **maps: Any) -> None:
        super().__init__(len(GROUPS) + 9, **maps)
        self.grid = grid
        self.register_buffer("group_of", GROUP_OF, persistent=False)

    def show(self, batch: Batch, random: Tensor) -> Tensor:
        """The branch's map (batch, output, row, column).

        Args:
            batch: whose boxes it sees.
            random: (batch, number) uniform in [0, 1), as many as :meth:`numbers` says.
        """
        rows, columns = self.grid.bev_shape
        frame = sample_index(batch.box_counts, batch.boxes.device)
        objects = torch.cat((batch.boxes, self._false(batch, random)))
        group = functional.one_hot(self.group_of[batch.labels], len(GROUPS))
        false = functional.one_hot((random[:, : self.clutter] * len(GROUPS)).long().flatten(), len(GROUPS))
        fades = torch.exp(-objects[:, :2].norm(dim=1) / self.fading)
        fades[len(batch.boxes) :] *= random[:, self.clutter : 2 * self.clutter].flatten()
        at = torch.arange(batch.size, device=frame.device)
        shown = Signatures(
            values=torch.cat(
                (
                    torch.cat((group, false)),
                    objects[:, 3:6].log(),
                    2 * headings(objects[:, 6]),
                    objects[:, 7:9] / 3,
                    objects[:, 2:3],
                    torch.ones_like(objects[:, :1]),
                ),
                dim=1,
            ),
            strength=fades,
            map=torch.cat((frame, at.repeat_interleave(self.clutter))),
            cell=self.grid.cell_of(objects[:, :2]),
        )
        lost = random.new_zeros(batch.size, rows, columns)
        if batch.damage is not None:
            cells = (torch.arange(side, device=random.device) + 0.5 for side in (rows, columns))
            centres = self.grid.metres_of(torch.cartesian_prod(*cells).flip(-1))
            places = functional.pad(centres, (0, 1)).expand(batch.size, -1, -1)
            lost = batch.damage.at(places)[0].view(batch.size, rows, columns)
        noise = normal(random[:, 8 * self.clutter :]).view(batch.size, -1, rows, columns)
        return self(shown, lost, noise)

    def numbers(self) -> int:
        """Random numbers that a frame needs."""
        return 8 * self.clutter + self.noise_numbers(*self.grid.bev_shape)

    def _false(self, batch: Batch, random: Tensor) -> Tensor:
        """Boxes (false object, 9) anywhere, of any size and heading."""
        part = random[:, 2 * self.clutter : 8 * self.clutter].reshape(-1, 6)
        x0, y0, _, x1, y1, _ = self.grid.point_range
        boxes = part.new_zeros(len(part), 9)
        boxes[:, 0], boxes[:, 1] = x0 + part[:, 0] * (x1 - x0), y0 + part[:, 1] * (y1 - y0)
        boxes[:, 2] = -1.0
        boxes[:, 3:6] = 0.5 + 3 * part[:, 2:5]
        boxes[:, 6] = 6.28 * part[:, 5]
        return boxes


class LabCamera(SimulatedMaps):
    """Cameras that know the class and the direction well, and the distance less; near objects hide far ones.

    Args:
        stride: pixels per cell.
        depth_error: relative standard deviation of the distance that is shown.
        hidden: strength of what stands behind a nearer object in the same cell.
        **maps: settings of :class:`SimulatedMaps`, all but ``features``.
    """

    def __init__(self, stride: int, depth_error: float, hidden: float, **maps: Any) -> None:
        super().__init__(len(CLASSES) + 7 + 4 * len(_WAVES), **maps)
        self.stride = stride
        self.depth_error = depth_error
        self.hidden = hidden

    def map_size(self, batch: Batch) -> tuple[int, int]:
        """Rows and columns of a view's map."""
        assert batch.images is not None
        return batch.images.shape[-2] // self.stride, batch.images.shape[-1] // self.stride

    def numbers(self, batch: Batch) -> int:
        """Random numbers that a frame needs: each object's error of distance is among the noise's."""
        return len(CAMERAS) * (5 * self.clutter + self.noise_numbers(*self.map_size(batch)))

    def show(self, batch: Batch, random: Tensor) -> Tensor:
        """The branch's maps (batch, view, output, row, column); ``random`` as for :meth:`LabLidar.show`."""
        assert batch.images is not None
        size, map_size = (batch.images.shape[-2], batch.images.shape[-1]), self.map_size(batch)
        rows, columns = map_size
        views, maps = len(CAMERAS), batch.size * len(CAMERAS)
        extra = views * 5 * self.clutter
        noise = normal(random[:, extra:]).view(maps, -1, rows, columns)

        frame = sample_index(batch.box_counts, batch.boxes.device)
        true = batch.lidar2img if batch.damage is None else self._true(batch, size)
        pixels, depth, seen = project_to_images(batch.boxes[:, None, :3], true[frame], size)  # (box, view, 1, ...)
        pixels, depth, seen = pixels[:, :, 0], depth[:, :, 0], seen[:, :, 0]
        number = frame[:, None] * views + torch.arange(views, device=frame.device)  # (box, view)
        cell = cell_of_pixel(pixels, size, map_size).nan_to_num().clamp(-1, max(map_size))
        place = cell.floor().long().clamp(min=0)
        key = (number * rows + place[..., 1].clamp(max=rows - 1)) * columns + place[..., 0].clamp(max=columns - 1)
        far = torch.where(seen, depth, depth.new_full((), torch.inf))
        nearest = far.new_full((maps * rows * columns,), torch.inf)
        nearest = nearest.scatter_reduce(0, key.flatten(), far.flatten(), "amin")
        hides = torch.where(far > nearest[key] + 0.1, self.hidden, 1.0)
        error = noise[number, 0, 0, (torch.arange(len(frame), device=frame.device) % columns)[:, None]]
        shown_depth = depth.clamp(min=1) * torch.exp(self.depth_error * error)
        bearing = torch.atan2(batch.boxes[:, 1], batch.boxes[:, 0])
        fine = functional.one_hot(batch.labels, len(CLASSES)).to(depth.dtype)
        turned = 2 * headings(batch.boxes[:, 6] - bearing)
        of_box = torch.cat((2 * fine, turned, batch.boxes[:, 5:6].log()), dim=1)[:, None].expand(-1, views, -1)
        ratio = (shown_depth / depth.clamp(min=1))[..., None]
        place_shown = ratio * batch.boxes[:, None, :2]  # along the ray, so far off as the distance is
        waves = place_shown[..., None] * place_shown.new_tensor(_WAVES)
        waves = torch.cat((waves.sin(), waves.cos()), dim=-1).flatten(-2)  # as queries know their places
        values = torch.cat(
            (of_box, waves, place_shown / 18, shown_depth.log()[..., None] - 2.5, torch.ones_like(ratio)), dim=-1
        )
        strength = seen * hides * torch.exp(-depth.clamp(min=0) / self.fading)
        shown = self._with_false(
            Signatures(values.flatten(0, 1), strength.flatten(), number.flatten(), cell.flatten(0, 1)),
            random[:, :extra].reshape(maps, self.clutter, 5),
            map_size,
        )
        lost = noise.new_zeros(maps, rows, columns)
        if batch.damage is not None:
            lost = functional.interpolate(batch.damage.cameras, map_size, mode="area").flatten(0, 1)
        return self(shown, lost, noise).view(batch.size, views, -1, rows, columns)

    def _true(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """The calibration (batch, view, 4, 4) that the pictures were taken with, whatever the frame says of it."""
        assert batch.damage is not None
        height, width = size
        scale = batch.lidar2img.new_tensor((width, height, 1.0, 1.0))[:, None]
        return scale * batch.damage.projection @ batch.damage.to_read[:, None]

    def _with_false(self, shown: Signatures, random: Tensor, map_size: tuple[int, int]) -> Signatures:
        """With ``clutter`` false objects on every map, from (map, object, 5) uniform numbers."""
        part = random.flatten(0, 1)
        values = part.new_zeros(len(part), shown.values.shape[1])
        values[:, : len(CLASSES)] = 2 * functional.one_hot((part[:, 0] * len(CLASSES)).long(), len(CLASSES))
        values[:, -1] = 1.0
        values[:, -4:-1] = 2 * part[:, 2:5] - 1
        maps = torch.arange(len(random), device=part.device).repeat_interleave(self.clutter)
        place = part[:, 1:3] * part.new_tensor((map_size[1], map_size[0]))
        return Signatures(
            torch.cat((shown.values, values)),
            torch.cat((shown.strength, part[:, 3])),
            torch.cat((shown.map, maps)),
            torch.cat((shown.cell, place)),
        )


class LabCMT(CMT):
    """CMT, AQR and all, behind simulated sensors.

    Noise and false objects come from the step's random numbers in training, and from the frame's token in
    evaluation, so that every model sees the same.
    """

    def lidar_map(self, batch: Batch) -> Tensor:
        """The simulated LiDAR's map."""
        if not isinstance(self.lidar, LabLidar):
            raise UserError("model=lab has simulated sensors: model.network.lidar must be a cmt_aqr.lab.LabLidar")
        return self.lidar.show(batch, self._random(batch, self.lidar.numbers(), "lidar"))

    def image_maps(self, batch: Batch) -> Tensor:
        """The simulated cameras' maps."""
        if not isinstance(self.image, LabCamera):
            raise UserError("model=lab has simulated sensors: model.network.image must be a cmt_aqr.lab.LabCamera")
        return self.image.show(batch, self._random(batch, self.image.numbers(batch), "camera"))

    def _random(self, batch: Batch, count: int, sensor: str) -> Tensor:
        """(batch, count) uniform in [0, 1)."""
        device = batch.boxes.device
        if self.training:
            return torch.rand(batch.size, count, device=device)
        drawn = []
        for token in batch.tokens:
            random = torch.Generator().manual_seed(zlib.crc32(f"{sensor} {token}".encode()))
            drawn.append(torch.rand(count, generator=random))
        return torch.stack(drawn).to(device)


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from as many uniform ones (..., even), by Box and Muller."""
    radius, angle = uniform.chunk(2, dim=-1)
    length = (-2 * torch.log1p(-radius)).sqrt()
    return torch.cat((length * torch.cos(6.283185 * angle), length * torch.sin(6.283185 * angle)), dim=-1)
