"""Rigid transforms from the way nuScenes writes them: a translation and a (w, x, y, z) quaternion."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation


def rotations(quaternions: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices (n, 3, 3) of quaternions (n, 4) in nuScenes' order w, x, y, z."""
    wxyz = np.asarray(quaternions, dtype=np.float64).reshape(-1, 4)
    if not len(wxyz):
        return np.zeros((0, 3, 3))
    return Rotation.from_quat(wxyz[:, [1, 2, 3, 0]]).as_matrix()


def poses(translations: ArrayLike, quaternions: ArrayLike) -> NDArray[np.float64]:
    """Rigid transforms (n, 4, 4) from the child frame to the parent: x -> R x + t.

    Args:
        translations: (n, 3) in metres.
        quaternions: (n, 4), order w, x, y, z.
    """
    rotation = rotations(quaternions)
    matrices = np.tile(np.eye(4), (len(rotation), 1, 1))
    matrices[:, :3, :3] = rotation
    matrices[:, :3, 3] = np.asarray(translations, dtype=np.float64).reshape(-1, 3)
    return matrices


def invert(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of rigid transforms (..., 4, 4), exact where a general inverse would round."""
    inverse = np.zeros_like(matrices)
    transposed = np.swapaxes(matrices[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = transposed
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", transposed, matrices[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse
