"""The demo ends with everything that it promises, in its time, from an empty folder; run again, it goes on."""

import json

import pytest


@pytest.mark.slow
def test_a_short_demo_leaves_numbers_samples_and_a_report(tmp_path, run_dlm):
    code, out, log = run_dlm("demo", "--workdir", "w", "--minutes=3", "--config=debug", cwd=tmp_path)
    assert code == 0, log
    workdir = tmp_path / "w"
    result = json.loads((workdir / "evaluate.json").read_text())
    assert result["seconds"] < 190 and {"1", "4", "8", "32"} <= set(result["t_step"])
    # A model of seconds: above the trigram, and the demo says so and why; its loss is below uniform bytes.
    assert result["trigram_bits_per_byte"] < result["diffusion"]["bits_per_byte"] < 8.1
    assert "above the trigram" in out and "try --minutes" in out
    page = (workdir / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6 and "http" not in page.split("</style>")[1].split("<h2>Samples")[0]
    made = json.loads((workdir / "plan.json").read_text())
    steps = [json.loads(line)["num_steps"] for line in (workdir / "samples.jsonl").read_text().splitlines()]
    assert steps == [8, 32, made["num_steps"]] and sum(made["sizes"]) == made["length"] == 32
    assert json.loads((workdir / "curve.json").read_text())["length"] == 32
    again, _, log = run_dlm("demo", "--workdir", "w", "--minutes=3", "--config=debug", cwd=tmp_path)
    assert again == 0, log
    # A training that its deadline stopped early goes on; one that was complete is only evaluated again.
    rerun = json.loads((workdir / "evaluate.json").read_text())
    assert rerun["diffusion"]["num_steps"] >= result["diffusion"]["num_steps"]
    assert rerun["trigram_bits_per_byte"] == result["trigram_bits_per_byte"]
