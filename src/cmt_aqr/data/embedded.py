"""The embedded data: synthetic scenes that are made when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.synthetic import make_dataset


class EmbeddedDataModule(NuScenesDataModule):
    """Synthetic data in the nuScenes format, made where ``root`` does not exist.

    Args:
        make: settings of :func:`cmt_aqr.data.synthetic.make_dataset`, its folder left out.
        **settings: those of :class:`NuScenesDataModule`.
    """

    def __init__(self, make: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.make = dict(make)

    def prepare_data(self) -> None:
        """Make the data where they are absent, then index them, once a machine."""
        if not self.root.exists():
            make_dataset(self.root, **self.make)
        super().prepare_data()
