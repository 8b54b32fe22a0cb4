from tests.helpers.small_data import small_root

__all__ = ["small_root"]
