"""CMT with AQR: training camera-LiDAR 3D detectors on nuScenes."""

__version__ = "0.1.0"
