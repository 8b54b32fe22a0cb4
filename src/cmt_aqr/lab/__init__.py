"""A laboratory: simulated sensors, of which both matter, in front of the real detector."""

from cmt_aqr.lab.datamodule import LabDataModule
from cmt_aqr.lab.sensors import LabCamera, LabCMT, LabLidar

__all__ = ["LabCMT", "LabCamera", "LabDataModule", "LabLidar"]
