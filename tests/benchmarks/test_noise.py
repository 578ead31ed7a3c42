from benchmarks import noise


def test_each_program_has_a_line():
    rows = [{"name": name, "share_of_draws": share} for name, share in (("a", 0.5), ("a, draws", 0.5), ("b", 0.01234))]
    assert noise.notes(rows) == ["a: 50.00 % of the CPU seconds are draws", "b: 1.23 % of the CPU seconds are draws"]
