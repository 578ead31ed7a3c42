import json

from benchmarks import dispatch


def test_both_forms_are_timed(tmp_path, capsys):
    output = tmp_path / "rows.json"
    rows = dispatch.main(["--batch=16", "--steps=4", "--chunk=2", "--repeats=1", f"--output={output}"])
    assert [row["name"] for row in rows] == [dispatch.ONE_BY_ONE, dispatch.ONE_CALL]
    assert rows[1]["seconds_over_one_call"] == (1, 1, 1)
    assert all(row["images_per_second"] == 16 * 4 / row["seconds_median"] for row in rows)
    assert "CPU milliseconds of a step: one by one" in capsys.readouterr().out.replace("\n", " ")
    assert [json.loads(line)["name"] for line in output.read_text().splitlines()] == [row["name"] for row in rows]
