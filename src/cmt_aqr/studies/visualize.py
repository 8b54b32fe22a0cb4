"""Pictures of what a checkpoint makes of single frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.random import Generator
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from cmt_aqr.checks import is_whole, require, require_fraction, require_whole
from cmt_aqr.data.augmentation import ImageProcessing, apply_transforms
from cmt_aqr.data.collate import collate
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset, SampleKey, frame_generator
from cmt_aqr.data.selection import frame_numbers
from cmt_aqr.evaluation.decoding import decode
from cmt_aqr.files import check_folder
from cmt_aqr.outputs import AQROutput, BiasOutput, mean_seen
from cmt_aqr.runs.checkpoints import read_checkpoint
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.runs.console import console
from cmt_aqr.runs.precision import device_type
from cmt_aqr.structures import Frame
from cmt_aqr.studies.pictures import MapPair, QueryBeta, Scene, bev_picture, camera_picture
from cmt_aqr.studies.rendering import print_written, rgb, save
from cmt_aqr.training.clamp import renderer_of
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.run import build_module, restore


@dataclass(frozen=True)
class PictureSettings:
    """Settings of the pictures."""

    frames: (
        tuple[int | str, ...] | None
    )  # numbers from 0, or sample tokens; None: a few over the split, or the first on a sheet
    split: str | None  # of the frames; None: that of the evaluation
    min_score: float  # detections with a lower score are not rendered
    dpi: int  # pixels per inch; the pictures are 8 to 21 inches wide
    out: Path  # folder of the pictures, created if necessary

    @classmethod
    def from_config(cls, config: DictConfig, folder: Path) -> PictureSettings:
        """Check the settings of ``conf/visualize.yaml``; ``folder`` is for ``out=null``."""
        frames: Any = OmegaConf.to_container(config.frames) if OmegaConf.is_list(config.frames) else config.frames
        if not isinstance(frames, list | None):
            frames = [frames]
        valid = frames is None or (frames and all(isinstance(frame, str) or is_whole(frame) for frame in frames))
        require(bool(valid), "frames", config.frames, "numbers from 0 or sample tokens, as in 'frames=[0,5]'")
        score = require_fraction("min_score", config.min_score)
        require_whole("dpi", config.dpi, 20, 600)
        out = folder if config.out is None else Path(config.out)
        return cls(None if frames is None else tuple(frames), config.split, score, config.dpi, out)


def visualize(config: DictConfig, settings: PictureSettings, overrides: Sequence[str] = ()) -> list[Path]:
    """Render frames with a checkpoint's detections and AQR's output; print and return the paths.

    Args:
        config: the checkpoint's configuration with the command's overrides; ``ckpt_path`` is the checkpoint.
        settings: of the pictures.
        overrides: as given on the command line. Without ``renderer.max_weight_clamp``, the checkpoint's clamp
            applies.
    """
    check_folder("out", settings.out)
    if settings.split is not None:
        OmegaConf.update(config, "data.eval_split", settings.split)
    OmegaConf.update(config, "data.limit_eval_frames", None)
    if OmegaConf.select(config, "data.damage") is None and OmegaConf.select(config, "aqr.beta") is not None:
        OmegaConf.update(config, "data.damage", True, force_add=True)  # rendered beside beta
    checkpoint = read_checkpoint(Path(config.ckpt_path))
    data: NuScenesDataModule = build_data(config, evaluating=True)
    data.prepare_data()
    numbers = frame_numbers(data, settings.frames)
    data.setup("validate")
    module = build_module(config, data, processes=1)
    restore(config, module, checkpoint, overrides)
    module.to(device_type(str(config.trainer.accelerator))).eval()

    written: list[Path] = []
    screen = console()
    progress = track(numbers, description="Rendering frames", console=screen, disable=not screen.is_terminal)
    for number in progress:
        scene = make_scene(module, data, number, settings.min_score)
        written.extend(render(scene, settings.out / f"{data.val_split}_{number:04d}", settings.dpi))
    for note in _notes(module):
        screen.print(note)
    print_written(written)
    return written


@torch.inference_mode()
def make_scene(module: DetectorModule, data: NuScenesDataModule, number: int, min_score: float) -> Scene:
    """Run the model on a frame of ``val_split`` and collect what is rendered of it."""
    dataset = data.dataset("val")
    stored, random = frame_with_faults(dataset, number)
    processing = [step for step in dataset.transforms if isinstance(step, ImageProcessing)]
    frame = apply_transforms(stored, processing, random)

    predictions = module.model(data.finish(collate([frame]).to(module.device)))
    (detections,) = decode(predictions.matching, module.max_detections, min_score, tokens=[frame.token])
    images, extent, size = None, None, (0, 0)
    if stored.images is not None and frame.images is not None:
        images, extent = rgb(stored.images), _extent(stored, frame, stored.images.shape[-2:])
        size = (frame.images.shape[-2], frame.images.shape[-1])
    renderer = renderer_of(module)
    clamp = renderer.max_weight_clamp if renderer is not None and renderer.normalize_weights else None
    output = predictions.aqr
    maps = output.maps() if isinstance(output, AQROutput) else {}
    pairs = {sensor: MapPair(before[0].cpu(), after[0].cpu(), clamp) for sensor, (before, after) in maps.items()}
    return Scene(
        title=f"frame {number} of {data.val_split}, {frame.token[:8]}",
        grid=module.model.head.grid,
        points=frame.points,
        images=images,
        image_extent=extent,
        image_size=size,
        lidar2img=frame.lidar2img,
        truth=frame.boxes[frame.box_points > 0],
        detections=detections.boxes.cpu(),
        min_score=min_score,
        bev=pairs.get("bev"),
        camera=pairs.get("camera"),
        beta=_beta(output, frame) if isinstance(output, BiasOutput) else None,
    )


def frame_with_faults(dataset: FrameDataset, number: int) -> tuple[Frame, Generator]:
    """A frame with sensor faults, before image processing, and the generator for the remaining transforms."""
    faults = [step for step in dataset.transforms if not isinstance(step, ImageProcessing)]
    random = frame_generator(dataset.seed, SampleKey(epoch=0, frame=number))
    return apply_transforms(dataset.reader.read(number), faults, random), random


def _beta(output: BiasOutput, frame: Frame) -> QueryBeta:
    """Beta of a frame's queries; of a beta per camera, the negative mean over the cameras that see the query."""
    assert output.places is not None
    beta = output.beta[..., 0]
    if output.beta.shape[-1] > 1:
        views = torch.ones_like(output.beta, dtype=torch.bool) if output.seen is None else output.seen
        beta = -mean_seen(output.beta, views)
    lost = {}
    if output.lidar_lost is not None and output.camera_lost is not None and output.seen is not None:
        cameras = mean_seen(output.camera_lost, output.seen)
        lost = {"LiDAR": output.lidar_lost[0].cpu(), "cameras": cameras[0].cpu()}
    image_damage = None if frame.damage is None else frame.damage.cameras
    return QueryBeta(output.places[0].cpu(), beta[0].cpu(), lost, image_damage)


def render(scene: Scene, stem: Path, dpi: int) -> list[Path]:
    """Write ``<stem>_bev.png`` and, if the model reads cameras, ``<stem>_cameras.png``."""
    figures = {stem.with_name(f"{stem.name}_bev.png"): bev_picture(scene)}
    if scene.images is not None:
        figures[stem.with_name(f"{stem.name}_cameras.png")] = camera_picture(scene)
    for path, figure in figures.items():
        save(figure, path, dpi)
    return list(figures)


def _extent(stored: Frame, frame: Frame, size: Sequence[int]) -> tuple[float, float, float, float]:
    """Left, right, bottom, top edges of the stored images (height, width) in pixels of the processed images."""
    height, width = size
    to_pixel = frame.lidar2img[0].double() @ torch.linalg.inv(stored.lidar2img[0].double())
    corners = torch.tensor(((-0.5, -0.5, 1, 1), (width - 0.5, height - 0.5, 1, 1)), dtype=torch.float64)
    (left, top), (right, bottom) = (corners @ to_pixel.T)[:, :2].tolist()
    return left, right, bottom, top


def _notes(module: DetectorModule) -> list[str]:
    """What is missing from the pictures, and why."""
    parts = {
        "The checkpoint has no AQR (aqr=none): the pictures show boxes but no maps": module.model.aqr,
        "The model reads no cameras: there are only pictures from above": module.model.image,
        "The model reads no LiDAR: the pictures from above show neither points nor a map": module.model.lidar,
    }
    return [note for note, part in parts.items() if part is None]
