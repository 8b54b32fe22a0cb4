"""The embedded data: synthetic scenes that are generated when they are first needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.errors import DataError
from cmt_aqr.errors import SettingError, UserError
from cmt_aqr.files import check_folder, writing
from cmt_aqr.scenes import Settings, make_dataset

DEFAULT_ROOT = Path("data/synthetic")
"""Where data are generated without a request, as in ``conf/data/synthetic.yaml``."""


class EmbeddedDataModule(NuScenesDataModule):
    """Synthetic data in the nuScenes format, generated if ``root`` does not exist.

    Only at the default ``root``, unless ``make`` is set.

    Args:
        make: settings of :func:`cmt_aqr.scenes.make_dataset` except the folder; ``None``: its defaults.
        **settings: see :class:`NuScenesDataModule`.
    """

    def __init__(self, make: Mapping[str, Any] | None, **settings: Any) -> None:
        super().__init__(**settings)
        if not isinstance(make or {}, Mapping):
            raise SettingError(f"make={make}: must be settings, as in make.scenes=10")
        self.make = {key: value for key, value in (make or {}).items() if value is not None}
        allowed = {"workers", "overwrite", "progress", *Settings.__dataclass_fields__}
        for key in self.make.keys() - allowed:
            raise SettingError(f"make.{key}: there is no such setting; there are {', '.join(sorted(allowed))}")

    def prepare_data(self) -> None:
        """Generate the data if they do not exist, then index them, once per machine.

        Raises:
            DataError: ``root`` does not exist, is not the default, and ``make`` is not set: it may be mistyped.
        """
        if not self.root.exists():
            self._generate()
        super().prepare_data()

    def _generate(self) -> None:
        if self.root != DEFAULT_ROOT and not self.make:
            raise DataError(
                f"data.root={self.root}: there is no such folder, and data are only generated at {DEFAULT_ROOT}: "
                "correct the path, or add data.make.scenes=10 to generate them there"
            )
        check_folder("data.root", self.root)
        try:
            with writing("data.root", self.root):
                make_dataset(self.root, **self.make)
        except SettingError as error:
            raise UserError(f"data.make.{error}") from error
