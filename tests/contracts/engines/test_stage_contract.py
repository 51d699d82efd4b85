"""What every engine's stage must do: the same tokens in any number of parts, for any sequences side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.engines.base import Hidden, Stage, StageSpec
from exo.engines.errors import EngineError, ModelFilesError, UnsupportedModelError
from exo.engines.registry import available_engines, create_stage
from exo.shared.types.generation import ChatMessage, Sampling
from support.models import VOCABULARY_SIZE, write_random_model

LAYERS = 6
PROMPT = [5, 77, 12, 200, 3, 3, 45, 254, 101, 9]
SPLITS = [(2, 6), (4, 6), (1, 3, 6), (1, 2, 3, 4, 5, 6)]
BUNDLED = Path(__file__).parents[3] / "src/exo/worker/models/bundled/exo-tiny"

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3 with a head of its own": {"model_type": "qwen3", "tie_word_embeddings": False},
    "qwen3 in f32": {"dtype": "float32"},
    "qwen2": {},
    "llama": {"tie_word_embeddings": False},
    "mistral": {},
    "llama with windows": {
        "model_type": "llama",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
        "sliding_window": 8,
    },
    "phi3": {"head_dim": None},
    "olmo2": {},
    # MLX multiplies chosen experts on a CPU in 32 bits only.
    "olmoe": {"dtype": "float32", "num_experts": 4, "num_experts_per_tok": 2},
    "glm": {},
    "ernie4_5": {"use_bias": False},
    "starcoder2": {},
    "telechat3": {},
    "mixtral": {"dtype": "float32", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "dtype": "float32",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {
        "dtype": "float32",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
}


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models by name, each written when first asked for."""
    root = tmp_path_factory.mktemp("models")

    class Written(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            config = dict(FAMILIES[name])
            family = config.pop("model_type", name.split()[0])
            directory = root / name.replace(" ", "-")
            self[name] = write_random_model(
                directory, family=family, dtype=config.pop("dtype", "bfloat16"), config=config
            )
            return self[name]

    return Written()


@pytest.fixture(params=available_engines())
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(engine: str, model_dir: Path, start: int = 0, end: int = LAYERS) -> Stage:
    spec = StageSpec(
        model_dir=model_dir, start_layer=start, end_layer=end, device="cpu:0", context_length=512
    )
    stage = create_stage(engine, spec)
    stage.load(lambda *_: None)
    return stage


def load_pipeline(engine: str, model_dir: Path, ends: Sequence[int]) -> list[Stage]:
    starts = [0, *ends[:-1]]
    return [load(engine, model_dir, start, end) for start, end in zip(starts, ends, strict=True)]


def step(
    stages: Sequence[Stage], sequence_id: str, token_ids: Sequence[int], wants_token: bool
) -> int | None:
    """Run positions through all stages, the hidden values as bytes between them, as between processes."""
    values: Sequence[int] | Hidden = token_ids
    for stage in stages[:-1]:
        hidden = stage.forward(sequence_id, values, wants_token=wants_token)
        assert isinstance(hidden, Hidden)
        values = Hidden.from_bytes(bytes(hidden.to_bytes()), hidden.values.shape, hidden.dtype)
    token = stages[-1].forward(sequence_id, values, wants_token=wants_token)
    assert token is None or isinstance(token, int)
    return token


def generate(
    stages: Sequence[Stage],
    count: int,
    *,
    prompt: Sequence[int] = PROMPT,
    sampling: Sampling = Sampling(),
    sequence_id: str = "s",
    chunk: int = 512,
) -> list[int]:
    """Open a sequence on every stage, fill the cache with the prompt in chunks, and take `count` tokens."""
    for stage in stages:
        stage.open(sequence_id, sampling)
    for start in range(0, len(prompt) - 1, chunk):
        assert step(stages, sequence_id, prompt[start : min(start + chunk, len(prompt) - 1)], False) is None
    tokens: list[int] = []
    inputs = list(prompt[-1:])
    for _ in range(count):
        token = step(stages, sequence_id, inputs, True)
        assert token is not None
        tokens.append(token)
        inputs = [token]
    for stage in stages:
        stage.close(sequence_id)
    return tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_gives_the_tokens_of_the_whole_model(
    engine: str, name: str, model_dirs: dict[str, Path]
) -> None:
    # Sampled, because many random models repeat one token greedily, which would show nothing.
    sampling = Sampling(temperature=1.0, seed=3)
    whole = generate([load(engine, model_dirs[name])], 24, sampling=sampling)
    assert len(set(whole)) > 8
    for ends in SPLITS if name == "qwen3" else SPLITS[2:3]:
        assert generate(load_pipeline(engine, model_dirs[name], ends), 24, sampling=sampling) == whole


@pytest.mark.parametrize("ends", SPLITS)
@pytest.mark.skipif(not (BUNDLED / "config.json").exists(), reason="the bundled model is not there")
def test_the_bundled_model_gives_the_same_in_parts(engine: str, ends: Sequence[int]) -> None:
    whole = load(engine, BUNDLED)
    prompt = whole.tokenizer.encode_chat([ChatMessage(role="user", content="What is 12 + 30?")])
    expected = generate([whole], 16, prompt=prompt)
    assert generate(load_pipeline(engine, BUNDLED, ends), 16, prompt=prompt) == expected


def test_the_last_hidden_values_are_equal_to_the_bit(engine: str, model_dirs: dict[str, Path]) -> None:
    directory = model_dirs["qwen3"]
    front, middle, to_five = (
        load(engine, directory, 0, 2),
        load(engine, directory, 2, 5),
        load(engine, directory, 0, 5),
    )
    for stage in (front, middle, to_five):
        stage.open("s", Sampling())
    first = front.forward("s", PROMPT, wants_token=True)
    assert isinstance(first, Hidden)
    second, both = (
        middle.forward("s", first, wants_token=True),
        to_five.forward("s", PROMPT, wants_token=True),
    )
    assert isinstance(second, Hidden)
    assert isinstance(both, Hidden)
    assert (second.dtype, second.values.shape) == (both.dtype, (1, len(PROMPT), 64))
    assert np.array_equal(second.values, both.values)


def test_generating_ahead_gives_the_same_tokens(engine: str, model_dirs: dict[str, Path]) -> None:
    stage = load(engine, model_dirs["qwen3"])
    expected = generate([stage], 20)
    stage.open("s", Sampling())
    stage.forward("s", PROMPT[:-1], wants_token=False)
    tokens = [stage.generate("s", PROMPT[-1:], has_more=True)]
    while len(tokens) < 20:
        tokens.append(stage.generate("s", tokens[-1:], has_more=len(tokens) < 19))
    assert tokens == expected


def test_sequences_side_by_side_do_not_disturb_each_other(engine: str, model_dirs: dict[str, Path]) -> None:
    stages = load_pipeline(engine, model_dirs["qwen3"], (2, 6))
    samplings = {
        "greedy": Sampling(),
        "warm": Sampling(temperature=0.8, seed=1),
        "hot": Sampling(temperature=1.5, top_p=0.9, seed=2),
    }
    prompts = {"greedy": PROMPT, "warm": PROMPT[3:], "hot": list(reversed(PROMPT))}
    alone = {
        name: generate(stages, 12, prompt=prompts[name], sampling=samplings[name], sequence_id=name)
        for name in samplings
    }
    together: dict[str, list[int]] = {name: [] for name in samplings}
    for name, sampling in samplings.items():
        for stage in stages:
            stage.open(name, sampling)
        step(stages, name, prompts[name][:-1], False)
    for place in range(12):
        for name, tokens in together.items():
            token = step(stages, name, prompts[name][-1:] if place == 0 else tokens[-1:], True)
            assert token is not None
            tokens.append(token)
    assert together == alone


def test_a_seed_repeats_and_another_does_not(engine: str, model_dirs: dict[str, Path]) -> None:
    stage = load(engine, model_dirs["qwen3"])
    first, again, other = (
        generate([stage], 24, sampling=Sampling(temperature=1.0, seed=seed)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_a_prompt_in_chunks_gives_the_same_tokens(engine: str, model_dirs: dict[str, Path]) -> None:
    prompt = [(7 * place) % 256 for place in range(70)]
    directory = model_dirs["qwen3 in f32"]
    expected = generate([load(engine, directory)], 12, prompt=prompt, chunk=16)
    assert generate(load_pipeline(engine, directory, (1, 3, 6)), 12, prompt=prompt, chunk=16) == expected


def test_the_context_of_a_closed_sequence_is_gone(engine: str, model_dirs: dict[str, Path]) -> None:
    stage = load(engine, model_dirs["qwen3"])
    assert generate([stage], 8) == generate([stage], 8)
    assert stage.stats().sequences == 0
    stage.close("never opened")


def test_progress_is_told_layer_by_layer(engine: str, model_dirs: dict[str, Path]) -> None:
    told: list[tuple[int, int]] = []
    spec = StageSpec(
        model_dir=model_dirs["qwen3"], start_layer=1, end_layer=5, device="cpu:0", context_length=64
    )
    create_stage(engine, spec).load(lambda loaded, total, _: told.append((loaded, total)))
    assert told == sorted(told)
    assert (told[0], told[-1]) == ((0, 4), (4, 4))


def test_text_goes_in_and_comes_out_whole(engine: str, model_dirs: dict[str, Path]) -> None:
    tokenizer = load(engine, model_dirs["qwen3"]).tokenizer
    text = "the weather in Zürich: 12 °C, 雨 and 🌧 again\n  and then"
    token_ids = tokenizer.encode_prompt(text)
    assert all(0 <= token_id < tokenizer.vocabulary_size for token_id in token_ids)
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("ends", [7, [7, 9]])
def test_the_models_own_settings_name_its_ends(engine: str, tmp_path: Path, ends: int | list[int]) -> None:
    directory = write_random_model(tmp_path)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    expected = {*(ends if isinstance(ends, list) else [ends]), VOCABULARY_SIZE - 1}
    assert load(engine, directory).tokenizer.end_token_ids == expected


def test_half_a_character_at_the_end_is_replaced(engine: str, model_dirs: dict[str, Path]) -> None:
    tokenizer = load(engine, model_dirs["qwen3"]).tokenizer
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(token_id) for token_id in tokenizer.encode_prompt("雨")[:-1]] == ["", ""]
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_are_no_text(engine: str, model_dirs: dict[str, Path]) -> None:
    tokenizer = load(engine, model_dirs["qwen3"]).tokenizer
    assert tokenizer.end_token_ids == {VOCABULARY_SIZE - 1}
    detokenizer = tokenizer.detokenizer()
    assert "".join(detokenizer.add(token_id) for token_id in tokenizer.end_token_ids) == ""


def test_a_conversation_becomes_a_prompt(engine: str, model_dirs: dict[str, Path]) -> None:
    tokenizer = load(engine, model_dirs["qwen3"]).tokenizer
    messages = [ChatMessage(role="user", content="a"), ChatMessage(role="assistant", content="b")]
    expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_chat(messages) == tokenizer.encode_prompt(expected)


def test_a_middle_stage_has_no_tokenizer(engine: str, model_dirs: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="no tokenizer"):
        _ = load(engine, model_dirs["qwen3"], 2, 4).tokenizer


def test_layers_that_are_not_there(engine: str, model_dirs: dict[str, Path]) -> None:
    with pytest.raises(ModelFilesError, match=r"layers 4 to 8 are wanted .* which has 6"):
        load(engine, model_dirs["qwen3"], 4, 9)


def test_a_family_that_cannot_be_split_is_refused(engine: str, tmp_path: Path) -> None:
    directory = write_random_model(tmp_path, family="gemma", config={"rope_traditional": False})
    assert len(generate([load(engine, directory)], 4)) == 4
    with pytest.raises(UnsupportedModelError, match="gemma cannot be split"):
        load(engine, directory, 0, 3)


def test_a_family_that_is_not_known_is_refused(engine: str, tmp_path: Path) -> None:
    directory = write_random_model(tmp_path)
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace('"qwen3"', '"nonesuch"'))
    with pytest.raises(UnsupportedModelError, match="nonesuch"):
        load(engine, directory)
