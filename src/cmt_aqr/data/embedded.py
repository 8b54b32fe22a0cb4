"""The embedded data: synthetic scenes that are made when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.errors import DataError
from cmt_aqr.errors import SettingError, UserError
from cmt_aqr.files import check_folder, writing
from cmt_aqr.scenes import Settings, make_dataset

DEFAULT_ROOT = Path("data/synthetic")
"""Where data are made without being asked for, as in ``conf/data/synthetic.yaml``."""


class EmbeddedDataModule(NuScenesDataModule):
    """Synthetic data in the nuScenes format, made where ``root`` is absent and is the default or ``make`` says so.

    Args:
        make: settings of :func:`cmt_aqr.scenes.make_dataset`, its folder left out; ``None``: its default.
        **settings: those of :class:`NuScenesDataModule`.
    """

    def __init__(self, make: Mapping[str, Any] | None, **settings: Any) -> None:
        super().__init__(**settings)
        if not isinstance(make or {}, Mapping):
            raise SettingError(f"make={make}: must be settings, as in make.scenes=10")
        self.make = {key: value for key, value in (make or {}).items() if value is not None}
        known = {"workers", "overwrite", "progress", *Settings.__dataclass_fields__}
        for key in self.make.keys() - known:
            raise SettingError(f"make.{key}: there is no such setting; there are {', '.join(sorted(known))}")

    def prepare_data(self) -> None:
        """Make the data where they are absent, then index them, once a machine.

        Raises:
            DataError: they are absent where nobody asked for them: ``root`` may be mistyped.
        """
        if not self.root.exists():
            self._make()
        super().prepare_data()

    def _make(self) -> None:
        if self.root != DEFAULT_ROOT and not self.make:
            raise DataError(
                f"data.root={self.root}: there is no such folder, and embedded data are made unasked only at "
                f"{DEFAULT_ROOT}: mend the path, or add data.make.scenes=10 to make them there"
            )
        check_folder("data.root", self.root)
        try:
            with writing("data.root", self.root):
                make_dataset(self.root, **self.make)
        except SettingError as error:
            raise UserError(f"data.make.{error}") from error
