"""What stands where in a configuration."""

from omegaconf import OmegaConf

from cmt_aqr.runs.tree import at, nodes, unresolved

CONFIG = OmegaConf.create({"a": {"b": 1, 3: [2.5]}, "c": "${nothing}", "d": None})


def test_nodes_are_groups_and_values_with_dotted_keys_and_nothing_is_resolved() -> None:
    found = dict(nodes(unresolved(CONFIG)))
    assert list(found) == ["a", "a.b", "a.3", "c", "d"]
    assert found["a.3"] == [2.5] and found["c"] == "${nothing}"


def test_at_is_what_stands_at_a_dotted_key() -> None:
    tree = unresolved(CONFIG)
    assert [at(tree, key, "absent") for key in ("a.b", "a.3", "c", "d")] == [1, [2.5], "${nothing}", None]
    assert all(at(tree, key, "absent") == "absent" for key in ("e", "a.e", "a.b.e", "d.e"))
