"""Reading and writing checkpoints of the official CMT and of ours."""

from cmt_aqr.weights.convert import convert, naming_of, to_official, to_ours
from cmt_aqr.weights.files import WeightsError, read_state_dict, save_pickled, save_safetensors
from cmt_aqr.weights.load import LoadReport, load_weights

__all__ = [
    "LoadReport",
    "WeightsError",
    "convert",
    "load_weights",
    "naming_of",
    "read_state_dict",
    "save_pickled",
    "save_safetensors",
    "to_official",
    "to_ours",
]
