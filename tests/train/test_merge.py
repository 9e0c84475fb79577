"""A merged model answers like its base and adapter; a merge that would not is never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import curate
from curate.cli import cli
from curate.errors import CurateError, ModelError
from curate.model import artifact, loader, serving, sources
from curate.train.results import export, merge
from curate.train.results.export import Origin, ResultInfo
from tests.support import tiny_runs

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks
PROMPT, ANSWER = (message.content for message in tiny_runs.TALK[:2])


@pytest.mark.slow
@pytest.mark.parametrize("method", tiny_runs.ADAPTERS)
def test_the_merged_model_equals_base_and_adapter(tmp_path: Path, method: str) -> None:
    run = tiny_runs.run(tmp_path, method)
    result = curate.merge(str(run), tmp_path / "out")
    assert result.method == method
    assert result.difference < 1e-4 < 0.1 < result.effect
    tuned = peft.AutoPeftModelForCausalLM.from_pretrained(str(run / "adapter"), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, rtol=1e-3, atol=1e-4)
    note = serving.read_note(tmp_path / "out")
    assert note is not None
    assert (note.kind, note.method, note.template) == ("model", method, "vicuna")
    assert method in (tmp_path / "out" / "README.md").read_text()


def test_the_command_merges_and_chat_answers_as_trained(tmp_path: Path) -> None:
    run = tiny_runs.run(tmp_path, "lora", dtype=torch.bfloat16)
    merged = CliRunner().invoke(cli, ["merge", str(run), str(tmp_path / "out")])
    assert merged.exit_code == 0, merged.output
    assert "(bf16)" in merged.stdout
    answered = CliRunner().invoke(cli, ["chat", str(tmp_path / "out"), "--prompt", PROMPT, "--temperature", "0"])
    assert answered.stdout == f"{ANSWER}\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kernels", ["exact", "rounding"])
def test_qlora_is_merged_into_the_base_as_it_was_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    """The kernels that round emulate those of processors that multiply 4-bit matrices in bf16."""
    bnb = pytest.importorskip("bitsandbytes")
    output_serving = export.serving_for(tiny_runs.tiny_renderer(tmp_path / "tokenizer"))
    base_folder = export.write_model(
        tmp_path / "base", tiny_runs.base(), ResultInfo(output_serving, Origin("tiny", None, "none"), 512)
    )
    source = sources.find_model(str(base_folder))
    four: Any = loader.load_model(source, dtype=torch.float32, device="cpu", quantise=True)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    tuned = peft.get_peft_model(four, config, autocast_adapter_dtype=False).eval()
    origin = Origin(str(base_folder), base_folder, "qlora", quantised=True)
    adapter = export.write_adapter(tmp_path / "adapter", tuned, ResultInfo(output_serving, origin, 512))
    before = merge._logits(tuned)
    if kernels == "rounding":
        exact = bnb.nn.Linear4bit.forward
        monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda layer, x: exact(layer, x.bfloat16().to(x.dtype)))
        assert merge._distance(merge._logits(tuned), before) > merge.TOLERANCE[torch.float32]
    result = curate.merge(str(adapter), tmp_path / "out")
    assert result.difference < 1e-3
    merged = merge._logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert merge._distance(merged, before) < 1e-3
    plain = artifact.load_artifact(artifact.find_artifact(str(adapter)), device=torch.device("cpu"), quantise=False)
    assert merge._distance(merge._logits(plain), before) > 0.01, "the base before quantisation is another"


def refused(tmp_path: Path, adapter: object, match: str, **settings: Any) -> None:
    with pytest.raises(CurateError, match=match) as caught:
        curate.merge(str(adapter), tmp_path / "new", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_failed_merge_gets_one_line_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_runs.run(tmp_path, "lora", steps=2)
    refused(tmp_path, tmp_path / "base", "is a model, not an adapter")
    with pytest.raises(ModelError, match=r"base' exists already"):
        curate.merge(str(run), tmp_path / "base")
    monkeypatch.setattr(merge, "merge_layers", lambda model, _: model.unload())  # a merge that loses the adapter
    refused(tmp_path, run, r"logits differ by .* from base and adapter, .* is allowed; nothing was written")


def test_an_adapter_without_mergeable_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_runs.base()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, config)
    base_folder = export.write_model(
        tmp_path / "base",
        model,
        ResultInfo(export.serving_for(tiny_runs.tiny_renderer(tmp_path / "t")), Origin("tiny", None, "none"), 512),
    )
    config.base_model_name_or_path = str(base_folder)
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    refused(tmp_path, tmp_path / "adapter", "of type PROMPT_TUNING cannot be merged .*serve it as it is")
