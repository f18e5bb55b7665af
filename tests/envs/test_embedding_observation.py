"""Text observations as vectors: the encoders, and the wrapper around any environment of text."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs import EmbeddingObservation, HashEncoder
from instructrec.envs.embeddings import ModelEncoder, make_encoder
from instructrec.errors import ConfigError
from instructrec.policies.tiny import make_tiny_model, make_tiny_tokenizer

ID = "instructrec/Candidates-v0"
TEXTS = ["the sky is blue", "The sky is blue", "grass", "", "\ud800 é 中"]


class Counting:
    """An encoder that says how often it was asked."""

    size = 3

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        return np.full((len(texts), 3), 1.0001, dtype=np.float32)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-encoder")
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_hashed_texts_are_unit_vectors_that_tell_texts_apart():
    rows = HashEncoder(64)(TEXTS)
    assert rows.shape == (5, 64) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[1])
    similar, other = HashEncoder(64)(["the blue sky", "7 + 8"]) @ rows[0]
    assert similar > 0.7 > 0.4 > other


def test_hashed_texts_are_the_same_in_another_process():
    code = "from instructrec.envs import HashEncoder; print(HashEncoder(8)(['one two']).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(HashEncoder(8)(["one two"]).tolist())


def test_a_model_encodes_every_text_once(tiny_folder):
    encoder = ModelEncoder(tiny_folder)
    first = encoder(["a", "b", "a"])
    assert first.shape == (3, encoder.size) and encoder.encoded == 2
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(encoder(["b", "a"]), first[[1, 0]])
    assert encoder.encoded == 2
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    assert encoder([]).shape == (0, encoder.size)


def test_the_oldest_vectors_leave_first(tiny_folder):
    encoder = ModelEncoder(tiny_folder, max_texts=2)
    alone = encoder(["a", "b", "c"])
    assert encoder.encoded == 3
    encoder(["b", "c"])
    assert encoder.encoded == 3
    np.testing.assert_allclose(encoder(["a"])[0], alone[0], atol=1e-6)
    assert encoder.encoded == 4


@pytest.mark.parametrize("name", [ID, "instructrec/Parity-v0"])
def test_the_wrapped_environment_passes_the_check_of_gymnasium(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        check_env(EmbeddingObservation(gym.make(name, disable_env_checker=True), HashEncoder(16)))


def test_instruction_and_candidates_are_encoded_by_themselves():
    encoder = Counting()
    env = EmbeddingObservation(TimeLimit(gym.make(ID), 5), encoder)
    assert env.observation_space.shape == (5, 3)
    observation, _ = env.reset(seed=0)
    assert encoder.calls == [list(env.get_wrapper_attr("texts"))]
    assert observation in env.observation_space  # a length just above 1 is rounded
    after, *_ = env.step(0)
    assert not after.any() and len(encoder.calls) == 1


def test_of_other_environments_the_whole_text_is_encoded():
    encoder = Counting()
    env = EmbeddingObservation(gym.make("instructrec/Refine-v0", task="parity"), encoder)
    assert env.observation_space.shape == (3,)
    env.reset(seed=0)
    env.step("wrong")
    assert "Try again" in encoder.calls[-1][0]


def test_the_spec_does_not_copy_the_encoder():
    encoder = Counting()
    env = EmbeddingObservation(gym.make(ID), encoder)
    again = gym.make(env.spec)
    again.reset(seed=0)
    assert again.get_wrapper_attr("encoder") is encoder and len(encoder.calls) == 1


def test_what_is_no_encoder_is_refused(tmp_path):
    for wrong, message in ((3, "encoder = 3"), (str(tmp_path), "no config.json")):
        with pytest.raises(ConfigError, match=message):
            make_encoder(wrong)
    with pytest.raises(ConfigError, match="model 'encoder': no folder"):
        make_encoder("/no/such/folder")
    with pytest.raises(ConfigError, match="are no text"):
        EmbeddingObservation(gym.make("CartPole-v1"))
    with pytest.raises(ConfigError, match="size = 0"):
        HashEncoder(0)
    with pytest.raises(ConfigError, match="max_texts = 0"):
        ModelEncoder("hub/id", max_texts=0)


def test_torch_is_not_imported_before_a_model_encodes():
    code = (
        "import sys, gymnasium, instructrec.envs as e\n"
        f"env = e.EmbeddingObservation(gymnasium.make({ID!r}), 'hash')\n"
        "env.reset(seed=0); env.step(0)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
