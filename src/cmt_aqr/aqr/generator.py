"""The weight generator: each query reads windows around itself on both sensors' maps and predicts weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmt_aqr.aqr.placement import Placement
from cmt_aqr.checks import require, require_count, require_flag, require_number, require_odd
from cmt_aqr.errors import UserError
from cmt_aqr.ops.devices import masks_are_free
from cmt_aqr.ops.windows import window_cells, window_scores, window_sum
from cmt_aqr.structures import Sensors


@dataclass(frozen=True)
class _Windows:
    """The windows of one sensor, as pairs of a query and a window.

    A query has one slot per view that it reads; a slot may be empty.

    Attributes:
        keys: (cell, channel), features plus position embedding, the cells of all maps concatenated.
        values: (cell, channel), features.
        index: (pair, window cell) int64, rows of ``keys`` and ``values``.
        slot: (pair,) int64, row-major index over (frame, query, slot).
        exists: (batch * query, slot, window cell) bool, False for cells farther than half a window from the
            query's cell, or in an empty slot.
    """

    keys: Tensor
    values: Tensor
    index: Tensor
    slot: Tensor
    exists: Tensor

    @property
    def query(self) -> Tensor:
        """(pair,) int64, the pair's query, numbered over all frames."""
        return self.slot // self.exists.shape[1]

    def scores(self, queries: Tensor) -> Tensor:
        """Scores (batch * query, head, slot * window cell) of queries (batch * query, head, channel)."""
        scores = window_scores(queries.index_select(0, self.query), self.keys, self.index)
        slots = scores.new_zeros(self.exists.shape[:2].numel(), *scores.shape[1:])
        slots = slots.index_copy(0, self.slot, scores)
        return slots.unflatten(0, self.exists.shape[:2]).transpose(1, 2).flatten(2)

    def attend(self, attention: Tensor) -> Tensor:
        """Weighted sums of the values (batch * query, head, channel), for attention shaped like :meth:`scores`."""
        by_slot = attention.unflatten(2, (self.exists.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        sums = window_sum(by_slot.index_select(0, self.slot), self.values, self.index)
        return sums.new_zeros(len(attention), *sums.shape[1:]).index_add(0, self.query, sums)


class WindowAttention(nn.Module):
    """Multi-head cross attention (Vaswani et al., NeurIPS 2017) of each query over the cells of its windows.

    One softmax covers a query's window cells of both sensors, as CMT's cross attention covers both sensors'
    cells. With ``split_heads`` the first half of the heads attends to the LiDAR only, the second half to the
    cameras only. A query without any cell gets 0 before the output projection. There is no key bias: it would
    shift all scores of a query equally, which the softmax cancels.

    Cells are never projected. With q the projected query and x a cell, q . (W_k x) = (W_k^T q) . x, so W_k is
    applied once per query instead of once per cell; W_v is applied after the weighted sum.
    """

    def __init__(self, embed_dims: int, num_heads: int, dropout: float, split_heads: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.split_heads = split_heads
        self.dropout = dropout
        self.query_proj = nn.Linear(embed_dims, embed_dims)
        self.key_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        for layer in (self.query_proj, self.key_proj, self.value_proj, self.out_proj):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, sensors: list[_Windows]) -> Tensor:
        """Attended values (batch * query, channel) for queries (batch * query, channel)."""
        total, channels = queries.shape
        head_dims = channels // self.num_heads
        by_head = self.query_proj(queries).view(total, self.num_heads, head_dims) / math.sqrt(head_dims)
        key_weight = self.key_proj.weight.view(self.num_heads, head_dims, channels)
        folded = torch.einsum("phd,hdc->phc", by_head, key_weight)

        scores = torch.cat([windows.scores(folded) for windows in sensors], dim=-1)
        exists = torch.cat([windows.exists.flatten(1) for windows in sensors], dim=-1)[:, None]
        if self.split_heads and len(sensors) > 1:
            exists = exists & self._cells_of_heads(sensors, exists.device)
        # The smallest finite number instead of -inf, so that a query without cells gets 0 below, not NaN.
        lowest = torch.finfo(scores.dtype).min
        attention = scores.masked_fill(~exists, lowest).softmax(dim=-1) * exists
        attention = F.dropout(attention, self.dropout, self.training)

        parts = attention.split([windows.exists[0].numel() for windows in sensors], dim=-1)
        sums = torch.stack([windows.attend(part) for windows, part in zip(sensors, parts, strict=True)]).sum(0)
        value_weight = self.value_proj.weight.view(self.num_heads, head_dims, channels)
        value_bias = self.value_proj.bias.view(self.num_heads, head_dims)
        values = torch.einsum("phc,hdc->phd", sums, value_weight)
        values = values + attention.sum(dim=-1, keepdim=True) * value_bias
        return self.out_proj(values.flatten(1))

    def _cells_of_heads(self, sensors: list[_Windows], device: torch.device) -> Tensor:
        """(head, cell) bool, whether the cell belongs to the sensor that the head attends to."""
        lidar, camera = (windows.exists[0].numel() for windows in sensors)
        first_half = torch.arange(self.num_heads, device=device) < self.num_heads // 2
        return first_half[:, None] == (torch.arange(lidar + camera, device=device) < lidar)


class WeightGeneratorLayer(nn.Module):
    """A decoder layer without self attention: cross attention, norm, FFN, norm."""

    def __init__(
        self, embed_dims: int, num_heads: int, feedforward_dims: int, dropout: float, split_heads: bool = False
    ) -> None:
        super().__init__()
        self.attention = WindowAttention(embed_dims, num_heads, dropout, split_heads)
        self.attention_norm = nn.LayerNorm(embed_dims)
        self.ffn = nn.Sequential(
            nn.Linear(embed_dims, feedforward_dims),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(feedforward_dims, embed_dims),
        )
        self.ffn_norm = nn.LayerNorm(embed_dims)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, position: Tensor, sensors: list[_Windows]) -> Tensor:
        """Update queries (batch * query, channel), given their position embedding of the same shape."""
        attended = self.attention(queries + position, sensors)
        queries = self.attention_norm(queries + self.dropout(attended))
        return self.ffn_norm(queries + self.dropout(self.ffn(queries)))


class WindowReader(nn.Module):
    """Attention of each query over the cells around it on both sensors' feature maps.

    A query starts at 0 with CMT's query embedding as its position. It reads ``bev_window`` x ``bev_window`` cells
    around its BEV cell and ``image_window`` x ``image_window`` cells in each view that sees it, truncated at the
    borders of the maps. Keys are features plus CMT's position embedding, values are features, as in CMT.

    Args:
        embed_dims: channels of queries and feature maps.
        num_heads: attention heads; must divide ``embed_dims``.
        feedforward_dims: hidden channels of the FFN.
        depth: number of decoder layers; all read the same windows.
        dropout: of the attention, its output and the FFN.
        bev_window: cells along a side, odd.
        image_window: cells along a side, odd.
        max_views: maximum number of views that a query reads, the ones in which it is most central. In nuScenes'
            rig at most two cameras see a point. ``None``: no limit. (Rendering is not limited.)
        split_heads: one half of the heads attends to the LiDAR only, the other half to the cameras only. In one
            softmax over both sensors, the sensor with the larger logits hides the other.

    Raises:
        SettingError: a value is out of range.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 4,
        feedforward_dims: int = 1024,
        depth: int = 1,
        dropout: float = 0.1,
        bev_window: int = 5,
        image_window: int = 15,
        max_views: int | None = 2,
        split_heads: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("embed_dims", embed_dims),
            ("num_heads", num_heads),
            ("feedforward_dims", feedforward_dims),
            ("depth", depth),
        ):
            require_count(name, value)
        require(embed_dims % num_heads == 0, "num_heads", num_heads, f"a divisor of embed_dims={embed_dims}")
        require_number("dropout", dropout, 0, below=1)
        require_odd("bev_window", bev_window)
        require_odd("image_window", image_window)
        if max_views is not None:
            require_count("max_views", max_views)
        require_flag("split_heads", split_heads)
        require(not split_heads or num_heads % 2 == 0, "split_heads", split_heads, f"false with {num_heads} heads")
        self.embed_dims = embed_dims
        self.bev_window = bev_window
        self.image_window = image_window
        self.max_views = max_views
        self.layers = nn.ModuleList(
            WeightGeneratorLayer(embed_dims, num_heads, feedforward_dims, dropout, split_heads)
            for _ in range(depth)
        )

    def read(
        self, query_embedding: Tensor, sensors: Sensors, on_bev: Placement | None, on_images: Placement | None
    ) -> Tensor:
        """Attend to the windows: (batch, query, channel), in the dtype of the parameters.

        Args:
            query_embedding: (batch, query, channel).
            sensors: feature maps and their position embeddings.
            on_bev: placement on the BEV map, leading shape (batch,).
            on_images: placement on the image maps, leading shape (batch, view).

        Raises:
            UserError: ``embed_dims`` differs from the channels of the features.
        """
        batch, count, _ = query_embedding.shape
        with torch.autocast(query_embedding.device.type, enabled=False):
            windows = []
            if on_bev is not None and sensors.bev is not None and sensors.bev_position is not None:
                one_view = Placement(on_bev.position[:, None], on_bev.inside[:, None], on_bev.map_size)
                windows.append(
                    self._windows(sensors.bev[:, None], sensors.bev_position, one_view, self.bev_window)
                )
            if on_images is not None and sensors.images is not None and sensors.image_position is not None:
                windows.append(self._windows(sensors.images, sensors.image_position, on_images, self.image_window))
            position = query_embedding.to(windows[0].keys.dtype).flatten(0, 1)
            queries = torch.zeros_like(position)
            for layer in self.layers:
                queries = layer(queries, position, windows)
            return queries.view(batch, count, -1)

    def _windows(self, features: Tensor, position: Tensor, placement: Placement, window: int) -> _Windows:
        """Build the windows on a sensor's maps.

        Args:
            features: (batch, view, channel, row, column).
            position: (cell, channel) or (batch, view, cell, channel).
            placement: of the queries, leading shape (batch, view).
            window: cells along a side.
        """
        if features.shape[2] != self.embed_dims:
            raise UserError(
                f"aqr.generator.embed_dims={self.embed_dims}: must be {features.shape[2]}, the channels of the "
                "model's features"
            )
        dtype = next(self.parameters()).dtype
        values = features.to(dtype).flatten(3).transpose(2, 3).contiguous()  # (batch, view, cell, channel)
        keys = values + position.to(dtype)
        view, seen = self._most_central_views(placement)  # (batch, query, slot)
        cell = placement.cell.transpose(1, 2).gather(2, view[..., None].expand(-1, -1, -1, 2))
        index, exists = window_cells(cell, placement.map_size, window)  # (batch, query, slot, window cell)
        batch, views, cells, _ = values.shape
        frame = torch.arange(batch, device=view.device)[:, None, None]
        index = index + ((frame * views + view) * cells)[..., None]
        if masks_are_free(index.device):  # half or more of the cameras' slots are empty
            slot = seen.flatten().nonzero()[:, 0]
        else:
            slot = torch.arange(seen.numel(), device=seen.device)
        return _Windows(
            keys=keys.flatten(0, 2),
            values=values.flatten(0, 2),
            index=index.flatten(0, 2)[slot],
            slot=slot,
            exists=(exists & seen[..., None]).flatten(0, 1),
        )

    def _most_central_views(self, placement: Placement) -> tuple[Tensor, Tensor]:
        """Views that each query reads (batch, query, slot) int64, and whether the slot is used, bool."""
        rows, columns = placement.map_size
        column, row = placement.position.unbind(-1)
        off_centre = (column / max(columns - 1, 1) - 0.5) ** 2 + (row / max(rows - 1, 1) - 0.5) ** 2
        # Views that see the query rank above 0, because off_centre is at most 0.5.
        rank = torch.where(placement.inside, 1 - off_centre, torch.zeros_like(off_centre)).transpose(1, 2)
        views = rank.shape[-1]
        rank, view = rank.topk(min(self.max_views or views, views), dim=-1)
        return view, rank > 0


class WeightGenerator(WindowReader):
    """LiDAR and camera weight of each query: a :class:`WindowReader`, a linear layer and a sigmoid.

    Args:
        bias_init: initial bias of the linear layer; 1.5 gives initial weights of sigmoid(1.5) = 0.82.
        **reader: settings of :class:`WindowReader`.

    Raises:
        SettingError: a value is out of range.
    """

    def __init__(self, bias_init: float = 1.5, **reader: Any) -> None:
        super().__init__(**reader)
        require_number("bias_init", bias_init)
        self.weight_head = nn.Linear(self.embed_dims, 2)
        # Small but not 0, so that earlier layers get a gradient from the first step on.
        nn.init.normal_(self.weight_head.weight, std=0.01)
        nn.init.constant_(self.weight_head.bias, bias_init)

    def forward(
        self, query_embedding: Tensor, sensors: Sensors, on_bev: Placement | None, on_images: Placement | None
    ) -> Tensor:
        """Weights (batch, query, 2) in (0, 1), LiDAR first, float32 or better; arguments as in :meth:`read`."""
        with torch.autocast(query_embedding.device.type, enabled=False):
            logits = self.weight_head(self.read(query_embedding, sensors, on_bev, on_images))
            return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
