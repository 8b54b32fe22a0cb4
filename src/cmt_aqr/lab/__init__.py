"""A laboratory: simulated sensors in front of the real detector, in which both sensors matter."""

from cmt_aqr.lab.datamodule import LabDataModule
from cmt_aqr.lab.sensors import LabCamera, LabCMT, LabLidar

__all__ = ["LabCMT", "LabCamera", "LabDataModule", "LabLidar"]
