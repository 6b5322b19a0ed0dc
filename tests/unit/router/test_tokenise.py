import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kvasir_protocol.errors import CheckpointError, InvalidRequest
from kvasir_router.tokenise import TextCodec
from tests.fakes.text_model import write_text_model


def test_text_comes_back_from_its_ids(codec: TextCodec) -> None:
    text = "Wörter 你好 😀 and a\ttab"
    assert codec.decode(codec.encode(text)) == text


def test_special_tokens_in_text_become_their_ids(codec: TextCodec) -> None:
    assert codec.encode("<|im_end|>") == [1]


def test_special_tokens_are_left_out_of_text_unless_wanted(codec: TextCodec) -> None:
    ids = [1, *codec.encode("hi")]
    assert codec.decode(ids) == "hi"
    assert codec.decode(ids, skip_special_tokens=False) == "<|im_end|>hi"


def test_bytes_of_all_tokens_join_to_the_text(codec: TextCodec) -> None:
    text = "naïve 🇳🇴 好"
    assert b"".join(map(codec.token_bytes, codec.encode(text))).decode() == text


def test_bytes_of_fallback_tokens_are_single_bytes(byte_fallback_codec: TextCodec) -> None:
    ids = byte_fallback_codec.encode("fox 好")
    assert b"".join(map(byte_fallback_codec.token_bytes, ids)).decode() == " fox 好"


def test_part_of_a_character_shows_as_replacement(codec: TextCodec) -> None:
    assert codec.token_text(codec.encode("\U0001f9ff")[0]).endswith("\ufffd")


def test_id_without_a_token_has_no_text(codec: TextCodec) -> None:
    assert codec.token_bytes(100_000) == b""
    assert codec.decode([100_000]) == ""


def test_half_a_surrogate_pair_is_the_callers_mistake(codec: TextCodec) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        codec.encode("\ud83d", field="messages")
    assert caught.value.field == "messages"


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        TextCodec.from_directory(tmp_path / "nowhere")


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        TextCodec.from_directory(tmp_path)


def test_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        TextCodec.from_directory(tmp_path)


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path, tokenizer: Tokenizer) -> None:
    document = json.loads(tokenizer.to_str())
    document["truncation"] = {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    directory = write_text_model(tmp_path, Tokenizer.from_str(json.dumps(document)))
    assert len(TextCodec.from_directory(directory).encode("one two three four")) > 2


def test_vocabulary_is_the_models_even_if_the_tokenizer_has_fewer(tmp_path: Path) -> None:
    codec = TextCodec.from_directory(write_text_model(tmp_path, config={"vocab_size": 512}))
    assert codec.vocab_size == 512


def test_without_ids_in_the_configs_the_tokenizers_own_eos_counts(tmp_path: Path) -> None:
    directory = write_text_model(tmp_path, config={"eos_token_id": None}, generation_config={"eos_token_id": None})
    assert TextCodec.from_directory(directory).eos_token_ids == (1,)


def test_threads_may_share_a_codec(codec: TextCodec) -> None:
    texts = [f"message {number} 😀" for number in range(50)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: codec.decode(codec.encode(text)), texts)) == texts
