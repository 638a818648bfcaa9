from shiftproof.protocol.settings import search_space, setting


def _setting(fixed):
    return setting(search_space("PACS", "photographs", True, "erm", "genie", "none", "short"), fixed, 0, 0)


def test_a_whole_number_for_a_float_is_the_same_setting():
    given = _setting({"optimizer.lr": 1, "model.dropout": 0})
    assert [type(given[name]) for name in ("optimizer.lr", "model.dropout")] == [float, float]
    assert given == _setting({"optimizer.lr": 1.0, "model.dropout": 0.0})


def test_what_is_fixed_keeps_its_type_otherwise():
    fixed = {"data.batch_size": 7, "optimizer.noise": "1", "optimizer.precondition": False}
    given = _setting(fixed)
    assert {name: given[name] for name in fixed} == fixed
    assert [type(given[name]) for name in fixed] == [int, str, bool]
    assert _setting({"optimizer.lr": True})["optimizer.lr"] is True  # not 1.0: nobody meant that
