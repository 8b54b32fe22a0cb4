"""Synthetic driving scenes in the nuScenes v1.0 format, for training and tests without nuScenes."""

from cmt_aqr.scenes.layout import build_scene
from cmt_aqr.scenes.maker import DESCRIPTION_FILE, make_dataset
from cmt_aqr.scenes.scene import Scene
from cmt_aqr.scenes.settings import Settings

__all__ = ["DESCRIPTION_FILE", "Scene", "Settings", "build_scene", "make_dataset"]
