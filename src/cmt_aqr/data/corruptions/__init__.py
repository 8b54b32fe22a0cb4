"""Published sensor corruptions.

``mome``, ``multicorrupt``, ``nuscenes_r`` and ``nuscenes_c`` define the conditions, the other modules the
formulas.
"""
