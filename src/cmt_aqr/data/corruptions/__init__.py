"""The field's sensor failures as faults: parts that strike a sensor, and the suites that are made of them.

``mome``, ``multicorrupt``, ``nuscenes_r`` and ``nuscenes_c`` make the conditions, with the published parameters;
the other modules hold the formulas.
"""
